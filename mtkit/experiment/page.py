"""Shows the results of experiments, as a page and as text; makes puzzles.

Every number on a page links to its origin: a training run, or a board (a check without training, see
mtkit/experiment/boards.py). A puzzle, made by `mtkit experiment puzzle`, is a training run with one fault or none; the
reader is to find out which.
"""

import math
import random
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtkit.bundle.bundle import open_bundle
from mtkit.config.load import Changes, config_from_data
from mtkit.config.settings import Config
from mtkit.errors import ConfigError, MtkitError, counted, duration
from mtkit.evaluation.bench import machine_facts
from mtkit.evaluation.evaluate import read_test_set
from mtkit.evaluation.page import (
    Bar,
    Cell,
    Content,
    Curve,
    Html,
    bar_chart,
    contents,
    element,
    folded,
    joined,
    line_chart,
    note,
    number,
    page,
    require_page,
    section,
    table,
    weight_map,
    write_page,
)
from mtkit.evaluation.plot import History, attention_of, read_log, series
from mtkit.experiment.measures import (
    BOARD,
    CLAIM_HOLDS,
    CONTRADICTED,
    FAILS,
    HOLDS,
    HOLDS_IF,
    INVALID,
    MEASURES,
    NOISE,
    NOT_HERE,
    NOT_RUN,
    NOT_SHOWN,
    Estimate,
    Finding,
    MissingError,
    Reference,
    Verdict,
    estimate,
    parse,
)
from mtkit.experiment.run import (
    DEMO,
    DIVERGED,
    Card,
    Lab,
    Training,
    differing_yaml,
    merged,
    read_predictions,
    split_measure,
)
from mtkit.files import replaced_directory
from mtkit.models.registry import pick_device
from mtkit.pipeline import run_train
from mtkit.preparation.sources import test_sets, training_corpora
from mtkit.text.parallel import read_corpus
from mtkit.translation.scores import corpus_scores
from mtkit.translation.translator import Translator, load_bundle

# A sign before a verdict, so that colour is not needed to tell them apart.
SIGNS = {CLAIM_HOLDS: "✓", HOLDS_IF: "✓", CONTRADICTED: "✗", NOT_SHOWN: "~", INVALID: "!"}
OUTCOMES = {HOLDS: "✓ holds", NOISE: "~ within noise", FAILS: "✗ does not hold"}

STYLE = """
.verdict { font-weight: 600; font-size: 1.05rem; } .claim { font-size: 1.1rem; }
td a { white-space: nowrap; } .stacks a { white-space: normal; } li { max-width: 46rem; }
@media print { section ~ section { break-before: page; } section section { break-before: auto; } }
"""


def write_report(cards: Sequence[Card], lab: Lab, folder: Path, output: Path) -> None:
    """Write the page on these experiments to `output`; raises MtkitError if a page cannot be written there.

    `folder` is a folder of experiment files, or a single file; commands on the page name it.
    """
    require_page(output, "experiment report")
    write_page(output, report_page(cards, lab, folder))


def report_page(cards: Sequence[Card], lab: Lab, folder: Path) -> str:
    """Returns the page on these experiments as HTML; commands on the page name `folder`, which has the files."""
    verdicts = {card.name: lab.verdict(card) for card in cards}
    links = [("claims", "Claims"), *((card.name, _title(card)) for card in cards), ("runs", "Runs")]
    sections = [_card_section(card, verdicts[card.name], lab, folder) for card in cards]
    return page(
        "Claims and experiments",
        contents(links),
        _claims(cards, verdicts, lab),
        *sections,
        _runs(cards, lab),
        command="experiment report",
        style=STYLE,
    )


def _title(card: Card) -> str:
    return f"{card.short} {card.file.experiment}" if card.short != card.name else card.file.experiment


# The table of claims.


def _claims(cards: Sequence[Card], verdicts: dict[str, Verdict], lab: Lab) -> Html:
    rows: list[list[Cell]] = [
        [
            element("a", _title(card), href=f"#{card.name}"),
            card.file.claim,
            _signed(verdicts[card.name]),
        ]
        for card in cards
    ]
    choice = lab.choice
    return section(
        "Claims",
        note(
            f"Size {choice.size}, {counted(choice.seeds, 'seed')}, data {choice.data}. A verdict is computed from the "
            "predictions and the conditions of validity of an experiment: a claim holds if every prediction holds by "
            "more than noise, and is contradicted if one without a condition is false by more than noise. A figure "
            "links to its run."
        ),
        table(("experiment", "claim", "verdict"), rows, "Claims and verdicts", hidden_caption=True, stacks=True),
    )


