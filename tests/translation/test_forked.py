"""A process that is forked after a model was loaded and used translates, and does not hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LONGEST_WAIT = 120  # seconds

PROGRAM = """
import multiprocessing, os, sys
import torch
import mtkit

translator = mtkit.load(sys.argv[1], ["device=cpu"])
lines = ["one two three four five six seven"] * 400  # enough work for two threads
wanted = translator.translate(lines)
scores = translator.score(lines[:50], wanted[:50])


def says_the_same():
    same = translator.translate(lines) == wanted
    return same and [s.pieces for s in translator.score(lines[:50], wanted[:50])] == [s.pieces for s in scores]


def child(queue):
    queue.put((says_the_same(), torch.get_num_threads()))


process = os.fork()
if process == 0:
    os._exit(0 if says_the_same() and torch.get_num_threads() == 1 else 3)
_, status = os.waitpid(process, 0)
print(os.waitstatus_to_exitcode(status), torch.get_num_threads())

context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
process = context.Process(target=child, args=(queue,))
process.start()
print(*queue.get())
process.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_children_by_fork_and_by_multiprocessing_translate_with_one_thread(tiny_run: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tiny_run)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=LONGEST_WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the child, too
        process.communicate()
        raise
    assert (process.returncode, out) == (0, "0 2\nTrue 1\n")
