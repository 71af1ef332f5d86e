"""A model and lines in, translations out."""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat, zip_longest
from pathlib import Path

from torch import Tensor

from mtkit.bundle.bundle import Bundle
from mtkit.bundle.opening import open_and_tell
from mtkit.config.settings import Config
from mtkit.errors import (
    CheckpointError,
    DataError,
    MtkitError,
    checked_lines,
    checked_pairs,
    counted,
    require_count,
    require_list,
    require_path,
    require_texts,
    shown,
)
from mtkit.models.interface import Ensemble, TranslationModel
from mtkit.models.registry import DTYPES, empty_model, fill_model, pick_device, pick_dtype, use_one_thread_after_fork
from mtkit.search.step import Hypothesis
from mtkit.text.parallel import ExpectedTags, describe_tags, extend_command, tagged
from mtkit.text.segmentation import join_parts, split_line, split_tags
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.tokenizer_training import fault_of_new, without_last
from mtkit.text.vocabulary import UNKNOWN_TEXT
from mtkit.translation.decode import Model, ScoredTranslation, decode, elect, log_probs_of, source_attention
from mtkit.translation.scores import Utility

WINDOW_LINES = 4000
WINDOW_CHARACTERS = 1_000_000
STEP_ELEMENTS = 2048  # log-probabilities of a step, sentences x beam x vocabulary, for each of batch_tokens
LONGEST_SHOWN = 40  # characters of a prefix that a message shows

# What is told of a line, behind "line N".
NOTHING_FOUND = (
    "has no translation, and is left blank: min_length, no_repeat_ngram or other settings of decoding forbid every way "
    "to an end"
)
NOT_A_NUMBER = (
    "has no translation, and is left blank: the model's log-probabilities are not numbers (NaN); its weights are "
    "damaged, or too large for this precision"
)
UNKNOWN_PREFIX = "has a prefix that the target vocabulary cannot spell; the model reads <unk> in it"

BREAKS = re.compile(r"[\n\r\0]")
SILENCE = Hypothesis([], 0.0, 0.0)  # the translation of nothing, which is certain


@dataclass(frozen=True)
class Translation:
    """A text and its score, higher is better.

    Of a beam it is the log-probability divided by the length penalty, of a sample the log-probability, and of what
    samples have elected the mean utility, 0 to 100.
    """

    text: str
    score: float


@dataclass(frozen=True)
class TranslatedLine:
    """The translations of one line, best first; a blank line has one blank translation."""

    translations: list[Translation]
    num_parts: int  # more than one: the line was too long for the model and was split
    notes: tuple[str, ...] = ()  # what went wrong, to be read behind "line N": nothing was found, a strange prefix

    @property
    def text(self) -> str:
        """The best one."""
        return self.translations[0].text


@dataclass(frozen=True)
class _Part:
    """What the model sees: a line, or a part of a long one."""

    line: int
    tokens: list[int]  # none where nothing is left after normalisation: there is nothing to translate
    separator: str  # stands between this part's translation and the next
    prefix: list[int]  # how its translation begins
    words: list[str] | None = None  # of each token the source word, blank for tags; only where they are copied
    prefix_texts: list[str] | None = None  # of each token of the prefix; only where they take the place of <unk>


