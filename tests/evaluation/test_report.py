"""The report shows the figures of the log and of the scores, and nothing else."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from mtkit.bundle.bundle import open_bundle, sealed
from mtkit.cli import main
from mtkit.config.settings import config_text
from mtkit.errors import MtkitError
from mtkit.evaluation.page import number
from mtkit.evaluation.report import PANELS, Reported, report
from mtkit.translation.scores import sentence_scores
from tests.conftest import write_lines
from tests.evaluation.reading import Reader


def reported(output: Path, *models: Path) -> Reader:
    """The page that `mtkit report` makes of the models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mtkit", "report", *map(str, models), "-o", str(output), "--quiet"])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return Reader(output.read_text("utf-8"))


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, for which no model has to be opened: the stored translations are used."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("reported") / "a run"))


@pytest.fixture(scope="module")
def alone(run: Path) -> Reader:
    return reported(run.parent / "alone.html", run)


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]


def test_every_figure_of_a_curve_is_in_the_log(run, alone):
    for kind, key, title in PANELS:
        logged = [event for event in events(run) if event["event"] == kind and event.get(key) is not None]
        assert logged, title
        rows = [["A a run", number(event["step"]), number(event[key])] for event in logged]
        assert alone.tables[title] == [["", "update", title], *rows]


def test_the_scores_are_those_of_the_bundle_with_intervals(run, alone):
    scores = json.loads((run / "model" / "scores.json").read_text("utf-8"))
    head, [key, *shown] = alone.tables["toy, 24 sentences"]
    assert (head, key) == (["", *(score["metric"] for score in scores)], "A")
    for text, score in zip(shown, scores, strict=True):
        value, _, interval = text.partition(" ± ")
        assert value == f"{score['score']:.2f}"
        assert float(interval) >= 0
    signatures = [row[1].replace("bs:1000|seed:12345|", "") for row in alone.tables["Signatures of sacreBLEU"][1:]]
    assert signatures == [score["signature"] for score in scores]


def test_settings_samples_data_environment_and_command_are_there(run, alone):
    config, facts = open_bundle(run).config, json.loads((run / "run.json").read_text("utf-8"))
    settings = {row[0]: row[2] for row in alone.tables["Settings that differ from the defaults"][1:]}
    assert settings["training.max_steps"] == str(config.training.max_steps)
    assert settings["decoding.beam_size"] == "2"
    assert "training.seed" not in settings
    samples = [event for event in events(run) if event["event"] == "sample"]
    assert [row[2] for row in alone.tables["A, validation sentences"][1:]] == [event["hypothesis"] for event in samples]
    assert ["A", "pairs", number(facts["data"]["num_pairs"])] in alone.tables["Training data"]
    assert ["torch", facts["torch"]] in alone.tables["When training last started"]
    assert shlex.join(["mtkit", *facts["command"][1:]]) in alone.text


def test_what_was_left_out_of_training_is_told_with_its_reasons(run, tmp_path):
    moved = Path(shutil.copytree(run / "model", tmp_path / "model"))
    bundle = open_bundle(moved)
    training = bundle.description["training"]
    data = {**training["data"], "dropped": {"longer than data.max_length": 7, "duplicates": 0}}
    (moved / "bundle.json").write_bytes(sealed({**bundle.description, "training": {**training, "data": data}}))
    page = reported(tmp_path / "page.html", moved)
    rows = page.tables["Pairs that were left out of training"]
    assert rows[1:] == [["A", "longer than data.max_length", "7"]]


def test_sentences_are_ranked_and_shown_with_their_translations(run, alone):
    stored = (run / "translations" / "toy.txt").read_text("utf-8").splitlines()
    worst, best = (alone.tables[f"The {what} sentences of A"][1:] for what in ("worst", "best"))
    assert all(stored[int(row[0]) - 1] == row[3] for row in (*worst, *best))
    assert max(float(row[1]) for row in worst) <= min(float(row[1]) for row in best)


def test_of_equally_good_sentences_the_longest_are_shown(run, alone, corpus_files):
    sources, targets = corpus_files.lines("test")
    stored = (run / "translations" / "toy.txt").read_text("utf-8").splitlines()
    scores = sentence_scores(stored, [targets])
    for what in ("worst", "best"):
        shown = [int(row[0]) - 1 for row in alone.tables[f"The {what} sentences of A"][1:]]
        others = set(range(len(sources))) - set(shown)
        equal = [(place, other) for place in shown for other in others if scores[place] == scores[other]]
        assert equal
        assert all(len(sources[place]) >= len(sources[other]) for place, other in equal)


def test_two_systems_are_compared_and_stale_translations_are_made_again(run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    write_lines(other / "translations" / "toy.txt", ["0"] * 24)  # not what the model says
    page = reported(tmp_path / "page.html", run, other)
    rows = page.tables["toy, 24 sentences"][1:]
    assert [row[0] for row in rows] == ["A", "B"]
    assert rows[0][1:] == rows[1][1:]
    assert [row[2:] for row in page.tables["toy: differences from A"][1:]] == [["+0.00", "1.0000", "may be chance"]] * 3
    marked = [row[0] for row in page.tables["Settings that differ from the defaults; ≠: the systems differ"]]
    assert not [name for name in marked if name.endswith("≠")]


def test_without_the_test_set_the_stored_scores_are_shown(run, tmp_path):
    moved = Path(shutil.copytree(run / "model", tmp_path / "model"))
    config = open_bundle(moved).config
    gone = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path / "gone"})})
    (moved / "config.yaml").write_text(config_text(gone), "utf-8")
    page = reported(tmp_path / "page.html", moved)
    scores = json.loads((moved / "scores.json").read_text("utf-8"))
    shown = [[row[1], row[2]] for row in page.tables["toy, stored scores"][1:]]
    assert shown == [[score["metric"], f"{score['score']:.2f}"] for score in scores]
    assert not [text for text in page.text if text in ("Training", "Environment and command")]  # a bundle has no log


def test_a_report_is_on_one_checkpoint_though_training_deletes_it(run, tmp_path, capsys):
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("model")))
    system = Reported.open("A", unfinished, ["device=cpu"])
    shutil.rmtree(unfinished)
    assert system.translator.config.decoding.beam_size == 2
    assert capsys.readouterr().err.count("not finished; using step") == 1


def test_systems_of_other_languages_are_refused(run, tmp_path):
    other = Path(shutil.copytree(run / "model", tmp_path / "model"))
    config = open_bundle(other).config
    languages = config.languages.model_copy(update={"target": "fr"})
    (other / "config.yaml").write_text(config_text(config.model_copy(update={"languages": languages})), "utf-8")
    with pytest.raises(MtkitError, match=r"model: translates en to fr, but \S+ run translates en to digits; report on"):
        report([run, other], tmp_path / "page.html")
