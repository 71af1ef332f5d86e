"""From pairs of token arrays to the rows of a batch.

R rows, L length of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mtkit.batch import NO_LABEL, Batch, Rows
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.corpus import Corpus
from mtkit.data.mixing import Mixture
from mtkit.data.plan import Earlier, batches_from
from mtkit.symbols import END, PAD, Marks

OWN_MARKS = Marks()  # of the vocabularies that are made here, and of a decoder that begins with BEGIN


@dataclass(frozen=True)
class Ragged:
    """Sentences of different lengths, one after the other."""

    tokens: NDArray[np.integer]
    lengths: NDArray[np.int64]


def ragged(sentences: Sequence[Sequence[int]]) -> Ragged:
    """Lists of ids as one array."""
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    tokens = np.fromiter((token for sentence in sentences for token in sentence), dtype=np.int64, count=lengths.sum())
    return Ragged(tokens, lengths)


def gather(tokens: NDArray[np.integer], offsets: NDArray[np.integer], chosen: NDArray[np.int64]) -> Ragged:
    """The chosen sentences of a corpus; sentence i is tokens[offsets[i]:offsets[i + 1]]."""
    starts = np.asarray(offsets[chosen], dtype=np.int64)
    lengths = np.asarray(offsets[chosen + 1], dtype=np.int64) - starts
    return Ragged(tokens[np.repeat(starts, lengths) + _places(lengths)], lengths)


def _places(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, … for every sentence, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _pad(sentences: Ragged, filler: int) -> NDArray[np.int64]:
    """(R, L + 1) ids, one sentence a row with at least one filler after it."""
    real = np.arange(sentences.lengths.max() + 1) < sentences.lengths[:, None]
    ids = np.full(real.shape, filler, dtype=np.int64)
    ids[real] = sentences.tokens
    return ids


def _rows(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
    places = np.arange(ids.shape[1])
    real = places < lengths[:, None]
    return Rows(torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)), torch.from_numpy(places * real))


def source_rows(source: Ragged, end: int = END) -> Rows:
    """One sentence a row, its end mark last; any token will do where padded, since nobody looks there."""
    ids = _pad(source, PAD)
    ids[np.arange(len(ids)), source.lengths] = end
    return _rows(ids, source.lengths + 1)


def padded_batch(source: Ragged, target: Ragged, marks: Marks = OWN_MARKS) -> Batch:
    """One pair a row, with the marks of the model that reads it."""
    labels = _pad(target, NO_LABEL)
    read = np.concatenate([np.full((len(labels), 1), marks.start), labels[:, :-1].clip(min=PAD)], axis=1)
    labels[np.arange(len(labels)), target.lengths] = marks.target_end
    return Batch(
        source_rows(source, marks.source_end),
        _rows(read, target.lengths + 1),
        torch.from_numpy(labels),
        num_pairs=len(labels),
        source_tokens=int(source.lengths.sum()) + len(labels),
        target_tokens=int(target.lengths.sum()) + len(labels),
    )


class Sample(Protocol):
    """Texts of one side, to the ids of one segmentation of each; the same seed gives the same."""

    def __call__(self, texts: Sequence[str], *, seed: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class Sampling:
    """How the text of a corpus becomes ids anew in each epoch."""

    source: Sample
    target: Sample
    max_length: int  # tokens of a side; a pair that comes out longer has the ids that the corpus holds


def micro_batches(
    corpus: Corpus,
    config: TrainingConfig,
    consumed: int,
    sampling: Sampling | None = None,
    marks: Marks = OWN_MARKS,
    mixture: Mixture | None = None,
    earlier: Sequence[Earlier] = (),
) -> Iterator[tuple[int, tuple[Batch, ...]]]:
    """The endless stream of batches after so many pairs, each with its epoch.

    The plan goes by the ids that the corpus holds; earlier tells of other batch_tokens that the run had before. A batch
    whose sampled ids are more than batch_tokens comes in several parts, which belong to the same update. Chance is a
    function of the seed and of the place in the stream.
    """
    sides = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    for epoch, pairs in batches_from(consumed, *sides, config.batch_tokens, config.seed, mixture, earlier):
        if sampling:
            yield epoch, _sampled_batches(corpus, config, sampling, pairs, consumed, marks)
        else:
            source = gather(corpus.source_tokens, corpus.source_offsets, pairs)
            target = gather(corpus.target_tokens, corpus.target_offsets, pairs)
            yield epoch, (padded_batch(source, target, marks),)
        consumed += len(pairs)


def _sampled_batches(
    corpus: Corpus, config: TrainingConfig, sampling: Sampling, pairs: NDArray[np.int64], consumed: int, marks: Marks
) -> tuple[Batch, ...]:
    """The batch that begins after so many pairs, in one part or more."""
    # Below 2^31, since 2^32 - 1 asks SentencePiece for any.
    seeds = np.random.SeedSequence([config.seed, consumed]).generate_state(2) >> 1
    sources = sampling.source(corpus.source_text(pairs), seed=int(seeds[0]))
    targets = sampling.target(corpus.target_text(pairs), seed=int(seeds[1]))
    for row, pair in enumerate(pairs.tolist()):
        if max(len(sources[row]), len(targets[row])) > sampling.max_length:
            sources[row], targets[row] = corpus.source(pair).tolist(), corpus.target(pair).tolist()
    longest = np.array([max(map(len, both)) + 1 for both in zip(sources, targets, strict=True)])
    return tuple(
        padded_batch(ragged([sources[row] for row in part]), ragged([targets[row] for row in part]), marks)
        for part in _parts(longest, config.batch_tokens)
    )


def _parts(longest: NDArray[np.int64], batch_tokens: int) -> Iterator[list[int]]:
    """Rows that fit into batch_tokens, the longest ones first; all in their order if they fit together."""
    assert longest.max() <= batch_tokens, "max_length is less than batch_tokens"
    by_length = np.argsort(-longest, kind="stable")
    while len(by_length):
        count = batch_tokens // int(longest[by_length[0]])
        yield sorted(by_length[:count].tolist())
        by_length = by_length[count:]
