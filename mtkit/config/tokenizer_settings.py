"""Settings of the tokenizer."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from mtkit.config.section import FOR_BOTH, FOR_EACH, Section, form_of

Rule = Literal["identity", "nfkc", "nmt_nfkc", "nmt_nfkc_zwnj", "model"]
Side = Literal["source", "target"]
Size = Annotated[int, Field(ge=5, le=10_000_000)]
Symbol = Annotated[str, Field(pattern=r"^\S+$")]

LEAST_WITH_BYTES = 264  # pieces: 4 special ones, 256 bytes, and a few characters


class SideSizes(Section):
    """A size for each side's vocabulary."""

    source: Size = Field(description="Most pieces of the source.")
    target: Size = Field(description="Most pieces of the target.")


class SideModels(Section):
    """A SentencePiece model for each side."""

    source: Path = Field(description="The model of the source.")
    target: Path = Field(description="The model of the target.")


class TokenizerTextConfig(Section):
    """More text for the tokenizer alone: a file of either side, or one of each, which need not go together."""

    # What an editor should offer; which forms there are is checked below.
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["source"]}, {"required": ["target"]}]})

    source: Path | None = Field(None, description="Text of the source side: a text file, or .gz, .xz, .zst.")
    target: Path | None = Field(None, description="Text of the target side: such a file.")

    @model_validator(mode="after")
    def some_file_is_given(self) -> "TokenizerTextConfig":
        """One file at least."""
        if self.source is None and self.target is None:
            raise ValueError("found no file, wants source, target or both")
        return self

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""
        return tuple(path for path in (self.source, self.target) if path is not None)


class TokenizerConfig(Section):
    """The vocabulary, and how text becomes pieces of it."""

    model: (
        Annotated[Annotated[Path, Tag(FOR_BOTH)] | Annotated[SideModels, Tag(FOR_EACH)], Discriminator(form_of)] | None
    ) = Field(
        None,
        description="A SentencePiece model to take instead of training one, or with shared false one for each side; "
        "it keeps its type, its size, its normalisation and its ids, and what it lacks of padding, begin and end mark "
        "is added behind. Relative paths start from data.root.",
    )
    type: Literal["bpe", "unigram", "char", "word"] = Field(
        "bpe",
        description="Pieces are merged byte pairs (Sennrich et al. 2016), those of a unigram model (Kudo 2018), "
        "characters, or the words between spaces.",
    )
    vocab_size: Annotated[
        Annotated[Size, Tag(FOR_BOTH)] | Annotated[SideSizes, Tag(FOR_EACH)], Discriminator(form_of)
    ] = Field(
        8000,
        description="Most pieces a vocabulary may have, or with shared false {source: 8000, target: 4000}; small data "
        "may give fewer.",
    )
    byte_fallback: bool | None = Field(
        None, description="Spell in bytes what has no piece, so that nothing is <unk>; null: true but for word."
    )
    shared: bool = Field(True, description="One vocabulary for both sides, or one each.")
    symbols: tuple[Symbol, ...] = Field(
        (),
        description="Placeholders, such as <url>, that are one piece each on both sides, wherever they stand; of type "
        "word they get spaces around them.",
    )
    split_digits: bool = Field(False, description="Make each digit a piece of its own. Not for type word.")
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
    text: tuple[TokenizerTextConfig, ...] = Field(
        (),
        description="More text for the tokenizer to be trained on, added to that of data.train; no pairs are made of "
        "it. Relative paths start from data.root.",
        examples=[[{"target": "monolingual.en.gz"}, {"source": "wiki.fr", "target": "wiki.en"}]],
    )

    @field_validator("symbols")
    @classmethod
    def symbols_differ(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        """Each stands there once."""
        for number, symbol in enumerate(symbols):
            if symbol in symbols[:number]:
                raise ValueError(f"symbols has {symbol} twice")
        return symbols

    @model_validator(mode="after")
    def sides_have_vocabularies(self) -> "TokenizerConfig":
        """One vocabulary has one size, and is of one model."""
        for name, what in (("vocab_size", "has one size"), ("model", "is of one model")):
            if self.shared and form_of(getattr(self, name)) == FOR_EACH:
                raise ValueError(f"{self.first_changed(name)} wants shared false; one vocabulary {what}")
        return self

    @model_validator(mode="after")
    def model_says_all(self) -> "TokenizerConfig":
        """Nothing is said about training where a model is taken."""
        if self.model is None:
            return self
        said = self.first_changed(
            "type", "vocab_size", "byte_fallback", "split_digits", "character_coverage", "sample_lines", "text"
        )
        for name in ("source_normalization", "target_normalization"):
            if getattr(self, name) != "model":
                said = said or self.first_changed(name)
        if said:
            raise ValueError(f"{said} is for a tokenizer that is trained, and model names one; take out one of both")
        return self

    @model_validator(mode="after")
    def bytes_fit(self) -> "TokenizerConfig":
        """Bytes take their place in the vocabulary, and words cannot be spelled."""
        if self.type == "word" and self.byte_fallback:
            raise ValueError(
                "byte_fallback true is not for type word, whose pieces spell nothing; set it to false, or change type"
            )
        for name, size in self._sizes():
            if self.spells_bytes and size < LEAST_WITH_BYTES:
                raise ValueError(
                    f"{name} {size} is too small for the 256 bytes of byte_fallback; "
                    f"set it to {LEAST_WITH_BYTES} or more, or byte_fallback to false"
                )
        if self.type == "word" and (said := self.first_changed("character_coverage", "split_digits")):
            raise ValueError(f"{said} is not for type word, whose pieces are words, with all their characters")
        return self

    @property
    def spells_bytes(self) -> bool:
        """Whether what has no piece is spelled in bytes."""
        return self.type != "word" if self.byte_fallback is None else self.byte_fallback

    def size_of(self, side: Side) -> tuple[str, int]:
        """Most pieces of the vocabulary of a side, and the name of the setting that says so."""
        if isinstance(self.vocab_size, SideSizes):
            return f"vocab_size.{side}", getattr(self.vocab_size, side)
        return "vocab_size", self.vocab_size

    def models(self) -> dict[Side, Path]:
        """The models to take, by side; nothing where one is trained."""
        if self.model is None:
            return {}
        if isinstance(self.model, SideModels):
            return {"source": self.model.source, "target": self.model.target}
        return {"source": self.model, "target": self.model}

    def with_room_for(self, source: int, target: int) -> "TokenizerConfig":
        """The same with vocabularies of so many pieces at least."""
        sizes = {"source": max(self.size_of("source")[1], source), "target": max(self.size_of("target")[1], target)}
        each = isinstance(self.vocab_size, SideSizes)
        return self.model_copy(update={"vocab_size": SideSizes(**sizes) if each else max(sizes.values())})

    def _sizes(self) -> list[tuple[str, int]]:
        return [self.size_of("source"), self.size_of("target")]
