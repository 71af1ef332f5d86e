"""Bundles go out to other libraries and come in from them, by the stages and by the command line."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtkit.bundle.bundle import open_bundle
from mtkit.cli import _run
from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.errors import CheckpointError, ConfigError, MtkitError, show_progress
from mtkit.exchange.formats import export, extend, import_model
from mtkit.pipeline import run_train
from mtkit.text.tokenizer import Tokenizer, extended, train_tokenizer
from mtkit.translation.stream import check
from mtkit.translation.translator import load
from tests.conftest import LEARNING, config_with, toy_settings
from tests.exported import write_opus

MARIAN = {"norm_placement": "post", "activation": "silu", "output_bias": True, "start_token": "zero"}
M2M100 = {"sinusoid_exponent": "tensor2tensor", "sinusoid_first": 2, "start_token": "end"}
LINES = ["one two three", "", "nine", "  four   five ", "zero zero", "what is 漢字?", ">>x<< one", "</s> two"]


@pytest.fixture(scope="session")
def trained(corpus_files, tmp_path_factory) -> dict[str, Path]:
    """Runs in the shapes that travel, which have learnt the toy language but for the one with two vocabularies."""
    runs = {}
    apart = {**MARIAN, "tie_embeddings": "decoder"}
    for name, model, steps in (("marian", MARIAN, 150), ("apart", apart, 60), ("m2m100", M2M100, 150)):
        run = tmp_path_factory.mktemp(name) / "run"
        config = config_with(
            toy_settings(corpus_files, run),
            model={**model, "d_ff": 64},
            training={**LEARNING, "max_steps": steps, "validate_every": steps, "save_every": steps},
            tokenizer={"shared": name != "apart"},
        )
        run_train(config)
        runs[name] = run
    return runs


Exported = Callable[[str, str], tuple[Path, str]]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Exported:
    """A function that exports a run, once in each format: the folder, not to be changed, and what was told."""
    made: dict[tuple[str, str], tuple[Path, str]] = {}

    def export_once(kind: str, to: str) -> tuple[Path, str]:
        if (kind, to) not in made:
            folder = tmp_path_factory.mktemp("exported") / "out"
            show_progress(False)
            with redirect_stderr(StringIO()) as told:
                export(trained[kind], to, folder)
            made[kind, to] = folder, told.getvalue()
        return made[kind, to]

    return export_once


@pytest.fixture(scope="module")
def back(exported, tmp_path_factory) -> Callable[[str, str], Path]:
    """A function that imports an export, once for each; the model is not to be changed."""
    made: dict[str, Path] = {}

    def import_once(kind: str, to: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("back") / "model"
            import_model(exported(kind, to)[0], made[kind])
        return made[kind]

    return import_once


def test_models_of_the_shapes_that_travel_learn_to_read_numbers(trained, corpus_files):
    sources, targets = corpus_files.lines("test")
    for name in ("marian", "m2m100"):
        found = load(trained[name], ["device=cpu"]).translate(sources)
        assert sum(one == other for one, other in zip(found, targets, strict=True)) >= 0.7 * len(targets)


@pytest.mark.parametrize("to", ["ctranslate2", "marian", "m2m100"])
def test_an_export_tells_how_far_the_library_agrees(exported, to):
    pytest.importorskip("ctranslate2" if to == "ctranslate2" else "transformers")
    folder, text = exported("marian" if to == "ctranslate2" else to, to)
    told = text.splitlines()
    assert told[0] == f"{to}: {folder}"
    found = re.fullmatch(
        r"(ctranslate2|transformers) [\d.]+, from text to text: (\d) of 8 lines have the same ids, (\d) the same "
        r"greedy translation; log-probabilities of tokens differ by at most ([\d.e+-]+)",
        told[1],
    )
    assert found, told
    assert (found[2], found[3]) == ("8", "8")
    assert float(found[4]) < 1e-4
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # who may read one may read all
    marker = json.loads((folder / "mtkit.json").read_text())
    assert marker["format"] == to


def test_what_an_export_wrote_another_may_replace(exported, tiny_run, tmp_path):
    folder = shutil.copytree(exported("marian", "marian")[0], tmp_path / "out")
    for _ in range(2):
        export(tiny_run, "ctranslate2", folder)
        assert json.loads((folder / "mtkit.json").read_text())["format"] == "ctranslate2"
        assert not (folder / "vocab.json").exists()


@pytest.mark.parametrize(("kind", "to"), [("marian", "marian"), ("apart", "marian"), ("m2m100", "m2m100")])
def test_an_import_of_an_export_translates_like_the_model_and_is_exported_as_the_same_bytes(
    trained, exported, back, kind, to, tmp_path, monkeypatch
):
    run, (out, _), imported = trained[kind], exported(kind, to), back(kind, to)
    limit = ["decoding.max_length_ratio=1.5", "decoding.max_length_extra=4"]  # an export does not carry the model's own
    for greedy in ([], ["decoding.beam_size=1"]):
        before, after = (load(path, ["device=cpu", *limit, *greedy]) for path in (run, imported))
        assert after.translate(LINES) == before.translate(LINES)
    assert check(imported, None).faults == []
    config = open_bundle(imported).config
    assert (config.languages.source, config.languages.target) == ("en", "digits")
    assert config.decoding.beam_size == 2
    monkeypatch.setattr("mtkit.exchange.formats._comparison", lambda *_: [])  # the first export was compared
    export(imported, to, tmp_path / "again")
    for name in ("model.safetensors", "vocab.json", "source.spm", "target.spm", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_quantized_files_are_smaller_and_translate(trained, exported, tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    whole, _ = exported("marian", "ctranslate2")
    export(trained["marian"], "ctranslate2", tmp_path, "int8")
    assert re.search(r"8 of 8 lines have the same ids, [5-8] the same greedy translation", capsys.readouterr().err)
    sizes = [(folder / "model.bin").stat().st_size for folder in (whole, tmp_path)]
    assert sizes[1] < 0.8 * sizes[0]


def test_without_the_library_the_files_are_written_all_the_same(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    export(tiny_run, "ctranslate2", tmp_path / "out")
    assert (
        "nothing was compared, since the library is not here: pip install 'mtkit[ctranslate2]'"
        in capsys.readouterr().err
    )
    assert (tmp_path / "out" / "model.bin").is_file()


def test_what_cannot_be_exported_is_told_before_anything_is_written(tiny_run, tmp_path, make_config):
    with pytest.raises(CheckpointError, match=r"model\.norm_placement is pre; Marian files want post"):
        export(tiny_run, "marian", tmp_path / "out")
    with pytest.raises(MtkitError, match="--quantization: found int3, wants one of int8, int8_float32"):
        export(tiny_run, "ctranslate2", tmp_path / "out", "int3")
    with pytest.raises(
        MtkitError, match="--quantization goes with --to ctranslate2; marian has its weights as they are"
    ):
        export(tiny_run, "marian", tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").write_text("dear me")
    with pytest.raises(MtkitError, match="mine: holds files that no export wrote; name an empty folder or a new one"):
        export(tiny_run, "ctranslate2", tmp_path / "mine")
    with pytest.raises(MtkitError, match="diary: is a file; wants a folder for the exported model"):
        export(tiny_run, "ctranslate2", tmp_path / "mine" / "diary")
    words = make_config(
        tmp_path / "words", tokenizer={"type": "word"}, training={"max_steps": 2, "validate_every": 2, "save_every": 2}
    )
    run_train(words)
    with pytest.raises(CheckpointError, match=r"tokenizer\.type is word; the libraries make one unknown of several in"):
        export(words.run_path, "ctranslate2", tmp_path / "out")


@pytest.mark.filterwarnings("ignore")  # of the other library
@pytest.mark.parametrize("to", ["ctranslate2", "marian", "m2m100"])
def test_what_the_card_of_an_export_says_works(trained, exported, to, monkeypatch, capsys):
    pytest.importorskip("ctranslate2" if to == "ctranslate2" else "transformers")
    kind = "m2m100" if to == "m2m100" else "marian"
    folder, _ = exported(kind, to)
    card = (folder / "README.md").read_text("utf-8")
    code = "".join(f"{line[4:]}\n" for line in card.splitlines() if line.startswith("    "))
    lines = ["one two three", "nine four"]
    program = f"lines = {lines}\n{code}"
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(program, {})
    assert capsys.readouterr().out == f"{load(trained[kind], ['device=cpu']).translate(lines)}\n"


def test_the_card_tells_of_a_length_penalty_that_ctranslate2_lacks(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained["marian"], run)
    path = run / "model" / "config.yaml"
    path.write_text(path.read_text("utf-8").replace("length_penalty_form: power", "length_penalty_form: gnmt"), "utf-8")
    export(run, "ctranslate2", tmp_path / "out")
    assert "the form of GNMT: tune p anew" in (tmp_path / "out" / "README.md").read_text("utf-8")


# In.


def test_an_import_keeps_the_ids_and_the_tokenizer(opus, tiny_run, tmp_path):
    import_model(opus, tmp_path / "model")
    vocabulary = json.loads((opus / "vocab.json").read_text())
    tokenizer = load(tmp_path / "model").tokenizer
    assert tokenizer.source_pieces(range(len(vocabulary))) == sorted(vocabulary, key=vocabulary.get)
    assert tokenizer.specials.target.pad == len(vocabulary) - 1
    assert tokenizer.specials.target.end == 0
    own = Tokenizer.load(tiny_run / "model" / "tokenizer")
    for ours, theirs in zip(tokenizer.encode_source(LINES), own.encode_source(LINES), strict=True):
        assert tokenizer.source_pieces(ours) == own.source_pieces(theirs)
    bundle = open_bundle(tmp_path / "model")
    assert bundle.description["imported"]["layout"] == "marian"
    assert bundle.config.languages.source == "fr"
    assert len(bundle.canaries()) == 8
    weights = load_file(opus / "model.safetensors")
    assert torch.equal(bundle.weights()["encoder.embedded.embedding.weight"], weights["model.shared.weight"])


def test_a_tag_of_a_target_language_is_one_token_outside_sentencepiece(opus, tmp_path, capsys):
    path = opus / "vocab.json"
    vocabulary = json.loads(path.read_text("utf-8"))
    unused = "<0x07>"
    path.write_text(json.dumps({(">>fra<<" if piece == unused else piece): id_ for piece, id_ in vocabulary.items()}))
    import_model(opus, tmp_path / "model")
    translator = load(tmp_path / "model", ["device=cpu"])
    [tagged, plain] = translator.tokenizer.encode_source([">>fra<< one two", "one two"])
    assert tagged == [vocabulary[unused], *plain]
    assert translator.translate(["one two"], tag=">>fra<<") == translator.translate([">>fra<< one two"])
    assert "the model was trained with one: >>fra<<" in str(translator.tag_fault("one two"))
    assert "looks like a tag" in str(translator.tag_fault(">>deu<< one two"))
    assert translator.tag_fault(">>fra<< one two") is None
    (tmp_path / "in").write_text("one two\n")
    assert _run(["translate", str(tmp_path / "model"), str(tmp_path / "in"), "--tag", ">>deu<<"]) == 1
    assert "tag >>deu<<: the model does not know it; it knows >>fra<<" in capsys.readouterr().err
    path = tmp_path / "tune.yaml"
    for tag, code in ((">>fra<<", 0), (">>deu<<", 1)):
        train = {"source": "in", "target": "in", "tag": tag}
        path.write_text(json.dumps({"data": {"train": [train]}, "training": {"start_from": str(tmp_path / "model")}}))
        assert _run(["config", str(path)]) == code
    assert f"`mtkit extend {tmp_path / 'model'} --tag '>>deu<<' -o LARGER`" in capsys.readouterr().err


def test_an_import_may_be_told_its_languages(opus, tmp_path):
    assert _run(["import", str(opus), "-o", str(tmp_path / "model"), "--languages", "fi-en"]) == 0
    assert open_bundle(tmp_path / "model").config.languages.source == "fi"
    assert _run(["import", str(opus), "-o", str(tmp_path / "model"), "--languages", "fien"]) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda opus: (opus / "config.json").unlink(), r"config\.json: missing; wants the folder of a Hugging Face"),
        (lambda opus: (opus / "config.json").write_text('{"model_type": "t5"}'), "model_type is 't5'; mtkit imports"),
        (lambda opus: (opus / "source.spm").unlink(), r"source\.spm: missing"),
        (lambda opus: (opus / "source.spm").write_bytes(b"\x0a\x05hello"), r"source\.spm: not a SentencePiece model"),
        (
            lambda opus: (opus / "vocab.json").write_text('{"</s>": 0, "<unk>": 1, "<pad>": 2}'),
            "is 0 to|special id|weight",
        ),
    ],
)
def test_a_damaged_checkpoint_is_told_in_one_line_and_leaves_nothing(opus, spoil, message, tmp_path):
    spoil(opus)
    with pytest.raises(CheckpointError, match=message) as told:
        import_model(opus, tmp_path / "model")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "model").exists()


def test_an_import_replaces_only_a_bundle(opus, tmp_path):
    import_model(opus, tmp_path / "model")
    import_model(opus, tmp_path / "model")
    (tmp_path / "other").mkdir()
    with pytest.raises(MtkitError, match="other: is there already and is no bundle; name a new folder"):
        import_model(opus, tmp_path / "other")


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_hostile_text_comes_out_as_in_transformers(exported, back):
    transformers = pytest.importorskip("transformers")
    out, _ = exported("marian", "marian")
    lines = [line for line in [*LINES, *hostile_lines()] if line.strip() and not line.startswith(">>")]
    tokenizer = transformers.MarianTokenizer.from_pretrained(out)
    model = transformers.MarianMTModel.from_pretrained(out).eval()
    here = load(back("marian", "marian"), ["device=cpu", "decoding.beam_size=1"])
    ids = here.tokenizer.encode_source(lines)
    found = []
    for line, own in zip(lines, ids, strict=True):
        tokens = tokenizer(line, return_tensors="pt")
        assert tokens["input_ids"][0].tolist() == [*own, here.model.boundaries.source_end], line
        if own and len(found) < 15:  # a search for each line takes long
            most = 2 * len(own) + 20
            said = model.generate(**tokens, num_beams=1, do_sample=False, max_length=most + 2)
            found.append((line, tokenizer.decode(said[0], skip_special_tokens=True)))
    short = [(line, text) for line, text in found if len(line) < 24]  # longer ones are split here
    assert len(short) > 5
    translated = here.translate([line for line, _ in short])
    assert [" ".join(text.split()) for text in translated] == [" ".join(text.split()) for _, text in short]


def hostile_lines() -> list[str]:
    """Short odd lines from the public list, where it is at hand."""
    folder = os.environ.get("MTKIT_DATA")
    if folder is None:
        return ["zero\u200bone", "\u202eabc", "ﬁne ①", "a\u0301\u0302", "<0x41>", "🏳️‍🌈 one", "１２３"]
    lines = (Path(folder) / "robustness" / "blns.lines.txt").read_text("utf-8").split("\n")
    return [line for line in lines if len(line) < 24][:120]


# Larger vocabularies.


@pytest.mark.parametrize("kind", ["own", "imported", "unigram"])
def test_old_translations_and_scores_stay_and_new_pieces_are_there(kind, tiny_run, opus, make_config, tmp_path, capsys):
    if kind == "imported":
        import_model(opus, tmp_path / "model")
    elif kind == "unigram":
        training = {"max_steps": 20, "validate_every": 20, "save_every": 20}
        run_train(make_config(tmp_path / "model", tokenizer={"type": "unigram", "vocab_size": 330}, training=training))
    model = tiny_run if kind == "own" else tmp_path / "model"
    extend(model, tmp_path / "larger", ["Ĝ", "漢", "qqq"], ["<2xx>"])
    assert "4 new pieces:" in capsys.readouterr().err
    before, after = load(model, ["device=cpu"], "fp64"), load(tmp_path / "larger", ["device=cpu"], "fp64")
    lines = ["one two three", "nine", "four five six zero", "Q one", ""]
    assert after.translate(lines) == before.translate(lines)
    for one, other in zip(before.score(lines, lines), after.score(lines, lines), strict=True):
        assert one.pieces == other.pieces
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
    new = after.tokenizer
    [ids, plain] = new.encode_source(["<2xx> Ĝ qqq 漢", "one"])
    assert {"<2xx>", "Ĝ", "qqq", "漢"} <= set(new.source_pieces(ids))
    assert plain == before.tokenizer.encode_source(["one"])[0]
    assert new.source_vocab_size == before.tokenizer.source_vocab_size + 4
    assert new.decode_source([ids]) == ["<2xx> Ĝ qqq 漢"]
    after.require_tag("<2xx>")
    assert check(tmp_path / "larger", None).faults == []
    said = after.translate(["Ĝ 漢 qqq <2xx>"] * 2)
    assert not set("Ĝ漢") & set("".join(said))


def test_a_new_row_is_the_mean_of_the_rows_that_spelled_it(tiny_run, tmp_path):
    extend(tiny_run, tmp_path / "larger", ["漢"], [])
    old, new = (
        open_bundle(path).weights()["encoder.embedded.embedding.weight"] for path in (tiny_run, tmp_path / "larger")
    )
    [spelled] = Tokenizer.load(tiny_run / "model" / "tokenizer").encode_source(["漢"])
    assert torch.equal(new[: len(old)], old)
    assert torch.allclose(new[-1], old[spelled].mean(0))


def test_what_is_new_is_learnt_by_a_training_that_starts_there(tiny_run, corpus_files, make_config, tmp_path):
    extend(tiny_run, tmp_path / "larger", ["漢"], [])
    with pytest.raises(CheckpointError, match="1 pieces were added that no training has seen; train from it first"):
        export(tmp_path / "larger", "ctranslate2", tmp_path / "out")
    extend(tmp_path / "larger", tmp_path / "largest", ["字"], [])
    assert len(open_bundle(tmp_path / "largest").untrained) == 2
    root = tmp_path / "new"
    shutil.copytree(corpus_files.root, root)
    for path in root.glob("*.tgt"):
        path.write_text(path.read_text("utf-8").replace("7", "漢"), "utf-8")
    training = {"start_from": str(tmp_path / "largest"), "max_steps": 100, "learning_rate": 0.005, "warmup_steps": 10}
    vocab_size = open_bundle(tmp_path / "largest").config.tokenizer.vocab_size
    config = make_config(
        tmp_path / "tuned", data={"root": str(root)}, training=training, tokenizer={"vocab_size": vocab_size}
    )
    run_train(config)
    translator = load(config.run_path, ["device=cpu"])
    assert translator.translate(["one seven two seven"]) == ["1 漢 2 漢"]
    assert open_bundle(config.run_path).untrained == []
    export(config.run_path, "ctranslate2", tmp_path / "out")


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ("", "piece '': is blank or holds a space"),
        ("a b", "piece 'a b': is blank or holds a space"),
        ("Ａ", "piece Ａ: becomes A when the tokenizer normalises it; take that"),
        ("▁one", "piece '▁one': is blank or holds a space"),
        ("<s>", "piece <s>: the vocabulary has it already; leave it out"),
    ],
)
def test_what_can_be_no_new_piece_is_told(piece, message, tmp_path):
    lines = ["one two three"] * 9
    train_tokenizer(lambda: lines, lambda: lines, TokenizerConfig(type="word", vocab_size=30), tmp_path)
    with pytest.raises(ConfigError) as told:
        extended(Tokenizer.load(tmp_path), [piece], [])
    assert message in str(told.value)


# The walk of the README.

ROOT = Path(__file__).parents[2]
WALK = re.search(r"## From OPUS-MT and back\n(.*?)\n## ", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # of the other library
def test_the_walk_of_the_readme_works(corpus_files, tiny_run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ctranslate2")
    assert WALK
    text = WALK[1]
    write_opus(tmp_path / "opus-mt-fr-en", tiny_run)  # in the place of the hub
    for name in ("train", "valid", "test"):
        for side, language in (("src", "fr"), ("tgt", "en")):
            shutil.copy(corpus_files.root / f"{name}.{side}", tmp_path / f"{name}.{language}")
    settings = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert settings
    quick = "training: {max_steps: 6, validate_every: 3, save_every: 3, validation_sentences: 4, "
    (tmp_path / "tune.yaml").write_text(settings[1].replace("training: {", quick).replace("max_minutes: 10, ", ""))
    commands = re.findall(r"^    mtkit (.*?)(?:  +#.*)?$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["import", "translate", "run", "evaluate", "export"]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert _run(shlex.split(command)) == 0, capsys.readouterr().err
    assert (tmp_path / "new.en").read_text("utf-8").count("\n") == 24
    python = re.search(r"```python\n(.*?)```", (ROOT / "configs" / "README.md").read_text("utf-8"), re.DOTALL)
    assert python
    capsys.readouterr()
    exec(python[1], {})
    assert capsys.readouterr().out.strip()
