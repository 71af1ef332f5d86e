"""Canaries: sentences with their translations, by which a model is checked elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from mtkit.bundle.bundle import CANARIES, WEIGHTS, Bundle, Canary, bundle_of, describe
from mtkit.bundle.info import faults_of_files
from mtkit.bundle.opening import CheckpointStorage, find_model, tell
from mtkit.bundle.storage import all_sums, not_finite
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import DataError
from mtkit.translation.decode import log_probs_of
from mtkit.translation.translator import BREAKS, Translator, load_bundle

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


# `mtkit check`: whether a bundle is what was written, and says on this machine what it said on another.

# A log-probability may drift so far for each token: more than rounding does on any device in fp32.
MOST_DRIFT = 0.01


@dataclass(frozen=True)
class Report:
    """What was found, and what is wrong with it, a line each."""

    lines: list[str]
    faults: list[str]


def check(model: Path, device: str | None = None) -> Report:
    """Read every file once and compare it with its checksum; if all are whole, hear the canaries on the device."""
    storage = find_model(model)
    tell(storage)
    description = describe(storage)
    sums = all_sums(storage)
    kind = "a checkpoint" if isinstance(storage, CheckpointStorage) else f"bundle format {description['format']}"
    lines = [f"{storage.path}: {kind}, written by mtkit {description.get('mtkit', '?')}"]
    if faults := faults_of_files(storage, description, sums):
        return Report(lines, faults)
    bundle = bundle_of(storage)
    bundle.require_own_tokenizer()
    if fault := not_finite(bundle.weights()):
        return Report(lines, [f"{bundle.path / WEIGHTS}: {fault}; train the model again"])
    if description["format"] == 1:
        lines.append(
            "format 1 has a checksum of the tokenizer and the size of the weights, and these are right; it has none of "
            "the other files, and no canaries"
        )
        load_bundle(bundle, [f"device={device}"] if device else [])
        return Report(lines, [])
    size = sum(each.size for each in sums.values())
    lines.append(f"files: {len(sums)}, {size:,} bytes, all as they were written")
    canaries = bundle.canaries()
    translator = load_bundle(bundle, [f"device={device}"] if device else [])
    if not canaries:
        return Report([*lines, "canaries: it has none"], [])
    heard = hear(translator, canaries)
    return Report([*lines, *_told(heard, translator.model.device.type)], list(_wrong(bundle, heard)))


def _told(heard: list[Heard], device: str) -> Iterator[str]:
    drifts = [each.drift for each in heard]
    same = sum(each.same_tokens for each in heard)
    yield f"canaries: {same} of {len(heard)} say the same tokens on {device}"
    yield (f"log-probabilities: the largest difference is {max(drifts):.1e}, the mean {sum(drifts) / len(drifts):.1e}")
    for number, each in enumerate(heard, start=1):
        if each.is_tie:
            yield f"canary {number}: a tie: it says something else that is as likely, to {abs(each.gap):.1e}"


def _wrong(bundle: Bundle, heard: list[Heard]) -> Iterator[str]:
    where = bundle.path / CANARIES
    for number, each in enumerate(heard, start=1):
        told = f"{where}: canary {number}"
        if not each.same_text:
            yield f"{told}: the tokenizer reads or writes it in another way than where it was made"
        elif not each.same_tokens and not each.is_tie:
            yield f"{told}: the model says something else, which here is likelier by {each.gap:.1e}"
        elif not each.drift <= MOST_DRIFT * (len(each.canary.target_tokens) + 1):
            yield f"{told}: its log-probability is {each.log_prob:.4f}, and was {each.canary.log_prob:.4f}"
