"""What is installed: the package with its data files, its version and its public names."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import mtkit
from mtkit.errors import DataError, MtkitError

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mtkit"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]

BESIDE_THE_CODE = {".md"}  # pages for readers of the repository


def test_every_folder_of_the_package_is_installed_and_no_other():
    setuptools = pytest.importorskip("setuptools")
    found = setuptools.find_packages(str(ROOT), **SETUPTOOLS["packages"]["find"])
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    assert set(found) == {".".join(folder.parts) for folder in folders}
    assert {name.split(".")[0] for name in found} == {"mtkit"}


def test_every_data_file_of_the_package_is_installed():
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    data = {path.relative_to(PACKAGE).as_posix() for path in files if path.suffix not in {".py", *BESIDE_THE_CODE}}
    assert data == set(SETUPTOOLS["package-data"]["mtkit"])


def test_the_version_is_told_in_one_place():
    assert mtkit.__version__ == version("mtkit") == PROJECT["project"]["version"]


def test_the_public_names_are_there_and_wait_for_torch_until_it_is_needed():
    assert all(getattr(mtkit, name) for name in mtkit.__all__)
    assert mtkit.MtkitError is MtkitError
    assert issubclass(DataError, mtkit.MtkitError)
    with pytest.raises(AttributeError, match="module 'mtkit' has no attribute 'nothing'"):
        _ = mtkit.nothing
    program = "import sys, mtkit; mtkit.MtkitError; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
