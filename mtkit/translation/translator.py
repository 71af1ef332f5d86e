"""The Python API: `load` opens a model; the Translator that it returns translates and scores lines."""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, repeat, zip_longest
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mtkit.bundle.bundle import Bundle
from mtkit.bundle.opening import open_and_tell
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
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
    say,
    shown,
)
from mtkit.models.interface import Ensemble, TranslationModel
from mtkit.models.registry import (
    PRECISIONS,
    empty_model,
    fill_model,
    pick_device,
    pick_run_precision,
    precision_of,
    run_dtype,
    shorten_lookups,
    speed_up,
    use_one_thread_after_fork,
)
from mtkit.models.transformer import MaskedModel
from mtkit.text.parallel import ExpectedTags, describe_tags, extend_command, tagged
from mtkit.text.tokenizer import Tokenizer, fault_of_new, without_last
from mtkit.text.vocabulary import UNKNOWN_TEXT, join_parts, split_line, split_tags, word_of_each_piece
from mtkit.translation.alignments import (
    AlignmentSettings,
    Heads,
    Links,
    Side,
    choose_heads,
    links_of,
    raw_words,
    shifted,
)
from mtkit.translation.decode import (
    Fusion,
    Model,
    ScoredTranslation,
    batches_by_length,
    can_refill,
    decode,
    elect,
    likeliest_next,
    log_probs_of,
    source_attention,
)
from mtkit.translation.scores import Utility
from mtkit.translation.search import BeamStep, Hypothesis, size_below
from mtkit.translation.shortlist import Shortlist

# Lines are gathered into windows, and the lines of a window are sorted by length. A window is full once it has this
# many lines or this many characters.
WINDOW_LINES = 4000
WINDOW_CHARACTERS = 1_000_000

# The maximum number of log-probabilities in a search step (sentences x beam x vocabulary), as a multiple of
# decoding.batch_tokens.
STEP_ELEMENTS = 2048

# If waiting sentences take the places of finished ones, up to this many batches are joined into one search. Rows are
# then empty only at the end of a search. Joining more would save little, and would need memory for more sentences.
MOST_JOINED = 16

MOST_ALIGNED = 4096  # source tokens in a batch that is aligned, since the weights of all heads are in memory at once
LONGEST_SHOWN = 40  # messages quote at most this many characters of a prefix

# Descriptions of problems with a line, which follow "line N" in a message.
NOTHING_FOUND = (
    "has no translation, and is left blank: min_length, no_repeat_ngram or other settings of decoding rule out every "
    "translation"
)
NOT_A_NUMBER = (
    "has no translation, and is left blank: the model's log-probabilities are not numbers (NaN); its weights are "
    "damaged, or too large for this precision"
)
CUT_OFF = (
    "has a translation that reached the maximum length, and may be cut off there; decoding.max_length_ratio and "
    "max_length_extra set the limit"
)
OUT_OF_POSITIONS = (
    "has a translation that fills all positions of the model, or of its language model, and may be cut off there; "
    "divide the line, or train with more positions (model.max_positions)"
)
CUT_SHORT = (
    "has a translation that may not be the best: the exact search was ended after decoding.search_steps prefixes; "
    "raise that, or shorten the line"
)
UNKNOWN_PREFIX = "has a prefix that the target vocabulary cannot spell; the model sees <unk> in it"

BREAKS = re.compile(r"[\n\r\0]")  # replaced by spaces in translations
BLANK = Hypothesis([], 0.0, 0.0)  # the translation of a blank line, with probability 1


@dataclass(frozen=True)
class Translation:
    """A translation and its score; a higher score is better.

    With beam search, the score is the log-probability divided by the length penalty, plus the coverage penalty, if any.
    With sampling, the score is the log-probability. With mask-predict, the score is the mean log-probability of the
    tokens and of the length. With minimum Bayes risk decoding (`decoding.mbr_samples`), the score is the mean utility,
    from 0 to 100. If a line was translated in parts, the score is the mean over the parts.
    """

    text: str
    score: float
    tokens: tuple[int, ...] = field(default=(), repr=False, compare=False)  # without the end mark; () if not needed
    alignment: Links | None = None  # links of source and target units; None unless `align_with` was called


@dataclass(frozen=True)
class TranslatedLine:
    """The translations of one line, best first; a blank line has one blank translation.

    `notes` describe problems, such as a missing translation.
    """

    translations: list[Translation]
    num_parts: int  # greater than 1 if the line was too long for the model and was split
    notes: tuple[str, ...] = ()  # descriptions of problems, such as a missing translation, worded to follow "line N"

    @property
    def text(self) -> str:
        """The text of the best translation."""
        return self.translations[0].text


@dataclass(frozen=True)
class _Part:
    """A line, or one part of a line that is too long for the model; each part is translated by itself."""

    line: int  # the index of the line in its window
    tokens: list[int]  # the source tokens; empty if there is nothing to translate, and for a language model
    separator: str  # put between the translation of this part and that of the next part
    prefix: list[int]  # target tokens that the translation must begin with
    words: list[str] | None = None  # source word of each token, "" for tags; None unless decoding.unknown is copy
    prefix_texts: list[str] | None = None  # the text of each prefix token, to be shown in place of <unk>
    units: list[int] | None = None  # index, in the whole line, of the unit of each token (see Side), if aligning
    is_generated: bool = False  # whether a language model continues the prefix

    @property
    def is_searched(self) -> bool:
        """Whether there is anything to search for; the translation of a blank line is blank."""
        return self.is_generated or bool(self.tokens)

    @property
    def length(self) -> int:
        """The number of tokens of the source or, for a language model, of the prefix."""
        return len(self.prefix) if self.is_generated else len(self.tokens)


# The source tokens of each sentence, and the target tokens with which the translation of each sentence must begin.
Batch = tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]


class Engine(Protocol):
    """Another engine, such as CTranslate2, that searches for translations in place of PyTorch."""

    def decode(
        self, decoding: DecodingConfig, batches: Iterable[Batch], num_best: int, forbidden: Sequence[int]
    ) -> Iterator[list[list[Hypothesis]]]:
        """Yields for each batch, in order, the hypotheses that the function `decode` returns for a batch.

        A batch holds the source tokens of each sentence, and the target tokens with which its translation must begin.
        """

    @property
    def precision(self) -> str:
        """The precision in which the engine computes, such as "int8"."""


