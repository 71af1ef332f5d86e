"""Trainings are shared, resumed and kept within the budget; what is shown is what was measured."""

import json
import math
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import mtkit.experiment.run as runner
from mtkit import files
from mtkit.bundle.opening import checkpoint_steps
from mtkit.cli import _run
from mtkit.errors import MtkitError
from mtkit.experiment import page as pages
from mtkit.experiment.measures import (
    CLAIM_HOLDS,
    INVALID,
    MEASURES,
    NOISE,
    NOT_SHOWN,
    NOT_TESTED,
    NUM_RESAMPLES,
    Reference,
    constant,
    estimate,
    find,
    parse,
    rows_of,
)
from mtkit.experiment.page import card_text, report_page
from mtkit.experiment.run import Choice, Lab, add_prediction, listing, load_folder, run, training_key
from mtkit.preparation import prepare
from mtkit.training.train import Trainer
from tests.evaluation.reading import Reader
from tests.experiment.conftest import MASK, ORDER, TRAINING, Done, Folder
from tests.runs import Killed, at_step, doing, events, kill

pytestmark = pytest.mark.usefixtures("quiet")


def run_here(folder: Folder, results: Path, minutes: float = 5, **choice) -> Lab:
    """Run the experiments of a folder, as `mtkit experiment run` does."""
    lab = Lab(results, Choice(**choice))
    run(folder.cards, lab, minutes, time.monotonic())
    return lab


def runs(results: Path) -> list[Path]:
    """The run directories."""
    return sorted((results / "runs").iterdir()) if (results / "runs").exists() else []


def copied(done: Done, tmp_path: Path) -> Path:
    """A copy of the results, which a test may change."""
    return Path(shutil.copytree(done.results, tmp_path / "results"))


def test_equal_settings_on_equal_data_are_trained_once(done):
    mask, order = done.folder.cards
    lab = done.lab()
    assert lab.training(mask, "base", 1).key == lab.training(order, "base", 1).key
    assert len(runs(done.results)) == 3
    assert len(list((done.results / "prepared").iterdir())) == 1
    for path in runs(done.results):
        steps = [event["step"] for event in events(path, "train")]
        assert steps == list(range(1, TRAINING["max_steps"] + 1))


def test_a_training_is_named_by_what_it_depends_on(folder, few_pairs, tmp_path):
    config = folder.cards[0].config("base", "toy", 1)
    key = training_key(config)
    moved = Path(shutil.copytree(few_pairs.root, tmp_path / "moved"))
    same = config.model_copy(
        update={
            "name": "other",
            "run_dir": tmp_path,
            "data": config.data.model_copy(update={"root": moved, "test": {}}),
            "decoding": config.decoding.model_copy(update={"beam_size": 5}),
        }
    )
    assert training_key(same) == key
    training = config.training.model_copy(update={"seed": 2})
    assert training_key(config.model_copy(update={"training": training})) != key
    text = (moved / "train.tgt").read_text("utf-8")
    other = Path(shutil.copytree(moved, tmp_path / "other"))
    (other / "train.tgt").write_text(text.replace("1", "2"), "utf-8")
    data = same.data.model_copy(update={"root": other})
    assert training_key(same.model_copy(update={"data": data})) != key


def test_verdicts_are_there_after_a_run(done):
    mask, order = done.folder.cards
    assert done.lab().verdict(mask).kind == CLAIM_HOLDS
    assert done.lab().verdict(order).kind == NOT_SHOWN  # the variant that it is about needs another size
    assert done.lab("small").verdict(order).kind == NOT_TESTED
    assert done.lab("full").verdict(mask).kind == NOT_SHOWN


