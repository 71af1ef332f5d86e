"""`mtkit doctor`: a diagnosis of parallel text, as text for the terminal and as a page."""

from mtkit.doctor.kinds import KINDS, Diagnosis, Example
from mtkit.errors import counted
from mtkit.report.page import Cell, Html, element, note, page, section, table

WIDTH = 110  # characters of an example on the terminal
PAGE_WIDTH = 400  # characters of a side on the page
MOST_FILES = 20  # that the page names


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
    """The text with a visible code, such as <U+200B>, in place of each character that cannot be seen."""
    return "".join(
        character if character.isprintable() or character in "\u00a0\u202f\u3000" else f"<U+{ord(character):04X}>"
        for character in text
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


# The page.


def as_html(diagnosis: Diagnosis) -> str:
    """The diagnosis as a page: a table of the kinds that were found, then each kind with its examples."""
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
    """Returns the text as an HTML `bdi` element.

    The text then has a direction of its own, left to right or right to left, whatever surrounds it.
    """
    return element("bdi", text)
