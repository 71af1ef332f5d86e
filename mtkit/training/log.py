"""log.jsonl, and what a line of it sums up."""

import json
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Update:
    """What one update was like."""

    loss: float  # sums over its target tokens, in nats
    likelihood: float
    tokens: int
    norm: float  # of the gradient, before clipping
    rate: float
    padding: float  # share of places without a token


class Window:
    """The updates since the last line of the log."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.begun = time.monotonic()

    def add(self, update: Update) -> None:
        """One more."""
        self.updates.append(update)

    def record(self) -> dict[str, float]:
        """Means of what was added; losses are in nats a target token."""
        tokens = sum(update.tokens for update in self.updates)
        count = len(self.updates)
        return {
            "loss": round(sum(update.loss for update in self.updates) / tokens, 5),
            "nll": round(sum(update.likelihood for update in self.updates) / tokens, 5),
            "lr": self.updates[-1].rate,
            "gradient_norm": round(sum(update.norm for update in self.updates) / count, 5),
            "tokens_per_second": round(tokens / (time.monotonic() - self.begun), 1),
            "padding": round(sum(update.padding for update in self.updates) / count, 4),
        }


class Log:
    """One object a line. Opening cuts it back to what the checkpoint knows of."""

    def __init__(self, path: Path, length: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(min(length, self._file.tell()))
        self._file.seek(0, 2)

    def write(self, event: str, **values: object) -> None:
        """Add one event."""
        line = json.dumps({"event": event, **values}, ensure_ascii=False)
        self._file.write(line.encode("utf-8", "replace") + b"\n")
        self._file.flush()

    @property
    def length(self) -> int:
        """In bytes."""
        return self._file.tell()

    def close(self) -> None:
        """No more events."""
        self._file.close()