def test_a_second_call_trains_and_measures_nothing(done, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in done.results.rglob("*") if path.is_file()}
    monkeypatch.setattr(runner, "run_train", None)
    run_here(done.folder, done.results)
    after = {path: path.stat().st_mtime_ns for path in done.results.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {".lock", "last.json"}


def without_times(results: Path, folder: Folder) -> str:
    """The page, without the minutes of trainings."""
    for path in results.glob("runs/*/measures/training-*.json"):
        record = json.loads(path.read_text("utf-8"))
        record["sets"]["all"][0][1] = 0.0
        path.write_text(json.dumps(record), "utf-8")
    return report_page(folder.cards, Lab(results, Choice()), folder.path).replace(str(results), "RESULTS")


def test_a_killed_run_goes_on_where_it_was_and_the_report_is_the_same(done, tmp_path):
    results, trained = tmp_path / "results", []
    update = Trainer._update

    def counting(trainer, stream):
        trained.append((trainer.run_path.name, trainer.state.progress.step + 1))
        return update(trainer, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", counting)
        with doing(kill, Trainer, "_update", at_step(4)), pytest.raises(Killed):
            run_here(done.folder, results)
        assert len(runs(results)) == 1
        run_here(done.folder, results)
    assert len(trained) == len(set(trained)) == 3 * TRAINING["max_steps"]
    assert without_times(results, done.folder) == without_times(copied(done, tmp_path / "copy"), done.folder)


def test_variants_with_equal_settings_are_told_and_those_that_decode_differently_are_not(folder, tmp_path, capsys):
    text = MASK.replace("no mask: {model: {ablate: [causal_mask]}}", "no mask: {model: {d_ff: 16}}")
    folder.write("01-mask.yaml", text.replace("{d_ff: 32}", "{d_ff: 16}, decoding: {beam_size: 2}"))
    run_here(folder, tmp_path / "results", minutes=0)
    told = [line for line in capsys.readouterr().err.splitlines() if "the same settings" in line]
    assert told == [
        f"mtkit: warning: {folder.path / '01-mask.yaml'}: base and no mask have the same settings at size toy"
    ]


def test_a_training_that_does_not_fit_is_not_begun(done, folder, tmp_path, capsys):
    results = copied(done, tmp_path)
    folder.write("02-order.yaml", ORDER.replace("toy: {}", "toy: {training: {max_steps: 60000000}}"))
    lab = run_here(folder, results)
    assert runs(results) == [results / "runs" / path.name for path in runs(done.results)]
    assert "1 training of seed 1 must wait: the shortest takes about" in capsys.readouterr().err
    assert not lab.is_done(lab.training(folder.cards[1], "base", 1))
    assert lab.verdict(folder.cards[0]).kind == CLAIM_HOLDS


def test_a_training_is_stopped_with_a_checkpoint_when_the_time_is_over(folder, tmp_path, monkeypatch, capsys):
    results, real, late = tmp_path / "results", time.monotonic, []

    def now() -> float:
        return real() + 3600 * len(late)

    monkeypatch.setattr(time, "monotonic", now)
    monkeypatch.setattr(files, "monotonic", now)
    with doing(lambda: late.append(1), Trainer, "_update", at_step(2)):
        run_here(folder, results)
    [begun] = runs(results)
    assert checkpoint_steps(begun / "checkpoints")[-1] == 3
    assert "the 5 minutes are over; the same command goes on from here" in capsys.readouterr().err
    run_here(folder, results)
    assert [event["step"] for event in events(begun, "train")] == list(range(1, TRAINING["max_steps"] + 1))


def test_what_is_worth_most_for_its_time_comes_first(folder, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(runner, "_run_one", lambda card, name, training, lab, clock: begun.append(training.key))
    monkeypatch.setattr(Lab, "is_done", lambda lab, training: training.key in begun)
    monkeypatch.setattr(Lab, "missing_groups", lambda lab, card, training: [])
    folder.write("03-long.yaml", MASK.replace("sizes: {toy: {}}", "sizes: {toy: {training: {max_steps: 9000}}}"))
    folder.write("04-cheap.yaml", ORDER.replace("rank: 2", "rank: 9").replace("{toy: {}", "{toy: {model: {d_ff: 8}}"))
    lab = run_here(folder, tmp_path, minutes=1e6)
    uses = {lab.training(card, name, 1).key: card.name for card in folder.cards for name in card.runs_at("toy")}
    order = list(dict.fromkeys(uses[key] for key in begun))
    assert order.index("03-long") == len(order) - 1  # it takes 1,500 times as long
    assert order.index("04-cheap") > order.index("01-mask")


def test_seeds_are_runs_of_their_own_and_the_first_come_first(folder, tmp_path):
    folder.write("01-mask.yaml", MASK.replace("sizes", "only: {full: [no mask, wide]}\nsizes"))
    lab = run_here(folder, tmp_path / "results", seeds=2)
    card = folder.cards[0]
    assert lab.values(card, Reference("perplexity", "base")).shape[0] == 2
    assert [lab.training(card, "base", seed).config.training.seed for seed in (1, 2)] == [1, 2]
    assert len(runs(tmp_path / "results")) == 2
    page = report_page(folder.cards, lab, folder.path)
    [table] = [each for each in re.findall(r"<table.*?</table>", page, re.DOTALL) if "Measures of 01 mask" in each]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table, re.DOTALL)
    keys = [lab.training(card, "base", seed).key for seed in (1, 2)]
    assert len(cells) >= 5
    assert all(re.findall(r'href="#run-(\w+)"', cell) == keys for cell in cells if cell)
    assert all(f'id="run-{key}"' in page for key in keys)


def test_a_run_that_is_gone_takes_its_figures_with_it(done, tmp_path):
    results = copied(done, tmp_path)
    lab, [mask, _] = Lab(results, Choice()), done.folder.cards
    run_path = lab.training(mask, "no mask", 1).config.run_path
    link = f'href="#run-{run_path.name}"'
    before = report_page(done.folder.cards, lab, done.folder.path)
    assert before.count(link) >= 3
    [_, *rows] = Reader(before).tables["Measures of 01 mask"]
    figures = next(row for row in rows if row[0] == "no mask")[1:]
    shutil.rmtree(run_path)
    after = report_page(done.folder.cards, Lab(results, Choice()), done.folder.path)
    assert link not in after
    assert f'id="run-{run_path.name}"' not in after
    assert [row[0] for row in Reader(after).tables["Measures of 01 mask"][1:]] == ["base", "wide"]
    assert figures[1] not in after  # its perplexity
    assert Lab(results, Choice()).verdict(mask).kind == NOT_TESTED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"sets": 1}',
        '{"sets": {"all": [[1], [1, 2]]}}',
        '{"sets": {"all": [["x"]]}}',
        '{"sets": {"all": [[1]]}, "parts": {"long": [1]}}',
    ],
)
def test_a_record_that_was_edited_is_told_in_one_line(done, tmp_path, text):
    lab = Lab(copied(done, tmp_path), Choice())
    [mask, _] = done.folder.cards
    for path in (lab.training(mask, "no mask", 1).config.run_path / "measures").iterdir():
        path.write_text(text)
    with pytest.raises(MtkitError, match=r"\.json: is damaged; delete it, and mtkit experiment run measures again$"):
        lab.verdict(mask)


