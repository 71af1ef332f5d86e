"""The house stands: imports point down, and every third-party package has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mtkit"

# From the top down. A module may import what stands on a later line, and its own folder.
FLOORS = [
    "cli",
    "commands",
    "experiment",
    "pipeline",
    "evaluation",
    "training",
    "preparation",
    "exchange",
    "translation",
    "bundle",
    "models",
    "data",
    "text",
    "config",
    "files",
    "errors",
]
FLOOR_OF = {name: floor for floor, name in enumerate(FLOORS)}

# The modules or folders that may import a package; what is not listed here is free.
HOMES: dict[str, set[str]] = {
    "typer": {"cli.py", "commands"},
    "yaml": {"config/section.py"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "sentencepiece": {"text/tokenizer.py", "text/vocabulary.py"},
    "sacrebleu": {"translation/scores.py", "preparation/sources.py"},
    "tensorboard": {"training/records.py"},
    "torch.utils.tensorboard": {"training/records.py"},
    "regex": {"preparation/encoding.py"},
    "tqdm": {"errors.py", "training/records.py"},
    "zstandard": {"text/lines.py"},
    "matplotlib": {"evaluation/plot.py"},
    "safetensors": {"bundle", "training/checkpoint.py", "exchange/huggingface.py"},
    "ctranslate2": {"exchange/engines.py"},
    "transformers": {"exchange/portable.py"},
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


@cache
def imports_of(module: Path) -> list[str]:
    """Every module that a module of mtkit imports."""
    return list(imports(module.read_text(encoding="utf-8"), ".".join(module.parent.relative_to(ROOT).parts)))


def wrong_way(importer: str, imported: str) -> bool:
    """Whether a module of room importer must not import from room imported."""
    return importer != imported and FLOOR_OF[imported] <= FLOOR_OF[importer]


def test_imports_point_down() -> None:
    for module in MODULES:
        _check_imports(module)


def _check_imports(module: Path) -> None:
    assert top(module) in FLOOR_OF, f"{place(module)} has no floor; give it one in FLOORS"
    for name in imports_of(module):
        first, _, rest = name.partition(".")
        if first == "mtkit" and not rest.startswith("__"):
            imported = rest.split(".")[0]
            assert imported in FLOOR_OF, f"{place(module)} imports {name}, which has no floor"
            assert not wrong_way(top(module), imported), f"{place(module)} imports {name}, which is not below it"


def test_every_third_party_package_has_one_home() -> None:
    seen = set()
    for module in MODULES:
        for name in imports_of(module):
            homes = HOMES.get(name, HOMES.get(name.split(".")[0]))
            at_home = homes is None or place(module) in homes or top(module) in homes
            assert at_home, f"{place(module)} imports {name}; its home is {sorted(homes or []) or 'nowhere'}"
            seen.add(name.split(".")[0])
    used = {name for name, homes in HOMES.items() if homes and "." not in name}
    assert used <= {*seen, "tensorboard"}, "HOMES names a package that nothing imports"


def test_settings_text_and_errors_do_not_import_torch() -> None:
    rooms = {"config", "text", "errors", "files"}
    found = [(place(module), name) for module in MODULES if top(module) in rooms for name in imports_of(module)]
    assert found
    assert [where for where, name in found if name.split(".")[0] == "torch"] == []


def test_the_init_of_a_room_is_a_docstring_of_a_few_lines() -> None:
    inits = sorted(set(PACKAGE.rglob("__init__.py")) - DOORS)
    assert inits
    for init in inits:
        (only,) = ast.parse(init.read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr), place(init)
        assert isinstance(only.value, ast.Constant), place(init)
        assert 2 <= len(str(only.value.value).splitlines()) <= 6, place(init)


def test_what_must_answer_at_once_does_not_wait_for_torch() -> None:
    names = "mtkit, mtkit.errors, mtkit.config.load, mtkit.config.settings, mtkit.cli"
    code = f"import sys, {names}; print(sorted({{'torch', 'sacrebleu', 'sentencepiece'}} & set(sys.modules)))"
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
        *(
            "a.b",
            "d",
            "e.f",
            "mtkit.errors",
            "mtkit.__version__",
            "mtkit.text",
            "mtkit.batch",
            "mtkit.search.beam",
            "j",
        )
    }


def test_up_is_the_wrong_way() -> None:
    assert wrong_way("text", "data")
    assert wrong_way("translation", "training")
    assert wrong_way("config", "cli")
    assert wrong_way("errors", "files")
    assert not wrong_way("text", "text")
    assert not wrong_way("cli", "training")
    assert not wrong_way("training", "translation")
    assert not wrong_way("exchange", "errors")
