"""log.jsonl, and what a line of it sums up."""

import math
from dataclasses import dataclass
from pathlib import Path

from mtkit.errors import CheckpointError
from mtkit.json_text import json_text
from mtkit.training.board import Board


@dataclass(frozen=True)
class Update:
    """What one update was like."""

    loss: float  # sums over its target tokens, in nats
    likelihood: float
    tokens: int
    norm: float  # of the gradient, before clipping
    rate: float
    padding: float  # share of places without a token
    consistency: float | None = None  # divergence of two passes, a sum as above

    @property
    def is_finite(self) -> bool:
        """Whether it may be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass
class Window:
    """Sums over the updates since the last line of the log; in the checkpoint, so that no kill changes a line."""

    updates: int = 0
    loss: float = 0.0
    likelihood: float = 0.0
    tokens: int = 0
    norm: float = 0.0
    padding: float = 0.0
    rate: float = 0.0  # of the last one
    since: float = 0.0  # seconds of training when it began
    consistency: float | None = None

    def add(self, update: Update) -> None:
        """One more."""
        self.updates += 1
        self.loss += update.loss
        self.likelihood += update.likelihood
        self.tokens += update.tokens
        self.norm += update.norm
        self.padding += update.padding
        self.rate = update.rate
        if update.consistency is not None:
            self.consistency = (self.consistency or 0.0) + update.consistency

    def record(self, seconds: float) -> dict[str, float]:
        """Means of what was added, which is not nothing, after so many seconds of training; losses in nats a token."""
        agreement = {} if self.consistency is None else {"consistency": round(self.consistency / self.tokens, 5)}
        return {
            "loss": round(self.loss / self.tokens, 5),
            "nll": round(self.likelihood / self.tokens, 5),
            **agreement,
            "lr": self.rate,
            "gradient_norm": round(self.norm / self.updates, 5),
            "tokens_per_second": round(self.tokens / max(seconds - self.since, 1e-9), 1),
            "padding": round(self.padding / self.updates, 4),
            "minutes": round(seconds / 60, 4),
        }


class Log:
    """One object a line, drawn on a board too if there is one. Opening cuts it back to what the checkpoint knows of."""

    def __init__(self, path: Path, length: int, board: Board | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._board = board
        self._file = path.open("ab", buffering=0)
        self.length = min(length, self._file.tell())  # in bytes
        self._file.truncate(self.length)

    def write(self, event: str, **values: object) -> None:
        """Add one event; a figure that is not finite, which JSON cannot say, is null."""
        line = json_text({"event": event, **values})
        data = line.encode("utf-8", "replace") + b"\n"
        try:
            written = self._file.write(data)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be written: {error.strerror}; {REMEDY}") from None
        if written != len(data):
            raise CheckpointError(f"{self._path}: cannot be written: the disk is full; {REMEDY}")
        self.length += len(data)
        if self._board:
            try:
                self._board.draw(event, values)
            except OSError as error:
                where = self._board.directory
                raise CheckpointError(f"{where}: cannot be written: {error.strerror}; {REMEDY}") from None

    def close(self) -> None:
        """No more events."""
        self._file.close()
        if self._board:
            self._board.close()


REMEDY = "the checkpoints are untouched: make room and start again"
