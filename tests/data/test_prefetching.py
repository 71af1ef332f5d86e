"""Prefetched items come in order, and no thread outlives its block."""

import threading
from collections.abc import Iterator
from itertools import count, islice
from time import sleep

import pytest

from mtkit.data.batches import prefetched


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


@pytest.mark.parametrize("most", [1, 3, 50])
def test_the_items_come_in_order_and_end_where_they_end(most):
    before = threads()
    with prefetched(iter(range(20)), most) as items:
        assert list(items) == list(range(20))
        assert list(items) == []
    assert threads() == before


def test_no_more_is_made_than_may_wait():
    asked = []

    def numbers() -> Iterator[int]:
        for number in count():
            asked.append(number)
            yield number

    with prefetched(numbers(), 4) as items:
        assert list(islice(items, 3)) == [0, 1, 2]
        while len(asked) < 3 + 4:
            sleep(0.001)
        sleep(0.05)  # as long as it takes to make far more
        assert len(asked) == 3 + 4


def test_work_goes_on_in_one_other_thread():
    with prefetched((threading.current_thread() for _ in range(9)), 4) as items:
        found = set(items)
    assert len(found) == 1
    assert threading.current_thread() not in found


def test_an_error_comes_where_the_item_would_have_come():
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no third")

    before = threads()
    with prefetched(numbers(), 5) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(ValueError, match="no third"):
            next(items)
    assert threads() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_thread_ends_when_an_error_ends_the_block(error):
    def fail() -> None:
        with prefetched(count(), 4) as items:
            next(items)
            raise error

    before = threads()
    with pytest.raises(error):
        fail()
    assert threads() == before


def test_a_block_that_takes_nothing_ends_too():
    before = threads()
    with prefetched(count(), 4):
        pass
    assert threads() == before
