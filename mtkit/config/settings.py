"""Every setting: name, type, default, limits and meaning, one line each. Nothing else repeats them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """Settings that belong together: immutable, strict about types, and no key is unknown."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class LanguagesConfig(Section):
    """What is translated into what; evaluation picks its tokenizer by the target language."""

    source: str = Field("source", min_length=1, description="Code of the source language, such as en.")
    target: str = Field("target", min_length=1, description="Code of the target language, such as de.")


class CorpusConfig(Section):
    """Two files; line n of the one translates line n of the other."""

    source: Path = Field(description="Text file, or .gz.")
    target: Path = Field(description="Text file, or .gz, with as many lines.")


class TestSetConfig(Section):
    """A source text and its references."""

    source: Path = Field(description="Text file, or .gz.")
    target: tuple[Path, ...] = Field(min_length=1, description="The reference, or a list of references.")

    @field_validator(
        "target", mode="before", json_schema_input_type=Path | Annotated[tuple[Path, ...], Field(min_length=1)]
    )
    @classmethod
    def one_reference_is_a_list(cls, value: object) -> object:
        """A single path stands for a list of one."""
        # A list becomes a tuple here, since strict pydantic no longer takes one after a validator has seen it.
        return (value,) if isinstance(value, str | Path) else tuple(value) if isinstance(value, list) else value


class DataConfig(Section):
    """The parallel text, and which pairs are left out of training."""

    root: Path | None = Field(None, description="Folder that relative paths start from; null: the working directory.")
    train: tuple[CorpusConfig, ...] = Field((), description="Corpora to train on.")
    valid: tuple[CorpusConfig, ...] = Field((), description="Corpora that checkpoints are chosen by.")
    test: dict[str, TestSetConfig] = Field({}, description="Test sets by name.")
    max_length: int = Field(256, ge=1, description="Longest side of a training pair, in tokens; longer input is split.")
    max_length_ratio: float | None = Field(
        9.0, gt=1, description="Most tokens of one side for each token of the other; null: any."
    )


class TokenizerConfig(Section):
    """The vocabulary, and how text becomes pieces of it."""

    type: Literal["bpe"] = Field("bpe", description="Kind of subword model (Sennrich et al. 2016).")
    vocab_size: int = Field(8000, ge=264, description="Most pieces a vocabulary may have; small data may give fewer.")
    shared: bool = Field(True, description="One vocabulary for both sides, or one each.")
    source_normalization: Literal["identity", "nfkc", "nmt_nfkc"] = Field(
        "nmt_nfkc", description="What SentencePiece does to the characters of the source first."
    )
    target_normalization: Literal["identity", "nfkc", "nmt_nfkc"] = Field(
        "identity", description="The same for the target; identity can produce every character of a reference."
    )
    character_coverage: float = Field(
        0.9999,
        gt=0.9,
        le=1,
        description="Share of the text whose characters get a piece; the rest is spelled in bytes.",
    )
    sample_lines: int = Field(2_000_000, ge=1, description="Most lines, drawn at random, that the model is trained on.")


class TransformerConfig(Section):
    """The Transformer (Vaswani et al. 2017)."""

    architecture: Literal["transformer"] = Field("transformer", description="Kind of model.")
    d_model: int = Field(512, ge=2, description="Width of embeddings and layers.")
    num_heads: int = Field(8, ge=1, description="Attention heads; they divide d_model.")
    d_ff: int = Field(2048, ge=1, description="Inner width of the feed-forward layers.")
    encoder_layers: int = Field(6, ge=1, description="Depth of the encoder.")
    decoder_layers: int = Field(6, ge=1, description="Depth of the decoder.")
    decoder_num_heads: int | None = Field(None, ge=1, description="Heads in the decoder; null: num_heads.")
    decoder_d_ff: int | None = Field(None, ge=1, description="Feed-forward width in the decoder; null: d_ff.")
    norm_placement: Literal["pre", "post"] = Field("pre", description="Normalise before or after each sublayer.")
    activation: Literal["relu", "gelu", "silu"] = Field("relu", description="Nonlinearity of the feed-forward layers.")
    positions: Literal["sinusoidal", "learned"] = Field("sinusoidal", description="How places in a sentence are told.")
    max_positions: int = Field(1024, ge=2, description="Longest sentence, in tokens, that learned positions can tell.")
    scale_embeddings: bool = Field(True, description="Multiply embeddings by sqrt(d_model).")
    tie_embeddings: Literal["none", "decoder", "all"] = Field(
        "all",
        description="Which share one matrix: target and output (decoder), or the source too (all).",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of embeddings and of each sublayer's output.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of attention weights.")
    activation_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the feed-forward layers.")

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> "TransformerConfig":
        """Every head has the same width; sines and cosines come in pairs."""
        for name, heads in (("num_heads", self.num_heads), ("decoder_num_heads", self.decoder_num_heads)):
            if heads and self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {name} {heads}")
        if self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} is odd; it must be even")
        return self


