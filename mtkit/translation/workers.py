"""Translation in several worker processes, which on most machines is faster than one process with several threads.

The main process reads the lines and yields the translations in order. Each worker translates one piece of work at a
time, a few hundred lines of similar length, with one thread or with a GPU of its own. If a worker is killed, a new one
translates its piece again.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from math import ceil
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import torch

from mtkit.errors import MtkitError, counted, say
from mtkit.translation.alignments import AlignmentSettings
from mtkit.translation.translator import (
    WINDOW_CHARACTERS,
    WINDOW_LINES,
    TranslatedLine,
    Translator,
    load,
    pair_lines,
)

# Sizes of pieces. With greedy search and a Transformer of width 128, 1,000 lines sorted by length and cut into pieces
# of 512, 256, 128, 64 and 32 lines took 0.9, 1.07, 1.14, 1.7 and 2.1 times the processor time of one piece of all
# lines. Without sorting, pieces of 256 lines took 1.36 times that time.

PIECE_LINES = 512  # in a piece, at most
PIECE_CHARACTERS = WINDOW_CHARACTERS // 16  # in a piece, at most, unless one line has more
LEAST_LINES = 64  # in a piece, if there are that many
PIECES_PER_WORKER = 2  # at least, in a window; the last have the shortest lines, so that workers end about together

# The main process itself translates a window with fewer characters than this, with all threads. The window would not
# fill two of the smallest pieces, so starting two workers would save little (an estimate from the times above).
FEW_CHARACTERS = 8000
MOST_WINDOWS = 2  # read but not yet yielded: workers begin the second while the last pieces of the first are translated
MOST_KILLS = 2  # if this many workers are killed while translating the same piece, the program gives up

# Lines that are translated by the main process before it starts workers that load the model themselves, each on its
# own GPU: loading takes several seconds.
LINES_BEFORE_LOADING = 20_000

MEMORY_PER_WORKER = 1 << 30  # bytes that a worker may need besides the shared weights, by a generous estimate

Pair = tuple[str, str]  # a line, and the text that its translation must begin with, or ""


@dataclass(frozen=True)
class Opening:
    """The arguments of `load` and `align_with` with which a worker opens its own copy of the model.

    Only workers that do not share the main process's memory need them.
    """

    path: Path
    overrides: tuple[str, ...] = ()
    precision: str = "fp32"
    ensemble: tuple[Path, ...] = ()
    language_model: Path | None = None
    alignment: AlignmentSettings | None = None

    def open(self) -> Translator:
        """Returns a new Translator."""
        translator = load(self.path, self.overrides, self.precision, self.ensemble, self.language_model)
        if self.alignment is not None:
            translator.align_with(self.alignment)
        return translator


@contextmanager
def with_workers(translator: Translator, opening: Opening, num_workers: int | None) -> Iterator[Translator]:
    """Context manager that gives a Translator that uses `num_workers` worker processes.

    The new Translator returns the same translations as `translator`, which was opened with the arguments in `opening`.
    If `num_workers` is `None`, the number of workers is chosen for this machine (see `worker_devices`). If the number
    is 1, or if `translator` has an engine other than PyTorch, no workers are used, and `translator` itself is given.
    Raises MtkitError if `num_workers` is more than 1 for such an engine, which has workers of its own. All workers are
    ended when the block ends.
    """
    devices = worker_devices(translator.model.device, num_workers)
    if translator.engine is not None and (num_workers or 1) > 1:
        raise MtkitError(f"--workers: found {num_workers}; CTranslate2 has workers of its own: take 1 or auto")
    if len(devices) == 1 or translator.engine is not None:
        yield translator
        return
    with WorkerTranslator(translator, opening, devices, is_patient=num_workers is None) as translator:
        yield translator


def worker_devices(device: torch.device, num_workers: int | None) -> list[str]:
    """Returns the device of each worker, such as "cpu" or "cuda:1", for a model that was loaded on `device`.

    If `num_workers` is `None`, the number of workers is chosen. On GPUs, it is the number of GPUs. On a CPU under
    Linux, it is the smallest of three numbers: the cores that this process may use, PyTorch's threads (which the user
    may have limited), and the workers that fit into memory. In all other cases, it is 1.

    If `num_workers` is greater than the number of GPUs, several workers share a GPU.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if num_workers is None:
        num_workers = gpus or 1
        if device.type == "cpu" and sys.platform == "linux":
            num_workers = min(torch.get_num_threads(), usable_cores(), max(1, free_memory() // MEMORY_PER_WORKER))
    if gpus:
        return [f"cuda:{worker % gpus}" for worker in range(num_workers)]
    return [device.type] * num_workers


class WorkerTranslator(Translator):
    """A Translator whose `translate_lines` uses worker processes; as a context manager, it ends the workers at the end.

    It gives the same translations as the Translator that it is made from. Workers are started when there is work for
    them, and ended once all lines are translated. The main process itself translates small groups of lines, such as
    those that have arrived before a pipe pauses, and lines that must be translated one at a time.
    """

    def __init__(
        self, translator: Translator, opening: Opening, devices: Sequence[str], is_patient: bool = False
    ) -> None:
        """Take the model and all other attributes from `translator`.

        `devices` holds the device of each worker. Workers on a CPU are forked, where that is possible, and share the
        memory of the weights; other workers open the model themselves with `opening`. With `is_patient=True`, workers
        that open the model themselves are only started after LINES_BEFORE_LOADING lines, since opening takes time.
        """
        vars(self).update(vars(translator))
        self._alone = translator
        self._devices = list(devices)
        self._opening = opening
        self._forks = set(devices) == {"cpu"} and hasattr(os, "fork")
        self._lines_before = LINES_BEFORE_LOADING if is_patient and not self._forks else 0
        self._crews: list[_Crew] = []

    def __enter__(self) -> "WorkerTranslator":
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for crew in self._crews:
            crew.end()

    def _translated(
        self,
        lines: Iterable[str],
        num_best: int,
        at_once: bool | Callable[[], bool],
        prefixes: Iterable[str] | None,
        done: Callable[[int], object],
    ) -> Iterator[TranslatedLine]:
        pairs = zip(lines, repeat("")) if prefixes is None else pair_lines(lines, prefixes, ("lines", "prefixes"))
        crew = _Crew(self._alone if self._forks else self._opening, self._devices, num_best, done)
        self._crews.append(crew)
        windows: deque[_Window] = deque()  # those whose pieces were given to the workers, in order
        window: _Window | None = None
        try:
            for window in _windows(pairs, at_once, len(self._devices)):
                if window.error is not None:
                    break
                is_small = len(window.pairs) == 1 or window.size < FEW_CHARACTERS
                if not windows and (is_small or window.last_number <= self._lines_before):
                    yield from _translations(self._alone, window.pairs, num_best, done)
                    continue
                crew.take(window)
                windows.append(window)
                while windows and (window.is_awaited or len(windows) >= MOST_WINDOWS):
                    yield from self._finished(windows.popleft(), crew, num_best)
            while windows:
                yield from self._finished(windows.popleft(), crew, num_best)
            if window is not None and window.error is not None:
                raise window.error
        finally:
            crew.end()
            self._crews.remove(crew)

    def _finished(self, window: "_Window", crew: "_Crew", num_best: int) -> Iterable[TranslatedLine]:
        """Waits until a window is translated, and returns the translations of its lines, in order.

        If a worker raised an exception, the main process translates the whole window again. This raises the same
        exception, unless the worker ran out of memory and the main process does not.
        """
        crew.finish(window)
        if window.has_failed:
            return _translations(self._alone, window.pairs, num_best)
        return [window.found[place] for place in range(len(window.pairs))]


def _translations(
    translator: Translator, pairs: Sequence[Pair], num_best: int, done: Callable[[int], object] | None = None
) -> list[TranslatedLine]:
    prefixes = [prefix for _, prefix in pairs]
    return list(translator.translate_lines([line for line, _ in pairs], num_best, prefixes=prefixes, done=done))


# The work: windows of lines, and the pieces into which they are cut.


@dataclass
class _Window:
    """Lines that are read together, and whose translations are later yielded together."""

    pairs: list[Pair]
    size: int  # in characters; the end of each line counts as one
    last_number: int  # the number of its last line, from 1
    is_awaited: bool  # whether its translations must be yielded before more lines are read
    found: dict[int, TranslatedLine] = field(default_factory=dict)  # by the index of the line in the window
    has_failed: bool = False  # whether a worker raised an exception
    error: Exception | None = None  # raised while reading; raised again once all earlier windows are yielded

    @property
    def is_finished(self) -> bool:
        """Whether all lines are translated, or the window has failed."""
        return self.has_failed or len(self.found) == len(self.pairs)


@dataclass
class _Piece:
    """Lines of a window that one worker translates."""

    window: _Window
    places: list[int]  # the indices of the lines in the window
    num_kills: int = 0  # the number of workers that were killed while translating the piece

    @property
    def pairs(self) -> list[Pair]:
        """The lines of the piece, with their prefixes."""
        return [self.window.pairs[place] for place in self.places]

    def __str__(self) -> str:
        first = self.window.last_number - len(self.window.pairs) + 1
        longest = max(self.places, key=lambda place: len(self.window.pairs[place][0]))
        length = counted(len(self.window.pairs[longest][0]), "character")
        if len(self.places) == 1:
            return f"line {first + longest:,}, of {length}"
        return (
            f"{counted(len(self.places), 'line')} between line {first + min(self.places):,} and line "
            f"{first + max(self.places):,}, of which line {first + longest:,} is the longest, of {length}"
        )


def _windows(pairs: Iterable[Pair], at_once: bool | Callable[[], bool], num_workers: int) -> Iterator[_Window]:
    """Divides lines into windows, groups of lines that are translated together; yields each window.

    A window ends when it is full, with enough lines for `num_workers` workers, or when the lines read so far must be
    translated (`at_once`, as in `translate_lines`). If reading raises an exception, the last window holds the exception
    and no lines; lines that were read but are in no window yet are lost.
    """
    most = max(WINDOW_LINES, PIECES_PER_WORKER * num_workers * PIECE_LINES)
    most_characters = max(WINDOW_CHARACTERS, PIECES_PER_WORKER * num_workers * PIECE_CHARACTERS)
    window: list[Pair] = []
    size = number = 0
    remaining = iter(pairs)
    while True:
        try:
            line, other = next(remaining)
        except StopIteration:
            break
        except Exception as error:
            yield _Window([], 0, number, is_awaited=True, error=error)
            return
        number += 1
        window.append((line, other))
        size += len(line) + len(other) + 1
        # Called after every line: only if it returns False will the next line come without waiting.
        is_awaited = at_once() if callable(at_once) else at_once
        if is_awaited or len(window) >= most or size >= most_characters:
            yield _Window(window, size, number, is_awaited)
            window, size = [], 0
    if window:
        yield _Window(window, size, number, is_awaited=True)


def _pieces(window: _Window, num_workers: int) -> Iterator[_Piece]:
    """Divides a window into pieces of lines that are similar in length; yields pieces with longer lines first.

    There are about PIECES_PER_WORKER pieces or more for each worker, unless such pieces would have fewer than
    LEAST_LINES lines.
    """
    most = max(LEAST_LINES, min(PIECE_LINES, ceil(len(window.pairs) / (PIECES_PER_WORKER * num_workers))))
    places: list[int] = []
    size = 0
    for place in sorted(range(len(window.pairs)), key=lambda place: -len(window.pairs[place][0])):
        places.append(place)
        size += sum(map(len, window.pairs[place]))
        if len(places) == most or size >= PIECE_CHARACTERS:
            yield _Piece(window, places)
            places, size = [], 0
    if places:
        yield _Piece(window, places)


# The workers.


class _Worker:
    """A worker process, the connection to it, and the part of a window that it is translating, if any."""

    def __init__(self, process: BaseProcess, connection: "Connection[Any, Any]", device: str) -> None:
        self.process = process
        self.connection = connection
        self.device = device
        self.piece: _Piece | None = None


class _Crew:
    """The workers of one call of `translate_lines`."""

    def __init__(
        self, source: Translator | Opening, devices: Sequence[str], num_best: int, done: Callable[[int], object]
    ) -> None:
        """Prepare workers on `devices`; a worker is started only when there is a piece for it.

        `source` is the Translator that forked workers share, or the Opening with which other workers load the model.
        `done` is called after each piece with the number of its lines.
        """
        self._source = source
        self._free_devices = list(reversed(devices))
        self._num_best = num_best
        self._done = done
        self._num_workers = len(devices)
        self._workers: list[_Worker] = []
        self._queue: deque[_Piece] = deque()

    def take(self, window: _Window) -> None:
        """Cut the window into pieces, and give them to idle workers; the remaining pieces wait in the queue."""
        self._queue.extend(_pieces(window, self._num_workers))
        self._hand_out()

    def finish(self, window: _Window) -> None:
        """Wait until `window` is translated or has failed; meanwhile, keep giving pieces of all windows to workers.

        Raises MtkitError if MOST_KILLS workers were killed while translating the same piece, or if a worker cannot open
        the model.
        """
        while not window.is_finished:
            busy = {worker.connection: worker for worker in self._workers if worker.piece is not None}
            assert busy, "the workers were ended"
            for connection in wait(list(busy)):
                self._receive(busy[connection])  # type: ignore[index]
            self._hand_out()

    def end(self) -> None:
        """Kill all workers; what they have not yet translated is lost."""
        workers, self._workers = self._workers, []
        self._queue.clear()
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            self._bury(worker)

    def _hand_out(self) -> None:
        while self._queue:
            idle = next((worker for worker in self._workers if worker.piece is None), None)
            if idle is None and not self._free_devices:
                return
            worker = idle or self._started()
            worker.piece = self._queue.popleft()
            try:
                worker.connection.send(worker.piece.pairs)
            except OSError:  # it was killed while it had nothing to do
                self._replace(worker, was_working=False)

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        piece, worker.piece = worker.piece, None
        assert piece is not None
        if isinstance(answer, str):
            raise MtkitError(f"worker on {worker.device}: {answer}")
        if answer is None:
            piece.window.has_failed = True
            self._queue = deque(other for other in self._queue if other.window is not piece.window)
            return
        piece.window.found.update(zip(piece.places, answer, strict=True))
        self._done(len(piece.places))

    def _replace(self, worker: _Worker, was_working: bool = True) -> None:
        """Put the piece of a killed worker back into the queue, so that a new worker translates the piece.

        `was_working=False` says that the worker was killed before it received the piece; this kill is not counted
        against the piece. Raises MtkitError if MOST_KILLS workers were killed while translating the piece.
        """
        self._workers.remove(worker)
        how = self._bury(worker)
        piece = worker.piece
        assert piece is not None
        piece.num_kills += was_working
        if piece.num_kills == MOST_KILLS:
            raise MtkitError(
                f"{piece}: {MOST_KILLS} workers ended by {how} while translating; if memory ran out, a smaller "
                "decoding.batch_tokens or fewer --workers take less"
            )
        say(f"mtkit: warning: a worker ended by {how}; a new one translates its {counted(len(piece.places), 'line')}")
        self._queue.appendleft(piece)

    def _bury(self, worker: _Worker) -> str:
        """Kill a worker, unless it has ended, and free its device; returns what ended it, such as "SIGKILL"."""
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._free_devices.append(worker.device)
        code = worker.process.exitcode or 0
        worker.process.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _started(self) -> _Worker:
        """Starts and returns a worker on a free device."""
        device = self._free_devices[-1]
        context: Any = multiprocessing.get_context("fork" if isinstance(self._source, Translator) else "spawn")
        ours, theirs = context.Pipe()
        others = (
            [ours, *(worker.connection for worker in self._workers)] if context.get_start_method() == "fork" else []
        )
        arguments = (theirs, others, self._source, device, self._num_best)
        process = context.Process(target=_work, args=arguments, name="worker", daemon=True)
        with _undisturbed():
            process.start()
            worker = _Worker(process, ours, device)
            self._workers.append(worker)
            self._free_devices.pop()
        theirs.close()
        return worker


HELD = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Context manager in which a child process can be started safely: holds signals back, and hides standard input.

    A child process closes its standard input when it starts. If a thread of this process is just reading from standard
    input, closing it would block the child forever. So standard input is hidden from the child.
    """
    stdin = sys.stdin
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD) if hasattr(signal, "pthread_sigmask") else None
    try:
        sys.stdin = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, whose locks a worker does not use
            yield
    finally:
        sys.stdin = stdin
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# What runs in a worker.


def _work(
    connection: "Connection[Any, Any]",
    others: "Sequence[Connection[Any, Any]]",
    source: Translator | Opening,
    device: str,
    num_best: int,
) -> None:
    """Receive pieces of work and send their translations, until the main process ends or kills this worker process.

    If translating raises an exception, the worker sends `None` instead of the translations. If the model cannot be
    opened, the worker sends the text of the error, and ends. `others` are the main process's ends of connections, which
    a forked child must close.
    """
    _take_no_interrupts()
    for other in others:
        other.close()
    Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    torch.set_num_threads(1)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    try:
        try:
            translator = source if isinstance(source, Translator) else source.open()
        except (MtkitError, RuntimeError) as error:  # PyTorch raises RuntimeError where a GPU has too little memory
            connection.send(str(error))
        else:
            while True:
                connection.send(_answer(translator, connection.recv(), num_best))
    except (EOFError, OSError):  # the main process has ended
        pass
    finally:
        os._exit(0)  # sys.exit would also write buffered output that a forked child has from the main process


def _answer(translator: Translator, pairs: Sequence[Pair], num_best: int) -> list[TranslatedLine] | None:
    try:
        return _translations(translator, pairs, num_best)
    except Exception:  # the main process translates the lines again, to raise the error
        return None


def _take_no_interrupts() -> None:
    """Ignore Ctrl-C, which the terminal also sends to the main process; let other signals end this process at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in HELD:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def _end_with_parent() -> None:
    """Wait for the end of the main process, then end this process, even if it is in the middle of a piece."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


# What this machine offers.

CGROUPS = (Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))  # the list of this process's cgroups, and their folder


def usable_cores() -> int:
    """The number of cores that this process may use.

    These are the cores in the CPU affinity of the process, or fewer if a cgroup of the process has a lower limit.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [float(cores)]
    for folder in _cgroups("cpu"):
        # Microseconds of CPU time in each period, "max" or -1 for no limit: in version 2 one file, in version 1 two.
        quota, period = [*_words(folder / "cpu.max"), "", ""][:2]
        if not quota:
            [quota, period] = [(_words(folder / f"cpu.cfs_{name}_us") or [""])[0] for name in ("quota", "period")]
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return max(1, int(min(limits)))


def free_memory() -> int:
    """The memory available to this process, in bytes.

    This is the available memory of the machine, or less if a cgroup of the process has a lower limit.

    The result is `sys.maxsize` if the available memory is unknown, as on systems other than Linux.
    """
    words = _words(Path("/proc/meminfo"))
    free = [int(words[words.index("MemAvailable:") + 1]) << 10] if "MemAvailable:" in words else []
    for folder in _cgroups("memory"):
        for most, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):  # versions 2 and 1
            found = [*_words(folder / f"memory.{most}"), *_words(folder / f"memory.{used}")]
            if len(found) == 2 and all(word.isdigit() for word in found):
                free.append(max(0, int(found[0]) - int(found[1])))
    return min(free, default=sys.maxsize)


def _cgroups(controller: str) -> Iterator[Path]:
    """Yields the folders of the cgroups that may limit this process by `controller`, such as "cpu" or "memory".

    These are the process's own cgroup and those above it.
    """
    listing, root = CGROUPS
    for line in listing.read_text("utf-8").splitlines() if listing.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        own = top / path.lstrip("/")
        yield from [own, *(folder for folder in own.parents if folder.is_relative_to(top))]


def _words(path: Path) -> list[str]:
    """Returns the words in a file; none if the file cannot be read."""
    try:
        return path.read_text("utf-8").split()
    except OSError:
        return []
