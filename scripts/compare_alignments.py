"""Compares attention heads by the alignment error rate: each layer and head of each model, and the mean over heads.

.venv/bin/python scripts/compare_alignments.py MODEL... --source FILE --reference FILE --gold-alignments FILE

For each choice of a layer and a head, prints two rates: by the attention with which a target token was predicted, and
by that with which the decoder then read it. Words are separated by white space.
"""

import argparse
from pathlib import Path

from mtkit.text.lines import read_pairs
from mtkit.translation.alignments import (
    MEAN,
    AlignmentSettings,
    Gold,
    Number,
    alignment_scores,
    diagonal,
    read_gold,
)
from mtkit.translation.translator import Translator, load


def main() -> None:
    """Print a line for each choice, and one for the diagonal baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    for name in ("--source", "--reference", "--gold-alignments"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    pairs = list(read_pairs(arguments.source, arguments.reference))
    gold = read_gold(arguments.gold_alignments, pairs)
    baseline = [diagonal(len(source.split()), len(target.split())) for source, target in pairs]
    print(f"diagonal: {alignment_scores(baseline, gold).error_rate:.1f}")
    for model in arguments.models:
        translator = load(model, ["device=cpu"])
        num_layers, num_heads = translator.config.model.source_attention
        heads: list[Number] = [*range(1, num_heads + 1), MEAN]
        for layer in (*range(1, num_layers + 1), MEAN):
            for head in heads:
                predicted = error_rate(translator, pairs, gold, AlignmentSettings(layer=layer, head=head))
                read = error_rate(translator, pairs, gold, AlignmentSettings(layer=layer, head=head, step="read"))
                print(f"{model}: layer {layer}, head {head}: {predicted:.1f} predicted, {read:.1f} read", flush=True)


def error_rate(
    translator: Translator, pairs: list[tuple[str, str]], gold: list[Gold], settings: AlignmentSettings
) -> float:
    """Returns the alignment error rate of the attention that `settings` choose."""
    translator.align_with(settings)
    return alignment_scores(list(translator.align_lines(pairs)), gold).error_rate


if __name__ == "__main__":
    main()
