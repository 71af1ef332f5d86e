"""HTML pages in the house style: text, tables and charts in one file that opens without network and prints on A4.

A page is made of `Html`. Any other text is escaped when it becomes part of a page, so text from users cannot break it.
All that a page says can be read without scripts, in light and dark, and in greyscale: curves differ in dashes, bars
have labels, and weights are drawn as squares of different sizes.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mtkit.errors import MtkitError
from mtkit.files import followed, json_text, require_writable, write_file

# HTML.


class Html(str):
    """HTML source text, which becomes part of a page as it is; any other `str` is escaped first."""

    __slots__ = ()


Content = str | Iterable[str] | None  # what an element may contain; None is left out


def element(name: str, /, *content: Content, **attributes: object) -> Html:
    """Returns the HTML element `name` with the given content and attributes.

    An underscore at the end of an attribute is dropped (`class_`), other underscores become hyphens (`aria_label`). An
    attribute whose value is `None` or `False` is left out; one that is `True` has no value.
    """
    said = [
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    opening = f"<{name}{''.join(said)}>"
    return Html(opening if name in VOID else f"{opening}{joined(*content)}</{name}>")


VOID = ("br", "input", "meta", "col")  # elements that have no content and no closing tag


def joined(*content: Content) -> Html:
    """Returns the given content concatenated; text that is not `Html` is escaped."""
    parts: list[str] = []
    for part in content:
        if isinstance(part, Html):
            parts.append(part)
        elif isinstance(part, str):
            parts.append(escape(part))
        elif part is not None:
            parts.append(joined(*part))
    return Html("".join(parts))


def data_script(name: str, value: Any) -> Html:
    """Returns `value` as JSON in a script element with the id `name`, for scripts of the page to read."""
    text = json_text(value).replace("<", "\\u003c")  # so that no text in it can end the element
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def read_data(page: str, name: str) -> Any:
    """Returns the value that `data_script` put into a page under the id `name`."""
    found = re.search(rf'<script type="application/json" id="{re.escape(name)}">(.*?)</script>', page, re.DOTALL)
    assert found, f"the page has no data called {name}"
    return json.loads(found[1])


# The page and its parts.


def page(title: str, *content: Content, command: str, style: str = "", script: str = "") -> str:
    """Returns a whole page; `style` is further CSS, and `script` JavaScript that runs once the page is loaded.

    `command` names the command that makes the page, such as "report"; `require_page` recognises the page by it. The
    content security policy of the page forbids it to load anything.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = joined(
        element("meta", charset="utf-8"),
        _generator(command),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE + style)),
    )
    body = element("main", element("h1", title), *content)
    scripts = element("script", Html(script)) if script else None
    return f'<!DOCTYPE html>\n<html lang="en">{element("head", head)}{element("body", body, scripts)}</html>\n'


def _generator(command: str) -> Html:
    """Returns the meta element by which `require_page` recognises the pages that `command` makes.

    `page` puts this element within the first HEAD_BYTES bytes of a page.
    """
    return element("meta", name="generator", content=f"mtkit {command}")


HEAD_BYTES = 1000  # from the start of a page, enough to hold the element that _generator returns


def require_page(path: Path, command: str) -> None:
    """Raises MtkitError if `command` cannot write a page to `path`; called before any work is done.

    A file that is at `path` already may be replaced only if it is empty or a page of the same command.
    """
    if path.suffix.lower() != ".html":
        raise MtkitError(f"--output: found {path}, wants a file that ends in .html")
    if path.is_dir():
        raise MtkitError(f"--output: {path}: is a folder, wants the name of a file")
    if not path.parent.is_dir():
        raise MtkitError(f"--output: {path.parent}: no such directory")
    require_writable(followed(path).parent, f"--output: {path}")
    if path.exists() and not (path.is_file() and _may_be_replaced(path, command)):
        raise MtkitError(f"--output: {path}: is there already and is no page of mtkit {command}; name a new file")


