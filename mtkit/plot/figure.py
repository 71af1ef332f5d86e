"""A sheet to draw on, and how it becomes a file: the home of matplotlib's set-up, with the fonts that a text needs."""

import warnings
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkit.errors import MtkitError
from mtkit.files import write_file
from mtkit.messages import say

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

FORMATS = (".png", ".svg")

# Eight that people with any kind of colour blindness tell apart (Okabe & Ito, 2008), the palest last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", ":", "-.")  # so that a curve shows beneath another, and in grey

MAIN_FONT = "DejaVu Sans"  # comes with matplotlib

STYLE: dict[Any, Any] = {
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: it can be searched, and the reader's fonts show every script
    "svg.hashsalt": "mtkit",  # the same picture is the same file
    "text.parse_math": False,  # a dollar is a dollar
}


def check_output(path: Path) -> None:
    """An MtkitError if no picture can be drawn there; asked before any work."""
    if path.suffix.lower() not in FORMATS:
        raise MtkitError(f"--output: found {path}, wants a file that ends in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise MtkitError(f"--output: {path.parent}: no such directory")
    _matplotlib()


def new_figure(width: float, height: float) -> "Figure":
    """A sheet of so many inches, whose parts are kept from overlapping."""
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style(texts: Iterable[str] = ()) -> Any:
    """A context in which all drawing and saving is to happen; texts are what will be written there."""
    import matplotlib as mpl

    return mpl.rc_context({**STYLE, "font.family": [MAIN_FONT, *fonts_for(set().union(*texts))]})


def line_of(number: int) -> dict[str, Any]:
    """Colour and dashes of a curve, by its number."""
    round_, place = divmod(number, len(COLOURS))  # the second round of colours has other dashes
    return {"color": COLOURS[place], "linestyle": LINES[(place + round_) % len(LINES)]}


def legend_below(figure: "Figure", handles: Sequence["Artist"], labels: Sequence[str]) -> "Legend":
    """Names of the curves under all parts of a sheet, in as many columns, four at most, as its width has room for."""
    for columns in range(min(len(labels), 4), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return legend


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG or SVG, by the ending of the name."""
    kind = path.suffix.lower().removeprefix(".")
    stream = BytesIO()
    with warnings.catch_warnings():
        # fonts_for has told of them; what has no glyph is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support", UserWarning)
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_file(path, stream.getvalue())


def fonts_for(characters: set[str]) -> list[str]:
    """Families of installed fonts that have the characters that the main font lacks; what none has is told."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    def lacking(path: str, wanted: set[str]) -> set[str]:
        font = get_font(path)
        return {character for character in wanted if not font.get_char_index(ord(character))}

    missing = lacking(findfont(FontProperties(family=MAIN_FONT)), {c for c in characters if c.isprintable()})
    families: list[str] = []
    for entry in fontManager.ttflist:
        if not missing:
            break
        # A last resort has a box for every character, which is what missing ones look like anyway.
        if "Last Resort" in entry.name or entry.style != "normal":
            continue
        left = lacking(entry.fname, missing)
        if left < missing and lacking(findfont(FontProperties(family=entry.name)), missing) <= left:
            families.append(entry.name)
            missing = left
    if missing:
        shown = "".join(sorted(missing)[:20])
        say(
            f"mtkit: warning: no installed font has {shown}, drawn as boxes; install one, such as Noto Sans, or write "
            "an .svg, which the fonts of its reader show"
        )
    return families


def _matplotlib() -> None:
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise MtkitError("pictures need matplotlib; install it with: pip install 'mtkit[plot]'") from None
    mpl.set_loglevel("ERROR")
