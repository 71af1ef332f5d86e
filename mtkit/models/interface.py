"""What the rest of mtkit knows of a model: encode, decode, output; and several models as one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.data.batch import Rows
from mtkit.text.vocabulary import START_TOKENS, BoundaryTokens, SpecialIds, Specials


class State(Protocol):
    """All that a model needs to go on, for R sentences with W hypotheses each.

    A state is used up by the step that takes it: caches are written in place.
    """

    positions: Tensor  # (R,) int64: tokens decoded so far, the start mark among them

    # How the Q tokens that were decoded last looked at the source: for each layer (R, H, Q, S), rows that sum to 1.
    # Empty unless the source was encoded with watch, and where a model has no attention.
    attention: list[Tensor]

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64, and W' may differ from W."""

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, in that order; (R',) int64."""


class Embedding(nn.Module):
    """A row for every token of a vocabulary; shared between places by sharing the module."""

    def __init__(self, vocab_size: int, d_model: int, scaled: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.scale = d_model**0.5 if scaled else 1.0

    def initialize(self) -> None:
        """Normal with variance 1/d_model, so that scaled embeddings and tied logits both begin near unit variance."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def keep_zero(self, row: int) -> None:
        """Make the row of a token zero, and let training not change it."""
        with torch.no_grad():
            self.weight[row] = 0

        def without(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[row] = 0
            return gradient

        self.weight.register_hook(without)  # type: ignore[no-untyped-call]

    def forward(self, rows: Rows) -> Tensor:
        """(R, L, D); zero where a token is cut."""
        x = F.embedding(rows.ids, self.weight) * self.scale
        return x if rows.cut is None else x.masked_fill(rows.cut[:, :, None], 0.0)


class Output(nn.Module):
    """From features to logits, by the rows of an embedding, and a bias where it has one."""

    def __init__(self, table: Embedding, has_bias: bool = False) -> None:
        super().__init__()
        self.table = table
        self.bias = nn.Parameter(torch.empty(len(table.weight))) if has_bias else None  # (V,)
        self.closed: list[int] = []  # tokens that are impossible, since no training has seen them

    def initialize(self) -> None:
        """No token is likelier at the start."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        """(V, D)."""
        return self.table.weight

    def forward(self, features: Tensor, columns: Tensor | None = None) -> Tensor:
        """(…, D) features to (…, V) logits, or to those of the given columns alone."""
        if columns is None:
            logits = F.linear(features, self.weight, self.bias)
            if self.closed:
                logits[..., self.closed] = float("-inf")
            return logits
        return F.linear(features, self.weight[columns], None if self.bias is None else self.bias[columns])


def tied(
    tie: str, source: Callable[[], Embedding], target: Callable[[], Embedding], output_bias: bool
) -> tuple[Embedding, Embedding, Output]:
    """The embeddings of source and target, and the output layer, which share one matrix as the settings say.

    source and target make a matrix of that side's size.
    """
    embedding = target()
    output = Output(target() if tie == "none" else embedding, output_bias)
    return embedding if tie == "all" else source(), embedding, output


@dataclass(frozen=True)
class Memory:
    """What an encoder leaves to a decoder."""

    states: Tensor  # (R, S, D), one for each token
    finals: list[Tensor]  # of each layer what is left after the last token, (R, any width); empty where nothing is


class Encoder(Protocol):
    """Reads the source."""

    final_widths: list[int]  # of the memory's finals

    def __call__(self, source: Rows) -> Memory:
        """What a decoder begins with."""


class Decoder(Protocol):
    """Says the target, token by token or all at once."""

    embedding: Embedding
    output: Output

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> State:
        """The state before the first token. With watch it will tell its attention."""

    def __call__(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """(R, T, D) features of the next tokens, and the state after them."""


@dataclass(frozen=True)
class Limits:
    """The longest rows a model can take, in tokens; None is no limit."""

    source: int | None = None
    target: int | None = None


class TranslationModel(nn.Module):
    """An encoder and a decoder, chosen apart; start is the name of what the decoder reads first."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, limits: Limits, start: str = "begin") -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.limits = limits
        self.start = start
        self.set_specials(Specials())

    def set_specials(self, specials: Specials) -> None:
        """Let the special ids be those of the model's vocabularies; at first they are our own."""
        start = START_TOKENS[self.start](specials.target)
        assert start is not None, "the settings ask for no start token that the vocabulary lacks"
        self.special: SpecialIds = specials.target  # what the model may say, or not
        self.boundaries = BoundaryTokens(specials.source.end, start, specials.target.end)

    def keep_start_zero(self) -> None:
        """Where the decoder begins with a zero vector, make it one, and let training not change it."""
        if self.start == "zero":
            table: Embedding = self.decoder.embedding  # type: ignore[assignment]
            table.keep_zero(self.boundaries.start)

    def encode(self, source: Rows, watch: bool = False) -> State:
        """The state from which decoding starts, one hypothesis a sentence; with watch it will tell its attention."""
        state: State = self.decoder.start(self.encoder(source), source, watch)  # type: ignore[operator]
        return state

    def decode(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """(R, T, D) features that predict what follows each target token, and the state after the last.

        Teacher forcing gives all tokens at once, a search one for each hypothesis: the same lines compute both.
        """
        result: tuple[Tensor, State] = self.decoder(target, state)
        return result

    @property
    def output(self) -> Output:
        """The last layer, from features to logits."""
        layer: Output = self.decoder.output  # type: ignore[assignment]
        return layer

    def forward(self, source: Rows, target: Rows) -> Tensor:
        """(R, T, D) features of a batch under teacher forcing."""
        return self.decode(target, self.encode(source))[0]

    @property
    def elements_per_token(self) -> int:
        """How many numbers predict one token: the size of the target vocabulary."""
        return len(self.output.weight)

    @property
    def drops_layers(self) -> bool:
        """Whether each pass in training leaves out layers, the same ones for all of its rows."""
        return any(getattr(half, "layer_dropout", 0.0) > 0 for half in (self.encoder, self.decoder))

    @property
    def untrained(self) -> list[int]:
        """The last tokens of the target vocabulary, where no training has seen them; they are impossible."""
        return self.output.closed

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.output.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output.weight.device

    @property
    def num_parameters(self) -> int:
        """Weights, those that are shared counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def next_rows(ids: Tensor, state: State) -> Rows:
    """(R, W) ids, one for each hypothesis of a state, as target rows: every hypothesis is a segment of its own."""
    num_hypotheses = ids.shape[1]
    segments = torch.arange(1, num_hypotheses + 1, device=ids.device).expand_as(ids)
    return Rows(ids, segments, state.positions[:, None].expand_as(ids), packed=num_hypotheses > 1)


# Several models that speak as one: at each step the mean of their probabilities (Hansen & Salamon, 1990).


class EnsembleState:
    """The states of the members, which go the same way."""

    def __init__(self, states: list[State]) -> None:
        self.states = states
        self.positions = states[0].positions
        self.attention = _mean_attention(states)

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64."""
        return type(self)([state.branch(parents) for state in self.states])

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, in that order."""
        return type(self)([state.keep(sentences) for state in self.states])


class Ensemble:
    """Models of one vocabulary, as a model: what it gives in the place of features are log-probabilities already."""

    def __init__(self, members: Sequence[TranslationModel]) -> None:
        self.members = members
        self.limits = Limits(
            _least([member.limits.source for member in members]), _least([member.limits.target for member in members])
        )
        self.boundaries = members[0].boundaries
        self.special = members[0].special
        self.device = members[0].device
        self.dtype = members[0].dtype

    @property
    def untrained(self) -> list[int]:
        """The last tokens of the vocabulary, where no training of any member has seen them."""
        return min((member.untrained for member in self.members), key=len)

    @property
    def elements_per_token(self) -> int:
        """How many numbers predict one token: the vocabulary of every member."""
        return sum(member.elements_per_token for member in self.members)

    def encode(self, source: Rows, watch: bool = False) -> State:
        """The state from which decoding starts, one hypothesis a sentence; with watch it will tell its attention."""
        return EnsembleState([member.encode(source, watch) for member in self.members])

    def decode(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """(R, T, V) log-probabilities of what follows each target token, and the state after the last."""
        assert isinstance(state, EnsembleState)
        states, log_probs = [], []
        for member, own in zip(self.members, state.states, strict=True):
            features, own = member.decode(target, own)
            logits = member.output(features)
            log_probs.append((logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1))
            states.append(own)
        mean = torch.stack(log_probs).logsumexp(0) - math.log(len(self.members))
        return mean, EnsembleState(states)

    def output(self, log_probs: Tensor) -> Tensor:
        """The same: a log-softmax leaves log-probabilities as they are."""
        return log_probs


def _mean_attention(states: list[State]) -> list[Tensor]:
    """One layer of one head, (R, 1, Q, S): the mean of the members' last layers; none if a member has no attention."""
    if not all(state.attention for state in states):
        return []
    return [torch.stack([state.attention[-1].mean(1, keepdim=True) for state in states]).mean(0)]


def _least(limits: list[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None
