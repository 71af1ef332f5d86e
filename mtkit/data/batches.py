"""From pairs of token arrays to the rows of a batch.

R rows, L length of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mtkit.batch import Batch, Rows
from mtkit.config.settings import TrainingConfig
from mtkit.data.corpus import Corpus
from mtkit.data.plan import batches_from
from mtkit.symbols import BEGIN, END


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


def _pad(sentences: Ragged) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(R, L + 1) ids, one sentence a row with at least one place of padding after it, and where they are real."""
    real = np.arange(sentences.lengths.max() + 1) < sentences.lengths[:, None]
    ids = np.zeros(real.shape, dtype=np.int64)
    ids[real] = sentences.tokens
    return ids, real


def _rows(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
    places = np.arange(ids.shape[1])
    real = places < lengths[:, None]
    return Rows(torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)), torch.from_numpy(places * real))


def source_rows(source: Ragged) -> Rows:
    """One sentence a row, its end mark last."""
    ids, _ = _pad(source)
    ids[np.arange(len(ids)), source.lengths] = END
    return _rows(ids, source.lengths + 1)


def padded_batch(source: Ragged, target: Ragged, start: int = BEGIN) -> Batch:
    """One pair a row; start is the token that the model's decoder reads first."""
    labels, _ = _pad(target)
    read = np.concatenate([np.full((len(labels), 1), start), labels[:, :-1]], axis=1)
    labels[np.arange(len(labels)), target.lengths] = END
    return Batch(
        source_rows(source),
        _rows(read, target.lengths + 1),
        torch.from_numpy(labels),
        num_pairs=len(labels),
        source_tokens=int(source.lengths.sum()) + len(labels),
        target_tokens=int(target.lengths.sum()) + len(labels),
    )


def micro_batches(
    corpus: Corpus, config: TrainingConfig, consumed: int, start: int = BEGIN
) -> Iterator[tuple[int, Batch]]:
    """The stream of batches after so many pairs, each with its epoch; start is what the decoder reads first."""
    sides = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    for epoch, pairs in batches_from(consumed, *sides, config.batch_tokens, config.seed):
        source = gather(corpus.source_tokens, corpus.source_offsets, pairs)
        yield epoch, padded_batch(source, gather(corpus.target_tokens, corpus.target_offsets, pairs), start)
