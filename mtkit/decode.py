"""Source tokens in, hypotheses out: the search that the settings ask for, over a model.

Letters: R rows (sentences in flight), W hypotheses of each, V vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mtkit.config.settings import DecodingConfig
from mtkit.data.batches import ragged, source_rows
from mtkit.models.interface import State, TranslationModel, next_rows
from mtkit.search.beam import beam_search
from mtkit.search.candidates import Groups
from mtkit.search.greedy import greedy_search
from mtkit.search.length_penalty import LENGTH_PENALTIES
from mtkit.search.step import Hypothesis
from mtkit.search.stopping import STOPPING
from mtkit.symbols import BEGIN, END, PAD, UNKNOWN


@torch.inference_mode()
def decode(
    model: TranslationModel, decoding: DecodingConfig, sentences: Sequence[Sequence[int]], num_best: int = 1
) -> list[list[Hypothesis]]:
    """The best hypotheses of one batch of source tokens, none of them empty."""
    sources = ragged(sentences)
    start = torch.full((len(sentences),), BEGIN, device=model.device)
    max_lengths = torch.from_numpy(sources.lengths) * decoding.max_length_ratio + decoding.max_length_extra
    max_lengths = max_lengths.long().to(model.device)
    if model.limits.target is not None:
        max_lengths = max_lengths.clamp(max=model.limits.target - 1)
    state = model.encode(source_rows(sources).to(model.device))
    step = partial(next_log_probs, model)
    penalty = partial(LENGTH_PENALTIES[decoding.length_penalty_form], exponent=decoding.length_penalty)
    if decoding.beam_size == 1 and num_best == 1:
        hypotheses = greedy_search(step, state, start, max_lengths, END)
        lengths = torch.tensor([len(hypothesis.tokens) + 1 for hypothesis in hypotheses], dtype=torch.float64)
        return [
            [replace(hypothesis, score=hypothesis.log_prob / divisor)]
            for hypothesis, divisor in zip(hypotheses, penalty(lengths).tolist(), strict=True)
        ]
    return beam_search(
        step,
        state,
        start,
        max_lengths,
        END,
        decoding.beam_size,
        penalty,
        num_best,
        stopping=STOPPING[decoding.stopping],
        groups=Groups(decoding.diversity_groups, decoding.diversity_strength),
    )


def next_log_probs(model: TranslationModel, ids: Tensor, state: State) -> tuple[Tensor, State]:
    """(R, W) ids to (R, W, V) log-probabilities; what is no text is impossible."""
    features, state = model.decode(next_rows(ids, state), state)
    logits = model.output(features)
    log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    for forbidden in (PAD, UNKNOWN, BEGIN):
        log_probs[:, :, forbidden] = float("-inf")
    return log_probs, state