def test_estimates_and_boards_do_without_files_that_were_edited(done, tmp_path):
    results = copied(done, tmp_path)
    known = [row["minutes left"] for row in listing(done.folder.cards, Lab(results, Choice()))]
    for path in (*results.glob("runs/*/cost.json"), *results.glob("boards/*.json")):
        path.write_text('{"minutes": "many", "code": 1, "results": []}')
    assert len(listing(done.folder.cards, Lab(results, Choice()))) == len(known)
    assert Lab(results, Choice()).is_guessing


def test_every_figure_links_to_a_run_that_is_on_the_page(done):
    page = report_page(done.folder.cards, done.lab(), done.folder.path)
    ids = {attributes["id"] for _, attributes in Reader(page).tags if "id" in attributes}
    links = {attributes["href"] for tag, attributes in Reader(page).tags if tag == "a"}
    assert {f"#run-{path.name}" for path in runs(done.results)} <= links
    assert {link.removeprefix("#") for link in links} <= ids


def test_every_figure_and_every_picture_has_a_link(done):
    page = report_page(done.folder.cards, done.lab(), done.folder.path)
    tables = [table for table in re.findall(r"<table.*?</table>", page, re.DOTALL) if "Measures of" in table]
    cells = [cell for table in tables for cell in re.findall(r"<td[^>]*>(.*?)</td>", table, re.DOTALL) if cell]
    assert len(tables) == 2
    assert len(cells) > 20
    assert all('<a href="#run-' in cell for cell in cells)
    for card in done.folder.cards:
        picture = pages._picture(card, done.lab())
        names = card.runs_at("toy")
        assert re.findall(r'<a href="#run-\w+">([^<]+)</a>', picture.split("Drawn from")[1]) == names


