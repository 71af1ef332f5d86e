"""The ids of what is no text: padding, the unknown, where a sentence begins and where it ends."""

from collections.abc import Callable
from dataclasses import dataclass

PAD = 0  # fills a row; zero, so that a fresh array of zeros is padding
UNKNOWN = 1  # stands for what has no piece; no text is, where a tokenizer spells in bytes
BEGIN = 2  # the decoder starts from it, unless its model has another start token
END = 3  # ends every source and every target

NUM_SPECIAL = 4


@dataclass(frozen=True)
class SpecialIds:
    """The special ids of one side's vocabulary. A model from elsewhere keeps its own."""

    pad: int = PAD
    unknown: int = UNKNOWN
    begin: int | None = BEGIN  # Marian's vocabularies have none
    end: int = END

    @property
    def all(self) -> tuple[int, ...]:
        """Those that there are."""
        return tuple(id_ for id_ in (self.pad, self.unknown, self.begin, self.end) if id_ is not None)

    @property
    def silent(self) -> tuple[int, ...]:
        """Those that no translation holds."""
        return tuple(id_ for id_ in self.all if id_ != self.end)


OWN = SpecialIds()  # every tokenizer that is trained here has these


@dataclass(frozen=True)
class Specials:
    """Those of both sides."""

    source: SpecialIds = OWN
    target: SpecialIds = OWN


# What a decoder may read first, by the names of the settings. Where it is zero, the row of pad stays zero (Marian).
START_TOKENS: dict[str, Callable[[SpecialIds], int | None]] = {
    "begin": lambda special: special.begin,
    "pad": lambda special: special.pad,
    "end": lambda special: special.end,
    "zero": lambda special: special.pad,
}


@dataclass(frozen=True)
class Marks:
    """What stands around sentences when a model reads them."""

    source_end: int = END
    start: int = BEGIN  # what the decoder reads first
    target_end: int = END
