"""The engines that translate, PyTorch and CTranslate2: the Python API's `load`, and writing models for CTranslate2.

The first time that CTranslate2 is to translate with a model (`--engine ctranslate2`), the model is exported to a folder
beside it or, if that cannot be written, in the user's cache folder. The exported vocabularies list ids instead of
pieces, so that the model can have any kind of tokenizer.

Models are written without using the library. The file model.bin is a list of named arrays, in version 6 of
CTranslate2's binary format and as revision 7 of CTranslate2's TransformerSpec requires. In shapes, V is the vocabulary
size, D the model width and P the number of positions.
"""

import hashlib
import json
import math
import os
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkit import __version__
from mtkit.bundle.bundle import WEIGHTS, Bundle, not_finite
from mtkit.bundle.opening import CheckpointStorage, open_model, tell
from mtkit.config.data_and_model_settings import MaskedConfig, TransformerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import ragged
from mtkit.errors import CheckpointError, MtkitError, inform, say, shown
from mtkit.exchange.portable import MARKER, Observed, PortableModel, Vocabulary, most_tokens, require_known_parts
from mtkit.files import json_text, remove, sync, undone_when_ended
from mtkit.models.registry import DTYPES
from mtkit.translation import translator as with_torch
from mtkit.translation.decode import Model, decode, max_lengths_of
from mtkit.translation.search import LENGTH_PENALTIES, Hypothesis
from mtkit.translation.stream import MOST_DRIFT, translate_canaries
from mtkit.translation.translator import Batch, Translator, check_arguments, load_bundle

# Opening a model with one of the engines.

ENGINES = ("torch", "ctranslate2", "auto")

# CTranslate2's names of the precisions; "auto" is the fastest precision that CTranslate2 has on this processor.
COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8", "auto": "auto"}


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    precision: str = "fp32",
    ensemble: Sequence[str | Path] = (),
    engine: str = "torch",
    language_model: str | Path | None = None,
) -> Translator:
    """Open a model and return its Translator.

    `path` is a run directory, a checkpoint in a run directory, or a model bundle. A bundle is a folder, or packed into
    one file.

    `overrides` are settings of the form "key=value", such as "device=cpu" or "decoding.beam_size=1"; they replace the
    model's own settings.

    `precision` is "fp32", "bf16", "fp16", "int8" (on a CPU), "fp64", or "auto": the fastest on this device that hardly
    lowers the quality of translations (see `pick_run_precision`). CTranslate2 makes its own choice for "auto". On a CPU
    in fp32, the weights are memory-mapped and, except those of the output layer, not copied.

    `ensemble` holds the paths of further models; the probabilities of all models are averaged. All models must have the
    same tokenizer. The settings of the model at `path` apply.

    `language_model` is the path of a language model with the same target vocabulary. Its log-probabilities, multiplied
    by `decoding.language_model_weight`, are added to those of the translation model at each step (shallow fusion).

    `engine` is what searches for translations: "torch" (PyTorch); "ctranslate2", which requires the package of that
    name; or "auto", which is CTranslate2 if it is installed and supports the settings, else PyTorch. If CTranslate2 is
    installed but not used, "auto" prints the reason on stderr. The first time that a model is opened for CTranslate2,
    it is exported to files beside it.

    Raises TypeError for arguments of a wrong type; CheckpointError if a model is missing or damaged, or does not fit
    the ensemble; ConfigError for a wrong setting; MtkitError for an unknown precision or engine, an unavailable device,
    or a setting that the engine does not support. CheckpointError and ConfigError are subclasses of MtkitError.

    A process may be forked after loading, by multiprocessing or by a web server that loads before it forks. In the
    child, a model on a GPU raises MtkitError. PyTorch's CPU threads do not survive the fork, so on a CPU the child
    computes with one thread. A process that is forked before loading, and loads the model itself, can use all threads
    and the GPU.

    Example:
        import mtkit

        translator = mtkit.load("runs/de-en", ["device=cpu", "decoding.beam_size=4"])
        for text in translator.translate(["Guten Morgen.", "Danke!"]):
            print(text)
    """
    if engine not in ENGINES:
        raise MtkitError(f"engine: found {shown(engine)}, wants one of {', '.join(ENGINES)}")
    is_installed = engine != "torch" and library() is not None
    if engine == "torch" or (engine == "auto" and not is_installed):
        return with_torch.load(path, overrides, precision, ensemble, language_model)
    if not is_installed:
        raise MtkitError("engine ctranslate2: the package is not installed: pip install 'mtkit[ctranslate2]'")
    check_arguments(path, overrides, ensemble, language_model)
    if precision not in {**COMPUTE_TYPES, **DTYPES}:
        wanted = ", ".join(COMPUTE_TYPES)
        raise MtkitError(f"precision: found {shown(precision)}, and engine ctranslate2 wants one of {wanted}")
    if ensemble:
        fault = "an ensemble: CTranslate2 translates with one model"
    elif language_model is not None:
        fault = "a language model: CTranslate2 translates without one"
    else:
        bundle = open_model(Path(path))
        try:
            translator = _load_ctranslate2(bundle, overrides, precision)
            tell(bundle.storage)
            return translator
        except _UnfitError as error:
            fault = str(error)
    if engine == "ctranslate2":
        raise MtkitError(f"engine ctranslate2: {fault}, or take engine torch")
    say(f"engine torch, not ctranslate2: {fault}")
    return with_torch.load(path, overrides, precision, ensemble, language_model)


