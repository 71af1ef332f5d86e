"""Source tokens in, hypotheses out: the search that the settings ask for, over a model.

Letters: N sentences of a batch, R rows (sentences in flight), W hypotheses of each, H heads, S source length, P longest
prefix, V vocabulary size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mtkit.config.decoding_settings import DecodingConfig
from mtkit.data.batches import ragged, source_rows
from mtkit.errors import MtkitError
from mtkit.models.ensemble import Ensemble
from mtkit.models.interface import State, TranslationModel, next_rows
from mtkit.search.beam import beam_search
from mtkit.search.candidates import Groups
from mtkit.search.constraints import (
    Constraint,
    Said,
    begin_with,
    constrained,
    min_length,
    never,
    no_repeat_ngram,
)
from mtkit.search.coverage import Covered, coverage_penalty, covering
from mtkit.search.greedy import greedy_search
from mtkit.search.length_penalty import LENGTH_PENALTIES
from mtkit.search.sampling import Chances, Draw, sample_search
from mtkit.search.step import AnyState, Hypothesis, Step
from mtkit.search.stopping import STOPPING

Model = TranslationModel | Ensemble


@dataclass(frozen=True)
class _Task:
    """A batch, and what is wanted of it."""

    decoding: DecodingConfig
    sentences: list[list[int]]
    start: Tensor  # (N,)
    max_lengths: Tensor  # (N,)
    num_best: int
    end: int


@torch.inference_mode()
def decode(
    model: Model,
    decoding: DecodingConfig,
    sentences: Sequence[Sequence[int]],
    num_best: int = 1,
    prefixes: Sequence[Sequence[int]] = (),
    forbidden: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """The hypotheses of one batch of source tokens, none of them empty: the best first, or samples as they are drawn.

    Up to num_best of a beam's, and as many to spare where it is more than one, since different tokens may be the same
    text; of samples num_best. Each begins with the prefix of its sentence, if there are any. What is forbidden, by
    default all special ids but the end mark, is never said but in a prefix.
    """
    if forbidden is None:
        forbidden = model.special.silent
    sources = ragged(sentences)
    start = torch.full((len(sentences),), model.marks.start, device=model.device)
    max_lengths = torch.from_numpy(sources.lengths) * decoding.max_length_ratio + decoding.max_length_extra
    prefix_lengths = torch.tensor([len(prefix) for prefix in prefixes] or [0] * len(sentences))
    max_lengths = torch.maximum(max_lengths.long().clamp(min=1), prefix_lengths).to(model.device)
    if model.limits.target is not None:
        max_lengths = max_lengths.clamp(max=model.limits.target - 1)
    task = _Task(
        decoding, [list(sentence) for sentence in sentences], start, max_lengths, num_best, model.marks.target_end
    )

    source = source_rows(sources, model.marks.source_end).to(model.device)
    first: list[Constraint] = []  # before the other constraints
    if not set(forbidden).isdisjoint(token for prefix in prefixes for token in prefix):
        first, forbidden = [never(forbidden)], ()  # a prefix stands above constraints
    step, state = partial(next_log_probs, model, forbidden), model.encode(source, watch=decoding.coverage_penalty > 0)
    if not decoding.coverage_penalty:
        return _constrain(step, state, None, prefixes, first, task)
    covered = Covered.nothing(state, source.mask, torch.promote_types(model.dtype, torch.float32))
    bonus = partial(coverage_penalty, strength=decoding.coverage_penalty)
    attention = partial(last_attention, wanted_by="coverage_penalty")
    return _constrain(covering(step, attention), covered, bonus, prefixes, first, task)


def _constrain(
    step: Step[AnyState],
    state: AnyState,
    bonus: Callable[[AnyState], Tensor] | None,
    prefixes: Sequence[Sequence[int]],
    first: Sequence[Constraint],
    task: _Task,
) -> list[list[Hypothesis]]:
    """Search under these constraints, and those that the settings and the prefixes make."""
    constraints = [*first]
    if task.decoding.min_length:
        constraints.append(min_length(task.max_lengths.clamp(max=task.decoding.min_length), task.end))
    if task.decoding.no_repeat_ngram:
        constraints.append(no_repeat_ngram(task.decoding.no_repeat_ngram))
    if any(prefixes):
        constraints = [begin_with(_padded(prefixes).to(task.start.device), constraints)]
    if not constraints:
        return _search(step, state, bonus, task)
    said = Said.nothing(state, len(task.start), task.start.device)
    inner = None if bonus is None else lambda outer: bonus(outer.state)
    return _search(constrained(step, constraints), said, inner, task)


def _search(
    step: Step[AnyState], state: AnyState, bonus: Callable[[AnyState], Tensor] | None, task: _Task
) -> list[list[Hypothesis]]:
    decoding, start, max_lengths, end = task.decoding, task.start, task.max_lengths, task.end
    if decoding.draws:
        draw = Draw(decoding.temperature, decoding.top_k, decoding.top_p)
        chances = Chances(decoding.seed, task.sentences, task.num_best)
        return sample_search(step, state, start, max_lengths, end, task.num_best, draw, chances)
    penalty = partial(LENGTH_PENALTIES[decoding.length_penalty_form], exponent=decoding.length_penalty)
    if decoding.beam_size == 1 and task.num_best == 1:
        hypotheses = greedy_search(step, state, start, max_lengths, end)
        lengths = torch.tensor([len(hypothesis.tokens) + 1 for hypothesis in hypotheses], dtype=torch.float64)
        return [
            [replace(hypothesis, score=hypothesis.log_prob / divisor) if hypothesis.found else hypothesis]
            for hypothesis, divisor in zip(hypotheses, penalty(lengths).tolist(), strict=True)
        ]
    return beam_search(
        step,
        state,
        start,
        max_lengths,
        end,
        decoding.beam_size,
        penalty,
        task.num_best,
        num_spare=task.num_best if task.num_best > 1 else 0,
        stopping=STOPPING[decoding.stopping],
        bonus=bonus,
        groups=Groups(decoding.diversity_groups, decoding.diversity_strength),
    )


def next_log_probs(model: Model, forbidden: Sequence[int], ids: Tensor, state: State) -> tuple[Tensor, State]:
    """(R, W) ids to (R, W, V) log-probabilities; what is forbidden is impossible."""
    features, state = model.decode(next_rows(ids, state), state)
    logits = model.output(features)
    log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    for token in forbidden:
        log_probs[:, :, token] = float("-inf")
    return log_probs, state


def last_attention(state: State, wanted_by: str) -> Tensor:
    """(R, W, S): how the last layer looked at the source, its heads' mean; wanted_by is the setting that needs it."""
    if not state.attention:
        raise MtkitError(
            f"decoding.{wanted_by}: this model, or one of the ensemble, has no attention to the source; "
            "leave the setting at its default"
        )
    return state.attention[-1].mean(1)


def _padded(prefixes: Sequence[Sequence[int]]) -> Tensor:
    """(N, P), -1 after the last token of each."""
    longest = max(map(len, prefixes))
    return torch.tensor([[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes])
