"""All settings of a run, and what those of different sections ask of each other.

A setting is one line of its section: name, type, default, limits and meaning. Nothing else repeats them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mtkit.config.data_settings import DataConfig, LanguagesConfig
from mtkit.config.decoding_settings import DecodingConfig
from mtkit.config.model_settings import AnyModelConfig, MixedConfig, ModelConfig, TransformerConfig
from mtkit.config.section import Section
from mtkit.config.tokenizer_settings import TokenizerConfig
from mtkit.config.training_settings import TrainingConfig


def _dropouts(model: Section) -> Iterator[float]:
    """Every rate of dropout of a model, those of its halves too."""
    for name, value in model:
        if isinstance(value, Section):
            yield from _dropouts(value)
        elif name.endswith("dropout"):
            yield value


class Config(Section):
    """All settings of a run."""

    name: str = Field("translator", pattern=r"^[^/\\]*[^/\\.\s][^/\\]*$", description="Name of the run.")
    run_dir: Path | None = Field(None, description="Where all results go; null: runs/NAME.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    languages: LanguagesConfig = Field(LanguagesConfig(), description="What is translated into what.")
    data: DataConfig = Field(DataConfig(), description="The parallel text.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="The vocabulary.")
    model: ModelConfig = Field(TransformerConfig(), description="The model.", validate_default=True)
    training: TrainingConfig = Field(TrainingConfig(), description="How it is trained.")
    decoding: DecodingConfig = Field(DecodingConfig(), description="How it translates.")

    @field_validator("model")
    @classmethod
    def ties_follow_the_vocabulary(cls, model: AnyModelConfig, info: ValidationInfo) -> AnyModelConfig:
        """Where each side has a vocabulary of its own, tie_embeddings is decoder unless it is said."""
        tokenizer = info.data.get("tokenizer")  # not there if it is at fault
        if tokenizer is not None and not tokenizer.shared and "tie_embeddings" not in model.model_fields_set:
            model = model.model_copy(update={"tie_embeddings": "decoder"})
            model.model_fields_set.remove("tie_embeddings")  # training.start_from carries over what is not said
        if isinstance(model, MixedConfig):
            model.check_ties()
        return model

    @model_validator(mode="after")
    def sections_fit(self) -> "Config":
        """Settings of different sections that only make sense together."""
        if not self._is_carried("tie_embeddings") and self.model.tie_embeddings == "all" and not self.tokenizer.shared:
            raise ValueError(
                "model.tie_embeddings all wants tokenizer.shared true; set it to decoder or none, or take it out"
            )
        if self.training.batch_tokens <= self.data.max_length:
            raise ValueError(
                f"training.batch_tokens {self.training.batch_tokens} must be more than data.max_length "
                f"{self.data.max_length}, so that the longest pair fits"
            )
        for name, limit in self.model.position_limits.items():
            if limit <= self.data.max_length:
                raise ValueError(f"model.{name} {limit} must be more than data.max_length {self.data.max_length}")
        if self.decoding.coverage_penalty and not self.model.has_attention:
            raise ValueError(
                f"decoding.coverage_penalty {self.decoding.coverage_penalty} wants a model with attention, "
                "which tells what was covered; set it to 0"
            )
        if self.decoding.unknown == "copy" and not self.model.has_attention:
            raise ValueError(
                "decoding.unknown copy wants a model with attention, which tells the source word; set it to ban or keep"
            )
        if self.training.consistency == "rdrop" and not any(_dropouts(self.model)):
            raise ValueError("training.consistency rdrop wants model.dropout above 0; two equal passes always agree")
        return self

    @model_validator(mode="after")
    def tokenizer_fits(self) -> "Config":
        """Segmentations are drawn from the right type of tokenizer, and no symbol is a tag too."""
        type_ = self.tokenizer.type
        if self._is_carried("type") or self.tokenizer.model is not None:
            type_ = "bpe" if self.training.bpe_dropout else "unigram"  # checked when it is known
        if self.training.bpe_dropout and type_ != "bpe":
            raise ValueError(f"training.bpe_dropout {self.training.bpe_dropout} wants tokenizer.type bpe, not {type_}")
        if self.training.unigram_alpha is not None and type_ != "unigram":
            raise ValueError(
                f"training.unigram_alpha {self.training.unigram_alpha} wants tokenizer.type unigram, not {type_}"
            )
        if self.training.start_from is not None and (said := self.tokenizer.first_changed("model")):
            raise ValueError(
                f"tokenizer.{said} is for a model that starts from nothing; that of training.start_from has a "
                "tokenizer of its own"
            )
        tags = [corpus.tag for corpus in self.data.train]
        if both := next((symbol for symbol in self.tokenizer.symbols if symbol in tags), None):
            raise ValueError(
                f"tokenizer.symbols has {both}, which is a tag of data.train, too; take it out of one of them"
            )
        return self

    def _is_carried(self, name: str) -> bool:
        """Whether a setting of tokenizer or model is that of the model to start from, since it is not said."""
        said = self.tokenizer.model_fields_set | self.model.model_fields_set
        return self.training.start_from is not None and name not in said

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return self.run_dir or Path("runs") / self.name

    def data_path(self, path: Path) -> Path:
        """Where a file of the data section lies."""
        return self.data.root / path if self.data.root else path
