"""Writes and reads config.json and generation_config.json of Hugging Face's encoder-decoder models."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from mtkit.config.model_settings import AnyModelConfig, MaskedConfig, TransformerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import CheckpointError
from mtkit.exchange.portable import PortableModel, require_known_parts

CONFIG, GENERATION = "config.json", "generation_config.json"

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "swish"}  # mtkit's names to theirs
ACTIVATIONS_READ = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {"silu": "silu"}  # theirs to mtkit's

# JSON files.

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def require_fetched(path: Path) -> None:
    """Raises CheckpointError if the file at `path` is a Git LFS pointer, the placeholder for a file not yet fetched."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return  # the caller reads the file next and reports the error
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` or download it"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises CheckpointError if the file is missing or damaged, or if its content is not a JSON object.
    """
    require_fetched(path)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; wants the folder of a Hugging Face checkpoint") from None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object; copy the checkpoint again")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` to a JSON file with sorted keys and an indent of 2, as Hugging Face transformers does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# Writing.

FIRST_BYTE = "<0x00>"  # only in vocabularies with byte fallback
LEAST_POSITIONS = 512  # least max_position_embeddings of an exported model

# The part of WANTED that is the same for both layouts of Hugging Face's files, marian and m2m100.
_BOTH: dict[str, Collection[Any]] = {
    "norm": ("layer",),
    "activation": ("relu", "gelu", "silu"),
    "attention_bias": (True,),
    "positions": ("sinusoidal",),
    "sinusoid_layout": ("halves",),
    "embedding_norm": (False,),
}
# The settings that a model must have to be exported. For each layout (a value of --to), this maps the names of settings
# to the values that files of that layout can express.
WANTED: dict[str, dict[str, Collection[Any]]] = {
    "marian": {
        "norm_placement": ("post",),
        **_BOTH,
        "sinusoid_exponent": ("paper",),
        "sinusoid_first": (0,),
    },
    "m2m100": {
        "norm_placement": ("pre",),
        **_BOTH,
        "sinusoid_exponent": ("tensor2tensor",),
        "sinusoid_first": (2,),
        "tie_embeddings": ("all",),
        "output_bias": (False,),
        "start_token": ("begin", "end"),  # not pad, since M2M100 gives padding no position
    },
}
NAMES = {"marian": "Marian", "m2m100": "M2M100"}


def require_expressible(config: Config, layout: str) -> None:
    """Raises CheckpointError if Hugging Face's files of the kind `layout` cannot express the model.

    `layout` is "marian" or "m2m100", a value of the option --to. The message names the setting that the files cannot
    express, and the other values of --to that support this setting.
    """
    model: AnyModelConfig = config.model
    if not isinstance(model, TransformerConfig) or isinstance(model, MaskedConfig):
        raise CheckpointError(
            f"model.architecture is {model.architecture}; {NAMES[layout]} files hold Transformers, as do the others"
        )
    require_known_parts(model)
    for setting, values in WANTED[layout].items():
        found = getattr(model, setting)
        if found not in values:
            listed = " or ".join(_shown(value) for value in values)
            others = [name for name, wanted in WANTED.items() if found in wanted.get(setting, (found,))]
            takers = " and ".join(f"--to {name}" for name in ("ctranslate2", *others))
            raise CheckpointError(
                f"model.{setting} is {_shown(found)}; {NAMES[layout]} files want {listed}; "
                f"{takers} {'take' if others else 'takes'} it so"
            )


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def write_configs(model: PortableModel, directory: Path, own: dict[str, Any]) -> None:
    """Writes config.json and generation_config.json to `directory`.

    `own` holds the entries of config.json that only models of this architecture have; the others are the same for all
    architectures.
    """
    config, special = model.config, model.target.special
    transformer = config.model
    assert isinstance(transformer, TransformerConfig)
    start = {"begin": special.begin, "end": special.end}.get(transformer.start_token, special.pad)
    ids = {
        "bos_token_id": special.begin,
        "eos_token_id": special.end,
        "pad_token_id": special.pad,
        "decoder_start_token_id": start,
        "forced_eos_token_id": special.end,
    }
    write_json(
        directory / CONFIG,
        {
            **ids,
            "activation_dropout": transformer.activation_dropout,
            "activation_function": ACTIVATIONS[transformer.activation],
            "attention_dropout": transformer.attention_dropout,
            "d_model": transformer.d_model,
            "decoder_attention_heads": transformer.decoder_num_heads or transformer.num_heads,
            "decoder_ffn_dim": transformer.decoder_d_ff or transformer.d_ff,
            "decoder_layerdrop": transformer.layer_dropout,
            "decoder_layers": transformer.decoder_layers,
            "dropout": transformer.dropout,
            "dtype": "float32",
            "encoder_attention_heads": transformer.num_heads,
            "encoder_ffn_dim": transformer.d_ff,
            "encoder_layerdrop": transformer.layer_dropout,
            "encoder_layers": transformer.encoder_layers,
            "init_std": 0.02,
            "is_encoder_decoder": True,
            "max_position_embeddings": _positions(config),
            "scale_embedding": transformer.scale_embeddings,
            "tie_word_embeddings": transformer.tie_embeddings != "none",
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_size": len(model.source.pieces),
            **own,
        },
    )
    write_json(
        directory / GENERATION,
        {
            **ids,
            "bad_words_ids": [[id_] for id_ in silent_ids(model)],
            "early_stopping": config.decoding.stopping == "count",
            "length_penalty": config.decoding.length_penalty,
            "max_length": _positions(config),
            "num_beams": 1 if config.decoding.method == "sample" else config.decoding.beam_size,
            **_constraints(config.decoding, start == special.end),
            **_sampling(config.decoding),
        },
    )


