"""The interface of all models (the methods `encode`, `decode` and `output`), and ensembles, which share this interface.

Shapes: R rows (one sentence each, unless packed), S source length, T target length, Q tokens decoded in one call,
L either S or T, W hypotheses per sentence, H heads, D model width, V vocabulary size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.data.batches import Rows
from mtkit.text.vocabulary import START_TOKENS, BoundaryTokens, SpecialIds, Specials

# Decoding states.


class SearchState(Protocol):
    """The methods that a search calls on a decoding state.

    A state covers R sentences with W hypotheses each. `branch`, `keep` and every decoding step return a new state. The
    old state must not be used afterwards: the old and the new state may share caches, which are modified in place.
    """

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of sentence r continues hypothesis `parents[r, w]` of this state.

        `parents` is (R, W') int64. W' may differ from W, for example when one hypothesis becomes a beam.
        """

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64, in the order of the list."""

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Returns a state in which the rows of `fresh` replace the rows with the indices `places`, (R',) int64.

        `fresh` is a state before the first step, with R' sentences of one hypothesis each. In the returned state, all W
        hypotheses of a replaced row are before their first step; other rows are unchanged. Some states cannot be
        refilled, for example those of a decoder without a cache.
        """


def put(old: Tensor, places: Tensor, new: Tensor, dim: int | None = None) -> Tensor:
    """Returns a copy of `old`, (R, …), in which the rows of `new`, (R', …), replace rows `places`, (R',) int64.

    Dimensions in which `new` has size 1 are expanded to the size of `old`. If `dim` is given, `old` and `new` may have
    different sizes in dimension `dim`; the smaller tensor is then padded with zeros (False) at the end.
    """
    if dim is not None:
        missing = new.shape[dim] - old.shape[dim]
        old, new = _padded(old, dim, missing), _padded(new, dim, -missing)
    return old.index_copy(0, places, new.to(old.dtype).expand(-1, *old.shape[1:]))


