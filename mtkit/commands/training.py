"""Commands that examine text and train a model, from `doctor`, `new` and `config` to `run`, `verify` and `distill`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.commands.options import (
    EXAMPLE,
    PRECISIONS,
    BatchTokensOption,
    BeamSizeOption,
    ChangeOption,
    ConfigArgument,
    DeviceOption,
    DevicesOption,
    EnsembleOption,
    FreshOption,
    LengthPenaltyOption,
    PrecisionOption,
    QuietOption,
    SettingsArgument,
    UsageError,
    choice,
    count,
    decoding_settings,
    language_pair,
    load_settings,
    minutes_above_0,
    set_settings,
)
from mtkit.errors import CheckpointError, MtkitError

if TYPE_CHECKING:
    from mtkit.preparation.doctor import Examination

TextArgument = Annotated[
    list[str],
    typer.Argument(metavar="CONFIG|FILES", help="YAML file (then KEY=VALUE …), two files, or one: tabs, .tmx, .jsonl."),
]
LanguagesOption = Annotated[
    str | None, typer.Option(metavar="PAIR", help="Such as fr-en: the sides of TMX and JSON lines.")
]


def doctor(
    text: TextArgument,
    languages: LanguagesOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the findings as an HTML page.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Find faults in parallel text.

    Prints where each fault is, what it costs and what mends it. With CONFIG, the training text is examined, and also
    searched for pairs of the validation and test text. The exit code is 1 if something should be mended before
    training.
    """
    from mtkit.evaluation.page import require_page, write_page
    from mtkit.evaluation.report import as_html, as_text
    from mtkit.files import json_text

    if output is not None:
        require_page(output, "doctor")
    diagnosis = _examination(text, languages).run()
    print(json_text(diagnosis.as_json(), indent=2) + "\n" if json else as_text(diagnosis), end="")
    if output is not None:
        write_page(output, as_html(diagnosis))
    if diagnosis.stopping:
        raise typer.Exit(1)


def clean(
    text: TextArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="New folder for the cleaned text.")],
    languages: LanguagesOption = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Leave this kind of fault alone; may be repeated.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Write a mended copy of parallel text.

    Pairs that cannot be mended are left out. The faults are those that mtkit doctor finds, and KIND is the name that it
    prints in brackets. FOLDER/cleaned.json records what was changed.
    """
    from mtkit.preparation.doctor import clean as write_cleaned
    from mtkit.preparation.doctor import require_new

    require_new(output, keep or ())
    cleaned, _ = write_cleaned(_examination(text, languages), output, keep or ())
    print(cleaned)
    for files in cleaned.files.values():
        print("\n".join(files))


def _examination(text: Sequence[str], languages: str | None) -> "Examination":
    """Returns an Examination, not yet run, of the training corpora of a YAML file or of one or two files of text.

    `text` are the arguments of `doctor` or `clean`. Raises UsageError if they do not go together.
    """
    from mtkit.config.data_and_model_settings import LanguagesConfig
    from mtkit.preparation.doctor import Examination, held_out_of_settings, parts_of_files, parts_of_settings

    if Path(text[0]).suffix.lower() in (".yaml", ".yml"):
        from mtkit.config.load import load_config
        from mtkit.text.parallel import with_patterns_expanded

        if languages is not None:
            raise UsageError("--languages is for files; the languages of CONFIG are its settings")
        config = with_patterns_expanded(load_config(Path(text[0]), list(text[1:])))
        return Examination(parts_of_settings(config), held_out_of_settings(config), config.languages)
    if len(text) > 2:
        raise UsageError(f"found {len(text)} files, wants two: the source and the target")
    pair = language_pair(languages)
    codes = LanguagesConfig(source=pair[0], target=pair[1]) if pair else None
    return Examination(parts_of_files([Path(file) for file in text], pair), (), codes)


# Training.


def new(
    path: Annotated[Path, typer.Argument(metavar="YAML", help="File of settings to write.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Source and target; or a file with tabs, TMX or JSON lines; or a folder of these."
        ),
    ],
    languages: Annotated[
        str | None, typer.Option(metavar="FR-EN", help="Source and target; by default from the names of the files.")
    ] = None,
    minutes: Annotated[str, typer.Option(metavar="X", help="How long the training may take.")] = "30",
    quiet: QuietOption = False,
) -> None:
    """Make settings for a first model from sentence pairs.

    The pairs are split into training, validation and test text, in a folder beside YAML; pairs with nearly equal
    sentences stay together. Vocabulary, model, dropout and batches are chosen by the number of pairs and by what this
    machine can train in the minutes. YAML gives the reasons. Nothing is overwritten.
    """
    pair, limit = language_pair(languages), minutes_above_0(minutes)
    from mtkit.evaluation.estimate import measure_speed
    from mtkit.preparation.new import new

    print(new(path, files, pair, limit, measure_speed), end="")


def config(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file; without it, the defaults.")
    ] = None,
    settings: SettingsArgument = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of settings files instead.")] = False,
    diff: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Print only the settings in which the file OTHER differs.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="KEY", help="Print what one setting means, and which recipes use what.")
    ] = None,
) -> None:
    """Print all settings with their meanings.

    The output is a YAML file that can be used as CONFIG.
    """
    import json

    from mtkit.config.settings import config_schema, config_text

    settings = settings or []
    if config is not None and "=" in str(config) and not config.exists():
        config, settings = None, [str(config), *settings]  # the first argument is a setting: there is no CONFIG
    if schema:
        print(json.dumps(config_schema(), indent=2))
        return
    if diff is not None or explain is not None:
        from mtkit.config.load import differences_text, explanation

        found = load_settings(config, settings)
        if explain is not None:
            print(explanation(explain, found if config or settings else None), end="")
        if diff is not None:
            names = (str(config or "the defaults"), str(diff))
            print(differences_text(found, load_settings(diff, None), names), end="")
        return
    print(config_text(load_settings(config, settings)), end="")


def estimate(
    config: ConfigArgument,
    settings: SettingsArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Tell what a training takes before it begins.

    Prints parameters by part, memory of training and translation, tokens of an epoch, the time of an update (measured
    in ten updates of a new model, on a sample of the text if it is not binarized yet), the time until training ends,
    and disk. The exit code is 1 if something does not fit. The run itself is only read.
    """
    from mtkit.config.load import load_config
    from mtkit.evaluation.estimate import estimate, estimate_text
    from mtkit.files import json_text

    record = estimate(load_config(config, settings or []))
    print(json_text(record, indent=1) if as_json else estimate_text(record), end="\n" if as_json else "")
    if record["faults"]:
        raise MtkitError("\n".join(record["faults"]))


