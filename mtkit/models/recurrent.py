"""Recurrent encoder-decoders, with attention (Bahdanau et al. 2015, Luong et al. 2015) or without it.

The models without attention follow Sutskever et al. (2014) and Cho et al. (2014).

Shapes: R rows (one sentence each), S source length, T target length, L either S or T, W hypotheses per sentence,
Q queries of a row (T or W), D model width, G state vectors of a cell (2 for LSTM: output and cell state; else 1).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mtkit.config.data_and_model_settings import RecurrentConfig
from mtkit.data.batches import Rows
from mtkit.models.interface import (
    Embedding,
    Encoder,
    Limits,
    Memory,
    NoEncoder,
    Output,
    TranslationModel,
    put,
    tied_embeddings,
)
from mtkit.models.layers import LayerList, dropout

# Attention: each query scores the source states; the result is the mean of these states, weighted by the softmax of
# the scores.


class DotScore(nn.Module):
    """Scores each source state by its dot product with the query (Luong et al. 2015, "dot" in equation 8)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def keys(self, states: Tensor) -> Tensor:
        """Returns the keys (R, S, D) of the source `states`, (R, S, D); the keys are computed once per sentence."""
        return states

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Returns the score of each key for each query, (R, Q, S); `query` is (R, Q, D), `keys` is (R, S, D)."""
        return query @ keys.transpose(1, 2)


class GeneralScore(DotScore):
    """Scores a source state by query · W state with a learned matrix W (Luong et al. 2015, "general" in equation 8)."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        # No bias: it would add the same number to the scores of all source tokens, which the softmax cancels.
        self.key = nn.Linear(d_model, d_model, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """Returns the keys (R, S, D) of the source `states`, (R, S, D); the keys are computed once per sentence."""
        keys: Tensor = self.key(states)
        return keys


class AdditiveScore(nn.Module):
    """Scores a source state by v · tanh(W query + U state) (Bahdanau et al. 2015, appendix A.1.2).

    The query is the decoder's state at the current step, as in DotScore and GeneralScore. In the paper, the query is
    the decoder's state at the previous step.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model)
        self.score = nn.Linear(d_model, 1, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """Returns the keys (R, S, D) of the source `states`, (R, S, D); the keys are computed once per sentence."""
        keys: Tensor = self.key(states)
        return keys

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Returns the score of each key for each query, (R, Q, S); `query` is (R, Q, D), `keys` is (R, S, D)."""
        pairs = torch.tanh(self.query(query)[:, :, None] + keys[:, None])  # (R, Q, S, D)
        scores: Tensor = self.score(pairs)[..., 0]
        return scores


ATTENTION_SCORES: dict[str, type[DotScore | AdditiveScore]] = {
    "additive": AdditiveScore,
    "dot": DotScore,
    "general": GeneralScore,
}


def attend(scores: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighted mean of the source states for each query, (R, Q, D), and the attention weights, (R, Q, S).

    `scores`, (R, Q, S), are turned into weights by a softmax over S. `states` is (R, S, D). `mask`, (R, S), is True for
    source tokens and False for padding, which gets the weight 0.
    """
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)
    return weights.to(states.dtype) @ states, weights


# Recurrent layers.

CELLS: dict[str, type[nn.LSTM | nn.GRU | nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}

# For each device, the autocast dtypes under which recurrent cells are computed in fp32 instead. On CUDA, autocast to
# bf16 would run cuDNN's cells in fp16. Small gradients would then vanish, since training in bf16 has no loss scaling.
# Few CPUs support cells in fp16, and those without AVX-512 have no LSTM in bf16 (oneDNN raises an error).
CELLS_IN_FP32 = {
    "cuda": {torch.bfloat16},
    "cpu": {torch.float16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else {torch.float16, torch.bfloat16},
}


def _autocast_of_cells(device: str) -> AbstractContextManager[object]:
    """Returns a context that switches off autocast if recurrent cells on `device` must be computed in fp32.

    Cells must be computed in fp32 if CELLS_IN_FP32 lists the dtype of autocast for `device`. Otherwise, the context
    does nothing.
    """
    in_fp32 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) in CELLS_IN_FP32.get(device, ())
    return torch.autocast(device, enabled=False) if in_fp32 else nullcontext()


class RecurrentLayer(nn.Module):
    """One layer of recurrent cells, computed by PyTorch's fused kernels.

    In a bidirectional layer, each direction has half of the width. A stack of layers consists of several modules of
    this class. PyTorch also has a fused kernel for a whole stack, but on a GPU, that kernel would draw dropout from a
    random state that no seed resets.
    """

    def __init__(self, cell: str, input_width: int, d_model: int, bidirectional: bool = False) -> None:
        super().__init__()
        width = d_model // 2 if bidirectional else d_model
        self.cells = CELLS[cell](input_width, width, batch_first=True, bidirectional=bidirectional)
        self.num_vectors = 2 if cell == "lstm" else 1  # G
        self.state_width = self.num_vectors * d_model

    def initialize(self) -> None:
        """Draws orthogonal recurrent weights (Saxe et al. 2014) and Glorot-uniform input weights, separately per gate.

        Sets biases to 0, except that the biases of an LSTM's forget gates are set to 1. An untrained LSTM then keeps
        most of its cell state from step to step (Jozefowicz et al. 2015).
        """
        for name, parameter in self.cells.named_parameters():
            gates = torch.split(parameter.detach(), self.cells.hidden_size)
            for number, gate in enumerate(gates):
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate)
                else:
                    forget = len(gates) == 4 and number == 1 and name.startswith("bias_ih")
                    nn.init.constant_(gate, 1.0 if forget else 0.0)

    def read(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Reads complete rows `x`, (R, S, D); returns outputs (R, S, D) and the final state of each row, (R, G * D).

        `lengths`, (R,) on the CPU, holds the number of tokens of each row. Padding is not read: in a bidirectional
        layer, the backward direction starts at the last token of each row.
        """
        with _autocast_of_cells(x.device.type):
            x = self._in_dtype_of_cells(x)
            if bool((lengths == x.shape[1]).all()):  # a CPU is up to twice as fast without packing
                y, state = self.cells(x)
            else:
                packed, state = self.cells(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
                assert isinstance(packed, PackedSequence)
                y, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        vectors = state if isinstance(state, tuple) else (state,)
        return y, torch.cat([direction for vector in vectors for direction in vector], dim=1)

    def _in_dtype_of_cells(self, x: Tensor) -> Tensor:
        """Returns `x` in the dtype of the weights; under autocast, returns `x` itself, since autocast converts it."""
        if torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(self.cells.get_parameter("weight_hh_l0").dtype)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Reads tokens `x`, (R, L, D), starting in `state`, (R, G * D); returns outputs (R, L, D) and the new state."""
        vectors = tuple(part[None].contiguous() for part in state.to(x.dtype).chunk(self.num_vectors, dim=1))
        with _autocast_of_cells(x.device.type):
            vectors = tuple(map(self._in_dtype_of_cells, vectors))
            y, after = self.cells(self._in_dtype_of_cells(x), vectors if len(vectors) > 1 else vectors[0])
        return y, torch.cat(after, dim=2)[0] if isinstance(after, tuple) else after[0]


# The encoder.


class RecurrentEncoder(nn.Module):
    """Embeds the source and encodes it with a stack of recurrent layers."""

    def __init__(self, config: RecurrentConfig, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        layers = [
            RecurrentLayer(config.cell, config.d_model, config.d_model, config.bidirectional)
            for _ in range(config.encoder_layers)
        ]
        self.layers = LayerList(layers)
        self.reverse_source = config.reverse_source
        self.dropout = config.dropout
        self.final_widths = [layer.state_width for layer in layers]

    def forward(self, source: Rows) -> Memory:
        """Returns the top layer's outputs, (R, S, D), and the final state of each layer, (R, G * D).

        The outputs are in the order of the source, even if the settings say that the source is read in reverse.
        """
        assert not source.packed, "a recurrent encoder reads one sentence a row"
        x, lengths = self.embedding(source), source.mask.sum(1)
        reversed_places = (lengths[:, None] - 1 - source.positions).clamp(min=0)  # (R, S)
        if self.reverse_source:
            x = x.gather(1, reversed_places[:, :, None].expand_as(x))
        finals = []
        lengths = lengths.cpu()
        for layer in self.layers:
            x, final = layer.read(dropout(x, self.dropout, self.training), lengths)
            finals.append(final)
        if self.reverse_source:
            x = x.gather(1, reversed_places[:, :, None].expand_as(x))
        return Memory(x, finals)


# The decoder.


class InitialStates(nn.Module):
    """Maps an encoder's memory to the initial states of the decoder's layers.

    If the encoder and the decoder have the same number of layers, each decoder layer gets the final state of the
    encoder layer at the same depth (Sutskever et al. 2014). Otherwise, all decoder layers get the final state of the
    encoder's top layer. If the encoder has no final states, all decoder layers get the mean of the encoder's states for
    the source tokens (Sennrich et al. 2017).

    For each decoder layer, a linear layer projects this final state or mean to the width of the initial state. A
    tanh is then applied to the projected vector (Bahdanau et al. 2015, appendix A.2.2). For an LSTM, the tanh is
    applied only to the half that is the initial output, not to the half that is the initial cell state.
    """

    def __init__(self, final_widths: list[int], state_widths: list[int], d_model: int, has_context: bool) -> None:
        super().__init__()
        widths = final_widths or [d_model]
        widths = widths if len(widths) == len(state_widths) else [widths[-1]] * len(state_widths)
        self.layers = LayerList(map(nn.Linear, widths, state_widths))
        self.context = nn.Linear(widths[-1], d_model) if has_context else None
        self.d_model = d_model

    def forward(self, memory: Memory, source: Rows) -> tuple[list[Tensor], Tensor | None]:
        """Returns the initial state of each decoder layer, (R, G * D), and the context, (R, D).

        The context is a vector that the decoder reads at every step (Cho et al. 2014). The context is `None` if this
        module was built with `has_context=False`.
        """
        finals = memory.finals or [_mean(memory.states, source.mask)]
        finals = finals if len(finals) == len(self.layers) else [finals[-1]] * len(self.layers)
        states = []
        for layer, final in zip(self.layers, finals, strict=True):
            outputs, cells = layer(final).tensor_split([self.d_model], dim=1)
            states.append(torch.cat([outputs.tanh(), cells], dim=1))
        return states, None if self.context is None else self.context(finals[-1]).tanh()


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean (R, D) of `states` (R, S, D) over the tokens where `mask`, (R, S), is True."""
    return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class RecurrentState:
    """A decoding state: the cells' states for each hypothesis, and the encoded source for each sentence."""

    layers: list[Tensor]  # for each layer, (R, W, G * D)
    features: Tensor  # (R, W, D): those of the last step, for input feeding
    context: Tensor | None  # (R, 1, D), an input of every step; None if there is no context
    keys: Tensor | None  # (R, S, D); None without attention
    source_states: Tensor | None  # (R, S, D); None without attention
    source_mask: Tensor  # (R, S), True for source tokens, False for padding
    positions: Tensor  # (R,) int64: the number of tokens decoded so far, including the start token
    watch: bool = False
    attention: list[Tensor] = field(default_factory=list)
    num_hypotheses: int = 1  # W
    last_mask: Tensor | None = None  # (R, T): target mask of the last call, if it read several tokens per hypothesis

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of row r continues hypothesis `parents[r, w]`; `parents` is (R, W')."""

        def chosen(values: Tensor) -> Tensor:
            return values.gather(1, parents[:, :, None].expand(-1, -1, values.shape[2]))

        return replace(
            self,
            layers=[chosen(layer) for layer in self.layers],
            features=chosen(self.features),
            num_hypotheses=parents.shape[1],
        )

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64, in the order of the list."""

        def chosen(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[sentences]

        source_states = chosen(self.source_states)
        return replace(
            self,
            layers=[layer[sentences] for layer in self.layers],
            features=self.features[sentences],
            context=chosen(self.context),
            keys=source_states if self.keys is self.source_states else chosen(self.keys),  # dot scores: same tensor
            source_states=source_states,
            source_mask=self.source_mask[sentences],
            positions=self.positions[sentences],
            last_mask=chosen(self.last_mask),
        )

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Returns a state in which the rows of `fresh` replace the rows with the indices `places`, (R',) int64.

        `fresh` is a state before the first step, with R' sentences of one hypothesis each. Other rows are unchanged.
        """

        def both(values: Tensor | None, new: Tensor | None, dim: int | None = None) -> Tensor | None:
            return None if values is None or new is None else put(values, places, new, dim)

        source_states = both(self.source_states, fresh.source_states, dim=1)
        return replace(
            self,
            layers=[put(layer, places, new) for layer, new in zip(self.layers, fresh.layers, strict=True)],
            features=put(self.features, places, fresh.features),
            context=both(self.context, fresh.context),
            keys=source_states if self.keys is self.source_states else both(self.keys, fresh.keys, dim=1),
            source_states=source_states,
            source_mask=put(self.source_mask, places, fresh.source_mask, dim=1),
            positions=put(self.positions, places, fresh.positions),
        )

    def advance(self, target: Rows) -> Self:
        """Returns a state whose attribute `positions` also counts the tokens in `target`.

        The cells' states and the features are unchanged; the decoder computes them afterwards.
        """
        num_hypotheses, num_tokens = self.num_hypotheses, target.ids.shape[1]
        assert num_hypotheses in (1, num_tokens), "one hypothesis takes any number of tokens, several take one each"
        assert target.packed == (num_hypotheses > 1), "a recurrent decoder decodes one sentence a row"
        assert self.last_mask is None or bool(self.last_mask.all()), "nothing follows padding"
        return replace(
            self,
            last_mask=target.mask if num_tokens > num_hypotheses else None,
            positions=self.positions + target.mask.sum(1) // num_hypotheses,
        )


class RecurrentDecoder(nn.Module):
    """Embeds the target and decodes it with a stack of recurrent layers.

    With attention, the output of the top layer attends to the source. If the setting `context` is "every_step", every
    step also reads the context, a vector that summarises the whole source (Cho et al. 2014).

    The features are tanh(W [y; a; c]), where y is the output of the top layer, a the attention-weighted mean of the
    source states, and c the context (Luong et al. 2015, equation 5, which has no c). Without attention, a is left out;
    without the context, c is left out. Without both, the features are y itself.

    A language model has neither attention nor context, and the initial states of its layers are zero.

    All tokens of a call are computed at once, except with input feeding: the features of each step are then an input of
    the next step.
    """

    def __init__(self, config: RecurrentConfig, embedding: Embedding, output: Output, final_widths: list[int]) -> None:
        super().__init__()
        self.embedding = embedding
        has_attention = config.has_attention
        has_context = config.context == "every_step" and config.reads_source
        self.input_feeding = config.input_feeding and has_attention
        input_width = config.d_model * (1 + has_context + self.input_feeding)
        layers = [
            RecurrentLayer(config.cell, config.d_model if number else input_width, config.d_model)
            for number in range(config.decoder_layers)
        ]
        self.state_widths = [layer.state_width for layer in layers]
        has_source = config.reads_source
        self.begin = InitialStates(final_widths, self.state_widths, config.d_model, has_context) if has_source else None
        self.layers = LayerList(layers)
        self.score = ATTENTION_SCORES[config.attention](config.d_model) if has_attention else None
        num_parts = 1 + has_attention + has_context
        self.join = nn.Linear(num_parts * config.d_model, config.d_model) if num_parts > 1 else None
        self.dropout = config.dropout
        self.output = output

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> RecurrentState:
        """Returns the state before the first token; with `watch=True`, this and all later states record attention."""
        if self.begin is None:
            layers, context = [memory.states.new_zeros(len(source.ids), width) for width in self.state_widths], None
        else:
            layers, context = self.begin(memory, source)
        return RecurrentState(
            layers=[layer[:, None] for layer in layers],
            features=memory.states.new_zeros(len(source.ids), 1, memory.states.shape[2]),
            context=None if context is None else context[:, None],
            keys=None if self.score is None else self.score.keys(memory.states),
            source_states=None if self.score is None else memory.states,
            source_mask=source.mask,
            positions=torch.zeros(len(source.ids), dtype=torch.int64, device=source.ids.device),
            watch=watch,
        )

    def forward(self, target: Rows, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Returns features (R, T, D) and the new state; the feature vector of each token predicts the next token."""
        state = state.advance(target)
        rows = len(target.ids)
        x = dropout(self.embedding(target), self.dropout, self.training)  # (R, T, D)
        if state.context is not None:
            x = torch.cat([x, state.context.to(x.dtype).expand(-1, x.shape[1], -1)], dim=2)
        if state.num_hypotheses > 1:
            x = x.flatten(0, 1)[:, None]  # (R * W, 1, D): each hypothesis is a row for the cells

        layers, features = state.layers, state.features
        steps, attention = [], []
        for part in torch.split(x, 1, dim=1) if self.input_feeding else [x]:
            if self.input_feeding:
                part = torch.cat([part, features.reshape(len(part), 1, -1).to(part.dtype)], dim=2)
            top, layers = self._read(part, layers)
            step, weights = self._features(top.reshape(rows, -1, self.output.weight.shape[1]), state)
            steps.append(step)
            if weights is not None and state.watch:
                attention.append(weights[:, None])  # (R, 1, Q, S)
            if self.input_feeding:
                features = step
        if len(attention) > 1:
            attention = [torch.cat(attention, dim=2)]
        after = replace(state, layers=layers, features=features, attention=attention)
        return torch.cat(steps, dim=1) if len(steps) > 1 else steps[0], after

    def _read(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Runs all layers on the inputs `x`; returns the top layer's outputs and a list of the layers' new states.

        `x` is (R * W, L, width), with one row per hypothesis; the outputs are (R * W, L, D). `states` holds the state
        of each layer before the call. Old and new states are (R, W, G * D).
        """
        after = []
        for number, (layer, before) in enumerate(zip(self.layers, states, strict=True)):
            if number:
                x = dropout(x, self.dropout, self.training)
            x, state = layer(x, before.flatten(0, 1))
            after.append(state.view(before.shape))
        return x, after

    def _features(self, top: Tensor, state: RecurrentState) -> tuple[Tensor, Tensor | None]:
        """Returns the features (R, Q, D) and the attention weights (R, Q, S) for the top layer's outputs (R, Q, D).

        The attention weights are `None` if the model has no attention.
        """
        parts, weights = [top], None
        if self.score is not None:
            assert state.keys is not None
            assert state.source_states is not None
            attended, weights = attend(self.score(top, state.keys), state.source_states, state.source_mask)
            parts.append(attended.to(top.dtype))
        if state.context is not None:
            parts.append(state.context.to(top.dtype).expand_as(top))
        features = top if self.join is None else self.join(torch.cat(parts, dim=2)).tanh()
        return dropout(features, self.dropout, self.training), weights


# The whole model.


def build_recurrent(config: RecurrentConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """Builds the recurrent model that `config` describes, with uninitialised weights."""

    def table(vocab_size: int) -> Embedding:
        return Embedding(vocab_size, config.d_model, config.scale_embeddings)

    source, target, output = tied_embeddings(
        config.tie_embeddings, lambda: table(source_vocab_size), lambda: table(target_vocab_size), config.output_bias
    )
    encoder: Encoder = RecurrentEncoder(config, source) if config.reads_source else NoEncoder(config.d_model)
    decoder = RecurrentDecoder(config, target, output, encoder.final_widths)
    return TranslationModel(encoder, decoder, Limits(), config.start_token)


def initialize_recurrent(model: nn.Module) -> None:
    """Initialises the weights of a recurrent model.

    Linear layers get Glorot-uniform weights (Glorot & Bengio 2010) and zero biases. Embeddings, the output layer and
    recurrent layers are initialised by their own `initialize` methods.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Embedding | Output | RecurrentLayer):
            module.initialize()
