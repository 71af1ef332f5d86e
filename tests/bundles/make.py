"""Makes the tiny model whose bundle is kept here once for each format.

`PYTHONPATH=tests python tests/bundles/make.py format-2` trains it for some seconds on the toy language of conftest.py,
and writes its bundle into a folder of that name. A format that was released is never made again.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from mtkit.pipeline import run_all
from tests.conftest import CorpusFiles, config_with, toy_settings, write_toy_corpus


def make(kept: Path) -> None:
    """Train, and keep the bundle."""
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)  # so that the settings name no folder of this machine
        run_all(
            config_with(
                toy_settings(CorpusFiles(write_toy_corpus(Path("toy"))), Path("run")),
                tokenizer={"vocab_size": 320},
                model={"d_model": 16, "num_heads": 2, "d_ff": 32},
                training={"max_steps": 1500, "validate_every": 300, "save_every": 300, "learning_rate": 0.02},
            )
        )
        shutil.copytree("run/model", kept)


if __name__ == "__main__":
    make(Path(__file__).resolve().parent / sys.argv[1])