# What CTranslate2 cannot do.


class _UnfitError(MtkitError):
    """Raised if CTranslate2 cannot translate as the settings ask."""


def _load_ctranslate2(bundle: Bundle, overrides: Sequence[str], precision: str) -> Translator:
    """Returns a Translator for `bundle` that searches with CTranslate2, after exporting the model if need be.

    Raises _UnfitError if CTranslate2 does not support the settings, or if its translations differ from PyTorch's.
    """
    translator = load_bundle(bundle, overrides)  # in fp32; it translates what CTranslate2 does not
    if fault := fault_of(translator):
        raise _UnfitError(fault)
    device = translator.model.device.type
    _require_precision(precision, device)
    directory = _exported(bundle, translator)
    translator.engine = CTranslate2Engine(directory, translator, device, COMPUTE_TYPES[precision])
    return translator


def fault_of(translator: Translator) -> str | None:
    """Returns text on why CTranslate2 cannot translate with this model and its settings; `None` if it can.

    The text names the first setting that CTranslate2 does not support, and what to do.
    """
    config, decoding = translator.config, translator.config.decoding
    try:
        check_ctranslate2(config)
    except CheckpointError as error:
        return str(error).replace("and the others want", "wants").replace("and the others take", "takes")
    if num_untrained := len(translator.model.untrained):
        return f"{num_untrained:,} pieces were added that no training has seen: train from this model first"
    if decoding.mbr_samples:
        return f"decoding.mbr_samples is {decoding.mbr_samples}; CTranslate2 has no minimum Bayes risk decoding: take 0"
    if decoding.draws:
        return f"decoding.method is {decoding.method}; CTranslate2 would draw other samples: take beam"
    if decoding.coverage_penalty:
        return f"decoding.coverage_penalty is {decoding.coverage_penalty:g}; CTranslate2 has another one: take 0"
    if decoding.diversity_groups > 1:
        return f"decoding.diversity_groups is {decoding.diversity_groups}; CTranslate2 has ordinary beams: take 1"
    if decoding.shortlist is not None:
        return f"decoding.shortlist is {decoding.shortlist}; CTranslate2 looks at all tokens: take null"
    if decoding.stopping == "optimal":
        return "decoding.stopping is optimal; CTranslate2 has no exact search: take count"
    if decoding.beam_size == 1:
        return None
    if decoding.stopping != "count":
        return (
            f"decoding.stopping is {decoding.stopping}; CTranslate2 stops once beam_size hypotheses have ended: take "
            "count"
        )
    if decoding.length_penalty_form != "power" and decoding.length_penalty:
        return f"decoding.length_penalty_form is {decoding.length_penalty_form}; CTranslate2 has power: take that"
    for name in ("min_length", "no_repeat_ngram"):
        if value := getattr(decoding, name):
            return _spread(name, value, 0)
    if decoding.unknown == "ban" and translator.tokenizer.target_shows_unknown:
        return _spread("unknown", "ban", "keep")
    return None


def _spread(name: str, found: object, wanted: object) -> str:
    return (
        f"decoding.{name} is {found}; with a beam, CTranslate2 spreads the probability of forbidden tokens over the "
        f"others: take {wanted}, or beam_size 1"
    )


def _require_precision(precision: str, device: str) -> None:
    """Raises _UnfitError if CTranslate2 does not support the precision or the device."""
    if device not in ("cpu", "cuda"):
        raise _UnfitError(f"device {device}: CTranslate2 has cpu and cuda: take one of them")
    try:
        found: set[str] = library().get_supported_compute_types(device)
    except (ValueError, RuntimeError) as error:  # built without CUDA, or no driver that it can use
        raise _UnfitError(f"device {device}: CTranslate2 cannot use it ({error})") from None
    names = [name for name, kind in COMPUTE_TYPES.items() if kind == "auto" or kind in found]
    if precision not in names:
        raise _UnfitError(f"precision {precision}: CTranslate2 has {', '.join(names)} on this {device}: take one")


# The exported files.


def _exported(bundle: Bundle, translator: Translator) -> Path:
    """Returns the folder of the exported model; exports the model if it has not been exported.

    The export may be in any of the folders that `_places` returns. If it is in none of them, the model is exported to
    the first of them that can be written, and old exports there are deleted. The name of an export is a checksum of
    everything that its files depend on, so a changed model is exported anew. Raises _UnfitError if none of the folders
    can be written.
    """
    key = _key(bundle, translator.config)
    places = _places(bundle)
    for place in places:
        with suppress(PermissionError):  # the folder may not be readable
            if (place / key / MARKER).is_file():
                with suppress(OSError):
                    os.utime(place / key)  # marks the export as still in use
                return place / key
    faults = []
    for place in places:
        try:
            return _export(bundle, translator, place, key)
        except OSError as error:
            faults.append(f"{place}: cannot be written: {error.strerror or error}")
    raise _UnfitError(f"{'; '.join(faults)}; one of them must be writable, and have room")


