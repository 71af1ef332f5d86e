"""`mtkit new`: from files with sentence pairs to settings for a good first model, with the reason for each choice.

The rules are the tables SIZES and DROPOUTS; configs/README.md shows them beside the measurements that they come from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mtkit import __version__
from mtkit.config.load import config_from_text
from mtkit.config.section import write_yaml
from mtkit.config.settings import Config
from mtkit.errors import MtkitError, inform
from mtkit.files import replaced_directory, require_folder, write_file
from mtkit.models.registry import pick_device
from mtkit.preparation.splitting import (
    Languages,
    Split,
    file_endings,
    find_inputs,
    languages_of,
    ordered,
    split_pairs,
)

SEED = 1


class Speed(Protocol):
    """How fast settings train on this machine."""

    @property
    def update_seconds(self) -> float:
        """The seconds of an update."""

    @property
    def pairs_per_update(self) -> float:
        """The number of pairs that an update trains on."""


Measure = Callable[[Config], Speed]

# The rules.


@dataclass(frozen=True)
class Size:
    """A row of SIZES: vocabulary, model and batches that suit up to `pairs` training pairs."""

    pairs: float
    vocab_size: int
    d_model: int
    num_heads: int
    d_ff: int
    layers: int  # of the encoder, and of the decoder
    batch_tokens: int
    source: str  # where the numbers are from


# Smaller vocabularies for less text: Sennrich & Zhang (2019) and Gowda & May (2020), who find the best vocabulary to be
# the largest of which nearly all pieces occur a hundred times. On Multi30k, 6,000 pieces were as good as 10,000, and
# better than 4,000.
SIZES = (
    Size(6000, 2000, 128, 4, 256, 2, 1024, "fewer layers for little text: van Biljon et al. (2020)"),
    Size(20_000, 4000, 128, 4, 256, 3, 1024, "between the rows around it"),
    Size(60_000, 6000, 128, 4, 256, 4, 1024, "multi30k-en-de-transformer, measured with 29,000 pairs"),
    Size(400_000, 8000, 256, 4, 1024, 3, 2048, "tatoeba-fr-en, measured with 156,000 pairs"),
    Size(2_000_000, 16_000, 512, 8, 2048, 4, 4096, "between the rows around it"),
    Size(math.inf, 32_000, 512, 8, 2048, 6, 4096, "the base model of Vaswani et al. (2017), for 4.5 million pairs"),
)

# (the largest number of epochs, the dropout): where pairs are seen once or twice, nothing is learnt by heart, and
# dropout only takes time (measured on Multi30k: 0, 0.1 and 0.3 for 1, 4 and 64 epochs).
DROPOUTS = ((2.0, 0.0), (15.0, 0.1), (50.0, 0.2), (math.inf, 0.3))

# Muon's rates at width 128, measured on Multi30k. At other widths they are taken to fall as 1/width, as Adam's do.
LEARNING_RATE, MATRIX_LEARNING_RATE, MEASURED_WIDTH = 0.016, 0.008, 128

LEAST_UPDATES = 600  # that must fit into the minutes; of 640 updates of 1,024 tokens, Multi30k had 33 BLEU
FEW_UPDATES = 300  # with fewer, a model hardly learns to translate
USABLE = 0.8  # share of the minutes for updates; the rest is for validations and for a machine that becomes slower
MOST_EPOCHS, ENOUGH_UPDATES = 100, 3000  # minutes that go beyond both are not used
ACCELERATOR = 4  # times as many tokens in a batch, which a GPU computes nearly as fast


@dataclass(frozen=True)
class Choice:
    """What was chosen for a number of pairs, with what was measured."""

    size: Size  # of the model and the batches
    vocab_size: int
    wanted: Size  # by the number of pairs alone
    batch_tokens: int
    dropout: float
    minutes: float
    updates: int  # that are expected to fit into the minutes
    epochs: float
    seconds: float  # of an update, measured


def size_for(num_pairs: int) -> int:
    """Returns the index of the row of SIZES for a number of training pairs."""
    return next(index for index, size in enumerate(SIZES) if num_pairs <= size.pairs)


def dropout_for(epochs: float) -> float:
    """Returns the dropout for a training of so many epochs."""
    return next(dropout for most, dropout in DROPOUTS if epochs <= most)


def choose(num_pairs: int, minutes: float, speed_of: Callable[[Size, int], Speed], on_cpu: bool) -> Choice:
    """Returns the vocabulary, model and training that suit a number of pairs and of minutes.

    `speed_of(size, vocab_size)` measures how fast a model trains. The vocabulary is that of the row of SIZES for the
    number of training pairs. The model is of the same row if at least LEAST_UPDATES updates fit into the minutes that
    the user has; if not, it is of the next smaller row for which they fit, or else of the smallest. Minutes that are
    more than a training needs are reduced.
    """
    index = size_for(num_pairs)
    wanted = SIZES[index]
    while True:
        size = SIZES[index]
        speed = speed_of(size, wanted.vocab_size)
        updates = int(60 * minutes * USABLE / speed.update_seconds)
        if updates >= LEAST_UPDATES or index == 0:
            break
        index -= 1
    most = max(ENOUGH_UPDATES, math.ceil(MOST_EPOCHS * num_pairs / speed.pairs_per_update))
    if updates > most:
        minutes = math.ceil(10 * most * speed.update_seconds / USABLE / 60) / 10
        updates = most
    epochs = updates * speed.pairs_per_update / num_pairs
    return Choice(
        size,
        wanted.vocab_size,
        wanted,
        _batch_tokens(size, on_cpu),
        dropout_for(epochs),
        minutes,
        updates,
        epochs,
        speed.update_seconds,
    )


# The command.


def new(path: Path, files: Sequence[Path], languages: Languages | None, minutes: float, measure: Measure) -> str:
    """Writes the settings `path` and, beside them, a folder with training, validation and test text; returns a report.

    `measure` returns how fast settings train. Raises MtkitError if something would be overwritten, or if the files hold
    too few pairs.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise MtkitError(
            f"{path}: wants a name that ends in .yaml, for the settings; the files with text come after it"
        )
    folder, run = path.with_name(f"{path.stem}-data"), Path("runs") / path.stem
    _require_nothing(path, folder, run)
    inputs = find_inputs(files)
    languages = languages or languages_of(inputs)
    if languages is not None:
        inputs = ordered(inputs, languages)
    on_cpu = pick_device("auto").type == "cpu"
    with replaced_directory(folder) as place:
        split = split_pairs(inputs, languages, place, SEED)
        inform(split.told())
        settings = _Settings(path, languages, split, folder)

        def speed_of(size: Size, vocab_size: int) -> Speed:
            draft = Choice(size, vocab_size, size, _batch_tokens(size, on_cpu), 0.1, minutes, 1, 1.0, 1.0)
            return measure(config_from_text(settings.text(draft, place), str(path)))

        choice = choose(split.sizes["train"], minutes, speed_of, on_cpu)
        text = settings.text(choice)
        config_from_text(text, str(path))
    write_file(path, text.encode())
    return settings.report(choice, path)


