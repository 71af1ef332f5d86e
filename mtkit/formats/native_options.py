"""The options of a model of Marian, and the settings that make the same model of mtkit's Transformer.

What mtkit's Transformer cannot express is refused, with the name of the option.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.messages import say

# What mtkit's Transformer has one choice for: the values that are read. A missing option has the first one.
WANTED: dict[str, tuple[Any, ...]] = {
    "type": ("transformer",),
    "right-left": (False,),
    "input-types": ([], ["sequence"], ["sequence", "sequence"]),
    "lemma-dim-emb": (0,),
    "lemma-dependency": ("",),
    "ulr": (False,),
    "transformer-decoder-autoreg": ("self-attention",),
    "transformer-no-projection": (False,),
    "transformer-pool": (False,),
    "transformer-tied-layers": ([],),
    "transformer-ffn-depth": (2,),
    "transformer-decoder-ffn-depth": (0, 2),
    "transformer-attention-mask": ("default",),
    "transformer-train-positions": (False,),
}

# Other options whose names begin with transformer- that are read here, or change nothing of what a finished model says.
KNOWN = {
    *("heads", "dim-ffn", "decoder-dim-ffn", "ffn-activation", "disable-position-embeddings", "no-bias", "no-affine"),
    *("preprocess", "postprocess", "postprocess-emb", "postprocess-top"),
    *("dropout", "dropout-attention", "dropout-ffn", "depth-scaling", "guided-alignment-layer"),
    # Marian itself reads no option of this name: its positions are sinusoids all the same, if no table is stored.
    "train-position-embeddings",
    # Of other decoders and attentions, which WANTED refuses.
    *("dim-aan", "aan-depth", "aan-activation", "aan-nogate", "rnn-projection", "alibi-shift", "alibi-trainable"),
}

# What is done before a sublayer, after it and after the last one, dropout left out: a = add, n = normalize.
PLACEMENTS = {("", "an", ""): "post", ("n", "a", "n"): "pre"}

ACTIVATIONS = {"swish": "silu", "relu": "relu", "gelu": "gelu"}
# Before this version Marian's gelu(x) was x sigmoid(1.702 x), which is silu(1.702 x) / 1.702.
EXACT_GELU = (1, 12)
GELU_SLOPE = 1.702


class MarianOptions:
    """The options that a model was built with; what is not as it must be is a CheckpointError that names the option."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self.content = content
        self._check()

    def _check(self) -> None:
        for name, wanted in WANTED.items():
            if self.content.get(name, wanted[0]) not in wanted:
                self.refuse(name, wanted[0])
        for name, value in self.content.items():
            known = name in WANTED or name.removeprefix("transformer-") in KNOWN
            if name.startswith("transformer-") and not known and value:
                raise CheckpointError(f"{self.path}: {name} is {_told(value)}; mtkit knows no option of this name")

    def refuse(self, name: str, *wanted: Any) -> None:
        """Say which value was found, and which ones are read."""
        listed = " or ".join(map(_told, wanted))
        raise CheckpointError(
            f"{self.path}: Marian's option {name} is {_told(self.content.get(name))}; mtkit imports {listed} alone"
        )

    def number(self, name: str, default: int | None = None) -> int:
        value = self.content.get(name, default)
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{self.path}: Marian's option {name} is {_told(value)}; wanted is a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self.content.get(name, False)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: Marian's option {name} is {_told(value)}; wanted is true or false")
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, str]) -> str:
        value = self.content.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(name, *choices)
        return choices[value]

    def steps(self, name: str, default: str) -> str:
        """What is done around a sublayer, dropout left out."""
        value = self.content.get(name, default)
        return value.replace("d", "") if isinstance(value, str) else _told(value)

    @property
    def placement(self) -> str:
        """Where norms stand, by our name."""
        names = ("transformer-preprocess", "transformer-postprocess", "transformer-postprocess-top")
        found = tuple(self.steps(name, default) for name, default in zip(names, ("", "dan", ""), strict=True))
        if found not in PLACEMENTS:
            told = ", ".join(f"{name} {self.content.get(name, '')!r}" for name in names)
            raise CheckpointError(f"{self.path}: {told}; mtkit imports '', 'dan', '' and 'n', 'da', 'n'")
        return PLACEMENTS[found]

    @property
    def embedding_norm(self) -> bool:
        """Whether embeddings are normalised."""
        found = self.steps("transformer-postprocess-emb", "d")
        if found not in ("", "n"):
            self.refuse("transformer-postprocess-emb", "d", "n", "nd")
        return found == "n"

    @property
    def activation(self) -> str:
        """Of the feed-forward layers, by our name."""
        found = self.choice("transformer-ffn-activation", "swish", ACTIVATIONS)
        return "silu" if self.slope != 1 else found

    @property
    def slope(self) -> float:
        """What the activation multiplies its input by, and divides its output by."""
        version = re.match(r"v?(\d+)\.(\d+)", str(self.content.get("version", "")))
        is_exact = version is not None and (int(version[1]), int(version[2])) >= EXACT_GELU
        return GELU_SLOPE if self.content.get("transformer-ffn-activation") == "gelu" and not is_exact else 1.0

    @property
    def ties(self) -> str:
        """What shares a matrix, by our name."""
        source_too = self.flag("tied-embeddings-src")
        if self.flag("tied-embeddings-all") or (source_too and self.flag("tied-embeddings")):
            return "all"
        return "decoder" if self.flag("tied-embeddings") else "none"

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """Of source and target."""
        sizes = self.content.get("dim-vocabs")
        if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(n) is int and n > 1 for n in sizes):
            raise CheckpointError(
                f"{self.path}: Marian's option dim-vocabs is {_told(sizes)}; wanted are the sizes of one source and "
                "one target vocabulary"
            )
        return sizes[0], sizes[1]


