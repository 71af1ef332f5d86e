"""`mtkit plot`: pictures of schedules, position encodings, training and attention."""

from pathlib import Path
from typing import Annotated

import typer

from mtkit.commands.options import ConfigArgument, ModelArgument, SettingsArgument, count
from mtkit.errors import MtkitError

EXAMPLE = "\b\nExample:\n  mtkit plot "

plot = typer.Typer(rich_markup_mode=None, help="Draw a picture, as PNG or SVG.")

OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Picture; .png or .svg.")]


@plot.command(epilog=f"{EXAMPLE}schedule --setting 512:4000 --setting 512:8000 --setting 256:4000 -o rates.svg")
def schedule(
    output: OutputOption,
    configs: Annotated[list[Path] | None, typer.Argument(metavar="[CONFIG]...", help="YAML files.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(metavar="D:W", help="d_model and warmup_steps of noam; several may be given.")
    ] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help="Updates to draw; else those of the configs.")] = None,
) -> None:
    """Draw the learning rate by update."""
    from mtkit.config.load import load_config
    from mtkit.config.training_settings import settled
    from mtkit.evaluation.plot import check_output, paper_schedule, plot_schedules, schedule_of

    check_output(output)
    loaded = [(path, load_config(path, [])) for path in configs or []]
    num_steps = None if steps is None else count("--steps", steps)
    schedules = [schedule_of(path.stem, config, num_steps) for path, config in loaded]
    schedules += [paper_schedule(text) for text in setting or []]
    if not schedules:
        raise MtkitError("there is nothing to draw; name a CONFIG, or give --setting such as 512:4000")
    # Without a config, five times the longest warmup shows the rise and the fall.
    drawn = [one.training for one in schedules]
    longest = max(
        [settled(one.max_steps) for one in drawn[: len(loaded)]] or [5 * settled(one.warmup_steps) for one in drawn]
    )
    plot_schedules(schedules, num_steps or longest, output)


@plot.command(epilog=f"{EXAMPLE}positions configs/demo.yaml -o positions.png")
def positions(
    output: OutputOption,
    config: ConfigArgument,
    settings: SettingsArgument = None,
    length: Annotated[str, typer.Option(metavar="N", help="Positions to draw.")] = "100",
) -> None:
    """Draw the position encodings."""
    from mtkit.config.load import load_config
    from mtkit.evaluation.plot import check_output, plot_positions, position_table

    check_output(output)
    plot_positions(position_table(load_config(config, settings or []), count("--length", length)), output)


@plot.command(epilog=f"{EXAMPLE}training runs/demo -o training.png")
def training(
    output: OutputOption,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; they may be being trained.")],
    by: Annotated[str, typer.Option(metavar="NAME", help="step or minutes.")] = "step",
) -> None:
    """Draw loss, learning rate and BLEU of training runs."""
    from mtkit.evaluation.plot import check_output, plot_training, read_history

    check_output(output)
    if by not in ("step", "minutes"):
        raise MtkitError(f"--by: found {by}, wants one of step, minutes")
    plot_training([read_history(run) for run in runs], by, output)


@plot.command(epilog=f'{EXAMPLE}attention runs/demo --source "Le chat dort." -o attention.png')
def attention(
    output: OutputOption,
    model: ModelArgument,
    source: Annotated[str, typer.Option(metavar="TEXT", help="A sentence.")],
    target: Annotated[str | None, typer.Option(metavar="TEXT", help="Its translation; else the model's own.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="N", help="This layer alone, from 1.")] = None,
    head: Annotated[str | None, typer.Option(metavar="N", help="This head alone, from 1.")] = None,
    mean: Annotated[bool, typer.Option("--mean", help="The mean over the heads.")] = False,
) -> None:
    """Draw how each target piece looks at the source.

    Without --layer, --head and --mean there is a picture for every layer and head.
    """
    from mtkit.evaluation.plot import check_output

    check_output(output)
    if mean and head is not None:
        raise MtkitError("--mean is over the heads; leave out --head")
    chosen_layer = None if layer is None else count("--layer", layer)
    chosen_head = None if head is None else count("--head", head)
    from mtkit.evaluation.plot import attention_of, plot_attention
    from mtkit.translation.translator import load

    found = attention_of(load(model), source, target)
    pictures = found.of(chosen_layer, chosen_head, mean)
    columns = 1 if mean or head is not None else len(found.weights[0])
    plot_attention(found, pictures, columns, output)
