"""MarianMTModel of Hugging Face transformers: it says the same there and here, written or read."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtkit.config.settings import Config
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import CheckpointError
from mtkit.exchange.formats import import_model
from mtkit.exchange.huggingface import check_marian, in_marian_order, read_marian, write_marian_weights
from mtkit.exchange.portable import PortableModel, Vocabulary
from mtkit.models.registry import new_model
from mtkit.text.vocabulary import DEFAULT_IDS
from tests.exported import check_beam, check_greedy, check_logits, lively, loaded, model_of, names, sentences_of

transformers: Any = pytest.importorskip("transformers")

V, W = 40, 33  # sizes of the vocabularies where they are apart
PORTABLE = {
    "d_model": 32,
    "num_heads": 4,
    "d_ff": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "norm_placement": "post",
    "output_bias": True,
    "start_token": "zero",
    "dropout": 0.0,
}
CHOICES = [
    {},
    {"activation": "silu", "encoder_layers": 3, "decoder_layers": 1},
    {"activation": "gelu", "start_token": "pad", "decoder_num_heads": 2, "decoder_d_ff": 24},
    {"scale_embeddings": False, "output_bias": False, "start_token": "end"},
    {"tie_embeddings": "decoder"},
    {"tie_embeddings": "none", "activation": "silu"},
]


def config_of(model: dict[str, Any], **sections: Any) -> Config:
    shared = model.get("tie_embeddings", "all") == "all"
    return Config.model_validate_json(
        json.dumps({"model": {**PORTABLE, **model}, "tokenizer": {"shared": shared}, **sections})
    )


def portable_of(model: dict[str, Any]) -> PortableModel:
    config = config_of(model)
    sizes = (V, V) if config.tokenizer.shared else (V, W)
    weights = dict(lively(new_model(config.model, *sizes, seed=1)).named_parameters())
    weights = {name: weight.detach() for name, weight in weights.items()}
    return PortableModel(config, weights, Vocabulary(names(sizes[0])), Vocabulary(names(sizes[1])))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_is_exported_says_the_same_in_transformers(choice, tmp_path):
    portable = in_marian_order(portable_of(choice))
    check_marian(portable.config)
    write_marian_weights(portable, tmp_path)
    theirs = loaded(tmp_path)
    forbidden = portable.target.special.never_generated
    check_logits(portable, theirs)
    check_greedy(portable, theirs, forbidden)
    check_beam(portable, theirs, forbidden)
    told = theirs.generation_config
    assert sorted(token for [token] in told.bad_words_ids) == sorted(forbidden)
    assert (told.num_beams, told.length_penalty) == (5, 1.0)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_order_of_export_changes_nothing_but_ids(choice):
    before = portable_of(choice)
    after = in_marian_order(before)
    if before.config.tokenizer.shared:
        assert after.source.pieces[-1] == "<pad>"
        assert after.source.special.pad == V - 1
    assert after.source.special.pad == after.target.special.pad
    assert after.target.pieces[:2] == ["</s>", "<unk>"]
    places = [{piece: i for i, piece in enumerate(side.pieces)} for side in (after.source, after.target)]
    sources, targets = sentences_of(before)
    moved = [
        [[place[side.pieces[token]] for token in row] for row in part]
        for place, side, part in zip(places, (before.source, before.target), (sources, targets), strict=True)
    ]
    logits = []
    for portable, both in ((before, (sources, targets)), (after, moved)):
        model = model_of(portable)
        batch = padded_batch(*map(ragged, both), model.boundaries)
        with torch.no_grad():
            logits.append(model.output(model(batch.source, batch.target))[batch.target.mask])
    order = [places[1][piece] for piece in before.target.pieces]
    assert torch.allclose(logits[0], logits[1][:, order], atol=1e-5)


THEIRS = [
    {},
    {"activation_function": "relu", "eos_token_id": 13, "encoder_layers": 3, "decoder_layers": 1},
    {"activation_function": "gelu", "encoder_attention_heads": 2, "decoder_ffn_dim": 24, "scale_embedding": False},
    {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": W, "pad_token_id": W - 1},
    {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": V + 5, "pad_token_id": V - 1, "eos_token_id": 2},
    {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    {"bos_token_id": 0, "full_pad": True},
]


def made_by_transformers(choice: dict[str, Any]) -> Any:
    """A Marian model with random weights, biases and norms too."""
    choice = dict(choice)
    full_pad = choice.pop("full_pad", False)
    settings = {
        "vocab_size": V,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "activation_function": "swish",
        "scale_embedding": True,
        "eos_token_id": 0,
        "pad_token_id": V - 1,
        "max_position_embeddings": 64,
        "num_beams": 4,
        **choice,
    }
    settings["decoder_start_token_id"] = settings["pad_token_id"]
    settings["forced_eos_token_id"] = settings["eos_token_id"]
    num_beams = settings.pop("num_beams")
    torch.manual_seed(3)
    model = transformers.MarianMTModel(transformers.MarianConfig(**settings))
    model.generation_config.num_beams = num_beams
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if "embed_positions" not in name:
                noise = (0.5 if "norm" in name or "bias" in name else 0.25) * torch.randn(weight.shape)
                if ("shared" in name or "embed_tokens" in name) and not full_pad:
                    noise[settings["pad_token_id"]] = 0
                weight += noise
    return model.eval()


@pytest.mark.parametrize("choice", THEIRS, ids=str)
def test_what_is_imported_says_the_same_here(choice, tmp_path):
    theirs = made_by_transformers(choice)
    theirs.save_pretrained(tmp_path / "theirs")
    portable = read_marian(tmp_path / "theirs")
    config = theirs.config
    special = portable.target.special
    assert (special.pad, special.end, special.begin) == (config.pad_token_id, config.eos_token_id, None)
    assert portable.config.model.start_token == ("pad" if "full_pad" in choice else "zero")
    assert portable.config.decoding.beam_size == 4
    check_logits(portable, theirs)
    check_greedy(portable, theirs, [special.pad])
    check_beam(portable, theirs, [special.pad])


@pytest.mark.parametrize("choice", THEIRS, ids=str)
def test_the_export_of_an_import_has_the_same_tensors_and_ids(choice, tmp_path):
    made_by_transformers(choice).save_pretrained(tmp_path / "theirs")
    portable = read_marian(tmp_path / "theirs")
    check_marian(portable.config)
    (tmp_path / "ours").mkdir()
    write_marian_weights(in_marian_order(portable), tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype
        assert torch.equal(ours[name], weight), name
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    same = (
        "pad_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "vocab_size",
        "decoder_vocab_size",
        "d_model",
        "share_encoder_decoder_embeddings",
        "tie_word_embeddings",
        "activation_function",
        "scale_embedding",
        "encoder_attention_heads",
        "decoder_ffn_dim",
    )
    # transformers 4 leaves out what is true by default.
    assert {key: after[key] for key in same} == {key: before.get(key, True) for key in same}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that transformers wrote; not to be changed."""
    directory = tmp_path_factory.mktemp("written") / "theirs"
    made_by_transformers({}).save_pretrained(directory)
    return directory


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """The same, which may be changed."""
    return Path(shutil.copytree(written, tmp_path / "theirs"))


