"""Decoding of batches of source tokens, and log-probabilities and attention of given translations.

Shapes: R rows (sentences still being decoded), W hypotheses per sentence, T target length, S source length, D model
width, H heads, V vocabulary size, N sentences of the batch, P length of the longest prefix, B prefixes of an exact
search.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import NO_LABEL, Batch, Ragged, Rows, padded_batch, ragged, source_rows
from mtkit.errors import MtkitError
from mtkit.models.interface import Ensemble, Scratch, State, TranslationModel, log_probs_from, next_rows
from mtkit.models.transformer import MaskedModel, TransformerDecoder
from mtkit.translation.search import (
    LENGTH_PENALTIES,
    NO_TOKEN,
    NOT_A_NUMBER,
    STOPPING,
    BeamStep,
    Constraint,
    Coverage,
    Draw,
    Groups,
    Hypothesis,
    Step,
    TokenHistory,
    UniformNumbers,
    Waiting,
    beam_search,
    begin_with,
    constrained,
    coverage_penalty,
    covering,
    greedy_search,
    mask_predict,
    min_length,
    never,
    no_repeat_ngram,
    optimal_search,
    sample_search,
)
from mtkit.translation.shortlist import ListedState, Lists, Shortlist, listed_step, vocab_size_of

# Decoding with the search that the settings select.

Model = TranslationModel | Ensemble


@dataclass(frozen=True)
class Fusion:
    """A language model that takes part in the search of a translation model of the same vocabulary.

    In shallow fusion (Gulcehre et al. 2015), a token has the score log p(token | source) + weight * log p_LM(token).
    """

    language_model: TranslationModel
    weight: float


@dataclass(frozen=True)
class FusedState:
    """The decoding states of a translation model and of a language model, for the same hypotheses."""

    state: State
    of_language_model: State

    @property
    def attention(self) -> list[Tensor]:
        """The attention weights of the translation model."""
        return self.state.attention

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of row r continues hypothesis `parents[r, w]`; `parents` is (R, W')."""
        return type(self)(self.state.branch(parents), self.of_language_model.branch(parents))

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64, in the order of the list."""
        return type(self)(self.state.keep(sentences), self.of_language_model.keep(sentences))

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Returns a state in which the rows of `fresh` replace the rows with the indices `places`, (R',) int64.

        `fresh` is the state of R' sentences before the first step, with one hypothesis each.
        """
        return type(self)(
            self.state.refill(places, fresh.state), self.of_language_model.refill(places, fresh.of_language_model)
        )


def fused(step: Step[State], fusion: Fusion) -> Step[FusedState]:
    """Returns a step function that adds the weighted log-probabilities of the language model to the results of `step`.

    The sums, (R, W, V), are not normalised again.
    """
    scratch = Scratch()

    def fused_step(ids: Tensor, state: FusedState) -> tuple[Tensor, FusedState]:
        scores, after = step(ids, state.state)
        log_probs, of_language_model = next_log_probs(
            fusion.language_model, (), ids, state.of_language_model, scratch=scratch
        )
        return scores.add_(log_probs, alpha=fusion.weight), FusedState(after, of_language_model)

    return fused_step


def can_refill(model: Model, decoding: DecodingConfig, fusion: Fusion | None = None) -> bool:
    """Whether waiting sentences can take the places of finished sentences in a search with these models and settings.

    `False` for mask-predict, for a search with shortlists and for exact search. Also `False` if a model has a decoder
    in which tokens attend to later tokens, since such a decoder has no cache.
    """
    if decoding.method == "mask_predict" or decoding.shortlist is not None or decoding.stopping == "optimal":
        return False
    models = [*(model.members if isinstance(model, Ensemble) else [model])]
    models += [fusion.language_model] if fusion else []
    return not any(isinstance(each.decoder, TransformerDecoder) and each.decoder.sees_later for each in models)


