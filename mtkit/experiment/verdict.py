"""Verdicts: expressions over measures, their noise, and whether a claim holds.

Shapes: S seeds, B resamples of the test sentences. The values of a measure are (S, 1 + B): for each seed, the measure
on the test sentences themselves, then on resamples, which are the same for all variants. So every expression of
measures has values of this shape, and a difference of two variants is resampled in pairs (Koehn, 2004).
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mtkit.experiment.card import Card

Values = NDArray[np.float64]  # (S, 1 + B); either may be 1 where nothing varies

# Expressions.

BOARD = "board"  # the name that stands for the results of checks without training


@dataclass(frozen=True)
class Reference:
    """A measure of a variant, such as `bleu["base", "long"]`, or a result of a board."""

    measure: str  # or BOARD
    variant: str  # or the name of the board
    subset: str | None = None  # of the test sentences, or the name of the result of the board

    def __str__(self) -> str:
        """The reference as it is written in an expression."""
        quoted = [f'"{name}"' for name in (self.variant, self.subset) if name is not None]
        return f"{self.measure}[{', '.join(quoted)}]"


@dataclass(frozen=True)
class Expression:
    """An expression of a card, such as `bleu["base"] - bleu["no mask"] >= 5`."""

    text: str
    tree: ast.expr

    @property
    def references(self) -> tuple[Reference, ...]:
        """What the expression refers to, each once, in order."""
        return tuple(dict.fromkeys(_references(self.tree)))


ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": np.abs, "min": np.minimum, "max": np.maximum}
COMPARISONS = (ast.GtE, ast.Gt, ast.LtE, ast.Lt, ast.Eq)
WANTED = (
    'wants numbers, MEASURE["variant"], + - * /, abs, min, max, comparisons (>= > <= < ==), and, or, not, such as '
    'bleu["base"] - bleu["no mask"] >= 5'
)


def parse(text: str) -> Expression:
    """Returns the expression in `text`, which is true or false. Raises ValueError if there is a mistake in it."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"found {text}, {WANTED}") from None
    _check(tree, text, is_truth=True)
    return Expression(text.strip(), tree)


def _check(node: ast.expr, text: str, is_truth: bool) -> None:
    """Raises ValueError unless `node` is an expression of the wanted kind, with known parts.

    With `is_truth`, the kind is a comparison, or several joined by and, or and not; otherwise, it is a number. `text`,
    the whole expression, is quoted in the error.
    """
    match node:
        case ast.BoolOp(values=parts) if is_truth:
            for part in parts:
                _check(part, text, True)
        case ast.UnaryOp(op=ast.Not(), operand=part) if is_truth:
            _check(part, text, True)
        case ast.Compare(left=left, ops=ops, comparators=others) if is_truth:
            if wrong := [kind for kind in ops if not isinstance(kind, COMPARISONS)]:
                raise ValueError(f"found {type(wrong[0]).__name__.lower()} in {text}, {WANTED}")
            for part in (left, *others):
                _check(part, text, False)
        case _ if is_truth:
            raise ValueError(f"found {ast.unparse(node)} in {text}, which is no comparison; {WANTED}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            _check(left, text, False)
            _check(right, text, False)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=part):
            _check(part, text, False)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
            if len(parts) < 1 or (name == "abs") != (len(parts) == 1):
                raise ValueError(f"found {ast.unparse(node)} in {text}; abs takes one number, min and max take several")
            for part in parts:
                _check(part, text, False)
        case ast.Subscript(value=ast.Name(), slice=index):
            if not 1 <= len(_names(index)) <= 2:
                raise ValueError(f"found {ast.unparse(node)} in {text}; names stand in quotes, and are one or two")
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            pass
        case _:
            raise ValueError(f"found {ast.unparse(node)} in {text}, {WANTED}")