def test_older_checkpoints_store_copies_and_tables_and_are_read_without_code(checkpoint):
    wanted = read_marian(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    shared = weights["model.shared.weight"]
    positions = made_by_transformers({}).model.encoder.embed_positions.weight.detach()
    (checkpoint / "model.safetensors").unlink()
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_tokens.weight"] = shared.clone()
        weights[f"model.{side}.embed_positions.weight"] = positions.clone()
    torch.save({**weights, "lm_head.weight": shared.clone()}, checkpoint / "pytorch_model.bin")
    found = read_marian(checkpoint)
    assert found.config == wanted.config
    assert found.weights.keys() == wanted.weights.keys()
    assert all(torch.equal(found.weights[name], weight) for name, weight in wanted.weights.items())


def test_shards_and_half_precision_are_read(checkpoint):
    wanted = read_marian(checkpoint)
    weights = {name: weight.half() for name, weight in load_file(checkpoint / "model.safetensors").items()}
    (checkpoint / "model.safetensors").unlink()
    places: dict[str, str] = {}
    ordered = sorted(weights)
    for number, part in enumerate(ordered[begin : begin + 20] for begin in range(0, len(ordered), 20)):
        save_file({name: weights[name] for name in part}, checkpoint / f"model-{number}.safetensors")
        places |= dict.fromkeys(part, f"model-{number}.safetensors")
    assert len(set(places.values())) > 1
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = read_marian(checkpoint)
    assert all(torch.equal(found.weights[name], weight.half().float()) for name, weight in wanted.weights.items())


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/mtkit-was-here").touch, ())


def test_a_pickle_that_would_run_code_is_refused(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    for content in (pickle.dumps(Hostile()), b"garbage", b""):
        (checkpoint / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"pytorch_model\.bin: is cut off or damaged, or holds more than tensors"
        ) as told:
            read_marian(checkpoint)
        assert "\n" not in str(told.value)
    torch.save([torch.zeros(2)], checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no table of tensors"):
        read_marian(checkpoint)
    assert not Path("/tmp/mtkit-was-here").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"static_position_embeddings": False}, "static_position_embeddings is false; mtkit imports true alone"),
        ({"normalize_before": True}, "normalize_before is true; mtkit imports false alone"),
        ({"normalize_embedding": True}, "normalize_embedding is true; mtkit imports false alone"),
        (
            {"activation_function": "gelu_new"},
            "activation_function is 'gelu_new'; mtkit imports relu, gelu, swish, silu",
        ),
        ({"d_model": "wide"}, "d_model is 'wide', wants a whole number"),
        ({"encoder_attention_heads": 3}, "d_model 32 is not a multiple of num_heads 3"),
        (
            {"decoder_start_token_id": 17},
            "decoder_start_token_id is 17; wants pad_token_id, eos_token_id or bos_token_i",
        ),
        ({"eos_token_id": None}, "eos_token_id is missing; wants the id of the end mark"),
        ({"pad_token_id": None}, "pad_token_id is missing; wants the id of padding"),
        ({"eos_token_id": [0, 5]}, "eos_token_id is [0, 5], wants one id below 40"),
        ({"eos_token_id": -1}, "eos_token_id is -1, wants one id below 40"),
        ({"bos_token_id": 40}, "bos_token_id is 40, wants one id below 40"),
        ({"forced_bos_token_id": 7}, "forced_bos_token_id is 7; mtkit forces no first token"),
        (
            {"eos_token_id": 3},
            "config.json: eos_token_id is 3, and 0 in generation_config.json; make them agree",
        ),
        (
            {"activation_function": ["relu"]},
            "activation_function is ['relu']; mtkit imports relu, gelu, swish, silu",
        ),
        ({"d_model": 0}, "config.json: model.d_model: Input should be greater than or equal to 2"),
        (
            {"d_model": 10**12},
            "model.safetensors: model.shared.weight is (40, 32), its config.json asks for (40, 1000000000000)",
        ),
        ({"vocab_size": 10**12}, "model.shared.weight is (40, 32), its config.json asks for (1000000000000, 32)"),
        (
            {"decoder_ffn_dim": 24},
            "decoder.layers.0.fc1.weight is (48, 32), its config.json asks for (24, 32)",
        ),
        ({"encoder_layers": 10**12}, "holds no model.encoder.layers.2.self_attn.q_proj.weight, which its config.json"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false and share_encoder_decoder_embeddings true; mtk"),
        ({"scale_embedding": "yes"}, "scale_embedding is 'yes', wants true or false"),
        (
            {"encoder_layers": 4},
            "model.safetensors: holds no model.encoder.layers.2.self_attn.q_proj.weight, which its",
        ),
        (
            {"decoder_layers": 1},
            "model.safetensors: holds model.decoder.layers.1.encoder_attn.k_proj.bias, which no mod",
        ),
    ],
    ids=lambda value: "-".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_what_the_settings_of_a_checkpoint_ask_for_in_vain_is_told(checkpoint, changes, message):
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError) as told:
        read_marian(checkpoint)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("final_logits_bias", torch.zeros(40), "final_logits_bias is (40,), its config.json asks for (1, 40)"),
        ("model.shared.weight", torch.tensor(1.0), "model.shared.weight is (), its config.json asks for (40, 32)"),
        (
            "model.encoder.layers.1.fc2.weight",
            torch.zeros(48, 32),
            "model.encoder.layers.1.fc2.weight is (48, 32), its config.json asks for (32, 48)",
        ),
        (
            "model.encoder.layers.0.self_attn.k_proj.bias",
            torch.zeros(1),
            "k_proj.bias is (1,), its config.json asks for (32,)",
        ),
        (
            "model.decoder.layers.0.final_layer_norm.weight",
            torch.ones(32, dtype=torch.int8),
            "final_layer_norm.weight is int8; mtkit imports float32 and float16 and bfloat16",
        ),
        (
            "lm_head.weight",
            torch.zeros(40, 32),
            "lm_head.weight is not model.shared.weight; the settings say that they",
        ),
        ("model.encoder.embed_positions.weight", torch.zeros(4, 3), "holds other positions than Marian's sinusoids"),
        ("model.encoder.embed_positions.weight", torch.tensor(1.0), "holds other positions than Marian's sinusoids"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_tensor_that_is_not_what_the_settings_ask_for_is_told(checkpoint, name, weight, message):
    path = checkpoint / "model.safetensors"
    save_file({**load_file(path), name: weight}, path)
    with pytest.raises(CheckpointError) as told:
        read_marian(checkpoint)
    assert message in str(told.value)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_of_positions_in_half_precision_are_known(checkpoint, dtype):
    weights = {name: weight.to(dtype) for name, weight in load_file(checkpoint / "model.safetensors").items()}
    for side in ("encoder", "decoder"):
        positions = getattr(made_by_transformers({}).model, side).embed_positions.weight.detach()
        weights[f"model.{side}.embed_positions.weight"] = positions.to(dtype)
    save_file(weights, checkpoint / "model.safetensors")
    read_marian(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(2)},
        {"model.shared.weight": torch.zeros(40, 32).to_sparse()},
        {"model.shared.weight": torch.empty(40, 32, device="meta")},
        {"model.shared.weight": torch.zeros(1, 32).expand(10**12, 32)},
        {"model.shared.weight": 1.0},
    ],
    ids=["a number", "sparse", "no numbers", "one row many times", "a float"],
)
def test_what_is_no_plain_tensor_is_told(checkpoint, content):
    (checkpoint / "model.safetensors").unlink()
    torch.save(content, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: holds no table of tensors"):
        read_marian(checkpoint)


def test_weights_that_were_stored_as_parameters_are_read_without_gradients(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save({name: torch.nn.Parameter(weight) for name, weight in weights.items()}, checkpoint / "pytorch_model.bin")
    assert not any(weight.requires_grad for weight in read_marian(checkpoint).weights.values())


def test_the_end_mark_of_a_larger_target_may_be_no_id_of_the_source(tmp_path):
    sizes = {"vocab_size": V, "decoder_vocab_size": V + 5, "pad_token_id": V - 1, "eos_token_id": V + 4}
    made_by_transformers({"share_encoder_decoder_embeddings": False, **sizes}).save_pretrained(tmp_path)
    assert read_marian(tmp_path).target.special.end == V + 4


@pytest.mark.parametrize("layout", ["bart", ["marian"], None])
def test_another_layout_is_told(checkpoint, layout, tmp_path):
    (checkpoint / "config.json").write_text(json.dumps({"model_type": layout}))
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is .*; mtkit imports marian and m2m_100"):
        import_model(checkpoint, tmp_path / "bundle")


def test_a_list_of_one_end_mark_is_that_one(checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [0]}))
    assert read_marian(checkpoint).target.special.end == 0


