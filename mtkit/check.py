"""`mtkit check`: whether a bundle is what was written, and says on this machine what it said on another."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtkit.canaries import Heard, hear
from mtkit.formats.bundle import CANARIES, WEIGHTS, Bundle, bundle_of, describe
from mtkit.formats.sums import all_sums
from mtkit.formats.tensors import not_finite
from mtkit.formats.verification import faults_of_files
from mtkit.opening import CheckpointStorage, find_model, tell
from mtkit.translator import load_bundle

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
