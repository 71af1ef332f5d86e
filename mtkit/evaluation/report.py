"""`mtkit report`: a page on a run or a model, or on several side by side; and the diagnosis of `mtkit doctor`."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mtkit.bundle.bundle import Bundle, bundle_at, read_scores
from mtkit.bundle.info import changes_text, decoding_text, settings_of, weights_text
from mtkit.bundle.opening import open_model, tell
from mtkit.config.settings import setting_schema
from mtkit.errors import DataError, MtkitError, counted
from mtkit.evaluation.evaluate import SIGNIFICANT, ScoredSet, Scoring, System, read_test_set, score_set, translate_set
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
    page,
    require_page,
    section,
    table,
    weight_map,
    write_page,
)
from mtkit.evaluation.plot import History, attention_of, read_log, series
from mtkit.files import json_text
from mtkit.preparation.characters import KINDS, Diagnosis, Example
from mtkit.preparation.sources import SetFiles, local_test_sets
from mtkit.text.lines import read_lines
from mtkit.translation.scores import NUM_RESAMPLES, SignificanceTest, corpus_scores, sentence_scores
from mtkit.translation.translator import Translator, load_bundle

NUM_SENTENCES = 5  # number shown of the best, of the worst, and of those that differ most between two systems
SAME = 1e-6  # scores that differ by at most this are equal: scores.json is written with all digits
TEST: SignificanceTest = "bootstrap"


def report(models: Sequence[Path], output: Path, overrides: Sequence[str] = ()) -> None:
    """Write a page on the models; `overrides` are settings such as device=cpu.

    The test sets are those in the settings of the first model. Raises MtkitError if a model is missing or damaged, if a
    log is damaged, if the models differ in task or languages, or if there are more than eight of them.
    """
    require_page(output, "report")
    if len(models) > len(KEYS):
        raise MtkitError(f"found {len(models)} models, wants at most {len(KEYS)}")
    systems = [Reported.open(key, path, overrides) for key, path in zip(KEYS, models, strict=False)]
    tasks = {system.bundle.config.task for system in systems}
    if len(tasks) > 1:
        raise MtkitError("a translation model and a language model cannot be compared; report on each by itself")
    first, *others = (system.bundle.config.languages for system in systems)
    for path, languages in zip(models[1:], others, strict=True):
        if languages != first:
            raise MtkitError(
                f"{path}: translates {languages.source} to {languages.target}, but {models[0]} translates "
                f"{first.source} to {first.target}; report on each by itself"
            )
    write_page(output, report_page(systems))


KEYS = "ABCDEFGH"  # the names of systems in tables and charts


# What the page is about.


@dataclass(frozen=True)
class Reported:
    """A model that the page reports on, with the log of its run."""

    key: str
    path: Path
    bundle: Bundle
    events: list[dict[str, Any]]  # of log.jsonl; empty if `path` is not a run
    overrides: tuple[str, ...]

    @classmethod
    def open(cls, key: str, path: Path, overrides: Sequence[str]) -> "Reported":
        """Opens the model at `path`; if `path` is an unfinished run, prints which checkpoint is opened."""
        bundle = open_model(path)
        tell(bundle.storage)
        events = read_log(path) if (path / "log.jsonl").exists() else []
        return cls(key, path, bundle, events, tuple(overrides))

    @cached_property
    def translator(self) -> Translator:
        """The model, opened for translation when it is first needed."""
        return load_bundle(self.bundle, self.overrides)

    @property
    def training(self) -> dict[str, Any]:
        """The entry `training` of bundle.json; empty if there is none."""
        found: dict[str, Any] = self.bundle.description.get("training", {})
        return found

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The events that were logged when training started or resumed."""
        return [event for event in self.events if event.get("event") == "start"]

    def scores(self, test_set: str) -> dict[str, dict[str, Any]]:
        """The stored scores on a test set, as records of scores.json, by metric."""
        return {score["metric"]: score for score in read_scores(self.bundle) if score["test_set"] == test_set}

    def stored_lines(self, test_set: str) -> list[str] | None:
        """The translations that `mtkit run` has stored for a test set; `None` if there are none."""
        path = self.path / "translations" / f"{test_set}.txt"
        if bundle_at(self.path) in (None, self.path) or not path.is_file():
            return None
        return list(read_lines(path))