@torch.inference_mode()
def decode(
    model: Model,
    decoding: DecodingConfig,
    sentences: Sequence[Sequence[int]],
    num_best: int = 1,
    prefixes: Sequence[Sequence[int]] = (),
    forbidden: Sequence[int] | None = None,
    fusion: Fusion | None = None,
    watch: Callable[[BeamStep], None] | None = None,
    shortlist: Shortlist | None = None,
    rooms: Sequence[int] | None = None,
    left: Callable[[list[int]], object] | None = None,
) -> list[list[Hypothesis]]:
    """Translate sentences, each a sequence of source tokens, as one batch; returns a list of hypotheses for each.

    Each list has at least one hypothesis. Sampling returns `num_best` hypotheses, in the order drawn. Beam search
    returns the best hypotheses, best first: only one if `num_best` is 1, otherwise up to `2 * num_best`, since
    hypotheses with different tokens may be the same text. Mask-predict returns one hypothesis for each candidate
    length, best first, or only the best one if `num_best` is 1.

    `prefixes` holds, for each sentence, the target tokens with which all its hypotheses must begin. After the prefix,
    the tokens in `forbidden` are not generated. By default, all special ids except the end mark are forbidden. If
    `model` is a language model, the sentences must be empty, and the prefixes are continued.

    With `fusion`, a language model takes part in the search (shallow fusion), and also contributes to the scores and
    log-probabilities. If the settings ask for a shortlist, `shortlist` makes a list of target tokens for each sentence,
    and only tokens on this list are generated.

    `watch`, if given, is called after each step of beam search. Greedy search then runs as beam search with beam size 1
    and the stopping rule `count`, which gives the same result.

    If `rooms` is given, sentence n may only be in a batch of at most `rooms[n]` sentences. Sentences for which the
    batch has no room wait, in order, until other sentences are finished; `can_refill` must then be true. `left`, if
    given, is called from time to time with the indices of sentences that have left the batch.

    Raises MtkitError if the settings ask for a coverage penalty and the model has no attention.
    """
    if forbidden is None:
        forbidden = model.special.never_generated
    sources = ragged(sentences)
    start = torch.full((len(sentences),), model.boundaries.start, device=model.device)  # (N,)
    max_lengths = max_lengths_of(model, decoding, sources, prefixes)
    end = model.boundaries.target_end
    if isinstance(model, MaskedModel):
        assert decoding.method == "mask_predict", "a masked model has no other method"
        assert not any(prefixes), "callers refuse prefixes"
        found = _mask_predicted(model, decoding, sources, max_lengths, forbidden)
        return found if num_best > 1 else [hypotheses[:1] for hypotheses in found]

    if fusion and fusion.weight and (limit := fusion.language_model.limits.target) is not None:
        max_lengths = max_lengths.clamp(max=limit - 1)
    inputs = sentences if model.reads_source else prefixes or sentences  # the random numbers of samples depend on them
    lists: Lists | None = None
    if decoding.shortlist is not None:
        assert shortlist is not None, "callers refuse models that have none"
        width = num_best if decoding.draws else decoding.num_hypotheses
        lists = shortlist.lists(model, sentences, prefixes, decoding.shortlist_size, forbidden, width)
        # From here until the end of the search, a token is represented by its place (index) on its sentence's list.
        start, end = torch.full_like(start, lists.place_of(model.boundaries.start)), lists.place_of(end)
        forbidden, prefixes = [lists.place_of(token) for token in forbidden], lists.places(prefixes)
        watch = None if watch is None else lists.watching(watch, vocab_size_of(model))
    constraints = _constraints(decoding, max_lengths, end)
    if not set(forbidden).isdisjoint(token for prefix in prefixes for token in prefix):
        constraints, forbidden = [never(forbidden), *constraints], ()  # constraints do not apply to prefixes
    if any(prefixes):
        constraints = [begin_with(_padded(prefixes).to(model.device), constraints)]

    step: Step[Any] = partial(next_log_probs, model, forbidden, scratch=Scratch())
    if lists is not None:
        step = listed_step(model, lists, forbidden)
    if fusion and fusion.weight:
        assert lists is None, "callers refuse it"
        step = fused(step, fusion)
    extra_score: Callable[[Any], Tensor] | None = None
    if constraints:
        step = constrained(step, constraints)
    if decoding.coverage_penalty:

        def attention(after: Any) -> Tensor:
            return last_attention(after.state if constraints else after, wanted_by="coverage_penalty")

        step = covering(step, attention)
        extra_score = partial(coverage_penalty, strength=decoding.coverage_penalty)

    def begin(chosen: range) -> Any:
        """Returns the decoding state, before the first step, of the sentences whose indices are in `chosen`."""
        source = source_rows(ragged(sentences[chosen.start : chosen.stop]), model.boundaries.source_end)
        source = source.to(model.device)
        state: Any = model.encode(source, watch=decoding.coverage_penalty > 0)
        if lists is not None:
            state = ListedState.begin(state, lists, model.device)
        if fusion and fusion.weight:
            nothing = source_rows(ragged([[]] * len(chosen)), model.boundaries.source_end).to(model.device)
            state = FusedState(state, fusion.language_model.encode(nothing))
        if constraints:
            state = TokenHistory.empty(state, torch.tensor(chosen, device=model.device))
        if decoding.coverage_penalty:
            state = Coverage.empty(state, source.mask, torch.promote_types(model.dtype, torch.float32))
        return state

    waiting = Waiting([len(sentences)] * len(sentences) if rooms is None else rooms, begin, left)
    state = begin(waiting.next(0))
    if decoding.draws:
        draw = Draw(decoding.temperature, decoding.top_k, decoding.top_p)
        uniform = UniformNumbers(decoding.seed, [list(each) for each in inputs], num_best)
        found = sample_search(step, state, start, max_lengths, end, num_best, draw, uniform, waiting)
        return found if lists is None else lists.restored(found)
    assert decoding.method == "beam", f"no search is called for decoding.method {decoding.method}"
    penalty = partial(LENGTH_PENALTIES[decoding.length_penalty_form], exponent=decoding.length_penalty)
    num_spare = num_best if num_best > 1 else 0
    is_greedy = decoding.beam_size == 1 and num_best == 1
    if is_greedy and watch is None:
        found = _penalized(greedy_search(step, state, start, max_lengths, end, waiting), penalty)
    else:
        found = beam_search(
            step,
            state,
            start,
            max_lengths,
            end,
            decoding.beam_size,
            penalty,
            num_best,
            num_spare=num_spare,
            # Greedy search ends with the first end mark; with another rule, beam search with beam size 1 may go on.
            stopping=STOPPING["count" if is_greedy else decoding.stopping],
            extra_score=extra_score,
            groups=Groups(decoding.diversity_groups, decoding.diversity_strength),
            watch=watch,
            waiting=waiting,
        )
    if lists is not None:
        return lists.restored(found)
    if decoding.stopping != "optimal":
        return found
    extend = partial(log_probs_after, model, forbidden, constraints, sentences)
    steps = decoding.search_steps
    return optimal_search(extend, found, max_lengths.tolist(), end, penalty, steps, num_best, num_spare)