def _may_be_replaced(path: Path, command: str) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return not head or _generator(command).encode() in head


def write_page(path: Path, text: str) -> None:
    """Write a page to the file `path`."""
    write_file(path, text.encode("utf-8", "replace"))


def section(title: str, *content: Content, id_: str | None = None) -> Html:
    """Returns a section with the heading `title`.

    The id of the section, for links, is `id_`. The default id consists of the words of the title, joined by hyphens.
    """
    name = id_ or re.sub(r"\W+", "-", title.lower()).strip("-")
    return element("section", element("h2", title), *content, id=name)


def contents(titles: Iterable[tuple[str, str]]) -> Html:
    """Returns a list of links; each item of `titles` is the id of a section and the text of its link."""
    return element("nav", [element("a", text, href=f"#{name}") for name, text in titles], aria_label="Contents")


def note(*content: Content) -> Html:
    """Returns a paragraph in small print."""
    return element("p", *content, class_="note")


def folded(summary: str, *content: Content) -> Html:
    """Returns content that is hidden behind `summary` until the reader clicks on `summary`.

    When the page is printed, folded content is shown, too. Only the folded tables of numbers in figures stay hidden,
    since they may be long.
    """
    return element("details", element("summary", summary), *content)


Cell = str | float | None  # a column of numbers, or of text that is numbers, is aligned to the right


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    caption: str,
    hidden_caption: bool = False,
    stacks: bool = False,
) -> Html:
    """Returns a table; the first cell of each row is its heading.

    A table that is wider than the page is scrolled on its own, without the page. With `hidden_caption`, the caption
    is not shown, only read by screen readers; this suits tables right below a heading. With `stacks`, which suits
    tables of sentences, the cells of a row stand below one another on narrow screens.
    """
    cells = [list(row) for row in rows]
    align = ["number" if all(_is_number(row[place]) for row in cells) else None for place in range(len(head))]
    titles = [
        element("th", name, scope="col", class_=kind) if name else element("td")
        for name, kind in zip(head, align, strict=True)
    ]
    body = [
        element(
            "tr",
            [
                element(
                    "td" if place else "th",
                    cell if cell is None or isinstance(cell, str) else number(cell),
                    scope=None if place else "row",
                    class_=kind,
                    data_head=name or None,
                )
                for place, (name, kind, cell) in enumerate(zip(head, align, row, strict=True))
            ],
        )
        for row in cells
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption, class_="hidden" if hidden_caption else None),
            element("thead", element("tr", titles)),
            element("tbody", body),
            class_="stacks" if stacks else None,
        ),
        class_="wide",
        role="group",
        aria_label=caption,
        tabindex="0",
    )


NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e-?\d+)?( ± [\d.]+)?( %)?")


def _is_number(value: Cell) -> bool:
    if isinstance(value, Html):
        value = re.sub("<[^>]*>", "", value)  # a number may be a link
    return not isinstance(value, str) or value == "" or NUMBER.fullmatch(value) is not None


def number(value: float) -> str:
    """Returns a number as text: whole numbers with thousands separators, others rounded.

    Other numbers are rounded to four significant digits or, from 1,000 on, to whole numbers. NaN and infinities become
    "none".
    """
    if not math.isfinite(value):
        return "none"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


# Charts, drawn in units of about a pixel.

NUM_STYLES = 6  # styles of curves and bars; a chart with more curves or bars repeats styles
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")
WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34  # margins around the plot
MOST_POINTS = 300  # in a curve, about; of a longer curve, every n-th point is drawn


@dataclass(frozen=True)
class Curve:
    """A curve of a chart."""

    label: str
    points: Sequence[tuple[float, float]]  # (x, y), x ascending
    is_marked: bool = False  # whether each point has a dot


