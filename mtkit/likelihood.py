"""How likely a model finds given translations.

Letters: R rows, T target length, M target tokens, D model width, V vocabulary size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mtkit.data.batches import padded_batch, ragged
from mtkit.decode import Model
from mtkit.models.ensemble import Ensemble

CHUNK_TOKENS = 1024  # whose logits are in memory at once
CHUNK_ELEMENTS = 1 << 25  # of those logits, however large the vocabulary


@dataclass(frozen=True)
class ScoredTranslation:
    """What a model thinks of one translation, token by token."""

    pieces: list[str]  # the end mark is the last
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """Of the whole translation."""
        return sum(self.log_probs)

    @property
    def num_tokens(self) -> int:
        """The end mark counted."""
        return len(self.log_probs)

    @property
    def mean(self) -> float:
        """Log-probability a token."""
        return self.log_prob / self.num_tokens


def log_probs_of(
    model: Model, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int
) -> list[list[float]]:
    """The log-probability of each target token and of the end mark, for each pair; a batch is at most so many tokens.

    Either side may be empty: then it is the end mark alone.
    """
    found: list[list[float]] = [[] for _ in sources]
    lengths = [max(len(source), len(target)) + 1 for source, target in zip(sources, targets, strict=True)]
    if isinstance(model, Ensemble):  # whose members give the log-probabilities of a whole batch
        batch_tokens = min(batch_tokens, chunk_tokens(model))
    for chosen in batches_by_length(lengths, batch_tokens):
        scored = _batch_log_probs(model, [sources[i] for i in chosen], [targets[i] for i in chosen])
        for i, log_probs in zip(chosen, scored, strict=True):
            found[i] = log_probs
    return found


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """The places of rows of these lengths, longest first, in batches of at most so many tokens, padding counted."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        most = max(1, batch_tokens // lengths[order[0]])
        yield order[:most]
        order = order[most:]


def chunk_tokens(model: Model) -> int:
    """How many tokens have their logits in memory at once."""
    return max(1, min(CHUNK_TOKENS, CHUNK_ELEMENTS // model.elements_per_token))


@torch.inference_mode()
def _batch_log_probs(
    model: Model, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[list[float]]:
    batch = padded_batch(ragged(sources), ragged(targets), model.marks).to(model.device)
    features, _ = model.decode(batch.target, model.encode(batch.source))  # (R, T, D)
    real = batch.target.mask
    log_probs = []
    for some, labels in zip(
        *(torch.split(x[real], chunk_tokens(model)) for x in (features, batch.labels)), strict=True
    ):
        logits = model.output(some)  # (M, V)
        all_of_them = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        log_probs.append(all_of_them.gather(1, labels[:, None])[:, 0])
    rows = torch.split(torch.cat(log_probs).cpu(), [len(target) + 1 for target in targets])
    return [row.tolist() for row in rows]
