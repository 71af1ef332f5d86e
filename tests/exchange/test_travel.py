"""Models that travel: what is exported or imported says the same from text to text, or the difference is told."""

import json
import re
import shutil
import textwrap
from ast import literal_eval
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtkit.bundle.bundle import open_bundle, save_bundle
from mtkit.bundle.info import pack
from mtkit.config.load import with_sections
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, MtkitError
from mtkit.exchange.formats import Agreement, Line, export, extend, import_model
from mtkit.exchange.huggingface import read_marian
from mtkit.exchange.portable import TheirConfig, not_carried
from mtkit.pipeline import run_train
from mtkit.text.tokenizer import Tokenizer
from mtkit.translation.stream import check
from mtkit.translation.translator import load, load_bundle
from tests.conftest import CorpusFiles, config_with, toy_settings, write_lines, write_toy_corpus

MARIAN = {"norm_placement": "post", "activation": "silu", "output_bias": True, "start_token": "zero"}
M2M100 = {"sinusoid_exponent": "tensor2tensor", "sinusoid_first": 2, "start_token": "end"}
SHORT = {"batch_tokens": 256, "max_steps": 12, "validate_every": 12, "save_every": 12}
ALIKE = re.compile(r"from text to text: (\d+) of (\d+) lines have the same ids, (\d+) the same greedy translation[;(]?")


@pytest.fixture(scope="module")
def few_files(tmp_path_factory) -> CorpusFiles:
    """A small corpus, whose validation lines are short, since models are compared on them; must not be changed."""
    files = CorpusFiles(write_toy_corpus(tmp_path_factory.mktemp("few"), 200))
    for side, lines in zip(("src", "tgt"), files.lines("valid"), strict=True):
        write_lines(files.root / f"valid.{side}", [" ".join(line.split()[: 2 + n % 2]) for n, line in enumerate(lines)])
    return files


_RUNS: dict[str, Path] = {}


def tagged_run(files: CorpusFiles, run: Path, tags: tuple[str, ...], model: dict[str, Any], **tokenizer: Any) -> Path:
    """A young model whose corpora begin with tags, if there are any; it is trained once."""
    key = json.dumps([str(files.root), tags, model, tokenizer])
    if key in _RUNS:
        return Path(shutil.copytree(_RUNS[key], run))
    settings = toy_settings(files, run)
    for part in ("train", "valid"):
        [corpus] = settings["data"][part]
        settings["data"][part] = [{**corpus, "tag": tag} for tag in tags] or [corpus]
    config = config_with(
        settings, model={**model, "d_ff": 64}, training=SHORT, tokenizer={"vocab_size": 340, **tokenizer}
    )
    run_train(config)
    _RUNS[key] = Path(shutil.copytree(run, run.with_name("as-trained")))
    return run


def told(to: str, run: Path, directory: Path, capsys: Any) -> str:
    pytest.importorskip("ctranslate2" if to == "ctranslate2" else "transformers")
    capsys.readouterr()
    export(run, to, directory)
    return capsys.readouterr().err


def require_alike(text: str, least: int = 8) -> None:
    found = ALIKE.search(text)
    assert found, text
    same_ids, lines, translated = map(int, found.groups())
    assert same_ids == translated == lines >= least, text


KINDS = {
    "angle": ("<2en>", "<2fr>"),
    "opus": (">>eng<<", ">>fra<<"),
    "dunder": ("__en__", "__fr__"),
    "word": ("english", "french"),
}


@pytest.mark.parametrize("to", ["marian", "m2m100"])
@pytest.mark.parametrize("kind", KINDS)
def test_tags_of_every_kind_travel_from_text_to_text(kind, to, few_files, tmp_path, capsys):
    run = tagged_run(few_files, tmp_path / "run", KINDS[kind], MARIAN if to == "marian" else M2M100)
    text = told(to, run, tmp_path / "out", capsys)
    require_alike(text, least=16)  # without tags, too
    if to == "marian":
        require_alike(told("ctranslate2", run, tmp_path / "ct2", capsys), least=16)


