"""A model and lines in, translations out.

R sentences, W beam size, V vocabulary size.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.data.batches import ragged, source_rows
from mtkit.errors import MtkitError
from mtkit.formats.bundle import open_bundle
from mtkit.models.device import pick_device, pick_dtype
from mtkit.models.interface import State, TranslationModel, next_rows
from mtkit.models.registry import empty_model, fill_model
from mtkit.search.beam import beam_search
from mtkit.search.greedy import greedy_search
from mtkit.search.length_penalty import LENGTH_PENALTIES
from mtkit.search.step import Hypothesis
from mtkit.symbols import BEGIN, END, PAD, UNKNOWN
from mtkit.text.parallel import tagged
from mtkit.text.splitting import join_parts, split_line, split_tags
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

    def translate(self, lines: Iterable[str], tag: str | None = None) -> list[str]:
        """The best translation of each line, in order; a blank line gives a blank one."""
        if isinstance(lines, str):
            raise TypeError("translate() takes a list of lines; give it [line] for a single one")
        return [line.text for line in self.translate_lines(lines, tag=tag)]

    def translate_lines(
        self, lines: Iterable[str], num_best: int = 1, at_once: bool = False, tag: str | None = None
    ) -> Iterator[TranslatedLine]:
        """Up to num_best translations of each line, in order, in constant memory for any number of lines.

        Lines are gathered into windows, sorted by length and put into batches; at_once answers each as it comes. A tag
        tells a multilingual model what is wanted; it is put before each line, which may also begin with it as it is.
        """
        if tag is not None:
            self.require_tag(tag)
            lines = (tagged(line, tag) for line in lines)
        return self._translated(lines, num_best, at_once)

    def require_tag(self, tag: str) -> None:
        """Refuse a tag that the model was not trained with."""
        known = self.tokenizer.symbols
        if tag not in known:
            there = f"it knows {', '.join(known)}" if known else "it was trained without any"
            raise MtkitError(f"tag {tag}: the model does not know it; {there}")

    def _translated(self, lines: Iterable[str], num_best: int, at_once: bool) -> Iterator[TranslatedLine]:
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
            tags, text = split_tags(lines[number], self.tokenizer.symbols)
            tag_tokens = self._source_tokens(tags) if tags else []
            if len(tokens) == len(tag_tokens):
                yield _Part(number, [], "")  # a tag alone asks for nothing
            elif len(tokens) <= self.max_source_length:
                yield _Part(number, tokens, "")
            else:
                yield from self._parts_of_long_line(number, text, tag_tokens)

    def _parts_of_long_line(self, number: int, text: str, tag_tokens: list[int]) -> Iterator[_Part]:
        """Whole sentences where they fit; where a single character has too many tokens, they are parted, too.

        What stood before the line as a tag stands before each part.
        """
        most = max(self.max_source_length - len(tag_tokens), 1)
        for part in split_line(text, lambda text: len(self._source_tokens(text)) <= most):
            tokens = self._source_tokens(part.text)
            for begin in range(0, max(len(tokens), 1), most):
                is_last = begin + most >= len(tokens)
                here = tokens[begin : begin + most]
                yield _Part(number, [*tag_tokens, *here] if here else [], part.separator if is_last else "")

    @property
    def max_source_length(self) -> int:
        """Most tokens of a sentence: what the model was trained on, and can take with the end mark."""
        limit = self.model.limits.source
        most = self.config.data.max_length
        return most if limit is None else min(most, limit - 1)

    def _source_tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode_source([text])[0]

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

    @torch.inference_mode()
    def search(self, sentences: Sequence[Sequence[int]], num_best: int = 1) -> list[list[Hypothesis]]:
        """The best hypotheses of one batch of source tokens, none of them empty."""
        decoding, device = self.config.decoding, self.model.device
        sources = ragged(sentences)
        start = torch.full((len(sentences),), self.model.start, device=device)
        max_lengths = torch.from_numpy(sources.lengths) * decoding.max_length_ratio + decoding.max_length_extra
        max_lengths = max_lengths.long().to(device)
        if self.model.limits.target is not None:
            max_lengths = max_lengths.clamp(max=self.model.limits.target - 1)
        state = self.model.encode(source_rows(sources).to(device))
        penalty = partial(LENGTH_PENALTIES[decoding.length_penalty_form], exponent=decoding.length_penalty)
        if decoding.beam_size == 1 and num_best == 1:
            hypotheses = greedy_search(self._step, state, start, max_lengths, END)
            lengths = torch.tensor([len(hypothesis.tokens) + 1 for hypothesis in hypotheses], dtype=torch.float64)
            return [
                [replace(hypothesis, score=hypothesis.log_prob / divisor)]
                for hypothesis, divisor in zip(hypotheses, penalty(lengths).tolist(), strict=True)
            ]
        return beam_search(self._step, state, start, max_lengths, END, decoding.beam_size, penalty, num_best)

    def _step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """(R, W) ids to (R, W, V) log-probabilities; what is no text is impossible."""
        features, state = self.model.decode(next_rows(ids, state), state)
        logits = self.model.output(features)
        log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        for forbidden in (PAD, BEGIN) if self.tokenizer.target_shows_unknown else (PAD, UNKNOWN, BEGIN):
            log_probs[:, :, forbidden] = float("-inf")
        return log_probs, state

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
