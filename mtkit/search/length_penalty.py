"""What a log-probability is divided by, so that a longer hypothesis is not worse for its length alone."""

from typing import Protocol

from torch import Tensor

# A divisor beyond these is replaced by them: fp32 would hold it as 0 or infinity, and a quotient would be no number.
LEAST, MOST = 1e-30, 1e30


class LengthPenalty(Protocol):
    """By length, which counts the end mark, and exponent."""

    def __call__(self, length: Tensor, exponent: float) -> Tensor:
        """The divisor of each length."""


def power(length: Tensor, exponent: float) -> Tensor:
    """length^p: an exponent of 1 gives the mean log-probability, 0 the sum."""
    return (length**exponent).clamp(LEAST, MOST)


def gnmt(length: Tensor, exponent: float) -> Tensor:
    """((5 + length) / 6)^p (Wu et al., 2016, equation 14)."""
    return (((5 + length) / 6) ** exponent).clamp(LEAST, MOST)


LENGTH_PENALTIES: dict[str, LengthPenalty] = {"power": power, "gnmt": gnmt}
