"""Which pairs are left out of training, and why."""

REASONS = ("blank source", "blank target", "too long", "length ratio")


def drop_reason(
    source: str,
    target: str,
    source_length: int,
    target_length: int,
    max_length: int,
    max_length_ratio: float | None,
) -> str | None:
    """The first of REASONS to leave a pair out, or None to keep it.

    Lengths are in tokens, end marks not counted. A side of white space, or of nothing but what normalisation removes,
    is blank. The ratio is of the longer side to the shorter.
    """
    if not source_length or not source.strip():
        return "blank source"
    if not target_length or not target.strip():
        return "blank target"
    shorter, longer = sorted((source_length, target_length))
    if longer > max_length:
        return "too long"
    if max_length_ratio is not None and longer > max_length_ratio * shorter:
        return "length ratio"
    return None
