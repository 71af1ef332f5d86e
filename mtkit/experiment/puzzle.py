"""`mtkit experiment puzzle`: a run with one hidden fault, to be found from pictures of what it does."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtkit.bundle.bundle import open_bundle
from mtkit.config.experiment_settings import Changes
from mtkit.config.load import config_from_data
from mtkit.config.settings import Config
from mtkit.errors import ConfigError, MtkitError
from mtkit.evaluation.evaluate import read_test_set
from mtkit.evaluation.plot import History, attention_of, read_log, series
from mtkit.experiment.card import DEMO, Card, merged
from mtkit.files import replaced_directory
from mtkit.pipeline import run_train
from mtkit.preparation.sources import test_sets, training_corpora
from mtkit.report.page import (
    Curve,
    Html,
    element,
    line_chart,
    note,
    page,
    require_page,
    section,
    table,
    weight_map,
    write_page,
)
from mtkit.text.parallel import read_corpus
from mtkit.translation.scores import corpus_scores
from mtkit.translation.translator import Translator, load_bundle

# The faults.


@dataclass(frozen=True)
class Fault:
    """A fault that a puzzle may have."""

    changes: Changes  # settings that make it
    told: str  # what it is and where it shows, for those who found it
    hint: str  # for those who did not
    turns_source: bool = False  # whether each target is trained with the source of the pair before


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
    """Returns what is said to an answer. Raises MtkitError if the answer is none of the faults."""
    if answer not in FAULTS:
        raise MtkitError(f"--answer: found {answer}, wants one of {', '.join(FAULTS)}")
    name = fault_of(seed)
    if answer == name:
        return f"Yes, {name}. {FAULTS[name].told}"
    return f"No, it is not that. {FAULTS[name].hint}"


# The run.


def puzzle(cards: Sequence[Card], seed: int, results: Path, output: Path, data: str = DEMO) -> None:
    """Trains a run with one hidden fault, which `seed` chooses, or resumes it, and writes its page to `output`.

    The run is the base of the first of the cards that has the size toy. Raises MtkitError if none has it.
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
    """Returns settings for a copy of the training text in which each target has the source of the pair before."""
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
    """Attention of the references to their sources, so that it does not depend on how good the translations are."""
    maps = []
    for place, (source, target) in enumerate(zip(sources[:NUM_MAPS], reference, strict=False), start=1):
        found = attention_of(translator, source, target)
        maps.append(weight_map(f"Sentence {place}", found.target, found.source, found.weights[-1].mean(0).tolist()))
    return maps


def _about_maps() -> Html:
    return note(
        "Rows are tokens of the reference, columns tokens of the source; mean over the heads of the last layer."
    )
