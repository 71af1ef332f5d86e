"""Pictures show what the formulas, the log and the model say, in files of the kind that was asked for."""

import json
import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import mtkit
from mtkit.cli import main
from mtkit.config.settings import Config, config_text
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import Rows, padded_batch, ragged
from mtkit.errors import DataError, MtkitError
from mtkit.evaluation.plot import (
    COLOURS,
    PANELS,
    Attention,
    History,
    attention_of,
    curve_style,
    fonts_for,
    legend_below,
    new_figure,
    paper_schedule,
    plot_attention,
    position_table,
    read_history,
    read_log,
    schedule_of,
    schedule_points,
    series,
    style,
    waves_to_draw,
)
from mtkit.models.interface import State, TranslationModel
from mtkit.models.registry import new_model
from mtkit.training.optimizers import learning_rate
from tests.conftest import CorpusFiles, config_with, toy_settings

Plot = Callable[..., tuple[object, str]]


@pytest.fixture
def plot(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Plot:
    """The exit code of `mtkit plot ARGUMENTS`, and what it says on stderr."""

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["mtkit", "plot", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, error = capfd.readouterr()
        assert out == ""
        return end.value.code or 0, error

    return run


def text_of(svg: Path) -> set[str]:
    """All that is written in a picture."""
    return {text.strip() for element in ElementTree.parse(svg).iter() for text in element.itertext() if text.strip()}


def assert_is_picture(path: Path) -> None:
    content = path.read_bytes()
    if path.suffix == ".png":
        assert content.startswith(b"\x89PNG\r\n")
        assert content.endswith(b"IEND\xaeB`\x82")
    else:
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(content) > 5000


@pytest.fixture
def config_file(tiny_config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(config_text(tiny_config), encoding="utf-8")
    return path


def test_the_learning_rate_drawn_is_that_of_training_with_its_peak(tiny_config: Config) -> None:
    for schedule in (schedule_of("toy", tiny_config, None), paper_schedule("512:4000")):
        for num_steps in (1, 7, 600, 123_456):
            steps, rates = schedule_points(schedule, num_steps)
            assert (steps[0], steps[-1]) == (1, num_steps)
            assert steps == sorted(set(steps))
            assert len(steps) <= 2005
            assert rates == [learning_rate(step, schedule.training, schedule.d_model) for step in steps]
            assert num_steps < schedule.training.warmup_steps or schedule.training.warmup_steps in steps
    training = TrainingConfig(warmup_steps=8000)
    steps, rates = schedule_points(paper_schedule("512:8000"), 20_000)
    assert rates == [learning_rate(step, training, 512) for step in steps]
    values = {"schedule": "wsd", "learning_rate": 0.1, "max_steps": 100_001, "decay_steps": 7_654}
    decaying = tiny_config.model_copy(update={"training": TrainingConfig.model_validate(values)})
    steps, rates = schedule_points(schedule_of("toy", decaying, None), 100_001)
    assert rates[steps.index(92_347)] == max(rates) > rates[steps.index(92_347) + 1]


@pytest.mark.parametrize(
    "text", ["512", "512:", ":4000", "a:b", "512:4000:1", "0:4000", "512:0", "-1:5", "512:" + "9" * 5000]
)
def test_a_setting_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MtkitError, match=f"--setting: found {text}, wants d_model:warmup_steps such as 512:4000"):
        paper_schedule(text)


def test_schedules_of_configs_and_of_papers_are_drawn_together(plot: Plot, config_file: Path, tmp_path: Path) -> None:
    for name in ("rates.svg", "rates.png"):
        assert plot("schedule", config_file, "--setting", "512:4000", "-o", tmp_path / name) == (0, "")
        assert_is_picture(tmp_path / name)
    assert {"toy", "d_model 512, warmup 4000", "update", "learning rate"} <= text_of(tmp_path / "rates.svg")
    before = (tmp_path / "rates.svg").read_bytes()
    plot("schedule", config_file, "--setting", "512:4000", "-o", tmp_path / "rates.svg")
    assert (tmp_path / "rates.svg").read_bytes() == before
    plot("schedule", config_file, "--setting", "512:4000", "--steps", "9000", "-o", tmp_path / "rates.svg")
    assert (tmp_path / "rates.svg").read_bytes() != before


def test_the_positions_drawn_are_those_of_the_paper(
    plot: Plot, tiny_config: Config, config_file: Path, tmp_path: Path
) -> None:
    table = position_table(tiny_config, 50)
    places, half = np.arange(50)[:, None], np.arange(16)
    angles = places / 10000 ** (2 * half / 32)
    assert np.allclose(table, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-6)
    waves = waves_to_draw(table)
    assert 2 <= len(waves) <= 4
    assert all((np.diff(np.signbit(table[:, wave])) != 0).any() for wave in waves)
    for name in ("positions.svg", "positions.png"):
        assert plot("positions", config_file, "--length", "50", "-o", tmp_path / name) == (0, "")
        assert_is_picture(tmp_path / name)
    assert {f"dimension {wave}" for wave in waves} <= text_of(tmp_path / "positions.svg")


def test_learned_positions_have_no_table_to_draw(plot: Plot, config_file: Path, tmp_path: Path) -> None:
    code, error = plot("positions", config_file, "model.positions=learned", "-o", tmp_path / "positions.svg")
    assert code == 1
    assert error == ("mtkit: error: model.positions is learned: only sinusoidal positions can be drawn\n")


def test_a_recurrent_model_has_no_positions_to_draw(plot: Plot, tmp_path: Path) -> None:
    path = tmp_path / "rnn.yaml"
    path.write_text("model: {architecture: rnn}\n", encoding="utf-8")
    code, error = plot("positions", path, "-o", tmp_path / "positions.svg")
    assert (code, error) == (
        1,
        "mtkit: error: model.architecture is rnn: only a transformer has positions to draw\n",
    )


def write_log(run: Path, events: list[dict[str, object]], rest: str = "") -> Path:
    run.mkdir()
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + rest, encoding="utf-8")
    return run


EVENTS: list[dict[str, object]] = [
    {"event": "start", "step": 0},
    {"event": "train", "step": 20, "nll": 4.0, "lr": 0.1, "minutes": 1.0},
    {"event": "train", "step": 40, "nll": None, "lr": 0.2, "minutes": 3.0},
    {"event": "validation", "step": 45, "loss": 3.5, "bleu": 10.0},
    {"event": "sample", "step": 45, "source": "a", "hypothesis": "b", "reference": "b"},
    {"event": "train", "step": 60, "nll": 2.0, "lr": 0.3, "minutes": 4.0},
    {"event": "validation", "step": 60, "loss": 2.5},
]


def test_the_figures_drawn_are_those_of_the_log(tmp_path: Path) -> None:
    history = read_history(write_log(tmp_path / "run", EVENTS))
    assert history.label == "run"
    assert series(history, "train", "nll") == ([20, 60], [4.0, 2.0])
    assert series(history, "train", "lr", "minutes") == ([1.0, 3.0, 4.0], [0.1, 0.2, 0.3])
    assert series(history, "validation", "loss", "minutes") == ([3.25, 4.0], [3.5, 2.5])
    assert series(history, "validation", "nll") == ([45, 60], [3.5, 2.5]), "a log that knows but one loss"
    later = write_log(tmp_path / "later", [{"event": "validation", "step": 10, "loss": 9.0, "nll": 8.0}, *EVENTS])
    assert series(read_history(later), "validation", "nll")[1][0] == 8.0
    assert series(history, "validation", "bleu") == ([45], [10.0])
    early: dict[str, object] = {"event": "validation", "step": 10, "loss": 9.0}
    assert series(read_history(write_log(tmp_path / "early", [early, *EVENTS])), "validation", "loss", "minutes") == (
        [0.5, 3.25, 4.0],
        [9.0, 3.5, 2.5],
    )


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    whole = read_history(write_log(tmp_path / "a", EVENTS)).events
    assert read_history(write_log(tmp_path / "b", EVENTS, '{"event": "train", "step": 8')).events == whole
    assert read_history(write_log(tmp_path / "c", EVENTS, "{}")).events == whole


def test_logs_without_figures_or_times_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a/log\.jsonl: no such file; a run directory that was trained in is wanted"):
        read_history(tmp_path / "a")
    with pytest.raises(DataError, match=r"b/log\.jsonl: has no figures yet"):
        read_history(write_log(tmp_path / "b", EVENTS[:1]))
    with pytest.raises(DataError, match=r"c/log\.jsonl:2: not a line of JSON; the log is damaged"):
        read_history(write_log(tmp_path / "c", EVENTS[:1], "x\n{}\n"))
    with pytest.raises(DataError, match=r"d/log\.jsonl:2: not an object of JSON; the log is damaged"):
        read_history(write_log(tmp_path / "d", EVENTS[:1], "[1]\n{}\n"))
    old = History("old", [{"event": "train", "step": 20, "nll": 4.0}])
    with pytest.raises(DataError, match="old: its log has no times, since an older mtkit wrote it; use --by step"):
        series(old, "train", "nll", "minutes")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            '{"event": "train", "step": 20, "nll": "low"}',
            r"nll: found str 'low', wants a number up to 1e\+100, or null",
        ),
        ('{"event": "train", "step": 20, "lr": true}', r"lr: found bool True, wants a number up to 1e\+100, or null"),
        ('{"event": "train", "step": 20, "loss": NaN}', "loss: found float nan, wants a number"),
        ('{"event": "train", "step": 20, "minutes": 1e999}', "minutes: found float inf, wants a number"),
        (f'{{"event": "train", "step": 20, "nll": 1{"0" * 400}}}', "nll: found int 1000000"),
        ('{"event": "train", "step": 2.5, "nll": 1}', "step: found float 2.5, wants a whole number"),
        ('{"event": "train", "step": -1, "nll": 1}', "step: found int -1, wants a whole number"),
        ('{"event": "validation", "bleu": 1}', "found no step, wants a whole number"),
        ('{"event": "sample", "step": 1, "source": "a", "hypothesis": "b"}', "found no reference, wants text"),
        ('{"event": "change", "step": 1, "settings": [1]}', r"settings: found list \[1\], wants an object"),
        ('{"event": "average", "steps": []}', r"steps: found list \[\], wants a list of whole numbers"),
        ('{"event": "start", "command": ["mtkit", 1]}', r"command: found list \['mtkit', 1\], wants a list of words"),
        ('{"step": 1}', "found no event, wants text"),
        ('{"event": 5}', "event: found int 5, wants text"),
        ("[" * 100_000, "not a line of JSON"),
    ],
)
def test_a_value_that_is_not_what_a_log_holds_is_told_with_its_line(tmp_path: Path, line: str, told: str) -> None:
    run = write_log(tmp_path / "run", EVENTS[:1], f"{line}\n")
    with pytest.raises(DataError, match=rf"run/log\.jsonl:2: {told}[^\n]*; the log is damaged$"):
        read_log(run)


