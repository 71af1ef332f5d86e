"""The pages of the repository: what they tell a reader to type exists, no link is dead, the map of the code is true."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from mtkit.cli import app
from mtkit.commands.options import GROUPS
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig

ROOT = Path(__file__).parent.parent
NAMES = ["README.md", "configs/README.md", "configs/lecture/README.md", "data/README.md", "scripts/README.md"]
NAMES += ["mtkit/README.md", "mtkit/commands/README.md", "mtkit/commands/CHANGES.md"]
PAGES = {name: (ROOT / name).read_text("utf-8") for name in NAMES}

every_page = pytest.mark.parametrize("name", NAMES)


def code_blocks(page: str, language: str = "") -> list[str]:
    """The content of the fenced blocks of a language; those without a language are pictures of folders."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


def typed_lines(page: str) -> Iterator[str]:
    """The command lines of the indented blocks; programs of a pipe one by one; no comments, no redirections."""
    for line in re.findall(r"^    (\S.*)$", prose(page), re.MULTILINE):
        for part in re.split(r" \| | && ", re.sub(r" +#.*| [<>] \S+", "", line)):
            yield re.sub(r"^(?:[A-Z_]+=\S+ +)+", "", part).strip()


def inline_code(page: str) -> list[str]:
    """What stands between backticks, on one line or over two."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


# Links.


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_no_link_is_dead(name):
    links = re.findall(r"\]\(([^)]+)\)", prose(PAGES[name]))
    dead = []
    for link in links:
        path, _, anchor = link.partition("#")
        assert not path.startswith("/"), link
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            dead.append(link)
    assert not dead, f"{name} links to what is not there: {', '.join(dead)}"


def test_every_page_is_reached_from_the_readme():
    reached = {"README.md"}
    for _ in NAMES:
        for name in sorted(reached):
            for link in re.findall(r"\]\(([^)#]+)", PAGES.get(name, "")):
                reached.add(str(((ROOT / name).parent / link).resolve().relative_to(ROOT.resolve())))
    assert set(NAMES) <= reached
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "data" / "pictures").iterdir()} <= reached


@every_page
def test_the_files_that_a_page_names_are_there(name):
    paths = set(re.findall(r"\b(?:scripts|mtkit|configs|tests|data)/[\w./-]*\w", prose(PAGES[name])))
    missing = sorted(path for path in paths if not (ROOT / path).exists() and "NAME" not in path)
    assert not missing, f"{name} names what is not there: {', '.join(missing)}"


# Commands.


def commands() -> dict[str, Any]:
    """The commands of mtkit by what is typed, such as "run" and "plot schedule"."""
    found = dict(typer.main.get_command(app).commands)
    groups = {group: found.pop(group).commands for group in GROUPS}
    return found | {f"{group} {name}": command for group in groups for name, command in groups[group].items()}


COMMANDS = commands()
OPTIONS = {option for command in COMMANDS.values() for item in command.params for option in item.opts}


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """The command that follows `mtkit`, and its arguments."""
    count = 2 if words[0] in GROUPS else 1
    return " ".join(words[:count]), words[count:]


def parsed(line: str) -> dict[str, Any]:
    """The arguments of a command line, read as mtkit reads them; a mistake raises what mtkit would tell."""
    name, arguments = command_of(shlex.split(line)[1:])
    context: Any = COMMANDS[name].make_context(name, arguments)
    return dict(context.params)


@every_page
def test_every_mtkit_command_of_a_page_is_read_without_a_mistake(name, tmp_path, monkeypatch):
    blocks = code_blocks(PAGES["README.md"], "yaml")
    (tmp_path / "my.yaml").write_text(blocks[0], "utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for line in typed_lines(PAGES[name]):
        if not line.startswith("mtkit "):
            continue
        values = parsed(line)
        config = values.get("config")
        if config is not None and config.name == "student.yaml":
            continue  # written by mtkit distill; see test_distill.py
        if config is not None and config != Path("tune.yaml"):  # that one is run by the walk in test_exchange.py
            load_config(config, values["settings"])


@every_page
def test_every_option_that_a_page_names_exists(name):
    for code in inline_code(PAGES[name]):
        words = re.sub(r"[\[\]]|\.\.\.|^OMP_NUM_THREADS=\d+ ", " ", code).split()
        if words[0] == "mtkit" and len(words) > 1 and words[1] != "--help":
            command, arguments = command_of(words[1:])
            assert command in COMMANDS or command in GROUPS, code
            known = {option for item in COMMANDS[command].params for option in item.opts}
            named = {word for word in arguments if re.match(r"--?[a-z]", word)}
            assert named <= known, f"{name}: `{code}`: mtkit {command} has no {', '.join(named - known)}"


def of_mtkit(page: str) -> str:
    """A page without the left column of the table of other toolkits, whose options are not mtkit's."""
    return re.sub(r"(?<=\| there \| here \|\n).*?(?=\n\n)", lambda table: right_column(table[0]), page, flags=re.DOTALL)


