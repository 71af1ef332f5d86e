"""Reads models in Marian's own files (Junczys-Dowmunt et al. 2018): .npz and .yml, as in OPUS-MT's archives.

In shapes, V is the vocabulary size and D the model width.
"""

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.section import read_yaml
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, say
from mtkit.exchange.huggingface import MarianVocabulary, read_vocabularies
from mtkit.exchange.portable import PortableModel, Vocabulary
from mtkit.text.vocabulary import pieces_of

# Options of the architecture, and settings of the search.

# Maps options of Marian to the only values that mtkit can import, because mtkit's Transformer supports no others. If a
# model does not give one of these options, the first value is assumed.
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

# Other options whose names begin with transformer-; the names are listed without this prefix. Each option is read below
# or does not affect the translations of a trained model.
KNOWN = {
    *("heads", "dim-ffn", "decoder-dim-ffn", "ffn-activation", "disable-position-embeddings", "no-bias", "no-affine"),
    *("preprocess", "postprocess", "postprocess-emb", "postprocess-top"),
    *("dropout", "dropout-attention", "dropout-ffn", "depth-scaling", "guided-alignment-layer"),
    # Marian does not read an option of this name: its positions are sinusoids unless a table is stored.
    "train-position-embeddings",
    # Options of other decoders and attentions, which WANTED refuses.
    *("dim-aan", "aan-depth", "aan-activation", "aan-nogate", "rnn-projection", "alibi-shift", "alibi-trainable"),
}

# Maps the operations of a model to the value of norm_placement. Each key has three parts: the operations before each
# sublayer, after each sublayer, and after the last layer. Operation a adds the residual; n normalises.
PLACEMENTS = {("", "an", ""): "post", ("n", "a", "n"): "pre"}

ACTIVATIONS = {"swish": "silu", "relu": "relu", "gelu": "gelu"}
# In versions of Marian before EXACT_GELU, gelu(x) was x sigmoid(1.702 x), which is silu(1.702 x) / 1.702.
EXACT_GELU = (1, 12)
GELU_SLOPE = 1.702


class MarianOptions:
    """The options with which Marian built a model.

    The constructor, methods and properties raise CheckpointError if mtkit cannot import the value of an option; the
    message names the option.
    """

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
                raise CheckpointError(f"{self.path}: {name} is {_shown(value)}; mtkit knows no option of this name")

    def refuse(self, name: str, *wanted: Any) -> None:
        """Raises CheckpointError, which says that mtkit cannot import the value of the option `name`.

        The message has the value of the option, and the values that mtkit imports (`wanted`).
        """
        listed = " or ".join(map(_shown, wanted))
        raise CheckpointError(
            f"{self.path}: Marian's option {name} is {_shown(self.content.get(name))}; mtkit imports {listed} alone"
        )

    def number(self, name: str, default: int | None = None) -> int:
        value = self.content.get(name, default)
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{self.path}: Marian's option {name} is {_shown(value)}; wanted is a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self.content.get(name, False)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: Marian's option {name} is {_shown(value)}; wanted is true or false")
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, str]) -> str:
        value = self.content.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(name, *choices)
        return choices[value]

    def steps(self, name: str, default: str) -> str:
        """Returns the operations that the option `name` lists, without dropout: "an" for the value "dan".

        Each letter of the value is one operation: d is dropout, a adds the residual, and n normalises.
        """
        value = self.content.get(name, default)
        return value.replace("d", "") if isinstance(value, str) else _shown(value)

    @property
    def placement(self) -> str:
        """The value of mtkit's setting model.norm_placement: post or pre.

        Raises CheckpointError if the model places norms in another way.
        """
        names = ("transformer-preprocess", "transformer-postprocess", "transformer-postprocess-top")
        found = tuple(self.steps(name, default) for name, default in zip(names, ("", "dan", ""), strict=True))
        if found not in PLACEMENTS:
            told = ", ".join(f"{name} {self.content.get(name, '')!r}" for name in names)
            raise CheckpointError(f"{self.path}: {told}; mtkit imports '', 'dan', '' and 'n', 'da', 'n'")
        return PLACEMENTS[found]

    @property
    def embedding_norm(self) -> bool:
        """Whether embeddings are normalised; raises CheckpointError if the model does anything else to embeddings."""
        found = self.steps("transformer-postprocess-emb", "d")
        if found not in ("", "n"):
            self.refuse("transformer-postprocess-emb", "d", "n", "nd")
        return found == "n"

    @property
    def activation(self) -> str:
        """The activation function of the feed-forward layers, by the name that mtkit has for the function."""
        found = self.choice("transformer-ffn-activation", "swish", ACTIVATIONS)
        return "silu" if self.slope != 1 else found

    @property
    def slope(self) -> float:
        """The factor s with which the model computes its activation function as f(s x) / s.

        Here, f is the function that `activation` names. Normally s is 1. It is 1.702 for gelu in models of older
        versions of Marian, which computed gelu(x) as silu(1.702 x) / 1.702.
        """
        version = re.match(r"v?(\d+)\.(\d+)", str(self.content.get("version", "")))
        is_exact = version is not None and (int(version[1]), int(version[2])) >= EXACT_GELU
        return GELU_SLOPE if self.content.get("transformer-ffn-activation") == "gelu" and not is_exact else 1.0

    @property
    def ties(self) -> str:
        """The value of mtkit's setting model.tie_embeddings: all, decoder or none."""
        source_too = self.flag("tied-embeddings-src")
        if self.flag("tied-embeddings-all") or (source_too and self.flag("tied-embeddings")):
            return "all"
        return "decoder" if self.flag("tied-embeddings") else "none"

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """The sizes of the source and target vocabularies."""
        sizes = self.content.get("dim-vocabs")
        if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(n) is int and n > 1 for n in sizes):
            raise CheckpointError(
                f"{self.path}: Marian's option dim-vocabs is {_shown(sizes)}; wanted are the sizes of one source and "
                "one target vocabulary"
            )
        return sizes[0], sizes[1]


