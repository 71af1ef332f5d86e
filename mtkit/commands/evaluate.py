"""`mtkit evaluate`: a model or a text is scored, alone or against another."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mtkit.commands.options import (
    BeamSizeOption,
    DeviceOption,
    LengthPenaltyOption,
    QuietOption,
    UsageError,
    choice,
    decoding_settings,
    language_pair,
    one_standard_input,
    tell_of_typing,
    typed,
)
from mtkit.errors import MtkitError, say, whole_number
from mtkit.files import json_text

THIRDS = "thirds"


class EvaluateCommand(TyperCommand):
    """Takes --by-length without its value, too, which typer has no way to say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left over."""
        given = [
            f"{arg}={THIRDS}" if arg == "--by-length" and not re.fullmatch("[0-9,]+", following) else arg
            for arg, following in pairwise([*args, ""])
        ]
        return super().parse_args(ctx, given)


def evaluate(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Run directory, checkpoint or model bundle.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to translate, in the place of the test sets.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Its reference; several may be given.")
    ] = None,
    test_set: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of sacreBLEU, such as wmt14/full; may be repeated.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="TAG", help="Put before each line of --source or --test-set.")
    ] = None,
    hypothesis: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Translations to score, or -; in the place of MODEL.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL|FILE", help="Compare with these; tells if the difference is significant."),
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="NAME", help="Of --against: bootstrap or randomization.")] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Add bootstrap intervals of 95 %.")] = False,
    by_length: Annotated[
        str | None, typer.Option(metavar="[N,N,…]", help="Score thirds by words of the source, or up to N, up to N, ….")
    ] = None,
    languages: Annotated[
        str | None, typer.Option(metavar="PAIR", help="Such as en-de; picks tokenizers and the text of --test-set.")
    ] = None,
    target_language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Of --hypothesis; picks BLEU's tokenizer.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="NAMES", help="Some of bleu,chrf,chrf++,ter.")] = None,
    tokenize: Annotated[
        str | None, typer.Option(metavar="NAME", help="BLEU's tokenizer in sacreBLEU, such as flores200.")
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Compare without case.")] = False,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    device: DeviceOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of {test_set, metric, score, signature}.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model or a text: BLEU, chrF and TER.

    A model is scored on its test sets, on --source or on --test-set, a text by --hypothesis. Each score has its
    signature.
    """
    overrides = decoding_settings(beam_size, length_penalty, None, device)
    one_standard_input(source, *(reference or ()), hypothesis, against)
    if (model is None) == (hypothesis is None):
        raise UsageError("give either MODEL or --hypothesis")
    if test is not None and against is None:
        raise UsageError("--test goes with --against")
    if confidence and against is not None:
        raise UsageError("--confidence is of one system; --against gives intervals by itself, with --test bootstrap")
    if test_set and (source is not None or reference):
        raise UsageError("--test-set has its own source and reference")
    if target_language is not None and (model is not None or languages is not None):
        raise UsageError("--target-language goes with --hypothesis alone, and not with --languages")
    chosen_test: Any = choice("--test", test or "bootstrap", ("bootstrap", "randomization"))
    given = language_pair(languages)
    pair = (
        dict(zip(("source", "target"), given, strict=True))
        if given
        else ({"target": target_language} if target_language else {})
    )
    edges = _edges(by_length)
    if model is not None:
        if (source is None) != (not reference):
            raise UsageError("--source and --reference go together")
        if tag is not None and source is None and not test_set:
            raise UsageError("--tag goes with --source or --test-set; those of the settings have their own")
    else:
        if overrides or tag is not None:
            raise UsageError("--hypothesis is translated already: no --beam-size, --length-penalty, --device or --tag")
        if not reference and len(test_set or []) != 1:
            raise UsageError("--hypothesis goes with --reference, or with one --test-set")
        if not test_set and (source is None) == (by_length is not None):
            raise UsageError("--hypothesis goes with --source if it is scored --by-length, and only then")

    if typed(*(path for path in (source, *(reference or ()), hypothesis, against) if path is not None)):
        tell_of_typing("for each line of the text that is to be scored")
    from mtkit.config.data_settings import LanguagesConfig
    from mtkit.evaluation.evaluate import Material, Scoring, legend, score_models, score_texts, table
    from mtkit.translation.scores import metric_names, require_tokenizer_name

    chosen_metrics = metric_names(metrics) if metrics is not None else ()
    if tokenize is not None:
        require_tokenizer_name(tokenize)
        if chosen_metrics and "bleu" not in chosen_metrics:
            raise UsageError("--tokenize is of BLEU, which --metrics leaves out")
    scoring = Scoring(
        LanguagesConfig(**pair),
        lowercase,
        confidence,
        chosen_test,
        by_length is not None,
        edges,
        chosen_metrics,
        tokenize,
    )
    material = Material(source, tuple(reference or ()), tuple(test_set or ()), tag)
    if model is not None:
        overrides += [f"languages.{side}={code!r}" for side, code in pair.items()]
        scores = score_models(model, against, overrides, material, scoring)
    else:
        assert hypothesis is not None
        scores = score_texts(hypothesis, against, material, scoring)
    if json:
        print(json_text([score.as_json() for score in scores], indent=1))
    else:
        print(table(scores), end="")
        if marks := legend(scores):
            say(marks)


def _edges(text: str | None) -> tuple[int, ...]:
    """The bucket edges of --by-length."""
    if text in (None, THIRDS):
        return ()
    assert text is not None
    parts = text.split(",")
    edges = tuple(number for number in map(whole_number, parts) if number is not None)
    if len(edges) != len(parts) or list(edges) != sorted(set(edges)):
        raise MtkitError(f"--by-length: found {text}, wants rising whole numbers such as 10,20,30")
    return edges