@pytest.mark.parametrize(("stopping", "told"), [("exact", False), ("count", True)])
def test_when_a_beam_stops_is_told_both_ways(stopping, told, tmp_path):
    portable = in_marian_order(portable_of({}))
    config = config_of({}, decoding={"stopping": stopping, "beam_size": 3, "length_penalty": 0.6})
    write_marian_weights(replace(portable, config=config), tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["early_stopping"] is told
    assert read_marian(tmp_path).config.decoding == config.decoding


def test_damaged_and_missing_files_are_told(checkpoint, tmp_path):
    for spoil, message in (
        (
            lambda: (checkpoint / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"nonsense"),
            "damaged or missing",
        ),
        (lambda: (checkpoint / "model.safetensors").unlink(), "holds no weights; wants one of model.safetensors, "),
        (lambda: (checkpoint / "config.json").write_text("[1"), "config.json: is no JSON object"),
        (lambda: (checkpoint / "config.json").unlink(), "config.json: missing"),
    ):
        spoil()
        with pytest.raises(CheckpointError, match=message):
            read_marian(checkpoint)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(CheckpointError):
        read_marian(checkpoint)


def test_other_tables_of_positions_are_refused(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.encoder.embed_positions.weight"] = torch.ones(64, 32)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_positions\.weight holds other positions than Marian's sinusoids"):
        read_marian(checkpoint)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"norm_placement": "pre"},
            "model.norm_placement is pre; Marian files want post; --to ctranslate2 and --to m2m100 take it so",
        ),
        ({"norm": "rms"}, "model.norm is rms; Marian files want layer; --to ctranslate2 takes it so"),
        ({"activation": "swiglu"}, "model.activation is swiglu; Marian files want relu or gelu or silu"),
        ({"attention_bias": False}, "model.attention_bias is false; Marian files want true"),
        ({"positions": "rotary"}, "model.positions is rotary; Marian files want sinusoidal"),
        (
            {"sinusoid_first": 2},
            "model.sinusoid_first is 2; Marian files want 0; --to ctranslate2 and --to m2m100 take it so",
        ),
        ({"sinusoid_layout": "interleaved"}, "model.sinusoid_layout is interleaved; Marian files want halves"),
        ({"sinusoid_exponent": "tensor2tensor"}, "model.sinusoid_exponent is tensor2tensor; Marian files want paper"),
        ({"embedding_norm": True}, "model.embedding_norm is true; Marian files want false"),
        ({"query_key_norm": True}, "model.query_key_norm is true; CTranslate2 and the others want false"),
        ({"query_key_norm": "layer"}, "model.query_key_norm is layer; CTranslate2 and the others want false"),
        ({"ablate": ("shift",)}, "model.ablate is shift; CTranslate2 and the others want models with all their parts"),
        ({"norm": "none", "norm_placement": "pre"}, "model.norm is none; CTranslate2 and the others want norms"),
        ({"positions": "alibi"}, "model.positions is alibi; CTranslate2 and the others want sinusoidal, learned"),
        (
            {"decoder_positions": "learned"},
            "model.encoder_positions and decoder_positions are sinusoidal and learned; CTranslate2 and the others want",
        ),
        ({"decoder_d_ff": 0}, "model.decoder_d_ff is 0; CTranslate2 and the others want feed-forward layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_marian_cannot_express_is_refused_with_what_could_be(model, message):
    with pytest.raises(CheckpointError) as told:
        check_marian(config_of(model))
    assert message in str(told.value)


def test_models_other_than_transformers_are_no_marian_models():
    for architecture in ("rnn", "cmlm"):
        config = Config.model_validate_json(f'{{"model": {{"architecture": "{architecture}"}}}}')
        wanted = f"model.architecture is {architecture}; Marian files hold Transformers, as do the others"
        with pytest.raises(CheckpointError, match=f"^{wanted}$"):
            check_marian(config)


def test_our_own_ids_are_what_export_starts_from():
    assert portable_of({}).source.special == DEFAULT_IDS