def _told(value: Any) -> str:
    return value or "''" if isinstance(value, str) else json.dumps(value, default=str)


def settings_of(options: MarianOptions, name: str, shared: bool, decoding: dict[str, Any]) -> Config:
    """The settings that make the same model of mtkit's Transformer."""
    d_ff, decoder_d_ff = options.number("transformer-dim-ffn"), options.number("transformer-decoder-dim-ffn", 0)
    settings = {
        "name": name,
        "model": {
            "architecture": "transformer",
            "d_model": options.number("dim-emb"),
            "num_heads": options.number("transformer-heads"),
            "d_ff": d_ff,
            "encoder_layers": options.number("enc-depth"),
            "decoder_layers": options.number("dec-depth"),
            **({"decoder_d_ff": decoder_d_ff} if decoder_d_ff not in (0, d_ff) else {}),
            "norm_placement": options.placement,
            "activation": options.activation,
            # Where Marian adds no positions, it does not scale embeddings either.
            **(
                {"positions": "none", "scale_embeddings": False}
                if options.flag("transformer-disable-position-embeddings")
                else {"sinusoid_exponent": "tensor2tensor"}
            ),
            "embedding_norm": options.embedding_norm,
            "tie_embeddings": options.ties,
            "output_bias": True,  # which also keeps padding from being said
            "start_token": "zero",
        },
        "tokenizer": {"shared": shared},
        "decoding": decoding,
    }
    try:
        return Config.model_validate_json(json.dumps(settings))
    except ValueError as error:
        _, setting, problem, *_ = (line.strip() for line in str(error).splitlines())
        problem = problem.partition(" [type=")[0].removeprefix("Value error, ")
        raise CheckpointError(f"{options.path}: {setting.replace('.transformer.', '.')}: {problem}") from None


def search_of(decoder: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """What the decoder.yml tells of the search, in our settings."""
    numbers: dict[str, float] = {}
    for name in ("beam-size", "normalize", "word-penalty", "max-length-factor"):
        value = decoder.get(name)
        if value is True:
            value = 1  # `normalize` may stand alone
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value) or value < 0):
            raise CheckpointError(f"{path}: {name} is {_told(value)}; wanted is a number")
        if value:
            numbers[name] = value
    if "word-penalty" in numbers:
        say(f"{path}: word-penalty {numbers['word-penalty']} is left out; mtkit's search has none")
    # Marian never writes <unk> unless it is told to.
    settings: dict[str, Any] = {} if decoder.get("allow-unk") is True else {"unknown": "ban"}
    if "beam-size" in numbers:
        settings["beam_size"] = max(1, int(numbers["beam-size"]))
    if decoder:
        settings["length_penalty"] = float(numbers.get("normalize", 0.0))
    if "max-length-factor" in numbers:
        factor = float(numbers["max-length-factor"])  # for each source token, the end mark counted
        settings |= {"max_length_ratio": factor, "max_length_extra": int(factor)}
    return settings