def _signed(verdict: Verdict) -> str:
    return f"{SIGNS.get(verdict.kind, '·')} {verdict.text}"


# An experiment.


def _card_section(card: Card, verdict: Verdict, lab: Lab, folder: Path) -> Html:
    file = card.file
    return section(
        _title(card),
        element("p", file.claim, class_="claim"),
        element("p", f"Verdict: {_signed(verdict)}", class_="verdict"),
        element("h3", "Predictions"),
        table(
            ("prediction", "if", "figures", "outcome"), _prediction_rows(card, verdict, lab), "Predictions", True, True
        ),
        _readers(card, lab),
        *_differences(card, lab),
        *_figures(card, lab),
        _picture(card, lab),
        *_boards(card, lab),
        *_conditions(verdict, card, lab),
        *_texts(card),
        element("h3", "Again"),
        element("pre", command_of(card, lab, folder)),
        id_=card.name,
    )


def _prediction_rows(card: Card, verdict: Verdict, lab: Lab) -> list[list[Cell]]:
    return [
        [
            element("code", finding.text),
            finding.condition or "",
            _finding_cell(finding, card, lab),
            OUTCOMES.get(finding.state, finding.state),
        ]
        for finding in verdict.predictions
    ]


def _finding_figures(finding: Finding) -> str:
    """Returns the two sides of a single comparison, and their difference, as text; "" for any other finding."""
    if finding.sides is None or finding.margin is None:
        return ""
    left, right = (_estimate_text(side) for side in finding.sides)
    if finding.margin.noise or finding.sides[0].noise:
        return f"{left} against {right}; difference {_estimate_text(finding.margin)}"
    return f"{left} against {right}"


def _finding_cell(finding: Finding, card: Card, lab: Lab) -> Html:
    """Returns the figures of a prediction or condition, with links to the runs and boards that gave them.

    If the finding is not on a single comparison, only the links are returned.
    """
    figures, links = _finding_figures(finding), _sources(finding, card, lab)
    if not links:
        return joined(figures)
    return joined(figures, " (from ", links, ")") if figures else joined("from ", links)


def _sources(finding: Finding, card: Card, lab: Lab) -> list[Html]:
    """Returns links to the runs and boards that gave the figures of a finding; [] if it has no figures."""
    if finding.state in (NOT_RUN, NOT_HERE):
        return []
    references = parse(finding.text).references
    measured = [reference for reference in references if reference.measure != BOARD]
    num_seeds = min((len(lab.values(card, reference)) for reference in measured), default=1)
    boards = dict.fromkeys(reference.variant for reference in references if reference.measure == BOARD)
    variants = dict.fromkeys(reference.variant for reference in measured)
    links = [*map(_board_link, boards), *(_run_links(card, lab, name, num_seeds, name) for name in variants)]
    return _listed(links)


def _board_link(name: str) -> Html:
    return element("a", name, href=f"#board-{name}")


def _run_links(card: Card, lab: Lab, variant: str, num_seeds: int, text: str) -> Html:
    """Returns `text` as a link to the run of the first seed, then a link for each further seed."""
    first, *others = (lab.training(card, variant, seed).key for seed in range(1, num_seeds + 1))
    more = [joined(" ", element("a", f"seed {n}", href=f"#run-{key}")) for n, key in enumerate(others, start=2)]
    return joined(element("a", text, href=f"#run-{first}"), more)


def _listed(links: Sequence[Html]) -> list[Html]:
    """Returns the links with a comma before each but the first."""
    return [joined(", " if place else None, link) for place, link in enumerate(links)]


