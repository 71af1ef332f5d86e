"""The chain of settings of a run: what was changed on the way, from which step on.

It is kept in every checkpoint, so that a run which was changed resumes like any other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtkit.data.plan import Earlier
from mtkit.errors import CheckpointError
from mtkit.identity import Changes, Difference
from mtkit.training.checkpoint import Change


def require_allowed(changes: Changes, run: Path, step: int, are_asked_for: bool) -> None:
    """Refuse changes that make it another run, and those that nobody asked for."""
    told = "; ".join(map(str, changes.all))
    if changes.fixed:
        raise CheckpointError(
            f"{run}: cannot go on from step {step:,}, since these changed: {told}. Change them back, give the run "
            f"another name (training.start_from={run} starts it from these weights), or start anew with --fresh"
        )
    if changes.asked and not are_asked_for:
        raise CheckpointError(
            f"{run}: cannot go on from step {step:,} with other settings unless that is asked for; these changed: "
            f"{told}. Change them back, add --change to go on with them, give the run another name, or start anew with "
            "--fresh"
        )


def with_changes(chain: Sequence[Change], step: int, pairs: int, differences: Sequence[Difference]) -> list[Change]:
    """The chain with these changes after so many updates, which consumed so many pairs.

    What is changed twice at one step counts once, and what is changed back not at all.
    """
    chain = list(chain)
    settings: dict[str, list[Any]] = {}
    if chain and chain[-1]["step"] == step:
        settings = dict(chain.pop()["settings"])
    for difference in differences:
        before = settings.get(difference.name, [difference.before])[0]
        settings[difference.name] = [before, difference.after]
    settings = {name: sides for name, sides in settings.items() if sides[0] != sides[1]}
    return [*chain, {"step": step, "pairs": pairs, "settings": settings}] if settings else chain


def earlier_budgets(chain: Sequence[Change]) -> list[Earlier]:
    """Other values that training.batch_tokens had before, and until how many pairs were consumed."""
    name = "training.batch_tokens"
    return [Earlier(change["pairs"], change["settings"][name][0]) for change in chain if name in change["settings"]]