@dataclass(frozen=True)
class TestSet:
    """A test set, and its translations by each system."""

    name: str
    sources: list[str]
    references: list[list[str]]
    lines: dict[str, list[str]]  # translations, by the key of the system
    scores: dict[str, list[ScoredSet]]  # by the key of the system
    fault: str | None = None  # why the texts could not be read; only stored scores are then shown


def test_sets_of(systems: Sequence[Reported]) -> list[TestSet]:
    """Returns the test sets of the first system, translated and scored for all systems; [] for a language model.

    A test set whose files cannot be read has no texts and scores, but a `fault`, which says why.
    """
    config = systems[0].bundle.config
    if config.task == "language_model":
        return []
    found = []
    for name, test_set in config.data.test.items():
        alone = config.model_copy(update={"data": config.data.model_copy(update={"test": {name: test_set}})})
        try:
            files = local_test_sets(alone)[name]
            if files is None:
                raise DataError(f"{name}: a test set of sacreBLEU that is not downloaded; mtkit evaluate does that")
            sources, references = read_test_set(files)
        except DataError as error:
            found.append(TestSet(name, [], [], {}, {}, str(error)))
            continue
        lines = {system.key: _lines(system, name, files, sources, references) for system in systems}
        scores = {
            system.key: score_set(
                name,
                System(system.key, lines[system.key]),
                references,
                Scoring(config.languages, confidence=True),
            )
            for system in systems
        }
        found.append(TestSet(name, sources, references, lines, scores))
    return found


def _lines(system: Reported, name: str, files: SetFiles, sources: list[str], references: list[list[str]]) -> list[str]:
    """Returns the translations of a test set by a system, one for each source.

    The stored translations are returned on two conditions: there are as many as sources, and scoring them again gives
    the stored scores. Otherwise, the system translates the test set anew.
    """
    stored, scores = system.stored_lines(name), system.scores(name)
    if stored is not None and scores and len(stored) == len(sources):
        again = corpus_scores(stored, references, system.bundle.config.languages.target)
        known = {score.metric: score.score for score in again}
        if all(abs(known.get(metric, math.inf) - score["score"]) <= SAME for metric, score in scores.items()):
            return stored
    own = system.bundle.config.data.test.get(name)
    return translate_set(system.translator, f"{system.key}, {name}", sources, own.tag if own else files.tag)


# The page.


def report_page(systems: Sequence[Reported]) -> str:
    """Returns the page of `mtkit report` as HTML; missing translations and scores of the systems are made now."""
    sets = test_sets_of(systems)
    whole = [one for one in sets if one.fault is None]
    parts: list[tuple[str, Sequence[Content]]] = [
        ("Systems", [_systems(systems)]),
        ("Scores", list(_scores(systems, sets))),
        ("BLEU by length", [_by_length(systems, one) for one in whole]),
        ("Sentences", [part for one in whole for part in _sentences(systems, one)]),
        ("Attention", [part for one in whole[:1] for part in _attention(systems, one)]),
        ("Training", _training(systems)),
        ("Samples during training", _samples(systems)),
        ("Settings", [_settings(systems)]),
        ("Data", _data(systems)),
        ("Environment and command", _environment(systems)),
    ]
    sections = [section(title, *content) for title, content in parts if any(content)]
    names = [str(system.bundle.config.name) for system in systems]
    title = f"Report on {' and '.join(dict.fromkeys(names))}"
    links = [(title.lower().replace(" ", "-"), title) for title, content in parts if any(content)]
    return page(title, contents(links), *sections, command="report")


def _systems(systems: Sequence[Reported]) -> Html:
    """Returns a table of the main facts, a row for each fact and a column for each system."""
    facts = [_facts(system) for system in systems]
    rows = [[name, *(fact[name] for fact in facts)] for name in facts[0]]
    changed = [
        f"{system.key}: settings changed during training, {changes_text(system.training)}."
        for system in systems
        if changes_text(system.training)
    ]
    unfinished = [system.key for system in systems if not system.training.get("finished", True)]
    return joined(
        table(("", *(system.key for system in systems)), rows, "What is reported on"),
        [note(text) for text in changed],
        note(f"Training was not finished: {', '.join(unfinished)}.") if unfinished else None,
    )