def test_a_run_is_drawn_from_what_it_logs(plot: Plot, tiny_run: Path, tmp_path: Path) -> None:
    history = read_history(tiny_run)
    for event, key, _ in PANELS:
        for by in ("step", "minutes"):
            places, figures = series(history, event, key, by)
            assert len(places) == len(figures) == {"train": 12, "validation": 3}[event]
            assert places == sorted(places)
    other = write_log(tmp_path / "other", EVENTS)
    for name, by in (("training.png", "step"), ("training.svg", "minutes")):
        assert plot("training", tiny_run, other, "--by", by, "-o", tmp_path / name) == (0, "")
        assert_is_picture(tmp_path / name)
    assert {"run", "other", "validation BLEU", "minutes of training"} <= text_of(tmp_path / "training.svg")
    assert plot("training", other, "--by", "x", "-o", tmp_path / "a.svg") == (
        1,
        "mtkit: error: --by: found x, wants one of step, minutes\n",
    )


def test_the_attention_drawn_is_that_of_teacher_forcing(tiny_run: Path) -> None:
    translator = mtkit.load(tiny_run)
    found = attention_of(translator, "four nine one", "4 9 1")
    tokenizer = translator.tokenizer
    source, target = tokenizer.encode_source(["four nine one"]), tokenizer.encode_target(["4 9 1"])
    batch = padded_batch(ragged(source), ragged(target))
    with torch.inference_mode():
        _, state = translator.model.decode(batch.target, translator.model.encode(batch.source, watch=True))
    [layer] = found.weights
    assert np.array_equal(layer, state.attention[0][0].numpy())
    assert layer.shape == (4, len(target[0]) + 1, len(source[0]) + 1)
    assert np.allclose(layer.sum(-1), 1, atol=1e-5)
    assert "".join(found.source) == "▁four▁nine▁one</s>"
    assert "".join(found.target) == "▁4▁9▁1</s>"
    own = attention_of(translator, "four nine one")
    [translation] = translator.translate(["four nine one"])
    assert np.array_equal(own.weights[0], attention_of(translator, "four nine one", translation).weights[0])