def _key(bundle: Bundle, config: Config) -> str:
    parts = {
        "layout": 1,  # version of the files' layout; to be raised if what is written changes
        "ctranslate2": library().__version__,
        "weights": hashlib.sha256(bundle.storage.view(WEIGHTS)).hexdigest(),
        "tokenizer": bundle.description["tokenizer_sha256"],
        "model": config.model.model_dump(mode="json"),
        "positions": most_positions(config),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _places(bundle: Bundle) -> list[Path]:
    """Returns the folders that may hold exports of the model: one beside it, and one in the user's cache folder."""
    storage = bundle.storage
    path = (storage.run / "checkpoint" if isinstance(storage, CheckpointStorage) else storage.path).absolute()
    beside = path.with_name(f"{path.name}.ctranslate2")
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the user has no home folder
        return [beside]
    return [beside, cache / "mtkit" / f"{beside.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"]


ABANDONED = 86_400  # age in seconds from which a half-written folder counts as left by a killed process
UNUSED = 7 * 86_400  # an export that was not used for this many seconds is deleted when another is made
FORMAT = "ctranslate2 of --engine"  # tells exports for the engine from those of `mtkit export`


def _export(bundle: Bundle, translator: Translator, place: Path, key: str) -> Path:
    """Exports the model to the folder `key` in `place`, and deletes unused exports in `place`; returns the folder.

    The folder appears only once it is complete and has passed `_check`. If another process made the folder meanwhile,
    that folder is kept. Raises OSError if the files cannot be written, and CheckpointError if weights are not finite.
    """
    if fault := not_finite(bundle.weights()):
        raise CheckpointError(f"{bundle.path}: {fault}; train it again, or take an earlier checkpoint")
    place.mkdir(parents=True, exist_ok=True)
    directory = place / key
    with undone_when_ended(), TemporaryDirectory(dir=place, prefix=".new-") as temporary:
        new = Path(temporary) / key
        new.mkdir()
        inform(f"exporting the model to {directory} for CTranslate2 …")
        write_ctranslate2(_numbered(bundle, translator), new)
        about = {"format": FORMAT, "mtkit": __version__, "ctranslate2": library().__version__}
        (new / MARKER).write_text(json_text(about, indent=1) + "\n", encoding="utf-8")
        _check(bundle, translator, new)
        for part in [*new.iterdir(), new]:
            sync(part)
        try:
            new.rename(directory)
        except OSError:
            if not (directory / MARKER).is_file():
                raise
    for other in place.iterdir():
        with suppress(OSError):
            age = time() - other.stat().st_mtime
            is_left = other.name.startswith(".new-") and age > ABANDONED
            if is_left or (other.name != key and age > UNUSED and _is_export(other)):
                remove(other)
    return directory


def _is_export(directory: Path) -> bool:
    """Whether `directory` was written by `_export`."""
    try:
        return bool(json.loads((directory / MARKER).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _numbered(bundle: Bundle, translator: Translator) -> PortableModel:
    """Returns the model with vocabularies in which each piece is its id, written as a number."""
    tokenizer = translator.tokenizer
    source, target = (
        Vocabulary(list(map(str, range(size))), special)
        for size, special in (
            (tokenizer.source_vocab_size, tokenizer.specials.source),
            (tokenizer.target_vocab_size, tokenizer.specials.target),
        )
    )
    weights = {name: weight.float() for name, weight in bundle.weights().items()}
    return PortableModel(translator.config, weights, source, target)


def _check(bundle: Bundle, translator: Translator, directory: Path) -> None:
    """Raises _UnfitError if CTranslate2 does not reproduce the translations of the canaries in the bundle.

    Canaries are source lines that the bundle stores with their translations. A different translation is accepted if it
    is nearly a tie: at the first position where the two translations differ, the log-probabilities of their tokens
    differ by less than MOST_DRIFT. `directory` has the exported files.
    """
    engine = CTranslate2Engine(directory, translator, "cpu", "float32")
    checked = Translator(translator.model, translator.tokenizer, translator.config, engine=engine)
    results = translate_canaries(checked, bundle.canaries())
    num_wrong = sum(not result.same_tokens and not abs(result.gap) < MOST_DRIFT for result in results)
    if num_wrong:
        raise _UnfitError(
            f"{bundle.path}: CTranslate2 translates {num_wrong} of {len(results)} canaries otherwise than mtkit did: "
            "see whether mtkit check finds the model intact"
        )


# Translation with the exported files.

AHEAD = 2  # batches that are given to CTranslate2 before the results of an earlier one are awaited
MOST_SENTENCES = 64  # in a batch of CTranslate2, which divides larger batches among its workers

# With a length penalty of exactly 0, CTranslate2 has a special rule for stopping: at the first hypothesis that is
# better than all others. This number avoids the rule, and has the effect of 0 in fp32: any length raised to it is 1.
ZERO_PENALTY = 1e-9


@dataclass(frozen=True)
class _Begun:
    """A batch that CTranslate2 is translating."""

    sentences: Sequence[Sequence[int]]
    prefixes: Sequence[Sequence[int]]
    max_lengths: list[int]  # maximum length of each translation, without the end mark
    chosen: list[int]  # the indices of the sentences that CTranslate2 translates; PyTorch translates the others
    results: Sequence[Any]  # for each chosen sentence, an asynchronous result of CTranslate2


class _Lengths:
    """Computes maximum lengths of translations and length penalties, and caches them; lengths are in tokens."""

    def __init__(self, model: Model, decoding: DecodingConfig) -> None:
        self.decoding = decoding
        self._model = model
        self._limits: dict[tuple[int, int], int] = {}
        self._divisors: dict[int, float] = {}

    def limit(self, source_length: int, prefix_length: int) -> int:
        """Returns the maximum length of a translation, without the end mark.

        The source has `source_length` tokens, and the prefix of the translation has `prefix_length`.
        """
        key = source_length, prefix_length
        if key not in self._limits:
            sources, prefixes = ragged([[0] * source_length]), [[0] * prefix_length]
            self._limits[key] = int(max_lengths_of(self._model, self.decoding, sources, prefixes))
        return self._limits[key]

    def divisor(self, length: int) -> float:
        """Returns the length penalty, by which log-probabilities are divided; `length` includes the end mark."""
        if length not in self._divisors:
            penalty = LENGTH_PENALTIES[self.decoding.length_penalty_form]
            lengths = torch.tensor([length], dtype=torch.float64)
            self._divisors[length] = float(penalty(lengths, self.decoding.length_penalty))
        return self._divisors[length]


class CTranslate2Engine:
    """Searches for translations with CTranslate2; an `Engine` of a Translator.

    The translations are those of mtkit's own search, `mtkit.translation.decode.decode`, up to rounding. The settings
    must be such that `fault_of` returns `None`.

    CTranslate2 does not search all sentences as mtkit does. mtkit's own search translates the others:

    - sentences whose source or translation may be longer than the model's tables of positions;
    - with a beam: sentences that have a prefix;
    - with a beam: sentences for which a hypothesis reaches the maximum length. There, mtkit ends all hypotheses of the
      sentence, and CTranslate2 ends none of them;
    - with greedy search: all sentences if several hypotheses are asked for;
    - with greedy search: sentences for which the log-probability of CTranslate2's translation is not finite.
    """

    def __init__(self, directory: Path, translator: Translator, device: str, compute_type: str) -> None:
        self._directory = directory
        self._model: Model = translator.model
        self._lengths = _Lengths(translator.model, translator.config.decoding)
        self._device = device
        self._compute_type = compute_type
        sizes = translator.tokenizer.source_vocab_size, translator.tokenizer.target_vocab_size
        self._names = list(map(str, range(max(sizes))))
        self._ids = {name: id_ for id_, name in enumerate(self._names)}
        self._end = self._names[self._model.boundaries.target_end]
        self._positions = most_positions(translator.config)
        self._replaces_unknown = translator.tokenizer.target_shows_unknown
        self._unknown = translator.tokenizer.specials.target.unknown
        self._library: Any = None  # the Translator of CTranslate2
        self._is_alone = False  # whether all threads compute one batch together, instead of one batch each
        self._process = 0  # the id of the process that opened self._library
        self._of_parent: Any = None  # in a forked process, the parent's Translator, which must not be deleted

    @property
    def precision(self) -> str:
        """The precision in which CTranslate2 translates; for "auto", the one that CTranslate2 chose."""
        kind = self._compute_type
        if kind == "auto":
            kind = self._translator(1).compute_type.split("_")[0]  # such as int8_float32
        return next((name for name, found in COMPUTE_TYPES.items() if found == kind), kind)

    def decode(
        self, decoding: DecodingConfig, batches: Iterable[Batch], num_best: int, forbidden: Sequence[int]
    ) -> Iterator[list[list[Hypothesis]]]:
        """Yields the hypotheses of each batch, as the function `mtkit.translation.decode.decode` returns them.

        The batches keep their order. While the results of one batch are awaited, CTranslate2 already works on later
        batches, at most AHEAD of them.
        """
        begun: deque[_Begun] = deque()
        for sentences, prefixes in batches:
            begun.append(self._begin(decoding, sentences, prefixes, num_best, forbidden))
            if len(begun) > AHEAD:
                yield self._end_batch(begun.popleft(), decoding, num_best, forbidden)
        while begun:
            yield self._end_batch(begun.popleft(), decoding, num_best, forbidden)

    def _begin(
        self,
        decoding: DecodingConfig,
        sentences: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        num_best: int,
        forbidden: Sequence[int],
    ) -> _Begun:
        if self._lengths.decoding is not decoding:
            self._lengths = _Lengths(self._model, decoding)
        prefix_lengths = map(len, prefixes) if prefixes else repeat(0)
        max_lengths = list(map(self._lengths.limit, map(len, sentences), prefix_lengths))
        is_greedy = decoding.beam_size == 1
        chosen = [
            i
            for i, max_length in enumerate(max_lengths)
            if max(max_length, len(sentences[i])) < self._positions
            and (num_best == 1 if is_greedy else not (prefixes and prefixes[i]))
        ]
        if not chosen:
            return _Begun(sentences, prefixes, max_lengths, chosen, [])
        most = max(max_lengths[i] for i in chosen)
        is_certain = num_best == 1 and all(max_lengths[i] == most for i in chosen)
        results = self._translator(len(sentences)).translate_batch(
            self._named(sentences[i] for i in chosen),
            self._named(prefixes[i] for i in chosen) if any(prefixes) else None,
            asynchronous=True,
            max_batch_size=MOST_SENTENCES,
            max_input_length=0,
            beam_size=decoding.beam_size,
            # All beam_size hypotheses are needed to see whether a sentence has reached its own maximum length, which
            # may be shorter than that of the batch.
            num_hypotheses=1 if is_certain or is_greedy else decoding.beam_size,
            length_penalty=0 if is_greedy else decoding.length_penalty or ZERO_PENALTY,
            min_decoding_length=min(decoding.min_length, most),
            max_decoding_length=most + 1,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            suppress_sequences=[[self._names[token]] for token in forbidden],
            return_end_token=True,  # length penalties then count the end mark, as in mtkit
            return_scores=True,
        )
        return _Begun(sentences, prefixes, max_lengths, chosen, results)

    def _end_batch(
        self, begun: _Begun, decoding: DecodingConfig, num_best: int, forbidden: Sequence[int]
    ) -> list[list[Hypothesis]]:
        take = self._greedy if decoding.beam_size == 1 else self._best
        found = take(begun, decoding, 1 if num_best == 1 else 2 * num_best, forbidden)
        left = [i for i in range(len(begun.sentences)) if i not in found]
        if left:
            prefixes = [begun.prefixes[i] for i in left] if begun.prefixes else ()
            sentences = [begun.sentences[i] for i in left]
            hypotheses = decode(self._model, decoding, sentences, num_best, prefixes, forbidden)
            found |= dict(zip(left, hypotheses, strict=True))
        return [found[i] for i in range(len(begun.sentences))]

    def _best(
        self, begun: _Begun, decoding: DecodingConfig, most: int, forbidden: Sequence[int]
    ) -> dict[int, list[Hypothesis]]:
        """Returns up to `most` hypotheses of beam search for each sentence, by the index of the sentence.

        Leaves out sentences for which a hypothesis has reached the maximum length.
        """
        found = {}
        for i, pending in zip(begun.chosen, begun.results, strict=True):
            result = pending.result()
            rows, limit = result.hypotheses, begun.max_lengths[i]
            if all(row[-1:] == [self._end] and len(row) <= limit + 1 for row in rows):
                found[i] = [
                    Hypothesis(self._tokens(row[:-1]), score * self._lengths.divisor(len(row)), score)
                    for row, score in zip(rows[:most], result.scores, strict=False)
                ]
        return found

    def _greedy(
        self, begun: _Begun, decoding: DecodingConfig, _: int, forbidden: Sequence[int]
    ) -> dict[int, list[Hypothesis]]:
        """Returns a list with the one hypothesis of greedy search for each sentence, by the index of the sentence.

        Leaves out sentences for which the log-probability of the hypothesis is not finite. CTranslate2 scores the
        finished translation again, and this log-probability replaces that of the search, in three cases:

        - The search did not end the translation within its maximum length.
        - The sentence has a prefix, whose tokens the search does not score.
        - min_length, no_repeat_ngram or a ban on <unk> forbade some tokens. In the scores of the search, the
          probability of forbidden tokens is spread over all other tokens.
        """
        bans = self._replaces_unknown and self._unknown in forbidden
        all_differ = bool(decoding.min_length or decoding.no_repeat_ngram or bans)
        tokens, log_probs, differing = {}, {}, []
        for i, pending in zip(begun.chosen, begun.results, strict=True):
            result = pending.result()
            [row], [log_probs[i]] = result.hypotheses, result.scores
            is_whole = row[-1:] == [self._end] and len(row) <= begun.max_lengths[i] + 1
            tokens[i] = self._tokens(row[:-1] if is_whole else row[: begun.max_lengths[i]])
            if all_differ or not is_whole or (begun.prefixes and begun.prefixes[i]):
                differing.append(i)
        for i, log_prob in zip(differing, self._log_probs(begun, tokens, differing), strict=True):
            log_probs[i] = log_prob
        return {
            i: [Hypothesis(row, log_probs[i], log_probs[i] / self._lengths.divisor(len(row) + 1))]
            for i, row in tokens.items()
            if math.isfinite(log_probs[i])
        }

    def _log_probs(self, begun: _Begun, tokens: dict[int, list[int]], chosen: Sequence[int]) -> list[float]:
        """Returns the log-probability of the translation `tokens[i]` of sentence i, for each index i in `chosen`."""
        if not chosen:
            return []
        sources = self._named(begun.sentences[i] for i in chosen)
        targets = self._named(tokens[i] for i in chosen)
        scored = self._translator(len(chosen)).score_batch(
            sources, targets, max_batch_size=MOST_SENTENCES, max_input_length=0
        )
        return [sum(result.log_probs) for result in scored]

    def _named(self, rows: Iterable[Sequence[int]]) -> list[list[str]]:
        names = self._names
        return [[names[token] for token in row] for row in rows]

    def _tokens(self, row: Sequence[str]) -> list[int]:
        ids = self._ids
        return [ids[name] for name in row]

    def _translator(self, num_sentences: int) -> Any:
        """Returns the Translator of CTranslate2 for a batch of `num_sentences` sentences.

        As long as every batch has a single sentence, all threads compute one batch together. From the first larger
        batch on, each thread computes a batch of its own, whatever the size of later batches. CTranslate2's threads do
        not survive a fork, so a forked process opens the files again. The forked process never deletes the parent's
        Translator, since the deletion would wait for threads that do not exist.
        """
        if self._library is not None and self._process != os.getpid():
            self._of_parent, self._library = self._library, None
        if self._library is None or (self._is_alone and num_sentences > 1):
            threads = torch.get_num_threads()
            self._is_alone = num_sentences == 1 and threads > 1
            self._library = library().Translator(
                str(self._directory),
                device=self._device,
                compute_type=self._compute_type,
                inter_threads=1 if self._is_alone or self._device != "cpu" else threads,
                intra_threads=threads if self._is_alone else 1,
            )
            self._process = os.getpid()
        return self._library


# CTranslate2's files.

BINARY_VERSION, NAME, REVISION = 6, "TransformerSpec", 7
ARRAY_TYPES = (
    "float32",
    "int8",
    "int16",
    "int32",
    "float16",
    "bfloat16",
)  # the index of a type is its number in model.bin

ACTIVATIONS = {"relu": 0, "silu": 2, "gelu": 3, "reglu": 0, "swiglu": 2, "geglu": 3}
GATED = ("reglu", "geglu", "swiglu")
NORM_EPS = 1e-5  # the epsilon of mtkit's norms
LEAST_POSITIONS = 1024  # the least number of rows in a table of sinusoids, which CTranslate2 does not extend

UNCONSTRAINED = DecodingConfig()

Variables = dict[str, Tensor]  # by CTranslate2's names; scalars are tensors of dimension 0

# Maps each quantization to two types: that of matrices, and that of all other float arrays. If the second is None, the
# other arrays keep their type. The types are the same as in CTranslate2's own converter.
QUANTIZATIONS: dict[str, tuple[str, str | None]] = {
    "int8": ("int8", None),
    "int8_float32": ("int8", "float32"),
    "int8_float16": ("int8", "float16"),
    "int8_bfloat16": ("int8", "bfloat16"),
    "int16": ("int16", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float32": ("float32", "float32"),
}


def check_ctranslate2(config: Config) -> None:
    """Raises CheckpointError if CTranslate2 does not support the model.

    CTranslate2 supports only Transformers that translate, and only some of the settings that mtkit has for them.
    """
    model = config.model
    if config.task != "translation":
        raise CheckpointError("task is language_model; CTranslate2 and the others take translation models alone")
    if not isinstance(model, TransformerConfig) or isinstance(model, MaskedConfig):
        raise CheckpointError(
            f"model.architecture is {model.architecture}; CTranslate2 and the others take Transformers alone"
        )
    require_known_parts(model)


def write_ctranslate2(model: PortableModel, directory: Path, quantization: str | None = None) -> None:
    """Writes `model` to the folder `directory` as files for CTranslate2, and adds the SentencePiece models.

    `quantization` is a key of QUANTIZATIONS; `None` keeps the weights in float32.
    """
    variables = variables_of(model)
    aliases = _aliases(variables)
    if quantization is not None:
        variables = _quantized({n: v for n, v in variables.items() if n not in aliases}, *QUANTIZATIONS[quantization])
    _write_binary(directory / "model.bin", {n: v for n, v in variables.items() if n not in aliases}, aliases)
    _write_json(directory / "config.json", _config(model))
    if model.source.pieces == model.target.pieces:
        _write_json(directory / "shared_vocabulary.json", model.source.pieces)
    else:
        _write_json(directory / "source_vocabulary.json", model.source.pieces)
        _write_json(directory / "target_vocabulary.json", model.target.pieces)
    for name, side in (("source.spm", model.source), ("target.spm", model.target)):
        if side.sentencepiece:
            (directory / name).write_bytes(side.sentencepiece)


def variables_of(model: PortableModel) -> Variables:
    """Returns {name: value} for all arrays and scalars of a CTranslate2 model.

    A matrix that is shared appears under several names.
    """
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    weights = model.weights
    shared = weights["encoder.embedded.embedding.weight"]
    target = shared if config.tie_embeddings == "all" else weights["decoder.embedded.embedding.weight"]
    output = weights["decoder.output.table.weight"] if config.tie_embeddings == "none" else target
    places = most_positions(model.config)
    found: Variables = {
        "encoder/embeddings_0/weight": shared,
        "encoder/embeddings_merge": _scalar(0, "int8"),
        "encoder/multi_query_attention": _scalar(0, "int8"),
        "decoder/embeddings/weight": target,
        "decoder/projection/weight": output,
        "decoder/alignment_layer": _scalar(-1, "int16"),
        "decoder/alignment_heads": _scalar(1, "int16"),
        **{
            f"decoder/{flag}": _scalar(0, "int8")
            for flag in ("alibi", "alibi_use_positive_positions", "scale_alibi", "start_from_zero_embedding")
        },
    }
    if config.output_bias:
        found["decoder/projection/bias"] = weights["decoder.output.bias"]
    for side, depth, heads in (
        ("encoder", config.encoder_layers, config.num_heads),
        ("decoder", config.decoder_layers, config.decoder_num_heads or config.num_heads),
    ):
        found |= _stack(config, weights, side, heads, places)
        for number in range(depth):
            found |= _layer(config, weights, side, number)
    return found


def _stack(config: TransformerConfig, weights: Mapping[str, Tensor], side: str, heads: int, places: int) -> Variables:
    """Returns CTranslate2's arrays and scalars of the encoder or decoder (`side`), except those of its layers.

    `heads` is the number of attention heads. `places` is the number of positions (P) in a table that is computed, not
    learned.
    """
    found = {
        f"{side}/num_heads": _scalar(heads, "int16"),
        f"{side}/pre_norm": _scalar(config.norm_placement == "pre", "int8"),
        f"{side}/activation": _scalar(ACTIVATIONS[config.activation], "int8"),
        f"{side}/scale_embeddings": _scalar(config.scale_embeddings, "int8"),
    }
    if config.norm_placement == "pre":
        found |= _norm(weights, f"{side}.norm", f"{side}/layer_norm")
    if config.embedding_norm:
        found |= _norm(weights, f"{side}.embedded.norm", f"{side}/layernorm_embedding")
    table = POSITIONS[config.positions](config, weights.get(f"{side}.embedded.positions.weight"), places)
    return found if table is None else found | {f"{side}/position_encodings/encodings": table}


def _layer(config: TransformerConfig, weights: Mapping[str, Tensor], side: str, number: int) -> Variables:
    ours, theirs = f"{side}.layers.{number}", f"{side}/layer_{number}"
    found = {
        **_linear(weights, f"{ours}.attention.query_key_value", f"{theirs}/self_attention/linear_0"),
        **_linear(weights, f"{ours}.attention.output", f"{theirs}/self_attention/linear_1"),
        **_norm(weights, f"{ours}.around_attention.norm", f"{theirs}/self_attention/layer_norm"),
        **_linear(weights, f"{ours}.feed_forward.output", f"{theirs}/ffn/linear_1"),
        **_norm(weights, f"{ours}.around_feed_forward.norm", f"{theirs}/ffn/layer_norm"),
    }
    inner = _linear(weights, f"{ours}.feed_forward.inner", "")
    for name, value in inner.items():
        if config.activation in GATED:
            gate, rest = value.chunk(2)
            found |= {f"{theirs}/ffn/linear_0{name}": gate, f"{theirs}/ffn/linear_0_noact{name}": rest}
        else:
            found[f"{theirs}/ffn/linear_0{name}"] = value
    if config.positions == "rotary":
        found |= {
            f"{theirs}/self_attention/rotary_dim": _scalar(0, "int32"),  # 0: all dimensions of a head rotate
            f"{theirs}/self_attention/rotary_interleave": _scalar(0, "int8"),
            f"{theirs}/self_attention/rotary_base": _scalar(10000.0, "float32"),
        }
    if side == "decoder":
        found |= {
            **_linear(weights, f"{ours}.source_attention.query", f"{theirs}/attention/linear_0"),
            **_linear(weights, f"{ours}.source_attention.key_value", f"{theirs}/attention/linear_1"),
            **_linear(weights, f"{ours}.source_attention.output", f"{theirs}/attention/linear_2"),
            **_norm(weights, f"{ours}.around_source_attention.norm", f"{theirs}/attention/layer_norm"),
        }
    return found


def _linear(weights: Mapping[str, Tensor], ours: str, theirs: str) -> Variables:
    found = {f"{theirs}/weight": weights[f"{ours}.weight"]}
    return found | {f"{theirs}/bias": weights[f"{ours}.bias"]} if f"{ours}.bias" in weights else found


def _norm(weights: Mapping[str, Tensor], ours: str, theirs: str) -> Variables:
    found = {f"{theirs}/gamma": weights[f"{ours}.weight"]}
    return found | {f"{theirs}/beta": weights[f"{ours}.bias"]} if f"{ours}.bias" in weights else found


def _sinusoids(config: TransformerConfig, _: Tensor | None, places: int) -> Tensor:
    """Returns the table (P, D) of sinusoidal position encodings for the first P positions; P is `places`."""
    waves = torch.arange(config.d_model // 2, dtype=torch.float64)
    last = len(waves) if config.sinusoid_exponent == "paper" else max(len(waves) - 1, 1)
    positions = torch.arange(config.sinusoid_first, config.sinusoid_first + places, dtype=torch.float64)
    angles = positions[:, None] * 10000.0 ** -(waves / last)
    sines, cosines = angles.sin(), angles.cos()
    if config.sinusoid_layout == "halves":
        return torch.cat([sines, cosines], dim=1).float()
    return torch.stack([sines, cosines], dim=2).flatten(1).float()


# For each value of model.positions, a function that returns the table (P, D) that is added to embeddings. Rotary
# positions have no table. A model without positions gets a table of zeros, since CTranslate2 would otherwise add
# sinusoids.
POSITIONS: dict[str, Callable[[TransformerConfig, Tensor | None, int], Tensor | None]] = {
    "sinusoidal": _sinusoids,
    "learned": lambda config, weight, places: weight,
    "rotary": lambda config, weight, places: None,
    "none": lambda config, weight, places: torch.zeros(places, config.d_model),
}


def most_positions(config: Config) -> int:
    """Returns the number of positions (P) in tables of sinusoids.

    This is the most tokens that a translation may have, but at least LEAST_POSITIONS.
    """
    return max(LEAST_POSITIONS, _longest(config))


def _longest(config: Config) -> int:
    """Returns the most tokens, including the end mark, that a translation of the longest allowed source may have."""
    return config.decoding.max_length(config.data.max_length) + 1


def _scalar(value: float, dtype: str) -> Tensor:
    return torch.tensor(value).to(getattr(torch, dtype))


def _aliases(variables: Variables) -> dict[str, str]:
    """Returns {name: name of the original} for every array that is a copy of another array.

    Of several equal arrays, the one whose name is alphabetically first is the original; the other arrays are copies.
    """
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], list[str]] = {}
    for name in sorted(variables):
        value = variables[name]
        if not value.dim():
            continue
        like = first.setdefault((value.dtype, tuple(value.shape), value.flatten()[0].item()), [])
        same = next((other for other in like if torch.equal(variables[other], value)), None)
        if same is None:
            like.append(name)
        else:
            aliases[name] = same
    return aliases


def _quantized(variables: Variables, matrices: str, others: str | None) -> Variables:
    """Returns `variables`, converted to other types.

    Matrices, which are the arrays whose names end in /weight, get the type `matrices`. Other arrays get the type
    `others`, or do not change if `others` is `None`. Scalars never change.

    If `matrices` is an integer type, scales are added under the name of the matrix followed by _scale. An int8 matrix
    has one scale for each row; an int16 matrix has a single scale.
    """
    found = {}
    for name, value in variables.items():
        if not value.dim():
            found[name] = value
        elif name.endswith("/weight"):
            found |= {f"{name}{end}": part for end, part in _quantized_matrix(value, matrices).items()}
        else:
            found[name] = value if others is None else value.to(getattr(torch, others))
    return found


def _quantized_matrix(value: Tensor, kind: str) -> dict[str, Tensor]:
    matrix: NDArray[np.float32] = value.numpy()
    if kind == "int8":
        largest = np.abs(matrix).max(axis=1)
        largest[largest == 0] = 127.0
        largest = np.maximum(largest, np.float32(127.0) / np.finfo(np.float32).max)  # so that no scale is infinite
        scales: Any = np.float32(127.0) / largest
        return {
            "": torch.from_numpy(np.rint(matrix * scales[:, None]).astype(np.int8)),
            "_scale": torch.from_numpy(scales),
        }
    if kind == "int16":  # values use 10 bits, so that sums of products fit into 32 bits
        scale = np.float32(2**10 / np.abs(matrix).max())
        limits = np.iinfo(np.int16)
        rounded = np.rint(matrix * scale).clip(limits.min, limits.max).astype(np.int16)
        return {"": torch.from_numpy(rounded), "_scale": torch.tensor(scale)}
    return {"": value.to(getattr(torch, kind))}


def _write_binary(path: Path, variables: Variables, aliases: Mapping[str, str]) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<I", BINARY_VERSION) + _text(NAME) + struct.pack("<II", REVISION, len(variables)))
        for name, value in sorted(variables.items()):
            content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.dim() else _bytes(value)
            shape = struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape)
            dtype = ARRAY_TYPES.index(str(value.dtype).removeprefix("torch."))
            file.write(_text(name) + shape + struct.pack("<BI", dtype, len(content)))
            file.write(content)
        file.write(struct.pack("<I", len(aliases)))
        for alias, name in sorted(aliases.items()):
            file.write(_text(alias) + _text(name))


def _bytes(scalar: Tensor) -> bytes:
    return scalar[None].view(torch.uint8).numpy().tobytes()


def _text(text: str) -> bytes:
    content = text.encode() + b"\0"
    return struct.pack("<H", len(content)) + content


def _config(model: PortableModel) -> dict[str, Any]:
    special, pieces = model.target.special, model.target.pieces
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    begin = special.end if special.begin is None else special.begin
    start = {"begin": begin, "end": special.end}.get(config.start_token, special.pad)
    return {
        "add_source_bos": False,
        "add_source_eos": True,
        "bos_token": pieces[begin],
        "decoder_start_token": pieces[start],
        "eos_token": pieces[special.end],
        "layer_norm_epsilon": NORM_EPS,
        "multi_query_attention": False,
        "unk_token": pieces[special.unknown],
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def library() -> Any:
    """Returns the Python module of CTranslate2; `None` if it is not installed.

    If the processor has no VNNI instructions, this function sets the environment variable CT2_USE_MKL, which makes
    CTranslate2 compute with MKL. A value that the variable already has is kept. Without the variable, CTranslate2 uses
    oneDNN on AMD processors. oneDNN adds pairs of 8-bit products in 16 bits, and these sums may overflow:
    log-probabilities of CTranslate2 4.8.5 were 0.8 nats off with oneDNN, and 0.03 nats off with MKL.
    """
    if not torch.cpu._is_vnni_supported():
        os.environ.setdefault("CT2_USE_MKL", "1")  # read when the library is imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the library while it is imported
            import ctranslate2
    except ImportError:
        return None
    return ctranslate2


def observe_with_ctranslate2(
    directory: Path,
    sources: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    silent: Sequence[str],
    decoding: DecodingConfig = UNCONSTRAINED,
) -> Observed | None:
    """Translates `sources` with CTranslate2 by greedy search, and scores `targets` as translations of `sources`.

    Returns the translations and the log-probabilities of the targets, or `None` if CTranslate2 is not installed. Each
    source and each target is a list of pieces, and each target belongs to the source at the same index. The exported
    model is in `directory`. The search obeys min_length and no_repeat_ngram of `decoding`, and never generates the
    pieces in `silent`.
    """
    ctranslate2 = library()
    if ctranslate2 is None:
        return None
    translator = ctranslate2.Translator(str(directory), device="cpu")
    tokens, given = [list(source) for source in sources], [list(target) for target in targets]
    generated = [
        translator.translate_batch(
            [source],
            beam_size=1,
            min_decoding_length=min(decoding.min_length, most_tokens(source)),  # the library's default is 1
            max_decoding_length=most_tokens(source),
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            suppress_sequences=[[piece] for piece in silent],
        )[0]
        for source in tokens
    ]
    scored = translator.score_batch(tokens, given)
    return Observed(
        f"ctranslate2 {ctranslate2.__version__}",
        [result.hypotheses[0] for result in generated],
        [list(result.log_probs) for result in scored],
    )