def train_tokenizer(config: ConfigArgument, settings: SettingsArgument = None, quiet: QuietOption = False) -> None:
    """Train the tokenizer on the training corpora."""
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_tokenizer

    run_tokenizer(load_config(config, settings or []))


def binarize(config: ConfigArgument, settings: SettingsArgument = None, quiet: QuietOption = False) -> None:
    """Encode the corpora to memory-mapped ids.

    Pairs that are left out are counted and reported. The tokenizer is trained first if it is missing.
    """
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_binarize

    run_binarize(load_config(config, settings or []))


def train(
    config: ConfigArgument,
    settings: SettingsArgument = None,
    fresh: FreshOption = False,
    change: ChangeOption = False,
    end_in: Annotated[
        str | None,
        typer.Option(metavar="N", help="End the run: let the learning rate fall over its next N updates."),
    ] = None,
    devices: DevicesOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train, resuming where the run stopped.

    Tokenizer and data are made first if they are missing. Ctrl-C saves the state and stops; SIGUSR1 only saves it.
    """
    updates = None if end_in is None else count("--end-in", end_in)
    _require_one_way(fresh, change, end_in is not None)
    number = None if devices is None else count("--devices", devices)
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_train
    from mtkit.training.distributed import started

    found = load_config(config, settings or [])
    ending = [] if end_in is None else ["--end-in", end_in]
    with started(found.device, number, ["train", *_again(config, settings, fresh, change), *ending]) as ranks:
        run_train(found, fresh, change, updates, ranks)


def _again(config: Path, settings: list[str] | None, fresh: bool, change: bool = False) -> list[str]:
    """Returns the command-line arguments with which the other training processes are started.

    These are the path `config`, then each of `settings`, then --fresh and --change where they were given. The name of
    the command is not among them.
    """
    flags = {"--fresh": fresh, "--change": change}
    return [str(config), *(settings or []), *(name for name, is_given in flags.items() if is_given)]


def _require_one_way(fresh: bool, change: bool, ends: bool = False) -> None:
    if fresh and change:
        raise UsageError("--fresh starts anew and --change resumes; give one of them")
    if fresh and ends:
        raise UsageError("--fresh starts anew and --end-in ends the run that is there; give one of them")


def run(
    config: ConfigArgument,
    settings: SettingsArgument = None,
    fresh: FreshOption = False,
    change: ChangeOption = False,
    devices: DevicesOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run every stage that is out of date, then evaluate.

    The stages are train-tokenizer, binarize, train and evaluate; the scores are printed.
    """
    _require_one_way(fresh, change)
    number = None if devices is None else count("--devices", devices)
    from mtkit.config.load import load_config
    from mtkit.evaluation.evaluate import table
    from mtkit.pipeline import run_all
    from mtkit.training.distributed import started

    found = load_config(config, settings or [])
    with started(found.device, number, ["run", *_again(config, settings, fresh, change)]) as ranks:
        scores = run_all(found, fresh, change, ranks)
    if scores:
        print(table(scores), end="")


def race(
    config: ConfigArgument,
    settings: SettingsArgument = None,
    target: Annotated[
        str | None, typer.Option(metavar="SCORE", help="Validation score at which training ends.")
    ] = None,
    fresh: FreshOption = False,
    test: Annotated[bool, typer.Option("--test", help="Then also evaluate on the test sets.")] = False,
    devices: DevicesOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train to a target score and record the time.

    The score is BLEU, or what training.select_by names. All stages that are out of date come first, as in mtkit run.
    race.json in the run directory holds the times, the machine, the versions, the settings and all validations.
    The exit code is 1 if a limit of the settings ends training before the score is reached.
    """
    begun = time.monotonic()
    number = None if devices is None else count("--devices", devices)
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_race
    from mtkit.training.distributed import started
    from mtkit.training.records import race_text

    given = [] if target is None else [f"training.target_score={target}"]
    found = load_config(config, [*(settings or []), *given])
    if found.training.target_score is None:
        raise UsageError("--target SCORE is missing: the validation score at which training ends")
    with started(found.device, number, ["race", *_again(config, [*(settings or []), *given], fresh)]) as ranks:
        record = run_race(found, begun, fresh, test, ranks)
    if not ranks.is_first:
        return
    if not record["reached"]:
        limits = "raise the limits of training (max_steps, max_minutes, patience)"
        raise MtkitError(f"{found.run_path}: {race_text(record, found.run_path)}; {limits}")
    print(race_text(record, found.run_path))


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN|CONFIG", help="Run directory or YAML file.")],
    settings: SettingsArgument = None,
    files_only: Annotated[bool, typer.Option("--files-only", help="Only read the files of the run.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Check that a run is whole and resumes exactly.

    All files of the run are compared with their checksums. Then a few updates are trained twice in a temporary folder,
    once with kills and once without; the results must be the same bit for bit. The run itself is only read.
    """
    from mtkit.training.checkpoint import verify, verify_settings

    faults = []
    for report in verify(verify_settings(run, settings or []), files_only):
        for line in report.lines:
            print(line, flush=True)
        faults += report.faults
    if faults:
        raise CheckpointError("\n".join(faults))


def distill(
    config: ConfigArgument,
    teacher: Annotated[Path, typer.Option(metavar="MODEL", help="Model that translates the training text.")],
    settings: SettingsArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; by default runs/NAME-distilled-text."),
    ] = None,
    keep_original: Annotated[
        bool, typer.Option("--keep-original", help="Let the student train on the original pairs, too.")
    ] = False,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    decoding: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the teacher's decoding."),
    ] = None,
    ensemble: EnsembleOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; earlier translations are deleted.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Make training text with a teacher model.

    The source side of the training text is translated. FOLDER receives both sides of the new text, and student.yaml:
    CONFIG with the new text in data.train. After Ctrl-C or a kill, the same command without --fresh goes on.
    """
    from mtkit.preparation.distill import Teacher, distill

    overrides = [
        *set_settings(decoding),
        *decoding_settings(beam_size, length_penalty, batch_tokens, device),
    ]
    model = Teacher(teacher, overrides, choice("--precision", precision, PRECISIONS), ensemble or [])
    print(distill(load_settings(config, settings), model, output, keep_original, fresh))


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module with `app`."""
    app.command(epilog=f"{EXAMPLE}doctor data/demo/valid.fr data/demo/valid.en")(doctor)
    app.command(epilog=f"{EXAMPLE}clean data/demo/valid.fr data/demo/valid.en -o cleaned")(clean)
    app.command(epilog=f"{EXAMPLE}new my.yaml pairs.fr-en.tsv --minutes 10")(new)
    app.command(epilog=f"{EXAMPLE}config configs/demo.yaml training.max_steps=100")(config)
    app.command(epilog=f"{EXAMPLE}estimate configs/demo.yaml")(estimate)
    app.command(epilog=f"{EXAMPLE}train-tokenizer configs/demo.yaml")(train_tokenizer)
    app.command(epilog=f"{EXAMPLE}binarize configs/demo.yaml")(binarize)
    app.command(epilog=f"{EXAMPLE}train configs/demo.yaml training.max_minutes=2")(train)
    app.command(epilog=f"{EXAMPLE}run configs/demo.yaml")(run)
    app.command(epilog=f"{EXAMPLE}race configs/demo.yaml --target 80")(race)
    app.command(epilog=f"{EXAMPLE}verify runs/demo")(verify)
    app.command(epilog=f"{EXAMPLE}distill configs/demo.yaml --teacher runs/demo")(distill)