def _mask_predicted(
    model: MaskedModel, decoding: DecodingConfig, sources: Ragged, max_lengths: Tensor, forbidden: Sequence[int]
) -> list[list[Hypothesis]]:
    """Returns, for each sentence, one translation for each of the most probable target lengths, best first.

    Up to `decoding.length_candidates` lengths are tried, none above the maximum in `max_lengths` (N,). The score of a
    translation is the mean log-probability of its tokens and of its length, which counts as one token.
    """
    state = model.encode(source_rows(sources, model.boundaries.source_end).to(model.device))
    candidates, of_lengths = model.likeliest_lengths(state, max_lengths, decoding.length_candidates)  # (N, W)
    possible = of_lengths != -torch.inf
    sentences, lengths, of_lengths = possible.nonzero()[:, 0], candidates[possible], of_lengths[possible]
    state = state.keep(sentences)
    forbidden = [*forbidden, model.boundaries.target_end]

    def predict(tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        features, _ = model.decode(_whole_rows(tokens, lengths, masked, model.boundaries.target_end), state)
        best = []
        for chunk in torch.split(features[:, :-1][masked], chunk_tokens(model)):
            log_probs = log_probs_from(model.output(chunk))  # (tokens, V)
            log_probs[:, forbidden] = float("-inf")
            best.append(log_probs.max(1))
        return torch.cat([tokens for _, tokens in best]), torch.cat([log_probs for log_probs, _ in best])

    tokens, log_probs = mask_predict(predict, lengths, decoding.iterations)
    totals = log_probs.sum(1) + of_lengths
    found: list[list[Hypothesis]] = [[] for _ in sources.lengths]
    columns = (sentences, lengths, tokens, totals, totals / (lengths + 1))
    for sentence, length, ids, log_prob, score in zip(*(column.tolist() for column in columns), strict=True):
        found[sentence].append(NOT_A_NUMBER if math.isnan(score) else Hypothesis(ids[:length], log_prob, score))
    return [sorted(hypotheses, key=lambda hypothesis: -hypothesis.score) for hypotheses in found]


def _whole_rows(tokens: Tensor, lengths: Tensor, masked: Tensor, end: int) -> Rows:
    """Returns rows (N, T + 1) for the decoder of a masked model: tokens with their end marks.

    `tokens` is (N, T), and `lengths` (N,) counts no end marks. `masked` (N, T) is `True` for tokens that the decoder
    must not see; it becomes `Rows.cut`.
    """
    positions = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    real = positions <= lengths[:, None]
    ids = F.pad(tokens, (0, 1)).scatter(1, lengths[:, None], end)
    return Rows(ids, real.long(), positions * real, cut=F.pad(masked, (0, 1)))


def max_lengths_of(
    model: Model, decoding: DecodingConfig, sources: Ragged, prefixes: Sequence[Sequence[int]]
) -> Tensor:
    """Returns the maximum length (N,) of the hypotheses of each sentence, in tokens without the end mark.

    For a translation model, `decoding.max_length` computes the maximum from the source length; if the prefix is longer,
    its length is the maximum. For a language model, the maximum is the length of the prefix plus
    `decoding.max_length_extra`. In both cases, the maximum is never above the limit of the model.
    """
    prefix_lengths = torch.tensor([len(prefix) for prefix in prefixes] or [0] * len(sources.lengths))
    max_lengths = torch.tensor([decoding.max_length(length) for length in sources.lengths.tolist()], dtype=torch.int64)
    longest = torch.maximum(max_lengths, prefix_lengths) if model.reads_source else max_lengths + prefix_lengths
    max_lengths = longest.to(model.device)
    return max_lengths if model.limits.target is None else max_lengths.clamp(max=model.limits.target - 1)


def _constraints(decoding: DecodingConfig, max_lengths: Tensor, end: int) -> list[Constraint]:
    """Returns the constraints that the settings `decoding.min_length` and `decoding.no_repeat_ngram` ask for.

    A minimum length is never above the maximum length of its sentence, given in `max_lengths` (N,).
    """
    constraints = []
    if decoding.min_length:
        constraints.append(min_length(max_lengths.clamp(max=decoding.min_length), end))
    if decoding.no_repeat_ngram:
        constraints.append(no_repeat_ngram(decoding.no_repeat_ngram))
    return constraints


def _penalized(hypotheses: list[Hypothesis], penalty: Callable[[Tensor], Tensor]) -> list[list[Hypothesis]]:
    """Returns each hypothesis, in a list of its own, with a score that takes the length penalty into account.

    The score is the log-probability divided by the penalty. `penalty` maps lengths, which count the end mark, to
    penalties. A hypothesis that stands for no translation keeps its score of -inf.
    """
    lengths = torch.tensor([len(hypothesis.tokens) + 1 for hypothesis in hypotheses], dtype=torch.float64)
    return [
        [replace(hypothesis, score=hypothesis.log_prob / divisor) if hypothesis.found else hypothesis]
        for hypothesis, divisor in zip(hypotheses, penalty(lengths).tolist(), strict=True)
    ]


def next_log_probs(
    model: Model, forbidden: Sequence[int], ids: Tensor, state: State, scratch: Scratch | None = None
) -> tuple[Tensor, State]:
    """Returns the log-probabilities (R, W, V) of the token that follows each of `ids` (R, W), and the next state.

    This is one step of a search. The log-probabilities of forbidden tokens are -inf. If `scratch` is given, the next
    step may overwrite the log-probabilities that this step returned.
    """
    features, state = model.decode(next_rows(ids, state), state)
    logits = model.output(features)
    log_probs = log_probs_from(logits, scratch)
    if forbidden:
        log_probs.index_fill_(2, torch.tensor(list(forbidden), device=log_probs.device), -torch.inf)
    return log_probs, state


def log_probs_after(
    model: Model,
    forbidden: Sequence[int],
    constraints: Sequence[Constraint],
    sentences: Sequence[Sequence[int]],
    sentence: int,
    prefixes: Tensor,
) -> Tensor:
    """Returns the log-probabilities (B, V) of the token that follows each of the prefixes (B, T).

    The prefixes are beginnings of translations of one sentence, `sentences[sentence]`. All their tokens are decoded
    anew, without a decoding state. Tokens in `forbidden`, and tokens that the constraints rule out, get -inf.
    """
    prefixes = prefixes.to(model.device)
    start = prefixes.new_full((len(prefixes), 1), model.boundaries.start)
    # If the input is not shifted, the start token stands for the next token, as in a search.
    ids = torch.cat([start, prefixes] if model.boundaries.shifted else [prefixes, start], dim=1)
    target = Rows(ids, torch.ones_like(ids), torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
    source = source_rows(ragged([sentences[sentence]] * len(ids)), model.boundaries.source_end).to(model.device)
    features, _ = model.decode(target, model.encode(source))
    log_probs = log_probs_from(model.output(features[:, -1:]))  # (B, 1, V)
    if forbidden:
        log_probs[:, :, list(forbidden)] = float("-inf")
    for constraint in constraints:
        log_probs = constraint(log_probs, prefixes[:, None], torch.full_like(ids[:, 0], sentence))
    return log_probs[:, 0]


def last_attention(state: State, wanted_by: str) -> Tensor:
    """Returns the attention weights (R, W, S) of the tokens decoded last, averaged over the heads of the last layer.

    If `state` comes from decoding whole translations at once, the result is (R, T, S). Raises MtkitError if the state
    records no attention; the error message names `wanted_by`, the setting of the section `decoding` that needs
    attention.
    """
    if not state.attention:
        raise MtkitError(
            f"decoding.{wanted_by}: this model, or one of the ensemble, has no attention to the source; "
            "leave the setting at its default"
        )
    return state.attention[-1].mean(1)


def _padded(prefixes: Sequence[Sequence[int]]) -> Tensor:
    """Returns the prefixes as one tensor (N, P), padded with NO_TOKEN."""
    longest = max(map(len, prefixes))
    return torch.tensor([[*prefix, *[NO_TOKEN] * (longest - len(prefix))] for prefix in prefixes])


# Minimum Bayes risk decoding: choosing among samples.


def elect(texts: Sequence[str], utility: Callable[[Sequence[str]], list[list[float]]]) -> list[tuple[str, float]]:
    """Rank sampled texts by minimum Bayes risk; returns each distinct text with its mean utility, best first.

    `utility(texts)[h][r]` must be the utility of text h with text r as the reference. The mean for a text is taken over
    all other samples as references. These include other copies of the same text, if it was drawn several times. If
    there is only one sample, its mean utility is 0. Equally good texts keep the order that they have in `texts`.
    """
    counts = Counter(texts)
    different = list(counts)
    means = []
    for h, row in enumerate(utility(different)):
        total = sum(count * value for count, value in zip(counts.values(), row, strict=True)) - row[h]
        means.append(total / max(len(texts) - 1, 1))
    order = sorted(range(len(different)), key=lambda h: -means[h])
    return [(different[h], means[h]) for h in order]


# The likeliest next tokens.


@torch.inference_mode()
def likeliest_next(
    model: Model, sources: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], count: int
) -> list[list[tuple[int, float]]]:
    """Returns, for each target prefix, (token, probability) of the `count` most probable next tokens, best first.

    `sources` holds the source tokens for each prefix; a language model needs sources without tokens. The end mark
    counts as a token, so it may be one of the results. If the vocabulary has fewer than `count` tokens, all of them are
    returned.
    """
    batch = padded_batch(ragged(sources), ragged(prefixes), model.boundaries).to(model.device)
    features, _ = model.decode(batch.target, model.encode(batch.source))  # (R, T, D)
    last = torch.tensor([len(prefix) for prefix in prefixes], device=model.device)  # after the start token
    log_probs = log_probs_from(model.output(features[torch.arange(len(last), device=model.device), last]))  # (R, V)
    best, tokens = log_probs.topk(min(count, log_probs.shape[1]), dim=1)
    return [list(zip(*row, strict=True)) for row in zip(tokens.tolist(), best.exp().tolist(), strict=True)]


# Log-probabilities of given translations.

CHUNK_TOKENS = 1024  # maximum number of tokens whose logits are in memory at once
CHUNK_ELEMENTS = 1 << 25  # maximum number of logits in memory at once: fewer tokens if the vocabulary is large


@dataclass(frozen=True)
class ScoredTranslation:
    """A given translation, with the log-probability that the model assigns to each of its tokens."""

    pieces: list[str]  # one for each token; the last is the end mark
    log_probs: list[float]
    alignment: tuple[tuple[int, int], ...] | None = None  # links of source and target units; None if not asked for

    @property
    def log_prob(self) -> float:
        """The log-probability of the translation: the sum over its tokens and the end mark."""
        return sum(self.log_probs)

    @property
    def num_tokens(self) -> int:
        """The number of tokens, including the end mark."""
        return len(self.log_probs)

    @property
    def mean(self) -> float:
        """The mean log-probability per token, where the end mark counts as a token."""
        return self.log_prob / self.num_tokens


def log_probs_of(
    model: Model, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int
) -> list[list[float]]:
    """Returns, for each pair of a source and a target, the log-probabilities of the target tokens and the end mark.

    An empty source or target consists of the end mark alone. The pairs are divided into batches. In a batch, the
    sources have at most `batch_tokens` tokens, including padding, and the targets have at most as many. A single pair
    with more tokens is a batch of its own.

    For a masked model, the log-probabilities are those of the tokens when all tokens are masked; the last number of
    each list is then the log-probability of the target length, not that of the end mark.
    """
    found: list[list[float]] = [[] for _ in sources]
    lengths = [max(len(source), len(target)) + 1 for source, target in zip(sources, targets, strict=True)]
    if isinstance(model, Ensemble):  # its decode computes logits of the whole batch, not in chunks
        batch_tokens = min(batch_tokens, chunk_tokens(model))
    for chosen in batches_by_length(lengths, batch_tokens):
        scored = _batch_log_probs(model, [sources[i] for i in chosen], [targets[i] for i in chosen])
        for i, log_probs in zip(chosen, scored, strict=True):
            found[i] = log_probs
    return found


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Divides rows into batches, longest rows first; yields the row indices of each batch.

    `lengths` holds the number of tokens of each row. A batch has at most `batch_tokens` tokens, including padding,
    unless a single row has more.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        most = max(1, batch_tokens // lengths[order[0]])
        yield order[:most]
        order = order[most:]


def chunk_tokens(model: Model) -> int:
    """Returns the maximum number of tokens whose logits are in memory at once.

    This maximum depends on the vocabulary size of the model.
    """
    return max(1, min(CHUNK_TOKENS, CHUNK_ELEMENTS // model.elements_per_token))


@torch.inference_mode()
def _batch_log_probs(
    model: Model, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[list[float]]:
    batch = padded_batch(ragged(sources), ragged(targets), model.boundaries).to(model.device)
    if isinstance(model, MaskedModel):
        return _masked_log_probs(model, batch)
    features, _ = model.decode(batch.target, model.encode(batch.source))  # (R, T, D)
    log_probs = _label_log_probs(model, features, batch.labels)
    rows = torch.split(log_probs.cpu(), [len(target) + 1 for target in targets])
    return [row.tolist() for row in rows]


def _label_log_probs(model: Model, features: Tensor, labels: Tensor) -> Tensor:
    """Returns the log-probability of each label in `labels` (R, T) that is not NO_LABEL, as one vector.

    `features` (R, T, D) are the outputs of the decoder from which the model predicts the labels.
    """
    real = labels != NO_LABEL
    log_probs = []
    for chunk, chunk_labels in zip(
        *(torch.split(x[real], chunk_tokens(model)) for x in (features, labels)), strict=True
    ):
        of_vocabulary = log_probs_from(model.output(chunk))  # (tokens, V)
        log_probs.append(of_vocabulary.gather(1, chunk_labels[:, None])[:, 0])
    return torch.cat(log_probs)


def _masked_log_probs(model: MaskedModel, batch: Batch) -> list[list[float]]:
    """Returns, for each pair of a batch, the log-probabilities of its target tokens when all of them are masked.

    The last number of each list is the log-probability of the target length.
    """
    hidden, state = model.hide(batch, everything=True), model.encode(batch.source)
    features, _ = model.decode(hidden.target, state)
    lengths = (hidden.labels != NO_LABEL).sum(1)
    rows = torch.split(_label_log_probs(model, features, hidden.labels).cpu(), lengths.tolist())
    of_lengths = model.length_log_probs(state, lengths).tolist()
    return [[*row.tolist(), of_length] for row, of_length in zip(rows, of_lengths, strict=True)]


# Attention of given translations to their sources.


def mean_of_last_layer(attention: Sequence[Tensor]) -> Tensor:
    """Returns the weights (R, T, S) averaged over the heads of the last layer; each layer is (R, H, T, S)."""
    return attention[-1].mean(1)


@torch.inference_mode()
def source_attention(
    model: Model,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_tokens: int,
    choose: Callable[[Sequence[Tensor]], Tensor] = mean_of_last_layer,
    shift: int = 0,
) -> list[Tensor]:
    """Returns, for each pair of a source and a target, the attention weights (T, S) of the target tokens, on the CPU.

    Row t holds the weights of the decoding step that predicted target token t. With `shift=1`, row t holds the weights
    of the next step, which reads token t. `choose` is given the weights (R, H, T, S) of all layers, and returns weights
    (R, T, S). The end marks of both sides are left out. A batch has at most `batch_tokens` source tokens and as many
    target tokens, including padding, unless a single pair has more. Raises MtkitError if the model has no attention.
    """
    if isinstance(model, Ensemble):  # its decode computes logits of the whole batch, not in chunks
        batch_tokens = min(batch_tokens, chunk_tokens(model))
    found: dict[int, Tensor] = {}
    lengths = [max(len(source), len(target)) + 1 for source, target in zip(sources, targets, strict=True)]
    for chosen in batches_by_length(lengths, batch_tokens):
        rows = [ragged([side[i] for i in chosen]) for side in (sources, targets)]
        batch = padded_batch(rows[0], rows[1], model.boundaries).to(model.device)
        _, state = model.decode(batch.target, model.encode(batch.source, watch=True))
        if not state.attention:
            raise MtkitError("this model, or one of the ensemble, has no attention to the source")
        for i, weights in zip(chosen, choose(state.attention).cpu(), strict=True):
            found[i] = weights[shift : len(targets[i]) + shift, : len(sources[i])].clone()
    return [found[i] for i in range(len(sources))]
