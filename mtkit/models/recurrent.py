"""The recurrent encoder-decoder of Sutskever, Cho (both 2014), Bahdanau and Luong (both 2015) and their colleagues.

R rows, S source length, T target length, L length, W hypotheses of a sentence, Q queries (T or W) of a row, D model
width, G vectors that a cell carries on (two for LSTM, else one).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mtkit.config.model_settings import RecurrentConfig
from mtkit.data.batch import Rows
from mtkit.models.interface import Embedding, Limits, Memory, Output, TranslationModel, tied
from mtkit.models.layers import dropout


class DotScore(nn.Module):
    """The product of query and source state (Luong et al. 2015, equation 8)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def keys(self, states: Tensor) -> Tensor:
        """(R, S, D), made once for each sentence."""
        return states

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """(R, Q, D) to (R, Q, S)."""
        return query @ keys.transpose(1, 2)


class GeneralScore(DotScore):
    """The same with a learned matrix between the two (Luong et al. 2015, equation 8)."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        # A bias would add the same to the score of every token, which changes no weight.
        self.key = nn.Linear(d_model, d_model, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """(R, S, D), made once for each sentence."""
        keys: Tensor = self.key(states)
        return keys


class AdditiveScore(nn.Module):
    """v · tanh(W query + U state) (Bahdanau et al. 2015, appendix A.1.2).

    The query is the decoder's state of this step, as with the other scores; in the paper it is that of the step before.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model)
        self.score = nn.Linear(d_model, 1, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """(R, S, D), made once for each sentence."""
        keys: Tensor = self.key(states)
        return keys

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """(R, Q, D) to (R, Q, S)."""
        pairs = torch.tanh(self.query(query)[:, :, None] + keys[:, None])  # (R, Q, S, D)
        scores: Tensor = self.score(pairs)[..., 0]
        return scores


SCORES: dict[str, type[DotScore | AdditiveScore]] = {
    "additive": AdditiveScore,
    "dot": DotScore,
    "general": GeneralScore,
}


def mix(scores: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states (R, S, D) mixed for each query, (R, Q, D), by weights that come back too, (R, Q, S).

    scores are (R, Q, S); mask is (R, S), True where a source token is real.
    """
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)
    return weights.to(states.dtype) @ states, weights


# The recurrent encoder-decoder of Sutskever, Cho (both 2014), Bahdanau and Luong (both 2015) and their colleagues.

CELLS: dict[str, type[nn.LSTM | nn.GRU | nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}


# Where cells stay in fp32 in a precision. Autocast gives cuDNN's cells fp16 whatever it was asked for, and without a
# loss scale small gradients would vanish; and few CPUs have cells in fp16.
CELLS_IN_FP32 = {"cuda": torch.bfloat16, "cpu": torch.float16}


def _precision_of_cells(device: str) -> AbstractContextManager[object]:
    """That of what is around them, or fp32."""
    in_fp32 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == CELLS_IN_FP32.get(device)
    return torch.autocast(device, enabled=False) if in_fp32 else nullcontext()


class RecurrentLayer(nn.Module):
    """One layer of cells through PyTorch's fused kernels; of two directions, each has half of the width.

    Layers stand alone, since the kernels' own dropout between layers keeps a random state on a GPU that no seed resets.
    """

    def __init__(self, cell: str, input_width: int, d_model: int, bidirectional: bool = False) -> None:
        super().__init__()
        width = d_model // 2 if bidirectional else d_model
        self.cells = CELLS[cell](input_width, width, batch_first=True, bidirectional=bidirectional)
        self.num_vectors = 2 if cell == "lstm" else 1  # G
        self.state_width = self.num_vectors * d_model

    def initialize(self) -> None:
        """Orthogonal from step to step (Saxe et al. 2014), Glorot's uniform for what comes in, each gate for itself.

        Biases are zero, but 1 for LSTM's forget gates, so that cells begin by remembering (Jozefowicz et al. 2015).
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
        """(R, S, D) of rows so long to what each token gives, (R, S, D), and the state after the last, (R, G * D).

        Padding is never read, so that the backward direction begins at each row's own end. lengths are on the CPU.
        """
        with _precision_of_cells(x.device.type):
            x = self._as_cells_want(x)
            if bool((lengths == x.shape[1]).all()):  # without packing, a CPU is up to twice as fast
                y, state = self.cells(x)
            else:
                packed, state = self.cells(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
                assert isinstance(packed, PackedSequence)
                y, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        vectors = state if isinstance(state, tuple) else (state,)
        return y, torch.cat([direction for vector in vectors for direction in vector], dim=1)

    def _as_cells_want(self, x: Tensor) -> Tensor:
        """What came out of a product in less precision is as the weights are, unless autocast sees to it."""
        autocast = torch.is_autocast_enabled(x.device.type)
        weight: Tensor = self.cells.weight_hh_l0  # type: ignore[assignment]
        return x if autocast else x.to(weight.dtype)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(R, L, D) after the state (R, G * D) to what each token gives, (R, L, D), and the state after the last."""
        vectors = tuple(part[None].contiguous() for part in state.to(x.dtype).chunk(self.num_vectors, dim=1))
        with _precision_of_cells(x.device.type):
            vectors = tuple(map(self._as_cells_want, vectors))
            y, after = self.cells(self._as_cells_want(x), vectors if len(vectors) > 1 else vectors[0])
        return y, torch.cat(after, dim=2)[0] if isinstance(after, tuple) else after[0]


class RecurrentEncoder(nn.Module):
    """Embeds the source and reads it layer by layer."""

    def __init__(self, config: RecurrentConfig, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        layers = [
            RecurrentLayer(config.cell, config.d_model, config.d_model, config.bidirectional)
            for _ in range(config.encoder_layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.reverse_source = config.reverse_source
        self.dropout = config.dropout
        self.final_widths = [layer.state_width for layer in layers]

    def forward(self, source: Rows) -> Memory:
        """States (R, S, D) in the order of the source, and of each layer the last, (R, G * D)."""
        assert not source.packed, "a recurrent encoder reads one sentence a row"
        x, lengths = self.embedding(source), source.mask.sum(1)
        last_first = (lengths[:, None] - 1 - source.positions).clamp(min=0)  # (R, S)
        if self.reverse_source:
            x = x.gather(1, last_first[:, :, None].expand_as(x))
        finals = []
        lengths = lengths.cpu()
        for layer in self.layers:
            x, final = layer.read(dropout(x, self.dropout, self.training), lengths)  # type: ignore[operator]
            finals.append(final)
        if self.reverse_source:
            x = x.gather(1, last_first[:, :, None].expand_as(x))
        return Memory(x, finals)


class Start(nn.Module):
    """From what an encoder leaves to the states in which the decoder's layers begin.

    A layer begins with the last state of the encoder's layer of its own height (Sutskever et al. 2014), where both are
    equally deep, else with that of the encoder's top; or, where an encoder has no last states, with the mean of its
    states (Sennrich et al. 2017). What is a cell's output passes a tanh (Bahdanau et al. 2015, appendix A.2.2).
    """

    def __init__(self, final_widths: list[int], state_widths: list[int], d_model: int, has_context: bool) -> None:
        super().__init__()
        widths = final_widths or [d_model]
        widths = widths if len(widths) == len(state_widths) else [widths[-1]] * len(state_widths)
        self.layers = nn.ModuleList(map(nn.Linear, widths, state_widths))
        self.context = nn.Linear(widths[-1], d_model) if has_context else None
        self.d_model = d_model

    def forward(self, memory: Memory, source: Rows) -> tuple[list[Tensor], Tensor | None]:
        """(R, G * D) for each layer, and the context (R, D) that every step reads, if it does (Cho et al. 2014)."""
        finals = memory.finals or [_mean(memory.states, source.mask)]
        finals = finals if len(finals) == len(self.layers) else [finals[-1]] * len(self.layers)
        states = []
        for layer, final in zip(self.layers, finals, strict=True):
            outputs, cells = layer(final).tensor_split([self.d_model], dim=1)
            states.append(torch.cat([outputs.tanh(), cells], dim=1))
        return states, None if self.context is None else self.context(finals[-1]).tanh()


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """(R, D) of (R, S, D), over real tokens."""
    return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


class RecurrentState:
    """What the cells of each hypothesis remember, and what the source left, once for each sentence."""

    def __init__(self, layers: list[Tensor], fed: Tensor, context: Tensor | None, watch: bool, source: Rows) -> None:
        self.layers = layers  # for each layer, (R, W, G * D)
        self.fed = fed  # (R, W, D): the last features
        self.context = context  # (R, 1, D)
        self.keys: Tensor | None = None  # (R, S, D); None where there is no attention
        self.states: Tensor | None = None
        self.source_mask = source.mask  # (R, S)
        self.watch = watch
        self.attention: list[Tensor] = []
        self.num_hypotheses = 1
        self.positions = torch.zeros(len(source.ids), dtype=torch.int64, device=source.ids.device)
        self.last_mask: Tensor | None = None  # (R, T) of the tokens taken in last, where a row had several

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64."""

        def chosen(values: Tensor) -> Tensor:
            return values.gather(1, parents[:, :, None].expand(-1, -1, values.shape[2]))

        self.num_hypotheses = parents.shape[1]
        self.layers = [chosen(layer) for layer in self.layers]
        self.fed = chosen(self.fed)
        return self

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, in that order."""
        self.layers = [layer[sentences] for layer in self.layers]
        self.fed, self.positions = self.fed[sentences], self.positions[sentences]
        self.source_mask = self.source_mask[sentences]
        self.context = None if self.context is None else self.context[sentences]
        if self.keys is not None and self.states is not None:
            same = self.keys is self.states
            self.states = self.states[sentences]
            self.keys = self.states if same else self.keys[sentences]
        self.last_mask = None if self.last_mask is None else self.last_mask[sentences]
        return self

    def advance(self, target: Rows) -> None:
        """Count these tokens."""
        num_hypotheses, num_tokens = self.num_hypotheses, target.ids.shape[1]
        assert num_hypotheses in (1, num_tokens), "one hypothesis takes any number of tokens, several take one each"
        assert target.packed == (num_hypotheses > 1), "a recurrent decoder says one sentence a row"
        assert self.last_mask is None or bool(self.last_mask.all()), "nothing follows padding"
        self.last_mask = target.mask if num_tokens > num_hypotheses else None
        self.positions = self.positions + target.mask.sum(1) // num_hypotheses


class RecurrentDecoder(nn.Module):
    """Embeds the target and reads it layer by layer; the top looks at the source.

    The features are tanh(W [top; what it saw; context]) (Luong et al. 2015, equation 5), or the top alone where it has
    nothing beside it. They are computed for all tokens at once, but one by one where each step reads those before it.
    """

    def __init__(self, config: RecurrentConfig, embedding: Embedding, output: Output, final_widths: list[int]) -> None:
        super().__init__()
        self.embedding = embedding
        has_attention, has_context = config.attention != "none", config.context == "every_step"
        input_width = config.d_model * (1 + has_context + config.input_feeding)
        layers = [
            RecurrentLayer(config.cell, config.d_model if number else input_width, config.d_model)
            for number in range(config.decoder_layers)
        ]
        self.begin = Start(final_widths, [layer.state_width for layer in layers], config.d_model, has_context)
        self.layers = nn.ModuleList(layers)
        self.score = SCORES[config.attention](config.d_model) if has_attention else None
        num_parts = 1 + has_attention + has_context
        self.join = nn.Linear(num_parts * config.d_model, config.d_model) if num_parts > 1 else None
        self.input_feeding = config.input_feeding
        self.dropout = config.dropout
        self.output = output

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> RecurrentState:
        """The state before the first token. With watch it will tell its attention."""
        layers, context = self.begin(memory, source)
        fed = memory.states.new_zeros(len(source.ids), 1, memory.states.shape[2])
        context = None if context is None else context[:, None]
        state = RecurrentState([layer[:, None] for layer in layers], fed, context, watch, source)
        if self.score is not None:
            state.keys, state.states = self.score.keys(memory.states), memory.states
        return state

    def forward(self, target: Rows, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """(R, T, D) features of the next tokens, and the state after them."""
        state.advance(target)
        state.attention = []
        rows = len(target.ids)
        x = dropout(self.embedding(target), self.dropout, self.training)  # (R, T, D)
        if state.context is not None:
            x = torch.cat([x, state.context.to(x.dtype).expand(-1, x.shape[1], -1)], dim=2)
        if state.num_hypotheses > 1:
            x = x.flatten(0, 1)[:, None]  # (R * W, 1, D): each hypothesis is a row for the cells

        steps = []
        for part in torch.split(x, 1, dim=1) if self.input_feeding else [x]:
            if self.input_feeding:
                part = torch.cat([part, state.fed.reshape(len(part), 1, -1).to(part.dtype)], dim=2)
            top = self._read(part, state).reshape(rows, -1, self.output.weight.shape[1])  # (R, Q, D)
            steps.append(self._features(top, state))
            if self.input_feeding:
                state.fed = steps[-1]
        if len(state.attention) > 1:
            state.attention = [torch.cat(state.attention, dim=2)]
        return torch.cat(steps, dim=1) if len(steps) > 1 else steps[0], state

    def _read(self, x: Tensor, state: RecurrentState) -> Tensor:
        """What the top layer gives for each token; the state moves on."""
        for number, layer in enumerate(self.layers):
            if number:
                x = dropout(x, self.dropout, self.training)
            before = state.layers[number]  # (R, W, G * D)
            x, after = layer(x, before.flatten(0, 1))
            state.layers[number] = after.view(before.shape)
        return x

    def _features(self, top: Tensor, state: RecurrentState) -> Tensor:
        """(R, Q, D) to the same."""
        parts = [top]
        if self.score is not None:
            assert state.keys is not None
            assert state.states is not None
            seen, weights = mix(self.score(top, state.keys), state.states, state.source_mask)
            parts.append(seen.to(top.dtype))
            if state.watch:
                state.attention.append(weights[:, None])  # (R, 1, Q, S)
        if state.context is not None:
            parts.append(state.context.to(top.dtype).expand_as(top))
        features = top if self.join is None else self.join(torch.cat(parts, dim=2)).tanh()
        return dropout(features, self.dropout, self.training)


def build_recurrent(config: RecurrentConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """The model, its weights not yet set."""

    def table(vocab_size: int) -> Embedding:
        return Embedding(vocab_size, config.d_model, config.scale_embeddings)

    source, target, output = tied(
        config.tie_embeddings, lambda: table(source_vocab_size), lambda: table(target_vocab_size), config.output_bias
    )
    encoder = RecurrentEncoder(config, source)
    decoder = RecurrentDecoder(config, target, output, encoder.final_widths)
    return TranslationModel(encoder, decoder, Limits(), config.start_token)


def initialize_recurrent(model: nn.Module) -> None:
    """Cells as their layer says; uniform after Glorot & Bengio (2010) elsewhere, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Embedding | Output | RecurrentLayer):
            module.initialize()
