"""The interface of every model: encode, decode and output; and ensembles, which have it too.

Shapes: R rows (one sentence each, unless packed), S source length, T target length, Q tokens decoded in one call,
L either length, W hypotheses per sentence, H heads, D model width, V vocabulary size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.data.batch import Rows
from mtkit.text.vocabulary import START_TOKENS, BoundaryTokens, SpecialIds, Specials

# The state of decoding.


class SearchState(Protocol):
    """The part of a decoding state that a search uses, for R sentences with W hypotheses each.

    branch, keep and every decoding step return a new state. The old one must not be used again: the two may share
    caches, which are written in place.
    """

    def branch(self, parents: Tensor) -> Self:
        """Returns the state in which hypothesis w of sentence r continues parents[r, w].

        parents is (R, W') int64; W' may differ from W, as it does when one hypothesis becomes a beam.
        """

    def keep(self, sentences: Tensor) -> Self:
        """Returns the state of these rows only, in this order; sentences is (R',) int64."""


class State(SearchState, Protocol):
    """All that a model needs to decode the next tokens of R sentences with W hypotheses each."""

    @property
    def positions(self) -> Tensor:
        """(R,) int64: the number of tokens decoded so far, including the start token."""

    @property
    def attention(self) -> list[Tensor]:
        """Attention weights of the Q tokens decoded last: for each layer (R, H, Q, S), whose rows sum to 1.

        Empty unless the source was encoded with watch, and for models without attention.
        """


# The layers at both ends: embeddings and output.


class Embedding(nn.Module):
    """A matrix of token embeddings; layers share it by sharing this module."""

    def __init__(self, vocab_size: int, d_model: int, scaled: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))  # (V, D)
        self.scale = d_model**0.5 if scaled else 1.0

    def initialize(self) -> None:
        """Draws from a normal distribution of variance 1/D: scaled embeddings and tied logits then have variance 1."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def keep_zero(self, token: int) -> None:
        """Sets the embedding of a token to zero and keeps training from changing it."""
        with torch.no_grad():
            self.weight[token] = 0

        def without_token(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[token] = 0
            return gradient

        self.weight.register_hook(without_token)  # type: ignore[no-untyped-call]

    def forward(self, rows: Rows) -> Tensor:
        """Embeddings (R, L, D); zero for tokens that are cut."""
        x = F.embedding(rows.ids, self.weight) * self.scale
        return x if rows.cut is None else x.masked_fill(rows.cut[:, :, None], 0.0)


class Output(nn.Module):
    """The output layer: features to logits, by an embedding matrix and an optional bias."""

    def __init__(self, table: Embedding, has_bias: bool = False) -> None:
        super().__init__()
        self.table = table
        self.bias = nn.Parameter(torch.empty(len(table.weight))) if has_bias else None  # (V,)
        self.untrained: list[int] = []  # tokens added after training; their logits are -inf

    def initialize(self) -> None:
        """Sets the bias to zero, so that it favours no token."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        """The matrix (V, D)."""
        return self.table.weight

    def forward(self, features: Tensor, columns: Tensor | None = None) -> Tensor:
        """Logits (…, V) of features (…, D), or only those of the given columns.

        Untrained tokens get -inf where all logits are asked for.
        """
        if columns is None:
            logits = F.linear(features, self.weight, self.bias)
            if self.untrained:
                logits[..., self.untrained] = float("-inf")
            return logits
        return F.linear(features, self.weight[columns], None if self.bias is None else self.bias[columns])


def log_probs_from(logits: Tensor) -> Tensor:
    """Log-softmax over the vocabulary, in float64 if the logits are, else in float32."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def tied_embeddings(
    tie: str, source: Callable[[], Embedding], target: Callable[[], Embedding], output_bias: bool
) -> tuple[Embedding, Embedding, Output]:
    """The source embedding, the target embedding and the output layer, which share matrices as the setting tie says.

    source and target each make a new embedding of that side's vocabulary.
    """
    embedding = target()
    output = Output(target() if tie == "none" else embedding, output_bias)
    return embedding if tie == "all" else source(), embedding, output


# Models.


@dataclass(frozen=True)
class Memory:
    """What an encoder passes to a decoder."""

    states: Tensor  # (R, S, D), one for each source token
    finals: list[Tensor]  # per encoder layer, its state after the last token, (R, any width); empty if it has none


class Encoder(Protocol):
    """An nn.Module that encodes the source."""

    final_widths: list[int]  # widths of the memory's finals

    def __call__(self, source: Rows) -> Memory:
        """Returns what a decoder starts from."""