@pytest.mark.parametrize("kind", ["shared", "apart", "char"])
def test_a_model_without_bytes_is_compared_under_the_same_conditions(kind, few_files, tmp_path, capsys):
    tokenizer = {"byte_fallback": False, "shared": kind != "apart", "type": "char" if kind == "char" else "bpe"}
    model = {**MARIAN, **({"tie_embeddings": "decoder"} if kind == "apart" else {})}
    run = tagged_run(few_files, tmp_path / "run", (), model, **tokenizer)
    _always_unknown(run)
    for to in ("marian", "ctranslate2"):
        text = told(to, run, tmp_path / to, capsys)
        if to == "ctranslate2":
            require_alike(text)
        else:  # which leaves <unk> out
            assert "8 of 8 lines have the same ids, 0 the same" in text
            assert "(8 more in tokens, but not in how they are written)" in text


def _always_unknown(run: Path) -> None:
    """Edit the model so that it says the unknown before anything else."""
    bundle = open_bundle(run)
    weights = {name: weight.clone() for name, weight in bundle.weights().items()}
    weights["decoder.output.bias"][1] += 50
    tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), bundle.tokenizer_path)
    about = {k: v for k, v in bundle.description.items() if k.endswith("vocab_size")}
    canaries = bundle.canaries()
    save_bundle(run / "model", weights, bundle.config, tokenizer.save, about, canaries)


def test_tags_that_only_sentencepiece_sees_are_refused_where_no_tokenizer_reads_them(few_files, tmp_path):
    model = {**MARIAN, "tie_embeddings": "decoder"}
    run = tagged_run(few_files, tmp_path / "run", KINDS["opus"], model, shared=False)
    with pytest.raises(MtkitError, match="tag >>eng<<: a MarianTokenizer would read it as other ids, and with"):
        export(run, "marian", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_counts_what_is_read_and_said_and_shows_what_differs():
    lines = [
        Line("one", True, True, "a", "a"),
        Line("two", True, True, "<unk>", "?"),
        Line("three", True, False, "b", "c"),
        Line("four", False, False, "d", "e"),
    ]
    assert list(Agreement("library 1.0", lines, 2e-6).report()) == [
        "library 1.0, from text to text: 3 of 4 lines have the same ids, 1 the same greedy translation (1 more in "
        "tokens, but not in how they are written); log-probabilities of tokens differ by at most 2.0e-06",
        "  other ids: four",
        "  other translation: two | here: <unk> | there: ?",
        "  other translation: three | here: b | there: c",
    ]


# Settings of decoding.


def change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, **changes}), "utf-8")


@pytest.mark.parametrize(
    "decoding", [{"no_repeat_ngram": 2}, {"min_length": 7}, {"no_repeat_ngram": 1, "min_length": 3}], ids=str
)
def test_constraints_of_decoding_travel_and_come_back(decoding, few_files, tmp_path, capsys):
    run = tagged_run(few_files, tmp_path / "run", (), MARIAN)
    _with_decoding(run, decoding)
    for to in ("marian", "ctranslate2"):
        require_alike(told(to, tmp_path / "run", tmp_path / to, capsys))
    import_model(tmp_path / "marian", tmp_path / "back")
    assert open_bundle(tmp_path / "back").config.decoding.beam_size == 2
    found = open_bundle(tmp_path / "back").config.decoding
    assert {name: getattr(found, name) for name in decoding} == decoding
    card = (tmp_path / "ctranslate2" / "README.md").read_text("utf-8")
    assert f"no_repeat_ngram_size={decoding.get('no_repeat_ngram', 0)}" in card
    assert f"min_decoding_length={decoding.get('min_length', 0)}" in card


def _with_decoding(run: Path, decoding: dict[str, Any]) -> None:
    """Edit the model as if it had been trained with these settings of decoding."""
    bundle = open_bundle(run)
    kept = bundle.config.decoding.model_dump(mode="json", exclude_unset=True)
    config = with_sections(bundle.config, {"decoding": {**kept, **decoding}}, "test")
    weights = {name: weight.clone() for name, weight in bundle.weights().items()}
    tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), bundle.tokenizer_path)
    about = {k: v for k, v in bundle.description.items() if k.endswith("vocab_size")}
    canaries = bundle.canaries()
    save_bundle(run / "model", weights, config, tokenizer.save, about, canaries)


@pytest.fixture(scope="module")
def first(written_opus, tmp_path_factory) -> Path:
    """The checkpoint as it was imported; not to be changed."""
    model = tmp_path_factory.mktemp("first") / "model"
    import_model(written_opus, model)
    return model


