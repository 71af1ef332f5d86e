"""Tensors read out of the bytes of a safetensors file where they lie, without a copy.

The file: 8 bytes that tell the length of the header, the header in JSON, and the numbers of one tensor after the other.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtkit.errors import CheckpointError

LENGTH_BYTES = 8
LONGEST_HEADER = 1 << 24  # that of a thousand tensors has a hundred thousand bytes
MOST_DIMENSIONS = 8

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class _Entry:
    """What the header tells of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # in bytes, from the end of the header
    end: int


def numbers_begin(data: memoryview) -> int:
    """Where the header ends and the first tensor begins; a header that the file cannot hold is a ValueError."""
    if len(data) < LENGTH_BYTES:
        raise ValueError(f"{len(data)} bytes are too few for a header")
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    most = min(len(data) - LENGTH_BYTES, LONGEST_HEADER)
    if length > most:
        raise ValueError(f"its header would have {length:,} bytes, and can have {most:,}")
    return LENGTH_BYTES + int(length)


def read_tensors(data: memoryview, where: str) -> dict[str, Tensor]:
    """The tensors of a file by their names; they share its memory, which must be writable.

    Every byte after the header belongs to one tensor, or it is a CheckpointError, which where begins.
    """
    try:
        begin = numbers_begin(data)
        entries = _entries(bytes(data[LENGTH_BYTES:begin]))
        numbers = data[begin:]
        place = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            if entry.begin != place:
                raise ValueError(f"tensor {name} begins at byte {entry.begin:,}, not at {place:,}")
            place = entry.end
        if place != len(numbers):
            raise ValueError(f"its tensors have {place:,} bytes, and {len(numbers):,} are there")
        return {name: _tensor(name, entry, numbers) for name, entry in entries.items()}
    except ValueError as error:
        raise CheckpointError(f"{where}: damaged: {error}; copy it again") from None
    except RecursionError:
        raise CheckpointError(f"{where}: damaged: its header is nested too deeply; copy it again") from None


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """What is wrong with weights that are not all finite, the first such tensor named; None if all are."""
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            count = weight.numel() - int(weight.isfinite().sum())
            return f"weight {name} holds {count:,} values of {weight.numel():,} that are infinite or no number"
    return None


def _entries(header: bytes) -> dict[str, _Entry]:
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=_distinct)
    except UnicodeDecodeError:
        raise ValueError("its header is not UTF-8") from None
    except json.JSONDecodeError:
        raise ValueError("its header is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("its header is not a table of tensors")
    content.pop("__metadata__", None)  # free text, which nothing here reads
    return {name: _entry(name, value) for name, value in content.items()}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _entry(name: str, value: Any) -> _Entry:
    told = f"tensor {name[:100]!r}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{told} is not told by dtype, shape and data_offsets")
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{told} is of no type that is known: {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS or 0 in shape:
        raise ValueError(f"{told} has no shape that a tensor can have")
    if not _are_counts(span) or len(span) != 2 or span[1] - span[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{told} has not the bytes that its shape wants")
    return _Entry(DTYPES[dtype], tuple(shape), *span)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _tensor(name: str, entry: _Entry, numbers: memoryview) -> Tensor:
    tensor = torch.frombuffer(numbers, dtype=entry.dtype, count=math.prod(entry.shape), offset=entry.begin)
    if tensor.data_ptr() % entry.dtype.itemsize:
        raise ValueError(f"tensor {name} lies where the processor cannot read its numbers")
    return tensor.view(entry.shape)
