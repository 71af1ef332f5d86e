"""`mtkit pack`: a bundle into one file."""

from pathlib import Path

from mtkit.errors import CheckpointError
from mtkit.formats.bundle import bundle_of, describe
from mtkit.formats.packing import write_packed
from mtkit.formats.sums import all_sums
from mtkit.formats.tensors import not_finite
from mtkit.formats.verification import faults_of_files
from mtkit.opening import find_model, tell


def pack(model: Path, output: Path) -> int:
    """Write the packed bundle, which is no more than its parts and their names, and return its size in bytes.

    The same bundle gives the same bytes. One that is damaged is refused.
    """
    if output.is_dir():
        raise CheckpointError(f"{output}: is a folder; wants the name of a file, such as model.mtkit")
    storage = find_model(model)
    tell(storage)
    sums = all_sums(storage)
    if faults := faults_of_files(storage, describe(storage), sums):
        raise CheckpointError("\n".join(faults))
    bundle = bundle_of(storage)
    bundle.require_own_tokenizer()
    if fault := not_finite(bundle.weights()):  # whose header is whole
        raise CheckpointError(f"{bundle.path}: {fault}; train the model again")
    write_packed(storage, sums, output)
    return output.stat().st_size