def test_layers_heads_and_their_mean_are_chosen_by_number() -> None:
    chance = np.random.default_rng(1)
    weights = [chance.random((3, 2, 5), dtype=np.float32) for _ in range(2)]
    attention = Attention(list("abcde"), list("xy"), weights)
    grid = attention.of(None, None, mean=False)
    assert [title for title, _ in grid] == [f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2, 3)]
    assert all(np.array_equal(picture, weights[number // 3][number % 3]) for number, (_, picture) in enumerate(grid))
    [(title, picture)] = attention.of(2, 3, mean=False)
    assert title == "layer 2, head 3"
    assert np.array_equal(picture, weights[1][2])
    [(title, picture)] = attention.of(1, None, mean=True)
    assert title == "layer 1, mean"
    assert np.allclose(picture, (weights[0][0] + weights[0][1] + weights[0][2]) / 3)
    with pytest.raises(MtkitError, match="--layer: found 3, but there are 2"):
        attention.of(3, None, mean=False)
    with pytest.raises(MtkitError, match="--head: found 4, but there are 3"):
        attention.of(None, 4, mean=False)


def test_attention_is_drawn_for_every_layer_and_head_or_for_one(plot: Plot, tiny_run: Path, tmp_path: Path) -> None:
    for name, options in (
        ("attention.png", ["--layer", "1", "--head", "2"]),
        ("attention.svg", ["--mean"]),
        ("attention.svg", ["--target", "4 9", "--head", "1"]),
        ("attention.svg", []),
    ):
        given = ("attention", tiny_run, "--source", "four nine", *options, "-o", tmp_path / name)
        assert plot(*given) == (0, "")
        assert_is_picture(tmp_path / name)
    assert {"layer 1, head 1", "layer 1, head 4", "</s>"} <= text_of(tmp_path / "attention.svg")


class Unwatched(TranslationModel):
    """A model that has nothing to watch."""

    def encode(self, source: Rows, watch: bool = False) -> State:
        return super().encode(source)


def test_a_model_without_attention_and_a_sentence_too_long_are_told(tiny_run: Path, corpus_files: CorpusFiles) -> None:
    translator = mtkit.load(tiny_run)
    model = translator.model
    translator.model = Unwatched(model.encoder, model.decoder, model.limits)
    with pytest.raises(MtkitError, match="a model of architecture transformer has no attention to draw"):
        attention_of(translator, "one", "1")
    learned = config_with(toy_settings(corpus_files, tiny_run), model={"positions": "learned", "max_positions": 30})
    translator.model = new_model(learned.model, translator.tokenizer.source_vocab_size, 400, seed=1)
    with pytest.raises(MtkitError, match=r"the source has \d+ pieces; the model takes at most 29"):
        attention_of(translator, "one two three four " * 20, "1")


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_text_of_any_script_is_drawn_without_noise(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(3)
    source = ["▁今天", "天气", "<0xE4>", "हिन्दी", "עברית", "العربية", "한국어", "🙂", "$x_1^2$", "</s>"]
    weights = np.array([[[chance.random() for _ in source]] * 2], dtype=np.float32)
    attention = Attention(source, ["▁a", "</s>"], [weights])
    plot_attention(attention, attention.of(None, None, mean=False), 1, tmp_path / name)
    assert_is_picture(tmp_path / name)
    error = capfd.readouterr().err
    assert len(error.splitlines()) <= 1
    assert not error or error.startswith("mtkit: warning: no installed font has ")
    if name == "a.svg":
        assert set(source) <= text_of(tmp_path / name)


def test_fonts_are_asked_for_only_where_the_main_one_has_no_glyph(capfd: pytest.CaptureFixture[str]) -> None:
    assert fonts_for(set("Größe ελ мир ▁")) == []
    assert capfd.readouterr().err == ""
    assert fonts_for({"\U000e0fff"}) == []  # no character, and not printable
    fonts_for({"\u4eca"})
    told = capfd.readouterr().err
    assert told == "" or "\u4eca, drawn as boxes" in told


def test_no_two_curves_of_sixteen_look_alike() -> None:
    looks = [tuple(curve_style(number).values()) for number in range(2 * len(COLOURS))]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("schedule", "-o", "a.jpg"), "--output: found a.jpg, wants a file that ends in .png or .svg"),
        (("schedule", "-o", "no/a.png"), "--output: no: no such directory"),
        (("schedule", "-o", "a.png"), "there is nothing to draw; name a CONFIG, or give --setting such as 512:4000"),
        (
            ("schedule", "--setting", "1:1", "--steps", "0", "-o", "a.png"),
            "--steps: found 0, wants a whole number, at least 1",
        ),
        (
            ("attention", "m", "--source", "x", "--mean", "--head", "1", "-o", "a.png"),
            "--mean is over the heads; leave out --head",
        ),
        (
            ("attention", "m", "--source", "x", "--layer", "x", "-o", "a.png"),
            "--layer: found x, wants a whole number, at least 1",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(
    plot: Plot, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plot(*arguments) == (1, f"mtkit: error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(plot: Plot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as Python has it where nothing is installed
    message = "mtkit: error: pictures need matplotlib; install it with: pip install 'mtkit[plot]'\n"
    assert plot("schedule", "--setting", "1:1", "-o", tmp_path / "a.png") == (1, message)


@pytest.mark.parametrize(
    ("names", "columns"),
    [(["run"] * 4, 4), (["run"] * 9, 4), (["multi30k-en-de-transformer"] * 4, 3), (["x" * 99] * 3, 1)],
)
def test_names_of_curves_lie_on_the_sheet(names: list[str], columns: int) -> None:
    with style():
        figure = new_figure(10, 7)
        axes = figure.subplots()
        for name in names:
            axes.plot([0, 1], label=name)
        legend = legend_below(figure, *axes.get_legend_handles_labels())
        figure.draw_without_rendering()
        extent = legend.get_window_extent()
    assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width
    assert 0 <= extent.y0 < extent.y1 <= figure.bbox.height
    assert figure.legends == [legend]
    assert legend._ncols == columns


@pytest.mark.filterwarnings("ignore:.*reached the maximum length")  # of a model that has learnt little
@pytest.mark.parametrize("command", ["schedule", "positions", "training", "attention"])
def test_help_begins_with_a_verb_and_ends_with_an_example_that_works(
    plot: Plot,
    command: str,
    tiny_run: Path,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["mtkit", "plot", command, "--help"])
    with pytest.raises(SystemExit):
        main()
    lines = capfd.readouterr().out.splitlines()
    assert lines[2].startswith("  Draw ")
    assert len(lines) <= 40
    assert lines[-2] == "  Example:"
    for folder, name, real in (("runs", "demo", tiny_run), ("configs", "demo.yaml", config_file)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).symlink_to(real)
    monkeypatch.chdir(tmp_path)
    program, plot_, *arguments = shlex.split(lines[-1])
    assert (program, plot_, arguments[0]) == ("mtkit", "plot", command)
    assert plot(*arguments) == (0, "")
    assert_is_picture(tmp_path / arguments[-1])