def _estimate_text(found: Estimate, digits: int | None = None) -> str:
    """Returns an estimate as text, such as 12.31 ± 0.45, with `digits` decimals; `None` means rounded by `number`."""
    if math.isnan(found.value):
        return "not a number"
    if math.isinf(found.value):
        return "∞" if found.value > 0 else "-∞"
    if digits is None:
        return number(found.value) + (f" ± {number(found.noise)}" if found.noise else "")
    return f"{found.value:,.{digits}f}" + (f" ± {found.noise:,.{digits}f}" if found.noise else "")


def _readers(card: Card, lab: Lab) -> Html | None:
    """Returns the predictions that readers wrote down before there were results; `None` if there are none."""
    found = read_predictions(card, lab.results)
    if not found:
        return None
    items = [element("li", f"{each['text']} ({each['date']})") for each in found]
    return joined(element("p", "What readers expected:"), element("ul", items))


def _differences(card: Card, lab: Lab) -> Iterator[Html]:
    """Yields, as YAML, the settings that each variant and control changes, and then the settings of the base.

    All variants start from the base. Yields nothing if there are no variants; leaves out the base if no variant is
    meant to run at the chosen size.
    """
    if not card.variants:
        return
    yield element("h3", "What differs")
    there = card.runs_at(lab.choice.size)
    text = "\n".join(
        f"# {'variant' if name in card.file.variants else 'control'}: {name}"
        f"{'' if name in there else ' (not at this size)'}\n{differing_yaml(changes)}"
        for name, changes in card.variants.items()
    )
    yield element("pre", text)
    if there:
        settings = differing_yaml(card.settings(lab.choice.size, lab.choice.data))
        yield folded(f"What they start from: {card.file.base}, size {lab.choice.size}", element("pre", settings))


def _columns(card: Card) -> list[tuple[str, str, str | None]]:
    """Returns the columns of the table of figures as (title, measure, subset), without duplicates.

    Examples are ("bleu, short", "bleu", "short") and ("bleu", "bleu", None).
    """
    found: list[tuple[str, str, str | None]] = []
    for text in (*card.file.measure, *card.measures):
        name, how = split_measure(text)
        if how is None:
            found.append((name.replace("_", " "), name, None))
        else:
            found += [(f"{name.replace('_', ' ')}, {subset}", name, subset) for subset in MEASURES[name].by[how]]
    return list(dict.fromkeys(found))


MOST_COLUMNS = 6  # columns of measures that fit on paper; if there are more, measures become rows


def _figures(card: Card, lab: Lab) -> Iterator[Html]:
    """Yields the table of all measures of all variants and controls, with its heading and notes.

    Each row is a variant and each column a measure, or the other way round if there are more than MOST_COLUMNS measures
    and more measures than variants.
    """
    if not card.variants:
        return
    columns = _columns(card)
    found: dict[str, list[Html | str]] = {}
    for name in card.runs_at(lab.choice.size):
        cells = [_linked(card, lab, Reference(measure, name, subset)) for _, measure, subset in columns]
        if any(cells):
            found[name] = cells
    yield element("h3", "Figures")
    if not found:
        yield note("There are no runs yet.")
        return
    titles = [title for title, _, _ in columns]
    head, side, inside = titles, list(found), list(found.values())
    if len(titles) > max(MOST_COLUMNS, len(found)):
        head, side, inside = side, titles, [list(cells) for cells in zip(*inside, strict=True)]
    rows = [[name, *cells] for name, cells in zip(side, inside, strict=True)]
    yield table(("", *head), rows, f"Measures of {_title(card)}", hidden_caption=True)
    counts = dict.fromkeys(
        f"{measure.replace('_', ' ')} of {counted(size, 'sentence' if measure != 'tokens_per_second' else 'line')}"
        for _, measure, _ in columns
        if (size := _num_sentences(card, lab, measure)) and size > 1
    )
    whats = dict.fromkeys(f"{name.replace('_', ' ')}: {MEASURES[name].what}" for _, name, _ in columns)
    yield note(
        "± is half the width of a 95 % interval, from resampled sentences"
        f"{' and seeds' if lab.choice.seeds > 1 else ' of one training, so it does not tell what another seed gives'}. "
        f"n: {'; '.join(counts) or 'one run each'}."
    )
    yield note("; ".join(whats), ".")


