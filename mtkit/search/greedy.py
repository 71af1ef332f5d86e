"""Greedy search: always the likeliest token.

Letters: R rows (sentences in flight), T longest hypothesis with its end mark, V vocabulary size.
"""

import torch
from torch import Tensor

from mtkit.search.step import BROKEN, COMPACT_AT, NOTHING, AnyState, Hypothesis, Step


def greedy_search(
    step: Step[AnyState], state: AnyState, start: Tensor, max_lengths: Tensor, end: int
) -> list[Hypothesis]:
    """The hypothesis of each sentence, in order; its score is its log-probability.

    start is (R,), max_lengths (R,): most tokens before the end mark. A hypothesis that has so many can only end. Of
    equally likely tokens the lowest is taken.
    """
    if not len(start):
        return []
    all_tokens = torch.full((len(start), int(max_lengths.max()) + 1), end, device=start.device)  # (R, T)
    all_log_probs = torch.zeros(len(start), device=start.device)  # (R,), all sentences

    rows = torch.arange(len(start), device=start.device)  # (R,) which sentence stands where
    ids, log_prob, done = start, all_log_probs, torch.zeros_like(start, dtype=torch.bool)
    length = 0  # of the hypotheses, in tokens
    while len(rows):
        log_probs, state = step(ids[:, None], state)
        best = log_probs[:, 0].argmax(dim=1)  # (R,) from (R, V)
        ids = torch.where(done | (max_lengths <= length), end, best)
        gain = log_probs[:, 0].gather(1, ids[:, None])[:, 0]
        log_prob = torch.where(done, log_prob, log_prob + gain)
        all_tokens[rows, length] = ids
        length += 1

        done = done | (ids == end) | ~(log_prob > -torch.inf)
        going = (~done).cpu()  # the one wait for the device
        if going.sum() <= COMPACT_AT * len(rows):
            all_log_probs = all_log_probs.to(log_prob).index_copy(0, rows, log_prob)
            kept = going.nonzero()[:, 0].to(start.device)
            rows, ids, log_prob, done = rows[kept], ids[kept], log_prob[kept], done[kept]
            max_lengths, state = max_lengths[kept], state.keep(kept)

    hypotheses = []
    for tokens, total in zip(all_tokens.tolist(), all_log_probs.tolist(), strict=True):
        if total > -torch.inf:
            hypotheses.append(Hypothesis(tokens[: tokens.index(end)], total, total))
        else:
            hypotheses.append(NOTHING if total == -torch.inf else BROKEN)
    return hypotheses
