"""A bundle with a larger vocabulary, which translates as before until it is trained on what is new."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit import __version__
from mtkit.canaries import make_canaries
from mtkit.errors import MtkitError
from mtkit.formats.bundle import DESCRIPTION, UNTRAINED, UNTRAINED_TAGS, open_bundle, save_bundle, save_scores
from mtkit.formats.card import card_text
from mtkit.messages import say
from mtkit.models.registry import empty_model
from mtkit.opening import open_and_tell
from mtkit.text.extending import extended
from mtkit.text.tokenizer import Tokenizer
from mtkit.translator import load_bundle, translator_of


def extend(path: Path, output: Path, pieces: Sequence[str], tags: Sequence[str]) -> None:
    """Write the bundle at a path with new pieces and tags as another bundle.

    The row of a new piece is the mean of the rows of those that spelled it before, in the embeddings, in the output
    layer and in its bias. Until a training starts from the bundle, what is new is never said and counts for nothing in
    the softmax, so that translations and their scores are those of before.
    """
    if output.exists() and not (output / DESCRIPTION).is_file():
        raise MtkitError(f"{output}: is there already and is no bundle; name a new folder")
    bundle = open_and_tell(path)
    old = load_bundle(bundle, ["device=cpu"])
    tokenizer = extended(old.tokenizer, pieces, tags)
    sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    wanted = empty_model(bundle.config.model, *sizes, tokenizer.specials)
    weights = {name: weight.float() for name, weight in bundle.weights().items()}
    for name, parameter in wanted.named_parameters():
        if parameter.shape != weights[name].shape:
            weights[name] = _longer(weights[name], _spellings(old.tokenizer, tokenizer, name.startswith("encoder.")))
    config = bundle.config.model_copy(update={"tokenizer": bundle.config.tokenizer.with_room_for(*sizes)})
    untrained = [*bundle.untrained, *range(old.tokenizer.target_vocab_size, sizes[1])]
    untrained_tags = [*bundle.untrained_tags, *tags]
    about: dict[str, Any] = {
        **{key: bundle.description[key] for key in ("training", "imported") if key in bundle.description},
        "mtkit": __version__,
        "source_vocab_size": sizes[0],
        "target_vocab_size": sizes[1],
        "num_parameters": sum(map(Tensor.numel, weights.values())),
        UNTRAINED: untrained,
        **({UNTRAINED_TAGS: untrained_tags} if untrained_tags else {}),
    }
    translator = translator_of(config, tokenizer, weights, untrained)
    canaries = make_canaries(translator, [canary.source for canary in bundle.canaries()])
    save_bundle(output, weights, config, tokenizer.save, about, canaries)
    new = open_bundle(output)
    save_scores(new, [], card_text(new, []))
    say(
        f"{len(pieces) + len(tags):,} new pieces: {sizes[0]:,} source and {sizes[1]:,} target ones now; they are said "
        f"once a training has started from {output}"
    )


def _spellings(old: Tokenizer, new: Tokenizer, of_source: bool) -> list[list[int]]:
    """For each new id of a side the ids of the pieces that spelled it before."""
    if of_source:
        ids = range(old.source_vocab_size, new.source_vocab_size)
        return old.encode_source(new.source_pieces(ids))
    ids = range(old.target_vocab_size, new.target_vocab_size)
    return old.encode_target(new.target_pieces(ids))


def _longer(table: Tensor, spellings: Sequence[Sequence[int]]) -> Tensor:
    """(V, …) with a row for each spelling behind the others: the mean of its rows, or of all where there is none."""
    rows = [table[list(spelling)].mean(0) if spelling else table.mean(0) for spelling in spellings]
    return torch.cat([table, torch.stack(rows)])