SAMPLES = {"method": "sample", "temperature": 0.7}


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.9}, {"top_k": 1, "top_p": 1.0}], ids=str)
def test_sampling_travels_and_comes_back(cut, first, tmp_path, capsys, monkeypatch):
    bundle = open_bundle(first)
    decoding = {**bundle.config.decoding.model_dump(mode="json", exclude_unset=True), **SAMPLES, **cut}
    config = with_sections(bundle.config, {"decoding": decoding}, "test")
    weights = {name: weight.clone() for name, weight in bundle.weights().items()}
    tokenizer = Tokenizer.load(bundle.tokenizer_path)
    sizes = ("source_vocab_size", "target_vocab_size", "num_parameters")
    save_bundle(tmp_path / "model", weights, config, tokenizer.save, {key: bundle.description[key] for key in sizes})
    assert "no place" not in told("marian", tmp_path / "model", tmp_path / "out", capsys)
    content = json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8"))
    wanted = {"do_sample": True, "num_beams": 1, "temperature": 0.7, "top_k": 0, "top_p": 1.0, **cut}
    assert {key: content[key] for key in wanted} == wanted
    import_model(tmp_path / "out", tmp_path / "back")
    back = open_bundle(tmp_path / "back").config.decoding
    assert back == config.decoding.model_copy(update={"beam_size": 1, "top_p": cut.get("top_p", 1.0) % 1 or None})

    assert "no place" not in told("ctranslate2", tmp_path / "model", tmp_path / "ct2", capsys)
    card = (tmp_path / "ct2" / "README.md").read_text("utf-8")
    call = re.search(r"beam_size=1, sampling_topk=(\d+), sampling_topp=(\S+), sampling_temperature=0.7,", card)
    assert call
    assert (int(call[1]), float(call[2])) == (cut.get("top_k", 0), cut.get("top_p", 1.0))
    call_text = textwrap.dedent(card.split("In this directory:\n")[1].split("\nSuppressed pieces")[0])
    monkeypatch.chdir(tmp_path / "ct2")
    exec(f"lines = ['one two', 'nine four'] * 6\n{call_text}", {})
    found = {*literal_eval(capsys.readouterr().out)}
    assert len(found) == 2 if cut.get("top_k") == 1 else len(found) > 2


def test_a_banned_unknown_travels_and_comes_back(few_files, tmp_path, capsys):
    run = tagged_run(few_files, tmp_path / "run", (), MARIAN, byte_fallback=False, shared=True, type="bpe")
    _always_unknown(run)
    _with_decoding(run, {"unknown": "ban"})
    require_alike(told("marian", run, tmp_path / "marian", capsys))
    require_alike(told("ctranslate2", run, tmp_path / "ct2", capsys))
    assert "disable_unk=True" in (tmp_path / "ct2" / "README.md").read_text("utf-8")
    import_model(tmp_path / "marian", tmp_path / "back")
    assert open_bundle(tmp_path / "back").config.decoding.unknown == "ban"
    lines = ["one two", "nine four"]
    wanted = load(run, ["device=cpu"]).translate(lines)
    assert load(tmp_path / "back", ["device=cpu"]).translate(lines) == wanted
    assert not any("<unk>" in text for text in wanted)


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({}, "keep"),
        ({"bad_words_ids": [[0], [1]]}, "ban"),
        ({"bad_words_ids": [[0, 1]]}, "keep"),
        ({"suppress_tokens": [1]}, "ban"),
        ({"bad_words_ids": None, "suppress_tokens": [7]}, "keep"),
    ],
    ids=str,
)
def test_what_a_checkpoint_bans_of_the_unknown_is_seen(changes, unknown, opus):
    (opus / "generation_config.json").write_text("{}")
    change(opus / "config.json", bad_words_ids=None)
    change(opus / "generation_config.json", **changes)
    assert TheirConfig(opus).bans(1) == (unknown == "ban")