class Translator:
    """Translates lines with one model, or several as one; made by load()."""

    def __init__(self, model: Model, tokenizer: Tokenizer, config: Config, untrained_tags: Sequence[str] = ()) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        decoding = config.decoding
        special = tokenizer.specials.target
        self._unknown = special.unknown if tokenizer.target_shows_unknown else None
        said = None if decoding.unknown == "ban" else self._unknown
        self._forbidden = tuple(token for token in special.silent if token != said)
        self._replaces = self._unknown is not None and decoding.unknown != "keep"
        untrained = len(model.untrained)
        # Prefixes and given translations are spelled without pieces that no training has seen.
        self._target_speller = without_last(tokenizer, untrained) if untrained else tokenizer
        # Models of earlier versions may have been trained with tags that are several pieces.
        self.tags = tuple(dict.fromkeys([*tokenizer.tags, *config.data.train_tags]))
        self._expected_tags = ExpectedTags(self.tags, _needs_tags(model, tokenizer, config, untrained_tags))
        self._told_of_tags = False
        self._process = os.getpid()
        self._utility = Utility(decoding.mbr_utility, config.languages.target) if decoding.mbr_samples else None

    def translate(
        self, lines: Iterable[str], prefixes: Iterable[str] | None = None, tag: str | None = None
    ) -> list[str]:
        """The best translation of each line, in order; a blank line gives a blank one.

        Each translation begins with the prefix of its line; a blank prefix is none. Lines that lack the tag that the
        model was trained with are told of once, as a UserWarning; so is what goes wrong with a line, each time.
        """
        require_list(lines, "lines")
        if tag is None:
            lines = list(checked_lines(lines, "lines"))
            self._warn_of_tags(lines)
        texts = []
        for number, line in enumerate(self.translate_lines(lines, tag=tag, prefixes=prefixes), start=1):
            for note in line.notes:
                warnings.warn(f"line {number:,} {note}", stacklevel=2)
            texts.append(line.text)
        return texts

    def translate_lines(
        self,
        lines: Iterable[str],
        num_best: int = 1,
        at_once: bool | Callable[[], bool] = False,
        tag: str | None = None,
        prefixes: Iterable[str] | None = None,
        done: Callable[[int], object] | None = None,
    ) -> Iterator[TranslatedLine]:
        """Up to num_best translations of each line, in order, in constant memory for any number of lines.

        Lines are gathered into windows, sorted by length and put into batches; at_once answers each as it comes. A
        function given as at_once is asked after each line whether to answer now what has come. A tag
        tells a multilingual model what is wanted; it is put before each line, which may also begin with it as it is.
        There are as many prefixes as lines, or it is a DataError. A line that is split has its prefix before its first
        part, and its tag before each. No line is warned of; tag_fault tells of which to warn. After each batch, done is
        called with the number of further lines whose translation has been found.
        """
        require_list(lines, "lines")
        lines = checked_lines(lines, "lines")
        if prefixes is not None:
            require_list(prefixes, "prefixes")
            prefixes = checked_lines(prefixes, "prefixes")
        num_best = require_count(num_best, "num_best")
        self._require_own_process()
        if tag is not None:
            self.require_tag(tag)
            lines = (tagged(line, tag) for line in lines)
        return self._translated(lines, num_best, at_once, prefixes, done or _nothing)

    def tag_fault(self, line: str) -> str | None:
        """What to warn of if a line lacks the tag that the model was trained with, or begins with an unknown one."""
        return self._expected_tags.fault(line)

    def _warn_of_tags(self, lines: Sequence[str]) -> None:
        """Told once for each translator, to whoever called its method."""
        if self._told_of_tags:
            return
        for number, line in enumerate(lines, start=1):
            if fault := self.tag_fault(line):
                self._told_of_tags = True
                warnings.warn(f"line {number:,} {fault}; others are not told of", stacklevel=3)
                return

    def _require_own_process(self) -> None:
        """A GPU cannot be used by a child of the process that it was first used in."""
        if self.model.device.type != "cpu" and os.getpid() != self._process:
            raise MtkitError(
                f"this model was loaded on {self.model.device} before the process was forked, and a forked child "
                "cannot use it; load the model in each child, or start them by another method than fork"
            )

    def require_tag(self, tag: str) -> None:
        """Refuse a tag that the model does not know."""
        if not isinstance(tag, str):
            raise TypeError(f"tag: found {shown(tag)}, wants a str such as '<2de>'")
        if tag.split() != [tag]:
            raise MtkitError(f"tag {tag!r}: wants one word, without spaces; {describe_tags(self.tags)}")
        if tag not in self.tags:
            told = f"tag {tag}: the model does not know it; {describe_tags(self.tags)}"
            if fault_of_new(self.tokenizer, tag):
                raise MtkitError(told)
            raise MtkitError(
                f"{told}. `{extend_command('MODEL', [tag])}` adds it, and training with training.start_from LARGER "
                "teaches it"
            )

    def _translated(
        self,
        lines: Iterable[str],
        num_best: int,
        at_once: bool | Callable[[], bool],
        prefixes: Iterable[str] | None,
        done: Callable[[int], object],
    ) -> Iterator[TranslatedLine]:
        pairs = zip(lines, repeat("")) if prefixes is None else pair_lines(lines, prefixes, ("lines", "prefixes"))
        for window in _windows(pairs, at_once):
            lines, begun = [line for line, _ in window], [prefix for _, prefix in window]
            yield from self._translate_window(lines, begun, num_best, done)

    def _translate_window(
        self, lines: Sequence[str], prefixes: Sequence[str], num_best: int, done: Callable[[int], object]
    ) -> list[TranslatedLine]:
        parts = list(self._parts(lines, prefixes))
        order = [p for p, part in enumerate(parts) if part.tokens]
        order.sort(key=lambda p: -len(parts[p].tokens))  # long first: memory never grows
        found = [[SILENCE]] * len(parts)
        num_wanted = self.config.decoding.mbr_samples or num_best
        parts_left = Counter(parts[p].line for p in order)
        done(len(lines) - len(parts_left))
        for chosen in self._batches(order, parts, num_wanted):
            tokens, begun = [parts[p].tokens for p in chosen], [parts[p].prefix for p in chosen]
            for p, hypotheses in zip(chosen, self.search(tokens, num_wanted, begun), strict=True):
                if self._utility is not None:
                    hypotheses = [hypothesis for hypothesis in hypotheses if hypothesis.found] or hypotheses[:1]
                found[p] = hypotheses
            parts_left.subtract(parts[p].line for p in chosen)
            done(sum(parts_left[line] == 0 for line in {parts[p].line for p in chosen}))
        return self._joined(len(lines), parts, found, num_best)

    def _parts(self, lines: Sequence[str], prefixes: Sequence[str]) -> Iterator[_Part]:
        encoded = self._target_speller.encode_target(prefixes) if any(prefixes) else [[]] * len(lines)
        for number, tokens in enumerate(self.tokenizer.encode_source(lines)):
            tags, text = split_tags(lines[number], self.tags)
            tag_tokens = self._source_tokens(tags) if tags else []
            self._check_prefix(prefixes[number], encoded[number])
            prefix_texts = None
            if self._replaces and self._unknown in encoded[number]:
                [prefix_texts] = self._target_speller.target_texts([prefixes[number]])
            if len(tokens) == len(tag_tokens):
                yield _Part(number, [], "", encoded[number])  # a tag alone asks for nothing
            elif len(tokens) <= self.max_source_length:
                words = self._words(lines[number], len(tag_tokens))
                yield _Part(number, tokens, "", encoded[number], words, prefix_texts)
            else:
                yield from self._parts_of_long_line(number, text, tag_tokens, encoded[number], prefix_texts)

    def _words(self, text: str, num_tags: int = 0) -> list[str] | None:
        """For each source token the word that it is a part of, blank for tags; None where no words are copied."""
        if not self._replaces or self.config.decoding.unknown != "copy":
            return None
        return [""] * num_tags + self.tokenizer.source_words([text])[0][num_tags:]

    def _parts_of_long_line(
        self, number: int, text: str, tag_tokens: list[int], prefix: list[int], prefix_texts: list[str] | None
    ) -> Iterator[_Part]:
        """Whole sentences where they fit; where a single character has too many tokens, they are parted, too.

        What stood before the line as a tag stands before each part.
        """
        most = max(self.max_source_length - len(tag_tokens), 1)
        for part in split_line(text, lambda text: len(self._source_tokens(text)) <= most):
            tokens, words = self._source_tokens(part.text), self._words(part.text)
            for begin in range(0, max(len(tokens), 1), most):
                is_last = begin + most >= len(tokens)
                here = tokens[begin : begin + most]
                separator = part.separator if is_last else ""
                here_words = None if words is None else [*[""] * len(tag_tokens), *words[begin : begin + most]]
                whole = [*tag_tokens, *here] if here else []
                yield _Part(number, whole, separator, prefix, here_words, prefix_texts)
                if tokens:
                    prefix = []

    def _check_prefix(self, text: str, tokens: list[int]) -> None:
        limit = self.model.limits.target
        if limit is not None and len(tokens) >= limit:
            raise DataError(
                f"prefix '{text[:LONGEST_SHOWN]}' has {counted(len(tokens), 'token')}, and the model can say "
                f"{limit - 1:,}; shorten it"
            )

    @property
    def max_source_length(self) -> int:
        """Most tokens of a sentence: what the model was trained on, and can take with the end mark."""
        limit = self.model.limits.source
        most = self.config.data.max_length
        return most if limit is None else min(most, limit - 1)

    def _source_tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode_source([text])[0]

    def _batches(self, order: list[int], parts: list[_Part], num_wanted: int) -> Iterator[list[int]]:
        """Neighbours in order, at most batch_tokens: sentences x longest source x beam or samples.

        Where lines are short, the log-probabilities of a step take most of the memory; they are bounded, too.
        """
        decoding = self.config.decoding
        width = num_wanted if decoding.draws else decoding.beam_size
        most_in_step = decoding.batch_tokens * STEP_ELEMENTS // (width * self.model.elements_per_token)
        batch: list[int] = []
        most = 0
        for p in order:
            if not batch:
                most = max(1, min(most_in_step, decoding.batch_tokens // ((len(parts[p].tokens) + 1) * width)))
            batch.append(p)
            if len(batch) == most:
                yield batch
                batch = []
        if batch:
            yield batch

    def search(
        self, sentences: Sequence[Sequence[int]], num_best: int = 1, prefixes: Sequence[Sequence[int]] = ()
    ) -> list[list[Hypothesis]]:
        """The hypotheses of one batch of source tokens, as decode() gives them."""
        return decode(self.model, self.config.decoding, sentences, num_best, prefixes, self._forbidden)

    def _joined(
        self, num_lines: int, parts: list[_Part], found: list[list[Hypothesis]], num_best: int
    ) -> list[TranslatedLine]:
        tokens = [h.tokens for hypotheses in found for h in hypotheses]
        unknown_texts = self._unknown_texts(parts, found) if self._replaces else None
        texts = iter(self.tokenizer.decode_target(tokens, unknown_texts))
        lines: list[list[list[Translation]]] = [[] for _ in range(num_lines)]
        notes: list[dict[str, None]] = [{} for _ in range(num_lines)]
        for part, hypotheses in zip(parts, found, strict=True):
            notes[part.line] |= dict.fromkeys(self._notes(part, hypotheses))
            translations = [Translation(BREAKS.sub(" ", next(texts)), h.score) for h in hypotheses]
            lines[part.line].append(self._ranked(translations)[:num_best] if part.tokens else translations)
        separators: list[list[str]] = [[] for _ in range(num_lines)]
        for part in parts:
            separators[part.line].append(part.separator)
        joined = [_line(*both) for both in zip(lines, separators, strict=True)]
        return [replace(line, notes=tuple(told)) if told else line for line, told in zip(joined, notes, strict=True)]

    def _notes(self, part: _Part, hypotheses: list[Hypothesis]) -> Iterator[str]:
        """What is to be told of a part of a line."""
        if self._unknown is not None and self._unknown in part.prefix and part.tokens:
            yield UNKNOWN_PREFIX
        for hypothesis in hypotheses:
            if not hypothesis.found:
                yield NOT_A_NUMBER if math.isnan(hypothesis.log_prob) else NOTHING_FOUND

    def _unknown_texts(self, parts: list[_Part], found: list[list[Hypothesis]]) -> list[list[str]]:
        """For each hypothesis, in order, the texts that take the place of its unknown tokens."""
        pairs = [(part, h.tokens) for part, hypotheses in zip(parts, found, strict=True) for h in hypotheses]
        copied: dict[int, list[str]] = {}  # by pair, for each token the word that it attends to most
        if self.config.decoding.unknown == "copy":
            chosen = [p for p, (part, said) in enumerate(pairs) if self._unknown in said[len(part.prefix) :]]
            sources, targets = [pairs[p][0].tokens for p in chosen], [pairs[p][1] for p in chosen]
            budget = self.config.decoding.batch_tokens // self.config.decoding.beam_size
            for p, weights in zip(chosen, source_attention(self.model, sources, targets, budget), strict=True):
                copied[p] = _most_attended(weights, pairs[p][0].words or [])
        texts = []
        for p, (part, said) in enumerate(pairs):
            shown = copied.get(p, [UNKNOWN_TEXT] * len(said))
            if part.prefix_texts is not None:
                shown = [*part.prefix_texts[: len(part.prefix)], *shown[len(part.prefix) :]]
            texts.append([text for text, token in zip(shown, said, strict=False) if token == self._unknown])
        return texts

    def _ranked(self, translations: list[Translation]) -> list[Translation]:
        """Best first: a beam's different texts, all samples, or what they elect."""
        if not self.config.decoding.draws:
            return _different(translations)
        translations = sorted(translations, key=lambda translation: -translation.score)
        if self._utility is None:
            return translations
        elected = elect([translation.text for translation in translations], self._utility)
        return [Translation(text, score) for text, score in elected]

    def score(self, sources: Sequence[str], targets: Sequence[str], tag: str | None = None) -> list[ScoredTranslation]:
        """What the model thinks of the translation of each line; blank ones, of either side, are the end mark alone.

        A tag is put before each source, as translate_lines does. A line is scored whole, whatever its length; one that
        is longer than the model can take is a DataError.
        """
        require_list(sources, "sources")
        require_list(targets, "targets")
        sources = list(checked_lines(sources, "sources"))
        targets = list(checked_lines(targets, "targets"))
        if tag is None:
            self._warn_of_tags(sources)
        return list(self.score_lines(pair_lines(sources, targets, ("sources", "translations")), tag))

    def score_lines(
        self,
        pairs: Iterable[tuple[str, str]],
        tag: str | None = None,
        at_once: bool | Callable[[], bool] = False,
    ) -> Iterator[ScoredTranslation]:
        """The same for a stream of sources and translations, in order and in constant memory.

        at_once and tag_fault are as in translate_lines.
        """
        require_list(pairs, "pairs", "a list of sources with their translations; give it [(source, translation)]")
        pairs = checked_pairs(pairs)
        self._require_own_process()
        if tag is not None:
            self.require_tag(tag)
            pairs = ((tagged(source, tag), target) for source, target in pairs)
        return self._scored(pairs, at_once)

    def _scored(
        self, pairs: Iterable[tuple[str, str]], at_once: bool | Callable[[], bool]
    ) -> Iterator[ScoredTranslation]:
        decoding, number = self.config.decoding, 0
        for window in _windows(pairs, at_once):
            sources = self.tokenizer.encode_source([source for source, _ in window])
            targets = self._target_speller.encode_target([target for _, target in window])
            for both in zip(sources, targets, strict=True):
                number += 1
                self._check_lengths(number, *both)
            budget = decoding.batch_tokens // decoding.beam_size
            found = log_probs_of(self.model, sources, targets, budget)
            for target, log_probs in zip(targets, found, strict=True):
                yield ScoredTranslation(self.tokenizer.target_pieces([*target, self.model.marks.target_end]), log_probs)

    def _check_lengths(self, number: int, source: list[int], target: list[int]) -> None:
        limits = self.model.limits
        for side, tokens, limit in (("source", source, limits.source), ("target", target, limits.target)):
            if limit is not None and len(tokens) >= limit:
                raise DataError(
                    f"line {number:,}: the {side} has {counted(len(tokens), 'token')}, and the model can take "
                    f"{limit - 1:,}; split the line"
                )


def _nothing(_: int) -> None:
    """What is done after a batch unless somebody counts the lines."""


def _needs_tags(model: Model, tokenizer: Tokenizer, config: Config, untrained_tags: Sequence[str]) -> bool:
    """Whether the model was trained with a tag before every line.

    An imported model does not tell what it was trained on: Marian's tags are part of a vocabulary because they were.
    """
    if config.data.train:
        return all(corpus.tag is not None for corpus in config.data.train)
    tags = [tag for tag in tokenizer.tags if tag.startswith(">>") and tag.endswith("<<") and tag not in untrained_tags]
    if not tags or not tokenizer.is_shared:
        return bool(tags)
    first = model.members[0] if isinstance(model, Ensemble) else model
    untrained = set(first.output.untrained)
    return any(untrained.isdisjoint(tokens) for tokens in tokenizer.encode_source(tags))


def _most_attended(weights: Tensor, words: Sequence[str]) -> list[str]:
    """For each row of weights, (T, S), the word of the source token that it is largest at; tags have none."""
    places = [place for place, word in enumerate(words) if word]
    if not places:
        return [UNKNOWN_TEXT] * len(weights)
    return [words[places[i]] for i in weights[:, places].argmax(1).tolist()]


def _different(translations: list[Translation]) -> list[Translation]:
    """The first of each text: different tokens may be the same one."""
    first: dict[str, Translation] = {}
    for translation in translations:
        first.setdefault(translation.text, translation)
    return list(first.values())


def _line(parts: list[list[Translation]], separators: list[str]) -> TranslatedLine:
    """The n-th best of a split line joins the n-th best of its parts, the last one where there are fewer."""
    if not parts:  # so much white space that it was split, and nothing was left
        return TranslatedLine([Translation("", SILENCE.score)], 1)
    if len(parts) == 1:
        return TranslatedLine(parts[0], 1)
    joined = []
    for n in range(max(map(len, parts))):
        chosen = [part[min(n, len(part) - 1)] for part in parts]
        text = join_parts([c.text for c in chosen], separators)
        joined.append(Translation(text, sum(c.score for c in chosen) / len(chosen)))
    return TranslatedLine(_different(joined), len(parts))


def pair_lines(lines: Iterable[str], others: Iterable[str], names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Line n with the n-th of the others; DataError where there are not as many, which names them."""
    for number, (line, other) in enumerate(zip_longest(lines, others)):
        if line is None or other is None:
            fewer, more = names if line is None else reversed(names)
            raise DataError(f"found {number:,} of the {fewer}, but more {more}; line n of both goes together")
        yield line, other


def _windows(pairs: Iterable[tuple[str, str]], at_once: bool | Callable[[], bool]) -> Iterator[list[tuple[str, str]]]:
    window: list[tuple[str, str]] = []
    size = 0
    for line, other in pairs:
        window.append((line, other))
        size += len(line) + len(other)
        is_full = len(window) >= WINDOW_LINES or size >= WINDOW_CHARACTERS
        if is_full or (at_once() if callable(at_once) else at_once):
            yield window
            window, size = [], 0
    if window:
        yield window


def load(
    path: str | Path, overrides: Sequence[str] = (), precision: str = "fp32", ensemble: Sequence[str | Path] = ()
) -> Translator:
    """The translator of a run directory, a checkpoint in it, or a model bundle.

    overrides are settings such as "decoding.beam_size=1" or "device=cpu". precision is fp32, bf16 or fp64. Weights are
    used as they lie in the file where the device is the CPU and the precision fp32. The models of an ensemble speak
    with the first as one, by its settings; all have the same tokenizer.

    A process that is forked afterwards (by multiprocessing's fork, or a web server that loads before it forks) computes
    with one thread on the CPU, since PyTorch's other threads do not live on in it; a model on a GPU is an MtkitError
    there. Each gets all threads, and a GPU, by loading the model itself.
    """
    require_path(path, "path")
    if precision not in DTYPES:
        raise MtkitError(f"precision: found {shown(precision)}, wants one of {', '.join(DTYPES)}")
    require_texts(overrides, "overrides", 'a list of settings such as ["decoding.beam_size=1"]')
    require_list(ensemble, "ensemble", "a list of paths of models")
    for other in ensemble:
        require_path(other, "ensemble")
    bundle = open_and_tell(Path(path))
    model, tokenizer, config = _open(bundle, overrides, precision)
    if not ensemble:
        return Translator(model, tokenizer, config, bundle.untrained_tags)
    members = [model]
    for other in ensemble:
        member, others, others_config = _open(open_and_tell(Path(other)), [f"device={config.device}"], precision)
        if others.hash != tokenizer.hash:
            raise CheckpointError(f"{other}: its tokenizer is not that of {path}; the models of an ensemble share one")
        if member.marks != model.marks:
            raise CheckpointError(f"{other}: its model.start_token is not that of {path}; an ensemble begins as one")
        if config.decoding.unknown == "copy" and not others_config.model.has_attention:
            raise CheckpointError(f"{other}: has no attention, by which decoding.unknown copy finds source words")
        members.append(member)
    return Translator(Ensemble(members), tokenizer, config, bundle.untrained_tags)


def load_bundle(bundle: Bundle, overrides: Sequence[str] = (), precision: str = "fp32") -> Translator:
    """The translator of a bundle that is open, as load() makes it."""
    return Translator(*_open(bundle, overrides, precision), bundle.untrained_tags)


def _open(bundle: Bundle, overrides: Sequence[str], precision: str) -> tuple[TranslationModel, Tokenizer, Config]:
    use_one_thread_after_fork()
    config = bundle.config_with(overrides)
    device = pick_device(config.device)
    dtype = pick_dtype(precision, device)
    tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), bundle.tokenizer_path)
    bundle.require_own_tokenizer()
    sizes = (bundle.description["source_vocab_size"], bundle.description["target_vocab_size"])
    model = _filled(config, tokenizer, sizes, bundle.weights(), str(bundle.path))
    model.output.untrained = bundle.untrained
    return model.to(device, dtype).eval(), tokenizer, config


def translator_of(
    config: Config, tokenizer: Tokenizer, weights: dict[str, Tensor], untrained: Sequence[int] = ()
) -> Translator:
    """The translator of weights that are in memory, used where they are; the untrained tokens are never said."""
    sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    model = _filled(config, tokenizer, sizes, weights, config.name)
    model.output.untrained = list(untrained)
    return Translator(model.eval(), tokenizer, config)


def _filled(
    config: Config, tokenizer: Tokenizer, sizes: tuple[int, int], weights: dict[str, Tensor], where: str
) -> TranslationModel:
    model = empty_model(config.model, *sizes, tokenizer.specials)
    fill_model(model, weights, where)
    return model.requires_grad_(False)
