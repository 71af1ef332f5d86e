"""What was seen is known for ever, and nothing else is."""

import random

from mtkit.preparation import encoding
from mtkit.preparation.encoding import SeenPairs


def test_only_the_first_of_equal_pairs_is_new():
    seen = SeenPairs()
    assert seen.add([("a", "b"), ("b", "a"), ("a", "b"), ("a", "B"), ("a ", "b")]) == [True, True, False, True, True]
    assert seen.add([]) == []
    assert seen.add([("a", "b"), ("c", ""), ("", "c"), ("b", "a")]) == [False, True, True, False]


def test_a_long_stream_is_told_as_a_set_tells_it():
    chance = random.Random(0)
    seen, known = SeenPairs(), set()
    for size in [1, 5, 300, 2, 1000, 64, *chance.choices(range(1, 500), k=150)]:
        pairs = [(str(chance.randrange(200)), str(chance.randrange(200))) for _ in range(size)]
        wanted = []
        for pair in pairs:
            wanted.append(pair not in known)
            known.add(pair)
        assert seen.add(pairs) == wanted
    assert len(known) > 20_000


def test_a_digest_takes_sixteen_bytes_and_stands_in_few_arrays():
    seen = SeenPairs()
    for start in range(0, 20_000, 500):
        assert all(seen.add([(str(number), "same") for number in range(start, start + 500)]))
    arrays = [array for levels in seen._shards for array in levels]
    assert sum(array.nbytes for array in arrays) == 16 * 20_000
    assert max(map(len, seen._shards)) <= 9, "levels double"


def test_digests_that_end_or_begin_with_zeros_are_told_apart(monkeypatch):
    made = [
        bytes(16),
        b"\1" + bytes(15),
        bytes(15) + b"\1",
        b"\1" + bytes(14) + b"\1",
        b"\xff" * 16,
        b"\xff" + bytes(15),
    ]
    monkeypatch.setattr(encoding, "_digest", lambda source, target: made[int(source)])
    seen = SeenPairs()
    assert seen.add([(str(number), "") for number in range(6)]) == [True] * 6
    assert seen.add([(str(number), "") for number in range(6)]) == [False] * 6
