"""Write the demo corpus: French and English sentences that a seeded grammar composes.

Test and validation sentences hold at least one combination (a verb with its object, a noun with its adjective, a name
with a verb, a construction with a verb) that never occurs in training, and none of them stands in training. The look-up
baseline answers each test sentence with the reference of the training source most like it; how far it stays below
a trained model shows that the test asks for more than memory.

Example: python scripts/generate_demo.py --out data/demo
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import demo_lexicon as lexicon
from demo_forms import Feature, Pair, tokenize
from demo_grammar import Grammar

HELD_OUT_KINDS = ("object", "adjective", "subject", "construction", "negation", "question", "helper", "clitic")
HELD_OUT_PERCENT = 4  # of the combinations of each kind
CHRF_ORDER, CHRF_BETA = 6, 2  # as in sacreBLEU


@dataclass(frozen=True)
class Dials:
    """What the corpus is like; the same dials give the same bytes."""

    train: int = 16_000
    valid: int = 500
    test: int = 500
    seed: int = 1
    clauses: tuple[int, int] = (1, 3)
    held_out_names: int = 0
    variety: int = 1


Corpus = dict[str, list[Pair]]  # the pairs of train, valid and test


def hidden_names(dials: Dials) -> frozenset[str]:
    """The names that training never sees, as many women's as men's."""
    shuffle = Random(f"names {dials.seed}")
    women = shuffle.sample(lexicon.WOMEN, dials.held_out_names // 2)
    return frozenset(women + shuffle.sample(lexicon.MEN, dials.held_out_names - len(women)))


def is_held_out(feature: Feature, seed: int) -> bool:
    """Whether the combination is kept from training: a matter of its hash alone."""
    digest = hashlib.sha256(f"{seed} {' '.join(feature)}".encode()).digest()
    return feature[0] in HELD_OUT_KINDS and int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def wordings(dials: Dials, index: int) -> list[Pair]:
    """The sentence with that number, in up to `variety` different wordings."""
    pairs: dict[str, Pair] = {}
    for way in range(dials.variety):
        meaning, wording = Random(f"{dials.seed} {index}"), Random(f"{dials.seed} {index} {way}")
        pair = Grammar(meaning, wording, dials.clauses, dials.variety).sentence()
        pairs.setdefault(pair.target, pair)
    return list(pairs.values())


def generate(dials: Dials) -> Corpus:
    """The pairs of each split; no sentence of either language stands in two splits, or twice as a source."""
    hidden = hidden_names(dials)
    wanted = {"train": dials.train, "valid": dials.valid, "test": dials.test}
    corpus: Corpus = {split: [] for split in wanted}
    seen: set[str] = set()
    home: dict[str, str] = {}  # which split an English sentence belongs to
    for index in range(50 * sum(wanted.values())):
        open_splits = {split for split in wanted if len(corpus[split]) < wanted[split]}
        if not open_splits:
            return corpus
        ways = wordings(dials, index)
        named = {name for kind, _, name in ways[0].features if kind == "name"} & hidden
        split = choose_split(ways[0], index, dials, named)
        owned = any(kind == "possessor" and name in hidden for kind, _, name in ways[0].features)
        taken = ways[0].source in seen or any(home.get(way.target, split) != split for way in ways)
        if split not in open_splits or owned or taken:
            continue
        seen.add(ways[0].source)
        home.update({way.target: split for way in ways})
        corpus[split] += ways[: wanted[split] - len(corpus[split])]
    raise SystemExit("the grammar has too few different sentences for these sizes; ask for fewer, or more clauses")


def choose_split(pair: Pair, index: int, dials: Dials, hidden: set[str]) -> str:
    """Train, unless the pair has something training must not see; then test and valid by turns.

    A name that is held out makes a pair one for the test set (valid has none).
    """
    if hidden:
        return "test"
    if any(is_held_out(feature, dials.seed) for feature in pair.features):
        return "test" if index % 2 else "valid"
    return "train"


def between_words(pair: Pair) -> list[tuple[int, int]]:
    """The alignment of a pair between its words as white space separates them ("L'homme", "dort."), not its tokens."""
    words = [
        [place for place, word in enumerate(line.split()) for _ in tokenize(word)]
        for line in (pair.source, pair.target)
    ]
    return sorted({(words[0][i], words[1][j]) for i, j in pair.alignment})


def write(corpus: Corpus, folder: Path, alignment: str | None) -> None:
    """The files {train,valid,test}.{fr,en} and, if asked for, .align with lines such as "0-0 1-2 2-1".

    The alignments are between "tokens" or "words".
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, pairs in corpus.items():
        sides = {"fr": [pair.source for pair in pairs], "en": [pair.target for pair in pairs]}
        if alignment:
            links = [between_words(pair) if alignment == "words" else pair.alignment for pair in pairs]
            sides["align"] = [" ".join(f"{i}-{j}" for i, j in of_pair) for of_pair in links]
        for suffix, lines in sides.items():
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{split}.{suffix}").write_text(text, encoding="utf-8", newline="\n")


# ---- the look-up baseline


