"""Commands that test claims by experiments: `mtkit experiment list`, `show`, `run`, `predict`, `report`, `puzzle`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.commands.options import QuietOption, choice, count, minutes_above_0

if TYPE_CHECKING:
    from mtkit.experiment.run import Choice, Lab

EXAMPLE = "\b\nExample:\n  mtkit experiment "
FOLDER = Path("configs/lecture")
SIZES = ("toy", "small", "full")

experiment = typer.Typer(rich_markup_mode=None, help="Test claims by trainings with parts changed or taken out.")

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of experiments, or one file.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name, such as 02-bottleneck or 02, or file.")]
FolderOption = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Folder of experiments.")]
RunsOption = Annotated[Path, typer.Option("--runs", "-o", metavar="FOLDER", help="Folder of the results.")]
RunsAlone = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Folder of the results.")]
SizeOption = Annotated[str | None, typer.Option(metavar="NAME", help="toy, small or full.")]
SeedsOption = Annotated[str | None, typer.Option(metavar="N", help="Seeds with which each variant is trained.")]
DataOption = Annotated[str | None, typer.Option(metavar="FOLDER", help="demo, or a folder of other text.")]
OnlyOption = Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Only these experiments.")]

RUNS = Path("runs/experiments")


def _lab(runs: Path, size: str | None, seeds: str | None, data: str | None) -> "Lab":
    """The lab: the folder of results `runs`, seen at one size, with a number of seeds and one text.

    An argument that is `None` has the value of the last `mtkit experiment run`. Raises MtkitError if `size` or
    `seeds` is not valid.
    """
    from mtkit.experiment.run import Lab

    return Lab(runs, _choice(runs, size, seeds, data))


def _choice(runs: Path, size: str | None, seeds: str | None, data: str | None) -> "Choice":
    from mtkit.experiment.run import Choice, last_choice

    last = last_choice(runs)
    chosen = last.size if size is None else choice("--size", size, SIZES)
    number = last.seeds if seeds is None else count("--seeds", seeds)
    return Choice(chosen, number, last.data if data is None else data)  # type: ignore[arg-type]


@experiment.command("list", epilog=f"{EXAMPLE}list configs/lecture")
def list_(
    folder: FolderArgument,
    runs: RunsOption = RUNS,
    size: SizeOption = None,
    seeds: SeedsOption = None,
    data: DataOption = None,
) -> None:
    """List experiments: claim, verdict, trainings done, minutes left on this machine, trainings shared."""
    from mtkit.experiment.card import load_folder
    from mtkit.experiment.run import listing

    cards = load_folder(folder)
    for row in listing(cards, _lab(runs, size, seeds, data)):
        print(f"{row['name']}: {row['verdict']}")
        print(f"    {row['claim']}")
        print(f"    trainings done {row['done']}, shared {row['shared']}, minutes left {row['minutes left']}")


@experiment.command(epilog=f"{EXAMPLE}show 02-bottleneck")
def show(
    name: NameArgument,
    folder: FolderOption = FOLDER,
    runs: RunsOption = RUNS,
    size: SizeOption = None,
    seeds: SeedsOption = None,
    data: DataOption = None,
) -> None:
    """Show one experiment: claim, variants, predictions, controls and what came of them."""
    from mtkit.experiment.card import card_named
    from mtkit.experiment.page import card_text

    card = card_named(name, folder)
    print(card_text(card, _lab(runs, size, seeds, data)), end="")


@experiment.command(epilog=f"{EXAMPLE}run configs/lecture --minutes 60 --only 01,02")
def run(
    folder: FolderArgument,
    minutes: Annotated[str, typer.Option(metavar="X", help="How long it may take.")] = "60",
    only: OnlyOption = None,
    size: SizeOption = "toy",
    seeds: SeedsOption = "1",
    data: DataOption = "demo",
    runs: RunsOption = RUNS,
    quiet: QuietOption = False,
) -> None:
    """Run experiments, as many as fit into the minutes.

    Experiments with the highest teaching value for their time come first; equal settings are trained once. The same
    command resumes where it stopped. Prints the verdicts.
    """
    begun = time.monotonic()
    limit = minutes_above_0(minutes)
    from mtkit.experiment.card import chosen_cards, load_folder
    from mtkit.experiment.run import run as run_cards

    cards = chosen_cards(load_folder(folder), only.split(",") if only else [], folder)
    lab = _lab(runs, size, seeds, data)
    try:
        run_cards(cards, lab, limit, begun)
    finally:
        for card in cards:
            print(f"{card.name}: {lab.verdict(card).text}", flush=True)


@experiment.command(epilog=f'{EXAMPLE}predict 02-bottleneck "Attention gains most on long sentences."')
def predict(
    name: NameArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you expect, in your words.")],
    folder: FolderOption = FOLDER,
    runs: RunsOption = RUNS,
) -> None:
    """Write down what you expect, before there are results.

    The prediction is kept with its date and shown in the report; once the experiment has results, none is taken.
    """
    from mtkit.experiment.card import card_named
    from mtkit.experiment.run import add_prediction

    print(add_prediction(card_named(name, folder), _lab(runs, None, None, None), text))


@experiment.command(epilog=f"{EXAMPLE}report configs/lecture -o lecture.html")
def report(
    folder: FolderArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write; .html.")],
    runs: RunsAlone = RUNS,
    only: OnlyOption = None,
    size: SizeOption = None,
    seeds: SeedsOption = None,
    data: DataOption = None,
) -> None:
    """Write a page on the experiments and what came of them.

    It has claims and verdicts, then for each experiment its predictions, figures with intervals, picture and controls,
    and at the end the runs that every figure is from.
    """
    from mtkit.experiment.card import chosen_cards, load_folder
    from mtkit.experiment.page import write_report

    cards = chosen_cards(load_folder(folder), only.split(",") if only else [], folder)
    write_report(cards, _lab(runs, size, seeds, data), folder, output)


@experiment.command(epilog=f"{EXAMPLE}puzzle --seed 7 -o puzzle.html")
def puzzle(
    seed: Annotated[str, typer.Option(metavar="N", help="Number of the puzzle.")] = "1",
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Check an answer, such as "no positions", and train nothing.')
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page; by default puzzle-N.html.")
    ] = None,
    folder: FolderOption = FOLDER,
    runs: RunsAlone = RUNS,
    data: DataOption = "demo",
    quiet: QuietOption = False,
) -> None:
    """Train a small run that may have one fault, and draw what it does.

    The page has curves, translations and attention, and does not say what the fault is; --answer does.
    """
    number = count("--seed", seed)
    from mtkit.experiment.puzzle import answered
    from mtkit.experiment.puzzle import puzzle as make_puzzle

    if answer is not None:
        print(answered(number, answer))
        return
    from mtkit.experiment.card import load_folder

    path = output or Path(f"puzzle-{number}.html")
    make_puzzle(load_folder(folder), number, runs, path, data or "demo")
    print(path)


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module with `app`."""
    app.add_typer(experiment, name="experiment")
