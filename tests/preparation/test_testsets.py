"""Test sets that sacreBLEU knows by name are those of its command, from its cache or downloaded into it once."""

import gzip
import hashlib
import io
import json
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import sacrebleu.dataset.base
from sacrebleu.dataset import DATASETS
from sacrebleu.dataset.fake_sgml import FakeSGMLDataset

import mtkit
from mtkit.cli import main
from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.config.settings import Config
from mtkit.errors import ConfigError, DataError
from mtkit.evaluation.evaluate import Scoring, evaluate_models, translate_set
from mtkit.pipeline import run_all, run_binarize, run_train
from mtkit.preparation.sources import SetFiles, check_names, fetch, local_test_sets
from mtkit.preparation.sources import test_sets as sets_of
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.forked import MTKIT, SACREBLEU, output_of

NAME = "toyset/full"
PAIR = LanguagesConfig(source="en", target="digits")
SIDES = {"src": ["one two", "four  nine one"], "ref": ["1 2", "4 9 1"], "ref2": ["12", "491"]}


def quiet(*_: object) -> None:
    """Serves files without logging requests."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a local server, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": quiet})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def archive(sides: dict[str, list[str]] = SIDES) -> bytes:
    """A set in the format of WMT before 2021."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for side, lines in sides.items():
            segments = "".join(f'<seg id="{number}">{line}</seg>\n' for number, line in enumerate(lines, start=1))
            content = f'<srcset setid="toy">\n<doc docid="a" origlang="en">\n{segments}</doc>\n</srcset>\n'
            member = tarfile.TarInfo(f"toy/{side}.sgm")
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))
    return stream.getvalue()


