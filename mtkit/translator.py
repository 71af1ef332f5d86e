"""A model and lines in, translations out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.decode import decode
from mtkit.formats.bundle import open_bundle
from mtkit.models.device import pick_device, pick_dtype
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import empty_model, fill_model
from mtkit.search.step import Hypothesis
from mtkit.text.splitting import join_parts, split_line
from mtkit.text.tokenizer import Tokenizer

WINDOW_LINES = 4000
WINDOW_CHARACTERS = 1_000_000

BREAKS = re.compile(r"[\n\r\0]")
SILENCE = Hypothesis([], 0.0, 0.0)  # the translation of nothing, which is certain


@dataclass(frozen=True)
class Translation:
    """A text and its score: the log-probability divided by the length penalty, higher is better."""

    text: str
    score: float


@dataclass(frozen=True)
class TranslatedLine:
    """The translations of one line, best first; a blank line has one blank translation."""

    translations: list[Translation]
    num_parts: int  # more than one: the line was too long for the model and was split

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


class Translator:
    """Translates lines with one model; made by load()."""

    def __init__(self, model: TranslationModel, tokenizer: Tokenizer, config: Config) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config

    def translate(self, lines: Iterable[str]) -> list[str]:
        """The best translation of each line, in order; a blank line gives a blank one."""
        if isinstance(lines, str):
            raise TypeError("translate() takes a list of lines; give it [line] for a single one")
        return [line.text for line in self.translate_lines(lines)]

    def translate_lines(
        self, lines: Iterable[str], num_best: int = 1, at_once: bool = False
    ) -> Iterator[TranslatedLine]:
        """Up to num_best translations of each line, in order, in constant memory for any number of lines.

        Lines are gathered into windows, sorted by length and put into batches; at_once answers each as it comes.
        """
        for window in _windows(lines, at_once):
            yield from self._translate_window(window, num_best)

    def _translate_window(self, lines: Sequence[str], num_best: int) -> list[TranslatedLine]:
        parts = list(self._parts(lines))
        order = [p for p, part in enumerate(parts) if part.tokens]
        order.sort(key=lambda p: -len(parts[p].tokens))  # long first: memory never grows
        found = [[SILENCE]] * len(parts)
        for chosen in self._batches(order, parts):
            for p, hypotheses in zip(chosen, self.search([parts[p].tokens for p in chosen], num_best), strict=True):
                found[p] = hypotheses
        return self._joined(len(lines), parts, found)

    def _parts(self, lines: Sequence[str]) -> Iterator[_Part]:
        for number, tokens in enumerate(self.tokenizer.encode_source(lines)):
            if len(tokens) <= self.max_source_length:
                yield _Part(number, tokens, "")
            else:
                yield from self._parts_of_long_line(number, lines[number])

    def _parts_of_long_line(self, number: int, line: str) -> Iterator[_Part]:
        """Whole sentences where they fit; where a single character has too many tokens, they are parted, too."""
        most = self.max_source_length
        for part in split_line(line, self._fits):
            tokens = self.tokenizer.encode_source([part.text])[0]
            for begin in range(0, max(len(tokens), 1), most):
                is_last = begin + most >= len(tokens)
                yield _Part(number, tokens[begin : begin + most], part.separator if is_last else "")

    @property
    def max_source_length(self) -> int:
        """Most tokens of a sentence: what the model was trained on, and can take with the end mark."""
        limit = self.model.limits.source
        most = self.config.data.max_length
        return most if limit is None else min(most, limit - 1)

    def _fits(self, text: str) -> bool:
        return len(self.tokenizer.encode_source([text])[0]) <= self.max_source_length

    def _batches(self, order: list[int], parts: list[_Part]) -> Iterator[list[int]]:
        """Neighbours in order, at most batch_tokens: sentences x longest source x beam."""
        decoding = self.config.decoding
        batch: list[int] = []
        most = 0
        for p in order:
            if not batch:
                most = max(1, decoding.batch_tokens // ((len(parts[p].tokens) + 1) * decoding.beam_size))
            batch.append(p)
            if len(batch) == most:
                yield batch
                batch = []
        if batch:
            yield batch

    def search(self, sentences: Sequence[Sequence[int]], num_best: int = 1) -> list[list[Hypothesis]]:
        """The best hypotheses of one batch of source tokens, none of them empty."""
        return decode(self.model, self.config.decoding, sentences, num_best)

    def _joined(self, num_lines: int, parts: list[_Part], found: list[list[Hypothesis]]) -> list[TranslatedLine]:
        texts = iter(self.tokenizer.decode_target([h.tokens for hypotheses in found for h in hypotheses]))
        lines: list[list[list[Translation]]] = [[] for _ in range(num_lines)]
        for part, hypotheses in zip(parts, found, strict=True):
            lines[part.line].append([Translation(BREAKS.sub(" ", next(texts)), h.score) for h in hypotheses])
        separators: list[list[str]] = [[] for _ in range(num_lines)]
        for part in parts:
            separators[part.line].append(part.separator)
        return [_line(*both) for both in zip(lines, separators, strict=True)]


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
    return TranslatedLine(joined, len(parts))


def _windows(lines: Iterable[str], at_once: bool) -> Iterator[list[str]]:
    window: list[str] = []
    size = 0
    for line in lines:
        window.append(line)
        size += len(line)
        if at_once or len(window) >= WINDOW_LINES or size >= WINDOW_CHARACTERS:
            yield window
            window, size = [], 0
    if window:
        yield window


def load(path: str | Path, overrides: Sequence[str] = (), precision: str = "fp32") -> Translator:
    """The translator of a run directory or a model bundle.

    overrides are settings such as "decoding.beam_size=1" or "device=cpu". precision is fp32, bf16 or fp64. Weights are
    used as they lie in the file where the device is the CPU and the precision fp32.
    """
    bundle = open_bundle(Path(path))
    config = load_config(bundle.config_path, overrides)
    device = pick_device(config.device)
    dtype = pick_dtype(precision, device)
    tokenizer = Tokenizer.load(bundle.tokenizer_path)
    bundle.require_own_tokenizer()
    model = empty_model(config.model, bundle.description["source_vocab_size"], bundle.description["target_vocab_size"])
    fill_model(model, bundle.weights(), str(bundle.path))
    model.requires_grad_(False)
    return Translator(model.to(device, dtype).eval(), tokenizer, config)
