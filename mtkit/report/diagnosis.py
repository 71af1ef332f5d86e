"""A diagnosis as text for the terminal, and as one HTML page that needs no other file."""

from html import escape

from mtkit.doctor.kinds import KINDS, Diagnosis, Example
from mtkit.errors import counted

WIDTH = 110  # characters of an example on the terminal
PAGE_WIDTH = 400  # characters of a side on the page


def as_text(diagnosis: Diagnosis) -> str:
    """The diagnosis as lines of text, ended by a line feed."""
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
    what = f"{counted(len(found), 'kind')} of faults" if found else "no faults found"
    then = f"; {', '.join(stopping)} should be mended before training" if stopping else ""
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
    """The text with a visible code, such as <U+200B>, in place of each character that cannot be seen."""
    return "".join(
        character if character.isprintable() or character in "\u00a0\u202f\u3000" else f"<U+{ord(character):04X}>"
        for character in text
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --page: #ffffff; --line: #d0d0d0; --soft: #f4f4f2; --stop: #b3261e;
  --quiet: #5a5a5a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --page: #161616; --line: #444444; --soft: #222222;
  --stop: #ff8a80; --quiet: #a8a8a8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
.quiet { color: var(--quiet); } .stop { color: var(--stop); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; white-space: pre-wrap; min-width: 12rem; } td.place { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .3rem 0; }
dt { color: var(--quiet); } dd { margin: 0; }
a { color: inherit; }
@media print { :root { --text: #000; --page: #fff; --line: #999; --stop: #a00; --quiet: #444; }
  body { max-width: none; } section { break-inside: avoid; } }
"""


def as_html(diagnosis: Diagnosis) -> str:
    """The diagnosis as one self-contained page, light or dark as the reader's system is, which can be printed."""
    rows = "".join(_row(diagnosis, name) for name in diagnosis.kinds)
    table = (
        "<div class='scroll'><table><thead><tr><th>Kind<th>Count<th>Share<th>Stops training</thead>"
        f"<tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    files = "".join(f"<dd>{escape(str(path))}</dd>" for path in diagnosis.files[:20])
    more = len(diagnosis.files) - 20
    files += f"<dd>and {more:,} more</dd>" if more > 0 else ""
    notes = "".join(f"<p class='quiet'>{escape(note.capitalize())}.</p>" for note in diagnosis.notes)
    sections = "".join(_section(diagnosis, name) for name in diagnosis.kinds)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>mtkit doctor</title><style>{STYLE}</style></head><body>"
        f"<h1>mtkit doctor</h1><p>{escape(_summary(diagnosis))}.</p><dl><dt>Files</dt>{files}</dl>"
        f"{table}{notes}{sections}</body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.replace(" ", "-").lower()


def _row(diagnosis: Diagnosis, name: str) -> str:
    stops = "<td class='stop'>yes" if diagnosis.is_stopping(name) else "<td>"
    of_files = all(example.text for example in diagnosis.found[name].examples)
    share = "" if of_files else _percent(diagnosis.share(name))
    return (
        f"<tr><td><a href='#{_anchor(name)}'>{escape(KINDS[name].title)}</a>"
        f"<td class='number'>{diagnosis.found[name].count:,}<td class='number'>{share}{stops}"
    )


def _section(diagnosis: Diagnosis, name: str) -> str:
    kind = KINDS[name]
    stop = "<span class='stop'>Stop: </span>" if diagnosis.is_stopping(name) else ""
    examples = "".join(_example(example) for example in diagnosis.found[name].examples)
    return (
        f"<section id='{_anchor(name)}'><h2>{stop}{escape(kind.title)}: {escape(_how_many(diagnosis, name))}</h2>"
        f"<dl><dt>Costs</dt><dd>{escape(kind.cost)}</dd><dt>Helps</dt><dd>{escape(kind.cure)}</dd></dl>"
        f"<div class='scroll'><table>{examples}</table></div></section>"
    )


def _example(example: Example) -> str:
    place = f"<td class='place quiet'>{escape(example.place)}"
    if example.text:
        return f"<tr>{place}<td class='text' colspan='2'>{escape(visible(example.text))}"
    sides = "".join(
        f"<td class='text' dir='auto'>{escape(_cut(visible(side), PAGE_WIDTH))}"
        for side in (example.source, example.target)
    )
    return f"<tr>{place}{sides}"