def _facts(system: Reported) -> dict[str, Cell]:
    config, training = system.bundle.config, system.training
    steps = training.get("averaged_steps")
    return {
        "path": str(system.path),
        "name": config.name,
        "languages": f"{config.languages.source} to {config.languages.target}",
        "model": config.model.architecture,
        "parameters": system.bundle.description.get("num_parameters"),
        "updates": training.get("steps"),
        "minutes": training.get("minutes"),
        "best validation": _best_validation(system),
        "weights": weights_text(steps, config.training) if steps else None,
    }


def _best_validation(system: Reported) -> str | None:
    """Returns text on the best validation in the log, such as "bleu 38.71 at update 4,000"; `None` if there is none.

    The best validation is the one with the best value of the metric that selects checkpoints.
    """
    select_by = system.bundle.config.training.select_by
    key = "nll" if select_by == "loss" else select_by
    best = [event for event in system.events if event.get("event") == "validation" and event.get("best")]
    if not best or best[-1].get(key) is None:
        return None
    return f"{key} {best[-1][key]:.2f} at update {best[-1]['step']:,}"


def _scores(systems: Sequence[Reported], sets: Sequence[TestSet]) -> Iterator[Html]:
    """Yields tables and charts of the scores on each test set, with intervals and with tests of significance."""
    for one in sets:
        if one.fault is not None:
            yield from _stored_scores(systems, one)
            continue
        names = [score.metric for score in one.scores[systems[0].key]]
        rows: list[list[Cell]] = []
        for system in systems:
            scores = one.scores[system.key]
            rows.append([system.key, *(f"{score.score:.2f} ± {score.interval or 0:.2f}" for score in scores)])
        yield table(("", *names), rows, f"{one.name}, {len(one.sources):,} sentences")
        groups = [
            (
                name,
                [
                    Bar(
                        system.key,
                        one.scores[system.key][place].score,
                        f"{one.scores[system.key][place].score:.2f}",
                        one.scores[system.key][place].interval,
                        style=number,
                    )
                    for number, system in enumerate(systems)
                ],
            )
            for place, name in enumerate(names)
        ]
        yield bar_chart(f"{one.name}: scores with 95 % intervals", groups)
        if len(systems) > 1:
            yield _comparison(systems, one)
        signatures = [[score.metric, score.signature] for score in one.scores[systems[0].key]]
        yield note(
            f"± is half the 95 % interval of {NUM_RESAMPLES:,} bootstrap resamples. Of TER, lower is better. "
            f"{systems[0].key}: {decoding_text(systems[0].bundle.config.decoding)}."
        )
        yield folded("Signatures", table(("metric", "signature"), signatures, "Signatures of sacreBLEU"))


def _stored_scores(systems: Sequence[Reported], one: TestSet) -> Iterator[Html]:
    rows = [
        [system.key, metric, f"{score['score']:.2f}", score["signature"]]
        for system in systems
        for metric, score in system.scores(one.name).items()
    ]
    yield note(f"The texts of {one.name} are not here, so there are only stored scores: {one.fault}")
    if rows:
        yield table(("", "metric", "score", "signature"), rows, f"{one.name}, stored scores")


def _comparison(systems: Sequence[Reported], one: TestSet) -> Html:
    """Returns a table of paired significance tests of each system against the first, on one test set."""
    first, config = systems[0], systems[0].bundle.config
    baseline = System(first.key, one.lines[first.key])
    rows: list[list[Cell]] = []
    for system in systems[1:]:
        rival = System(system.key, one.lines[system.key])
        scoring = Scoring(config.languages, test=TEST)
        compared = score_set(one.name, rival, one.references, scoring, None, baseline)
        mine = {score.metric: score for score in compared if score.system == system.key}
        theirs = {score.metric: score for score in compared if score.system == first.key}
        for metric, score in mine.items():
            assert score.p_value is not None
            verdict = "significant" if score.p_value <= SIGNIFICANT else "may be chance"
            difference = f"{score.score - theirs[metric].score:+.2f}"
            rows.append([f"{system.key} - {first.key}", metric, difference, f"{score.p_value:.4f}", verdict])
    return joined(
        table(("systems", "metric", "difference", "p", ""), rows, f"{one.name}: differences from {first.key}"),
        note(
            "p: probability of a difference at least this large if neither is better, by paired bootstrap; a "
            f"difference is significant if p is at most {SIGNIFICANT}."
        ),
    )


