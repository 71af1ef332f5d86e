"""The words that pieces are parts of."""

import re
from collections.abc import Sequence

from mtkit.text.segmentation import SPACE_MARK
from mtkit.text.splitting import WIDE

_WIDE_CHARACTER = re.compile(f"[{WIDE}]")


def group_by_word(pieces: Sequence[str]) -> list[int]:
    """For each piece of a line the number of its word, from 0.

    A word begins at a space mark. A piece of a script that is written without spaces is a word of its own.
    """
    groups: list[int] = []
    number, new = -1, True
    for piece in pieces:
        wide = _WIDE_CHARACTER.search(piece) is not None
        # A space mark alone belongs to the piece behind it.
        is_continued_mark = groups and pieces[len(groups) - 1] == SPACE_MARK
        if new or piece.startswith(SPACE_MARK) or (wide and not is_continued_mark):
            number += 1
        groups.append(number)
        new = wide or (len(piece) > 1 and piece.endswith(SPACE_MARK))
    return groups
