"""Which lines lack the tag that a multilingual model was trained with."""

from collections.abc import Sequence

from mtkit.config.data_settings import listed_tags
from mtkit.text.splitting import split_tags


class ExpectedTags:
    """Tells what is wrong with the beginnings of lines."""

    def __init__(self, tags: Sequence[str], needed: bool) -> None:
        """By the tags that a model knows; needed is whether it was trained with one before every line."""
        self._tags = tags
        self._needed = needed
        marks = {_marks(tag) for tag in tags}
        self._marks = [(before, after) for before, after in marks if before and after]
        listed = listed_tags(tags)
        self._missing = f"begins with none of the model's tags, and the model was trained with one: {listed}"
        self._unknown = f"begins with what looks like a tag, and is none of the model's: {listed}"

    def fault(self, line: str) -> str | None:
        """What to warn of, such that "line 3" may stand before it; None where all is well. Blank lines need no tag."""
        if not self._tags or not line.strip() or split_tags(line, self._tags)[0]:
            return None
        if self._looks_like_a_tag(line.split(maxsplit=1)[0]):
            return self._unknown
        return self._missing if self._needed else None

    def _looks_like_a_tag(self, word: str) -> bool:
        """Whether it stands between the marks that the tags stand between, such as >> and <<."""
        return _marks(word) in self._marks


def _marks(word: str) -> tuple[str, str]:
    """What is no letter and no digit at the beginning and at the end of a word."""
    begin, end = 0, len(word)
    while begin < end and not word[begin].isalnum():
        begin += 1
    while end > begin and not word[end - 1].isalnum():
        end -= 1
    return word[:begin], word[end:]