class Decoder(Protocol):
    """An nn.Module that predicts the target, one token at a time or all at once."""

    output: Output

    @property
    def embedding(self) -> Embedding:
        """The target embedding."""

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> State:
        """Returns the state before the first token. With watch, the states record attention weights."""

    def __call__(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """Returns features (R, T, D), each predicting the next token, and the state after the last."""


@dataclass(frozen=True)
class Limits:
    """The longest rows that a model accepts, in tokens; None means no limit."""

    source: int | None = None
    target: int | None = None


class TranslationModel(nn.Module):
    """An encoder with a decoder. start names the token that the decoder reads first: a key of START_TOKENS."""

    def __init__(self, encoder: Encoder, decoder: Decoder, limits: Limits, start: str = "begin") -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.limits = limits
        self.start = start
        self.set_specials(Specials())

    def set_specials(self, specials: Specials) -> None:
        """Sets the special ids of the model's vocabularies; until then they are mtkit's own."""
        start = START_TOKENS[self.start](specials.target)
        assert start is not None, "the settings ask for no start token that the vocabulary lacks"
        self.special: SpecialIds = specials.target
        self.boundaries = BoundaryTokens(specials.source.end, start, specials.target.end)

    def keep_start_zero(self) -> None:
        """If the settings want a zero start token, sets its embedding to zero and keeps training from changing it."""
        if self.start == "zero":
            self.decoder.embedding.keep_zero(self.boundaries.start)

    def encode(self, source: Rows, watch: bool = False) -> State:
        """The state before the first target token, with one hypothesis per sentence.

        With watch, the states record attention weights.
        """
        return self.decoder.start(self.encoder(source), source, watch)

    def decode(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """Features (R, T, D), each predicting the token after its target token, and the state after the last.

        Teacher forcing passes all tokens at once, a search one token per hypothesis; the same code computes both.
        """
        return self.decoder(target, state)

    @property
    def output(self) -> Output:
        """The output layer, from features to logits."""
        return self.decoder.output

    def forward(self, source: Rows, target: Rows) -> Tensor:
        """Features (R, T, D) of a batch under teacher forcing."""
        return self.decode(target, self.encode(source))[0]

    @property
    def elements_per_token(self) -> int:
        """The number of logits that predict one token: the size of the target vocabulary."""
        return len(self.output.weight)

    @property
    def drops_layers(self) -> bool:
        """Whether training uses layer dropout, which leaves out the same layers for all rows of a pass."""
        return any(getattr(half, "layer_dropout", 0.0) > 0 for half in (self.encoder, self.decoder))

    @property
    def untrained(self) -> list[int]:
        """Tokens at the end of the target vocabulary that were added after training; they are never generated."""
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
        """The number of parameters; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())


def next_rows(ids: Tensor, state: State) -> Rows:
    """Ids (R, W), one for each hypothesis of a state, as target rows, in which each hypothesis is its own segment."""
    num_hypotheses = ids.shape[1]
    segments = torch.arange(1, num_hypotheses + 1, device=ids.device).expand_as(ids)
    return Rows(ids, segments, state.positions[:, None].expand_as(ids), packed=num_hypotheses > 1)


# Ensembles: several models whose probabilities are averaged at each step (Hansen & Salamon, 1990).


@dataclass(frozen=True)
class EnsembleState:
    """The states of all members; every operation applies to each of them."""

    states: list[State]

    @property
    def positions(self) -> Tensor:
        """(R,) int64: the number of tokens decoded so far, including the start token."""
        return self.states[0].positions

    @property
    def attention(self) -> list[Tensor]:
        """One layer with one head, (R, 1, Q, S): the mean over the members' last layers and their heads.

        Empty if any member records no attention.
        """
        if not all(state.attention for state in self.states):
            return []
        return [torch.stack([state.attention[-1].mean(1, keepdim=True) for state in self.states]).mean(0)]

    def branch(self, parents: Tensor) -> Self:
        """Returns the state in which hypothesis w of sentence r continues parents[r, w]; parents is (R, W')."""
        return type(self)([state.branch(parents) for state in self.states])

    def keep(self, sentences: Tensor) -> Self:
        """Returns the state of these rows only, in this order; sentences is (R',)."""
        return type(self)([state.keep(sentences) for state in self.states])


class Ensemble:
    """Models with the same vocabulary, used as one model.

    In place of features, decode returns log-probabilities, which output passes on unchanged.
    """

    def __init__(self, members: Sequence[TranslationModel]) -> None:
        self.members = members
        self.limits = Limits(
            _smallest([member.limits.source for member in members]),
            _smallest([member.limits.target for member in members]),
        )
        self.boundaries = members[0].boundaries
        self.special = members[0].special
        self.device = members[0].device
        self.dtype = members[0].dtype

    @property
    def untrained(self) -> list[int]:
        """Tokens at the end of the vocabulary that no member has been trained on."""
        return min((member.untrained for member in self.members), key=len)

    @property
    def elements_per_token(self) -> int:
        """The number of logits that predict one token: the vocabulary sizes of all members together."""
        return sum(member.elements_per_token for member in self.members)

    def encode(self, source: Rows, watch: bool = False) -> EnsembleState:
        """The state before the first target token, with one hypothesis per sentence.

        With watch, the states record attention weights.
        """
        return EnsembleState([member.encode(source, watch) for member in self.members])

    def decode(self, target: Rows, state: State) -> tuple[Tensor, EnsembleState]:
        """Log-probabilities (R, T, V) of the token after each target token, and the state after the last."""
        assert isinstance(state, EnsembleState)
        states, log_probs = [], []
        for member, member_state in zip(self.members, state.states, strict=True):
            features, member_state = member.decode(target, member_state)
            log_probs.append(log_probs_from(member.output(features)))
            states.append(member_state)
        mean = torch.stack(log_probs).logsumexp(0) - math.log(len(self.members))
        return mean, EnsembleState(states)

    def output(self, log_probs: Tensor) -> Tensor:
        """The same log-probabilities; a log-softmax of them changes nothing."""
        return log_probs


def _smallest(limits: list[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None
