"""Settings of the models: a section for each architecture."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mtkit.config.section import CarriedSection, Section

# The highest allowed dropout rate. Dropout divides the values that it keeps by 1 - rate. On some devices, this
# divisor would round to 0 if the rate were higher.
MOST_DROPOUT = 0.999

ScaleEmbeddings = Annotated[bool, Field(description="Multiply embeddings by sqrt(d_model).")]
TieEmbeddings = Annotated[
    Literal["none", "decoder", "all"],
    Field(
        description="Which embeddings share one matrix: target and output (decoder), or the source too (all); where "
        "tokenizer.shared is false, decoder by default."
    ),
]
OutputBias = Annotated[bool, Field(description="A learned bias for each token of the output.")]
EncoderLayers = Annotated[int, Field(ge=0, description="Depth of the encoder; 0: no encoder, as in a language model.")]
StartToken = Annotated[
    Literal["begin", "pad", "end", "zero"],
    Field(description="What the decoder reads first; zero, as in Marian, is padding, whose embedding stays zero."),
]

Stack = Literal["encoder", "decoder"]
Positions = Literal["sinusoidal", "learned", "rotary", "alibi", "scalar", "binary", "none"]

STACKS: tuple[Stack, ...] = ("encoder", "decoder")

# What can be taken out of a Transformer, to study what it is for.
Ablation = Literal[
    "causal_mask",
    "causal_mask_product",
    "shift",
    "cross_attention",
    "residual",
    "attention_scale",
    "encoder_causal",
]
# With these, what the decoder computes for a token depends on later tokens, which a cache of earlier tokens lacks.
SEES_LATER = ("causal_mask", "causal_mask_product", "shift")
# These are parts of what reads the source, which a language model lacks.
OF_THE_SOURCE = ("cross_attention", "encoder_causal")


class TransformerConfig(CarriedSection):
    """The Transformer (Vaswani et al. 2017)."""

    architecture: Literal["transformer"] = Field("transformer", description="Kind of model.")
    d_model: int = Field(512, ge=2, description="Width of embeddings and layers.")
    num_heads: int = Field(8, ge=1, description="Attention heads; they divide d_model.")
    d_ff: int = Field(2048, ge=0, description="Inner width of the feed-forward layers; 0: there are none.")
    encoder_layers: EncoderLayers = 6
    decoder_layers: int = Field(6, ge=1, description="Depth of the decoder.")
    decoder_num_heads: int | None = Field(None, ge=1, description="Heads in the decoder; null: num_heads.")
    decoder_d_ff: int | None = Field(None, ge=0, description="Feed-forward width in the decoder; null: d_ff.")
    norm_placement: Literal["pre", "post"] = Field("pre", description="Normalise before or after each sublayer.")
    norm: Literal["layer", "rms", "none"] = Field(
        "layer", description="LayerNorm; RMSNorm, which only scales; or none at all."
    )
    activation: Literal["relu", "gelu", "silu", "reglu", "geglu", "swiglu"] = Field(
        "relu", description="Nonlinearity of the feed-forward layers; those in glu are gated."
    )
    attention_bias: bool = Field(True, description="Whether the four projections of attention have biases.")
    query_key_norm: bool = Field(
        False, description="Normalise the queries and keys of each attention head by RMSNorm (Henry et al. 2020)."
    )
    positions: Positions = Field(
        "sinusoidal",
        description="How the position of a token in its sentence is encoded: sinusoidal or learned embeddings; rotary; "
        "alibi, which lowers attention scores in proportion to the distance (Press et al. 2022), before and after a "
        "token alike in the encoder; scalar or binary, the number or its bits as further inputs; none: not at all.",
    )
    encoder_positions: Positions | None = Field(None, description="Positions in the encoder; null: as positions.")
    decoder_positions: Positions | None = Field(None, description="Positions in the decoder; null: as positions.")
    max_positions: int = Field(1024, ge=2, description="Longest sentence, in tokens, that learned positions allow.")
    sinusoid_layout: Literal["halves", "interleaved"] = Field(
        "halves", description="Sinusoids: sines before cosines, or each sine before its cosine."
    )
    sinusoid_exponent: Literal["paper", "tensor2tensor"] = Field(
        "paper",
        description="Sinusoids: wave i has frequency 10000^(-2i/d_model) (paper), or 10000^(-i/(d_model/2 - 1)) "
        "(tensor2tensor).",
    )
    sinusoid_first: int = Field(
        0, ge=0, le=1_000_000, description="Sinusoids: position of the first token of a sentence; 2 in M2M100."
    )
    scale_embeddings: ScaleEmbeddings = True
    embedding_norm: bool = Field(False, description="Normalise the input of the first layer, as mBART does.")
    residual_init: Literal["default", "zero", "scaled"] = Field(
        "default",
        description="Initial weights of the last matrix of each sublayer: drawn like all others (default), zero, or "
        "drawn and divided by the square root of the number of sublayers in the encoder or decoder, as in GPT-2 "
        "(scaled).",
    )
    tie_embeddings: TieEmbeddings = "all"
    output_bias: OutputBias = False
    start_token: StartToken = "begin"
    dropout: float = Field(
        0.1, ge=0, le=MOST_DROPOUT, description="Dropout of embeddings and of each sublayer's output."
    )
    attention_dropout: float = Field(0.0, ge=0, le=MOST_DROPOUT, description="Dropout of attention weights.")
    activation_dropout: float = Field(0.0, ge=0, le=MOST_DROPOUT, description="Dropout inside the feed-forward layers.")
    layer_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a layer is skipped for a batch (Fan et al. 2020)."
    )
    ablate: tuple[Ablation, ...] = Field(
        (),
        description="Parts taken out, to study what they are for. causal_mask: self-attention in the decoder sees "
        "later tokens; causal_mask_product: their scores are multiplied by 0 instead; shift: the decoder reads the "
        "token that it should predict; cross_attention: the decoder does not see the source; residual: no residual "
        "connections; attention_scale: scores are not divided by the square root of the width of a head; "
        "encoder_causal: the encoder does not see later tokens.",
    )

    def check(self) -> None:
        """Raise ValueError if settings of the model are incompatible."""
        self._check_width()
        self._check_positions()
        self._check_parts()

    def _check_parts(self) -> None:
        """Raise ValueError if a setting concerns a part that the model does not have.

        Also raises ValueError if `ablate` names a part twice, or the causal mask in both of its forms.
        """
        for number, name in enumerate(self.ablate):
            if name in self.ablate[:number]:
                raise ValueError(f"ablate has {name} twice")
        if {"causal_mask", "causal_mask_product"} <= {*self.ablate}:
            raise ValueError("ablate has causal_mask and causal_mask_product, which takes its place; take out one")
        if not self.reads_source and (found := [name for name in self.ablate if name in OF_THE_SOURCE]):
            raise ValueError(f"ablate has {found[0]}, which a model without encoder_layers lacks anyway")
        if self.norm == "none" and (said := self.first_changed("norm_placement", "embedding_norm")):
            raise ValueError(f"{said} wants norm layer or rms, found none")
        has_feed_forward = self.width_of("encoder") or self.width_of("decoder")
        if not has_feed_forward and (said := self.first_changed("activation", "activation_dropout")):
            raise ValueError(f"{said} wants feed-forward layers; d_ff is 0")

    def width_of(self, side: Stack) -> int:
        """Returns the inner width of the feed-forward layers of the encoder or decoder; 0 if it has none."""
        return self.decoder_d_ff if side == "decoder" and self.decoder_d_ff is not None else self.d_ff

    def _check_width(self) -> None:
        """Raise ValueError if `d_model` is odd or not a multiple of the number of heads.

        With rotary positions, also raises ValueError if the width of a head is odd.
        """
        rotates = {side: self.positions_of(side) == "rotary" for side in STACKS}
        for name, heads, is_rotary in (
            ("num_heads", self.num_heads, rotates["encoder"] or (rotates["decoder"] and not self.decoder_num_heads)),
            ("decoder_num_heads", self.decoder_num_heads, rotates["decoder"]),
        ):
            if heads and self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {name} {heads}")
            if heads and is_rotary and self.d_model // heads % 2:
                raise ValueError(
                    f"positions rotary wants heads of even width; d_model {self.d_model} over {name} {heads} is "
                    f"{self.d_model // heads}"
                )
        if self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} is odd; it must be even")

    def _check_positions(self) -> None:
        """Raise ValueError if a setting is not at its default but has no effect with the chosen position encoding."""
        shapes = {
            "sinusoidal": ("sinusoid_layout", "sinusoid_exponent", "sinusoid_first"),
            "learned": ("max_positions",),
        }
        found = dict.fromkeys(self.positions_of(side) for side in STACKS)
        for kind, names in shapes.items():
            if kind not in found and (said := self.first_changed(*names)):
                raise ValueError(f"{said} wants positions {kind}, found {' and '.join(found)}")

    def positions_of(self, side: Stack) -> Positions:
        """Returns the position encoding of the encoder or decoder."""
        own = self.encoder_positions if side == "encoder" else self.decoder_positions
        return self.positions if own is None else own

    def limit_of(self, side: Stack) -> int | None:
        """Returns the maximum length of a row of the encoder or decoder, in tokens; `None` if there is no limit."""
        return self.max_positions if self.positions_of(side) == "learned" else None

    @property
    def reads_source(self) -> bool:
        """Whether the model has an encoder, which a language model has not."""
        return self.encoder_layers > 0

    @property
    def attends_to_source(self) -> bool:
        """Whether the layers of the decoder have attention to the source."""
        return self.reads_source and "cross_attention" not in self.ablate

    @property
    def has_attention(self) -> bool:
        """Whether the attention of each target token to the source can be shown."""
        return self.attends_to_source

    @property
    def source_attention(self) -> tuple[int, int]:
        """The number of layers that attend to the source, and the number of attention heads of each."""
        return (self.decoder_layers, self.decoder_num_heads or self.num_heads) if self.has_attention else (0, 0)

    @property
    def can_pack(self) -> bool:
        """Whether several sentences can be packed into one row of a batch."""
        return True

    @property
    def position_limits(self) -> dict[str, int]:
        """The limits of the sentence length, in tokens, by the names of the settings that set the limits.

        Empty if there is no limit.
        """
        return {"max_positions": self.max_positions} if any(map(self.limit_of, STACKS)) else {}


class MaskedConfig(TransformerConfig):
    """A conditional masked language model, which predicts all tokens together (Ghazvininejad et al. 2019)."""

    # The other settings are those of the Transformer; pydantic tells the two apart by this one.
    architecture: Literal["cmlm"] = Field("cmlm", description="Kind of model.")  # type: ignore[assignment]

    def check(self) -> None:
        """Raise ValueError if settings are incompatible, or do not fit a cmlm.

        Its decoder reads no start token and sees later tokens anyway, so `start_token` must be at its default, and
        `ablate` may have none of the parts in `SEES_LATER`.
        """
        super().check()
        if said := self.first_changed("start_token"):
            raise ValueError(f"{said} has no effect with architecture cmlm, whose decoder reads no start token")
        if found := [name for name in self.ablate if name in SEES_LATER]:
            raise ValueError(f"ablate has {found[0]}, which a decoder of architecture cmlm lacks anyway")

    @property
    def has_attention(self) -> bool:
        """Whether the attention of each token to the source can be shown; it is not recorded for this architecture."""
        return False

    @property
    def can_pack(self) -> bool:
        """Always `False`: a row has one predicted length, so it holds one sentence."""
        return False


class RecurrentConfig(CarriedSection):
    """A recurrent encoder-decoder, with attention (Bahdanau et al. 2015) or without (Sutskever et al. 2014)."""

    architecture: Literal["rnn"] = Field("rnn", description="Kind of model.")
    cell: Literal["lstm", "gru", "tanh"] = Field("lstm", description="Kind of recurrent cell; tanh is Elman's (1990).")
    d_model: int = Field(
        512, ge=2, description="Width of embeddings, cells and the features that go to the output layer."
    )
    encoder_layers: EncoderLayers = 2
    decoder_layers: int = Field(2, ge=1, description="Depth of the decoder.")
    bidirectional: bool = Field(True, description="Read the source in both directions, each with half of d_model.")
    attention: Literal["none", "additive", "dot", "general"] = Field(
        "general",
        description="Score of a source token (additive: Bahdanau et al. 2015; others: Luong et al. 2015).",
    )
    input_feeding: bool = Field(
        False, description="Each step also reads the features of the step before (Luong et al. 2015, section 3.3)."
    )
    context: Literal["initial", "every_step"] = Field(
        "initial",
        description="Where the decoder reads the encoder's last state: as its initial state, or at every step too.",
    )
    reverse_source: bool = Field(False, description="Read the source backwards (Sutskever et al. 2014).")
    scale_embeddings: ScaleEmbeddings = True
    tie_embeddings: TieEmbeddings = "all"
    output_bias: OutputBias = False
    start_token: StartToken = "begin"
    dropout: float = Field(
        0.1, ge=0, le=MOST_DROPOUT, description="Dropout of embeddings, between layers and of features."
    )

    def check(self) -> None:
        """Raise ValueError if settings of the model are incompatible.

        A bidirectional encoder needs an even `d_model`; `input_feeding` needs attention.
        """
        if self.bidirectional and self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} is odd; it must be even where bidirectional is true")
        if self.input_feeding and self.attention == "none":
            raise ValueError("input_feeding true wants an attention: additive, dot or general")

    @property
    def reads_source(self) -> bool:
        """Whether the model has an encoder, which a language model has not."""
        return self.encoder_layers > 0

    @property
    def has_attention(self) -> bool:
        """Whether the decoder attends to the source."""
        return self.attention != "none" and self.encoder_layers > 0

    @property
    def source_attention(self) -> tuple[int, int]:
        """The number of layers that attend to the source, and the number of attention heads of each."""
        return (1, 1) if self.has_attention else (0, 0)

    @property
    def can_pack(self) -> bool:
        """Whether several sentences can be packed into one row of a batch."""
        return False

    @property
    def position_limits(self) -> dict[str, int]:
        """Limits of the sentence length; always empty, since recurrent models have no limit."""
        return {}


def _architecture(default: str) -> Callable[[Any], str]:
    """Returns a discriminator for pydantic: a function that returns the architecture that a section names.

    If the section names no architecture, the function returns `default`.
    """

    def found(section: Any) -> str:
        if isinstance(section, Section):
            return str(getattr(section, "architecture", ""))
        return str(section.get("architecture", default)) if isinstance(section, dict) else default

    return found


# If a section gives no architecture, the first kind is the default.
EncoderConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")] | Annotated[RecurrentConfig, Tag("rnn")],
    Discriminator(_architecture("transformer")),
]
DecoderConfig = Annotated[
    Annotated[RecurrentConfig, Tag("rnn")] | Annotated[TransformerConfig, Tag("transformer")],
    Discriminator(_architecture("rnn")),
]


class MixedConfig(CarriedSection):
    """The encoder of one model with the decoder of another (Chen et al. 2018); their other settings are not used."""

    architecture: Literal["mixed"] = Field("mixed", description="Kind of model.")
    encoder: EncoderConfig = Field(TransformerConfig(), description="A whole model, of which the encoder is built.")
    decoder: DecoderConfig = Field(RecurrentConfig(), description="A whole model, of which the decoder is built.")
    tie_embeddings: TieEmbeddings = "all"

    def check(self) -> None:
        """Raise ValueError if encoder or decoder is not from a whole translation model.

        A mixed model cannot be built from a language model, which has 0 `encoder_layers`, or from a model with
        parts taken out by `ablate`.
        """
        for name, half in (("encoder", self.encoder), ("decoder", self.decoder)):
            if isinstance(half, TransformerConfig) and half.ablate:
                raise ValueError(f"{name}.{half.first_changed('ablate')} wants architecture transformer, found mixed")
            if not half.encoder_layers:
                raise ValueError(f"{name}.encoder_layers 0 is of a language model; a mixed model wants 1 or more")

    def check_ties(self) -> None:
        """Raise ValueError if encoder and decoder share embeddings but differ in `d_model` or `scale_embeddings`."""
        for name in ("d_model", "scale_embeddings") if self.tie_embeddings == "all" else ():
            found = [getattr(half, name) for half in (self.encoder, self.decoder)]
            if found[0] != found[1]:
                raise ValueError(
                    f"tie_embeddings all wants encoder.{name} and decoder.{name} alike, "
                    f"found {found[0]} and {found[1]}".replace("True", "true").replace("False", "false")
                )

    @property
    def d_model(self) -> int:
        """The width of the decoder."""
        return self.decoder.d_model

    @property
    def reads_source(self) -> bool:
        """Whether the model has an encoder, which a language model has not."""
        return True

    @property
    def has_attention(self) -> bool:
        """Whether the decoder attends to the source."""
        return self.decoder.has_attention

    @property
    def source_attention(self) -> tuple[int, int]:
        """The number of layers that attend to the source, and the number of attention heads of each."""
        return self.decoder.source_attention

    @property
    def can_pack(self) -> bool:
        """Whether several sentences can be packed into one row of a batch."""
        return self.encoder.can_pack and self.decoder.can_pack

    @property
    def position_limits(self) -> dict[str, int]:
        """The limits of the sentence length, in tokens, by setting names such as "encoder.max_positions"."""
        halves = {"encoder": self.encoder, "decoder": self.decoder}
        return {f"{half}.{name}": limit for half in halves for name, limit in halves[half].position_limits.items()}


AnyModelConfig = TransformerConfig | RecurrentConfig | MixedConfig | MaskedConfig

ModelConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[RecurrentConfig, Tag("rnn")]
    | Annotated[MixedConfig, Tag("mixed")]
    | Annotated[MaskedConfig, Tag("cmlm")],
    Discriminator(_architecture("transformer")),
]
