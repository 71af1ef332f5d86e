"""Whether the files of a run directory are what was written; nothing is changed, and no lock is needed."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mtkit.check import Report, check
from mtkit.data.corpus import MANIFEST, Corpus
from mtkit.data.manifest import read_manifest
from mtkit.data.stored_file import check_content, check_size
from mtkit.errors import CheckpointError, DataError, MtkitError
from mtkit.files import standing
from mtkit.prepare import kept_validation
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.checkpoint import OPTIMIZER, PROGRESS, checkpoint_steps, read_progress, step_directory

WHOLE = "as written"


def check_data(run: Path) -> Report:
    """The tokenizer, the binarized corpora and the validation text, all of which training reads."""
    return _joined(
        _part(run / "tokenizer", _tokenizer),
        _part(run / "data" / "train", lambda path: _corpus(path, standing(run / "tokenizer"))),
        _part(run / "data" / "valid", _validation),
    )


def check_results(run: Path, device: str | None = None) -> Report:
    """The checkpoints, and the model as `mtkit check` checks it on that device."""
    checkpoints = _part(run / "checkpoints", _checkpoints)
    model = _part(run / "model", lambda path: check(path, device))
    if model.faults and checkpoints.lines and not checkpoints.faults:
        model.lines.append(f"{run / 'model'}: delete it, and mtkit train writes it again from the checkpoints")
    return _joined(checkpoints, model)


def _part(path: Path, look: Callable[[Path], Report]) -> Report:
    """What is found in a folder of the run, if it is there; an error is a fault."""
    place = standing(path)
    if not place.exists():
        return Report([f"{path}: not there yet"], [])
    try:
        return look(place)
    except MtkitError as error:
        return Report([], str(error).splitlines())


def _joined(*reports: Report) -> Report:
    return Report(
        [line for report in reports for line in report.lines], [fault for report in reports for fault in report.faults]
    )


def _tokenizer(path: Path) -> Report:
    return Report([f"{path}: {WHOLE}, checksum {Tokenizer.load(path).hash[:12]}"], [])


def _validation(path: Path) -> Report:
    sources, _ = kept_validation(path)
    return Report([f"{path}: {len(sources):,} pairs, {WHOLE}"], [])


def _corpus(path: Path, tokenizer: Path) -> Report:
    manifest = read_manifest(path / MANIFEST)
    files = manifest.files()
    faults = []
    for name, stored in files.items():
        try:
            check_size(path / name, stored)
            check_content(path / name, stored, lambda: False)
        except DataError as error:
            faults.append(str(error))
    if faults:
        return Report([], faults)
    corpus = Corpus(path, manifest)
    if tokenizer.exists():
        corpus.require_tokenizer(Tokenizer.load(tokenizer).hash)
    return Report([f"{path}: {len(files)} files, {corpus.num_bytes:,} bytes, {WHOLE}"], [])


def _checkpoints(path: Path) -> Report:
    reports = [_checkpoint(path, step) for step in checkpoint_steps(path)]
    return _joined(*reports) if reports else Report([f"{path}: no checkpoint"], [])


def _checkpoint(checkpoints: Path, step: int) -> Report:
    path = step_directory(checkpoints, step)
    try:
        _, _, checksums = read_progress(checkpoints, step)
        faults = [fault for name, checksum in checksums.items() for fault in _faults(path / name, checksum)]
    except CheckpointError as error:
        faults = [str(error)]
    if not (path / PROGRESS).exists():
        return Report([], [])  # a training that goes on has just deleted it
    if faults:
        return Report([], faults)
    return Report([f"{path}: {sum(1 for _ in path.iterdir())} files, {WHOLE}"], [])


def _faults(path: Path, checksum: str) -> Iterator[str]:
    """What is wrong with a file of a checkpoint."""
    remedy = f"delete {path.parent} to go on from another checkpoint, or copy it again"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        newest = step_directory(path.parent.parent, checkpoint_steps(path.parent.parent)[-1])
        if path.name != OPTIMIZER or path.parent == newest:  # training deletes what older optimizers remember
            yield f"{path}: missing; {remedy}"
    except OSError as error:
        yield f"{path}: cannot be read: {error.strerror}; {remedy}"
    else:
        if found != checksum:
            yield f"{path}: damaged, its checksum is not the one it was saved with; {remedy}"