class Lookup:
    """Finds the line most like a query by chrF (sacreBLEU's: orders 1 to 6, beta 2, the line as the hypothesis).

    It is exact: a table of every character n-gram, in which lines it stands and how often.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        import numpy as np  # which comes with sacrebleu

        self.np = np
        texts = ["".join(line.split()) for line in lines]  # chrF leaves spaces out
        lengths = np.array([len(text) for text in texts])
        self.totals = np.maximum(lengths - np.arange(CHRF_ORDER)[:, None], 0)  # (order, line)
        letters = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
        where = np.repeat(np.arange(len(texts)), lengths)
        self.alphabet, ids = np.unique(letters, return_inverse=True)
        assert (len(self.alphabet) + 1) ** CHRF_ORDER * max(len(texts), 1) < 2**63
        # For each order, rows of n-gram, line and count, sorted by the n-gram, which is its letters read as one number.
        self.postings = []
        for order in range(1, CHRF_ORDER + 1):
            first, last = where[: len(where) - order + 1], where[order - 1 :]
            codes = self.codes(ids, order)[first == last]
            pairs, counts = np.unique(codes * len(texts) + first[first == last], return_counts=True)
            self.postings.append((pairs // len(texts), pairs % len(texts), counts))

    def codes(self, ids: Any, order: int) -> Any:
        """The number of each n-gram of that order, one starting at each letter."""
        codes = self.np.zeros(max(len(ids) - order + 1, 0), dtype=self.np.int64)
        for place in range(order):
            codes = codes * (len(self.alphabet) + 1) + ids[place : place + len(codes)]
        return codes

    def scores(self, query: str) -> Any:
        """The chrF of every line against the query, from 0 to 100."""
        np = self.np
        letters = np.frombuffer("".join(query.split()).encode("utf-32-le"), dtype=np.uint32)
        ids = np.searchsorted(self.alphabet, letters)
        ids = np.where(np.isin(letters, self.alphabet), ids, len(self.alphabet))  # a letter that no line has
        matches, query_totals = np.zeros(self.totals.shape), np.zeros((CHRF_ORDER, 1))
        for order, (codes, where, counts) in enumerate(self.postings):
            wanted, wanted_counts = np.unique(self.codes(ids, order + 1), return_counts=True)
            query_totals[order] = wanted_counts.sum()
            begins, ends = (np.searchsorted(codes, wanted, side) for side in ("left", "right"))
            rows = np.concatenate([np.arange(0), *map(np.arange, begins, ends)])
            found = np.minimum(counts[rows], np.repeat(wanted_counts, ends - begins))
            matches[order] = np.bincount(where[rows], found, self.totals.shape[1])
        counted = (self.totals > 0) & (query_totals > 0)
        orders = np.maximum(counted.sum(axis=0), 1)
        precision = np.where(counted, matches / np.maximum(self.totals, 1), 0).sum(axis=0) / orders
        recall = np.where(counted, matches / np.maximum(query_totals, 1), 0).sum(axis=0) / orders
        weight = CHRF_BETA**2
        return 100 * (1 + weight) * precision * recall / np.maximum(weight * precision + recall, 1e-16)

    def nearest(self, query: str) -> int:
        """The number of the line most like the query, the first of equals."""
        return int(self.scores(query).argmax())


def lookup_bleu(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> float:
    """The BLEU (sacreBLEU, 13a) of answering each test source with the target of the training source most like it."""
    import sacrebleu

    lookup = Lookup([source for source, _ in train])
    answers = [train[lookup.nearest(source)][1] for source, _ in test]
    return float(sacrebleu.corpus_bleu(answers, [[target for _, target in test]]).score)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a French-English corpus composed by a seeded grammar.")
    dials = Dials()
    parser.add_argument("--out", type=Path, required=True, help="folder for {train,valid,test}.{fr,en}")
    parser.add_argument("--train", type=int, default=dials.train, help="pairs for training")
    parser.add_argument("--valid", type=int, default=dials.valid, help="pairs for validation")
    parser.add_argument("--test", type=int, default=dials.test, help="pairs for the test")
    parser.add_argument("--seed", type=int, default=dials.seed, help="the same seed gives the same bytes")
    parser.add_argument(
        "--clauses", type=int, nargs=2, default=dials.clauses, metavar=("MIN", "MAX"), help="clauses in a sentence"
    )
    parser.add_argument("--held-out-names", type=int, default=0, help="names that only the test has (at most 30)")
    parser.add_argument("--variety", type=int, default=1, help="ways in which English may say one meaning")
    parser.add_argument(
        "--alignment",
        nargs="?",
        const="tokens",
        choices=("tokens", "words"),
        help="write the gold alignments too (.align, Pharaoh): of tokens (L' | homme | .), or of words between spaces",
    )
    parser.add_argument("--lookup", action="store_true", help="print the BLEU of the look-up baseline")
    arguments = parser.parse_args()
    low, high = arguments.clauses
    if not 1 <= low <= high:
        parser.error(f"--clauses {low} {high}: want 1 <= MIN <= MAX")
    if not 0 <= arguments.held_out_names <= 30:
        parser.error(f"--held-out-names {arguments.held_out_names}: want 0 to 30")
    if arguments.variety < 1:
        parser.error(f"--variety {arguments.variety}: want 1 or more")
    return arguments


def main() -> None:
    arguments = read_arguments()
    dials = Dials(
        arguments.train,
        arguments.valid,
        arguments.test,
        arguments.seed,
        tuple(arguments.clauses),
        arguments.held_out_names,
        arguments.variety,
    )
    corpus = generate(dials)
    write(corpus, arguments.out, arguments.alignment)
    for split, pairs in corpus.items():
        words = sum(len(pair.source.split()) for pair in pairs) / max(1, len(pairs))
        print(f"{split}: {len(pairs):,} pairs, {words:.1f} French words each")
    if arguments.lookup:
        train, test = ([(pair.source, pair.target) for pair in corpus[split]] for split in ("train", "test"))
        print(f"look-up baseline: {lookup_bleu(train, test):.1f} BLEU")


if __name__ == "__main__":
    main()
