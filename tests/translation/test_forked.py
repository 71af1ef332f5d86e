"""A process that is forked after a model was loaded and used translates, and does not hang."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

import mtkit
from tests.forked import answer_of

LONGEST_WAIT = 120  # seconds, after which SIGALRM ends a process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_children_by_fork_and_by_multiprocessing_translate_with_one_thread(tiny_run: Path) -> None:
    lines = ["one two three four five six seven"] * 150  # enough work for two threads

    def found() -> tuple[int, int, bool, int]:
        """What two children say, one by fork and one by multiprocessing, of a process with two threads."""
        signal.alarm(LONGEST_WAIT)
        torch.set_num_threads(2)
        translator = mtkit.load(tiny_run, ["device=cpu"])
        wanted = translator.translate(lines)
        scores = translator.score(lines[:50], wanted[:50])

        def says_the_same() -> bool:
            signal.alarm(LONGEST_WAIT)
            same = translator.translate(lines) == wanted
            return same and [s.pieces for s in translator.score(lines[:50], wanted[:50])] == [s.pieces for s in scores]

        process = os.fork()
        if process == 0:
            os._exit(0 if says_the_same() and torch.get_num_threads() == 1 else 3)
        _, status = os.waitpid(process, 0)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=lambda: queue.put((says_the_same(), torch.get_num_threads())))
        child.start()
        child.join()
        assert not child.exitcode
        return os.waitstatus_to_exitcode(status), torch.get_num_threads(), *queue.get()

    assert answer_of(found) == (0, 2, True, 1)