def line_chart(title: str, curves: Sequence[Curve], x_label: str) -> Html:
    """Returns a line chart, with its numbers in a folded table below; "" if there are no points.

    There is a legend if there are several curves. Points whose coordinates are not finite are not drawn.
    """
    curves = [Curve(curve.label, _thinned(curve.points), curve.is_marked) for curve in curves]
    points = [point for curve in curves for point in curve.points if all(map(math.isfinite, point))]
    if not points:
        return Html()
    x_ticks, y_ticks = ticks(*_range(x for x, _ in points)), ticks(*_range(y for _, y in points))
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_ticks = [x for x in x_ticks if x_low <= x <= x_high]
    if all(float(x).is_integer() for x, _ in points):  # x is a count, such as updates
        x_ticks = [x for x in x_ticks if x.is_integer()]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    drawn: list[Html] = []
    for y in y_ticks:
        _, height = place(x_low, y)
        drawn.append(element("path", d=f"M{LEFT} {height:.1f}H{WIDTH - RIGHT}", class_="grid"))
        drawn.append(element("text", number(y), x=LEFT - 5, y=f"{height + 4:.1f}", text_anchor="end"))
    for x in x_ticks:
        across, _ = place(x, y_ticks[0])
        anchor = "middle" if across < WIDTH - 30 else "end"  # so that the last number is not cut off
        drawn.append(element("text", number(x), x=f"{across:.1f}", y=HEIGHT - BOTTOM + 15, text_anchor=anchor))
    drawn.append(element("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end"))
    for style, curve in enumerate(curves):
        drawn += _drawn_curve(curve, style, place)
    legend = [element("span", _sample(style), curve.label) for style, curve in enumerate(curves)]
    rows: list[list[Cell]] = [[curve.label, x, y] for curve in curves for x, y in curve.points]
    return element(
        "figure",
        element("figcaption", title),
        _picture(WIDTH, HEIGHT, f"{title}; the figures follow in a table", drawn),
        element("div", legend, class_="legend") if len(curves) > 1 else None,
        folded("Figures", table(("", x_label, title), rows, title, hidden_caption=True)),
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns every n-th point, about `MOST_POINTS` at most, and the last one in any case."""
    stride = max(1, -(-len(points) // MOST_POINTS))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _drawn_curve(curve: Curve, style: int, place: Any) -> list[Html]:
    places = [place(x, y) for x, y in curve.points if math.isfinite(y)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = [element("path", d=path, class_=f"curve s{style % NUM_STYLES}", stroke_dasharray=_dashes(style))]
    if curve.is_marked or len(places) == 1:
        dot = f"dot s{style % NUM_STYLES}"
        drawn += [element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.5, class_=dot) for x, y in places]
    return drawn


def _dashes(style: int) -> str | None:
    return DASHES[style % NUM_STYLES] or None


def _sample(style: int) -> Html:
    """Returns a short piece of a curve, for the legend; `style` is the number of its colour and dashes."""
    path = element("path", d="M0 6H28", class_=f"curve s{style % NUM_STYLES}", stroke_dasharray=_dashes(style))
    return element("svg", path, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")


@dataclass(frozen=True)
class Bar:
    """A bar of a chart."""

    label: str
    value: float  # at least 0
    text: str  # shown behind the bar
    spread: float | None = None  # half the width of an interval around the value, drawn as a whisker
    style: int = 0  # bars of one style have one colour


def bar_chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> Html:
    """Returns a chart of horizontal bars in groups, or "" if there are no bars.

    `groups` holds (heading, bars) for each group; a heading of "" is left out.
    """
    bars = [bar for _, group in groups for bar in group]
    if not bars:
        return Html()
    label_width = 8 + 6.5 * max(len(bar.label) for bar in bars)
    text_width = 10 + 6.5 * max(len(bar.text) for bar in bars)
    most = max(bar.value + (bar.spread or 0) for bar in bars) or 1
    scale = max(WIDTH - label_width - text_width, 60) / most
    drawn: list[Html] = []
    y = 0.0
    for heading, group in groups:
        if heading:
            y += 16
            drawn.append(element("text", heading, x=0, y=f"{y:.0f}", class_="heading"))
        for bar in group:
            drawn.append(element("text", bar.label, x=0, y=f"{y + 15:.0f}"))
            shape = {"x": f"{label_width:.1f}", "y": f"{y + 5:.0f}", "width": f"{bar.value * scale:.1f}", "height": 12}
            drawn.append(element("rect", class_=f"bar s{bar.style % NUM_STYLES}", **shape))
            end = bar.value
            if bar.spread is not None:
                end += bar.spread
                low, high = (label_width + max(bar.value + sign * bar.spread, 0) * scale for sign in (-1, 1))
                middle = y + 11
                path = f"M{low:.1f} {middle - 4}v8M{low:.1f} {middle}H{high:.1f}M{high:.1f} {middle - 4}v8"
                drawn.append(element("path", d=path, class_="whisker"))
            drawn.append(element("text", bar.text, x=f"{label_width + end * scale + 5:.1f}", y=f"{y + 15:.0f}"))
            y += 17
        y += 6
    return element("figure", element("figcaption", title), _picture(WIDTH, y, title, drawn))


def weight_map(title: str, rows: Sequence[str], columns: Sequence[str], weights: Sequence[Sequence[float]]) -> Html:
    """Returns a picture of a matrix of weights from 0 to 1: the area of the square in a cell is its weight.

    `rows` and `columns` name the rows and the columns of `weights`. Squares of less than 1 % are left out. The picture
    has an invisible bar of the class `now`, which scripts may show behind a row.
    """
    size = 13
    left = 6 + 6 * max(map(len, rows), default=0)
    top = 6 + 6 * max(map(len, columns), default=0)
    drawn = [element("rect", x=0, y=top, width=left + size * len(columns), height=size, class_="now", data_top=top)]
    for place, name in enumerate(columns):
        place_of_name = f"translate({left + size * place + 9} {top - 3}) rotate(-90)"
        drawn.append(element("text", name, transform=place_of_name))
    squares = []
    for index, (name, row) in enumerate(zip(rows, weights, strict=True)):
        y = top + size * index
        drawn.append(element("text", name, x=left - 4, y=y + 10, text_anchor="end"))
        for place, weight in enumerate(row):
            if weight >= 0.01:
                side = (size - 1) * math.sqrt(min(weight, 1.0))
                x = left + size * place + (size - side) / 2
                squares.append(f"M{x:.1f} {y + (size - side) / 2:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z")
    drawn.append(element("path", d="".join(squares), class_="squares"))
    width, height = left + size * len(columns) + 2, top + size * len(rows) + 2
    picture = _picture(width, height, title, drawn, fixed=True)
    return element("figure", element("figcaption", title), element("div", picture, class_="wide"), class_="map")


def weighted_words(words: Sequence[str], weights: Sequence[float]) -> Html:
    """Returns words side by side, each on a background as strong as the word's weight, from 0 to 1.

    The weight stands below the word, in %.
    """
    return element("p", [weighted_word(*pair) for pair in zip(words, weights, strict=True)], class_="words")


def weighted_word(word: str, weight: float) -> Html:
    """Returns a word on a background as strong as its weight, from 0 to 1, with the weight below it in %."""
    return element("span", word, element("small", f"{100 * weight:.0f}"), style=f"--w:{100 * min(weight, 1):.0f}%")


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers, evenly spaced, the first at most `low` and the last at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)


def _picture(width: float, height: float, label: str, drawn: Iterable[Html], fixed: bool = False) -> Html:
    """Returns an SVG picture of the elements `drawn`; `label` describes it to screen readers.

    With `fixed`, the picture keeps its size when the page becomes wider or narrower.
    """
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}"} if fixed else {}
    return element("svg", *drawn, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=label, **size)


# The style. Colours: Okabe & Ito (2008), darker in light pages and lighter in dark ones, so that they contrast.

STYLE = """
:root { --paper: #fff; --ink: #1b1d21; --soft: #5a6069; --line: #d5d9de; --panel: #f4f6f8; --link: #0b5c94;
  --s0: #0068a3; --s1: #b84e00; --s2: #007a58; --s3: #a8508a; --s4: #8a6400; --s5: #3a3f47; --mark: #ffe9a8;
  --strong: #7fbfe6; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e7e9ec; --soft: #a7adb6; --line: #3a3f46;
  --panel: #1f2226; --link: #7cc0f2; --s0: #62b5ee; --s1: #f2955a; --s2: #3fc79a; --s3: #e39bc9; --s4: #e0b44c;
  --s5: #cfd3d8; --mark: #5a4a14; --strong: #1f5f8c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p { max-width: 48rem; margin: .5rem 0; }
a { color: var(--link); }
code, pre { font: .88em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); padding: .7rem .9rem; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.note, figcaption, caption { color: var(--soft); font-size: .88rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .8rem 0; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; padding: .2rem 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
th, td { text-align: left; vertical-align: top; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .4rem 1.6rem; }
figure { margin: .6rem 0; min-width: 0; max-width: 30rem; break-inside: avoid; }
figure.map { max-width: 100%; }
.maps { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; }
figcaption { font-weight: 600; margin-bottom: .2rem; }
svg { display: block; max-width: 100%; height: auto; }
.map svg { max-width: none; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--soft); }
svg .heading { fill: var(--ink); font-weight: 600; }
.map text { font-size: 10px; fill: var(--ink); }
.grid { stroke: var(--line); fill: none; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.whisker { stroke: var(--ink); fill: none; }
.squares { fill: var(--s0); }
.now { fill: none; }
.words { display: flex; flex-wrap: wrap; gap: .25rem; max-width: none; }
.words span { padding: .1rem .35rem; border-radius: 3px; text-align: center; print-color-adjust: exact;
  background: color-mix(in srgb, var(--strong) var(--w), var(--panel)); }
.words small { display: block; font-size: .72rem; color: inherit; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; }
.legend span { display: inline-flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; }
.curve.s0 { stroke: var(--s0); } .dot.s0, .bar.s0 { fill: var(--s0); }
.curve.s1 { stroke: var(--s1); } .dot.s1, .bar.s1 { fill: var(--s1); }
.curve.s2 { stroke: var(--s2); } .dot.s2, .bar.s2 { fill: var(--s2); }
.curve.s3 { stroke: var(--s3); } .dot.s3, .bar.s3 { fill: var(--s3); }
.curve.s4 { stroke: var(--s4); } .dot.s4, .bar.s4 { fill: var(--s4); }
.curve.s5 { stroke: var(--s5); } .dot.s5, .bar.s5 { fill: var(--s5); }
@media screen and (max-width: 40rem) {
  .stacks thead, .stacks td:empty { display: none; } .stacks, .stacks :is(caption, tbody, tr) { display: block; }
  .stacks :is(th, td) { display: flow-root; border: 0; padding: .1rem 0; text-align: left; overflow-wrap: anywhere; }
  .stacks tr { border-bottom: 1px solid var(--line); padding: .4rem 0; }
  .stacks [data-head] { padding-left: 8.3rem; }
  .stacks [data-head]::before { content: attr(data-head); color: var(--soft); float: left; width: 7.5rem;
    margin-left: -8.3rem; }
}
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--link); font-size: .9rem; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@page { size: A4; margin: 16mm; }
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --panel: #f4f4f4; --link: #000; --mark: #eee;
    --s0: #0068a3; --s1: #b84e00; --s2: #007a58; --s3: #a8508a; --s4: #8a6400; --s5: #3a3f47;
    --strong: #7fbfe6; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav, .controls { display: none; }
  h2, h3 { break-after: avoid; } tr, pre { break-inside: avoid; } .wide { overflow: visible; }
  td.number, .wide a { white-space: normal; } /* a table wider than the paper would shrink all pages, or be cut off */
  details::details-content { content-visibility: visible; block-size: auto; } figure details { display: none; }
}
"""