def _shown(value: Any) -> str:
    return value or "''" if isinstance(value, str) else json.dumps(value, default=str)


def settings_of(options: MarianOptions, name: str, shared: bool, decoding: dict[str, Any]) -> Config:
    """Returns mtkit's settings for the model; raises CheckpointError if mtkit does not support the model.

    `shared` tells whether source and target have the same vocabulary; `decoding` has the decoding settings.
    """
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
            "output_bias": True,  # also keeps padding from being generated: see NEVER
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
    """Converts `decoder`, the content of a decoder.yml, to mtkit's decoding settings.

    `decoder` may be empty. `path` is the path of decoder.yml. Raises CheckpointError if a value is not a number of 0 or
    more.
    """
    numbers: dict[str, float] = {}
    for name in ("beam-size", "normalize", "word-penalty", "max-length-factor"):
        value = decoder.get(name)
        if value is True:
            value = 1  # `normalize` without a value means 1
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value) or value < 0):
            raise CheckpointError(f"{path}: {name} is {_shown(value)}; wanted is a number")
        if value:
            numbers[name] = value
    if "word-penalty" in numbers:
        say(f"{path}: word-penalty {numbers['word-penalty']} is left out; mtkit's search has none")
    # Marian never generates <unk> unless allow-unk is set.
    settings: dict[str, Any] = {} if decoder.get("allow-unk") is True else {"unknown": "ban"}
    if "beam-size" in numbers:
        settings["beam_size"] = max(1, int(numbers["beam-size"]))
    if decoder:
        settings["length_penalty"] = float(numbers.get("normalize", 0.0))
    if "max-length-factor" in numbers:
        factor = float(numbers["max-length-factor"])  # target tokens for each source token, where the end mark counts
        settings |= {"max_length_ratio": factor, "max_length_extra": int(factor)}
    return settings


# Tensors: "ours" are those of mtkit, "theirs" those of Marian.

# The output bias of padding, a token that Marian does not have. With this bias, padding has a probability of zero, even
# in fp16.
NEVER = -1e4

# For each linear layer of mtkit, the names of the tensors of Marian that are concatenated to form it. In these names,
# {} stands for W (weight) or b (bias).
LINEARS = {
    "attention.query_key_value": ("self_{}q", "self_{}k", "self_{}v"),
    "attention.output": ("self_{}o",),
    "source_attention.query": ("context_{}q",),
    "source_attention.key_value": ("context_{}k", "context_{}v"),
    "source_attention.output": ("context_{}o",),
    "feed_forward.inner": ("ffn_{}1",),
    "feed_forward.output": ("ffn_{}2",),
}
NORMS = {
    "around_attention.norm": "self_Wo",
    "around_source_attention.norm": "context_Wo",
    "around_feed_forward.norm": "ffn_ffn",
}
OF_SOURCE = "source_attention"  # part of the names of modules that only decoder layers have