def test_a_training_that_has_not_ended_is_in_no_picture(done, folder, tmp_path):
    folder.write("01-mask.yaml", MASK.replace("{y: perplexity}", "{kind: lines, x: update, y: perplexity}"))
    results, card = copied(done, tmp_path), folder.cards[0]
    lab = Lab(results, Choice())
    assert "no mask" in pages._picture(card, lab)
    shutil.rmtree(lab.training(card, "no mask", 1).config.run_path / "model")
    assert pages._logged(lab.training(card, "no mask", 1), "validation", "perplexity")
    picture = pages._picture(card, Lab(results, Choice()))
    assert "no mask" not in picture
    assert "wide" in picture


def test_the_page_tells_the_whole_experiment_without_scripts(done):
    page = report_page(done.folder.cards, done.lab(), done.folder.path)
    text = " ".join("".join(Reader(page).text).split())
    for part in ("By a slip <b>.", "Little.", "Nobody (1900)", "Think again.", "Other models are other models."):
        assert part in text
    assert "<script" not in page
    command = f"mtkit experiment run {done.folder.path} --only 02-order --size toy --runs {done.results}"
    assert command in text
    assert "model:\n  ablate: [causal_mask]" in "".join(Reader(page).text)
    [_, row] = Reader(page).tables["Conditions of validity"]
    assert row[2] == "✓ pass"
    assert len(page) < 3_000_000


def test_the_figures_of_the_page_are_those_of_the_records(done):
    mask, lab = done.folder.cards[0], done.lab()
    [head, *rows] = Reader(report_page(done.folder.cards, lab, done.folder.path)).tables["Measures of 01 mask"]
    for row in rows:
        training = lab.training(mask, row[0], 1)
        record = lab.record(training, "likelihood")
        assert record
        statistics = rows_of(record, "all")
        perplexity = MEASURES["perplexity"].value(statistics.sum(0, keepdims=True))[0]
        assert row[head.index("perplexity")].split(" ± ")[0] == f"{perplexity:,.2f}"


def test_perplexity_is_that_of_the_validation_of_training(done):
    lab, mask = done.lab(), done.folder.cards[0]
    for name in ("base", "no mask"):
        training = lab.training(mask, name, 1)
        logged = [event for event in events(training.config.run_path, "validation") if event["best"]][-1]
        assert lab.values(mask, Reference("perplexity", name))[0, 0] == pytest.approx(logged["perplexity"], rel=1e-4)
        same = lab.values(mask, Reference("perplexity", name, "right source"))
        assert same[0, 0] == lab.values(mask, Reference("perplexity", name))[0, 0]


def test_a_call_that_is_killed_while_it_copies_shared_data_can_be_repeated(done, tmp_path):
    results = tmp_path / "results"
    for place in ("link_or_copy", "_write_validation"):  # the second call begins in half a copy
        adopting = doing(kill, prepare, place, lambda first: "prepared" not in str(getattr(first, "run_dir", "")))
        with adopting, pytest.raises(Killed):
            run_here(done.folder, results)
        [begun] = runs(results)
        assert (begun / "tokenizer").exists()
        (begun / "tokenizer" / "provenance.json").unlink()
    run_here(done.folder, results)
    assert Lab(results, Choice()).verdict(done.folder.cards[0]).kind == CLAIM_HOLDS