def test_what_an_export_has_no_place_for_is_named():
    config = Config.model_validate_json(json.dumps({"decoding": {"unknown": "copy"}}))
    for to in ("marian", "m2m100", "ctranslate2"):
        assert not_carried(config, to) == ["decoding.unknown copy"]
    mbr = {"mbr_samples": 8, "temperature": 0.5, "top_k": 9, "seed": 3}
    config = Config.model_validate_json(json.dumps({"decoding": mbr}))
    lost = ["decoding.seed 3", "decoding.mbr_samples 8", "decoding.temperature 0.5", "decoding.top_k 9"]
    assert not_carried(config, "marian") == not_carried(config, "ctranslate2") == lost
    config = Config.model_validate_json(json.dumps({"decoding": {"coverage_penalty": 0.2, "diversity_groups": 5}}))
    assert not_carried(config, "marian") == ["decoding.coverage_penalty 0.2", "decoding.diversity_groups 5"]
    m2m100 = {"model": M2M100, "decoding": {"no_repeat_ngram": 1}}
    config = Config.model_validate_json(json.dumps(m2m100))
    assert not_carried(config, "m2m100") == ["decoding.no_repeat_ngram 1"]
    assert not_carried(config, "ctranslate2") == []
    config = Config.model_validate_json(json.dumps({"decoding": {"stopping": "optimal", "search_steps": 7}}))
    assert not_carried(config, "m2m100") == ["decoding.stopping optimal", "decoding.search_steps 7"]


@pytest.mark.parametrize(
    ("changes", "sampling"),
    [
        ({"num_beams": 5}, {"method": "beam"}),
        ({"num_beams": 1}, {"method": "sample", "temperature": 1.0, "top_k": 50, "top_p": None}),
        ({"num_beams": 1, "top_k": 0, "top_p": 0.5}, {"method": "sample", "top_k": None, "top_p": 0.5}),
        ({"num_beams": 1, "top_k": 7, "temperature": 2}, {"method": "sample", "temperature": 2.0, "top_k": 7}),
        ({"num_beams": 1, "top_k": "7", "temperature": 0}, {"method": "sample", "temperature": 1.0, "top_k": 50}),
    ],
    ids=str,
)
def test_sampling_of_a_checkpoint_is_read_as_transformers_reads_it(changes, sampling, opus):
    change(opus / "generation_config.json", do_sample=True, **changes)
    found = read_marian(opus).config.decoding
    assert {name: getattr(found, name) for name in sampling} == sampling


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_what_an_import_does_not_carry_over_is_named_with_its_value(file, opus, tmp_path, capsys):
    pad = json.loads((opus / "config.json").read_text())["pad_token_id"]
    (opus / "generation_config.json").write_text("{}")
    words = [[pad], [7], [8, 9]]
    change(opus / file, repetition_penalty=1.3, bad_words_ids=words, suppress_tokens=[5], no_repeat_ngram_size=3)
    import_model(opus, tmp_path / "model")
    assert (
        "opus: not carried over, so translations may differ: bad_words_ids [[7], [8, 9]], repetition_penalty 1.3, "
        "suppress_tokens [5]\n"
    ) in capsys.readouterr().err
    assert open_bundle(tmp_path / "model").config.decoding.no_repeat_ngram == 3


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({}, []),
        ({"do_sample": True}, ["do_sample true"]),  # with a beam
        ({"do_sample": True, "num_beams": 1, "temperature": 0.5, "top_k": 0, "top_p": None}, []),
        ({"do_sample": True, "num_beams": 1, "temperature": -1, "top_p": 2}, ["temperature -1", "top_p 2"]),
        ({"do_sample": False, "temperature": -1}, []),
        ({"repetition_penalty": 1.0, "num_beam_groups": 1}, []),
        ({"forced_eos_token_id": 5}, ["forced_eos_token_id 5"]),
        ({"no_repeat_ngram_size": "3"}, ['no_repeat_ngram_size "3"']),
        ({"begin_suppress_tokens": [1, 2], "typical_p": 0.9}, ["begin_suppress_tokens [1, 2]", "typical_p 0.9"]),
    ],
    ids=str,
)
def test_only_what_changes_translations_is_named(changes, ignored, opus):
    change(opus / "generation_config.json", **changes)
    pad = json.loads((opus / "config.json").read_text())["pad_token_id"]
    assert TheirConfig(opus).ignored([pad, 1, 2]) == ignored


