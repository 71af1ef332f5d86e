"""M2M100ForConditionalGeneration of Hugging Face transformers: it says the same there and here, written or read."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.exchange.huggingface import check_m2m100, in_m2m100_order, read_m2m100, write_m2m100_weights
from mtkit.exchange.portable import PortableModel, Vocabulary
from mtkit.models.registry import new_model
from mtkit.text.vocabulary import SpecialIds
from tests.exported import check_beam, check_greedy, check_logits, lively, loaded, names

transformers: Any = pytest.importorskip("transformers")

V = 40
KIND = "M2M100ForConditionalGeneration"
PORTABLE = {
    "d_model": 32,
    "num_heads": 4,
    "d_ff": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "sinusoid_exponent": "tensor2tensor",
    "sinusoid_first": 2,
    "start_token": "end",
    "dropout": 0.0,
}
CHOICES = [
    {},
    {"activation": "gelu", "encoder_layers": 3, "decoder_layers": 1, "start_token": "begin"},
    {"activation": "silu", "scale_embeddings": False, "decoder_num_heads": 2, "decoder_d_ff": 24},
]


def config_of(model: dict[str, Any]) -> Config:
    return Config.model_validate_json(json.dumps({"model": {**PORTABLE, **model}}))


def portable_of(model: dict[str, Any]) -> PortableModel:
    config = config_of(model)
    weights = dict(lively(new_model(config.model, V, V, seed=1)).named_parameters())
    side = Vocabulary(names(V))
    return PortableModel(config, {name: weight.detach() for name, weight in weights.items()}, side, side)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_is_exported_says_the_same_in_transformers(choice, tmp_path):
    portable = in_m2m100_order(portable_of(choice))
    check_m2m100(portable.config)
    assert portable.source.pieces[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<0x00>"]
    assert portable.target.special == SpecialIds(pad=1, unknown=3, begin=0, end=2)
    write_m2m100_weights(portable, tmp_path)
    theirs = loaded(tmp_path, KIND)
    forbidden = portable.target.special.never_generated
    check_logits(portable, theirs)
    check_greedy(portable, theirs, forbidden)
    check_beam(portable, theirs, forbidden)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_an_export_is_imported_and_exported_again_as_the_same_bytes(choice, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = in_m2m100_order(portable_of(choice))
    write_m2m100_weights(first, tmp_path / "one")
    again = read_m2m100(tmp_path / "one")
    assert again.target.special == first.target.special
    assert again.config.model.model_copy(update={"dropout": 0.0}) == first.config.model
    assert all(torch.equal(again.weights[name], weight) for name, weight in first.weights.items())
    write_m2m100_weights(in_m2m100_order(again), tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], weight) for name, weight in two.items())


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish"])
def test_what_transformers_makes_says_the_same_here(activation, tmp_path):
    sizes = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2}
    torch.manual_seed(3)
    config = transformers.M2M100Config(vocab_size=V, d_model=32, activation_function=activation, **sizes, **heads)
    theirs = transformers.M2M100ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight += (0.5 if "norm" in name or "bias" in name else 0.25) * torch.randn(weight.shape)
    theirs.save_pretrained(tmp_path)
    portable = read_m2m100(tmp_path)
    check_logits(portable, theirs)
    check_greedy(portable, theirs, [0, 1, 3])
    check_beam(portable, theirs, [0, 1, 3])
    (tmp_path / "ours").mkdir()
    write_m2m100_weights(in_m2m100_order(portable), tmp_path / "ours")
    before, after = (load_file(directory / "model.safetensors") for directory in (tmp_path, tmp_path / "ours"))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"norm_placement": "post"},
            "model.norm_placement is post; M2M100 files want pre; --to ctranslate2 and --to marian take it so",
        ),
        ({"norm": "rms"}, "model.norm is rms; M2M100 files want layer; --to ctranslate2 takes it so"),
        ({"activation": "geglu"}, "model.activation is geglu; M2M100 files want relu or gelu or silu"),
        ({"sinusoid_first": 0}, "model.sinusoid_first is 0; M2M100 files want 2"),
        ({"sinusoid_exponent": "paper"}, "model.sinusoid_exponent is paper; M2M100 files want tensor2tensor"),
        ({"tie_embeddings": "decoder"}, "model.tie_embeddings is decoder; M2M100 files want all"),
        ({"output_bias": True}, "model.output_bias is true; M2M100 files want false"),
        ({"query_key_norm": True}, "model.query_key_norm is true; CTranslate2 and the others want false"),
        ({"query_key_norm": "layer"}, "model.query_key_norm is layer; CTranslate2 and the others want false"),
        ({"ablate": ("shift",)}, "model.ablate is shift; CTranslate2 and the others want models with all their parts"),
        ({"norm": "none", "norm_placement": "pre"}, "model.norm is none; CTranslate2 and the others want norms"),
        (
            {"decoder_positions": "learned"},
            "model.encoder_positions and decoder_positions are sinusoidal and learned; CTranslate2 and the others want",
        ),
        ({"decoder_d_ff": 0}, "model.decoder_d_ff is 0; CTranslate2 and the others want feed-forward layers"),
        ({"start_token": "zero"}, "model.start_token is zero; M2M100 files want begin or end"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_m2m100_cannot_express_is_refused_with_what_could_be(model, message):
    with pytest.raises(CheckpointError) as told:
        check_m2m100(config_of(model))
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token_id": 4}, "pad_token_id is 4; mtkit imports 1 alone"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false; mtkit imports true alone"),
        ({"decoder_start_token_id": 7}, "decoder_start_token_id is 7; wants eos_token_id or bos_token_id"),
        ({"decoder_start_token_id": 1}, "decoder_start_token_id is 1; wants eos_token_id or bos_token_id"),
        ({"eos_token_id": None}, "eos_token_id is missing; wants the id of the end mark"),
        ({"eos_token_id": 40}, "eos_token_id is 40, wants one id below 40"),
        ({"forced_bos_token_id": 7}, "forced_bos_token_id is 7; mtkit forces no first token"),
        ({"vocab_size": 41}, "model.shared.weight is (40, 32), its config.json asks for (41, 32)"),
        ({"decoder_layers": 3}, "holds no model.decoder.layers.2.self_attn.q_proj.weight, which its config.json"),
    ],
)
def test_what_the_settings_of_a_checkpoint_ask_for_in_vain_is_told(changes, message, tmp_path):
    write_m2m100_weights(in_m2m100_order(portable_of({})), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError) as told:
        read_m2m100(tmp_path)
    assert message in str(told.value)


def test_a_vocabulary_without_a_begin_mark_is_told():
    portable = portable_of({})
    side = Vocabulary(portable.source.pieces, SpecialIds(begin=None))
    with pytest.raises(CheckpointError, match="the vocabulary has no begin mark; M2M100 files want one"):
        in_m2m100_order(PortableModel(portable.config, portable.weights, side, side))


def test_embeddings_are_scaled_where_nothing_is_told(tmp_path):
    write_m2m100_weights(in_m2m100_order(portable_of({})), tmp_path)
    path = tmp_path / "config.json"
    told = json.loads(path.read_text())
    del told["scale_embedding"]
    path.write_text(json.dumps(told))
    assert read_m2m100(tmp_path).config.model.scale_embeddings