def test_the_model_that_training_starts_from_and_the_density_of_the_log_count(done, tmp_path):
    config, started = done.folder.cards[0].config("base", "toy", 1), []
    one, two = [path / "model" for path in runs(done.results)[:2]]
    for path in (one, two, shutil.copytree(two, tmp_path / "moved")):
        training = config.training.model_copy(update={"start_from": path})
        started.append(training_key(config.model_copy(update={"training": training})))
    assert started[0] != started[1] == started[2]
    training = config.training.model_copy(update={"log_every": 2})
    assert training_key(config.model_copy(update={"training": training})) != training_key(config)


def test_variants_that_differ_in_decoding_alone_share_a_training_but_not_what_measuring_costs(folder, tmp_path):
    folder.write("01-mask.yaml", MASK.replace("  no mask", "  beam 2: {decoding: {beam_size: 2}}\n  no mask", 1))
    card, lab = folder.cards[0], Lab(tmp_path, Choice())
    one, two = lab.training(card, "base", 1), lab.training(card, "beam 2", 1)
    assert one.key == two.key
    [alone], [both] = (lab.minutes_left(card, these).values() for these in ([one], [one, two]))
    assert both - alone == pytest.approx(runner.GUESSED_MEASURING["translations"])
    assert lab.minutes_left(card, [one, one]) == {one.key: alone}


def test_predictions_are_closed_by_one_variant_but_not_by_the_base(done, tmp_path):
    results, card = copied(done, tmp_path), done.folder.cards[0]
    lab = Lab(results, Choice())
    base, mask, wide = [lab.training(card, name, 1).config.run_path for name in ("base", "no mask", "wide")]
    shutil.rmtree(wide)
    mask.rename(tmp_path / "mask")
    add_prediction(card, lab, "The base is there, and tells nothing.")
    (tmp_path / "mask").rename(mask)
    shutil.rmtree(base)
    with pytest.raises(MtkitError, match="has results already"):
        add_prediction(card, Lab(results, Choice()), "I saw half of it.")


def test_predictions_of_readers_are_dated_and_closed_once_there_are_results(done, tmp_path):
    card = done.folder.cards[0]
    lab = Lab(tmp_path, Choice())
    path = add_prediction(card, lab, "It will not work.")
    [found] = json.loads(path.read_text("utf-8"))
    assert found["text"] == "It will not work."
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert "It will not work." in card_text(card, lab)
    assert "It will not work." in report_page([card], lab, done.folder.path)
    with pytest.raises(MtkitError, match="01-mask: has results already"):
        add_prediction(card, done.lab(), "I knew it.")
    with pytest.raises(MtkitError, match="found an empty prediction"):
        add_prediction(card, lab, " ")
    path.write_text('[{"text": "It will not."}]')
    with pytest.raises(MtkitError, match=r"01-mask\.json: is damaged; mend or delete it"):
        card_text(card, lab)


def test_the_listing_tells_what_is_done_and_what_is_shared(done, tmp_path):
    assert [(row["verdict"], row["done"], row["shared"]) for row in listing(done.folder.cards, done.lab())] == [
        (CLAIM_HOLDS, "3 of 3", "1"),
        (NOT_SHOWN, "1 of 1", "1"),
    ]
    new = listing(done.folder.cards, Lab(tmp_path, Choice()))
    assert [row["done"] for row in new] == ["0 of 3", "0 of 1"]
    assert all(float(row["minutes left"]) > 0 for row in new)