def _linked(card: Card, lab: Lab, reference: Reference) -> Html | str:
    """Returns a measure as text with links to the runs of its seeds; "" if it was not measured."""
    found = _estimate_of(card, lab, reference)
    if found is None:
        return ""
    text = _estimate_text(found, MEASURES[reference.measure].digits)
    return _run_links(card, lab, reference.variant, found.num_seeds, text)


def _estimate_of(card: Card, lab: Lab, reference: Reference) -> Estimate | None:
    try:
        return estimate(lab.values(card, reference))
    except MissingError:
        return None


def _num_sentences(card: Card, lab: Lab, measure: str) -> int:
    """Returns how many sentences a measure is taken over; 0 if it was not measured."""
    for name in card.runs_at(lab.choice.size):
        training = lab.training(card, name, 1)
        record = lab.record(training, MEASURES[measure].group) if lab.is_done(training) else None
        if record and (rows := record["sets"].get(MEASURES[measure].rows)):
            return len(rows)
    return 0


def _boards(card: Card, lab: Lab) -> Iterator[Html]:
    """Yields, for each board that the experiment names, a heading and a table of its results."""
    for name in card.file.board:
        results = lab.board(name)
        yield element("h3", f"Without training: {name}")
        if results is None:
            yield note("Not run yet.")
            continue
        rows: list[list[Cell]] = [
            [key, element("a", _estimate_text(Estimate(value, 0.0)), href=f"#board-{name}")]
            for key, value in results.items()
        ]
        told = table(("", "result"), rows, name, hidden_caption=True)
        yield folded(f"{counted(len(rows), 'result')} of {name}", told) if len(rows) > 12 else told


def _conditions(verdict: Verdict, card: Card, lab: Lab) -> Iterator[Html]:
    """Yields a table of the conditions of validity, with whether each one passed."""
    if not verdict.conditions:
        return
    yield element("h3", "Is the experiment valid?")
    rows: list[list[Cell]] = [
        [
            element("code", finding.text),
            _finding_cell(finding, card, lab),
            _passed(finding),
        ]
        for finding in verdict.conditions
    ]
    yield table(("condition", "figures", "outcome"), rows, "Conditions of validity", hidden_caption=True, stacks=True)


def _passed(finding: Finding) -> str:
    if finding.state in (NOT_RUN, NOT_HERE):
        return finding.state
    return "✓ pass" if finding.is_true else "✗ fail"


def _texts(card: Card) -> Iterator[Html]:
    """Yields the texts in the file of a card: how its claim could be wrong, what is known, references and exercises."""
    file = card.file
    if file.wrong:
        yield joined(element("h3", "How this could be wrong"), element("p", file.wrong))
    if file.known:
        yield joined(element("h3", "What is known today"), element("p", file.known))
    if file.references:
        yield joined(element("h3", "References"), element("ul", [element("li", each) for each in file.references]))
    if file.exercises:
        yield joined(element("h3", "Exercises"), element("ol", [element("li", each) for each in file.exercises]))


def command_of(card: Card, lab: Lab, folder: Path) -> str:
    """Returns the shell command that runs the experiment again with the same size, seeds and data."""
    words = ["mtkit", "experiment", "run", str(folder)]
    if folder.is_dir():
        words += ["--only", card.name]
    words += ["--size", lab.choice.size]
    words += ["--seeds", str(lab.choice.seeds)] if lab.choice.seeds > 1 else []
    words += ["--data", lab.choice.data] if lab.choice.data != DEMO else []
    words += ["--runs", str(lab.results)]
    return shlex.join(words)


# Pictures.


def _picture(card: Card, lab: Lab) -> Html | None:
    picture = card.file.picture
    if picture is None or picture.kind == "table":
        return None
    if picture.y in card.file.board:
        results = lab.board(picture.y)
        chart = _board_picture(picture.y, picture.kind, results) if results else None
        return _with_sources(chart, [_board_link(picture.y)])
    if picture.kind == "bars":
        drawn, chart = _bars(card, lab, picture.y)
    elif picture.x == "update":
        drawn, chart = _curves(card, lab, picture.y)
    else:
        drawn, chart = _lines_over_subsets(card, lab, picture.y, picture.x)
    return _with_sources(chart, [_run_links(card, lab, name, num_seeds, name) for name, num_seeds in drawn.items()])


