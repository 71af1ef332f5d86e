"""Lines that come through pipes: whoever writes them may wait for an answer before the next one.

Reading in a thread tells a pipe that is idle from one that is busy, on every system.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from threading import Condition, Thread
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 0.1  # without a new line, after which the lines so far are answered
PATIENCE_SECONDS = 1.0  # the longest that a line waits for others, however steadily they trickle in
MOST_ITEMS = 4000  # that are read ahead
MOST_CHARACTERS = 1_000_000


class Arriving(Generic[T]):
    """The same items, read ahead in a thread within limits; an error is raised where the item would have come.

    The thread does not keep the process alive, since it may wait for a line that never comes.
    """

    def __init__(self, items: Iterable[T], size: Callable[[T], int]) -> None:
        """Size is the number of characters of an item."""
        self._source = items
        self._size = size
        self._items: deque[T] = deque()
        self._num_characters = 0
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = Condition()
        self._first_taken: float | None = None  # when the first of the items was taken that are not answered yet
        Thread(target=self._read, name="arriving", daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if not self._items:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            item = self._items.popleft()
            self._num_characters -= self._size(item)
            self._changed.notify_all()
        return item

    @property
    def is_ready(self) -> bool:
        """Whether the next item, or the end, is there."""
        return bool(self._items) or self._ended

    def pauses(self) -> bool:
        """Whether nothing comes for a moment, so that what was taken is to be answered; it waits to see."""
        now = monotonic()
        if self._first_taken is None:
            self._first_taken = now
        wait = max(0.0, min(PAUSE_SECONDS, self._first_taken + PATIENCE_SECONDS - now))
        with self._changed:
            if self._changed.wait_for(lambda: self.is_ready, wait):
                return False
        self._first_taken = None
        return True

    def close(self) -> None:
        """End the thread after the item that it waits for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            for item in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: self._has_room or self._closed)
                    if self._closed:
                        return
                    self._items.append(item)
                    self._num_characters += self._size(item)
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, it is raised where the item would have come
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    @property
    def _has_room(self) -> bool:
        return len(self._items) < MOST_ITEMS and self._num_characters < MOST_CHARACTERS


class Arrivals:
    """The streams that lines come from, as a context: tells when those that have come are to be answered.

    Where line_buffered is true each line is answered as it comes, and nothing is read ahead.
    """

    def __init__(self, before_waiting: Callable[[], object], line_buffered: bool) -> None:
        """Calls before_waiting, which flushes the answers, before it waits for a line."""
        self._before_waiting = before_waiting
        self._line_buffered = line_buffered
        self._streams: list[Arriving[Any]] = []

    def __enter__(self) -> "Arrivals":
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()

    def of(self, items: Iterable[T], may_pause: bool, size: Callable[[T], int]) -> Iterable[T]:
        """The items, read ahead where their stream may pause; size is the number of characters of an item."""
        if self._line_buffered or not may_pause:
            return items
        stream = Arriving(items, size)
        self._streams.append(stream)
        return self._flushing(stream)

    def answer_now(self) -> bool:
        """Whether the lines that were taken are to be answered before more are read."""
        return self._line_buffered or any(stream.pauses() for stream in self._streams)

    def _flushing(self, stream: Arriving[T]) -> Iterator[T]:
        while True:
            if not stream.is_ready:
                self._before_waiting()
            try:
                yield next(stream)
            except StopIteration:
                return