def _names(index: ast.expr) -> list[str]:
    """The names between the brackets of a reference; empty if they are no texts."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    names = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return names if len(names) == len(parts) else []


def _reference(node: ast.Subscript) -> Reference:
    assert isinstance(node.value, ast.Name)
    return Reference(node.value.id, *_names(node.slice))


def _references(tree: ast.expr) -> Iterator[Reference]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset)):
        yield _reference(node)


# Values, and their noise.

Lookup = Callable[[Reference], Values]

# Quantiles of Student's t distribution for 95 % intervals, by the number of seeds.
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
SAME = 1e-12  # numbers that differ by at most this are equal


@dataclass(frozen=True)
class Estimate:
    """A number with its noise."""

    value: float
    noise: float  # half the width of the 95 % interval, 0 if it is exact
    num_seeds: int = 1


def estimate(values: Values) -> Estimate:
    """Returns the mean over the seeds, with the noise of the sentences and, where there are several, of the seeds.

    The noise of the sentences is half the width of the bootstrap interval. The noise of the seeds is that of their
    mean, by Student's t distribution. The two are independent, so their squares are added.
    """
    points = values[:, 0]
    noise = 0.0
    if values.shape[1] > 1:
        resampled = values[:, 1:].mean(0)
        low, high = np.percentile(resampled, [2.5, 97.5]) if np.isfinite(resampled).all() else (0.0, 0.0)
        noise = float(high - low) / 2
    if len(points) > 1:
        quantile = T_QUANTILES.get(len(points), 2.0)
        # Where a seed diverged, the others tell nothing of the mean.
        unsure = 0.0 if (points == points[0]).all() else math.inf
        spread = float(points.std(ddof=1)) if np.isfinite(points).all() else unsure
        noise = math.hypot(noise, quantile * spread / math.sqrt(len(points)))
    return Estimate(float(points.mean()), noise, len(points))


def value_of(node: ast.expr, lookup: Lookup) -> Values:
    """Returns the values of a numeric expression, of which all measures have the same seeds."""
    match node:
        case ast.Constant(value=value):
            return np.full((1, 1), float(value))  # type: ignore[arg-type]
        case ast.Subscript():
            return lookup(_reference(node))
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -value_of(part, lookup)
        case ast.UnaryOp(operand=part):
            return value_of(part, lookup)
        case ast.BinOp(left=left, op=op, right=right):
            with np.errstate(all="ignore"):
                return np.asarray(ARITHMETIC[type(op)](value_of(left, lookup), value_of(right, lookup)))
        case ast.Call(func=ast.Name(id="abs"), args=[part]):
            return np.abs(value_of(part, lookup))
        case ast.Call(func=ast.Name(id=name), args=parts):
            first, *others = (value_of(part, lookup) for part in parts)
            for other in others:
                first = FUNCTIONS[name](first, other)
            return first
    raise AssertionError(f"{ast.unparse(node)} was checked")


# Findings: whether an expression is true.

HOLDS, NOISE, FAILS = "holds", "within noise", "does not hold"
NOT_RUN, NOT_HERE = "not run", "not at this size"
_ORDER = {FAILS: -1, NOISE: 0, HOLDS: 1}


@dataclass(frozen=True)
class Finding:
    """What came of a prediction or a condition of validity."""

    text: str
    state: str  # one of HOLDS, NOISE, FAILS, NOT_RUN, NOT_HERE
    is_true: bool = False  # whether it is true of the values alone, without regard to noise
    margin: Estimate | None = None  # left side minus right side, of a single comparison
    sides: tuple[Estimate, Estimate] | None = None
    condition: str | None = None  # of a prediction with `if`


class MissingError(Exception):
    """A measure is not there; `state` is NOT_RUN, or NOT_HERE if this size does not have it."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


def find(expression: Expression, lookup: Lookup, condition: str | None = None) -> Finding:
    """Returns the finding on an expression: whether it holds, and by how much.

    If a measure is missing, for which `lookup` raises MissingError, the state of the finding says so, and no error is
    raised. If measures have different numbers of seeds, only the first seeds count, as many as all measures have;
    results of boards have no seeds and do not matter here. The finding contains `condition`.
    """
    states: list[str] = []
    values: dict[Reference, Values] = {}
    for reference in expression.references:
        try:
            values[reference] = lookup(reference)
        except MissingError as missing:
            states.append(missing.state)
    if states:
        return Finding(expression.text, NOT_HERE if NOT_HERE in states else NOT_RUN, condition=condition)
    measured = [len(found) for reference, found in values.items() if reference.measure != BOARD]
    num_seeds = min(measured, default=1)
    found = _found(expression.tree, lambda reference: values[reference][:num_seeds])
    return Finding(expression.text, found.state, found.is_true, found.margin, found.sides, condition)


