"""Shortlists: the search for a translation is limited to a few hundred likely target tokens for each sentence.

This makes the output layer, the softmax and the choice of tokens much faster. A sentence's list has the most frequent
target tokens, and the most probable translations of each of its source tokens (the candidate lists of Jean et al. 2015,
section 4; `--shortlist lex 50 50` in Marian, Kim et al. 2019). Translations of single tokens are learnt from the
training pairs by IBM model 1 (Brown et al. 1993). Each sentence has its own list, and its softmax is over this list
alone. So a translation does not depend on the other sentences of its batch.

Shapes: V target and S source vocabulary size, K translations kept for each source token, F frequent tokens, N
sentences of a batch, L length of the longest list, R rows (sentences still being decoded), W hypotheses per sentence, U
tokens that are on any list of a group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkit.bundle.bundle import Bundle
from mtkit.data.batches import Rows
from mtkit.data.corpus import Corpus, spread_blocks
from mtkit.models.interface import Ensemble, Scratch, State, TranslationModel, log_probs_from, mean_of, next_rows
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import Specials
from mtkit.translation.search import BeamStep, Hypothesis, Step

Ids = NDArray[np.int64]

KEPT = 100  # the maximum of K and of F, and so the largest value of decoding.shortlist

Model = TranslationModel | Ensemble

# Choosing: the list of each sentence of a batch.


@dataclass(frozen=True)
class Shortlist:
    """Likely translations of each source token, and frequent target tokens; each sentence's list is made from both."""

    of_source: Tensor  # (S, K) int32, translations of each source token, most probable first, padded with -1
    frequent: Tensor  # (F,) int32, target tokens, most frequent first

    @staticmethod
    def of(bundle: Bundle) -> "Shortlist | None":
        """Returns the shortlist that a bundle has, or `None`; raises CheckpointError if its file is damaged."""
        tensors = bundle.shortlist()
        return None if tensors is None else Shortlist(**tensors)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as a bundle stores them."""
        return {"of_source": self.of_source, "frequent": self.frequent}

    def lists(
        self,
        model: Model,
        sentences: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        count: int,
        forbidden: Sequence[int],
        num_hypotheses: int = 1,
    ) -> "Lists":
        """Returns, for each sentence, a list of target tokens; a search may use only these in the translation.

        `sentences` holds source tokens. A list has up to `count` frequent target tokens, and up to `count` translations
        of each source token of the sentence. The end mark and the unknown token are on all lists, unless they are
        `forbidden`. If `prefixes` is not empty, the list of a sentence also has the tokens of the prefix with which its
        translation must begin. `num_hypotheses` is the number of hypotheses that the search will have for each
        sentence; it decides how many sentences form a group (see `Lists`), and changes no list.
        """
        special = {model.boundaries.start, model.boundaries.target_end, *model.special.all, *forbidden}
        first = np.array(sorted(special), dtype=np.int64)
        never = {*model.special.never_generated, *forbidden} - {model.special.unknown}
        marks = np.zeros((len(sentences), vocab_size_of(model)), dtype=np.bool_)  # (N, V) whether a token is on a list
        marks[:, [token for token in special if token not in never]] = True
        if model.special.unknown in forbidden:
            marks[:, model.special.unknown] = False
        marks[:, self.frequent.numpy()[:count]] = True
        source = np.concatenate([np.asarray(sentence, dtype=np.int64) for sentence in sentences])
        likely = self.of_source.numpy()[source, :count]  # (tokens, count)
        rows = np.repeat(np.arange(len(sentences)), list(map(len, sentences)))
        marks[np.repeat(rows, likely.shape[1])[likely.ravel() >= 0], likely[likely >= 0]] = True
        marks[:, model.untrained] = False
        for row, prefix in enumerate(prefixes):
            marks[row, list(prefix)] = True
        return Lists.of(first, marks, _group_size(model, num_hypotheses))


def vocab_size_of(model: Model) -> int:
    """Returns the size of the target vocabulary."""
    return len((model.members[0] if isinstance(model, Ensemble) else model).output.weight)


GROUP_ROWS = 64  # hypotheses whose logits are computed together; larger groups need logits of more different tokens


def _group_size(model: Model, num_hypotheses: int) -> int | None:
    """Returns the number of sentences in a group, whose logits are computed together; `None` means all of a batch.

    All sentences of a batch form one group on devices other than a CPU, and if the output layer has been replaced
    (`Output.is_replaced`): several small matrix products then take longer than a large one. Otherwise, a group has
    about GROUP_ROWS hypotheses, `num_hypotheses` for each sentence.
    """
    members = model.members if isinstance(model, Ensemble) else [model]
    if model.device.type != "cpu" or any(member.output.is_replaced for member in members):
        return None
    return max(1, GROUP_ROWS // num_hypotheses)


@dataclass(frozen=True)
class Lists:
    """For each sentence of a batch, the list of target tokens that may be generated; all tensors are on the CPU.

    A search with lists uses places instead of token ids: the place of a token is its index on the list of the sentence.
    The sentences are divided into groups; the logits of all tokens that are on any list of a group are computed
    together.
    """

    tokens: Tensor  # (N, L) int64, token ids; padded with a special token
    real: Tensor  # (N, L) False for padding, and for special tokens that have a place but must not be generated
    columns: list[Tensor]  # for each group of sentences: ids (U,) of the tokens on any of its lists, ascending
    index: Tensor  # (N, L) index of each token in the `columns` of its group
    group_sizes: tuple[int, ...]  # the number of sentences in each group; groups are consecutive sentences
    num_first: int  # the number of special tokens, with which all lists begin in the same order

    @staticmethod
    def of(first: Ids, marks: NDArray[np.bool_], group_size: int | None = None) -> "Lists":
        """Returns lists of the tokens that are marked in `marks` (N, V), one list for each sentence.

        All lists begin with the special tokens `first`. A special token that is not marked for a sentence is on the
        list of the sentence, but must not be generated. Modifies `marks`. A group has `group_size` sentences; with
        `None`, all sentences are in one group.
        """
        real_first = marks[:, first]
        marks[:, first] = False
        lengths = marks.sum(1)
        rows, others = marks.nonzero()
        places = len(first) + np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        longest = len(first) + int(lengths.max())
        tokens, real = np.full((len(marks), longest), first[0]), np.zeros((len(marks), longest), dtype=np.bool_)
        tokens[:, : len(first)], real[:, : len(first)] = first, real_first
        tokens[rows, places], real[rows, places] = others, True
        columns, index, size = [], np.zeros_like(tokens), group_size or len(marks)
        groups = [slice(begin, min(begin + size, len(marks))) for begin in range(0, len(marks), size)]
        for group in groups:
            marked: NDArray[np.bool_] = np.logical_or.reduce(marks[group])
            marked[first] = True
            columns.append(torch.from_numpy(marked.nonzero()[0]))
            index[group] = (np.cumsum(marked) - 1)[tokens[group]]
        parts = [torch.from_numpy(part) for part in (tokens, real, index)]
        group_sizes = tuple(group.stop - group.start for group in groups)
        return Lists(parts[0], parts[1], columns, parts[2], group_sizes, len(first))

    def place_of(self, token: int) -> int:
        """Returns the index of a special token, such as the end mark, on the lists.

        The index is the same on all lists, since all begin with the same special tokens.
        """
        return self.tokens[0, : self.num_first].tolist().index(token)

    def places(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Converts token ids to places; the place of a token is its index on the list of the sentence.

        `sequences` has one sequence of token ids for each sentence; all these tokens must be on the list of the
        sentence. If `sequences` is empty, so is the result.
        """
        found = []
        for tokens, own in zip(sequences, self.tokens if sequences else [], strict=False):
            places = {token: place for place, token in reversed(list(enumerate(own.tolist())))} if tokens else {}
            found.append([places[token] for token in tokens])
        return found

    def restored(self, found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """Returns the hypotheses `found` for each sentence, with places replaced by token ids.

        The place of a token is its index on the list of the sentence.
        """
        return [
            [replace(h, tokens=own[h.tokens].tolist()) if h.tokens else h for h in hypotheses]
            for own, hypotheses in zip(self.tokens, found, strict=True)
        ]

    def watching(self, watch: Callable[[BeamStep], None], vocab_size: int) -> Callable[[BeamStep], None]:
        """Returns a function that a search with lists may call after each step, and that passes the step to `watch`.

        In the step that `watch` gets, token ids stand in place of indices on lists. The log-probabilities in this step
        are (R, 1 or W, V), where V is `vocab_size`; they are -inf for tokens that are not on the list of the sentence.
        """

        def watch_ids(step: BeamStep) -> None:
            tokens = self.tokens.to(step.rows.device)[step.rows]  # (R, L)
            log_probs = step.log_probs
            whole = log_probs.new_full((*log_probs.shape[:2], vocab_size), -torch.inf)
            real = self.real.to(step.rows.device)[step.rows, None].expand_as(log_probs)
            whole.scatter_reduce_(
                2, tokens[:, None].expand_as(log_probs), log_probs.masked_fill(~real, -torch.inf), "amax"
            )
            ended, alive = (replace(each, tokens=tokens.gather(1, each.tokens)) for each in (step.ended, step.alive))
            watch(replace(step, log_probs=whole, ended=ended, alive=alive))

        return watch_ids


# Searching on the lists.


@dataclass(frozen=True)
class ListedState:
    """A decoding state; also, for each row, the list of target tokens that may be generated for its sentence."""

    state: State
    tokens: Tensor  # (R, L)
    index: Tensor  # (R, 1, L) as in `Lists`
    outside: Tensor  # (R, 1, L) True for places without a token that may be generated; the opposite of `Lists.real`
    groups: Tensor | None  # (R,) the group of each row; None if there is only one group

    @staticmethod
    def begin(state: State, lists: Lists, device: torch.device) -> "ListedState":
        """Returns the state before the first step, with one row for each sentence."""
        tokens, index, outside = (part.to(device) for part in (lists.tokens, lists.index, ~lists.real))
        groups = None
        if len(lists.group_sizes) > 1:
            sizes = torch.tensor(lists.group_sizes, device=device)
            groups = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        return ListedState(state, tokens, index[:, None], outside[:, None], groups)

    @property
    def attention(self) -> list[Tensor]:
        """The attention weights of the model."""
        return self.state.attention

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of row r continues hypothesis `parents[r, w]`; `parents` is (R, W')."""
        return replace(self, state=self.state.branch(parents))

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64, in the order of the list."""
        parts = (self.tokens[sentences], self.index[sentences], self.outside[sentences])
        groups = None if self.groups is None else self.groups[sentences]
        return type(self)(self.state.keep(sentences), *parts, groups)

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Raises NotImplementedError, since the lists of the sentences in a batch are grouped before the search."""
        raise NotImplementedError


def listed_step(model: Model, lists: Lists, forbidden: Sequence[int]) -> Step[ListedState]:
    """Returns the step function of a search with lists, which maps places (R, W) to log-probabilities (R, W, L).

    A place is the index of a token on the list of the sentence. The softmax is over this list alone; in an ensemble,
    each member has a softmax of its own. The log-probabilities of the places in `forbidden`, and of places that have no
    token on the list, are -inf.

    For each group of sentences, one matrix product computes the logits of all tokens that are on any of its lists; each
    row then takes the logits of the tokens on its own list. This is faster than a product for each sentence, since
    weights are read less often.
    """
    members = model.members if isinstance(model, Ensemble) else [model]
    heads = [[member.output.of(columns.to(model.device)) for columns in lists.columns] for member in members]
    scratches = [Scratch() for _ in members]
    barred = torch.tensor(list(forbidden), dtype=torch.int64, device=model.device)

    def step(places: Tensor, listed: ListedState) -> tuple[Tensor, ListedState]:
        rows = next_rows(listed.tokens.gather(1, places), listed.state)
        features, state = _features_of(model, rows, listed.state)
        found = []
        for feature, own_heads, scratch in zip(features, heads, scratches, strict=True):
            logits = _own_logits(own_heads, feature, listed)
            found.append(log_probs_from(logits.masked_fill_(listed.outside, -torch.inf), scratch))
        return mean_of(found).index_fill_(2, barred, -torch.inf), replace(listed, state=state)

    return step


def _features_of(model: Model, rows: Rows, state: State) -> tuple[list[Tensor], State]:
    """Decodes the tokens in `rows`, one per hypothesis; returns a list of features (R, W, D), and the new state.

    The list has one tensor for each member of an ensemble; for a model that is no ensemble, it has a single tensor.
    """
    if isinstance(model, Ensemble):
        return model.features(rows, state)
    features, state = model.decode(rows, state)
    return [features], state


def _own_logits(heads: Sequence[Callable[[Tensor], Tensor]], features: Tensor, listed: ListedState) -> Tensor:
    """Returns the logits (R, W, L) of the tokens on each row's own list, given the features (R, W, D).

    `heads[g]` maps the features of the rows in group g to the logits (rows, W, U) of all tokens on any of their lists.
    """
    num_hypotheses = features.shape[1]
    if listed.groups is None:
        return heads[0](features).gather(2, listed.index.expand(-1, num_hypotheses, -1))
    logits: Tensor | None = None
    for group in sorted(set(listed.groups.tolist())):
        rows = (listed.groups == group).nonzero()[:, 0]
        of_group = heads[group](features[rows])  # (rows, W, U)
        own = of_group.gather(2, listed.index[rows].expand(-1, num_hypotheses, -1))
        logits = own.new_empty(len(features), *own.shape[1:]) if logits is None else logits
        logits.index_copy_(0, rows, own)
    assert logits is not None
    return logits


# Counting: IBM model 1.

MOST_PAIRS = 200_000  # training pairs that are counted; more change few of the lists
MOST_LINKS = 1 << 25  # links (a source token and a target token of a pair) that are counted, 4 bytes each
CHUNK_LINKS = 1 << 21  # links that are made at a time
ITERATIONS = 4  # of expectation maximisation


def count_shortlist(corpus: Corpus, tokenizer: Tokenizer) -> Shortlist | None:
    """Returns a shortlist that is learnt from the training pairs of `corpus`; `None` if they have no tokens.

    If source and target share a vocabulary, the first translation of each token that is not special is the token
    itself, so that names can be copied.
    """
    source_size, target_size = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    found = model_1(sample_of(corpus, tokenizer.specials), source_size, target_size)
    frequent = most_frequent(sample_of(corpus, tokenizer.specials), target_size)
    if not len(frequent):
        return None
    best = likeliest(found, source_size)
    if tokenizer.is_shared:
        best = with_copies(best, tokenizer.specials.source.all)
    return Shortlist(torch.from_numpy(best), torch.from_numpy(frequent))


@dataclass(frozen=True)
class TokenPairs:
    """Sentence pairs as arrays: the tokens of all sources, one source after another, and likewise of all targets.

    There are no special tokens, and no source or target is empty.
    """

    source: Ids  # the tokens of all sources
    target: Ids  # the tokens of all targets
    source_lengths: Ids  # (pairs,) the number of tokens of each source
    target_lengths: Ids  # (pairs,)


def sample_of(corpus: Corpus, specials: Specials, most_pairs: int = MOST_PAIRS) -> Iterator[TokenPairs]:
    """Yields the pairs of a corpus in blocks; at most `most_pairs` pairs in all.

    If the corpus has more pairs, those that are yielded are spread evenly over the corpus. Special tokens are removed;
    a pair whose source or target has no other tokens is left out.
    """
    for begin, end in spread_blocks(len(corpus), most_pairs):
        sides = []
        for tokens, offsets, special in (
            (corpus.source_tokens, corpus.source_offsets, specials.source),
            (corpus.target_tokens, corpus.target_offsets, specials.target),
        ):
            bounds = offsets[begin : end + 1].astype(np.int64)
            ids = tokens[bounds[0] : bounds[-1]].astype(np.int64)
            sides.append(_without(ids, np.diff(bounds), special.all))
        yield _whole(*sides)


def _without(ids: Ids, lengths: Ids, special: Sequence[int]) -> tuple[Ids, Ids]:
    """Removes special tokens from concatenated sequences; returns the remaining tokens and the new sequence lengths."""
    kept = ~np.isin(ids, special)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return ids[kept], np.bincount(rows[kept], minlength=len(lengths))


def _whole(source: tuple[Ids, Ids], target: tuple[Ids, Ids]) -> TokenPairs:
    """Returns only those pairs of which neither the source nor the target is empty.

    `source` and `target` are each (tokens of all sequences, one after another; length of each sequence).
    """
    whole = (source[1] > 0) & (target[1] > 0)
    (sources, source_lengths), (targets, target_lengths) = (
        (ids[np.repeat(whole, lengths)], lengths[whole]) for ids, lengths in (source, target)
    )
    return TokenPairs(sources, targets, source_lengths, target_lengths)


def links_of(pairs: TokenPairs, null: int) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Yields (source tokens, target tokens, group starts) of all links, about CHUNK_LINKS links at a time.

    A link joins a source token and a target token of a pair. The links of one target token form a group: first the link
    to `null`, which stands for no source token, then a link to each token of the source. The group starts are the
    indices of the first link of each group.
    """
    num_links = np.cumsum((pairs.source_lengths + 1) * pairs.target_lengths)
    source_ends, target_ends = np.cumsum(pairs.source_lengths), np.cumsum(pairs.target_lengths)
    begin = 0
    while begin < len(num_links):
        before = num_links[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(num_links, before + CHUNK_LINKS, side="right")))
        chosen = slice(begin, end)
        lengths, target_lengths = pairs.source_lengths[chosen], pairs.target_lengths[chosen]
        targets = pairs.target[target_ends[begin] - target_lengths[0] : target_ends[end - 1]]
        counts = np.repeat(lengths + 1, target_lengths)  # links of each target token
        begins = np.cumsum(counts) - counts
        place = np.arange(counts.sum()) - np.repeat(begins, counts)  # 0 is for null
        first = np.repeat(np.repeat(source_ends[chosen] - lengths, target_lengths), counts)
        sources = np.where(place == 0, null, pairs.source[first + np.maximum(place - 1, 0)])
        yield sources, np.repeat(targets, counts), begins
        begin = end


@dataclass(frozen=True)
class Translations:
    """Probabilities of target tokens, given a source token: entry i is p(target[i] | source[i]).

    Entries are sorted by source token, then by target token. The first id above the source vocabulary stands for no
    source token (the null word of Brown et al.).
    """

    source: Ids
    target: Ids
    probability: NDArray[np.float64]


def model_1(samples: Iterator[TokenPairs], source_size: int, target_size: int) -> Translations:
    """Returns the probabilities t(target | source) of IBM model 1 (Brown et al. 1993).

    They are estimated by ITERATIONS iterations of expectation maximisation, which start from a uniform distribution.
    """
    keys, chunks = _counted(samples, source_size, target_size)
    source, target = keys // target_size, keys % target_size
    probability = np.ones(len(keys))
    for _ in range(ITERATIONS):
        counts = np.zeros(len(keys))
        for index, begins in chunks:
            share = probability[index]
            sums = np.add.reduceat(share, begins)
            share /= np.repeat(sums, np.diff(begins, append=len(index)))
            counts += np.bincount(index, share, minlength=len(keys))
        probability = counts / np.bincount(source, counts, minlength=source_size + 1)[source]
    return Translations(source, target, probability)


def _counted(
    samples: Iterator[TokenPairs], source_size: int, target_size: int
) -> tuple[Ids, list[tuple[NDArray[np.int32], Ids]]]:
    """Returns the keys of all links, sorted and without duplicates, and two arrays for each chunk of links.

    A link joins a source token and a target token of a pair; its key is source x `target_size` + target. The first
    array holds, for each link of the chunk, the index of its key among the sorted keys; the second holds the index of
    the first link of each group (see `links_of`). No more samples are read once there are MOST_LINKS links.
    """
    own: list[tuple[Ids, NDArray[np.int32], Ids]] = []
    num_links = 0
    for pairs in samples:
        for sources, targets, begins in links_of(pairs, source_size):
            keys, index = np.unique(sources * target_size + targets, return_inverse=True)
            own.append((keys, index.astype(np.int32), begins))
            num_links += len(index)
        if num_links >= MOST_LINKS:
            break
    if not own:
        return np.zeros(0, np.int64), []
    every = np.unique(np.concatenate([keys for keys, _, _ in own]))
    chunks = [(np.searchsorted(every, keys).astype(np.int32)[index], begins) for keys, index, begins in own]
    return every, chunks


def likeliest(found: Translations, source_size: int, kept: int = KEPT) -> NDArray[np.int32]:
    """Returns the `kept` most probable translations of each source token (S, kept), best first, padded with -1."""
    real = found.source < source_size
    source, target, probability = found.source[real], found.target[real], found.probability[real]
    order = np.lexsort((target, -probability, source))
    source, target = source[order], target[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    best = np.full((source_size, kept), -1, dtype=np.int32)
    best[source[rank < kept], rank[rank < kept]] = target[rank < kept]
    return best


def with_copies(best: NDArray[np.int32], special: Sequence[int]) -> NDArray[np.int32]:
    """Returns `best` (S, K), the translations of each token, with the token itself put first unless it is `special`.

    If this makes K + 1 translations of a token, the last one is dropped.
    """
    found = best.copy()
    for token in np.setdiff1d(np.arange(len(best)), special).tolist():
        others = best[token][best[token] != token][: best.shape[1] - 1]
        found[token, : len(others) + 1] = [token, *others]
        found[token, len(others) + 1 :] = -1
    return found


def most_frequent(samples: Iterator[TokenPairs], target_size: int, kept: int = KEPT) -> NDArray[np.int32]:
    """Returns the `kept` target tokens that occur most often (F,), most frequent first; fewer if fewer occur."""
    counts = np.zeros(target_size, dtype=np.int64)
    for pairs in samples:
        counts += np.bincount(pairs.target, minlength=target_size)
    order = np.argsort(-counts, kind="stable")[:kept]
    return order[counts[order] > 0].astype(np.int32)