class _Taken:
    """The tensors of a model file; `take` removes them one by one and checks their shapes."""

    def __init__(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        self.path = path
        self.left = dict(weights)

    def take(self, name: str, shape: tuple[int, ...], default: float | None = None) -> Tensor:
        """Removes and returns the tensor called `name`; if the file lacks it, returns a tensor filled with `default`.

        Raises CheckpointError if the tensor does not have the given shape, or if it is missing and `default` is `None`.
        """
        if name not in self.left:
            if default is not None:
                return torch.full(shape, default)
            raise CheckpointError(f"{self.path}: holds no {name}, which its options ask for")
        weight = self.left.pop(name)
        if tuple(weight.shape) != shape:
            raise CheckpointError(f"{self.path}: {name} is {tuple(weight.shape)}, its options ask for {shape}")
        return weight

    def finish(self) -> None:
        """Raises CheckpointError if tensors are left: the model then has parts that mtkit does not have."""
        if self.left:
            raise CheckpointError(f"{self.path}: holds {min(self.left)}, which mtkit's Transformer has no place for")


def our_weights(options: MarianOptions, config: Config, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns Marian's tensors converted to mtkit's, by mtkit's names.

    Marian's vocabularies have no padding, but the decoder in mtkit starts with padding. So the embeddings and the
    output layer get a row of zeros for padding. Raises CheckpointError if the tensors do not fit the options.
    """
    taken = _Taken(options.path, weights)
    found = _embeddings(options, taken)
    model = config.model
    assert isinstance(model, TransformerConfig)
    norm = (model.d_model, 0.0 if options.flag("transformer-no-affine") else None)
    for side, depth in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        for number in range(depth):
            found |= dict(_layer(options, taken, side, number))
        if model.norm_placement == "pre":
            found |= _norm(taken, f"{side}_top", "", f"{side}.norm", *norm)
        if options.embedding_norm:
            found |= _norm(taken, f"{side}_emb", "_pre", f"{side}.embedded.norm", *norm)
    taken.finish()
    return found


def _embeddings(options: MarianOptions, taken: _Taken) -> dict[str, Tensor]:
    """Returns mtkit's tensors of the embeddings, the output layer and its bias, by name."""
    (source_size, target_size), width, ties = options.vocab_sizes, options.number("dim-emb"), options.ties
    found = {}
    if options.flag("tied-embeddings-all") or options.flag("tied-embeddings-src"):
        source = target = taken.take("Wemb", (target_size, width))
    else:
        source = taken.take("encoder_Wemb", (source_size, width))
        target = taken.take("decoder_Wemb", (target_size, width))
    found["encoder.embedded.embedding.weight"] = _padded(source)
    if ties != "all":
        found["decoder.embedded.embedding.weight"] = _padded(target)
    if ties == "none":
        older = "decoder_ff_logit_out_W" in taken.left
        output = (
            taken.take("decoder_ff_logit_out_W", (width, target_size)).T
            if older
            else taken.take("decoder_ff_logit_out_Wt", (target_size, width))
        )
        found["decoder.output.table.weight"] = _padded(output)
    missing = 0.0 if options.flag("output-omit-bias") else None
    bias = taken.take("decoder_ff_logit_out_b", (1, target_size), missing)[0]
    found["decoder.output.bias"] = torch.cat([bias, torch.full((1,), NEVER)])
    return found


def _padded(table: Tensor) -> Tensor:
    """Returns `table` (V, D) with a row of zeros appended."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def _layer(options: MarianOptions, taken: _Taken, side: str, number: int) -> Iterator[tuple[str, Tensor]]:
    """Yields (name in mtkit, tensor) for all tensors of one layer of the encoder or decoder (`side`)."""
    width, d_ff = options.number("dim-emb"), options.number("transformer-dim-ffn")
    if side == "decoder":
        d_ff = options.number("transformer-decoder-dim-ffn", 0) or d_ff
    ours, theirs = f"{side}.layers.{number}", f"{side}_l{number + 1}"
    missing = 0.0 if options.flag("transformer-no-bias") else None
    slope = options.slope
    scales = {"feed_forward.inner": (slope, slope), "feed_forward.output": (1 / slope, 1.0)}
    for module, parts in LINEARS.items():
        if side == "encoder" and OF_SOURCE in module:
            continue
        rows, columns = {"feed_forward.inner": (width, d_ff), "feed_forward.output": (d_ff, width)}.get(
            module, (width, width)
        )
        names = [f"{theirs}_{part}" for part in parts]
        of_weight, of_bias = scales.get(module, (1.0, 1.0))
        weight = [taken.take(name.format("W"), (rows, columns)).T for name in names]
        bias = [taken.take(name.format("b"), (1, columns), missing)[0] for name in names]
        yield f"{ours}.{module}.weight", (torch.cat(weight) * of_weight).contiguous()
        yield f"{ours}.{module}.bias", torch.cat(bias) * of_bias
    suffix = "_pre" if options.placement == "pre" else ""
    default = 0.0 if options.flag("transformer-no-affine") else None
    for module, name in NORMS.items():
        if side == "decoder" or OF_SOURCE not in module:
            yield from _norm(taken, f"{theirs}_{name}", suffix, f"{ours}.{module}", width, default).items()


def _norm(taken: _Taken, theirs: str, suffix: str, ours: str, width: int, default: float | None) -> dict[str, Tensor]:
    """Returns mtkit's weight and bias of a layer norm, by name.

    The weight and the bias have `width` elements each. Their names in Marian begin with `theirs` and end with `suffix`;
    their names in mtkit begin with `ours`. If `default` is 0, a missing weight is 1 and a missing bias is 0. If
    `default` is `None`, a missing tensor raises CheckpointError.
    """
    return {
        f"{ours}.weight": taken.take(f"{theirs}_ln_scale{suffix}", (1, width), None if default is None else 1.0)[0],
        f"{ours}.bias": taken.take(f"{theirs}_ln_bias{suffix}", (1, width), default)[0],
    }


# Files.

OPTIONS, DECODER, OPTIMIZER = "special:model.yml", "decoder.yml", ".optimizer.npz"
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class NativeMarian:
    """A model that was read from Marian's own files, with its vocabularies and the paths of the files."""

    model: PortableModel
    vocabulary: MarianVocabulary
    files: list[Path]


def is_native_marian(path: Path) -> bool:
    """Whether `path` is a folder that contains an .npz or decoder.yml file, or is itself an .npz or .yml file."""
    if path.is_dir():
        return any(path.glob("*.npz")) or any(path.glob(f"*{DECODER}"))
    return path.suffix == ".npz" or (path.suffix == ".yml" and path.is_file())


def read_native_marian(path: Path) -> NativeMarian:
    """Returns the Marian model at `path`, which is a folder, a decoder.yml or an .npz file.

    Raises CheckpointError if `path` has no model, has several models, or has a model that cannot be imported.
    """
    found = _Setup.find(path)
    options, weights = _read_npz(found.npz)
    source, target, files = read_vocabularies(found.directory, found.vocabularies, options.vocab_sizes)
    decoding = search_of(found.decoder, found.settings_file[0] if found.settings_file else None)
    name = found.directory.resolve().name or "imported"
    config = settings_of(options, name, source.pieces == target.pieces, decoding)
    if config.model.tie_embeddings == "all" and source.pieces != target.pieces:
        raise CheckpointError(
            f"{found.npz}: both sides share one matrix, and the vocabularies {' and '.join(p.name for p in files[:2])} "
            "differ; name the one that the model was trained with"
        )
    ours = our_weights(options, config, weights)
    directory = found.directory
    if (directory / "preprocess.sh").exists():
        say(f"{directory / 'preprocess.sh'}: is not run; what it does to text before SentencePiece is left out")
    model = PortableModel(config, ours, source, target)
    return NativeMarian(model, _vocabulary(source, target), [found.npz, *found.settings_file, *files])


def _vocabulary(source: Vocabulary, target: Vocabulary) -> MarianVocabulary:
    """Returns the source and target vocabularies and their tags as a MarianVocabulary, with no languages.

    Marian's files do not name the languages.
    """
    defined = tuple(piece.text for piece in pieces_of(source.sentencepiece) if piece.type == "user_defined")
    tags = tuple(piece for piece in source.pieces if re.fullmatch(">>.+<<", piece) and piece not in defined)
    return MarianVocabulary(source, target, source.pieces == target.pieces, (None, None), tags, defined)


@dataclass(frozen=True)
class _Setup:
    """The paths of a model's files, and the content of its decoder.yml."""

    directory: Path
    npz: Path
    vocabularies: list[Path]  # files of source and target; empty if no decoder.yml names them
    decoder: Mapping[str, Any]
    settings_file: list[Path]  # the decoder.yml; empty if there is none

    @staticmethod
    def find(path: Path) -> "_Setup":
        directory = path if path.is_dir() else path.parent
        if path.name.endswith(".npz"):
            npz, decoder = path, path.with_name(f"{path.name}.{DECODER}")
            return _Setup._read(directory, decoder if decoder.exists() else None, npz)
        if path.is_file():
            return _Setup._read(directory, path, None)
        if (directory / DECODER).exists():
            return _Setup._read(directory, directory / DECODER, None)
        models = sorted(each for each in directory.glob("*.npz") if not each.name.endswith(OPTIMIZER))
        if len(models) == 1:
            return _Setup.find(models[0])
        if not models:
            raise CheckpointError(f"{directory}: holds no model in an .npz file; copy the model again")
        names = ", ".join(each.name for each in models)
        raise CheckpointError(
            f"{directory}: holds {len(models)} models ({names}) and no {DECODER}; name one: {models[0]}"
        )

    @staticmethod
    def _read(directory: Path, settings_file: Path | None, npz: Path | None) -> "_Setup":
        decoder = _mapping(_text(settings_file), str(settings_file)) if settings_file else {}
        models, vocabularies = (_listed(decoder, key, settings_file) for key in ("models", "vocabs"))
        if npz is None and len(models) != 1:
            raise CheckpointError(f"{settings_file}: models lists {len(models)} files; mtkit imports one model")
        if len(vocabularies) not in (0, 2):
            raise CheckpointError(
                f"{settings_file}: vocabs lists {len(vocabularies)} files; wanted are those of source and target"
            )
        beside = [_beside(directory, name, settings_file) for name in vocabularies]
        npz = npz or _beside(directory, models[0], settings_file)
        return _Setup(directory, npz, beside, decoder, [settings_file] if settings_file else [])


def _listed(decoder: Mapping[str, Any], key: str, path: Path | None) -> list[str]:
    names = decoder.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"{path}: {key} is {names!r}; wanted is a list of files")
    return names


def _beside(directory: Path, name: str, settings_file: Path | None) -> Path:
    """Returns the path of a file that decoder.yml calls `name`; raises CheckpointError if the file is missing.

    `name` may be a path on another machine, so three places are tried in this order: the path `name` within
    `directory`, the bare file name in `directory`, and the path `name` itself.
    """
    places = directory / name, directory / Path(name).name, Path(name)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise CheckpointError(f"{places[1]}: missing, and {settings_file} names it; copy it there")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; copy it again") from None


def _mapping(text: str, name: str) -> dict[str, Any]:
    content = read_yaml(text, name).data
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: holds no options of Marian; copy the model again")
    return content


def _read_npz(path: Path) -> tuple[MarianOptions, dict[str, Tensor]]:
    """Returns the options of the model in an .npz file, and its tensors in float32.

    Raises CheckpointError if the file is missing or damaged, or cannot be imported.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; copy the model again") from None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        AttributeError,
        TypeError,
        MemoryError,
    ) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: no .npz of Marian, or damaged: {first}; copy the model again") from None
    if OPTIONS not in found:
        raise CheckpointError(f"{path}: holds no {OPTIONS}, which tells what the model is; mtkit imports no other .npz")
    text = found[OPTIONS].tobytes().split(b"\0", 1)[0].decode("utf-8", errors="replace")
    options = MarianOptions(path, _mapping(text, f"{path} ({OPTIONS})"))
    weights = {}
    for name, array in found.items():
        if name.startswith("special:"):
            continue
        if str(array.dtype) not in DTYPES:
            raise CheckpointError(f"{path}: {name} is {array.dtype}; mtkit imports {' and '.join(DTYPES)}")
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} has values that are not finite; the training went wrong")
        weights[name] = torch.from_numpy(array.astype(np.float32))
    return options, weights
