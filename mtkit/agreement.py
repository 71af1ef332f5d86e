"""How far another library agrees with a model that was exported to it, compared from text to text.

Both sides start from lines of text and translate greedily under the same conditions: what no translation may hold, the
least length, and n-grams that may not be repeated.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from mtkit.config.decoding_settings import DecodingConfig
from mtkit.decode import decode
from mtkit.formats.huggingface_config import silent_ids
from mtkit.formats.observed import Observed, Texts
from mtkit.formats.portable import PortableModel
from mtkit.likelihood import log_probs_of
from mtkit.text.parallel import tagged
from mtkit.text.splitting import split_tags
from mtkit.translator import Translator

TOKENS = 4096  # of a batch
MOST_TAGGED = 32  # lines that are compared with a tag before them, where a model has many tags
MOST_SHOWN = 3  # lines that a report shows

Pieces = Sequence[Sequence[str]]
Observe = Callable[[Path, Pieces, Pieces, Sequence[str], DecodingConfig], Observed | None]


@dataclass(frozen=True)
class Line:
    """A line, and what became of it here and there."""

    text: str
    same_ids: bool  # both tokenizers read it alike
    same_tokens: bool  # both say the same tokens
    here: str
    there: str


@dataclass(frozen=True)
class Agreement:
    """Of some lines, how many came out alike."""

    library: str  # its name and version
    lines: list[Line]
    furthest: float  # largest difference of a token's log-probability, over the lines whose ids are the same

    @property
    def num_same_ids(self) -> int:
        """Lines that both read as the same ids."""
        return sum(line.same_ids for line in self.lines)

    @property
    def num_same_texts(self) -> int:
        """Lines that have the same translation, character by character."""
        return sum(line.here == line.there for line in self.lines)

    def told(self) -> Iterator[str]:
        """The counts, then the first lines that differ."""
        num_respelled = sum(line.same_tokens and line.here != line.there for line in self.lines)
        respelled = f" ({num_respelled} more in tokens, but not in how they are written)" if num_respelled else ""
        drift = f"; log-probabilities of tokens differ by at most {self.furthest:.1e}" if self.num_same_ids else ""
        yield (
            f"{self.library}, from text to text: {self.num_same_ids} of {len(self.lines)} lines have the same ids, "
            f"{self.num_same_texts} the same greedy translation{respelled}{drift}"
        )
        read = [line for line in self.lines if not line.same_ids]
        said = [line for line in self.lines if line.same_ids and line.here != line.there]
        for line in read[:MOST_SHOWN]:
            yield f"  other ids: {line.text}"
        for line in said[:MOST_SHOWN]:
            yield f"  other translation: {line.text} | here: {line.here} | there: {line.there}"


def lines_to_compare(translator: Translator, texts: Sequence[str]) -> list[str]:
    """The texts as they are and, where the model has tags, without any and with each of its tags.

    Lines that are blank, hold nothing but tags, or are too long for the model are left out.
    """
    tags = translator.tags
    split = [split_tags(text, tags)[1].strip() for text in texts]
    bare = [text for text in split if text]
    lines = list(texts)
    if tags and bare:
        count = min(max(len(bare), len(tags)), MOST_TAGGED)
        lines += bare
        lines += [tagged(text, tag) for text, tag in islice(zip(cycle(bare), cycle(tags), strict=False), count)]
    lines = list(dict.fromkeys(line for line in lines if split_tags(line, tags)[1].strip()))
    lengths = map(len, translator.tokenizer.encode_source(lines))
    return [line for line, n in zip(lines, lengths, strict=True) if 0 < n <= translator.max_source_length]


def compare(
    translator: Translator, model: PortableModel, lines: Sequence[str], texts: Texts, observe: Observe, directory: Path
) -> Agreement | None:
    """Translate lines here and with the exported files in a directory; None where the library is not installed.

    model is what the files were written from, with the ids of the translator.
    """
    tokenizer, silent = translator.tokenizer, silent_ids(model)
    sources = tokenizer.encode_source(lines)
    decoding = _greedy(translator.config.decoding)
    said = [best.tokens for best, *_ in decode(translator.model, decoding, sources, forbidden=silent)]
    log_probs = log_probs_of(translator.model, sources, said, TOKENS)
    ours = [tokenizer.source_pieces(row) for row in sources], [tokenizer.target_pieces(row) for row in said]
    theirs = texts.encode(lines)
    observed = observe(directory, theirs, ours[1], [model.target.pieces[id_] for id_ in silent], decoding)
    if observed is None:
        return None
    here, there = tokenizer.decode_target(said), texts.decode(observed.translations)
    compared = [
        Line(text, read == other, spoken == heard, one, two)
        for text, read, other, spoken, heard, one, two in zip(
            lines, ours[0], theirs, ours[1], observed.translations, here, there, strict=True
        )
    ]
    drifts = [
        abs(one - other)
        for line, row, others in zip(compared, log_probs, observed.log_probs, strict=True)
        if line.same_ids
        for one, other in zip(row, others, strict=True)
    ]
    return Agreement(observed.library, compared, max(drifts, default=0.0))


def _greedy(decoding: DecodingConfig) -> DecodingConfig:
    return DecodingConfig(beam_size=1, min_length=decoding.min_length, no_repeat_ngram=decoding.no_repeat_ngram)
