"""JSON as its standard has it, which every reader takes: Python's own would write NaN and Infinity."""

import json
import math
from typing import Any


def finite(value: Any) -> Any:
    """The same value; numbers in it that are not finite, which JSON cannot say, are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON, letters of all scripts as they are; numbers that are not finite are null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