def _with_sources(chart: Html | None, links: Sequence[Html]) -> Html | None:
    """Returns a chart with links below it to the runs and boards that it shows; `None` without a chart."""
    return joined(chart, note("Drawn from ", _listed(links), ".")) if chart else None


Drawn = dict[str, int]  # the variants in a picture, with the number of seeds shown of each


def _board_picture(name: str, kind: str, results: dict[str, float]) -> Html | None:
    """Returns a chart of the results of a board, as bars or lines; "" if there is nothing to draw.

    If `kind` is "bars", each result that is finite and not negative is a bar. Otherwise, each result whose name ends
    with a comma and a number is a point: the number is its x value, and the text before the comma names its line. Other
    results are left out.
    """
    if kind == "bars":
        found = {key: value for key, value in results.items() if math.isfinite(value) and value >= 0}
        return bar_chart(name, [("", [Bar(key, value, number(value)) for key, value in found.items()])])
    curves: dict[str, list[tuple[float, float]]] = {}
    for key, value in results.items():
        label, _, x = key.rpartition(", ")
        try:
            place = float(x)
        except ValueError:
            continue
        curves.setdefault(label or name, []).append((place, value))
    return line_chart(name, [Curve(label, sorted(points), True) for label, points in curves.items()], "")


def _bars(card: Card, lab: Lab, measure: str) -> tuple[Drawn, Html | None]:
    bars: list[Bar] = []
    drawn: Drawn = {}
    for style, name in enumerate(card.runs_at(lab.choice.size)):
        found = _estimate_of(card, lab, Reference(measure, name))
        if found is not None and math.isfinite(found.value) and found.value >= 0:
            text = _estimate_text(Estimate(found.value, 0.0), MEASURES[measure].digits)
            noise = found.noise if 0 < found.noise < math.inf else None
            bars.append(Bar(name, found.value, text, noise, style))
            drawn[name] = found.num_seeds
    return drawn, bar_chart(f"{MEASURES[measure].what}, with 95 % intervals", [("", bars)]) if bars else None


# For each measure that training logs have, the kind of event and the key in it.
LOGGED = {
    "bleu": ("validation", "bleu"),
    "perplexity": ("validation", "perplexity"),
    "nll": ("validation", "nll"),
    "loss": ("train", "nll"),
    "training_loss": ("train", "nll"),
    "tokens_per_second": ("train", "tokens_per_second"),
}


def _curves(card: Card, lab: Lab, measure: str) -> tuple[Drawn, Html | None]:
    """Returns how many seeds of each variant are drawn, and a chart of a measure in the course of training.

    The chart has a curve for each variant, with the values in the log of its training. It has only the first seed, so
    each number of seeds is 1. Trainings that have not ended are left out. If training logs do not have the measure, the
    chart shows the validation loss instead. The chart is `None` if there is nothing to draw.
    """
    event, key = LOGGED.get(measure, ("validation", "nll"))
    curves = []
    for name in card.runs_at(lab.choice.size):
        training = lab.training(card, name, 1)
        points = _logged(training, event, key) if lab.is_done(training) else []
        if points:
            curves.append(Curve(name, points, event == "validation"))
    what = {"validation": "validation", "train": "training"}[event]
    drawn = dict.fromkeys((curve.label for curve in curves), 1)
    return drawn, line_chart(f"{key.replace('_', ' ')} of {what}", curves, "update") if curves else None


def _logged(training: Training, event: str, key: str) -> list[tuple[float, float]]:
    run = training.config.run_path
    if not (run / "log.jsonl").exists():
        return []
    return list(zip(*series(History("", read_log(run)), event, key), strict=True))


def _lines_over_subsets(card: Card, lab: Lab, measure: str, how: str) -> tuple[Drawn, Html | None]:
    """Returns how many seeds of each variant a chart shows, and the chart: a measure on subsets of the test sentences.

    `how` is a key of `Measure.by`, such as "length", which has the subsets "short", "medium" and "long". The chart has
    a line for each variant; it is `None` if there is nothing to show.
    """
    names = list(MEASURES[measure].by[how])
    curves = []
    drawn: Drawn = {}
    for variant in card.runs_at(lab.choice.size):
        points = []
        for place, name in enumerate(names, start=1):
            found = _estimate_of(card, lab, Reference(measure, variant, name))
            if found is not None and math.isfinite(found.value):
                points.append((float(place), found.value))
                drawn[variant] = found.num_seeds
        if points:
            curves.append(Curve(variant, points, True))
    label = ", ".join(f"{place}: {name}" for place, name in enumerate(names, start=1))
    return drawn, line_chart(MEASURES[measure].what, curves, label) if curves else None


