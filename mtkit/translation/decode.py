"""Source tokens in, hypotheses out, with the search that the settings ask for; probabilities of given translations."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batch import padded_batch, ragged, source_rows
from mtkit.errors import MtkitError
from mtkit.models.interface import Ensemble, State, TranslationModel, next_rows
from mtkit.search.searches import STOPPING, Chances, Draw, Groups, beam_search, greedy_search, sample_search
from mtkit.search.step import (
    LENGTH_PENALTIES,
    AnyState,
    Constraint,
    Covered,
    Hypothesis,
    Said,
    Step,
    begin_with,
    constrained,
    coverage_penalty,
    covering,
    min_length,
    never,
    no_repeat_ngram,
)


def elect(texts: Sequence[str], utility: Callable[[Sequence[str]], list[list[float]]]) -> list[tuple[str, float]]:
    """The different texts, each with its mean utility against all the other samples, best first.

    utility gives [h][r], that of text h where r is the reference. Of equals the one that stands first comes first. A
    text that was drawn more than once has itself among the others; one that is alone has nothing to be compared with.
    """
    counts = Counter(texts)
    different = list(counts)
    means = []
    for h, row in enumerate(utility(different)):
        total = sum(count * value for count, value in zip(counts.values(), row, strict=True)) - row[h]
        means.append(total / max(len(texts) - 1, 1))
    order = sorted(range(len(different)), key=lambda h: -means[h])
    return [(different[h], means[h]) for h in order]


# Source tokens in, hypotheses out: the search that the settings ask for, over a model.

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
        forbidden = model.special.never_generated
    sources = ragged(sentences)
    start = torch.full((len(sentences),), model.boundaries.start, device=model.device)
    max_lengths = torch.from_numpy(sources.lengths) * decoding.max_length_ratio + decoding.max_length_extra
    prefix_lengths = torch.tensor([len(prefix) for prefix in prefixes] or [0] * len(sentences))
    max_lengths = torch.maximum(max_lengths.long().clamp(min=1), prefix_lengths).to(model.device)
    if model.limits.target is not None:
        max_lengths = max_lengths.clamp(max=model.limits.target - 1)
    task = _Task(
        decoding, [list(sentence) for sentence in sentences], start, max_lengths, num_best, model.boundaries.target_end
    )

    source = source_rows(sources, model.boundaries.source_end).to(model.device)
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


# How likely a model finds given translations.

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
    batch = padded_batch(ragged(sources), ragged(targets), model.boundaries).to(model.device)
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


# Where a model looks as it says given translations.


@torch.inference_mode()
def source_attention(
    model: Model, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int
) -> list[Tensor]:
    """For each pair (T, S) on the CPU: how the model looks at each source token as it says each target token.

    It is the attention of the last layer, its heads' mean, without the end marks. A batch is at most so many tokens.
    """
    if isinstance(model, Ensemble):  # whose members give the log-probabilities of a whole batch
        batch_tokens = min(batch_tokens, chunk_tokens(model))
    found: dict[int, Tensor] = {}
    lengths = [max(len(source), len(target)) + 1 for source, target in zip(sources, targets, strict=True)]
    for chosen in batches_by_length(lengths, batch_tokens):
        rows = [ragged([side[i] for i in chosen]) for side in (sources, targets)]
        batch = padded_batch(rows[0], rows[1], model.boundaries).to(model.device)
        _, state = model.decode(batch.target, model.encode(batch.source, watch=True))
        for i, weights in zip(chosen, last_attention(state, "unknown copy").cpu(), strict=True):
            found[i] = weights[: len(targets[i]), : len(sources[i])].clone()
    return [found[i] for i in range(len(sources))]
