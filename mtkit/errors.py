"""Errors that the user can mend; each is shown as one line, `mtkit: error: …`."""


class MtkitError(Exception):
    """Says where, what was found, what is wanted and what to do next. A line each where there are several."""


class ConfigError(MtkitError):
    """A setting is wrong."""


class DataError(MtkitError):
    """Text or binarized data is missing, damaged or does not fit."""


class CheckpointError(MtkitError):
    """A checkpoint or a model is missing, damaged, in use or does not fit."""


class StoppedError(MtkitError):
    """The user stopped the run; what was done so far is safe."""