# The appendix of runs.


def _runs(cards: Sequence[Card], lab: Lab) -> Html:
    """Returns the section of the page on the finished trainings of the experiments, and on boards.

    It has the machine and the total time of all trainings; then, for each training, its run directory, its cost, the
    variants that use it, and the curve of its validation loss; then the file with the results of each board.
    """
    used: dict[str, tuple[Training, list[str]]] = {}
    for card in cards:
        for seed in range(1, lab.choice.seeds + 1):
            for name, training in lab.trainings(card, seed).items():
                if lab.is_done(training):
                    told = f"{card.name}, {name}" + (f", seed {seed}" if lab.choice.seeds > 1 else "")
                    used.setdefault(training.key, (training, []))[1].append(told)
    parts: list[Content] = []
    total = 0.0
    for key, (training, uses) in used.items():
        facts, minutes = _run_facts(training, lab)
        total += minutes
        curve = line_chart(f"Validation loss of {key}", [Curve(key, _logged(training, "validation", "nll"))], "update")
        parts.append(
            element(
                "section",
                element("h3", f"Run {key}"),
                table(("", ""), [*facts, ["used by", "; ".join(uses)]], f"Run {key}", hidden_caption=True),
                folded("Curve", curve) if curve else None,
                id=f"run-{key}",
            )
        )
    for name in dict.fromkeys(name for card in cards for name in card.file.board):
        if lab.board(name) is not None:
            text = f"Board {name}: results in boards/{name}.json of the folder of results."
            parts.append(element("section", element("h3", f"Board {name}"), element("p", text), id=f"board-{name}"))
    machine = machine_facts(pick_device("auto"))
    about: list[list[Cell]] = [
        [name, str(machine[name])] for name in ("mtkit", "torch", "python", "processor", "threads", "device")
    ]
    return section(
        "Runs",
        table(("", ""), about, "Where this page was made"),
        element("p", f"{counted(len(used), 'training')}, {duration(60 * total)} of training in all."),
        *parts,
    )


def _run_facts(training: Training, lab: Lab) -> tuple[list[list[Cell]], float]:
    """Returns table rows (name, value) on a run, and its minutes of training."""
    record = lab.record(training, "training")
    row = record["sets"]["all"][0] if record and record["sets"].get("all") else [None] * 6
    parameters, minutes, updates = row[:3]
    run = training.config.run_path
    diverged = (run / DIVERGED).exists()
    facts: list[list[Cell]] = [
        ["settings and data", training.key],
        ["run directory", f"runs/{training.key}"],
        ["log", f"runs/{training.key}/log.jsonl"],
        ["parameters", "" if parameters is None else number(parameters)],
        ["updates", "" if updates is None else number(updates)],
        ["minutes", "" if minutes is None else f"{minutes:.2f}"],
        ["seed", str(training.config.training.seed)],
        ["ended", "diverged" if diverged else "well"],
    ]
    return facts, minutes or 0.0


# On the terminal.


def card_text(card: Card, lab: Lab) -> str:
    """Returns an experiment and its results as text for the terminal."""
    file, verdict = card.file, lab.verdict(card)
    lines = [f"{card.name}: {file.claim}", f"verdict at size {lab.choice.size}: {verdict.text}", ""]
    there = card.runs_at(lab.choice.size)
    for name, changes in card.variants.items():
        kind = "variant" if name in file.variants else "control"
        training = lab.training(card, name, 1) if name in there else None
        state = "not at this size" if training is None else "done" if lab.is_done(training) else "not run"
        lines.append(f"{kind} {name} ({state}{f', run {training.key}' if training else ''})")
        lines += [f"    {line}" for line in differing_yaml(changes).splitlines()]
    for finding in verdict.predictions:
        condition = f"if {finding.condition}: " if finding.condition else ""
        lines.append(f"prediction: {condition}{finding.text}: {finding.state}{_told(finding)}")
    for finding in verdict.conditions:
        lines.append(f"valid if: {finding.text}: {_passed(finding).lstrip('✓✗ ')}{_told(finding)}")
    for each in read_predictions(card, lab.results):
        lines.append(f"a reader, {each['date']}: {each['text']}")
    for title, text in (("how it could be wrong", file.wrong), ("known today", file.known)):
        lines += [f"{title}: {text}"] if text else []
    lines += [f"reference: {each}" for each in file.references]
    lines += [f"exercise {place}: {each}" for place, each in enumerate(file.exercises, start=1)]
    return "\n".join(lines) + "\n"