def right_column(table: str) -> str:
    return "\n".join(row.split(" | ", 1)[-1] for row in table.splitlines())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "scripts/README.md"])
def test_every_option_that_stands_alone_is_one_of_mtkit(name):
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "scripts").glob("*.py"))
    known = OPTIONS | set(re.findall(r'"(--[a-z-]+)"', sources))
    alone = {code.split()[0] for code in inline_code(of_mtkit(PAGES[name])) if code.startswith("--")}
    assert alone <= known, f"{name}: {', '.join(sorted(alone - known))}"
    for code in inline_code(of_mtkit(PAGES[name])):
        if given := re.fullmatch(r"--set (\w+)=(\w+)", code):
            assert given[2] in get_args(DecodingConfig.model_fields[given[1]].annotation), code


@every_page
def test_every_option_of_a_script_that_a_page_names_exists(name):
    calls = [*typed_lines(PAGES[name]), *inline_code(PAGES[name])]
    for line in calls:
        if script := re.search(r"\b(scripts/[\w]+\.py)\b(.*)", line):
            source = (ROOT / script[1]).read_text("utf-8")
            for option in re.findall(r"(?<= )--[a-z-]+", script[2]):
                assert f'"{option}"' in source, f"{name}: {script[1]} has no {option}"


# Settings.


@every_page
def test_every_setting_that_a_page_names_exists(name):
    schema = Config.model_json_schema()
    sections: dict[str, set[str]] = {}
    for section, keys in schema["properties"].items():
        choices = re.findall(r"#/\$defs/(\w+)", str(keys))
        sections[section] = {key for choice in choices for key in schema["$defs"][choice].get("properties", {})}
    named = re.findall(r"(?<![\w./])(data|tokenizer|model|training|decoding|languages)\.([a-z_]+)\b(?!/)", PAGES[name])
    files = {"py", "json", "png", "yaml", "mtkit"}
    wrong = sorted(f"{section}.{key}" for section, key in named if key not in sections[section] | files)
    assert not wrong, f"{name} names settings that mtkit has not: {', '.join(wrong)}"


@every_page
def test_every_settings_file_of_a_page_is_read(name, tmp_path):
    for number, text in enumerate(code_blocks(PAGES[name], "yaml")):
        if text.startswith("experiment:"):
            continue  # read in tests/experiment/test_lecture.py
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, "utf-8")
        assert load_config(path, []).data.train


# The map of the code.


def test_every_module_has_a_line_in_the_map_of_the_code_and_nothing_else_has():
    (tree,) = (block for block in code_blocks(PAGES["mtkit/README.md"]) if block.startswith("mtkit/"))
    folders, named, mute = [""], [], []
    for line in tree.splitlines()[1:]:
        entry = re.fullmatch(r"( +)(\S+)(?: {2,}(\S.*))?", line)
        assert entry, f"mtkit/README.md: this line of the tree is no module: {line}"
        depth = len(entry[1]) // 2
        path = "".join(folders[:depth]) + entry[2]
        if path.endswith("/"):
            folders[depth:] = [entry[2]]
        named.append(path)
        if not entry[3]:
            mute.append(path)
    package = ROOT / "mtkit"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    there = {re.sub(r"(?<=/)__init__\.py$", "", path) for path in there}  # the line of its folder stands for it
    assert not there - set(named), f"mtkit/README.md has no line for {', '.join(sorted(there - set(named)))}"
    assert not set(named) - there, f"mtkit/README.md has lines for what is gone: {', '.join(set(named) - there)}"
    assert len(named) == len(set(named))
    assert not mute, f"mtkit/README.md does not say what these are for: {', '.join(mute)}"


def test_the_readme_stays_within_two_pages():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_every_recipe_and_every_script_has_a_row():
    for folder, pattern in (("configs", "*.yaml"), ("scripts", "*")):
        page = PAGES[f"{folder}/README.md"]
        files = [
            path for path in (ROOT / folder).glob(pattern) if path.is_file() and path.suffix not in (".md", ".txt")
        ]
        stems = [path.name for path in files if not path.name.startswith("demo_")]  # the grammar's parts share a row
        rows = "\n".join(line for line in page.splitlines() if line.startswith("| "))
        missing = [stem for stem in stems if stem not in rows]
        assert not missing, f"{folder}/README.md has no row for {', '.join(missing)}"