def _constraints(decoding: DecodingConfig, starts_with_end: bool) -> dict[str, int]:
    """Returns min_length and no_repeat_ngram as generation settings of Hugging Face transformers.

    In Hugging Face transformers, the start token counts as part of the translation, so min_length is increased by 1. If
    the start token is the end mark (`starts_with_end`), a no_repeat_ngram of 1 would forbid any other end mark, so
    no_repeat_ngram is then left out.
    """
    found = {}
    if decoding.min_length:
        found["min_length"] = decoding.min_length + 1
    if decoding.no_repeat_ngram and not (starts_with_end and decoding.no_repeat_ngram == 1):
        found["no_repeat_ngram_size"] = decoding.no_repeat_ngram
    return found


def _sampling(decoding: DecodingConfig) -> dict[str, Any]:
    """Returns the generation settings for sampling; an empty dict if decoding.method is not `sample`.

    Without top_k, Hugging Face transformers samples from the 50 most probable tokens, so top_k is always given. A top_k
    of 0 means that tokens are sampled from the whole vocabulary.
    """
    if decoding.method != "sample":
        return {}
    return {
        "do_sample": True,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k or 0,
        "top_p": 1.0 if decoding.top_p is None else decoding.top_p,
    }


# Decoding settings that no export format can express.
_NOWHERE = (
    "length_penalty_form",
    "coverage_penalty",
    "diversity_groups",
    "diversity_strength",
    "seed",
    "mbr_samples",
    "mbr_utility",
    "language_model_weight",
)
# Sampling settings, which are exported only if decoding.method is "sample". MBR decoding uses them too, but no format
# supports MBR decoding.
_SAMPLING = ("temperature", "top_k", "top_p")


def not_carried(config: Config, to: str) -> list[str]:
    """Returns a text such as "decoding.seed 1" for each decoding setting that an export to the format `to` loses."""
    decoding, default = config.decoding, DecodingConfig()
    names = _NOWHERE if decoding.method == "sample" else (*_NOWHERE, *_SAMPLING)
    lost = [name for name in names if getattr(decoding, name) != getattr(default, name)]
    if to != "ctranslate2" and decoding.no_repeat_ngram == 1 and getattr(config.model, "start_token", "") == "end":
        lost.append("no_repeat_ngram")  # in transformers it would forbid the end mark, which is the start token
    if decoding.stopping == "optimal":
        lost += ["stopping", *(["search_steps"] if decoding.search_steps != default.search_steps else [])]
    if decoding.unknown == "copy":
        lost.append("unknown")
    return [f"decoding.{name} {getattr(decoding, name)}" for name in lost]


def silent_ids(model: PortableModel) -> list[int]:
    """Returns the target ids that are never generated: padding, the begin mark, and in some models <unk>.

    <unk> is never generated if decoding.unknown is `ban` or if the vocabulary has byte fallback.
    """
    vocabulary = model.target
    is_shown = FIRST_BYTE not in vocabulary.pieces and model.config.decoding.unknown != "ban"
    shown = vocabulary.special.unknown if is_shown else None
    return [id_ for id_ in vocabulary.special.never_generated if id_ != shown]


def _positions(config: Config) -> int:
    """Returns the most tokens that a sentence may have, including the end mark.

    This number is data.max_length + 1, but at least LEAST_POSITIONS.
    """
    return max(LEAST_POSITIONS, config.data.max_length + 1)


# Reading.

