"""Where a model looks as it says given translations.

Letters: R rows, H heads, S source length, T target length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtkit.data.batches import padded_batch, ragged
from mtkit.decode import Model, last_attention
from mtkit.likelihood import batches_by_length, chunk_tokens
from mtkit.models.ensemble import Ensemble


@torch.inference_mode()
def source_attention(
    model: Model, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int
) -> list[Tensor]:
    """For each pair (T, S) on the CPU: how the model looks at each source token as it says each target token.

    It is the attention of the last layer, its heads' mean, without the end marks. A batch is at most so many tokens.
    """
    if isinstance(model, Ensemble):  # whose members give the log-probabilities of a whole batch
        batch_tokens = min(batch_tokens, chunk_tokens(model))
    found: dict[int, Tensor] = {}
    lengths = [max(len(source), len(target)) + 1 for source, target in zip(sources, targets, strict=True)]
    for chosen in batches_by_length(lengths, batch_tokens):
        rows = [ragged([side[i] for i in chosen]) for side in (sources, targets)]
        batch = padded_batch(rows[0], rows[1], model.marks).to(model.device)
        _, state = model.decode(batch.target, model.encode(batch.source, watch=True))
        for i, weights in zip(chosen, last_attention(state, "unknown copy").cpu(), strict=True):
            found[i] = weights[: len(targets[i]), : len(sources[i])].clone()
    return [found[i] for i in range(len(sources))]
