"""Settings of the tokenizer."""

from typing import Literal

from pydantic import Field, model_validator

from mtkit.config.section import Section

Rule = Literal["identity", "nfkc", "nmt_nfkc", "nmt_nfkc_zwnj", "model"]

LEAST_WITH_BYTES = 264  # pieces: 4 special ones, 256 bytes, and a few characters


class TokenizerConfig(Section):
    """The vocabulary, and how text becomes pieces of it."""

    type: Literal["bpe", "unigram", "char", "word"] = Field(
        "bpe",
        description="Pieces are merged byte pairs (Sennrich et al. 2016), those of a unigram model (Kudo 2018), "
        "characters, or the words between spaces.",
    )
    vocab_size: int = Field(
        8000, ge=5, le=10_000_000, description="Most pieces a vocabulary may have; small data may give fewer."
    )
    byte_fallback: bool | None = Field(
        None, description="Spell in bytes what has no piece, so that nothing is <unk>; null: true but for word."
    )
    shared: bool = Field(True, description="One vocabulary for both sides, or one each.")
    source_normalization: Rule = Field(
        "nmt_nfkc_zwnj",
        description="What SentencePiece does to the characters of the source first; identity: nothing; nmt_nfkc_zwnj: "
        "nmt_nfkc, but U+200C stays, which nmt_nfkc turns into a space; model: what the model of a tokenizer from "
        "elsewhere does by itself.",
    )
    target_normalization: Rule = Field(
        "identity",
        description="What SentencePiece does to the characters of the target first; identity can produce every "
        "character of a reference.",
    )
    character_coverage: float = Field(
        0.9999,
        ge=0.98,
        le=1,
        description="Share of the text whose characters get a piece; the rarest have none. Not for type word.",
    )
    sample_lines: int = Field(
        2_000_000, ge=1, description="Most lines, drawn at random, that a tokenizer is trained on."
    )

    @model_validator(mode="after")
    def bytes_fit(self) -> "TokenizerConfig":
        """Bytes take their place in the vocabulary, and words cannot be spelled."""
        if self.type == "word" and self.byte_fallback:
            raise ValueError(
                "byte_fallback true is not for type word, whose pieces spell nothing; set it to false, or change type"
            )
        if self.spells_bytes and self.vocab_size < LEAST_WITH_BYTES:
            raise ValueError(
                f"vocab_size {self.vocab_size} is too small for the 256 bytes of byte_fallback; "
                f"set it to {LEAST_WITH_BYTES} or more, or byte_fallback to false"
            )
        if self.type == "word" and (said := self.first_changed("character_coverage")):
            raise ValueError(f"{said} is not for type word, whose pieces are words, with all their characters")
        return self

    @property
    def spells_bytes(self) -> bool:
        """Whether what has no piece is spelled in bytes."""
        return self.type != "word" if self.byte_fallback is None else self.byte_fallback