def _batch_tokens(size: Size, on_cpu: bool) -> int:
    return size.batch_tokens * (1 if on_cpu else ACCELERATOR)


def _require_nothing(path: Path, folder: Path, run: Path) -> None:
    """Raises MtkitError if one of the places is taken, or if the settings cannot be written."""
    for place in (path, folder, run):
        if place.exists():
            raise MtkitError(f"{place}: is there already, and nothing is overwritten; choose another name")
    if not path.parent.is_dir():
        raise MtkitError(f"{path}: there is no folder {path.parent}; make it, or choose another one")
    require_folder(folder)


# The settings.


@dataclass(frozen=True)
class _Settings:
    """What the YAML says besides the choice."""

    path: Path
    languages: Languages | None
    split: Split
    folder: Path

    def text(self, choice: Choice, folder: Path | None = None) -> str:
        """Returns the settings as YAML, with a reason for each choice; `folder` is where the text is now."""
        size, num_pairs = choice.size, self.split.sizes["train"]
        endings = file_endings(self.languages)

        def corpus(name: str) -> str:
            return f"{{source: {name}.{endings[0]}, target: {name}.{endings[1]}}}"

        languages = [] if self.languages is None else [f"languages: {_flow(*self.languages)}"]
        smaller = "" if choice.wanted == size else f"; made smaller, since {_minutes(choice.minutes)} are few"
        near = "nearly equal" if self.split.near else "equal"
        rate, matrix_rate = (
            f"{rate * MEASURED_WIDTH / size.d_model:g}" for rate in (LEARNING_RATE, MATRIX_LEARNING_RATE)
        )
        lines = [
            f"# Made by mtkit {__version__} on {datetime.now(UTC).date().isoformat()}.",
            f"# {self.split.told()}.",
            f"# mtkit run {self.path}",
            f"name: {write_yaml(self.path.stem)}",
            *languages,
            "data:",
            f"  # Sentences that are {near}, on either side, were kept on one side of the split.",
            f"  root: {write_yaml(str(folder or self.folder))}",
            f"  train: [{corpus('train')}]",
            f"  valid: [{corpus('valid')}]",
            f"  test: {{test: {corpus('test')}}}",
            "tokenizer:",
            f"  # For {num_pairs:,} pairs; more text wants a larger vocabulary.",
            f"  vocab_size: {choice.vocab_size}",
            "model:",
            f"  # {_as_sentence(size.source)}{smaller}.",
            f"  d_model: {size.d_model}",
            f"  num_heads: {size.num_heads}",
            f"  d_ff: {size.d_ff}",
            f"  encoder_layers: {size.layers}",
            f"  decoder_layers: {size.layers}",
            f"  # Each pair is seen about {choice.epochs:,.1f} times; the more often, the more dropout.",
            f"  dropout: {choice.dropout:g}",
            "  # These two learn faster, measured on Multi30k.",
            "  positions: rotary",
            "  residual_init: zero",
            "training:",
            f"  # An update took {choice.seconds:.2g} s here, so that about {choice.updates:,} fit. Training measures",
            "  # again, and chooses their number, warm-up and validations by it.",
            f"  max_minutes: {choice.minutes:g}",
            "  max_steps: auto",
            "  # Small batches make more updates of the same text, large ones more of a GPU.",
            f"  batch_tokens: {choice.batch_tokens}",
            "  # Muon reaches the scores of Adam in less than half of the updates; its rates fall as d_model grows.",
            "  optimizer: muon",
            "  schedule: linear",
            f"  learning_rate: {rate}",
            f"  matrix_learning_rate: {matrix_rate}",
            "  validation_sentences: 500",
        ]
        return "\n".join(lines) + "\n"

    def report(self, choice: Choice, path: Path) -> str:
        """Returns what was made and what comes next, in a few lines."""
        size = choice.size
        lines = [
            self.split.told(),
            f"{self.folder}: train, valid and test, as text",
            f"{path}: {choice.vocab_size:,} pieces, {size.layers} + {size.layers} layers of width {size.d_model}, "
            f"dropout {choice.dropout:g}; about {choice.updates:,} updates, {choice.epochs:,.1f} epochs, in "
            f"{_minutes(choice.minutes)}",
        ]
        if choice.updates < FEW_UPDATES:
            lines.append("so few updates teach a model little; give it more --minutes, or an idle machine")
        if self.languages is None:
            lines.append("the languages are not known, by which BLEU cuts words; better say --languages, such as fr-en")
        else:
            lines.append(f"from {self.languages[0]} to {self.languages[1]}; --languages turns that round")
        return "\n".join([*lines, f"next: mtkit run {path}"]) + "\n"


def _flow(source: str, target: str) -> str:
    return write_yaml({"source": source, "target": target})


def _minutes(minutes: float) -> str:
    return "1 minute" if minutes == 1 else f"{minutes:g} minutes"


def _as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