def _by_length(systems: Sequence[Reported], one: TestSet) -> Html:
    """Returns a chart and a table of the BLEU of each system on short, middling and long sentences of a test set."""
    scoring = Scoring(systems[0].bundle.config.languages, confidence=True, by_length=True, metrics=("bleu",))
    found: dict[tuple[str, int], list[Bar]] = {}
    rows: list[list[Cell]] = []
    for style, system in enumerate(systems):
        texts = System(system.key, one.lines[system.key])
        for score in score_set(one.name, texts, one.references, scoring, one.sources):
            bar = Bar(system.key, score.score, f"{score.score:.2f}", score.interval, style)
            found.setdefault((score.words, score.lines or 0), []).append(bar)
            rows.append([system.key, score.words, score.lines, f"{score.score:.2f} ± {score.interval or 0:.2f}"])
    groups = [(f"{words}, {lines:,} sentences", bars) for (words, lines), bars in found.items()]
    title = f"{one.name}: BLEU by source length"
    figures = table(("", "source length", "sentences", "BLEU"), rows, title, hidden_caption=True)
    return joined(bar_chart(title, groups), folded("Figures", figures))


# Sentences.


def _sentences(systems: Sequence[Reported], one: TestSet) -> Iterator[Html]:
    """Yields tables of example sentences from one test set, chosen by sentence-level chrF.

    For each system, these are the worst and the best sentences. For each system but the first, they are also the
    sentences where it is most clearly better, and most clearly worse, than the first system.
    """
    scores = {system.key: sentence_scores(one.lines[system.key], one.references) for system in systems}
    yield element("h3", one.name)
    yield note("By sentence-level chrF; of equally good sentences, the longest.")
    for system in systems:
        own = scores[system.key]
        for what, order in (("worst", _lowest_first(own, one.sources)), ("best", _highest_first(own, one.sources))):
            rows: list[list[Cell]] = [
                [
                    place + 1,
                    f"{own[place]:.1f}",
                    one.sources[place],
                    one.lines[system.key][place],
                    _reference(one, place),
                ]
                for place in order[:NUM_SENTENCES]
            ]
            head = ("line", "chrF", "source", f"translation by {system.key}", "reference")
            yield table(head, rows, f"The {what} sentences of {system.key}", stacks=True)
    first = systems[0].key
    for system in systems[1:]:
        changes = [b - a for a, b in zip(scores[first], scores[system.key], strict=True)]
        better = [place for place in _highest_first(changes, one.sources) if changes[place] > 0]
        worse = [place for place in _lowest_first(changes, one.sources) if changes[place] < 0]
        for what, chosen in (("better", better[:NUM_SENTENCES]), ("worse", worse[:NUM_SENTENCES])):
            if not chosen:
                continue
            rows = [
                [
                    place + 1,
                    f"{changes[place]:+.1f}",
                    one.sources[place],
                    one.lines[first][place],
                    one.lines[system.key][place],
                    _reference(one, place),
                ]
                for place in chosen
            ]
            yield table(
                ("line", "chrF", "source", first, system.key, "reference"),
                rows,
                f"Where {system.key} is {what} than {first}",
                stacks=True,
            )


def _lowest_first(scores: Sequence[float], sources: Sequence[str]) -> list[int]:
    """Returns the indices of the sentences, those with the lowest scores first.

    Of sentences with equal scores, those with the longest source, in characters, come first.
    """
    return sorted(range(len(scores)), key=lambda place: (scores[place], -len(sources[place])))


def _highest_first(scores: Sequence[float], sources: Sequence[str]) -> list[int]:
    """Returns the indices of the sentences, those with the highest scores first.

    Of sentences with equal scores, those with the longest source, in characters, come first.
    """
    return _lowest_first([-score for score in scores], sources)


def _reference(one: TestSet, place: int) -> str:
    return " / ".join(reference[place] for reference in one.references)