def keep_rows(sentences: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Returns each of `tensors`, (R, …), with only the rows listed in `sentences`, (R',) int64, in that order.

    The tensors must not overlap in memory, and must not be used afterwards, since they may be overwritten. On a CPU,
    without gradients, if at least half of the listed rows keep their indices, the other rows are moved in place. The
    results are then views of `tensors`. In all other cases, the results are copies.
    """
    count = len(sentences)
    if sentences.device.type == "cpu" and not torch.is_grad_enabled() and tensors and count <= len(tensors[0]):
        moved = (sentences != torch.arange(count)).nonzero()[:, 0]
        if len(moved) <= count // 2:
            origins = sentences[moved]
            return [x[:count].index_copy_(0, moved, x.index_select(0, origins)) for x in tensors]
    return [x.index_select(0, sentences) for x in tensors]


def _padded(x: Tensor, dim: int, missing: int) -> Tensor:
    """Returns `x` with `missing` zeros appended to dimension `dim`; if `missing` is not positive, `x` itself."""
    return x if missing <= 0 else torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim)


class State(SearchState, Protocol):
    """Everything that a model needs in order to decode the next tokens of R sentences, with W hypotheses each."""

    @property
    def positions(self) -> Tensor:
        """For each row, the number of tokens decoded so far per hypothesis, including the start token; (R,) int64."""

    @property
    def attention(self) -> list[Tensor]:
        """The weights with which the tokens of the last `decode` call attended to the source.

        There is one tensor (R, H, Q, S) per layer; the weights in it sum to 1 over S. The list is empty if `encode` was
        called without `watch=True` or the model has no attention.
        """


# The first and the last layer of a model: embeddings and output.


class Embedding(nn.Module):
    """A matrix of token embeddings; layers with tied embeddings share one such module."""

    def __init__(self, vocab_size: int, d_model: int, scaled: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))  # (V, D)
        self.scale = d_model**0.5 if scaled else 1.0

    def initialize(self) -> None:
        """Draws the matrix from a normal distribution of variance 1/D.

        If the model multiplies the embeddings by sqrt(D), the products have variance 1. If an output layer multiplies
        features of variance 1 by this matrix, the logits have variance 1 too.
        """
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def keep_zero(self, token: int) -> None:
        """Sets the embedding of the token id `token` to zero, and keeps it zero in training by zeroing its gradient."""
        with torch.no_grad():
            self.weight[token] = 0

        def without_token(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[token] = 0
            return gradient

        self.weight.register_hook(without_token)  # type: ignore[no-untyped-call]

    def forward(self, rows: Rows) -> Tensor:
        """Returns the embeddings (R, L, D) of the tokens in `rows`; tokens for which `rows.cut` is True get zeros."""
        x = F.embedding(rows.ids, self.weight) * self.scale
        return x if rows.cut is None else x.masked_fill(rows.cut[:, :, None], 0.0)


# Makes a layer that maps features to logits, from a matrix (V, D) and an optional bias (V,).
MakeProjection = Callable[[Tensor, Tensor | None], nn.Module]


class Output(nn.Module):
    """The output layer, which maps features to logits by an embedding matrix and an optional bias."""

    def __init__(self, table: Embedding, has_bias: bool = False) -> None:
        super().__init__()
        self.table = table
        self.bias = nn.Parameter(torch.empty(len(table.weight))) if has_bias else None  # (V,)
        self.untrained: list[int] = []  # tokens added after training; their logits are -inf
        self.projection: nn.Module | None = None  # computes the logits, bias included, in place of matrix and bias
        self._make_projection: MakeProjection | None = None

    @property
    def is_replaced(self) -> bool:
        """Whether `project_by` was called, so that other layers compute the logits."""
        return self._make_projection is not None

    def project_by(self, make: MakeProjection) -> None:
        """Lets the layer that `make(matrix, bias)` returns compute all logits from now on; the bias may be `None`.

        Functions that `of` returns later also use layers that `make` returns.
        """
        self.projection = make(self.weight, self.bias)
        self._make_projection = make

    def initialize(self) -> None:
        """Sets the bias to zero, if there is one."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        """The embedding matrix (V, D)."""
        return self.table.weight

    def forward(self, features: Tensor, columns: Tensor | None = None) -> Tensor:
        """Returns the logits (…, V) of `features` (…, D); tokens added after training (`untrained`) get -inf.

        If `columns`, (U,) token ids, is given, returns only the logits (…, U) of these tokens; none is then set to
        -inf.
        """
        if columns is None:
            if self.projection is None:
                logits = F.linear(features, self.weight, self.bias)
            else:
                logits = self.projection(features)
            if self.untrained:
                logits[..., self.untrained] = float("-inf")
            return logits
        return self.of(columns)(features)

    def of(self, columns: Tensor) -> Callable[[Tensor], Tensor]:
        """Returns a function that maps features (…, D) to the logits (…, U) of the tokens with ids `columns`, (U,).

        The function keeps a copy of the rows of the matrix for these tokens, so it should be made once and called
        often. The function gives the same logits as `forward`, up to rounding. This is true in int8, too, since the
        weights of each token are rounded to 8 bits independently of the weights of other tokens.
        """
        weight, bias = self.weight[columns], None if self.bias is None else self.bias[columns]
        if self._make_projection is not None:
            return self._make_projection(weight, bias)
        return partial(F.linear, weight=weight, bias=bias)


SLICE_ELEMENTS = 1 << 19  # log-probabilities computed at a time on a CPU: 2 MB in fp32, which fit into a core's cache


class Scratch:
    """A float32 buffer on the CPU that all steps of a search share, since new memory at each step would cost time."""

    def __init__(self) -> None:
        self.vector = torch.empty(0)

    def at_least(self, length: int) -> Tensor:
        """Returns a float32 vector with at least `length` elements, on the CPU.

        All calls return the same vector, until a call needs a longer one.
        """
        if length > len(self.vector):
            self.vector = torch.empty(length)
        return self.vector


def log_probs_from(logits: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Returns the log-softmax over the last dimension of `logits`, (…, V).

    The result is in fp64 if the logits are in fp64, otherwise in fp32. Do not use the logits afterwards.

    On a CPU, the result has no gradient. It overwrites logits in fp32 or fp64. For logits in other dtypes, the result
    is stored in `scratch`, if given, and the next call with the same `scratch` overwrites it.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    if logits.device.type != "cpu":
        return logits.log_softmax(-1, dtype=exact)
    if logits.dtype == exact:
        log_probs = logits.detach()
    else:
        memory = (scratch or Scratch()).at_least(logits.numel())
        log_probs = memory[: logits.numel()].view(logits.shape)
    rows, results = (x.view(-1, logits.shape[-1]) for x in (logits.detach(), log_probs))
    num_rows = max(1, SLICE_ELEMENTS // logits.shape[-1])
    for start in range(0, len(rows), num_rows):
        part = results[start : start + num_rows]
        if logits.dtype != exact:
            part.copy_(rows[start : start + num_rows])
        torch.log_softmax(part, -1, out=part)
    return log_probs


def tied_embeddings(
    tie: str, source: Callable[[], Embedding], target: Callable[[], Embedding], output_bias: bool
) -> tuple[Embedding, Embedding, Output]:
    """Returns the source embedding, the target embedding and the output layer.

    `tie` is the setting `tie_embeddings`. With "all", both embeddings and the output layer share one matrix; with
    "decoder", only the target embedding and the output layer share a matrix; with "none", nothing is shared. `source`
    and `target` are functions that create an embedding for the source side and for the target side.
    """
    embedding = target()
    output = Output(target() if tie == "none" else embedding, output_bias)
    return embedding if tie == "all" else source(), embedding, output


# Models.


@dataclass(frozen=True)
class Memory:
    """The output of an encoder, which a decoder attends to or starts from."""

    states: Tensor  # (R, S, D), one for each source token
    finals: list[Tensor]  # (R, width) for each encoder layer: its state after the last token; [] for a Transformer


class Encoder(Protocol):
    """An nn.Module that encodes the source."""

    final_widths: list[int]  # the width of each of the memory's finals

    def __call__(self, source: Rows) -> Memory:
        """Returns the encoded source: the states of all tokens and, for recurrent layers, each layer's final state."""


class NoEncoder(nn.Module):
    """Takes the place of an encoder in a language model, whose decoder uses no encoded source."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.final_widths: list[int] = []

    def forward(self, source: Rows) -> Memory:
        """Returns an empty memory, with states (R, 0, D)."""
        return Memory(torch.zeros(len(source.ids), 0, self.d_model, device=source.ids.device), finals=[])


class Decoder(Protocol):
    """An nn.Module that predicts the target: one token per call in a search, all tokens at once in training."""

    output: Output

    @property
    def embedding(self) -> Embedding:
        """The target embedding."""

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> State:
        """Returns the state before the first token; with `watch=True`, this and all later states record attention."""

    def __call__(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """Returns features (R, T, D) and the new state; the feature vector of each token predicts the next token."""


@dataclass(frozen=True)
class Limits:
    """The maximum lengths of the rows that a model accepts, in tokens; `None` means no limit."""

    source: int | None = None
    target: int | None = None


class TranslationModel(nn.Module):
    """A model that consists of an encoder and a decoder.

    The attribute `start`, for example "begin", names the token that the decoder reads first. If the attribute `shifted`
    is false, the decoder's input in training is not shifted: at each position, the decoder reads the very token that it
    should predict there. A language model has NoEncoder as its encoder, and is given sources without tokens.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder, limits: Limits, start: str = "begin", shifted: bool = True
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.limits = limits
        self.start = start
        self.shifted = shifted
        self.set_specials(Specials())

    def set_specials(self, specials: Specials) -> None:
        """Sets the ids of the special tokens, such as the start token and the end mark.

        Until this method is called, a model uses the ids of special tokens in vocabularies made by mtkit.
        """
        start = START_TOKENS[self.start](specials.target)
        assert start is not None, "the settings ask for no start token that the vocabulary lacks"
        self.special: SpecialIds = specials.target
        self.boundaries = BoundaryTokens(specials.source.end, start, specials.target.end, self.shifted)

    def keep_start_zero(self) -> None:
        """If the attribute `start` is "zero", sets the start token's embedding to zero; training leaves it at zero."""
        if self.start == "zero":
            self.decoder.embedding.keep_zero(self.boundaries.start)

    def encode(self, source: Rows, watch: bool = False) -> State:
        """Encodes the source; returns the state before the first target token, with one hypothesis per sentence.

        With `watch=True`, this state and all later ones record attention weights.
        """
        return self.decoder.start(self.encoder(source), source, watch)

    def decode(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """Returns features (R, T, D) and the new state; the feature vector of each token predicts the next token.

        Teacher forcing passes all target tokens in one call; a search passes one token per hypothesis in each call. If
        the attribute `shifted` is false, the feature vector of each token predicts, under teacher forcing, that token
        itself.
        """
        return self.decoder(target, state)

    @property
    def output(self) -> Output:
        """The output layer, which maps features to logits."""
        return self.decoder.output

    def forward(self, source: Rows, target: Rows) -> Tensor:
        """Returns the features (R, T, D) of a batch under teacher forcing."""
        return self.decode(target, self.encode(source))[0]

    @property
    def reads_source(self) -> bool:
        """Whether the model has an encoder; a language model has none."""
        return not isinstance(self.encoder, NoEncoder)

    @property
    def elements_per_token(self) -> int:
        """The number of logits computed for one target token: the size of the target vocabulary."""
        return len(self.output.weight)

    @property
    def drops_layers(self) -> bool:
        """Whether training uses layer dropout: all rows of a forward pass then skip the same layers."""
        return any(getattr(half, "layer_dropout", 0.0) > 0 for half in (self.encoder, self.decoder))

    @property
    def untrained(self) -> list[int]:
        """The ids of tokens that were added to the target vocabulary after training; the model never generates them."""
        return self.output.untrained

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.output.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.output.weight.device

    @property
    def num_parameters(self) -> int:
        """The number of parameters; parameters shared by several layers count once."""
        return sum(parameter.numel() for parameter in self.parameters())


def next_rows(ids: Tensor, state: State) -> Rows:
    """Returns target rows for the next `decode` call: `ids`, (R, W), holds the next token of each hypothesis.

    Each hypothesis is a segment of its row. The position of each new token is the number of tokens of the hypothesis
    that `state` includes.
    """
    num_hypotheses = ids.shape[1]
    segments = torch.arange(1, num_hypotheses + 1, device=ids.device).expand_as(ids)
    return Rows(ids, segments, state.positions[:, None].expand_as(ids), packed=num_hypotheses > 1)


# Ensembles: several models whose probabilities are averaged at each step (Hansen & Salamon, 1990).


@dataclass(frozen=True)
class EnsembleState:
    """The decoding states of all members of an ensemble; each method is applied to the state of every member."""

    states: list[State]

    @property
    def positions(self) -> Tensor:
        """For each row, the number of tokens decoded so far per hypothesis, including the start token; (R,) int64."""
        return self.states[0].positions

    @property
    def attention(self) -> list[Tensor]:
        """One tensor (R, 1, Q, S): the attention weights of the members' last layers, averaged over heads and members.

        The list is empty if at least one member records no attention.
        """
        if not all(state.attention for state in self.states):
            return []
        return [torch.stack([state.attention[-1].mean(1, keepdim=True) for state in self.states]).mean(0)]

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of row r continues hypothesis `parents[r, w]`; `parents` is (R, W')."""
        return type(self)([state.branch(parents) for state in self.states])

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64, in the order of the list."""
        return type(self)([state.keep(sentences) for state in self.states])

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Returns a state in which the rows of `fresh` replace the rows with the indices `places`, (R',) int64.

        `fresh` is a state before the first step, with R' sentences of one hypothesis each. Other rows are unchanged.
        """
        pairs = zip(self.states, fresh.states, strict=True)
        return type(self)([state.refill(places, new) for state, new in pairs])


class Ensemble:
    """Models with the same vocabulary, used like a single model.

    `decode` returns log-probabilities instead of features, and `output` returns its input unchanged.
    """

    def __init__(self, members: Sequence[TranslationModel]) -> None:
        self.members = members
        self.limits = Limits(
            _smallest([member.limits.source for member in members]),
            _smallest([member.limits.target for member in members]),
        )
        self.reads_source = members[0].reads_source
        self.boundaries = members[0].boundaries
        self.special = members[0].special
        self.device = members[0].device
        self.dtype = members[0].dtype

    @property
    def untrained(self) -> list[int]:
        """The ids of the tokens that no member was trained with; these ids are at the end of the vocabulary."""
        return min((member.untrained for member in self.members), key=len)

    @property
    def elements_per_token(self) -> int:
        """The number of logits computed for one target token: the sum of the members' vocabulary sizes."""
        return sum(member.elements_per_token for member in self.members)

    def encode(self, source: Rows, watch: bool = False) -> EnsembleState:
        """Encodes the source; returns the state before the first target token, with one hypothesis per sentence.

        With `watch=True`, this state and all later ones record attention weights.
        """
        return EnsembleState([member.encode(source, watch) for member in self.members])

    def features(self, target: Rows, state: State) -> tuple[list[Tensor], EnsembleState]:
        """Returns a list with each member's features (R, T, D) for the target tokens, and the new state."""
        assert isinstance(state, EnsembleState)
        pairs = [member.decode(target, own) for member, own in zip(self.members, state.states, strict=True)]
        return [features for features, _ in pairs], EnsembleState([own for _, own in pairs])

    def decode(self, target: Rows, state: State) -> tuple[Tensor, EnsembleState]:
        """Returns, for each target token, the log-probabilities (R, T, V) of the next token, and the new state.

        The probability of a token is the mean of the probabilities that the members give the token.
        """
        features, state = self.features(target, state)
        outputs = zip(self.members, features, strict=True)
        return mean_of([log_probs_from(member.output(own)) for member, own in outputs]), state

    def output(self, log_probs: Tensor) -> Tensor:
        """Returns `log_probs` unchanged; a log-softmax, which usually follows, does not change log-probabilities."""
        return log_probs


def mean_of(log_probs: Sequence[Tensor]) -> Tensor:
    """Returns the logarithm of the mean of the probabilities, given one tensor of log-probabilities per member."""
    return log_probs[0] if len(log_probs) == 1 else torch.stack(list(log_probs)).logsumexp(0) - math.log(len(log_probs))


def _smallest(limits: list[int | None]) -> int | None:
    """Returns the smallest limit that is not `None`; `None` (no limit) if all are `None`."""
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None