def _told(finding: Finding) -> str:
    text = _finding_figures(finding)
    return f" ({text})" if text else ""


# The faults.


@dataclass(frozen=True)
class Fault:
    """A fault that the run of a puzzle may have; readers are to find out which one it is."""

    changes: Changes  # settings that cause it
    told: str  # what it is and where it shows, for readers who found it
    hint: str  # for readers who did not find it
    turns_source: bool = False  # whether each target is trained with the source of the previous pair


FAULTS: dict[str, Fault] = {
    "no fault": Fault(
        {}, "Nothing is wrong: this is how a training of this size looks.", "Is there anything that cannot be right?"
    ),
    "no mask": Fault(
        {"model": {"ablate": ["causal_mask"]}},
        "The decoder saw later tokens: the loss falls far below what is possible, and the translations are bad, since "
        "there is nothing to copy from when the model translates.",
        "Compare the loss with the translations.",
    ),
    "no shift": Fault(
        {"model": {"ablate": ["shift"]}},
        "The decoder read the token that it should predict: the loss is near 0 from the start, and translations are "
        "worthless.",
        "Compare the loss with the translations, and look at how soon it falls.",
    ),
    "no positions": Fault(
        {"model": {"encoder_positions": "none"}},
        "The encoder does not know the order of the words: the words of the translations are often right and in the "
        "wrong places.",
        "Which words are there, and where do they stand?",
    ),
    "wrong source": Fault(
        {},
        "Each target was trained with the source of another pair: the translations are good sentences that have "
        "nothing to do with their sources, and attention has no pattern.",
        "Read the translations beside their sources, not beside the references.",
        turns_source=True,
    ),
    "no residual": Fault(
        {"model": {"ablate": ["residual"]}},
        "There are no residual connections: positions become alike from layer to layer, and training hardly moves.",
        "What does the loss stay at, and do the rows of the attention differ?",
    ),
    "too much smoothing": Fault(
        {"training": {"label_smoothing": 0.8}},
        "Most of each label is spread over the whole vocabulary: the loss stays high because it is not allowed to "
        "fall, while translations are better than it suggests.",
        "Compare the loss in training with the loss without smoothing.",
    ),
}


def fault_of(seed: int) -> str:
    """Returns the name of the fault of a puzzle; the seed alone decides."""
    return random.Random(f"puzzle {seed}").choice(list(FAULTS))


def answered(seed: int, answer: str) -> str:
    """Returns the reply to a reader's answer to a puzzle; raises MtkitError if the answer is not a key of FAULTS."""
    if answer not in FAULTS:
        raise MtkitError(f"--answer: found {answer}, wants one of {', '.join(FAULTS)}")
    name = fault_of(seed)
    if answer == name:
        return f"Yes, {name}. {FAULTS[name].told}"
    return f"No, it is not that. {FAULTS[name].hint}"


# The run.


def puzzle(cards: Sequence[Card], seed: int, results: Path, output: Path, data: str = DEMO) -> None:
    """Trains or resumes a run with a hidden fault or none, as `seed` chooses, and writes its page to `output`.

    The run has the base settings, at size toy, of the first experiment that has this size. Raises MtkitError if no
    experiment has it, or if the settings have no test set.
    """
    require_page(output, "experiment puzzle")
    fault = FAULTS[fault_of(seed)]
    config = _config(cards, fault, data, results / "puzzles" / f"seed-{seed}")
    run_train(config)
    write_page(output, _page(config, seed))