def _attention(systems: Sequence[Reported], one: TestSet) -> Iterator[Html]:
    """Yields maps of attention for the worst, a middling and the best sentence of each system."""
    for system in systems:
        if not system.bundle.config.model.has_attention:
            yield note(f"{system.key} has no attention.")
            continue
        lines = one.lines[system.key]
        own = sentence_scores(lines, one.references)
        worst, best = (
            [place for place in order(own, one.sources) if one.sources[place].strip() and lines[place].strip()]
            for order in (_lowest_first, _highest_first)
        )
        maps = []
        for what, places in (("worst", worst), ("middling", worst[len(worst) // 2 :]), ("best", best)):
            if not places:
                break
            try:
                found = attention_of(system.translator, one.sources[places[0]], lines[places[0]])
            except MtkitError:  # too long for the model, which translated it in parts
                continue
            title = f"{system.key}, line {places[0] + 1:,} ({what})"
            maps.append(weight_map(title, found.target, found.source, found.weights[-1].mean(0).tolist()))
        if maps:
            yield element("div", maps, class_="maps")
    yield note(
        "Rows are tokens of the translation, columns tokens of the source; the area of a square is the weight, "
        "averaged over the heads of the last layer. mtkit explain shows every head."
    )


# Training.

# Charts of training: kind of event, key in it, title.
PANELS = (
    ("train", "nll", "Training loss, nats a token"),
    ("validation", "nll", "Validation loss, nats a token"),
    ("validation", "bleu", "Validation BLEU"),
    ("validation", "chrf", "Validation chrF"),
    ("train", "lr", "Learning rate"),
    ("train", "gradient_norm", "Gradient norm"),
    ("train", "tokens_per_second", "Tokens a second"),
)


def _training(systems: Sequence[Reported]) -> list[Html]:
    """Returns charts of the training curves, and a table of changes and faults that were logged in training."""
    charts = []
    for event, key, title in PANELS:
        curves = []
        for system in systems:
            events = [one for one in system.events if one.get("event") in ("train", "validation")]
            points = list(zip(*series(History(system.key, events), event, key), strict=True))
            if points:
                curves.append(Curve(f"{system.key} {system.path.name}", points, event == "validation"))
        charts.append(line_chart(title, curves, "update"))
    rows = [row for system in systems for row in _happened(system)]
    happened = [table(("", "update", "what happened"), rows, "Changes and faults of training")] if rows else []
    drawn = [chart for chart in charts if chart]
    return [element("div", drawn, class_="charts"), *happened] if drawn else happened


def _happened(system: Reported) -> Iterator[list[Cell]]:
    """Yields (system, update, what happened) for changed settings, skipped updates, overflows and averages."""
    for event in system.events:
        step = event.get("step")
        match event.get("event"):
            case "change":
                what = "; ".join(f"{name}: {json_text(sides)}" for name, sides in event["settings"].items())
                yield [system.key, step, f"settings changed: {what}"]
            case "skipped":
                yield [system.key, step, f"update skipped: {event.get('what')}"]
            case "overflow":
                yield [system.key, step, "fp16 overflow; the loss scale was halved"]
            case "average":
                verdict = "taken" if event.get("better") else "not taken"
                yield [system.key, event["steps"][-1], f"average of checkpoints {json_text(event['steps'])}: {verdict}"]


def _samples(systems: Sequence[Reported]) -> list[Html]:
    """Returns a table for each system of the translations of validation sentences that training logged."""
    found = []
    for system in systems:
        rows = [
            [event["step"], event["source"], event["hypothesis"], event["reference"]]
            for event in system.events
            if event.get("event") == "sample"
        ]
        if rows:
            head = ("update", "source", "translation", "reference")
            found.append(table(head, rows, f"{system.key}, validation sentences", stacks=True))
    return found


# Settings, data, environment.


def _settings(systems: Sequence[Reported]) -> Html:
    """Returns a table of the settings that differ from the default in any system.

    The mark ≠ is put on settings that have different values in the systems.
    """
    changed = [_changed(system) for system in systems]
    whole = [dict(settings_of(system.bundle.config.model_dump(mode="json"))) for system in systems]
    names = {name for settings in changed for name in settings}
    first = systems[0].bundle.config.model_dump(mode="json")
    rows: list[list[Cell]] = []
    for name in sorted(names, key=_place_of(whole)):
        schema = setting_schema(tuple(name.split(".")), first) or {}
        default = _value(schema["default"]) if "default" in schema else ""
        values = [_value(own.get(name, all_.get(name))) for own, all_ in zip(changed, whole, strict=True)]
        rows.append([f"{name} ≠" if len(set(values)) > 1 else name, default, *values])
    head = ("setting", "default", *(system.key for system in systems))
    marked = "; ≠: the systems differ" if len(systems) > 1 else ""
    return table(head, rows, f"Settings that differ from the defaults{marked}")


def _changed(system: Reported) -> dict[str, Any]:
    """Returns settings by names such as "model.d_model": all that differ from the default, and the architecture."""
    config = system.bundle.config
    changed = dict(settings_of(config.model_dump(mode="json", exclude_defaults=True)))
    return {"model.architecture": config.model.architecture, **changed}


def _place_of(all_settings: Sequence[dict[str, Any]]) -> Any:
    """Returns a sort key for names of settings: a function that maps a name to its place in config.yaml.

    `all_settings` has the settings of each system, in the order of config.yaml. Unknown names come last.
    """
    order = list(dict.fromkeys(name for settings in all_settings for name in settings))
    return lambda name: order.index(name) if name in order else len(order)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _data(systems: Sequence[Reported]) -> list[Html]:
    """Returns tables on the training data: pairs, tokens, lengths, the pairs that were dropped and why, and files."""
    rows: list[list[Cell]] = []
    dropped: list[list[Cell]] = []
    files: list[list[Cell]] = []
    for system in systems:
        data = system.training.get("data")
        if not data:
            continue
        rows.append([system.key, "pairs", data.get("num_pairs")])
        for side in ("source", "target"):
            rows.append([system.key, f"{side} tokens", data.get(f"{side}_tokens")])
            lengths = data.get("lengths", {}).get(side)
            if lengths:
                quantiles = ", ".join(f"{name} {value}" for name, value in lengths.get("quantiles", {}).items())
                rows.append(
                    [
                        system.key,
                        f"{side} tokens a sentence",
                        f"mean {lengths['mean']}, {quantiles}, longest {lengths['longest']}",
                    ]
                )
        rows += [[system.key, f"unknown {name}", f"{share:.2%}"] for name, share in data.get("unknown", {}).items()]
        reasons = {reason: count for reason, count in data.get("dropped", {}).items() if count}
        dropped += [[system.key, reason, count] for reason, count in reasons.items()] or [[system.key, "none", 0]]
        files += [[system.key, entry["name"], entry["fingerprint"]] for entry in data.get("files", [])]
    if not rows:
        return []
    return [
        table(("", "", "number"), rows, "Training data"),
        table(("", "reason", "pairs"), dropped, "Pairs that were left out of training"),
        folded("Files", table(("", "file", "checksum"), files, "Training files")),
    ]


FACTS = ("mtkit", "python", "torch", "machine", "device", "threads", "precision", "start_from")


def _environment(systems: Sequence[Reported]) -> list[Content]:
    """Returns a table of the versions and the machine of each run, and the command that last started its training."""
    found: list[Content] = []
    known = [system for system in systems if system.starts]
    if known:
        facts = [system.starts[-1] for system in known]
        rows = [[name, *(_value(fact.get(name)) for fact in facts)] for name in FACTS]
        rows.append(["times started", *(str(len(system.starts)) for system in known)])
        found.append(table(("", *(system.key for system in known)), rows, "When training last started"))
    for system in known:
        command = system.starts[-1].get("command")
        if command:
            found += [element("h3", f"Command of {system.key}"), element("pre", shlex.join(["mtkit", *command[1:]]))]
    return found


# The diagnosis of `mtkit doctor`.

WIDTH = 110  # characters of an example on the terminal
PAGE_WIDTH = 400  # characters of one side of an example on the page
MOST_FILES = 20  # files that the page names at most


def as_text(diagnosis: Diagnosis) -> str:
    """Returns the diagnosis as lines of text for the terminal."""
    lines = [_summary(diagnosis)]
    for name in diagnosis.kinds:
        kind, found = KINDS[name], diagnosis.found[name]
        mark = "STOP  " if diagnosis.is_stopping(name) else ""
        lines += ["", f"{mark}{kind.title}: {_how_many(diagnosis, name)} [{name}]"]
        lines += [f"  {_on_one_line(example)}" for example in found.examples]
        lines += [f"  It costs: {kind.cost}.", f"  What helps: {kind.cure}."]
    lines += [f"\nNote: {note}." for note in diagnosis.notes]
    return "".join(f"{line}\n" for line in lines)


def _summary(diagnosis: Diagnosis) -> str:
    found, stopping = diagnosis.kinds, diagnosis.stopping
    what = counted(len(found), "finding") if found else "no faults found"
    then = f"; {', '.join(stopping)} should be mended before training" if stopping else ""
    if found and not stopping:
        then = "; nothing has to be mended before training"
    return f"{counted(diagnosis.num_pairs, 'pair')}: {what}{then}"


def _how_many(diagnosis: Diagnosis, name: str) -> str:
    count = diagnosis.found[name].count
    if all(example.text for example in diagnosis.found[name].examples):
        return f"{count:,}"
    of = "held-out pair" if name in ("held out", "nearly held out") else "pair"
    return f"{counted(count, of)}, {_percent(diagnosis.share(name))}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.4%}"


def _on_one_line(example: Example) -> str:
    place = f"{example.place}: "
    if example.text:
        return place + visible(example.text)
    width = max(20, (WIDTH - len(place)) // 2)
    return place + " ||| ".join(_cut(visible(side), width) for side in (example.source, example.target))


def visible(text: str) -> str:
    """Returns the text with each invisible character replaced by a visible code, such as <U+200B>."""
    return "".join(
        character if character.isprintable() or character in "\u00a0\u202f\u3000" else f"<U+{ord(character):04X}>"
        for character in text
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


# The page.


def as_html(diagnosis: Diagnosis) -> str:
    """Returns the diagnosis as a page: a table of the kinds of faults found, then each kind with its examples."""
    rows: list[list[Cell]] = [
        [element("a", KINDS[name].title, href=f"#{_anchor(name)}"), *_counts(diagnosis, name)]
        for name in diagnosis.kinds
    ]
    files = [str(path) for path in diagnosis.files[:MOST_FILES]]
    if more := len(diagnosis.files) - len(files):
        files.append(f"and {more:,} more")
    return page(
        "mtkit doctor",
        element("p", f"{_summary(diagnosis)}."),
        element("ul", [element("li", file) for file in files]),
        table(("kind", "count", "share", "stops training"), rows, "What was found") if rows else None,
        [note(f"{text.capitalize()}.") for text in diagnosis.notes],
        [_section(diagnosis, name) for name in diagnosis.kinds],
        command="doctor",
    )


def _anchor(name: str) -> str:
    return name.replace(" ", "-").lower()


def _counts(diagnosis: Diagnosis, name: str) -> list[Cell]:
    found = diagnosis.found[name]
    share = "" if all(example.text for example in found.examples) else _percent(diagnosis.share(name))
    return [found.count, share, "yes" if diagnosis.is_stopping(name) else ""]


def _section(diagnosis: Diagnosis, name: str) -> Html:
    kind, examples = KINDS[name], diagnosis.found[name].examples
    head = ["place", "source", "target"]
    rows: list[list[Cell]] = [
        [example.place, *(_shown(_cut(visible(side), PAGE_WIDTH)) for side in (example.source, example.target))]
        for example in examples
    ]
    if all(example.text for example in examples):
        head, rows = ["place", "what"], [[example.place, _shown(visible(example.text))] for example in examples]
    return section(
        f"{'Stop: ' if diagnosis.is_stopping(name) else ''}{kind.title}: {_how_many(diagnosis, name)}",
        element("p", f"It costs: {kind.cost}.", element("br"), f"What helps: {kind.cure}."),
        table(head, rows, "The first examples", hidden_caption=True, stacks=True),
        id_=_anchor(name),
    )


def _shown(text: str) -> Html:
    """Returns the text as an HTML `bdi` element, so that its direction does not depend on the text around it."""
    return element("bdi", text)