class TrainingConfig(Section):
    """How the model is trained, and how its checkpoints are kept and chosen."""

    batch_tokens: int = Field(4096, ge=1, description="Most sentences x longest side of a batch, end marks counted.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one update.")
    max_steps: int = Field(100_000, ge=1, description="Updates after which training ends.")
    max_minutes: float | None = Field(None, gt=0, description="Minutes of training after which it ends; null: any.")
    optimizer: Literal["adam", "adamw"] = Field("adam", description="How weights follow gradients.")
    adam_betas: tuple[float, float] = Field((0.9, 0.98), description="Decay of Adam's two averages.")
    adam_eps: float = Field(1e-9, gt=0, description="Adam's guard against division by zero.")
    weight_decay: float = Field(0.0, ge=0, description="adam adds it to the gradient, adamw to the update.")
    schedule: Literal["noam", "inverse_sqrt", "constant"] = Field("noam", description="How the learning rate moves.")
    warmup_steps: int = Field(4000, ge=0, description="Updates during which the learning rate rises.")
    learning_rate: float | None = Field(
        None, gt=0, description="The peak, whatever the schedule; null: noam with the paper's factor of 1."
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Probability spread evenly over the vocabulary.")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of an update's gradient; null: any.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device is fast at it.")
    validate_every: int = Field(1000, ge=1, description="Updates between validations.")
    validation_sentences: int = Field(1000, ge=1, description="Most sentences that a validation translates.")
    save_every: int = Field(1000, ge=1, description="Updates between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that keep all it takes to go on.")
    select_by: Literal["bleu", "chrf", "loss"] = Field("bleu", description="What the best checkpoint is best at.")
    patience: int | None = Field(
        None, ge=1, description="Validations without a better one that end training; null: any."
    )
    average_checkpoints: int = Field(5, ge=1, description="Checkpoints, up to the best, whose average is tried.")
    max_skipped: int = Field(10, ge=1, description="Updates skipped in a row, for not being finite, that end training.")
    log_every: int = Field(50, ge=1, description="Updates between lines of the log.")
    seed: int = Field(1, ge=0, description="All chance in training comes from it.")

    @model_validator(mode="after")
    def parts_fit(self) -> "TrainingConfig":
        """Settings that only make sense together."""
        if self.learning_rate is None and self.schedule != "noam":
            raise ValueError(f"schedule {self.schedule} wants a learning_rate; only noam knows its own")
        if self.learning_rate is None and not self.warmup_steps:
            raise ValueError("noam without a learning_rate wants warmup_steps of 1 or more")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas {list(self.adam_betas)} must each be at least 0 and less than 1")
        return self


