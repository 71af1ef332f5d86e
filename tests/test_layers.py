"""The house stands: imports point down, never sideways or up, and every third-party package has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mtkit"

# From the top down. A module may import what stands on a later line, and its own folder.
FLOORS = [
    {"cli"},
    {"plot_commands", "evaluate_command", "bundle_commands", "exchange_commands"},
    {"options", "usage"},
    {"verify"},
    {"pipeline", "bundling", "intact"},
    {
        "prepare",
        "train",
        "translate",
        "score",
        "evaluate",
        "export",
        "importing",
        "extend",
        "plot",
        "pack",
        "info",
        "check",
    },
    {"pace"},
    {"validation", "objective", "feed", "records", "proof", "text_warnings"},
    {"canaries", "changes", "fresh", "agreement"},
    {"translator", "start", "identity"},
    {"alignment"},
    {"likelihood", "mbr"},
    {"decode", "encode", "scores", "testsets", "opening"},
    {"bleu", "significance"},
    {"text", "data", "models", "training", "search", "formats"},
    {"config"},
    {"files"},
    {"progress", "ending"},
    {"messages", "arguments"},
    {"batch", "errors", "symbols", "model_proto", "json_text"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# The modules or folders that may import a package; what is not listed here is free.
HOMES: dict[str, set[str]] = {
    "typer": {
        "cli.py",
        "plot_commands.py",
        "evaluate_command.py",
        "bundle_commands.py",
        "exchange_commands.py",
        "options.py",
    },
    "yaml": {"config"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "sentencepiece": {"text/tokenizer.py", "text/tokenizer_training.py", "text/mapped.py", "text/existing.py"},
    "sacrebleu": {"bleu.py", "scores.py", "significance.py", "testsets.py"},
    "tensorboard": {"training/board.py"},
    "torch.utils.tensorboard": {"training/board.py"},
    "regex": {"text/cleaning.py"},
    "zstandard": {"text/packing.py"},
    "matplotlib": {"plot"},
    "safetensors": {"training/checkpoint.py", "formats"},
    "ctranslate2": {"formats/ctranslate2.py"},
    "transformers": {"formats/observed.py"},
    "click": set(),
    "pickle": set(),
}

# What hands out the public names, and what starts the command line, stand outside the house.
DOORS = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
MODULES = sorted(set(PACKAGE.rglob("*.py")) - DOORS)


def place(module: Path) -> str:
    """The name of a module below the package: text/tokenizer.py."""
    return module.relative_to(PACKAGE).as_posix()


def top(module: Path) -> str:
    """The folder of a module, or its own name where it stands at the top."""
    return place(module).split("/")[0].removesuffix(".py")


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a source text imports, at its top or inside a function; package is where it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            # `from mtkit import errors` imports a module; its parts have names in FLOOR_OF.
            yield from (f"{name}.{alias.name}" for alias in node.names) if name == "mtkit" else (name,)


def imports_of(module: Path) -> list[str]:
    """Every module that a module of mtkit imports."""
    return list(imports(module.read_text(encoding="utf-8"), ".".join(module.parent.relative_to(ROOT).parts)))


def wrong_way(importer: str, imported: str) -> bool:
    """Whether a module of one top name may not import from another."""
    return importer != imported and FLOOR_OF[imported] <= FLOOR_OF[importer]


@pytest.mark.parametrize("module", MODULES, ids=place)
def test_imports_point_down(module: Path) -> None:
    assert top(module) in FLOOR_OF, f"{place(module)} has no floor; give it one in FLOORS"
    for name in imports_of(module):
        first, _, rest = name.partition(".")
        if first == "mtkit" and not rest.startswith("__"):
            imported = rest.split(".")[0]
            assert imported in FLOOR_OF, f"{place(module)} imports {name}, which has no floor"
            assert not wrong_way(top(module), imported), f"{place(module)} imports {name}, which is not below it"


@pytest.mark.parametrize("module", MODULES, ids=place)
def test_every_third_party_package_has_one_home(module: Path) -> None:
    for name in imports_of(module):
        homes = HOMES.get(name, HOMES.get(name.split(".")[0]))
        at_home = homes is None or place(module) in homes or top(module) in homes
        assert at_home, f"{place(module)} imports {name}; its home is {sorted(homes or []) or 'nowhere'}"


@pytest.mark.parametrize("module", MODULES, ids=place)
def test_settings_and_errors_do_not_import_torch(module: Path) -> None:
    if top(module) in {"config", "errors", "symbols"}:
        assert not [name for name in imports_of(module) if name.split(".")[0] == "torch"]


def test_the_init_of_a_folder_is_empty() -> None:
    inits = sorted(set(PACKAGE.rglob("__init__.py")) - DOORS)
    assert inits
    assert [place(init) for init in inits if init.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("name", ["mtkit", "mtkit.errors", "mtkit.config.load", "mtkit.config.show", "mtkit.cli"])
def test_what_must_answer_at_once_does_not_wait_for_torch(name: str) -> None:
    if not any((ROOT / name.replace(".", "/")).with_suffix(suffix).exists() for suffix in ("", ".py")):
        pytest.skip(f"{name} is not there")
    code = f"import sys, {name}; print(sorted({{'torch', 'sacrebleu', 'sentencepiece'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_imports_are_found_wherever_and_however_they_are_written() -> None:
    source = """
import a.b as c, d
from e.f import g
from mtkit import errors, __version__
from mtkit.text import lines
from . import h
from .. import batch
from ..search.beam import i
def function():
    if True:
        import j
"""
    assert set(imports(source, "mtkit.text")) == {
        *("a.b", "d", "e.f", "mtkit.errors", "mtkit.__version__", "mtkit.text", "mtkit.batch", "mtkit.search.beam", "j")
    }


def test_sideways_and_up_are_the_wrong_way() -> None:
    assert wrong_way("text", "data")
    assert wrong_way("train", "translate")
    assert wrong_way("scores", "translator")
    assert wrong_way("config", "cli")
    assert wrong_way("errors", "batch")
    assert not wrong_way("text", "text")
    assert not wrong_way("cli", "train")
    assert not wrong_way("formats", "errors")