# Generation settings that mtkit does not have, each with the values (besides null) that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "do_sample": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "max_time": (),
    "min_p": (0.0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "repetition_penalty": (1.0,),
    "sequence_bias": ([], {}),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "typical_p": (1.0,),
}
# The sampling settings, each with a function that returns whether mtkit accepts a value.
SAMPLING: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda value: type(value) in (int, float) and 1e-9 <= value <= 1000,
    "top_k": lambda value: _is_count(value),
    "top_p": lambda value: type(value) in (int, float) and 0 < value <= 1,
}
LONGEST_SHOWN = 60  # most characters of a value that a message shows


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _one(value: Any) -> Any:
    """Returns the element of a list of length 1; returns any other value unchanged."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _row(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _rows(value: Any) -> list[list[Any]]:
    return [_row(each) for each in _row(value)]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


class TheirConfig:
    """The config.json and generation_config.json of a checkpoint.

    A method that finds a wrong value raises a CheckpointError that names the file, the key and the value.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / CONFIG
        self.content = read_json(self.path)
        generation = directory / GENERATION
        self.generation = read_json(generation) if generation.exists() else {}

    def number(self, key: str, default: int | None = None) -> int:
        """Returns the non-negative integer under `key` in config.json; `default` if the value is null or missing."""
        value = self.content.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{self.path}: {key} is {value!r}, wants a whole number")
        return value

    def token(self, key: str, vocab_size: int, default: int | None = None) -> int | None:
        """Returns the token id under `key` in config.json, where the value is the id itself or a list of one id.

        Returns `default` if the key is missing, and `None` if the value is null.
        """
        value = _one(self.content.get(key, default))
        if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, wants one id below {vocab_size}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Returns the boolean under `key` in config.json; `default` if the key is missing."""
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, wants true or false")
        return value

    def require(self, key: str, wanted: object) -> None:
        """Raises CheckpointError if the value under `key` in config.json is not `wanted`.

        mtkit supports no other value than `wanted`. A missing key is accepted.
        """
        value = self.content.get(key, wanted)
        if value != wanted:
            raise CheckpointError(
                f"{self.path}: {key} is {json.dumps(value)}; mtkit imports {json.dumps(wanted)} alone"
            )

    def rate(self, key: str) -> float:
        """Returns the dropout rate under `key` in config.json, or 0 if the rate is missing or invalid.

        Dropout does not affect translations, so an invalid rate raises no error.
        """
        value = self.content.get(key, 0.0)
        return float(value) if isinstance(value, int | float) and 0 <= value < 1 else 0.0

    @property
    def activation(self) -> str:
        """The name that mtkit has for the activation function; raises CheckpointError if mtkit lacks the function."""
        value = self.content.get("activation_function")
        if not isinstance(value, str) or value not in ACTIVATIONS_READ:
            raise CheckpointError(
                f"{self.path}: activation_function is {value!r}; mtkit imports {', '.join(ACTIVATIONS_READ)}"
            )
        return ACTIVATIONS_READ[value]

    def generation_value(self, key: str) -> Any:
        """Returns the generation setting `key` from generation_config.json, else from config.json; else `None`."""
        return self.generation.get(key, self.content.get(key))

    def settings(self, directory: Path, model: dict[str, Any]) -> Config:
        """Returns mtkit's settings for the checkpoint; raises CheckpointError if mtkit does not support the model.

        `model` has the model settings that differ between Marian and M2M100. The setting `name` is set to the name of
        the folder `directory`.
        """
        self._check_generation()
        beam_size, length_penalty = self.generation_value("num_beams"), self.generation_value("length_penalty")
        heads, d_ff = self.number("encoder_attention_heads"), self.number("encoder_ffn_dim")
        decoder_heads, decoder_d_ff = self.number("decoder_attention_heads"), self.number("decoder_ffn_dim")
        settings = {
            "name": directory.resolve().name or "imported",
            "data": {"max_length": max(1, min(self.number("max_position_embeddings", 1024) - 1, 1023))},
            "model": {
                "architecture": "transformer",
                "d_model": self.number("d_model"),
                "num_heads": heads,
                "d_ff": d_ff,
                "encoder_layers": self.number("encoder_layers"),
                "decoder_layers": self.number("decoder_layers"),
                **({"decoder_num_heads": decoder_heads} if decoder_heads != heads else {}),
                **({"decoder_d_ff": decoder_d_ff} if decoder_d_ff != d_ff else {}),
                "activation": self.activation,
                "scale_embeddings": self.flag("scale_embedding", False),
                "dropout": self.rate("dropout"),
                "attention_dropout": self.rate("attention_dropout"),
                "activation_dropout": self.rate("activation_dropout"),
                **model,
            },
            "tokenizer": {"shared": model["tie_embeddings"] == "all"},
            "decoding": {
                **({"beam_size": beam_size} if type(beam_size) is int and beam_size > 0 else {}),
                **({"length_penalty": float(length_penalty)} if type(length_penalty) in (int, float) else {}),
                **({"stopping": "count"} if self.generation_value("early_stopping") is True else {}),
                **self._constraints(),
                **self._sampling(),
            },
        }
        try:
            return Config.model_validate_json(json.dumps(settings))
        except ValueError as error:
            _, setting, problem, *_ = (line.strip() for line in str(error).splitlines())
            problem = problem.partition(" [type=")[0]
            message = problem.removeprefix("Value error, ")  # a message with this prefix names the setting itself
            if message == problem:
                message = f"{setting.replace('model.transformer.', 'model.')}: {problem}"
            raise CheckpointError(f"{self.path}: {message}") from None

    def _constraints(self) -> dict[str, int]:
        """Returns mtkit's decoding settings min_length and no_repeat_ngram, each only if the checkpoint sets it.

        In Hugging Face transformers, min_length counts the start token, so 1 is subtracted.
        """
        found = {}
        least, new, ngram = (
            self.generation_value(key) for key in ("min_length", "min_new_tokens", "no_repeat_ngram_size")
        )
        shortest = new if _is_count(new) else least - 1 if _is_count(least) else 0
        if shortest > 0:
            found["min_length"] = shortest
        if _is_count(ngram) and ngram > 0:
            found["no_repeat_ngram"] = ngram
        return found

    @property
    def _samples(self) -> bool:
        """Whether the checkpoint's settings make Hugging Face transformers sample without beam search.

        Sampling with beam search does not count, since mtkit cannot combine the two.
        """
        return self.generation_value("do_sample") is True and self.generation_value("num_beams") in (None, 1)

    def _sampling(self) -> dict[str, Any]:
        """Returns mtkit's decoding settings for sampling; an empty dict if the checkpoint does not ask for sampling.

        In Hugging Face transformers, a missing top_k means 50, and a top_k of 0 means that tokens are sampled from the
        whole vocabulary.
        """
        if not self._samples:
            return {}
        found: dict[str, Any] = {"method": "sample"}
        values = {key: self.generation_value(key) for key in SAMPLING if SAMPLING[key](self.generation_value(key))}
        if "temperature" in values:
            found["temperature"] = values["temperature"]
        if top_k := values.get("top_k", 50):
            found["top_k"] = top_k
        if values.get("top_p", 1) < 1:
            found["top_p"] = values["top_p"]
        return found

    def ignored(self, silent: Collection[int]) -> list[str]:
        """Returns a text such as "epsilon_cutoff 0.1" for each generation setting that mtkit cannot carry over.

        Only settings that affect translations are returned. `silent` has the ids that mtkit never generates; settings
        that only forbid these ids are left out.
        """
        found = {key: value for key in NEUTRAL if (value := self.generation_value(key)) not in (None, *NEUTRAL[key])}
        words = [word for word in _rows(found.pop("bad_words_ids", [])) if not (len(word) == 1 and word[0] in silent)]
        suppressed = [id_ for id_ in _row(found.pop("suppress_tokens", [])) if id_ not in silent]
        end = _one(self.content.get("eos_token_id"))
        if _one(found.get("forced_eos_token_id")) == end:
            found.pop("forced_eos_token_id", None)  # at the maximum length, it ends translations as mtkit does
        for key in ("min_length", "min_new_tokens", "no_repeat_ngram_size"):
            if (value := self.generation_value(key)) is not None and not _is_count(value):
                found[key] = value
        if self._samples:
            found.pop("do_sample")
            wrong = (key for key, is_right in SAMPLING.items() if not is_right(self.generation_value(key)))
            found |= {key: value for key in wrong if (value := self.generation_value(key)) is not None}
        found |= {"bad_words_ids": words} if words else {}
        found |= {"suppress_tokens": suppressed} if suppressed else {}
        return [f"{key} {_short(value)}" for key, value in sorted(found.items())]

    def bans(self, id_: int) -> bool:
        """Whether the checkpoint's generation settings forbid the token `id_`."""
        words, suppressed = (self.generation_value(key) or [] for key in ("bad_words_ids", "suppress_tokens"))
        return [id_] in _rows(words) or id_ in _row(suppressed)

    def _check_generation(self) -> None:
        """Raises CheckpointError if the checkpoint forces a first token, or gives a special token two different ids.

        The two ids are those in config.json and generation_config.json.
        """
        if (forced := self.generation_value("forced_bos_token_id")) is not None:
            raise CheckpointError(f"{self.path}: forced_bos_token_id is {forced!r}; mtkit forces no first token")
        for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
            here, there = _one(self.content.get(key)), _one(self.generation.get(key))
            if here is not None and there is not None and here != there:
                raise CheckpointError(f"{self.path}: {key} is {here!r}, and {there!r} in {GENERATION}; make them agree")
