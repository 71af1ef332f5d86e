"""Every setting: name, type, default, limits and meaning, one line each. Nothing else repeats them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from mtkit.config.scripts import SCRIPTS, nearest_script


class Section(BaseModel):
    """Settings that belong together: immutable, strict about types, and no key is unknown."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class LanguagesConfig(Section):
    """What is translated into what; evaluation picks its tokenizer by the target language."""

    source: str = Field("source", min_length=1, description="Code of the source language, such as en.")
    target: str = Field("target", min_length=1, description="Code of the target language, such as de.")


ColumnNumber = Annotated[int, Field(ge=1)]


class CorpusConfig(Section):
    """Sentence pairs: two files, of which line n translates line n, or one file with both in columns."""

    # What an editor should offer; which forms there are is checked below.
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["source", "target"]}, {"required": ["tsv"]}]})

    source: Path | None = Field(None, description="Text file, or .gz, .xz, .zst.")
    target: Path | None = Field(None, description="Text file, or .gz, .xz, .zst, with as many lines.")
    tsv: Path | None = Field(None, description="Instead of both: one such file, its columns separated by tabs.")
    columns: tuple[ColumnNumber, ColumnNumber] = Field((1, 2), description="Columns of tsv: the source, the target.")
    weight: float = Field(1.0, gt=0, description="Share of an epoch, next to those of the other training corpora.")
    tag: str | None = Field(None, pattern=r"^\S+$", description="Word put before each source line, such as <2de>.")

    @model_validator(mode="after")
    def one_form_is_given(self) -> "CorpusConfig":
        """Two files or one, and columns only of one."""
        given = [name for name in ("source", "target", "tsv") if getattr(self, name) is not None]
        if given not in (["source", "target"], ["tsv"]):
            raise ValueError(f"found {' and '.join(given) or 'no file'}, wants source and target, or tsv alone")
        if self.tsv is None and self.columns != (1, 2):
            raise ValueError("found columns without tsv; only a file of columns has some to choose")
        if self.columns[0] == self.columns[1]:
            raise ValueError(f"found column {self.columns[0]} for both sides, wants two different columns")
        return self

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files: both sides, or the one that holds both."""
        return tuple(path for path in (self.source, self.target, self.tsv) if path is not None)


class TestSetConfig(Section):
    """A source text and its references: files, or a set that sacreBLEU knows by name."""

    source: Path | None = Field(None, description="Text file, or .gz.")
    target: tuple[Path, ...] = Field((), description="The reference, or a list of references.")
    sacrebleu: str | None = Field(None, min_length=1, description="Name in sacreBLEU, such as wmt14/full.")
    tag: str | None = Field(
        None, pattern=r"^\S+$", description="Put before each source line, for models that know several languages."
    )

    @field_validator("target", mode="before", json_schema_input_type=Path | tuple[Path, ...])
    @classmethod
    def one_reference_is_a_list(cls, value: object) -> object:
        """A single path stands for a list of one."""
        # A list becomes a tuple here, since strict pydantic no longer takes one after a validator has seen it.
        return (value,) if isinstance(value, str | Path) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def files_or_a_name(self) -> "TestSetConfig":
        """One or the other says where the text is."""
        if self.sacrebleu is not None and (self.source is not None or self.target):
            raise ValueError("a test set has source and target, or a name in sacrebleu, not both")
        if self.sacrebleu is None and (self.source is None or not self.target):
            raise ValueError("a test set wants source and target, or sacrebleu, the name of a set such as wmt14/full")
        return self


class DataConfig(Section):
    """The parallel text, and which pairs are left out of training."""

    root: Path | None = Field(None, description="Folder that relative paths start from; null: the working directory.")
    train: tuple[CorpusConfig, ...] = Field((), description="Corpora to train on.")
    valid: tuple[CorpusConfig, ...] = Field((), description="Corpora that checkpoints are chosen by.")
    test: dict[str, TestSetConfig] = Field({}, description="Test sets by name.")
    temperature: float = Field(
        1.0, ge=1, description="Shares of corpora follow weight x pairs^(1/temperature) (Arivazhagan et al. 2019)."
    )
    max_length: int = Field(256, ge=1, description="Longest side of a training pair, in tokens; longer input is split.")
    min_length: int = Field(1, ge=1, description="Shortest side of a training pair, in tokens.")
    max_length_ratio: float | None = Field(
        9.0, gt=1, description="Most tokens of one side for each token of the other; null: any."
    )
    drop_identical: bool = Field(False, description="Leave out pairs whose sides are equal but for case.")
    source_script: tuple[str, ...] | None = Field(
        None, min_length=1, description="Unicode script of the source, such as Latin, or a list; null: any."
    )
    target_script: tuple[str, ...] | None = Field(
        None, min_length=1, description="The same for the target; a pair mostly in other scripts is left out."
    )
    min_letters: float = Field(
        0.0, ge=0, le=1, description="Least share of letters among the characters of each side, white space aside."
    )
    drop_duplicates: bool = Field(False, description="Leave out pairs that stood before; 16 bytes of memory each.")

    @field_validator(
        "source_script",
        "target_script",
        mode="before",
        json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)] | None,
    )
    @classmethod
    def one_script_is_a_list(cls, value: object) -> object:
        """A single name stands for a list of one."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("source_script", "target_script")
    @classmethod
    def scripts_exist(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Names as Unicode writes them."""
        for name in names or ():
            if name not in SCRIPTS:
                near = nearest_script(name)
                meant = f"did you mean {near}?" if near else "wants a name such as Latin, Cyrillic or Han"
                raise ValueError(f"unknown script '{name}'; {meant}")
        return names

    @model_validator(mode="after")
    def tags_are_trained(self) -> "DataConfig":
        """A tag means something only if training has seen it."""
        known = {corpus.tag for corpus in self.train}
        for corpus in self.valid:
            if corpus.tag is not None and corpus.tag not in known:
                there = ", ".join(sorted(tag for tag in known if tag)) or "none"
                raise ValueError(f"tag {corpus.tag} of data.valid stands in no corpus of data.train; found {there}")
        return self


LEAST_WITH_BYTES = 264  # pieces: 4 special ones, 256 bytes, and a few characters


class TokenizerConfig(Section):
    """The vocabulary, and how text becomes pieces of it."""

    type: Literal["bpe", "unigram", "char", "word"] = Field(
        "bpe",
        description="Pieces are merged byte pairs (Sennrich et al. 2016), those of a unigram model (Kudo 2018), "
        "characters, or the words between spaces.",
    )
    vocab_size: int = Field(8000, ge=5, description="Most pieces a vocabulary may have; small data may give fewer.")
    byte_fallback: bool | None = Field(
        None, description="Spell in bytes what has no piece, so that nothing is <unk>; null: true but for word."
    )
    shared: bool = Field(True, description="One vocabulary for both sides, or one each.")
    source_normalization: Literal["identity", "nfkc", "nmt_nfkc"] = Field(
        "nmt_nfkc", description="What SentencePiece does to the characters of the source first."
    )
    target_normalization: Literal["identity", "nfkc", "nmt_nfkc"] = Field(
        "identity", description="The same for the target; identity can produce every character of a reference."
    )
    character_coverage: float = Field(
        0.9999,
        ge=0.98,
        le=1,
        description="Share of the text whose characters get a piece; the rest has none. Not for word.",
    )
    sample_lines: int = Field(2_000_000, ge=1, description="Most lines, drawn at random, that the model is trained on.")

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
        return self

    @property
    def spells_bytes(self) -> bool:
        """Whether what has no piece is spelled in bytes."""
        return self.type != "word" if self.byte_fallback is None else self.byte_fallback


ScaleEmbeddings = Annotated[bool, Field(description="Multiply embeddings by sqrt(d_model).")]
TieEmbeddings = Annotated[
    Literal["none", "decoder", "all"],
    Field(description="Which share one matrix: target and output (decoder), or the source too (all)."),
]
OutputBias = Annotated[bool, Field(description="A learned bias for each token of the output.")]
StartToken = Annotated[
    Literal["begin", "pad", "end"], Field(description="What the decoder reads first; Marian has pad, M2M100 end.")
]


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
    norm: Literal["layer", "rms"] = Field("layer", description="LayerNorm, or RMSNorm, which only scales.")
    activation: Literal["relu", "gelu", "silu", "reglu", "geglu", "swiglu"] = Field(
        "relu", description="Nonlinearity of the feed-forward layers; those in glu are gated."
    )
    attention_bias: bool = Field(True, description="Biases of the four projections of an attention.")
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = Field(
        "sinusoidal", description="How places in a sentence are told."
    )
    max_positions: int = Field(1024, ge=2, description="Longest sentence, in tokens, that learned positions can tell.")
    sinusoid_layout: Literal["halves", "interleaved"] = Field(
        "halves", description="Sines before cosines, or each sine before its cosine."
    )
    sinusoid_exponent: Literal["paper", "tensor2tensor"] = Field(
        "paper", description="Wavelengths 10000^(2i/d_model), or ^(i/(d_model/2 - 1))."
    )
    sinusoid_first: int = Field(0, ge=0, description="Place that the first token of a sentence has; M2M100 has 2.")
    scale_embeddings: ScaleEmbeddings = True
    embedding_norm: bool = Field(False, description="Normalise what the first layer reads, as mBART does.")
    tie_embeddings: TieEmbeddings = "all"
    output_bias: OutputBias = False
    start_token: StartToken = "begin"
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of embeddings and of each sublayer's output.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of attention weights.")
    activation_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the feed-forward layers.")
    layer_dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a layer is left out of a batch.")

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> "TransformerConfig":
        """Every head has the same width; sines and cosines come in pairs."""
        for name, heads in (("num_heads", self.num_heads), ("decoder_num_heads", self.decoder_num_heads)):
            if heads and self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {name} {heads}")
            if heads and self.positions == "rotary" and self.d_model // heads % 2:
                raise ValueError(
                    f"positions rotary wants heads of even width; d_model {self.d_model} over {name} {heads} is "
                    f"{self.d_model // heads}"
                )
        if self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} is odd; it must be even")
        return self

    @model_validator(mode="after")
    def sinusoids_are_there(self) -> "TransformerConfig":
        """What shapes the sinusoids says nothing of other positions."""
        if self.positions != "sinusoidal":
            for name in ("sinusoid_layout", "sinusoid_exponent", "sinusoid_first"):
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    raise ValueError(f"{name} {value} wants positions sinusoidal, found {self.positions}")
        return self

    @property
    def can_pack(self) -> bool:
        """Whether a row may hold several sentences."""
        return True

    @property
    def position_limits(self) -> dict[str, int]:
        """Settings that limit how many tokens a sentence may have, by name; none where any length will do."""
        return {"max_positions": self.max_positions} if self.positions == "learned" else {}


class RecurrentConfig(Section):
    """A recurrent encoder-decoder, with attention (Bahdanau et al. 2015) or without (Sutskever et al. 2014)."""

    architecture: Literal["rnn"] = Field("rnn", description="Kind of model.")
    cell: Literal["lstm", "gru", "tanh"] = Field("lstm", description="Kind of recurrent cell; tanh is Elman's (1990).")
    d_model: int = Field(512, ge=2, description="Width of embeddings, cells and features.")
    encoder_layers: int = Field(2, ge=1, description="Depth of the encoder.")
    decoder_layers: int = Field(2, ge=1, description="Depth of the decoder.")
    bidirectional: bool = Field(True, description="Read the source both ways, each with half of d_model.")
    attention: Literal["none", "additive", "dot", "general"] = Field(
        "general",
        description="Score of a source token (additive: Bahdanau et al. 2015; others: Luong et al. 2015).",
    )
    input_feeding: bool = Field(False, description="A step reads the features before (Luong et al. 2015, section 3.3).")
    context: Literal["initial", "every_step"] = Field(
        "initial",
        description="The encoder's last state begins the decoder, or is read at every step too.",
    )
    reverse_source: bool = Field(False, description="Read the source from its end (Sutskever et al. 2014).")
    scale_embeddings: ScaleEmbeddings = True
    tie_embeddings: TieEmbeddings = "all"
    output_bias: OutputBias = False
    start_token: StartToken = "begin"
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of embeddings, between layers and of features.")

    @model_validator(mode="after")
    def choices_fit(self) -> "RecurrentConfig":
        """Both directions have the same width; what attention found can only be fed where there is attention."""
        if self.bidirectional and self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} is odd; it must be even where bidirectional is true")
        if self.input_feeding and self.attention == "none":
            raise ValueError("input_feeding true wants an attention: additive, dot or general")
        return self

    @property
    def can_pack(self) -> bool:
        """Whether a row may hold several sentences."""
        return False

    @property
    def position_limits(self) -> dict[str, int]:
        """Settings that limit how many tokens a sentence may have, by name: none."""
        return {}


def _architecture(default: str) -> Callable[[Any], str]:
    """What tells the kinds of a section apart: its architecture, or the default where none is given."""

    def found(section: Any) -> str:
        if isinstance(section, Section):
            return str(getattr(section, "architecture", ""))
        return str(section.get("architecture", default)) if isinstance(section, dict) else default

    return found


# Where no architecture is given, the first of the kinds is meant.
EncoderConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")] | Annotated[RecurrentConfig, Tag("rnn")],
    Discriminator(_architecture("transformer")),
]
DecoderConfig = Annotated[
    Annotated[RecurrentConfig, Tag("rnn")] | Annotated[TransformerConfig, Tag("transformer")],
    Discriminator(_architecture("rnn")),
]


class MixedConfig(Section):
    """The encoder of one model and the decoder of another (Chen et al. 2018); the rest of both sections is not used."""

    architecture: Literal["mixed"] = Field("mixed", description="Kind of model.")
    encoder: EncoderConfig = Field(TransformerConfig(), description="A whole model, of which the encoder is built.")
    decoder: DecoderConfig = Field(RecurrentConfig(), description="A whole model, of which the decoder is built.")
    tie_embeddings: TieEmbeddings = "all"

    @model_validator(mode="after")
    def halves_fit(self) -> "MixedConfig":
        """One matrix of embeddings has one width and one scale."""
        for name in ("d_model", "scale_embeddings") if self.tie_embeddings == "all" else ():
            found = [getattr(half, name) for half in (self.encoder, self.decoder)]
            if found[0] != found[1]:
                raise ValueError(
                    f"tie_embeddings all wants encoder.{name} and decoder.{name} alike, "
                    f"found {found[0]} and {found[1]}".replace("True", "true").replace("False", "false")
                )
        return self

    @property
    def d_model(self) -> int:
        """Width of the decoder."""
        return self.decoder.d_model

    @property
    def can_pack(self) -> bool:
        """Whether a row may hold several sentences."""
        return self.encoder.can_pack and self.decoder.can_pack

    @property
    def position_limits(self) -> dict[str, int]:
        """Settings that limit how many tokens a sentence may have, by name."""
        halves = {"encoder": self.encoder, "decoder": self.decoder}
        return {f"{half}.{name}": limit for half in halves for name, limit in halves[half].position_limits.items()}


AnyModelConfig = TransformerConfig | RecurrentConfig | MixedConfig

ModelConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[RecurrentConfig, Tag("rnn")]
    | Annotated[MixedConfig, Tag("mixed")],
    Discriminator(_architecture("transformer")),
]


class TrainingConfig(Section):
    """How the model is trained, and how its checkpoints are kept and chosen."""

    start_from: Path | None = Field(
        None,
        description="Run directory or model bundle whose weights training starts from, and whose tokenizer is taken in "
        "the place of what the section tokenizer says; null: random weights.",
    )
    batch_tokens: int = Field(4096, ge=1, description="Most sentences x longest side of a batch, end marks counted.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one update.")
    max_steps: int = Field(100_000, ge=1, description="Updates after which training ends.")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes of training after which it ends; null: any. linear and cosine still end at max_steps: "
        "set that to what fits into the minutes.",
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="How weights follow gradients.")
    adam_betas: tuple[float, float] = Field((0.9, 0.98), description="Decay of Adam's two averages.")
    adam_eps: float = Field(1e-9, gt=0, description="Adam's guard against division by zero.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of its last update that sgd repeats.")
    weight_decay: float = Field(0.0, ge=0, description="adam and sgd add it to the gradient, adamw to the update.")
    schedule: Literal["noam", "inverse_sqrt", "constant", "linear", "cosine", "plateau"] = Field(
        "noam",
        description="How the learning rate moves after warm-up; linear and cosine fall until max_steps, plateau when "
        "validations bring nothing better.",
    )
    warmup_steps: int = Field(4000, ge=0, description="Updates during which the learning rate rises.")
    learning_rate: float | None = Field(
        None, gt=0, description="The peak, whatever the schedule; null: noam with the paper's factor of 1."
    )
    final_learning_rate: float = Field(0.0, ge=0, description="Where linear, cosine and plateau stop falling.")
    plateau_factor: float = Field(0.7, gt=0, lt=1, description="What plateau multiplies the learning rate by.")
    plateau_patience: int = Field(
        5, ge=1, description="Validations in a row without a better one after which plateau does so."
    )
    bpe_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a merge of byte pairs is left out (Provilkov et al. 2020)."
    )
    unigram_alpha: float | None = Field(
        None,
        ge=0,
        description="How sharply a unigram model samples segmentations (Kudo 2018); null: the best ones alone.",
    )
    unigram_nbest: int = Field(-1, ge=-1, le=512, description="How many best ones it samples from; -1: all there are.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Probability spread evenly over the vocabulary.")
    consistency: Literal["none", "rdrop", "simcut"] = Field(
        "none",
        description="A second pass, under other dropout or with tokens cut, must agree; it takes as long "
        "again, and as much memory again as batch_tokens bounds.",
    )
    consistency_weight: float | None = Field(
        None, gt=0, description="The papers' alpha; null: theirs, 5 for rdrop and 3 for simcut."
    )
    cutoff: float = Field(0.05, gt=0, lt=1, description="Share of the embeddings that simcut sets to zero.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, which then is what validation measures, "
        "average_checkpoints averages and the bundle holds; null: none.",
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of an update's gradient; null: any.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the device is fast at it, fp16 on older GPUs that are fast at that."
    )
    validate_every: int = Field(1000, ge=1, description="Updates between validations.")
    validation_sentences: int = Field(1000, ge=1, description="Most sentences that a validation translates.")
    save_every: int = Field(1000, ge=1, description="Updates between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that keep all it takes to go on.")
    select_by: Literal["bleu", "chrf", "loss"] = Field(
        "bleu", description="What the best checkpoint is best at; loss is the likelihood's, without label smoothing."
    )
    patience: int | None = Field(
        None, ge=1, description="Validations without a better one that end training; null: any."
    )
    average_checkpoints: int = Field(5, ge=1, description="Checkpoints, up to the best, whose average is tried.")
    max_skipped: int = Field(10, ge=1, description="Updates skipped in a row, for not being finite, that end training.")
    log_every: int = Field(50, ge=1, description="Updates between lines of the log.")
    tensorboard: bool = Field(
        False, description="Draw the log with TensorBoard, into the folder tensorboard; wants mtkit[tensorboard]."
    )
    seed: int = Field(1, ge=0, description="All chance in training comes from it.")

    @model_validator(mode="after")
    def parts_fit(self) -> "TrainingConfig":
        """Settings that only make sense together."""
        if self.learning_rate is None and self.schedule != "noam":
            raise ValueError(f"schedule {self.schedule} wants a learning_rate; only noam knows its own")
        if self.learning_rate is None and not self.warmup_steps:
            raise ValueError("noam without a learning_rate wants warmup_steps of 1 or more")
        if self.learning_rate is not None and self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate} must be at most learning_rate {self.learning_rate}"
            )
        if self.schedule in ("linear", "cosine") and self.max_steps <= max(self.warmup_steps, 1):
            raise ValueError(
                f"schedule {self.schedule} wants max_steps above warmup_steps {self.warmup_steps} and 1, found "
                f"{self.max_steps}"
            )
        if self.schedule == "plateau" and self.patience is not None and self.patience <= self.plateau_patience:
            raise ValueError(
                f"patience {self.patience} ends training before plateau_patience {self.plateau_patience} lowers the "
                "learning rate; it must be more"
            )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum {self.momentum} is for optimizer sgd; {self.optimizer} has adam_betas")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas {list(self.adam_betas)} must each be at least 0 and less than 1")
        if self.consistency_weight is not None and self.consistency == "none":
            raise ValueError(
                f"consistency_weight {self.consistency_weight:g} wants consistency rdrop or simcut, not none"
            )
        if self.unigram_nbest in (0, 1):
            raise ValueError(f"unigram_nbest {self.unigram_nbest} leaves nothing to sample; it wants 2 or more, or -1")
        if self.unigram_nbest != -1 and self.unigram_alpha is None:
            raise ValueError(f"unigram_nbest {self.unigram_nbest} wants a unigram_alpha, without which none is sampled")
        return self

    @property
    def samples_subwords(self) -> bool:
        """Whether each epoch sees other segmentations of the text."""
        return self.bpe_dropout > 0 or self.unigram_alpha is not None


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
        description="Samples: from the top of this mass (Holtzman et al. 2020).",
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
    model: ModelConfig = Field(TransformerConfig(), description="The model.")
    training: TrainingConfig = Field(TrainingConfig(), description="How it is trained.")
    decoding: DecodingConfig = Field(DecodingConfig(), description="How it translates.")

    @model_validator(mode="after")
    def sections_fit(self) -> "Config":
        """Settings of different sections that only make sense together."""
        if self.model.tie_embeddings == "all" and not self.tokenizer.shared:
            raise ValueError("model.tie_embeddings all wants tokenizer.shared true; decoder or none goes without")
        type_ = self.tokenizer.type
        if self.training.bpe_dropout and type_ != "bpe":
            raise ValueError(f"training.bpe_dropout {self.training.bpe_dropout} wants tokenizer.type bpe, not {type_}")
        if self.training.unigram_alpha is not None and type_ != "unigram":
            raise ValueError(
                f"training.unigram_alpha {self.training.unigram_alpha} wants tokenizer.type unigram, not {type_}"
            )
        if self.training.batch_tokens <= self.data.max_length:
            raise ValueError(
                f"training.batch_tokens {self.training.batch_tokens} must be more than data.max_length "
                f"{self.data.max_length}, so that the longest pair fits"
            )
        for name, limit in self.model.position_limits.items():
            if limit <= self.data.max_length:
                raise ValueError(f"model.{name} {limit} must be more than data.max_length {self.data.max_length}")
        if self.training.consistency == "rdrop" and not any(_dropouts(self.model)):
            raise ValueError("training.consistency rdrop wants model.dropout above 0; two equal passes always agree")
        return self

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return self.run_dir or Path("runs") / self.name

    def data_path(self, path: Path) -> Path:
        """Where a file of the data section lies."""
        return self.data.root / path if self.data.root else path
