"""CTranslate2: a model that is written for it says the same there, and its own converter writes the same bytes."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import CheckpointError
from mtkit.exchange.engines import (
    ARRAY_TYPES,
    QUANTIZATIONS,
    check_ctranslate2,
    observe_with_ctranslate2,
    write_ctranslate2,
)
from mtkit.exchange.portable import PortableModel, Vocabulary
from mtkit.models.registry import new_model
from mtkit.translation.decode import decode, log_probs_of
from tests.exported import lively, model_of, names, sentences_of

ctranslate2: Any = pytest.importorskip("ctranslate2")

V, W = 40, 33
TINY = {"d_model": 32, "num_heads": 4, "d_ff": 48, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
CHOICES = [
    {},
    {"norm_placement": "post", "activation": "silu", "output_bias": True, "start_token": "zero"},
    {"sinusoid_exponent": "tensor2tensor", "sinusoid_first": 2, "start_token": "end"},
    {"sinusoid_layout": "interleaved", "start_token": "pad", "scale_embeddings": False},
    {"activation": "gelu", "decoder_num_heads": 2, "decoder_d_ff": 24, "encoder_layers": 3, "decoder_layers": 1},
    {"norm": "rms", "activation": "swiglu"},
    {"activation": "reglu"},
    {"activation": "geglu", "attention_bias": False},
    {"positions": "rotary"},
    {"positions": "rotary", "norm_placement": "post", "decoder_num_heads": 2},
    {"positions": "learned", "embedding_norm": True, "max_positions": 300},
    {"positions": "none"},
    {"embedding_norm": True, "norm": "rms", "norm_placement": "post"},
    {"tie_embeddings": "decoder"},
    {"tie_embeddings": "none", "output_bias": True},
]


def config_of(model: dict[str, Any]) -> Config:
    shared = model.get("tie_embeddings", "all") == "all"
    return Config.model_validate_json(
        json.dumps({"model": {**TINY, **model}, "tokenizer": {"shared": shared}, "data": {"max_length": 250}})
    )


def portable_of(model: dict[str, Any]) -> PortableModel:
    shared = model.get("tie_embeddings", "all") == "all"
    config = config_of(model)
    sizes = (V, V) if shared else (V, W)
    weights = dict(lively(new_model(config.model, *sizes, seed=1)).named_parameters())
    return PortableModel(
        config, {n: w.detach() for n, w in weights.items()}, Vocabulary(names(sizes[0])), Vocabulary(names(sizes[1]))
    )


def pieces(vocabulary: Vocabulary, rows: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[vocabulary.pieces[id_] for id_ in row] for row in rows]


SILENT = ["<pad>", "<unk>", "<s>"]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_is_exported_says_the_same_in_ctranslate2(choice, tmp_path):
    portable = portable_of(choice)
    check_ctranslate2(portable.config)
    write_ctranslate2(portable, tmp_path)
    model = model_of(portable)
    sources, targets = sentences_of(portable, 30)
    ours = [best.tokens for [best] in decode(model, DecodingConfig(beam_size=1), sources)]
    observed = observe_with_ctranslate2(
        tmp_path, pieces(portable.source, sources), pieces(portable.target, targets), SILENT
    )
    assert observed is not None
    assert observed.library == f"ctranslate2 {ctranslate2.__version__}"
    assert observed.translations == pieces(portable.target, ours)
    for found, wanted in zip(observed.log_probs, log_probs_of(model, sources, targets, 1000), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)


_ENDING: dict[str, PortableModel] = {}


def ending(choice: dict[str, Any]) -> PortableModel:
    """ending_of(choice), which is made once; not to be changed."""
    key = json.dumps(choice)
    if key not in _ENDING:
        _ENDING[key] = ending_of(choice)
    return _ENDING[key]


def ending_of(choice: dict[str, Any]) -> PortableModel:
    """A model whose translations often end by themselves, and not all at once.

    Random models say one token for ever: stronger layers than embeddings break that, and a push ends it.
    """
    portable = portable_of({**choice, "tie_embeddings": "none", "output_bias": True})
    weights = {
        name: weight * 4 if ".layers." in name and weight.dim() == 2 else weight
        for name, weight in portable.weights.items()
    }
    weights = {
        name: weight / 10 if name.startswith("decoder") and name.endswith(("norm.bias", "output.bias")) else weight
        for name, weight in weights.items()
    }
    end, bias = portable.target.special.end, "decoder.output.bias"
    sources, _ = sentences_of(portable, 50)
    model, original = model_of(replace(portable, weights=weights)), weights[bias].clone()
    short = DecodingConfig(beam_size=1, max_length_ratio=1.0, max_length_extra=6)
    for push in range(20):
        pushed = original.clone()
        pushed[end] += push
        model.output.bias.copy_(pushed)
        said = [best.tokens for [best] in decode(model, short, sources)]
        ended = [len(t) for s, t in zip(sources, said, strict=True) if 0 < len(t) < len(s) + 6]
        if len(ended) >= 5 and len(set(ended)) > 1:
            return replace(portable, weights={**weights, bias: pushed})
    raise AssertionError("no push makes translations of different lengths end")


ENDING = [choice for choice in CHOICES if choice.get("norm_placement") != "post" and choice.get("start_token") != "pad"]


@pytest.mark.parametrize("choice", ENDING, ids=str)
def test_translations_end_where_ours_end(choice, tmp_path):
    portable = ending(choice)
    write_ctranslate2(portable, tmp_path)
    sources, targets = sentences_of(portable, 50)
    ours = [best.tokens for [best] in decode(model_of(portable), DecodingConfig(beam_size=1), sources)]
    observed = observe_with_ctranslate2(
        tmp_path, pieces(portable.source, sources), pieces(portable.target, targets), SILENT
    )
    assert observed is not None
    assert observed.translations == pieces(portable.target, ours)


@pytest.mark.parametrize("choice", ENDING[:5], ids=str)
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_the_scores_of_its_beam_are_our_likelihoods(choice, penalty, tmp_path):
    portable = ending(choice)
    write_ctranslate2(portable, tmp_path)
    translator, model = ctranslate2.Translator(str(tmp_path), device="cpu"), model_of(portable)
    sources, _ = sentences_of(portable, 10)
    found = translator.translate_batch(  # what is suppressed would count for nothing in its softmax
        pieces(portable.source, sources),
        beam_size=4,
        num_hypotheses=4,
        return_scores=True,
        min_decoding_length=0,
        max_decoding_length=60,
        length_penalty=penalty,
    )
    ids = {piece: id_ for id_, piece in enumerate(portable.target.pieces)}
    compared = [
        (source, [ids[piece] for piece in hypothesis], score)
        for source, result in zip(sources, found, strict=True)
        for hypothesis, score in zip(result.hypotheses, result.scores, strict=True)
        if 0 < len(hypothesis) < 60
    ]
    assert len(compared) > 5
    read, said, scores = zip(*compared, strict=True)
    for score, log_probs in zip(scores, log_probs_of(model, read, said, 1000), strict=True):
        assert score == pytest.approx(sum(log_probs) / len(log_probs) ** penalty, rel=1e-4, abs=1e-4)


def test_logits_are_ours(tmp_path):
    portable = ending({})
    write_ctranslate2(portable, tmp_path)
    translator, model = ctranslate2.Translator(str(tmp_path), device="cpu"), model_of(portable)
    sources, _ = sentences_of(portable, 10)
    ids = {piece: id_ for id_, piece in enumerate(portable.target.pieces)}
    for source in sources:
        [said] = translator.translate_batch(
            pieces(portable.source, [source]),
            beam_size=1,
            min_decoding_length=0,
            max_decoding_length=9,
            return_logits_vocab=True,
        )
        batch = padded_batch(ragged([source]), ragged([[ids[piece] for piece in said.hypotheses[0]]]), model.boundaries)
        ours = model.output(model(batch.source, batch.target))[0]
        theirs = torch.from_numpy(np.stack([np.array(logits).reshape(-1) for logits in said.logits[0]]))
        assert len(theirs) > 0
        assert torch.allclose(theirs, ours[: len(theirs)], atol=1e-4, rtol=0)


def binary(path: Path) -> tuple[dict[str, tuple[Any, ...]], dict[str, str]]:
    """Every variable of a model.bin as dtype, shape and bytes, and the aliases."""
    data, place = path.read_bytes(), 0

    def number(size: int) -> int:
        nonlocal place
        place += size
        return int.from_bytes(data[place - size : place], "little")

    def text() -> str:
        nonlocal place
        length = number(2)
        place += length
        return data[place - length : place - 1].decode()

    assert number(4) == 6
    assert text() == "TransformerSpec"
    assert number(4) == 7
    variables = {}
    for _ in range(number(4)):
        name, shape = text(), []
        for _ in range(number(1)):
            shape.append(number(4))
        dtype, length = ARRAY_TYPES[number(1)], number(4)
        variables[name] = (dtype, tuple(shape), data[place : place + length])
        place += length
    aliases = {text(): text() for _ in range(number(4))}
    assert place == len(data)
    return variables, aliases


def written_by_the_library(portable: PortableModel, quantization: str | None, directory: Path) -> None:
    """The same model through the library's own specification, filled array by array."""
    model, weights = portable.config.model, portable.weights
    specs = ctranslate2.specs
    gated = model.activation == "swiglu"
    common = {
        "pre_norm": model.norm_placement == "pre",
        "activation": specs.Activation.SWISH if model.activation != "relu" else specs.Activation.RELU,
        "ffn_glu": gated,
        "rms_norm": model.norm == "rms",
    }
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(model.encoder_layers, model.num_heads, **common),
        specs.TransformerDecoderSpec(model.decoder_layers, model.num_heads, **common),
    )
    table = weights["encoder.embedded.embedding.weight"].numpy().copy()
    waves = np.arange(model.d_model // 2) / (model.d_model // 2)
    angles = np.arange(1024)[:, None] * 10000.0**-waves
    positions = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    def norm(to: Any, name: str) -> None:
        to.gamma = weights[f"{name}.weight"].numpy().copy()
        if model.norm == "layer":
            to.beta = weights[f"{name}.bias"].numpy().copy()

    def linear(to: Any, name: str) -> None:
        to.weight, to.bias = weights[f"{name}.weight"].numpy().copy(), weights[f"{name}.bias"].numpy().copy()

    for side, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        (stack.embeddings[0] if side == "encoder" else stack.embeddings).weight = table.copy()
        stack.position_encodings.encodings = positions.copy()
        if model.norm_placement == "pre":
            norm(stack.layer_norm, f"{side}.norm")
        for number, layer in enumerate(stack.layer):
            ours = f"{side}.layers.{number}"
            linear(layer.self_attention.linear[0], f"{ours}.attention.query_key_value")
            linear(layer.self_attention.linear[1], f"{ours}.attention.output")
            norm(layer.self_attention.layer_norm, f"{ours}.around_attention.norm")
            if side == "decoder":
                linear(layer.attention.linear[0], f"{ours}.source_attention.query")
                linear(layer.attention.linear[1], f"{ours}.source_attention.key_value")
                linear(layer.attention.linear[2], f"{ours}.source_attention.output")
                norm(layer.attention.layer_norm, f"{ours}.around_source_attention.norm")
            inner = f"{ours}.feed_forward.inner"
            if gated:
                for to, part in ((layer.ffn.linear_0, 0), (layer.ffn.linear_0_noact, 1)):
                    to.weight = weights[f"{inner}.weight"].chunk(2)[part].numpy().copy()
                    to.bias = weights[f"{inner}.bias"].chunk(2)[part].numpy().copy()
            else:
                linear(layer.ffn.linear_0, inner)
            linear(layer.ffn.linear_1, f"{ours}.feed_forward.output")
            norm(layer.ffn.layer_norm, f"{ours}.around_feed_forward.norm")
    spec.decoder.projection.weight = table.copy()
    if model.output_bias:
        spec.decoder.projection.bias = weights["decoder.output.bias"].numpy().copy()
    spec.register_source_vocabulary(portable.source.pieces)
    spec.register_target_vocabulary(portable.target.pieces)
    spec.config.layer_norm_epsilon = 1e-5
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize(quantization)
    directory.mkdir()
    spec.save(str(directory))


@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[1], CHOICES[5]], ids=str)
@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_the_librarys_own_converter_writes_the_same_bytes(choice, quantization, tmp_path):
    portable = portable_of(choice)
    written_by_the_library(portable, quantization, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_ctranslate2(portable, tmp_path / "ours", quantization)
    (theirs, their_aliases), (ours, our_aliases) = (
        binary(tmp_path / name / "model.bin") for name in ("theirs", "ours")
    )
    assert ours.keys() == theirs.keys()
    for name, variable in theirs.items():
        assert ours[name] == variable, name
    assert our_aliases == their_aliases
    assert (tmp_path / "ours" / "model.bin").read_bytes() == (tmp_path / "theirs" / "model.bin").read_bytes()
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")]
    start = {"zero": "<pad>"}.get(portable.config.model.start_token, "<s>")
    assert configs[1] == {**configs[0], "decoder_start_token": start}
    vocabularies = [(tmp_path / name / "shared_vocabulary.json").read_text() for name in ("theirs", "ours")]
    assert json.loads(vocabularies[0]) == json.loads(vocabularies[1])


@pytest.mark.parametrize("largest", [0.0, 1e-37, 1e-45])
def test_a_row_of_next_to_nothing_is_quantized_as_the_library_does(largest, tmp_path):
    portable = portable_of({})
    name = "encoder.layers.0.attention.output.weight"
    weight = portable.weights[name].clone()
    weight[3] = largest
    portable = replace(portable, weights={**portable.weights, name: weight})
    written_by_the_library(portable, "int8", tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_ctranslate2(portable, tmp_path / "ours", "int8")
    assert (tmp_path / "ours" / "model.bin").read_bytes() == (tmp_path / "theirs" / "model.bin").read_bytes()


@pytest.mark.parametrize("quantization", ["int8", "int16", "bfloat16"])
def test_a_quantized_model_says_nearly_the_same(quantization, tmp_path):
    portable = portable_of({})
    write_ctranslate2(portable, tmp_path, quantization)
    sources, targets = sentences_of(portable, 20)
    observed = observe_with_ctranslate2(
        tmp_path, pieces(portable.source, sources), pieces(portable.target, targets), SILENT
    )
    wanted = log_probs_of(model_of(portable), sources, targets, 1000)
    drift = [
        abs(one - other)
        for row, others in zip(observed.log_probs, wanted, strict=True)
        for one, other in zip(row, others, strict=True)
    ]
    assert 0 < sum(drift) / len(drift) < 0.1


def test_vocabularies_apart_are_written_apart(tmp_path):
    portable = portable_of({"tie_embeddings": "decoder"})
    write_ctranslate2(portable, tmp_path)
    assert json.loads((tmp_path / "source_vocabulary.json").read_text()) == names(V)
    assert json.loads((tmp_path / "target_vocabulary.json").read_text()) == names(W)


def test_the_table_of_places_is_long_enough_for_the_longest_translation(tmp_path):
    portable = portable_of({})
    data = portable.config.data.model_copy(update={"max_length": 900})
    config = portable.config.model_copy(update={"data": data})
    write_ctranslate2(PortableModel(config, portable.weights, portable.source, portable.target), tmp_path)
    variables, aliases = binary(tmp_path / "model.bin")
    assert variables[aliases["encoder/position_encodings/encodings"]][1] == (2 * 900 + 21, 32)
    assert math.prod(variables["decoder/position_encodings/encodings"][1]) == 1821 * 32


@pytest.mark.parametrize("architecture", ["rnn", "mixed", "cmlm"])
def test_what_ctranslate2_has_no_layers_for_is_refused(architecture):
    config = Config.model_validate_json(json.dumps({"model": {"architecture": architecture}}))
    with pytest.raises(
        CheckpointError, match=rf"model\.architecture is {architecture}; CTranslate2 and the others take"
    ):
        check_ctranslate2(config)


def test_norms_of_queries_and_keys_which_ctranslate2_does_not_have_are_refused():
    with pytest.raises(CheckpointError, match=r"model\.query_key_norm is true; CTranslate2 and the others want false"):
        check_ctranslate2(config_of({"query_key_norm": True}))


def test_weights_are_not_changed_by_writing_them(tmp_path):
    portable = portable_of({})
    before = {name: weight.clone() for name, weight in portable.weights.items()}
    write_ctranslate2(portable, tmp_path, "int8")
    assert all(torch.equal(portable.weights[name], weight) for name, weight in before.items())
