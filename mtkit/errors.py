"""Errors that the user can mend; each is shown as one line, `mtkit: error: …`."""

from signal import Signals

# What PyTorch, its libraries and the C++ library say when there is no memory left, in any case of letters.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of its accelerator; PyTorch tells some of it as a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


class MtkitError(Exception):
    """Says where, what was found, what is wanted and what to do next. A line each where there are several."""


class ConfigError(MtkitError):
    """A setting is wrong."""


class DataError(MtkitError):
    """Text or binarized data is missing, damaged or does not fit."""


class CheckpointError(MtkitError):
    """A checkpoint or a model is missing, damaged, in use or does not fit."""


class StoppedError(MtkitError):
    """The user stopped the run; what was done so far is safe. code is what the program exits with."""

    def __init__(self, message: str = "", code: int = 130) -> None:
        super().__init__(message)
        self.code = code


class SignalError(BaseException):
    """A signal asks the program to end. Like KeyboardInterrupt it is no Exception, so that no library handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = Signals(number).name
        self.code = 128 + number  # what shells show of a program that a signal ended