# Weights.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_at_the_door(value, opus, tmp_path):
    weights = load_file(opus / "model.safetensors")
    weights["model.encoder.layers.0.fc1.weight"][3, 5] = value
    save_file(weights, opus / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weight model\.encoder\.layers\.0\.fc1\.weight holds 1 values of"):
        import_model(opus, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_of_weights_that_are_not_finite_is_told_everywhere(tiny_run, tmp_path, capsys):
    bundle = open_bundle(tiny_run)
    weights = {name: weight.clone() for name, weight in bundle.weights().items()}
    weights["encoder.norm.bias"][0] = float("nan")
    tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), bundle.tokenizer_path)
    about = {k: v for k, v in bundle.description.items() if k.endswith("vocab_size")}
    save_bundle(tmp_path / "model", weights, bundle.config, tokenizer.save, about, bundle.canaries())
    fault = r"weight encoder\.norm\.bias holds 1 values of"
    assert re.search(rf"mtkit: warning: .*model: {fault}", capsys.readouterr().err)
    [found] = check(tmp_path / "model").faults
    assert re.search(rf"weights\.safetensors: {fault}", found)
    for work in (lambda: pack(tmp_path / "model", tmp_path / "m.mtkit"), lambda: _ct2(tmp_path / "model", tmp_path)):
        with pytest.raises(CheckpointError, match=fault):
            work()


def _ct2(model: Path, folder: Path) -> None:
    export(model, "ctranslate2", folder / "out")


# Checkpoints as others leave them.


@torch.no_grad()
def logits(theirs: Any, ids: list[int]) -> torch.Tensor:
    start = torch.tensor([[theirs.config.decoder_start_token_id]])
    return theirs(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits[0, 0]


def our_logits(model: Path, ids: list[int]) -> torch.Tensor:
    here = load(model, ["device=cpu"])
    from mtkit.data.batches import padded_batch, ragged

    batch = padded_batch(ragged([ids[:-1]]), ragged([[]]), here.model.boundaries)
    return here.model.output(here.model(batch.source, batch.target))[0, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("multiple", [None, 64])
@pytest.mark.parametrize("stored", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_added_in_transformers_become_tags_and_padding_rows_are_left_out(
    stored, multiple, opus, tmp_path, capsys
):
    transformers: Any = pytest.importorskip("transformers")
    change(opus / "tokenizer_config.json", split_special_tokens=False)  # as OPUS-MT's have it
    tokenizer = transformers.AutoTokenizer.from_pretrained(opus)
    model = transformers.MarianMTModel.from_pretrained(opus).eval()
    tokenizer.add_tokens(["<2eo>", "<2ia>"])
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple)
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    missing = model.config.vocab_size - model.final_logits_bias.shape[1]  # transformers pads embeddings alone
    model.final_logits_bias = torch.nn.functional.pad(model.final_logits_bias, (0, missing))
    added = {"<2eo>": len(tokenizer) - 2, "<2ia>": len(tokenizer) - 1}
    if stored == "added_tokens.json":
        (tmp_path / "grown" / stored).write_text(json.dumps(added))
        change(tmp_path / "grown" / "tokenizer_config.json", added_tokens_decoder={})
    import_model(tmp_path / "grown", tmp_path / "model")
    here = load(tmp_path / "model", ["device=cpu"])
    assert here.tags == ("<2eo>", "<2ia>")
    assert ("rows of the embeddings belong to no token" in capsys.readouterr().err) == (multiple is not None)
    for line in ("<2eo> one two", "nine", "<2ia> four five six"):
        ids = [*here.tokenizer.encode_source([line])[0], here.model.boundaries.source_end]
        assert ids == tokenizer(line).input_ids
        wanted = logits(model, ids)[: len(tokenizer)]
        assert torch.allclose(our_logits(tmp_path / "model", ids), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"COVID": 0}, "transformers cuts the added token 'COVID' out of lines wherever it stands"),
        ({"<2eo>": 9}, "gives '<2eo>' the id .*, and no token has the id"),
        ({"</s>": 9}, "gives '</s>' the id .*, and vocab.json says otherwise"),
    ],
)
def test_added_tokens_that_cannot_be_read_are_named(added, message, opus, tmp_path):
    size = len(json.loads((opus / "vocab.json").read_text()))
    (opus / "added_tokens.json").write_text(json.dumps({token: size + more for token, more in added.items()}))
    with pytest.raises(CheckpointError, match=message):
        import_model(opus, tmp_path / "model")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_weights_are_read_and_a_shard_that_lacks_one_is_named(kind, opus, tmp_path):
    import_model(opus, tmp_path / "whole")
    weights = load_file(opus / "model.safetensors")
    (opus / "model.safetensors").unlink()
    names, half = sorted(weights), len(weights) // 2
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places = {name: f"{stem}-0000{1 + (i >= half)}-of-00002.{kind}" for i, name in enumerate(names)}
    save: Any = save_file if kind == "safetensors" else torch.save
    for file in {*places.values()}:
        save({name: weights[name] for name in names if places[name] == file}, opus / file)
    (opus / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": places}))
    import_model(opus, tmp_path / "model")
    one, two = (open_bundle(tmp_path / name).weights() for name in ("whole", "model"))
    assert all(torch.equal(one[name], weight) for name, weight in two.items())
    save({names[0]: weights[names[0]]}, opus / places[names[0]])
    with pytest.raises(
        CheckpointError, match=rf"holds no {re.escape(names[1])}, which {stem}\.{kind}\.index\.json says"
    ):
        import_model(opus, tmp_path / "model")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "source.spm", "target.spm", "vocab.json", "config.json"]
)
def test_a_git_lfs_pointer_in_the_place_of_a_file_is_named(name, opus, tmp_path):
    if name == "pytorch_model.bin":
        (opus / "model.safetensors").unlink()
    (opus / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: is a Git LFS pointer, not the file itself"):
        import_model(opus, tmp_path / "model")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_weights_that_are_cut_off_or_hold_more_than_tensors_are_never_read_by_running_code(share, opus, tmp_path):
    weights = load_file(opus / "model.safetensors")
    (opus / "model.safetensors").unlink()
    path = opus / "pytorch_model.bin"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"mtkit runs no code of a checkpoint; copy it again") as found:
            import_model(opus, tmp_path / "model")
        assert "weights_only" not in str(found.value)
        assert "\n" not in str(found.value)
        torch.save({**weights, "args": Path("x")}, path)