class DecodingConfig(Section):
    """How the trained model translates unless told otherwise."""

    method: Literal["beam", "sample"] = Field("beam", description="Look for the best translation, or draw one.")
    beam_size: int = Field(5, ge=1, description="Hypotheses kept at each step; 1 is greedy search.")
    length_penalty: float = Field(1.0, description="Exponent of the length penalty; 0 is none, more favours longer.")
    length_penalty_form: Literal["power", "gnmt"] = Field(
        "power", description="A score is divided by length^p, or by ((5 + length) / 6)^p (Wu et al. 2016, equation 14)."
    )
    stopping: Literal["exact", "count"] = Field(
        "exact", description="Search while a better one may come (exact), or until beam_size ended (count)."
    )
    min_length: int = Field(0, ge=0, description="Fewest target tokens, as far as the most allow.")
    max_length_ratio: float = Field(2.0, gt=0, description="Most target tokens for each source token …")
    max_length_extra: int = Field(20, ge=0, description="… and so many more.")
    no_repeat_ngram: int = Field(0, ge=0, description="No so many tokens in a row are said twice; 0: any may be.")
    coverage_penalty: float = Field(
        0.0, ge=0, description="Weight of source tokens that were not looked at (Wu et al. 2016, equation 15)."
    )
    diversity_groups: int = Field(1, ge=1, description="Groups of a diverse beam (Vijayakumar et al. 2018).")
    diversity_strength: float = Field(0.5, ge=0, description="How much a group avoids what those before it say.")
    temperature: float = Field(1.0, gt=0, description="Samples: below 1 likelier ones, above 1 more different ones.")
    top_k: int | None = Field(None, ge=1, description="Samples: from so many likeliest tokens; null: all.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Samples: from the likeliest of this mass (Holtzman et al. 2020).",
    )
    seed: int = Field(1, ge=0, description="All chance of samples comes from it and from the text of the line.")
    mbr_samples: int = Field(0, ge=0, description="Samples that elect a translation (Eikema & Aziz 2020); 0: none.")
    mbr_utility: Literal["chrf", "bleu"] = Field("chrf", description="How a sample is compared with the others.")
    batch_tokens: int = Field(16384, ge=1, description="Most sentences x longest source x beam of a batch.")

    @model_validator(mode="after")
    def parts_fit(self) -> "DecodingConfig":
        """Settings that only make sense together."""
        if self.beam_size % self.diversity_groups:
            raise ValueError(
                f"beam_size {self.beam_size} is not a multiple of diversity_groups {self.diversity_groups}"
            )
        if self.mbr_samples == 1:
            raise ValueError("mbr_samples 1 leaves a sample nothing to be compared with; wants 2 or more, or 0")
        if self.draws:
            if self.coverage_penalty:
                raise ValueError(f"coverage_penalty {self.coverage_penalty} ranks what a beam finds; samples want 0")
            if self.diversity_groups > 1:
                raise ValueError(f"diversity_groups {self.diversity_groups} divides a beam; samples want 1")
        else:
            for name in ("temperature", "top_k", "top_p"):
                if (value := getattr(self, name)) != DecodingConfig.model_fields[name].default:
                    raise ValueError(f"{name} {value} is of samples; it goes with method sample or with mbr_samples")
            if self.coverage_penalty and self.beam_size == 1:
                raise ValueError("coverage_penalty ranks what a beam finds; it wants a beam_size of 2 or more")
        return self

    @property
    def draws(self) -> bool:
        """Whether translations come of samples."""
        return self.method == "sample" or self.mbr_samples > 0


class Config(Section):
    """All settings of a run."""

    name: str = Field("translator", pattern=r"^[^/\\]*[^/\\.\s][^/\\]*$", description="Name of the run.")
    run_dir: Path | None = Field(None, description="Where all results go; null: runs/NAME.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    languages: LanguagesConfig = Field(LanguagesConfig(), description="What is translated into what.")
    data: DataConfig = Field(DataConfig(), description="The parallel text.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="The vocabulary.")
    model: TransformerConfig = Field(TransformerConfig(), description="The model.")
    training: TrainingConfig = Field(TrainingConfig(), description="How it is trained.")
    decoding: DecodingConfig = Field(DecodingConfig(), description="How it translates.")

    @model_validator(mode="after")
    def sections_fit(self) -> "Config":
        """Settings of different sections that only make sense together."""
        if self.model.tie_embeddings == "all" and not self.tokenizer.shared:
            raise ValueError("model.tie_embeddings all wants tokenizer.shared true; decoder or none goes without")
        if self.training.batch_tokens <= self.data.max_length:
            raise ValueError(
                f"training.batch_tokens {self.training.batch_tokens} must be more than data.max_length "
                f"{self.data.max_length}, so that the longest pair fits"
            )
        if self.model.positions == "learned" and self.model.max_positions <= self.data.max_length:
            raise ValueError(
                f"model.max_positions {self.model.max_positions} must be more than "
                f"data.max_length {self.data.max_length}"
            )
        return self

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return self.run_dir or Path("runs") / self.name

    def data_path(self, path: Path) -> Path:
        """Where a file of the data section lies."""
        return self.data.root / path if self.data.root else path