def _found(node: ast.expr, lookup: Lookup) -> Finding:
    match node:
        case ast.BoolOp(op=op, values=parts):
            findings = [_found(part, lookup) for part in parts]
            choose, together = (min, all) if isinstance(op, ast.And) else (max, any)
            state = choose((finding.state for finding in findings), key=_ORDER.__getitem__)
            return Finding("", state, together(finding.is_true for finding in findings))
        case ast.UnaryOp(op=ast.Not(), operand=part):
            finding = _found(part, lookup)
            opposite = {HOLDS: FAILS, FAILS: HOLDS, NOISE: NOISE}
            return Finding("", opposite[finding.state], not finding.is_true)
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [value_of(part, lookup) for part in (left, *others)]
            findings = [_compared(sides[place], op, sides[place + 1]) for place, op in enumerate(ops)]
            if len(findings) == 1:
                return findings[0]
            state = min((finding.state for finding in findings), key=_ORDER.__getitem__)
            return Finding("", state, all(finding.is_true for finding in findings))
    raise AssertionError(f"{ast.unparse(node)} was checked")


def _compared(left: Values, op: ast.cmpop, right: Values) -> Finding:
    """Whether a comparison is true by more than noise, false by more than noise, or neither."""
    with np.errstate(all="ignore"):
        margin = estimate(np.asarray(left - right))
    sides = estimate(left), estimate(right)
    value = margin.value
    if math.isnan(value):  # infinity minus infinity: nothing is known of the difference
        return Finding("", NOISE, False, margin, sides)
    if isinstance(op, ast.Eq):
        is_true = abs(value) <= SAME
        state = HOLDS if is_true and not margin.noise else FAILS if abs(value) > margin.noise + SAME else NOISE
        return Finding("", state, is_true, margin, sides)
    if isinstance(op, ast.LtE | ast.Lt):
        value = -value
    is_true = value >= -SAME if isinstance(op, ast.GtE | ast.LtE) else value > SAME
    is_exact = margin.noise <= SAME
    state = (HOLDS if is_true else FAILS) if is_exact or abs(value) > margin.noise else NOISE
    return Finding("", state, is_true, margin, sides)


# Verdicts.

CLAIM_HOLDS = "holds"
HOLDS_IF = "holds if …"
CONTRADICTED = "contradicted"
NOT_SHOWN = "not shown on this device or size"
INVALID = "experiment invalid"
NOT_TESTED = "not run"
VERDICTS = (CLAIM_HOLDS, HOLDS_IF, CONTRADICTED, NOT_SHOWN, INVALID, NOT_TESTED)


@dataclass(frozen=True)
class Verdict:
    """What came of an experiment."""

    kind: str  # one of VERDICTS
    text: str  # `kind`, with the condition if there is one
    predictions: tuple[Finding, ...]
    conditions: tuple[Finding, ...]  # of validity


def judge(card: "Card", lookup: Lookup) -> Verdict:
    """Returns the verdict on a card, computed from its predictions and conditions of validity alone."""
    predictions = tuple(find(parse(each.expression), lookup, each.condition) for each in card.predict)
    conditions = tuple(find(parse(text), lookup) for text in card.valid_if)
    kind, text = _verdict(predictions, conditions)
    return Verdict(kind, text, predictions, conditions)


def _verdict(predictions: Sequence[Finding], conditions: Sequence[Finding]) -> tuple[str, str]:
    known = [finding for finding in conditions if finding.state not in (NOT_RUN, NOT_HERE)]
    if any(not finding.is_true for finding in known):
        return INVALID, INVALID
    if any(finding.state == NOT_RUN for finding in (*predictions, *conditions)):
        return NOT_TESTED, NOT_TESTED
    general = [finding for finding in predictions if finding.condition is None]
    special = [finding for finding in predictions if finding.condition is not None and finding.state != NOT_HERE]
    if any(finding.state == NOT_HERE for finding in (*general, *conditions)) or not (general or special):
        return NOT_SHOWN, NOT_SHOWN
    if all(finding.state == HOLDS for finding in (*general, *special)):
        return CLAIM_HOLDS, CLAIM_HOLDS
    if any(finding.state == FAILS for finding in general):
        return CONTRADICTED, CONTRADICTED
    if any(finding.state == NOISE for finding in general):
        return NOT_SHOWN, NOT_SHOWN
    if general:
        words = {FAILS: "not if", NOISE: "not shown if"}
        others = [f"{words[finding.state]} {finding.condition}" for finding in special if finding.state != HOLDS]
        return HOLDS_IF, f"holds, but {', and '.join(others)}"
    if held := [finding.condition for finding in special if finding.state == HOLDS]:
        return HOLDS_IF, f"holds if {' and if '.join(map(str, held))}"
    if any(finding.state == FAILS for finding in special):
        return CONTRADICTED, CONTRADICTED
    return NOT_SHOWN, NOT_SHOWN