def test_a_sentencepiece_model_that_is_cut_off_after_its_pieces_is_told(opus, tmp_path):
    from mtkit.text.vocabulary import with_pieces

    path = opus / "source.spm"
    model = path.read_bytes()
    path.write_bytes(model[: _end_of_pieces(model)])
    with pytest.raises(CheckpointError, match=r"source\.spm: the SentencePiece model is cut off after its pieces"):
        import_model(opus, tmp_path / "model")
    assert with_pieces(model, []) == model


def _end_of_pieces(model: bytes) -> int:
    from mtkit.text.vocabulary import PIECES, _fields

    return sum(len(field.encoded) for field in _fields(model) if field.number == PIECES)


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_that_transformers_saved_in_its_own_form_is_named(few_files, tmp_path):
    transformers: Any = pytest.importorskip("transformers")
    run = tagged_run(few_files, tmp_path / "run", (), M2M100)
    export(run, "m2m100", tmp_path / "out")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        shutil.copy(tmp_path / "out" / name, tmp_path / "again" / name)
    with pytest.raises(CheckpointError, match=r"again: its tokenizer is tokenizer\.json alone.*copy vocab\.json, "):
        import_model(tmp_path / "again", tmp_path / "model")
    for name in ("vocab.json", "source.spm", "target.spm"):
        shutil.copy(tmp_path / "out" / name, tmp_path / "again" / name)
    import_model(tmp_path / "again", tmp_path / "model")


def test_an_imported_model_with_two_vocabularies_asks_for_no_tag_that_no_training_has_seen(few_files, tmp_path):
    model = {**MARIAN, "tie_embeddings": "decoder"}
    run = tagged_run(few_files, tmp_path / "run", (), model, shared=False)
    export(run, "marian", tmp_path / "out")
    import_model(tmp_path / "out", tmp_path / "model")
    extend(tmp_path / "model", tmp_path / "larger", [], [">>epo<<"])
    extend(tmp_path / "larger", tmp_path / "largest", [], [">>ina<<"])
    for name in ("larger", "largest"):
        for translator in (load(tmp_path / name, ["device=cpu"]), load_bundle(open_bundle(tmp_path / name))):
            assert translator.tag_fault("one two") is None
            assert "looks like a tag" in translator.tag_fault(">>fra<< one two")
