"""Programs in children by fork, which need not import PyTorch again, as a program that is started anew must."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures.thread import _threads_queues
from functools import wraps
from subprocess import DEVNULL, PIPE
from typing import IO, Any

import pytest

MTKIT = [sys.executable, "-m", "mtkit"]
SACREBLEU = [sys.executable, "-m", "sacrebleu"]

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
NUMBERS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Forked:
    """A child that does what `python -m PROGRAM ARGUMENTS` does, and is used as subprocess.Popen is.

    It has imported what this process has, and keeps what tests have replaced. For tests of what a program does, not of
    how it starts, nor of how Python ends while threads still wait. Where stderr is None, the child has none.
    """

    def __init__(
        self,
        command: Sequence[str],
        stdin: int | IO[bytes] = DEVNULL,
        stdout: int | IO[bytes] = DEVNULL,
        stderr: int | IO[bytes] | None = DEVNULL,
    ) -> None:
        assert command[:2] == [sys.executable, "-m"]
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        others: list[int] = []  # descriptors that only one of the two processes must have
        given: list[int | None] = []
        for place, stream in enumerate((stdin, stdout, stderr)):
            if stream == PIPE:
                reader, writer = os.pipe()
                ours, theirs = (writer, reader) if place == 0 else (reader, writer)
                if place == 0:
                    self.stdin = os.fdopen(ours, "wb")
                else:
                    self.stdout = os.fdopen(ours, "rb")
                others.append(ours)
            elif stream == DEVNULL:
                theirs = os.open(os.devnull, os.O_RDWR)
            else:
                theirs = None if stream is None else os.dup(stream if isinstance(stream, int) else stream.fileno())
            given.append(theirs)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_run, args=(command[2:], given, others))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of pytest-xdist, which hold no lock of ours
            # A signal waits until the child handles it: before, handlers of this process could be called there, and
            # what they raise could be lost in what Python does after a fork.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
            try:
                self.process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for descriptor in given:
            if descriptor is not None:
                os.close(descriptor)

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that ended it; None as long as it runs."""
        return self.process.exitcode

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended; raises TimeoutExpired if it does not end in so many seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked child", timeout or 0)
        return self.process.exitcode

    def communicate(self) -> tuple[bytes, None]:
        """Close its stdin and wait for its end; returns what else it writes to stdout."""
        if self.stdin:
            self.stdin.close()
        out = b""
        if self.stdout:
            with self.stdout:
                out = self.stdout.read()
        self.wait()
        return out, None


def output_of(command: Sequence[str]) -> str:
    """What a program prints; it must succeed."""
    process = Forked(command, stdout=PIPE, stderr=2)
    out, _ = process.communicate()
    assert process.returncode == 0, command
    return out.decode()


def answer_of(function: Callable[[], Any]) -> Any:
    """What a function returns in a child by fork, which leaves no trace in this process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(function()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as above
        process.start()
    theirs.close()
    with ours:
        answer = ours.recv()
    process.join()
    return answer


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """Has a test run in a child by fork, so that what it does to its process ends with it."""

    @wraps(test)
    def run(**given: Any) -> None:
        if failure := answer_of(lambda: _failure_of(test, given)):
            pytest.fail(failure, pytrace=False)

    return run


def _failure_of(test: Callable[..., None], given: dict[str, Any]) -> str:
    """Runs a test; returns how it failed, or "" if it passed."""
    try:
        test(**given)
    except BaseException:  # pytest's own exceptions are none of Exception
        return traceback.format_exc()
    return ""


def _run(command: Sequence[str], given: Sequence[int | None], others: Sequence[int]) -> None:
    """Run `python -m COMMAND` in the child, with these descriptors for stdin, stdout and stderr."""
    _threads_queues.clear()  # of pools of threads that this process has not; Python 3.11 waits for them at the end
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
    for descriptor in others:
        os.close(descriptor)
    for place, descriptor in enumerate(given):
        if descriptor is None:
            os.close(place)
        else:
            os.dup2(descriptor, place)
            os.close(descriptor)
    # As Python's own, they outlive a program that puts others in their place.
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = None if given[2] is None else os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
