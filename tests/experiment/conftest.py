"""A folder of two small experiments on the toy language, and what came of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtkit.config.section import write_yaml
from mtkit.experiment.run import Card, Choice, Lab, load_folder, run
from tests.conftest import CorpusFiles, made_once, write_toy_corpus

MODEL = {"d_model": 16, "num_heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1}
TRAINING = {"batch_tokens": 128, "max_steps": 6, "learning_rate": 0.01, "warmup_steps": 2, "validate_every": 3}
TRAINING |= {"save_every": 2, "validation_sentences": 4, "log_every": 1}

MASK = """\
experiment: mask
claim: Without its mask a decoder is another one.
rank: 1
base: base.yaml
variants:
  base: {}
  no mask: {model: {ablate: [causal_mask]}}
controls:
  wide: {model: {d_ff: 32}}
measure: [bleu, perplexity, "perplexity[by source]"]
predict:
  - abs(perplexity["base"] - perplexity["no mask"]) > 0
valid_if:
  - parameters["wide"] > parameters["base"]
sizes: {toy: {}}
picture: {y: perplexity}
"""
ORDER = """\
experiment: order
claim: Other models are other models.
rank: 2
base: base.yaml
variants:
  base: {}
  recurrent: {model: {architecture: rnn, cell: gru}}
measure: ["bleu[by length]", perplexity]
predict:
  - parameters["recurrent"] > 0
sizes: {toy: {}, small: {training: {max_steps: 8}}}
only: {small: [recurrent]}
picture: {kind: lines, y: bleu, x: length}
wrong: By a slip <b>.
known: Little.
references: ["Nobody (1900)"]
exercises: [Think., Think again.]
"""


@dataclass(frozen=True)
class Folder:
    """A folder of experiments."""

    path: Path

    @property
    def cards(self) -> list[Card]:
        """The experiments in it."""
        return load_folder(self.path)

    def write(self, name: str, text: str) -> Path:
        """Write a file into it."""
        (self.path / name).write_text(text, "utf-8")
        return self.path / name


def base_of(corpus: CorpusFiles) -> str:
    """The base of the experiments, as YAML."""
    data = {"root": str(corpus.root), "train": [corpus.pair("train")], "valid": [corpus.pair("valid")]}
    data |= {"test": {"toy": corpus.pair("test")}, "max_length": 24}
    settings = {
        "device": "cpu",
        "languages": {"source": "en", "target": "digits"},
        "data": data,
        "tokenizer": {"vocab_size": 330},
        "model": MODEL,
        "training": TRAINING,
        "decoding": {"beam_size": 1, "max_length_ratio": 1.0, "max_length_extra": 2},
    }
    return "".join(f"{key}: {write_yaml(json.loads(json.dumps(value)))}\n" for key, value in settings.items())


def written(path: Path, corpus: CorpusFiles) -> Folder:
    """Writes the two experiments into a new folder."""
    path.mkdir()
    folder = Folder(path)
    for name, text in (("base.yaml", base_of(corpus)), ("01-mask.yaml", MASK), ("02-order.yaml", ORDER)):
        folder.write(name, text)
    return folder


@pytest.fixture(scope="session")
def few_pairs(tmp_path_factory: pytest.TempPathFactory) -> CorpusFiles:
    """A toy corpus of 120 pairs, enough for trainings of a few updates; must not be changed."""
    return CorpusFiles(made_once(tmp_path_factory, "few", lambda root: write_toy_corpus(root, 120)))


@pytest.fixture
def folder(tmp_path: Path, few_pairs: CorpusFiles) -> Folder:
    """The experiments, in a folder that a test may change."""
    return written(tmp_path / "lecture", few_pairs)


@dataclass(frozen=True)
class Done:
    """Experiments and the folder of their results."""

    folder: Folder
    results: Path

    def lab(self, size: str = "toy") -> Lab:
        """The results at a size."""
        return Lab(self.results, Choice(size))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, few_pairs: CorpusFiles) -> Done:
    """The experiments, run once; must not be changed: copy the results first."""
    place = tmp_path_factory.mktemp("experiments")
    folder = written(place / "lecture", few_pairs)
    lab = Lab(place / "results", Choice())
    import time

    run(folder.cards, lab, 5, time.monotonic())
    return Done(folder, place / "results")