class Translator:
    """Translates and scores lines with a model, or with an ensemble of models; made by `load`.

    Example:
        translator = mtkit.load("runs/de-en", ["decoding.beam_size=4"])
        translator.translate(["Guten Morgen.", "Danke!"])                  # a list of two texts
        best = next(translator.translate_lines(["Danke!"], num_best=3))    # best.translations: 3 texts with scores
        translator.score(["Danke!"], ["Thank you!"])[0].log_prob

    Lines and texts are ordinary, untokenised str. Arguments of a wrong type raise TypeError; wrong values raise
    MtkitError, or its subclass DataError if lines are wrong.

    Attributes: `model`; `tokenizer`; `config`, the model's settings, of which `config.decoding` controls the search;
    `tags`, a tuple of the tags that a multilingual model knows; `engine`, which searches in place of PyTorch, or
    `None`; `fusion`, a language model that takes part in the search, or `None`; `shortlist`, from which the lists for
    `decoding.shortlist` are made, or `None`.

    With a language model (`task: language_model`), use `generate`, `generate_lines` and `next_tokens` instead of
    `translate` and `translate_lines`; the sources given to `score` are blank.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        config: Config,
        untrained_tags: Sequence[str] = (),
        engine: Engine | None = None,
        tells_cut_off: bool = False,
        fusion: Fusion | None = None,
        shortlist: Shortlist | None = None,
    ) -> None:
        self.model = model
        self.shortlist = shortlist
        self.engine = engine
        self.fusion = fusion
        self.tokenizer = tokenizer
        self.config = config
        decoding = config.decoding
        special = tokenizer.specials.target
        self._unknown = special.unknown if tokenizer.target_shows_unknown else None
        allowed = None if decoding.unknown == "ban" else self._unknown
        self._forbidden = tuple(token for token in special.never_generated if token != allowed)
        self._replaces = self._unknown is not None and decoding.unknown != "keep"
        untrained = len(model.untrained)
        # This tokenizer encodes prefixes and given translations, without the pieces that were added after training.
        self._target_speller = without_last(tokenizer, untrained) if untrained else tokenizer
        # In older models, a tag may consist of several pieces; such tags are found only in the settings.
        self.tags = tuple(dict.fromkeys([*tokenizer.tags, *config.data.train_tags]))
        self._expected_tags = ExpectedTags(self.tags, _needs_tags(model, tokenizer, config, untrained_tags))
        self._tells_cut_off = tells_cut_off  # whether translations that reach the maximum length are reported
        self._has_warned_of_tags = False
        self._process = os.getpid()
        self._utility = Utility(decoding.mbr_utility, config.languages.target) if decoding.mbr_samples else None
        self._aligner: _Aligner | None = None

    def align_with(self, settings: AlignmentSettings) -> None:
        """Make translations and scores include word alignments from now on; costs one more forward pass per batch.

        The words are those of the line as given, including tags in the line. A tag that is passed as the argument `tag`
        is not counted as a word. Even if a line is translated in parts, links count the words of the whole line. Raises
        MtkitError if the model has no attention to the source, or lacks the layer or head that `settings` name.
        """
        model, guided = self.config.model, self.config.guided_head
        shape = model.source_attention
        if isinstance(self.model, Ensemble):  # its only attention is the mean over heads of the members' last layers
            shape, guided = (min(1, shape[0]), 1), None
        self._aligner = _Aligner(settings, choose_heads(settings, shape, guided))

    def translate(
        self, lines: Iterable[str], prefixes: Iterable[str] | None = None, tag: str | None = None
    ) -> list[str]:
        """Return the best translation of each line, in order; a blank line has a blank translation.

        `prefixes` holds, for each line, a text that its translation must begin with, or "". `tag` is put before each
        line; "<2de>", for example, may tell a multilingual model to translate to German.

        Issues a UserWarning for each line with a problem, such as a missing translation. If `tag` is not given, also
        issues a UserWarning for the first line whose tag is missing or unknown (see `tag_fault`), but only once for
        each Translator.

        Raises TypeError if `lines` is a single text or an item is not a str. Raises MtkitError if the model is a
        language model, if it does not know `tag`, or if `prefixes` is given to a masked model (cmlm). Raises DataError
        if the numbers of prefixes and lines differ, or if a prefix is too long for the model.
        """
        require_list(lines, "lines")
        if tag is None:
            lines = list(checked_lines(lines, "lines"))
            self._warn_of_tags(lines)
        return _texts_with_warnings(self.translate_lines(lines, tag=tag, prefixes=prefixes))

    def translate_lines(
        self,
        lines: Iterable[str],
        num_best: int = 1,
        at_once: bool | Callable[[], bool] = False,
        tag: str | None = None,
        prefixes: Iterable[str] | None = None,
        done: Callable[[int], object] | None = None,
    ) -> Iterator[TranslatedLine]:
        """Yield, for each line in order, a TranslatedLine with up to `num_best` translations.

        `lines` may be any iterable of str; memory use does not grow with its length. `prefixes` and `tag` are as in
        `translate`. A line may have fewer than `num_best` translations: minimum Bayes risk decoding returns at most
        `decoding.mbr_samples`, mask-predict at most `decoding.length_candidates`; beam search may find fewer than
        `num_best`, above all if `num_best` exceeds `decoding.beam_size`.

        A few thousand lines at a time are read, sorted by length and translated in batches. With `at_once=True`, each
        line is translated before the next is read. If `at_once` is a function, it is called after each line is read;
        if it returns `True`, the lines read so far are translated. The grouping does not affect the translations.

        A line that is too long for the model is split into parts. Each part gets the tag; only the first part gets the
        prefix. Problems are not issued as warnings, but described in `TranslatedLine.notes`. Tags are not checked; see
        `tag_fault`.

        `done`, if given, is called after each batch with the number of lines that the batch completed.

        Raises the same errors as `translate`. An error about a line or prefix is raised when that line is reached.
        """
        self.require_task("translation")
        require_list(lines, "lines")
        lines = checked_lines(lines, "lines")
        if prefixes is not None:
            if isinstance(self.model, MaskedModel):
                raise MtkitError(
                    "prefixes: a model of architecture cmlm cannot begin with a given text; leave them out"
                )
            require_list(prefixes, "prefixes")
            prefixes = checked_lines(prefixes, "prefixes")
        num_best = require_count(num_best, "num_best")
        self._require_own_process()
        if tag is None:
            return self._translated(lines, num_best, at_once, prefixes, done or _nothing)
        self.require_tag(tag)
        lines = (tagged(line, tag) for line in lines)
        found = self._translated(lines, num_best, at_once, prefixes, done or _nothing)
        return found if self._aligner is None else (self._without_tag(line, tag) for line in found)

    def generate(self, prefixes: Iterable[str]) -> list[str]:
        """Return, for each prefix, the prefix with its continuation by a language model; "" stands for no prefix.

        Issues a UserWarning for each text with a problem. Raises the same errors as `generate_lines`.
        """
        return _texts_with_warnings(self.generate_lines(prefixes))

    def generate_lines(
        self,
        prefixes: Iterable[str],
        num_best: int = 1,
        at_once: bool | Callable[[], bool] = False,
        done: Callable[[int], object] | None = None,
    ) -> Iterator[TranslatedLine]:
        """Yield, for each prefix in order, up to `num_best` texts that begin with it, generated by a language model.

        The texts are searched for or sampled as `config.decoding` says; equal prefixes get equal samples. `at_once` and
        `done` are as in `translate_lines`. Raises TypeError for arguments of a wrong type; MtkitError if the model is
        no language model; DataError if a prefix is too long for the model.
        """
        self.require_task("language_model")
        require_list(prefixes, "prefixes")
        prefixes = checked_lines(prefixes, "prefixes")
        num_best = require_count(num_best, "num_best")
        self._require_own_process()
        return self._generated(prefixes, num_best, at_once, done or _nothing)

    def next_tokens(self, prefixes: Sequence[str], count: int) -> list[list[tuple[str, float]]]:
        """Return, for each prefix, (piece, probability) of the `count` most probable next pieces, best first.

        The end mark counts as a piece, so it may be one of the results. The model must be a language model. Raises the
        errors of `generate_lines`.
        """
        self.require_task("language_model")
        require_list(prefixes, "prefixes")
        texts = list(checked_lines(prefixes, "prefixes"))
        count = require_count(count, "count")
        self._require_own_process()
        encoded = self._target_speller.encode_target(texts)
        for text, tokens in zip(texts, encoded, strict=True):
            self._check_prefix(text, tokens)
        found: list[list[tuple[str, float]]] = [[] for _ in texts]
        for chosen in batches_by_length([len(tokens) + 1 for tokens in encoded], self.config.decoding.batch_tokens):
            rows = likeliest_next(self.model, [[] for _ in chosen], [encoded[i] for i in chosen], count)
            for i, row in zip(chosen, rows, strict=True):
                pieces = self.tokenizer.target_pieces([token for token, _ in row])
                found[i] = list(zip(pieces, (probability for _, probability in row), strict=True))
        return found

    def require_task(self, task: str) -> None:
        """Raise MtkitError if the model was not trained for `task`, which is "translation" or "language_model"."""
        if self.config.task == task:
            return
        if task == "translation":
            raise MtkitError(f"{self.config.name}: is a language model, which cannot translate; use generate or score")
        raise MtkitError(f"{self.config.name}: is a translation model; only a language model generates from a prefix")

    def score(self, sources: Sequence[str], targets: Sequence[str], tag: str | None = None) -> list[ScoredTranslation]:
        """Return the log-probabilities of given translations; `targets[i]` is the translation of `sources[i]`.

        A blank source or target is scored as the end mark alone. `tag` is put before each source. Lines are never
        split, and a language model does not read the sources. If `tag` is not given, issues a UserWarning about missing
        or unknown tags, as `translate` does.

        Raises TypeError if an argument is a single text or an item is not a str; MtkitError if the model does not know
        `tag`; DataError if there are more sources than targets or vice versa, or if a line is longer than the model
        accepts.
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
        """Yield the log-probabilities of given translations, in order.

        `pairs` may be any iterable of (source, translation); memory use does not grow with its length. `at_once` is as
        in `translate_lines`, `tag` as in `score`. Raises the same errors as `score`, but issues no warnings about tags;
        see `tag_fault`.
        """
        require_list(pairs, "pairs", "a list of sources with their translations; give it [(source, translation)]")
        pairs = checked_pairs(pairs)
        self._require_own_process()
        if tag is not None:
            self.require_tag(tag)
            pairs = ((tagged(source, tag), target) for source, target in pairs)
        found = self._scored(pairs, at_once)
        if tag is None or self._aligner is None:
            return found
        return (replace(line, alignment=self._links_without_tag(line.alignment, tag)) for line in found)

    def align_lines(
        self,
        pairs: Iterable[tuple[str, str]],
        tag: str | None = None,
        at_once: bool | Callable[[], bool] = False,
    ) -> Iterator[Links]:
        """Yield the word alignments of given translations, in order; `align_with` must have been called.

        The arguments and errors are those of `score_lines`. If the source or the translation is blank, there are no
        links.
        """
        if self._aligner is None:
            raise MtkitError("align_lines: how to align is not known; call align_with(AlignmentSettings()) first")
        require_list(pairs, "pairs", "a list of sources with their translations; give it [(source, translation)]")
        pairs = checked_pairs(pairs)
        self._require_own_process()
        if tag is not None:
            self.require_tag(tag)
            pairs = ((tagged(source, tag), target) for source, target in pairs)
        found = self._all_aligned(pairs, at_once)
        return found if tag is None else (self._links_without_tag(links, tag) for links in found)

    def tag_fault(self, line: str) -> str | None:
        """Return what is wrong with the tag of a line, such as "begins with none of the model's tags", or `None`.

        An unknown tag is always wrong. A missing tag is wrong if the model was trained with a tag before every line.
        """
        return self._expected_tags.fault(line)

    def require_tag(self, tag: str) -> None:
        """Raise MtkitError if the model does not know the tag; raise TypeError if the tag is not a str."""
        if not isinstance(tag, str):
            raise TypeError(f"tag: found {shown(tag)}, wants a str such as '<2de>'")
        if tag.split() != [tag]:
            raise MtkitError(f"tag {tag!r}: wants one word, without spaces; {describe_tags(self.tags)}")
        if tag not in self.tags:
            unknown = f"tag {tag}: the model does not know it; {describe_tags(self.tags)}"
            if fault_of_new(self.tokenizer, tag):
                raise MtkitError(unknown)
            raise MtkitError(
                f"{unknown}. `{extend_command('MODEL', [tag])}` adds it, and training with training.start_from LARGER "
                "teaches it"
            )

    @property
    def precision(self) -> str:
        """The precision in which the model (of an ensemble, the first model) translates, such as "fp32" or "int8"."""
        if self.engine is not None:
            return self.engine.precision
        return precision_of(self.model.members[0] if isinstance(self.model, Ensemble) else self.model)

    @property
    def max_source_length(self) -> int:
        """The maximum length of a source, in tokens; a longer source is split into parts.

        This is `data.max_length`, or the limit of the model if that is lower.
        """
        limit = self.model.limits.source
        most = self.config.data.max_length
        return most if limit is None else min(most, limit - 1)

    def search(
        self,
        sentences: Sequence[Sequence[int]],
        num_best: int = 1,
        prefixes: Sequence[Sequence[int]] = (),
        watch: Callable[[BeamStep], None] | None = None,
        rooms: Sequence[int] | None = None,
        left: Callable[[list[int]], object] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses that `decode` finds for one batch of sentences with this translator's settings.

        `watch`, if given, is called after each step of beam search; only searches with PyTorch can be watched. If
        `rooms` is given, sentence n may only be in a batch of at most `rooms[n]` sentences; the other sentences wait.
        `left`, if given, is called from time to time with the indices of sentences that are done. `rooms` and `left`
        are for PyTorch only.
        """
        decoding, forbidden = self.config.decoding, self._forbidden
        if self.engine is None:
            return decode(
                self.model,
                decoding,
                sentences,
                num_best,
                prefixes,
                forbidden,
                self.fusion,
                watch,
                self.shortlist,
                rooms,
                left,
            )
        assert watch is None
        assert rooms is None
        [found] = self.engine.decode(decoding, [(sentences, prefixes)], num_best, forbidden)
        return found

    @property
    def _refills(self) -> bool:
        """Whether waiting sentences take the places of finished sentences in a batch.

        `True` if `decoding.refill` asks for it, and the models and the kind of search allow it (see `can_refill`).
        """
        wanted = {"on": True, "off": False, "auto": self.model.device.type != "cpu"}[self.config.decoding.refill]
        return wanted and self.engine is None and can_refill(self.model, self.config.decoding, self.fusion)

    def _searched(
        self, batches: Iterable[Batch], num_best: int, left: Callable[[int, list[int]], None]
    ) -> Iterator[list[list[Hypothesis]]]:
        """Yields for each batch, in order, the hypotheses that a search with this translator's settings finds.

        From time to time, `left` is called with the number of a batch, and the indices of its sentences that are done.
        """
        if self.engine is not None:
            yield from self.engine.decode(self.config.decoding, batches, num_best, self._forbidden)
            return
        for number, (sentences, prefixes) in enumerate(batches):
            rooms = None
            if self._refills:
                lengths = [len(sentence) for sentence in (sentences if self.model.reads_source else prefixes)]
                rooms = [self._room(length, num_best) for length in lengths]
            yield self.search(sentences, num_best, prefixes, rooms=rooms, left=partial(left, number))

    # Translating: lines to parts, parts to batches, and hypotheses back to lines.

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
            window_lines, window_prefixes = [line for line, _ in window], [prefix for _, prefix in window]
            yield from self._search_window(
                list(self._parts(window_lines, window_prefixes)), len(window), num_best, done
            )

    def _generated(
        self,
        prefixes: Iterable[str],
        num_best: int,
        at_once: bool | Callable[[], bool],
        done: Callable[[int], object],
    ) -> Iterator[TranslatedLine]:
        for window in _windows(zip(prefixes, repeat("")), at_once):
            texts = [text for text, _ in window]
            parts = []
            for number, tokens in enumerate(self._target_speller.encode_target(texts)):
                self._check_prefix(texts[number], tokens)
                spelt = self._target_speller.target_texts([texts[number]])[0] if self._unknown in tokens else None
                parts.append(_Part(number, [], "", tokens, prefix_texts=spelt, is_generated=True))
            yield from self._search_window(parts, len(window), num_best, done)

    def _search_window(
        self, parts: list[_Part], num_lines: int, num_best: int, done: Callable[[int], object]
    ) -> list[TranslatedLine]:
        """Translates all parts of the lines in a window; returns up to `num_best` translations of each line, in order.

        A window is a group of lines that are translated together; `num_lines` is their number. From time to time,
        `done` is called with the number of lines that were completed since the call before.
        """
        order = [p for p, part in enumerate(parts) if part.is_searched]
        order.sort(key=lambda p: -parts[p].length)  # longest first, so that later batches need no more memory
        found = [[BLANK]] * len(parts)
        num_wanted = self.config.decoding.mbr_samples or num_best
        unfinished, parts_left = set(order), Counter(parts[p].line for p in order)
        done(num_lines - len(parts_left))
        batches = list(self._batches(order, parts, num_wanted))
        if self._refills:  # shortest first, so that the number of rows only falls during a search
            batches = [list(chain(*batches[n : n + MOST_JOINED]))[::-1] for n in range(0, len(batches), MOST_JOINED)]

        def left(number: int, places: Iterable[int]) -> None:
            """Marks the parts at `places` of a batch as finished; calls `done` with how many lines this completes.

            A line is complete when all its parts are finished. Parts that an earlier call marked have no effect.
            `number` is the index of the batch in `batches`.
            """
            finished = unfinished.intersection(batches[number][place] for place in places)
            unfinished.difference_update(finished)
            lines = [parts[p].line for p in finished]
            parts_left.subtract(lines)
            done(sum(parts_left[line] == 0 for line in set(lines)))

        rows = (([parts[p].tokens for p in chosen], [parts[p].prefix for p in chosen]) for chosen in batches)
        for (number, chosen), searched in zip(enumerate(batches), self._searched(rows, num_wanted, left), strict=True):
            for p, hypotheses in zip(chosen, searched, strict=True):
                if self._utility is not None:
                    hypotheses = [hypothesis for hypothesis in hypotheses if hypothesis.found] or hypotheses[:1]
                found[p] = hypotheses
            left(number, range(len(chosen)))
        return self._joined(num_lines, parts, found, num_best)

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
                yield _Part(number, [], "", encoded[number])  # blank, or nothing but tags
            elif len(tokens) <= self.max_source_length:
                words = self._words(lines[number], len(tag_tokens))
                units = self._source_units(lines[number], tokens, len(tag_tokens))
                yield _Part(number, tokens, "", encoded[number], words, prefix_texts, units)
            else:
                yield from self._parts_of_long_line(number, text, tags, tag_tokens, encoded[number], prefix_texts)

    def _words(self, text: str, num_tags: int = 0) -> list[str] | None:
        """Returns the source word that contains each token of `text`; `None` unless `decoding.unknown` is "copy".

        The first `num_tags` tokens are tags; instead of a word, they get "".
        """
        if not self._replaces or self.config.decoding.unknown != "copy":
            return None
        return [""] * num_tags + self.tokenizer.source_words([text])[0][num_tags:]

    def _parts_of_long_line(
        self,
        number: int,
        text: str,
        tags: str,
        tag_tokens: list[int],
        prefix: list[int],
        prefix_texts: list[str] | None,
    ) -> Iterator[_Part]:
        """Yields the parts of a line that is too long for the model; `text` is the line without its `tags`.

        The line is split between sentences if possible. Each part that has tokens begins with the tags of the line, and
        only the first of these parts has the prefix. If even a single character has too many tokens for the model,
        these tokens are divided among several parts. `number` is the index of the line in its window.
        """
        most = max(self.max_source_length - len(tag_tokens), 1)
        first_unit = self._num_units(tags, tag_tokens)
        for part in split_line(text, lambda text: len(self._source_tokens(text)) <= most):
            tokens, words = self._source_tokens(part.text), self._words(part.text)
            units = self._source_units(part.text, tokens, first_unit=first_unit)
            first_unit += self._num_units(part.text, tokens, continues=not part.separator)
            for begin in range(0, max(len(tokens), 1), most):
                is_last = begin + most >= len(tokens)
                here = tokens[begin : begin + most]
                separator = part.separator if is_last else ""
                here_words = None if words is None else [*[""] * len(tag_tokens), *words[begin : begin + most]]
                whole = [*tag_tokens, *here] if here else []
                here_units = None if units is None else [*[-1] * len(tag_tokens), *units[begin : begin + most]]
                yield _Part(number, whole, separator, prefix, here_words, prefix_texts, here_units)
                if tokens:
                    prefix = []

    @property
    def _num_positions(self) -> int | None:
        """The maximum number of target tokens, without the end mark, that the model and any `fusion` model accept.

        `None` if there is no limit.
        """
        models = [self.model, *([self.fusion.language_model] if self.fusion and self.fusion.weight else [])]
        return min((each.limits.target - 1 for each in models if each.limits.target is not None), default=None)

    def _check_prefix(self, text: str, tokens: list[int]) -> None:
        limit = self._num_positions
        if limit is not None and len(tokens) > limit:
            raise DataError(
                f"prefix '{text[:LONGEST_SHOWN]}' has {counted(len(tokens), 'token')}, and the model can take "
                f"{limit:,}; shorten it"
            )

    def _source_tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode_source([text])[0]

    def _room(self, length: int, num_wanted: int) -> int:
        """Returns the largest number of rows of a batch whose longest part has `length` tokens.

        The product of the number of rows, the length with the end mark, and the number of hypotheses per part is at
        most `decoding.batch_tokens`. The number of log-probabilities in a step is limited, too (STEP_ELEMENTS), since
        they need most of the memory if lines are short. The result is at least 1, even if that exceeds the limits. On a
        CPU, it is rounded down by `size_below`.
        """
        decoding = self.config.decoding
        width = num_wanted if decoding.draws else decoding.num_hypotheses
        most_in_step = decoding.batch_tokens * STEP_ELEMENTS // (width * self.model.elements_per_token)
        most = max(1, min(most_in_step, decoding.batch_tokens // ((length + 1) * width)))
        return size_below(most) if self.model.device.type == "cpu" else most

    def _batches(self, order: list[int], parts: list[_Part], num_wanted: int) -> Iterator[list[int]]:
        """Divides `order`, the indices of parts from the longest to the shortest, into batches of consecutive items.

        A batch has as many parts as its longest part allows; see `_room`.
        """
        batch: list[int] = []
        most = 0
        for p in order:
            if not batch:
                most = self._room(parts[p].length, num_wanted)
            batch.append(p)
            if len(batch) == most:
                yield batch
                batch = []
        if batch:
            yield batch

    def _joined(
        self, num_lines: int, parts: list[_Part], found: list[list[Hypothesis]], num_best: int
    ) -> list[TranslatedLine]:
        """Returns up to `num_best` translations of each line, joined from the translations of its parts.

        `found` holds the hypotheses of each part. `num_lines` is the number of lines to which the parts belong.
        """
        tokens = [h.tokens for hypotheses in found for h in hypotheses]
        unknown_texts = self._unknown_texts(parts, found) if self._replaces else None
        texts = iter(self.tokenizer.decode_target(tokens, unknown_texts))
        lines: list[list[list[Translation]]] = [[] for _ in range(num_lines)]
        notes: list[dict[str, None]] = [{} for _ in range(num_lines)]
        for part, hypotheses in zip(parts, found, strict=True):
            notes[part.line] |= dict.fromkeys(self._notes(part, hypotheses))
            translations = [Translation(BREAKS.sub(" ", next(texts)), h.score, self._kept(h)) for h in hypotheses]
            lines[part.line].append(self._ranked(translations)[:num_best] if part.is_searched else translations)
        if self._aligner is not None:
            lines = self._with_alignments(parts, lines)
        separators: list[list[str]] = [[] for _ in range(num_lines)]
        for part in parts:
            separators[part.line].append(part.separator)
        units = "words" if self._aligner is None else self._aligner.settings.units
        joined = [_line(*both, units) for both in zip(lines, separators, strict=True)]
        return [replace(line, notes=tuple(own)) if own else line for line, own in zip(joined, notes, strict=True)]

    def _notes(self, part: _Part, hypotheses: list[Hypothesis]) -> Iterator[str]:
        """Yields descriptions of problems with the translation of a part."""
        if self._unknown is not None and self._unknown in part.prefix and part.is_searched:
            yield UNKNOWN_PREFIX
        for hypothesis in hypotheses:
            if not hypothesis.found:
                yield NOT_A_NUMBER if math.isnan(hypothesis.log_prob) else NOTHING_FOUND
        if any(hypothesis.cut_short for hypothesis in hypotheses):
            yield CUT_SHORT
        if part.tokens and not self.config.decoding.draws:
            longest = max(self.config.decoding.max_length(len(part.tokens)), len(part.prefix))
            positions, length = self._num_positions, len(hypotheses[0].tokens)
            if positions is not None and positions <= min(length, longest):
                yield OUT_OF_POSITIONS
            elif self._tells_cut_off and length >= longest:
                yield CUT_OFF

    def _unknown_texts(self, parts: list[_Part], found: list[list[Hypothesis]]) -> list[list[str]]:
        """Returns, for each hypothesis of all parts in order, the texts to show in place of its <unk> tokens."""
        pairs = [(part, h.tokens) for part, hypotheses in zip(parts, found, strict=True) for h in hypotheses]
        copied: dict[int, list[str]] = {}  # by index of the pair: for each token, the source word it attends to most
        if self.config.decoding.unknown == "copy":
            chosen = [p for p, (part, tokens) in enumerate(pairs) if self._unknown in tokens[len(part.prefix) :]]
            sources, targets = [pairs[p][0].tokens for p in chosen], [pairs[p][1] for p in chosen]
            budget = self.config.decoding.batch_tokens // self.config.decoding.beam_size
            for p, weights in zip(chosen, source_attention(self.model, sources, targets, budget), strict=True):
                copied[p] = _most_attended(weights, pairs[p][0].words or [])
        texts = []
        for p, (part, tokens) in enumerate(pairs):
            shown = copied.get(p, [UNKNOWN_TEXT] * len(tokens))
            if part.prefix_texts is not None:
                shown = [*part.prefix_texts[: len(part.prefix)], *shown[len(part.prefix) :]]
            texts.append([text for text, token in zip(shown, tokens, strict=False) if token == self._unknown])
        return texts

    def _ranked(self, translations: list[Translation]) -> list[Translation]:
        """Returns the translations of a part, best first.

        Duplicate texts are removed, except after sampling without minimum Bayes risk decoding. Minimum Bayes risk
        decoding ranks the translations by utility, and the utility of a translation becomes the score.
        """
        if not self.config.decoding.draws:
            return _different(translations)
        translations = sorted(translations, key=lambda translation: -translation.score)
        if self._utility is None:
            return translations
        elected = elect([translation.text for translation in translations], self._utility)
        tokens_of = {translation.text: translation.tokens for translation in reversed(translations)}
        return [Translation(text, score, tokens_of[text]) for text, score in elected]

    # Alignments.

    def _source_units(
        self, text: str, tokens: Sequence[int], num_tags: int = 0, first_unit: int = 0
    ) -> list[int] | None:
        """Returns, for each source token, the index of the unit that it belongs to; `None` without alignments.

        A unit is a word of `text` or, if pieces are aligned, a token. `text` is a line, or a part of a line;
        `first_unit` is the index, in the whole line, of the first unit of the part. The first `num_tags` tokens are
        tags, which have the unit -1.
        """
        if self._aligner is None:
            return None
        pieces = self.tokenizer.source_pieces(tokens)
        units = self._aligner.units(pieces, text, self.tokenizer.normalize_source)
        return [-1] * num_tags + [unit + first_unit for unit in units[num_tags:]]

    def _num_units(self, text: str, tokens: Sequence[int], continues: bool = False) -> int:
        """Returns the number of units in a part of a line, which has this `text` and these `tokens`.

        The units are tokens if pieces are aligned, otherwise words. With `continues`, the next part goes on with the
        last word of this part, so this word is not counted.
        """
        if self._aligner is None or self._aligner.settings.units == "pieces":
            return len(tokens)
        return max(len(text.split()) - continues, 0)

    def _kept(self, hypothesis: Hypothesis) -> tuple[int, ...]:
        """Returns the tokens of a hypothesis, which aligning needs, or () if translations are not aligned."""
        return () if self._aligner is None else tuple(hypothesis.tokens)

    def _target_units(self, text: str, tokens: Sequence[int]) -> list[int]:
        assert self._aligner is not None
        return self._aligner.units(self.tokenizer.target_pieces(tokens), text, self.tokenizer.normalize_target)

    def _with_alignments(
        self, parts: list[_Part], lines: list[list[list[Translation]]]
    ) -> list[list[list[Translation]]]:
        """Returns the translations with their alignments added.

        `lines[i][j]` holds the translations of part j of line i, and the result has the same form. `parts` holds the
        parts of all lines, one after the other.
        """
        in_turn = [iter(of_parts) for of_parts in lines]
        lists = [next(in_turn[part.line]) for part in parts]
        pairs = [
            (Side(part.tokens, part.units or []), Side(each.tokens, self._target_units(each.text, each.tokens)))
            for part, translations in zip(parts, lists, strict=True)
            for each in translations
        ]
        found = iter(self._links(pairs))
        aligned = iter([[replace(each, alignment=next(found)) for each in translations] for translations in lists])
        of_line: list[list[list[Translation]]] = [[] for _ in lines]
        for part in parts:
            of_line[part.line].append(next(aligned))
        return of_line

    def _links(self, pairs: Sequence[tuple[Side, Side]]) -> list[Links]:
        """Returns the links of each pair (source side, target side); () if a side has no tokens.

        The links are read off the model's attention.
        """
        aligner = self._aligner
        assert aligner is not None
        chosen = [p for p, (source, target) in enumerate(pairs) if source.tokens and target.tokens]
        sources, targets = ([pairs[p][side].tokens for p in chosen] for side in (0, 1))
        budget = min(self.config.decoding.batch_tokens // self.config.decoding.beam_size, MOST_ALIGNED)
        shift = int(aligner.settings.step == "read")
        found = source_attention(self.model, sources, targets, budget, aligner.heads.weights, shift)
        links: list[Links] = [()] * len(pairs)
        for p, weights in zip(chosen, found, strict=True):
            source, target = pairs[p]
            links[p] = links_of(weights.float().numpy(), source.units, target.units, aligner.settings.threshold)
        return links

    def _without_tag(self, line: TranslatedLine, tag: str) -> TranslatedLine:
        translations = [
            replace(each, alignment=self._links_without_tag(each.alignment, tag)) for each in line.translations
        ]
        return replace(line, translations=translations)

    def _links_without_tag(self, links: Links | None, tag: str) -> Links:
        """Converts links of a line that begins with `tag` to links of the line without it; drops links of the tag.

        `None` counts as no links.
        """
        return shifted(links or (), source=-self._num_units(tag, self._source_tokens(tag)))

    # Scoring and checks.

    def _scored(
        self, pairs: Iterable[tuple[str, str]], at_once: bool | Callable[[], bool]
    ) -> Iterator[ScoredTranslation]:
        decoding, number = self.config.decoding, 0
        for window in _windows(pairs, at_once):
            sources, targets = self._encoded(window, number)
            number += len(window)
            budget = decoding.batch_tokens // decoding.beam_size
            found = log_probs_of(self.model, sources, targets, budget)
            alignments = repeat(None) if self._aligner is None else self._aligned(window, sources, targets)
            for target, log_probs, links in zip(targets, found, alignments, strict=False):
                yield ScoredTranslation(
                    self.tokenizer.target_pieces([*target, self.model.boundaries.target_end]), log_probs, links
                )

    def _encoded(self, window: Sequence[tuple[str, str]], number: int) -> tuple[list[list[int]], list[list[int]]]:
        """Returns the source tokens and the target tokens of the pairs in a window.

        A window holds pairs that are processed together; `number` is the number of pairs before it. Raises DataError,
        with the number of the line, if a line is too long.
        """
        reads_source = self.model.reads_source
        sources = self.tokenizer.encode_source([source if reads_source else "" for source, _ in window])
        targets = self._target_speller.encode_target([target for _, target in window])
        for source, target in zip(sources, targets, strict=True):
            number += 1
            self._check_lengths(number, source, target)
        return sources, targets

    def _all_aligned(self, pairs: Iterable[tuple[str, str]], at_once: bool | Callable[[], bool]) -> Iterator[Links]:
        number = 0
        for window in _windows(pairs, at_once):
            yield from self._aligned(window, *self._encoded(window, number))
            number += len(window)

    def _aligned(
        self, window: Sequence[tuple[str, str]], sources: Sequence[list[int]], targets: Sequence[list[int]]
    ) -> list[Links]:
        """Returns the links of each pair in `window`; `sources` and `targets` hold the tokens of the pairs."""
        pairs = []
        for (line, text), source, target in zip(window, sources, targets, strict=True):
            tags, _ = split_tags(line, self.tags)
            num_tags = len(self._source_tokens(tags)) if tags else 0
            units = self._source_units(line, source, num_tags) or []
            pairs.append((Side(source, units), Side(target, self._target_units(text, target))))
        return self._links(pairs)

    def _check_lengths(self, number: int, source: list[int], target: list[int]) -> None:
        limits = self.model.limits
        for side, tokens, limit in (("source", source, limits.source), ("target", target, limits.target)):
            if limit is not None and len(tokens) >= limit:
                raise DataError(
                    f"line {number:,}: the {side} has {counted(len(tokens), 'token')}, and the model can take "
                    f"{limit - 1:,}; split the line"
                )

    def _warn_of_tags(self, lines: Sequence[str]) -> None:
        """Issues a UserWarning for the first line whose tag is missing or unknown.

        A Translator issues this warning only once.
        """
        if self._has_warned_of_tags:
            return
        for number, line in enumerate(lines, start=1):
            if fault := self.tag_fault(line):
                self._has_warned_of_tags = True
                warnings.warn(f"line {number:,} {fault}; further lines are not reported", stacklevel=3)
                return

    def _require_own_process(self) -> None:
        """Raises MtkitError if this process was forked after the model was loaded on a GPU.

        A forked process cannot use such a model.
        """
        if self.model.device.type != "cpu" and os.getpid() != self._process:
            raise MtkitError(
                f"this model was loaded on {self.model.device} before the process was forked, and a forked child "
                "cannot use it; load the model in each child, or start them by another method than fork"
            )


def _texts_with_warnings(lines: Iterable[TranslatedLine]) -> list[str]:
    """Returns the text of each line; issues a UserWarning for each note.

    Python shows the warnings as caused by the code that called the public method, such as `translate`.
    """
    texts = []
    for number, line in enumerate(lines, start=1):
        for note in line.notes:
            warnings.warn(f"line {number:,} {note}", stacklevel=3)
        texts.append(line.text)
    return texts


def _nothing(_: int) -> None:
    """Does nothing; it is called as `done` if the caller of `translate_lines` gives no function `done`."""


def _needs_tags(model: Model, tokenizer: Tokenizer, config: Config, untrained_tags: Sequence[str]) -> bool:
    """Whether the model was trained with a tag before every line.

    The training data of an imported model is unknown. The data is assumed to have had tags if the vocabulary contains
    tags in the style of Marian, such as >>deu<<. Tags that were added after training do not count.
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
    """Returns, for each row of `weights` (T, S), the word of the source token with the largest weight.

    `words` holds the word of each source token, and "" for tags; a tag is never chosen. If there is no word at all,
    `UNKNOWN_TEXT` is returned for each row.
    """
    places = [place for place, word in enumerate(words) if word]
    if not places:
        return [UNKNOWN_TEXT] * len(weights)
    return [words[places[i]] for i in weights[:, places].argmax(1).tolist()]


def _different(translations: list[Translation]) -> list[Translation]:
    """Returns the translations in order, without those that have the same text as an earlier translation."""
    first: dict[str, Translation] = {}
    for translation in translations:
        first.setdefault(translation.text, translation)
    return list(first.values())


@dataclass(frozen=True)
class _Aligner:
    """The settings and attention heads with which a Translator aligns."""

    settings: AlignmentSettings
    heads: Heads

    def units(self, pieces: Sequence[str], text: str, normalize: Callable[[str], str]) -> list[int]:
        """Returns, for each of the `pieces` of a line, the index of its unit.

        A unit is the piece itself or, if words are aligned, the word of `text` that the piece belongs to. Words are
        separated by white space. `text` is the line before or after normalisation; `normalize` is the function that
        normalises it.
        """
        if self.settings.units == "pieces":
            return list(range(len(pieces)))
        return raw_words(word_of_each_piece(pieces), text, normalize)


def _line(parts: list[list[Translation]], separators: list[str], units: str) -> TranslatedLine:
    """Joins the translations of the parts of a line, and their alignments.

    `parts` holds the translations of each part, and `separators` the text that follows each part; the alignments link
    `units`, "words" or "pieces". The n-th translation of the line consists of the n-th translation of each part. A part
    that has fewer than n translations contributes its last one. Without parts, the translation is blank.
    """
    if not parts:  # a line of white space that was too long, which has no parts
        return TranslatedLine([Translation("", BLANK.score)], 1)
    if len(parts) == 1:
        return TranslatedLine(parts[0], 1)
    joined = []
    for n in range(max(map(len, parts))):
        chosen = [part[min(n, len(part) - 1)] for part in parts]
        text = join_parts([c.text for c in chosen], separators)
        links = _joined_links(chosen, separators, units)
        joined.append(Translation(text, sum(c.score for c in chosen) / len(chosen), alignment=links))
    return TranslatedLine(_different(joined), len(parts))


def _joined_links(parts: Sequence[Translation], separators: Sequence[str], units: str) -> Links | None:
    """Returns the links of a line, joined from those of its translated `parts`; `None` without alignments.

    In the links of a part, source units are already counted from the beginning of the line, but target units from the
    beginning of the part. So only target units are shifted. `separators` holds the text that follows each part; `units`
    is "words" or "pieces".
    """
    links: list[tuple[int, int]] = []
    num_pieces = 0
    for end, part in enumerate(parts, start=1):
        if part.alignment is None:
            return None
        first = num_pieces
        num_pieces += len(part.tokens)
        if units == "words":  # the part's first word may continue the last word before
            before = join_parts([each.text for each in parts[:end]], separators[:end])
            first = len(before.split()) - len(part.text.split())
        links += shifted(part.alignment, target=first)
    return tuple(sorted(set(links)))


def pair_lines(lines: Iterable[str], others: Iterable[str], names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Yields pairs of the n-th item of `lines` and the n-th item of `others`.

    Raises DataError if `lines` and `others` have different numbers of items. In the error message, `names[0]` stands
    for the items of `lines`, and `names[1]` stands for the items of `others`.
    """
    for number, (line, other) in enumerate(zip_longest(lines, others)):
        if line is None or other is None:
            fewer, more = names if line is None else reversed(names)
            raise DataError(
                f"the {fewer} end after {number:,}, but there are more {more}; line n of both belong together"
            )
        yield line, other


def _windows(pairs: Iterable[tuple[str, str]], at_once: bool | Callable[[], bool]) -> Iterator[list[tuple[str, str]]]:
    """Divides pairs of lines into windows; yields each window, a list of the pairs that are processed together.

    A window ends when it is full. If `at_once` is `True`, every pair is a window of its own. If `at_once` is a
    function, it is called after each pair, and the window also ends if the function returns `True`.
    """
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


# Opening models.


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    precision: str = "fp32",
    ensemble: Sequence[str | Path] = (),
    language_model: str | Path | None = None,
) -> Translator:
    """Open a model and return a Translator that searches with PyTorch.

    `overrides` are settings such as "decoding.beam_size=4". `precision` is one of PRECISIONS, such as "fp32".
    `ensemble` holds the paths of more models, whose probabilities are averaged with those of the model at `path`.
    `language_model` is the path of a language model for shallow fusion. Raises TypeError if an argument has a wrong
    type; CheckpointError if a model is missing or damaged, or the models do not fit together; ConfigError if a setting
    is wrong; MtkitError if `precision` is unknown or the device is not available.

    `mtkit.load` takes the same arguments, and can also open a model for another engine.
    """
    check_arguments(path, overrides, ensemble, language_model)
    if precision not in PRECISIONS:
        raise MtkitError(f"precision: found {shown(precision)}, wants one of {', '.join(PRECISIONS)}")
    bundle = open_and_tell(Path(path))
    model, tokenizer, config = _open(bundle, overrides, precision)
    tell_of_ablation(path, config)
    fusion = None
    if language_model is not None:
        fusion = _fusion(language_model, model, tokenizer, config, path, precision)
    if not ensemble:
        return _translator(model, tokenizer, config, bundle, overrides, fusion)
    members = [model]
    for other in ensemble:
        member, member_tokenizer, member_config = _open(
            open_and_tell(Path(other)), [f"device={config.device}"], precision
        )
        if isinstance(model, MaskedModel) or isinstance(member, MaskedModel):
            raise CheckpointError(f"{other}: a model of architecture cmlm is no member of an ensemble")
        if member_tokenizer.hash != tokenizer.hash:
            raise CheckpointError(f"{other}: its tokenizer is not that of {path}; the models of an ensemble share one")
        if member_config.task != config.task:
            raise CheckpointError(f"{other}: its task is {member_config.task}; that of {path} is {config.task}")
        if member.boundaries != model.boundaries:
            raise CheckpointError(
                f"{other}: its model.start_token, or whether model.ablate has shift, is not that of {path}; an "
                "ensemble has one input"
            )
        tell_of_ablation(other, member_config)
        if config.decoding.unknown == "copy" and not member_config.model.has_attention:
            raise CheckpointError(f"{other}: has no attention, by which decoding.unknown copy finds source words")
        members.append(member)
    return _translator(Ensemble(members), tokenizer, config, bundle, overrides, fusion)


def _fusion(
    path: str | Path, model: TranslationModel, tokenizer: Tokenizer, config: Config, other: str | Path, precision: str
) -> Fusion:
    """Opens the language model at `path` for shallow fusion with the translation model `model`.

    `tokenizer` and `config` belong to `model`; `other` is the path from which `model` was loaded, for error messages.
    Raises CheckpointError if the model at `path` is not a language model, or if `model` is not a translation model that
    decodes token by token. Also raises CheckpointError if the two differ in their target vocabulary, start token or end
    mark. Raises MtkitError if `config` asks for exact search, a shortlist or sampling, which do not work with shallow
    fusion. Sampling does not, because the scores of shallow fusion are not probabilities.
    """
    found, found_tokenizer, found_config = _open(open_and_tell(Path(path)), [f"device={config.device}"], precision)
    if found_config.task != "language_model":
        raise CheckpointError(f"{path}: its task is {found_config.task}; wants a language model to go with {other}")
    if config.task != "translation":
        raise CheckpointError(f"{other}: is a language model itself; another one goes with a translation model")
    sizes = {found_tokenizer.target_vocab_size, tokenizer.target_vocab_size}
    pieces = [each.target_pieces(range(min(sizes))) for each in (found_tokenizer, tokenizer)]
    if len(sizes) > 1 or pieces[0] != pieces[1]:
        raise CheckpointError(
            f"{path}: its target vocabulary is not that of {other}; train the language model with that tokenizer "
            "(tokenizer.model)"
        )
    if found.boundaries.start != model.boundaries.start or found.boundaries.target_end != model.boundaries.target_end:
        raise CheckpointError(f"{path}: its model.start_token is not that of {other}; both must begin alike")
    if isinstance(model, MaskedModel):
        raise CheckpointError(
            f"{other}: a model of architecture cmlm does not decode token by token, which fusion needs"
        )
    if config.decoding.stopping == "optimal":
        raise MtkitError("decoding.stopping: exact search goes without a language model; take exact or count")
    if config.decoding.shortlist is not None:
        raise MtkitError("decoding.shortlist: goes without a language model; set it to null")
    if config.decoding.draws:
        raise MtkitError("decoding: samples are drawn by probabilities, which the scores with a language model are not")
    tell_of_ablation(path, found_config)
    return Fusion(found, config.decoding.language_model_weight)


def tell_of_ablation(path: str | Path, config: Config) -> None:
    """Prints on stderr which parts of the model at `path` are ablated; prints nothing if there are none."""
    if ablated := getattr(config.model, "ablate", ()):
        say(f"{path}: parts of this model are taken out (model.ablate): {', '.join(ablated)}")


def _translator(
    model: Model,
    tokenizer: Tokenizer,
    config: Config,
    bundle: Bundle,
    overrides: Sequence[str],
    fusion: Fusion | None = None,
) -> Translator:
    """Returns a Translator for an open model, with the bundle's shortlist if the settings ask for one.

    The Translator reports translations that are cut off at the maximum length if `decoding.max_length_ratio` is "auto".
    It never reports texts that a language model generates, since no source determines their length. Raises
    CheckpointError if the settings ask for a shortlist that the bundle lacks.
    """
    is_auto = bundle.config_with(overrides).decoding.max_length_ratio == "auto" and model.reads_source
    shortlist = _shortlist(bundle) if config.decoding.shortlist is not None else None
    return Translator(
        model, tokenizer, config, bundle.untrained_tags, tells_cut_off=is_auto, fusion=fusion, shortlist=shortlist
    )


def _shortlist(bundle: Bundle) -> Shortlist:
    """Returns the shortlist of a bundle; if it has none, raises CheckpointError, which says how to make one."""
    found = Shortlist.of(bundle)
    if found is None:
        raise CheckpointError(
            f"{bundle.path}: has no shortlist; mtkit train CONFIG decoding.shortlist=auto makes one, also for a "
            "run that is finished; until then, leave decoding.shortlist at null"
        )
    return found


def check_arguments(
    path: str | Path,
    overrides: Sequence[str],
    ensemble: Sequence[str | Path],
    language_model: str | Path | None = None,
) -> None:
    """Raises TypeError if one of these arguments of `load` has a wrong type."""
    if language_model is not None:
        require_path(language_model, "language_model")
    require_path(path, "path")
    require_texts(overrides, "overrides", 'a list of settings such as ["decoding.beam_size=1"]')
    require_list(ensemble, "ensemble", "a list of paths of models")
    for other in ensemble:
        require_path(other, "ensemble")


def load_bundle(bundle: Bundle, overrides: Sequence[str] = (), precision: str = "fp32") -> Translator:
    """Returns a Translator for an open bundle.

    `overrides` are settings such as "decoding.beam_size=4"; `precision` is one of PRECISIONS, such as "fp32". Raises
    CheckpointError if the bundle is damaged, ConfigError if a setting is wrong, MtkitError if the device is not
    available.
    """
    return _translator(*_open(bundle, overrides, precision), bundle, overrides)


def _open(bundle: Bundle, overrides: Sequence[str], precision: str) -> tuple[TranslationModel, Tokenizer, Config]:
    use_one_thread_after_fork()
    config = bundle.with_length_limit(bundle.config_with(overrides))
    device = pick_device(config.device)
    precision = pick_run_precision(precision, device, config.model.d_model)
    tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), bundle.tokenizer_path)
    bundle.require_own_tokenizer()
    sizes = (bundle.description["source_vocab_size"], bundle.description["target_vocab_size"])
    model = _filled(config, tokenizer, sizes, bundle.weights(), str(bundle.path))
    model.output.untrained = bundle.untrained
    model = model.to(device, run_dtype(precision, device)).eval()
    speed_up(model, precision)
    shorten_lookups(model)
    return model, tokenizer, config


def translator_of(
    config: Config, tokenizer: Tokenizer, weights: dict[str, Tensor], untrained: Sequence[int] = ()
) -> Translator:
    """Returns a Translator for a model with these weights, which are not copied.

    The Translator never generates the tokens in `untrained`. Raises CheckpointError if the weights do not fit `config`.
    """
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