def test_a_training_that_diverges_is_a_result(folder, tmp_path, capsys):
    text = ORDER.replace(
        "  recurrent: {model: {architecture: rnn, cell: gru}}\n", "  wild: {training: {max_skipped: 1}}\n"
    )
    text = text.replace('parameters["recurrent"] > 0', 'trained["wild"] == 0 and perplexity["wild"] > 1000')
    text = text.replace("perplexity]", "perplexity, trained]").replace("only: {small: [recurrent]}\n", "")
    folder.write("02-order.yaml", text.replace("max_skipped: 1", "max_skipped: 1, learning_rate: 1.0e+38"))
    (folder.path / "01-mask.yaml").unlink()
    lab = run_here(folder, tmp_path / "results")
    assert lab.verdict(folder.cards[0]).kind == CLAIM_HOLDS
    monkey = lab.training(folder.cards[0], "wild", 1)
    assert (monkey.config.run_path / runner.DIVERGED).exists()
    assert "diverged" in report_page(folder.cards, lab, folder.path)


@pytest.mark.parametrize("seed", [1, 2])
def test_one_of_two_seeds_may_diverge(done, tmp_path, seed):
    results, card = copied(done, tmp_path), done.folder.cards[0]
    lab = Lab(results, Choice(seeds=2))
    both = [lab.training(card, "base", number).config.run_path for number in (1, 2)]
    shutil.copytree(*both)
    (both[seed - 1] / runner.DIVERGED).write_text("{}\n", "utf-8")
    for name in ("bleu", "perplexity", "parameters"):
        assert lab.values(card, Reference(name, "base")).shape == (2, 1 + NUM_RESAMPLES)
    found = estimate(lab.values(card, Reference("perplexity", "base")))
    assert (found.value, found.noise) == (math.inf, math.inf)
    assert find(parse('perplexity["base"] > 1'), lambda each: lab.values(card, each)).state == NOISE


def test_nothing_looks_good_of_a_training_that_diverged(done, tmp_path):
    results, card = copied(done, tmp_path), done.folder.cards[0]
    lab = Lab(results, Choice())
    (lab.training(card, "base", 1).config.run_path / runner.DIVERGED).write_text("{}\n", "utf-8")
    worst = {"bleu": 0.0, "perplexity": math.inf, "accuracy": 0.0}
    for name in ("bleu", "perplexity", "accuracy", "score", "entropy", "confidence", "calibration_error", "cut_off"):
        values = lab.values(card, Reference(name, "base"))
        assert np.array_equal(values[0], constant(worst.get(name, math.nan)), equal_nan=True)
    finding = find(parse('score["base"] <= 0'), lambda each: lab.values(card, each))
    assert (finding.state, finding.is_true) == (NOISE, False)