Register = Callable[..., None]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Adds a test set to those of sacreBLEU, and puts its cache into tmp_path/cache."""
    monkeypatch.setattr(sacrebleu.dataset.base, "SACREBLEU_DIR", str(tmp_path / "cache"))

    def add(url: str, md5: str | None, references: int = 1, name: str = NAME) -> None:
        files = ["toy/src.sgm", "toy/ref.sgm", "toy/ref2.sgm"][: 1 + references]
        pairs = {"en-digits": files, "xx-yy": files}
        dataset = FakeSGMLDataset(name, [url], "toy", "", [md5] if md5 else None, langpairs=pairs)
        monkeypatch.setitem(DATASETS, name, dataset)

    return add


@pytest.fixture
def known(served: tuple[str, Path], register: Register) -> Path:
    """The folder from which the added test set is served."""
    address, folder = served
    (folder / "toy.tgz").write_bytes(archive())
    register(f"{address}/toy.tgz", hashlib.md5(archive()).hexdigest())
    return folder


def named(config: Config, tag: str | None = None) -> Config:
    """The settings with the named set as their only one."""
    raw = config.model_dump(mode="json")
    raw["data"]["test"] = {"newstest": {"sacrebleu": NAME, "tag": tag}}
    return Config.model_validate_json(json.dumps(raw))


pytestmark = pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")


def test_a_named_set_is_downloaded_once_and_then_in_the_cache(known: Path, tmp_path: Path, tiny_config: Config) -> None:
    config = named(tiny_config)
    assert local_test_sets(config) == {"newstest": None}
    assert not (tmp_path / "cache").exists()
    files = fetch(NAME, PAIR)
    assert files.source.read_text() == "one two\nfour nine one\n"  # sacreBLEU collapses spaces
    assert [path.read_text() for path in files.target] == ["1 2\n4 9 1\n"]
    assert tmp_path / "cache" / "toyset" in files.source.parents
    (known / "toy.tgz").unlink()
    assert fetch(NAME, PAIR) == files
    assert sets_of(config) == local_test_sets(config) == {"newstest": files}
    tagged = named(tiny_config, "<2xx>")
    assert sets_of(tagged)["newstest"] == SetFiles(files.source, files.target, "<2xx>")
    files.source.unlink()  # as an interrupted download may leave it
    assert local_test_sets(config) == {"newstest": None}


def test_all_references_of_a_named_set_are_taken(served: tuple[str, Path], register: Register) -> None:
    (served[1] / "toy.tgz").write_bytes(archive())
    register(f"{served[0]}/toy.tgz", None, references=2)
    assert [path.read_text() for path in fetch(NAME, PAIR).target] == ["1 2\n4 9 1\n", "12\n491\n"]


def test_an_unknown_name_is_told_with_the_nearest(tiny_config: Config) -> None:
    with pytest.raises(ConfigError) as error:
        fetch("wmt14/ful", LanguagesConfig(source="en", target="de"))
    assert str(error.value).startswith("sacreBLEU knows no test set 'wmt14/ful'; near it are wmt14/full, ")
    assert "`sacrebleu --list` names them all" in str(error.value)
    with pytest.raises(ConfigError, match="knows no test set 'q'; among those it knows are iwslt17, "):
        fetch("q", PAIR)


def test_languages_that_a_set_does_not_have_are_told_with_those_that_it_has(known: Path, tiny_config: Config) -> None:
    assert known
    with pytest.raises(ConfigError) as error:
        fetch(NAME, LanguagesConfig(source="en", target="de"))
    assert str(error.value) == (
        "test set toyset/full is not there for 'en-de', but for en-digits, xx-yy; see languages.source and "
        "languages.target, or --languages"
    )
    check_names(named(tiny_config))
    other = named(config_with(tiny_config.model_dump(mode="json"), languages={"target": "de"}))
    for stage in (check_names, local_test_sets, run_train):
        with pytest.raises(ConfigError, match="test set toyset/full is not there for 'en-de'"):
            stage(other)


@pytest.mark.parametrize("pair", ["en-digits-AR", "en-US-digits", "en_GB-digits_Latn", "EN-Digits"])
def test_codes_with_a_script_or_a_region_take_the_set_of_the_language(
    known: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str], pair: str
) -> None:
    assert known
    source, target = pair.replace("en-US-", "en_US-").split("-", 1)
    languages = LanguagesConfig(source=source, target=target)
    assert fetch(NAME, languages) == fetch(NAME, PAIR)
    assert capsys.readouterr().err == (
        f"test set {NAME}: taken for en-digits, since it has none of '{source}-{target}'\n"
    )
    config = named(config_with(tiny_config.model_dump(mode="json"), languages={"source": source, "target": target}))
    check_names(config)
    assert local_test_sets(config)["newstest"] == fetch(NAME, PAIR)


def test_what_goes_wrong_with_a_download_is_one_line(
    served: tuple[str, Path], register: Register, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address, folder = served
    url = f"{address}/toy.tgz"
    register(url, None)
    with pytest.raises(DataError) as error:
        fetch(NAME, PAIR)
    assert str(error.value) == f"test set {NAME} cannot be downloaded from {url}: HTTP Error 404: File not found"

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        register(f"http://127.0.0.1:{closed.getsockname()[1]}/toy.tgz", None)
        with pytest.raises(DataError, match=r"cannot be downloaded from http://127\.0\.0\.1:\d+/toy\.tgz: .*refused"):
            fetch(NAME, PAIR)

    cut = archive()[:100]  # made once, because gzip writes the time into it
    (folder / "toy.tgz").write_bytes(cut)
    register(url, "0" * 32)
    with pytest.raises(DataError) as error:
        fetch(NAME, PAIR)
    found = hashlib.md5(cut).hexdigest()
    assert str(error.value) == (
        f"test set {NAME} cannot be had: Fatal: MD5 sum of downloaded file was incorrect (got {found}, expected "
        f"{'0' * 32}).; delete {tmp_path}/cache/{NAME} and try again"
    )
    with pytest.raises(DataError, match=rf"test set {NAME} is damaged: .* is missing; delete .*cache/{NAME} and try"):
        fetch(NAME, PAIR)  # sacreBLEU assumes that the file there is complete

    for name, content in (("cut", cut), ("garbage", b"x" * 100), ("empty", gzip.compress(b""))):
        (folder / "toy.tgz").write_bytes(content)
        register(url, None, name=name)
        with pytest.raises(
            DataError, match=f"^test set {name} is damaged: [^\n]*; delete [^\n]*/{name} and try again$"
        ):
            fetch(name, PAIR)

    assert capfd.readouterr() == ("", "")


def test_models_are_scored_on_named_sets_as_on_their_files(
    known: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert known

    def run(*arguments: object) -> list[dict[str, object]]:
        monkeypatch.setattr(sys, "argv", ["mtkit", "evaluate", *map(str, arguments), "--json", "--quiet"])
        with pytest.raises(SystemExit) as end:
            main()
        out, error = capfd.readouterr()
        assert (end.value.code or 0, error) == (0, "")
        scores: list[dict[str, object]] = json.loads(out)
        return scores

    scores = run(tiny_run, "--test-set", NAME)
    assert {score["test_set"] for score in scores} == {NAME}
    files = fetch(NAME, PAIR)
    given = run(tiny_run, "--source", files.source, "--reference", files.target[0])
    assert [{**score, "test_set": NAME} for score in given] == scores
    assert run(tiny_run, "--test-set", NAME, "--languages", "xx-yy") == scores
    texts = ("--hypothesis", files.source, "--test-set", NAME, "--languages", "en-digits")
    assert [score["score"] for score in run(*texts)] != [score["score"] for score in scores]
    assert sum(score["lines"] for score in run(*texts, "--by-length") if score["metric"] == "BLEU") == 2  # type: ignore[misc]


def test_a_run_is_scored_on_named_sets_and_looks_for_them_in_its_training_text_once_they_are_there(
    known: Path, corpus_files: CorpusFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, targets = corpus_files.lines("train")
    content = archive({"src": [sources[0], "never said", sources[1]], "ref": [targets[0], "x", "y"]})
    (known / "toy.tgz").write_bytes(content)
    DATASETS[NAME].md5 = None
    short = {"max_steps": 2, "validate_every": 2, "save_every": 2}
    config = named(config_with(toy_settings(corpus_files, tmp_path / "run"), training=short))
    run_binarize(config)
    assert (
        "data.test.newstest is not downloaded yet; the training data is not searched for its sentences\n"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "cache").exists()
    scores = run_all(config)
    assert [score.test_set for score in scores] == ["newstest"] * 3
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "| newstest | BLEU | " in card
    capsys.readouterr()
    assert run_all(config) == scores
    assert "is up to date" in capsys.readouterr().err
    run_binarize(config)
    assert (
        "mtkit: warning: 2 of 3 sources of data.test.newstest are in the training data, 1 of them with the same "
        "translation" in capsys.readouterr().err
    )


def test_a_tag_stands_before_each_source_line_that_is_not_blank(tiny_run: Path, tmp_path: Path) -> None:
    translator = mtkit.load(tiny_run)
    translator.tags = ("three",)  # a word of its vocabulary
    lines = ["one two", "", "nine  four", " "]
    assert translate_set(translator, "a", lines, "three") == translator.translate(
        ["three one two", "", "three nine  four", " "]
    )
    assert translate_set(translator, "a", lines) == translator.translate(lines)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("one two\n")
    target.write_text("3 1 2\n")
    sets = {"a": SetFiles(source, (target,), "three")}
    [_, tagged, _] = evaluate_models([("x", translator)], sets, Scoring(PAIR))
    [_, untagged, _] = evaluate_models([("x", translator)], {"a": SetFiles(source, (target,))}, Scoring(PAIR))
    assert untagged.score < tagged.score
    # The settings of this model have a set of that name without a tag: the tag belongs to another model.
    assert translator.config.data.test["toy"].tag is None
    scores = evaluate_models([("x", translator)], {"toy": sets["a"]}, Scoring(PAIR))
    assert [score.score for score in scores][1] == untagged.score


def test_scores_of_a_named_set_are_those_of_the_sacrebleu_command_over_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A set of sacreBLEU's own, as in its cache.
    monkeypatch.setattr(DATASETS["wmt14/full"], "_outdir", str(tmp_path / "cache" / "wmt14" / "full"))
    folder = tmp_path / "cache" / "wmt14" / "full"
    folder.mkdir(parents=True)
    texts = {
        "src": "The house is old.",
        "ref": "Das Haus ist sehr alt.",
        **dict.fromkeys(("docid", "genre", "origlang"), "x"),
    }
    for field, line in texts.items():
        (folder / f"wmt14_full.en-de.{field}").write_text(f"{line}\n" * 3)
    hypothesis = tmp_path / "hypothesis"
    hypothesis.write_text("Das Haus ist alt.\nDas Haus ist sehr alt.\nEin Haus.\n")
    arguments = ["-t", "wmt14/full", "-l", "en-de", "-i", str(hypothesis), "-m", "bleu", "chrf", "ter", "-w", "9"]
    wanted = json.loads(output_of([*SACREBLEU, *arguments]))
    arguments = ["--test-set", "wmt14/full", "--languages", "en-de", "--hypothesis", str(hypothesis), "--json"]
    found = json.loads(output_of([*MTKIT, "evaluate", *arguments]))
    assert [(score["metric"], round(score["score"], 9), score["signature"]) for score in found] == [
        (score["name"], score["score"], score["signature"]) for score in wanted
    ]
    assert {score["test_set"] for score in found} == {"wmt14/full"}
