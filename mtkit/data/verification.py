"""Whether a corpus is what was written, without a long wait for the answer."""

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from mtkit.data.corpus import Corpus

VERIFIED_FIRST_BYTES = 1 << 30  # a few seconds of reading; training does not wait for more


class Verification:
    """A corpus verified at once if it is small, and by a thread if it is large, while others read it.

    with Verification(corpus) as verification:
        verification.check()  # now and then
        verification.wait(check)  # before the results are used
    """

    def __init__(self, corpus: Corpus) -> None:
        """DataError if a small corpus is damaged."""
        self._given_up = threading.Event()
        self._reader: ThreadPoolExecutor | None = None
        if corpus.num_bytes <= VERIFIED_FIRST_BYTES:
            corpus.verify()
        else:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="verification")
            self._end = self._reader.submit(corpus.verify, self._given_up.is_set)

    def check(self) -> None:
        """DataError if damage has been found so far."""
        if self._reader and self._end.done():
            self._end.result()

    def wait(self, check: Callable[[], None]) -> None:
        """DataError if there is any damage; check is called while the rest is read, and may raise to stop that."""
        while self._reader and not self._end.done():
            check()
            concurrent.futures.wait([self._end], timeout=0.1)
        self.check()

    def __enter__(self) -> "Verification":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread."""
        self._given_up.set()
        if self._reader:
            self._reader.shutdown()