def test_a_board_is_an_experiment_without_trainings(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(runner.BOARDS, "sums", lambda: {"one and one": 2.0, "by, 1": 1.0, "by, 2": 4.0})
    text = "experiment: sums\nclaim: One and one is two.\nrank: 1\nboard: [sums]\npicture: {kind: lines, y: sums}\n"
    folder.write("03-sums.yaml", text + 'predict: [\'board["sums", "one and one"] == 2\']\n')
    [*_, card] = sorted(folder.cards, key=lambda card: card.name)
    lab = Lab(tmp_path / "results", Choice())
    run([card], lab, 1, time.monotonic())
    assert lab.verdict(card).kind == CLAIM_HOLDS
    assert 'href="#board-sums"' in report_page([card], lab, folder.path)
    monkeypatch.setitem(runner.BOARDS, "sums", lambda: {"one and one": 3.0})
    run([card], lab, 1, time.monotonic())
    assert lab.verdict(card).kind == CLAIM_HOLDS  # it is not run again
    monkeypatch.setattr(runner, "code_checksum", lambda: "another version of any module")
    assert lab.verdict(card).kind == NOT_TESTED
    run([card], lab, 1, time.monotonic())
    assert lab.verdict(card).kind == "contradicted"


def test_what_a_board_found_is_gone_when_it_fails_with_other_code(folder, tmp_path, monkeypatch):
    def fails():
        raise MtkitError("no corpus")

    monkeypatch.setitem(runner.BOARDS, "sums", lambda: {"one": 1.0})
    text = 'experiment: sums\nclaim: One.\nrank: 1\nboard: [sums]\npredict: [\'board["sums", "one"] == 1\']\n'
    cards = load_folder(folder.write("03-sums.yaml", text))
    lab = Lab(tmp_path / "results", Choice())
    run(cards, lab, 1, time.monotonic())
    monkeypatch.setattr(runner, "code_checksum", lambda: "other")
    monkeypatch.setitem(runner.BOARDS, "sums", fails)
    with pytest.raises(MtkitError, match="no corpus"):
        run(cards, lab, 1, time.monotonic())
    assert not lab.board_path("sums").exists()


def test_a_board_that_fails_does_not_keep_the_others_from_running(folder, tmp_path, monkeypatch):
    def fails():
        raise MtkitError("no corpus")

    monkeypatch.setitem(runner.BOARDS, "bad", fails)
    monkeypatch.setitem(runner.BOARDS, "good", lambda: {"one": 1.0})
    text = 'experiment: both\nclaim: Both.\nrank: 1\nboard: [bad, good]\npredict: [\'board["good", "one"] == 1\']\n'
    path = folder.write("03-both.yaml", text)
    lab = Lab(tmp_path / "results", Choice())
    with pytest.raises(MtkitError, match="board bad: no corpus"):
        run(load_folder(path), lab, 1, time.monotonic())
    assert lab.board("bad") is None
    assert lab.verdict(*load_folder(path)).kind == CLAIM_HOLDS


def test_a_new_experiment_is_one_file_and_its_verdict_is_printed(done, tmp_path, capsys):
    folder = Path(shutil.copytree(done.folder.path, tmp_path / "lecture"))
    results = copied(done, tmp_path)
    text = MASK.replace("experiment: mask", "experiment: mine").replace(
        'parameters["wide"] > ', '2 * parameters["wide"] < '
    )
    (folder / "07-mine.yaml").write_text(text, "utf-8")
    assert _run(["experiment", "run", str(folder), "--only", "07", "--runs", str(results)]) == 0
    assert capsys.readouterr().out == f"07-mine: {INVALID}\n"
    assert _run(["experiment", "list", str(folder), "--runs", str(results)]) == 0
    assert f"07-mine: {INVALID}\n    Without its mask" in capsys.readouterr().out
    assert _run(["experiment", "show", "07", "--folder", str(folder), "--runs", str(results)]) == 0
    assert "control wide (done, run " in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert _run(["experiment", "report", str(folder), "-o", str(page), "--runs", str(results), "--only", "07"]) == 0
    assert "! experiment invalid" in page.read_text("utf-8")
    assert _run(["experiment", "predict", "07", "So.", "--folder", str(folder), "--runs", str(results)]) == 1
    assert "has results already" in capsys.readouterr().err


def test_a_choice_of_text_that_cannot_be_used_is_not_remembered(folder, tmp_path):
    with pytest.raises(MtkitError, match="nowhere"):
        run_here(folder, tmp_path / "results", data=str(tmp_path / "nowhere"))
    assert runner.last_choice(tmp_path / "results") == Choice()


def test_wrong_options_are_told(done, capsys):
    for words, told in (
        (["run", str(done.folder.path), "--size", "huge"], "--size: found huge, wants one of toy, small, full"),
        (["run", str(done.folder.path), "--minutes", "0"], "--minutes: found 0, wants a number, more than 0"),
        (["run", str(done.folder.path), "--seeds", "0"], "--seeds: found 0"),
        (["list", "nowhere"], "nowhere: no such folder"),
        (["report", str(done.folder.path), "-o", "page.txt"], "wants a file that ends in .html"),
    ):
        assert _run(["experiment", *words]) == 1
        assert told in capsys.readouterr().err