def _config(cards: Sequence[Card], fault: Fault, data: str, run: Path) -> Config:
    card = next((card for card in cards if "toy" in card.file.sizes), None)
    if card is None:
        raise ConfigError("no experiment has the size toy, of which a puzzle is made")
    if not (card.settings("toy", data).get("data") or {}).get("test"):
        raise ConfigError(f"{card.path}: data.test is missing; a puzzle wants a test set, whose translations it shows")
    settings = merged(card.settings("toy", data), {"run_dir": str(run), "name": "puzzle"})
    config = config_from_data(merged(settings, fault.changes), "puzzle")
    return _turned(config, run.with_name(f"{run.name}-text")) if fault.turns_source else config


def _turned(config: Config, folder: Path) -> Config:
    """Writes the training text to `folder`, each target with the source of the previous pair.

    Returns `config` with this text as its training text.
    """
    pairs = [pair for corpus in training_corpora(config) for pair in read_corpus(corpus)]
    sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    sources = sources[-1:] + sources[:-1]
    with replaced_directory(folder) as new:
        for name, lines in (("source", sources), ("target", targets)):
            text = "".join(f"{line}\n" for line in lines)
            (new / name).write_text(text, encoding="utf-8", newline="\n")
    corpus = config.data.train[0].model_copy(
        update={"source": (folder / "source").resolve(), "target": (folder / "target").resolve(), "tsv": None}
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"train": (corpus,)})})


# The page.

NUM_SENTENCES, NUM_MAPS = 12, 3
MOST_SCORED = 200  # sentences that are translated

PANELS = (
    ("train", "loss", "Training loss, with smoothing"),
    ("train", "nll", "Training loss without smoothing"),
    ("validation", "nll", "Validation loss without smoothing"),
    ("validation", "bleu", "Validation BLEU"),
    ("train", "gradient_norm", "Gradient norm"),
)


def _page(config: Config, seed: int) -> str:
    events = History("", [e for e in read_log(config.run_path) if e["event"] in ("train", "validation")])
    translator = load_bundle(open_bundle(config.run_path), [f"device={config.device}"])
    sources, references = read_test_set(next(iter(test_sets(config).values())))
    sources, [reference, *_] = sources[:MOST_SCORED], references
    lines = [line.text for line in translator.translate_lines(sources)]
    bleu = corpus_scores(lines, [reference[: len(lines)]], config.languages.target, ("bleu",))[0]
    charts = [
        line_chart(
            title, [Curve("", list(zip(*series(events, kind, key), strict=True)), kind == "validation")], "update"
        )
        for kind, key, title in PANELS
    ]
    rows = [[source, line, right] for source, line, right in zip(sources, lines, reference, strict=False)]
    return page(
        f"Puzzle {seed}",
        element("p", "This run may have one fault. Which is it? The pictures tell."),
        section("Training", element("div", charts, class_="charts")),
        section(
            "Translations",
            element("p", f"BLEU of {len(lines)} sentences: {bleu.score:.1f}."),
            table(("source", "translation", "reference"), rows[:NUM_SENTENCES], "Test sentences", stacks=True),
        ),
        section("Attention", element("div", _maps(translator, sources, reference), class_="maps"), _about_maps()),
        section(
            "Answers",
            element("ul", [element("li", name) for name in FAULTS]),
            element("p", "To check an answer:"),
            element("pre", f'mtkit experiment puzzle --seed {seed} --answer "no fault"'),
            note("The settings of the run name its fault, so do not look there first."),
        ),
        command="experiment puzzle",
    )


def _maps(translator: Translator, sources: Sequence[str], reference: Sequence[str]) -> list[Html]:
    """Returns maps of the attention to the first NUM_MAPS sources when the model predicts the reference translations.

    `reference` has a line for each source. On references, attention does not depend on how well the model translates.
    """
    maps = []
    for place, (source, target) in enumerate(zip(sources[:NUM_MAPS], reference, strict=False), start=1):
        found = attention_of(translator, source, target)
        maps.append(weight_map(f"Sentence {place}", found.target, found.source, found.weights[-1].mean(0).tolist()))
    return maps


def _about_maps() -> Html:
    return note(
        "Rows are tokens of the reference, columns tokens of the source; mean over the heads of the last layer."
    )
