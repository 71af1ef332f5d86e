"""The conditional masked language model (Ghazvininejad et al. 2019): a Transformer whose decoder has no causal mask.

The decoder reads the whole target, some of whose tokens are masked, and predicts the masked tokens from the source and
from the other tokens on both sides. The length of the target is predicted from the source. In training, tokens are
masked at random; in translation, `mask_predict` of the package `search` chooses which.

Shapes: R rows (one sentence each), S source length, T target length with the end mark, D model width, K length classes.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.config.model_settings import MaskedConfig
from mtkit.data.batches import NO_LABEL, Batch, Rows
from mtkit.models.interface import Embedding, Limits, Memory, Output, TranslationModel, tied_embeddings
from mtkit.models.layers import Cache
from mtkit.models.transformer import (
    EmbeddedRows,
    TransformerDecoder,
    TransformerEncoder,
    TransformerState,
    initialize_transformer,
)
from mtkit.text.vocabulary import PAD

# A length class is a difference between the lengths of target and source, in tokens without end marks. Differences
# beyond this number count as this number.
MOST_DIFFERENCE = 128
NUM_LENGTHS = 2 * MOST_DIFFERENCE + 1  # K


class MaskedRows(EmbeddedRows):
    """Embedded rows in which masked tokens (`Rows.cut`) have a learned vector in place of their embeddings.

    The vector is not part of the embedding matrix, so the vocabulary needs no mask token, and none is ever generated.
    """

    def __init__(self, config: MaskedConfig, embedding: Embedding) -> None:
        super().__init__(config, "decoder", embedding)
        self.mask = nn.Parameter(torch.empty(config.d_model))

    def initialize(self) -> None:
        """Draws the vector from the distribution of the token embeddings."""
        nn.init.normal_(self.mask, std=len(self.mask) ** -0.5)

    def embed_tokens(self, rows: Rows) -> Tensor:
        """Returns the token embeddings (R, T, D), without positions."""
        x = super().embed_tokens(rows)
        return x if rows.cut is None else x + rows.cut[:, :, None] * (self.mask * self.embedding.scale)


@dataclass(frozen=True, kw_only=True)
class MaskedState(TransformerState):
    """The keys and values of the source, and the logits of the target's length; decoding changes neither."""

    length_logits: Tensor  # (R, K)

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64; a row may be listed several times."""
        return replace(super().keep(sentences), length_logits=self.length_logits[sentences])

    def advance(self, target: Rows) -> tuple[Self, Tensor]:
        """Returns a state with empty caches, and a mask (R, 1, 1, T) by which every token may attend to all tokens."""
        assert not target.packed, "a masked decoder decodes one sentence a row"
        caches = [Cache() for _ in self.caches]
        return replace(self, caches=caches, length=target.ids.shape[1]), target.mask[:, None, None, :]


class MaskedDecoder(TransformerDecoder):
    """A Transformer decoder without a causal mask; it also predicts the length of the target."""

    def __init__(self, config: MaskedConfig, embedding: Embedding, output: Output) -> None:
        super().__init__(config, embedding, output)
        self.embedded = MaskedRows(config, embedding)
        self.lengths = Output(Embedding(NUM_LENGTHS, config.d_model, scaled=False), has_bias=True)

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> MaskedState:
        """Returns the state for decoding; the length is predicted from the mean of the encoder's states.

        Attention is not recorded, even with `watch=True`.
        """
        state = super().start(memory, source)
        states, real = memory.states, source.mask[:, :, None]
        mean = (states * real).sum(1, dtype=torch.promote_types(states.dtype, torch.float32)) / real.sum(1)  # (R, D)
        return MaskedState(**vars(state), length_logits=self.lengths(mean.to(states.dtype)))


class MaskedModel(TranslationModel):
    """A Transformer encoder with a masked decoder.

    `decode` takes a whole target with its end mark, but without a start token. The feature vector of each token
    predicts this token, not the next one.
    """

    def encode(self, source: Rows, watch: bool = False) -> MaskedState:
        """Encodes the source; the state that is returned can be used for any number of calls of `decode`."""
        state = super().encode(source, watch)
        assert isinstance(state, MaskedState)
        return state

    def hide(self, batch: Batch, everything: bool = False) -> Batch:
        """Returns the batch with randomly masked target tokens; only masked tokens have labels.

        In a target of n tokens, k tokens are masked, where k is drawn uniformly from 1 to n (section 3.1 of the paper).
        With `everything`, all tokens are masked. The end mark is never masked. Outside training, the random numbers
        depend only on the shape of the batch, and the global random state is left unchanged.
        """
        is_token = F.pad(batch.target.mask[:, 1:], (0, 1))  # (R, T); the end mark is the last of the real positions
        masked = is_token if everything else is_token & self._drawn(is_token)
        target = replace(batch.target, ids=batch.labels.clamp(min=PAD), cut=masked)
        return replace(batch, target=target, labels=batch.labels.masked_fill(~masked, NO_LABEL))

    def _drawn(self, is_token: Tensor) -> Tensor:
        """Draws the tokens to mask; returns a bool tensor (R, T), which may also be True where there is no token."""
        device = is_token.device
        generator = None if self.training else torch.Generator(device).manual_seed(0)
        shares = torch.rand(len(is_token), 1, device=device, generator=generator)
        num_masked = (shares * is_token.sum(1, keepdim=True)).long() + 1  # (R, 1)
        order = torch.rand(is_token.shape, device=device, generator=generator).masked_fill(~is_token, 2.0).argsort(1)
        return order.argsort(1) < num_masked

    def length_log_probs(self, state: MaskedState, lengths: Tensor) -> Tensor:
        """Returns the log-probability (R,) that the target has this length, in tokens without the end mark.

        The result is in fp64 if the model is, else in fp32.
        """
        differences = (lengths - source_lengths(state)).clamp(-MOST_DIFFERENCE, MOST_DIFFERENCE)
        return log_softmax(state.length_logits).gather(1, differences[:, None] + MOST_DIFFERENCE)[:, 0]

    def likeliest_lengths(self, state: MaskedState, max_lengths: Tensor, num_lengths: int) -> tuple[Tensor, Tensor]:
        """Returns the N most probable target lengths, best first, and their log-probabilities, both (R, N).

        N is `num_lengths`, or less if no source has so many possible lengths. Lengths are in tokens, without the end
        mark. Those below 1 count as 1, and those above `max_lengths` (R,) as the maximum. A log-probability of -inf
        marks a length that is impossible.
        """
        differences = torch.arange(-MOST_DIFFERENCE, MOST_DIFFERENCE + 1, device=max_lengths.device)
        lengths = (source_lengths(state)[:, None] + differences).clamp(min=1).minimum(max_lengths[:, None])  # (R, K)
        probs = log_softmax(state.length_logits).exp()
        of_lengths = probs.new_zeros(len(probs), int(max_lengths.max()) + 1).scatter_add(1, lengths, probs)
        probs, found = of_lengths.sort(dim=1, descending=True, stable=True)
        return found[:, :num_lengths], probs[:, :num_lengths].log()


def log_softmax(logits: Tensor) -> Tensor:
    """Returns the log-softmax over the last dimension, in fp64 if the logits are, else in fp32."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def source_lengths(state: MaskedState) -> Tensor:
    """Returns the number of tokens of each source, (R,), without the end mark."""
    return state.source.mask.sum(1) - 1


def build_masked(config: MaskedConfig, source_vocab_size: int, target_vocab_size: int) -> MaskedModel:
    """Builds the model that `config` describes, with uninitialised weights."""

    def table(vocab_size: int) -> Embedding:
        return Embedding(vocab_size, config.d_model, config.scale_embeddings)

    source, target, output = tied_embeddings(
        config.tie_embeddings, lambda: table(source_vocab_size), lambda: table(target_vocab_size), config.output_bias
    )
    limits = Limits(config.limit_of("encoder"), config.limit_of("decoder"))
    encoder, decoder = TransformerEncoder(config, source), MaskedDecoder(config, target, output)
    return MaskedModel(encoder, decoder, limits, config.start_token)


def initialize_masked(model: nn.Module) -> None:
    """Initialises the weights as those of the Transformer are, and the vector of masked tokens."""
    initialize_transformer(model)
    for module in model.modules():
        if isinstance(module, MaskedRows):
            module.initialize()
