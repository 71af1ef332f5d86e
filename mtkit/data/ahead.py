"""Work done ahead in a thread, so that what takes its results seldom waits."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def made_ahead(items: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """The same items in the same order, at most so many made before they are asked for.

    An error in the making is raised where the item would have come. The thread ends with the block, after the item at
    hand.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        yield _taken(items, most, executor)
    finally:
        executor.shutdown(cancel_futures=True)


def _taken(items: Iterator[T], most: int, executor: ThreadPoolExecutor) -> Iterator[T]:
    made = deque(executor.submit(_list_of_next, items) for _ in range(most))
    while found := made.popleft().result():
        made.append(executor.submit(_list_of_next, items))
        yield found[0]


def _list_of_next(items: Iterator[T]) -> list[T]:
    """The next item alone, or nothing at the end."""
    for item in items:
        return [item]
    return []
