"""Canaries made and heard again: whether a model says on this machine what it said where it was made.

They are searched for greedily, whatever the settings of decoding: each token then is the likeliest by itself, so that
where two machines differ it can be told whether it was a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from mtkit.config.decoding_settings import DecodingConfig
from mtkit.errors import DataError
from mtkit.formats.canary import Canary
from mtkit.likelihood import log_probs_of
from mtkit.translator import BREAKS, Translator

NUM_CANARIES = 8
BATCH_TOKENS = 4096

# Not much longer than the source, since a young model may go on and on. Changing this changes what canaries say.
GREEDY = DecodingConfig(beam_size=1, length_penalty=0.0, max_length_ratio=1.5, max_length_extra=10)

# Two tokens whose log-probabilities are closer are as good as each other: rounding decides.
TIE = 1e-4


@dataclass(frozen=True)
class Heard:
    """What a canary said this time."""

    canary: Canary
    source_tokens: list[int]
    target_tokens: list[int]
    text: str  # of the tokens that were told
    log_prob: float  # of the tokens that were told
    gap: float  # how much likelier, where they part, the token said now is than the one that was told; 0 if none is

    @property
    def same_text(self) -> bool:
        """Whether the tokenizer does what it did."""
        return self.source_tokens == self.canary.source_tokens and self.text == self.canary.text

    @property
    def same_tokens(self) -> bool:
        """Whether the model says the same."""
        return self.target_tokens == self.canary.target_tokens

    @property
    def is_tie(self) -> bool:
        """Whether it says something else that is as likely."""
        return not self.same_tokens and abs(self.gap) < TIE

    @property
    def drift(self) -> float:
        """How far the log-probability is from what it was."""
        return abs(self.log_prob - self.canary.log_prob)


def make_canaries(translator: Translator, lines: Sequence[str]) -> list[Canary]:
    """Up to NUM_CANARIES of the lines, spread over their lengths, with what the model says.

    The same lines give the same ones. Lines that are blank, or that the model would split, are none. The translator is
    on a CPU, in fp32.
    """
    encoded = translator.tokenizer.encode_source(lines)
    fitting = sorted(
        {line: len(tokens) for line, tokens in zip(lines, encoded, strict=True) if _fits(translator, tokens)}.items(),
        key=lambda item: (item[1], item[0]),
    )
    last, count = len(fitting) - 1, min(NUM_CANARIES, len(fitting))
    sources = [fitting[round(last * i / max(count - 1, 1))][0] for i in range(count)]
    tokens = translator.tokenizer.encode_source(sources)
    said = _say(translator, tokens)
    log_probs = log_probs_of(translator.model, tokens, said, BATCH_TOKENS)
    texts = _texts(translator, said)
    canaries = [
        Canary(source, source_tokens, target_tokens, sum(each), text)
        for source, source_tokens, target_tokens, each, text in zip(
            sources, tokens, said, log_probs, texts, strict=True
        )
    ]
    return [canary for canary in canaries if abs(canary.log_prob) < float("inf")]  # no number: training failed


def hear(translator: Translator, canaries: Sequence[Canary]) -> list[Heard]:
    """What each canary says now; DataError if one is longer than the model can take."""
    tokens = translator.tokenizer.encode_source([canary.source for canary in canaries])
    told = [canary.target_tokens for canary in canaries]
    limits = translator.model.limits
    for number, sides in enumerate(zip(tokens, told, strict=True), start=1):
        for side, limit in zip(sides, (limits.source, limits.target), strict=True):
            if limit is not None and len(side) >= limit:
                raise DataError(f"canary {number} has {len(side):,} tokens, and the model can take {limit - 1:,}")
    said = _say(translator, tokens)
    texts = _texts(translator, told)
    then = log_probs_of(translator.model, tokens, told, BATCH_TOKENS)
    now = log_probs_of(translator.model, tokens, said, BATCH_TOKENS)
    return [
        Heard(canary, source, target, text, sum(before), _gap(canary.target_tokens, before, target, after))
        for canary, source, target, text, before, after in zip(canaries, tokens, said, texts, then, now, strict=True)
    ]


def _gap(told: list[int], before: list[float], said: list[int], after: list[float]) -> float:
    """By how much the tokens differ where they part; each has the end mark after the last token."""
    for place, (one, other) in enumerate(zip_longest(told, said)):
        if one != other:
            return after[place] - before[place]
    return 0.0


def _say(translator: Translator, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    config = translator.config.model_copy(update={"decoding": GREEDY})
    greedy = Translator(translator.model, translator.tokenizer, config)
    return [hypotheses[0].tokens for hypotheses in greedy.search(tokens)] if tokens else []


def _texts(translator: Translator, tokens: Sequence[Sequence[int]]) -> list[str]:
    """As a translation shows them."""
    return [BREAKS.sub(" ", text) for text in translator.tokenizer.decode_target(tokens)]


def _fits(translator: Translator, tokens: Sequence[int]) -> bool:
    return 0 < len(tokens) <= translator.max_source_length
