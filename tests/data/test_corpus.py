"""What is written is what is read, and nothing that changed since goes unnoticed."""

import json
import os
import shutil
import sys
import threading

import numpy as np
import pytest

from mtkit.data import corpus as corpus_module
from mtkit.data.corpus import (
    SPARE_TOKENS,
    Corpus,
    CorpusWriter,
    Manifest,
    RawFile,
    Verification,
    checksum,
    length_limit,
    length_statistics,
)
from mtkit.errors import DataError, StoppedError
from mtkit.files import new_directory, put_in_place, settle

SOURCE = [[4, 5, 6], [7], [], [65535, 8]]
TARGET = [[9], [10, 11], [12, 13, 14, 70000], [15]]


def write(directory, source=SOURCE, target=TARGET, source_vocab_size=65536, tokenizer_hash="abc") -> Manifest:
    with CorpusWriter(directory, source_vocab_size, 70001, tokenizer_hash) as writer:
        for start in range(0, len(source), 3):
            writer.add(source[start : start + 3], target[start : start + 3])
        raw_files = [RawFile("a", "sha256:1"), RawFile("b", "sha256:2")]
        return writer.commit({"too long": 2}, raw_files, {"max_length": 9}, [len(source) - 1, 1] if source else [0])


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_written_is_what_is_read(tmp_path):
    manifest = write(tmp_path / "train")
    corpus = Corpus.open(tmp_path / "train")
    assert corpus.manifest == manifest
    assert len(corpus) == manifest.num_pairs == 4
    assert [corpus.source(pair).tolist() for pair in range(4)] == SOURCE
    assert [corpus.target(pair).tolist() for pair in range(4)] == TARGET
    assert corpus.source_lengths.tolist() == [3, 1, 0, 2]
    assert corpus.target_lengths.tolist() == [1, 2, 4, 1]
    assert (manifest.source.num_tokens, manifest.source.longest) == (6, 3)
    assert (manifest.target.num_tokens, manifest.target.longest) == (8, 4)
    corpus.verify()
    corpus.require_tokenizer("abc")
    assert names(tmp_path) == ["train"]


def test_ids_take_two_bytes_where_they_fit_and_cannot_be_changed(tmp_path):
    write(tmp_path / "train")
    corpus = Corpus.open(tmp_path / "train")
    assert corpus.source_tokens.dtype == np.dtype("<u2")
    assert corpus.target_tokens.dtype == np.dtype("<u4")
    assert corpus.source_offsets.dtype == np.dtype("<i8")
    assert not corpus.source_tokens.flags.writeable
    assert (tmp_path / "train" / "source.tokens").read_bytes() == np.array([4, 5, 6, 7, 65535, 8], "<u2").tobytes()


def test_no_pairs_are_a_corpus_too(tmp_path):
    write(tmp_path / "train", [], [])
    corpus = Corpus.open(tmp_path / "train")
    assert (len(corpus), len(corpus.source_lengths), corpus.manifest.source.longest) == (0, 0, 0)
    corpus.verify()


def test_a_corpus_of_many_pieces_is_checked_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "PIECE_BYTES", 8)
    manifest = write(tmp_path / "train")
    assert [len(stored.sha256) for stored in (manifest.target.tokens, manifest.target.offsets)] == [4, 5]
    Corpus.open(tmp_path / "train").verify()


@pytest.mark.parametrize("name", ["source.tokens", "source.offsets", "target.tokens", "target.offsets"])
def test_any_changed_byte_is_noticed(tmp_path, name, monkeypatch):
    monkeypatch.setattr(corpus_module, "PIECE_BYTES", 8)
    write(tmp_path / "train")
    path = tmp_path / "train" / name
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError) as raised:
            Corpus.open(tmp_path / "train").verify()
        assert name in str(raised.value)
        assert "again" in str(raised.value)
    middle = 9
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DataError, match=r"damaged in piece 2 of \d \(0 MiB each\); binarize the corpora again"):
        Corpus.open(tmp_path / "train").verify()


@pytest.mark.parametrize("name", ["source.tokens", "source.offsets", "target.tokens", "target.offsets"])
def test_a_cut_or_missing_file_is_told_with_its_sizes(tmp_path, name):
    write(tmp_path / "train")
    path = tmp_path / "train" / name
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(DataError) as raised:
        Corpus.open(tmp_path / "train")
    assert str(raised.value) == f"{path}: has {size - 1} bytes but {size} were written; binarize the corpora again"
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: missing; binarize the corpora again"):
        Corpus.open(tmp_path / "train")


def test_offsets_that_do_not_end_with_the_tokens_are_told(tmp_path):
    write(tmp_path / "train")
    path = tmp_path / "train" / "target.offsets"
    offsets = np.fromfile(path, "<i8")
    offsets[-1] = 1_000_000
    offsets.tofile(path)
    with pytest.raises(DataError, match=r"target\.offsets: ends at token 1,000,000 of 8; binarize"):
        Corpus.open(tmp_path / "train")


def test_any_changed_character_of_the_manifest_is_noticed(tmp_path):
    write(tmp_path / "train")
    path = tmp_path / "train" / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"manifest\.json: (damaged; binarize|format)"):
            Corpus.open(tmp_path / "train")


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"format": 1}'])
def test_a_damaged_manifest_is_told(tmp_path, content):
    write(tmp_path / "train")
    (tmp_path / "train" / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: damaged; binarize the corpora again"):
        Corpus.open(tmp_path / "train")


def test_a_later_format_is_told(tmp_path):
    write(tmp_path / "train")
    path = tmp_path / "train" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(DataError, match="format 2 is unknown; this version of mtkit reads format 1"):
        Corpus.open(tmp_path / "train")


def test_a_missing_corpus_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no binarized corpus here \(manifest\.json is missing\)"):
        Corpus.open(tmp_path / "nowhere")


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    write(tmp_path / "train", tokenizer_hash="a" * 64)
    with pytest.raises(DataError, match=r"was encoded by another tokenizer \(a{12}, not b{12}\); binarize"):
        Corpus.open(tmp_path / "train").require_tokenizer("b" * 64)


def test_without_a_commit_nothing_changes(tmp_path):
    manifest = write(tmp_path / "train")
    with CorpusWriter(tmp_path / "train", 10, 10, "abc") as writer:
        writer.add([[4]], [[4]])
    assert names(tmp_path) == ["train"]
    assert Corpus.open(tmp_path / "train").manifest == manifest


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_old_corpus_and_nothing_beside_it(tmp_path):
    import resource

    manifest = write(tmp_path / "train")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "train", [[4]] * 1000, [[5]] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["train"]
    assert Corpus.open(tmp_path / "train").manifest == manifest


def test_a_new_corpus_takes_the_place_of_the_old(tmp_path):
    write(tmp_path / "train")
    (tmp_path / "train" / "more").write_text("left from before")
    write(tmp_path / "train", [[4]], [[5]])
    assert len(Corpus.open(tmp_path / "train")) == 1
    assert names(tmp_path) == ["train"]
    assert "more" not in names(tmp_path / "train")


def test_a_kill_while_putting_in_place_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """Every rename, flush and removal is in turn the last thing that happens."""

    class Killed(BaseException):
        pass

    def run(last: int) -> bool:
        calls = 0

        def counted(real):
            def call(*arguments, **keywords):
                nonlocal calls
                calls += 1
                if calls > last:
                    raise Killed
                return real(*arguments, **keywords)

            return call

        place = tmp_path / str(last) / "train"
        place.mkdir(parents=True)
        (place / "old").write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(os.fsync))
            patch.setattr("pathlib.Path.rename", counted(type(place).rename))
            patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
            try:
                (new_directory(place) / "new").write_text("new")
                put_in_place(place)
                killed = False
            except Killed:
                killed = True
        settle(place)
        assert names(place) in (["old"], ["new"])
        (new_directory(place) / "next").write_text("next")
        put_in_place(place)
        assert (names(place), names(place.parent)) == (["next"], ["train"])
        return killed

    last = 0
    while run(last):
        last += 1
    assert last == 6  # two files flushed, two renames, the parent flushed, the old one removed


def damage(directory) -> None:
    path = directory / "target.tokens"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_small_corpus_is_verified_before_anything_else(tmp_path):
    write(tmp_path / "train")
    corpus = Corpus.open(tmp_path / "train")
    assert corpus.num_bytes == sum(path.stat().st_size for path in (tmp_path / "train").glob("*.[to]*"))
    with Verification(corpus) as verification:
        verification.check()
    damage(tmp_path / "train")
    with pytest.raises(DataError, match="damaged in piece 1 of 1"):
        Verification(corpus)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_large_corpus_is_verified_while_others_read_it(tmp_path, monkeypatch, damaged):
    monkeypatch.setattr(corpus_module, "VERIFIED_FIRST_BYTES", 10)
    write(tmp_path / "train")
    corpus = Corpus.open(tmp_path / "train")
    if damaged:
        damage(tmp_path / "train")
    held = threading.Event()
    verify = corpus.verify
    monkeypatch.setattr(corpus, "verify", lambda should_stop: (held.wait(60), verify(should_stop)))
    with Verification(corpus) as verification:
        verification.check()  # nothing is known yet
        held.set()
        if damaged:
            with pytest.raises(DataError, match=r"target\.tokens: damaged in piece 1 of 1"):
                verification.wait(lambda: None)
            with pytest.raises(DataError, match=r"target\.tokens: damaged in piece 1 of 1"):
                verification.check()
        else:
            verification.wait(lambda: None)
            verification.check()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verification")]


def test_waiting_for_verification_can_be_stopped_and_reading_ends_with_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "VERIFIED_FIRST_BYTES", 10)
    write(tmp_path / "train")
    corpus = Corpus.open(tmp_path / "train")
    asked: list[bool] = []

    def verify(should_stop) -> None:
        while not should_stop():
            asked.append(False)

    def stop() -> None:
        raise StoppedError

    monkeypatch.setattr(corpus, "verify", verify)
    with pytest.raises(StoppedError), Verification(corpus) as verification:
        verification.wait(stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verification")]


def test_verifying_stops_when_asked_to(tmp_path):
    write(tmp_path / "train")
    corpus = Corpus.open(tmp_path / "train")
    damage(tmp_path / "train")
    corpus.verify(lambda: True)
    with pytest.raises(DataError, match="damaged"):
        corpus.verify(lambda: False)


def test_a_corpus_of_an_older_version_has_no_counts_by_corpus(tmp_path):
    manifest = write(tmp_path / "train")
    assert manifest.corpora == (3, 1)
    path = tmp_path / "train" / "manifest.json"
    content = json.loads(path.read_text())
    del content["corpora"], content["format"], content["sha256"]
    sha256 = checksum(content)
    path.write_text(json.dumps({"format": 1, **content, "sha256": sha256}))
    assert Corpus.open(tmp_path / "train").manifest.corpora == ()


def test_lengths_are_told_of_all_pairs_or_of_blocks_spread_over_them(tmp_path):
    chance = np.random.default_rng(1)
    lengths = {side: chance.integers(1, 50, 12_345) for side in ("source", "target")}
    with CorpusWriter(tmp_path / "corpus", 100, 100, "hash") as writer:
        writer.add(*([[5] * length for length in lengths[side]] for side in ("source", "target")))
        writer.commit({}, [], {}, [12_345])
    corpus = Corpus.open(tmp_path / "corpus")
    told = corpus.facts()["lengths"]
    assert (told["pairs"], told["measured"]) == (12_345, 12_345)
    for side, found in lengths.items():
        ordered = np.sort(found)
        assert told[side]["mean"] == round(float(found.mean()), 2)
        assert told[side]["longest"] == found.max()
        assert list(told[side]["quantiles"]) == ["1%", "5%", "50%", "95%", "99%"]
        for name, value in told[side]["quantiles"].items():
            share = int(name.removesuffix("%")) / 100
            assert (ordered <= value).mean() >= share > (ordered < value).mean()
    manifests = {"source": corpus.manifest.source, "target": corpus.manifest.target}
    offsets = {"source": corpus.source_offsets, "target": corpus.target_offsets}
    sampled = length_statistics(manifests, offsets, most_pairs=5000)
    assert (sampled["pairs"], sampled["measured"]) == (12_345, 5000)
    for side in lengths:
        assert sampled[side]["mean"] == told[side]["mean"]
        assert sampled[side]["longest"] == told[side]["longest"]
        for name, value in sampled[side]["quantiles"].items():
            assert abs(value - told[side]["quantiles"][name]) <= 2


def test_a_quantile_is_a_length_that_occurs(tmp_path):
    with CorpusWriter(tmp_path / "corpus", 100, 100, "hash") as writer:
        writer.add([[5], [5] * 10], [[5] * 3, [5] * 3])
        writer.commit({}, [], {}, [2])
    told = Corpus.open(tmp_path / "corpus").facts()["lengths"]
    quantiles = {"1%": 1, "5%": 1, "50%": 1, "95%": 10, "99%": 10}
    assert told["source"] == {"mean": 5.5, "quantiles": quantiles, "longest": 10}


def test_a_corpus_of_nothing_has_no_lengths(tmp_path):
    with CorpusWriter(tmp_path / "corpus", 100, 100, "hash") as writer:
        writer.commit({}, [], {}, [])
    told = Corpus.open(tmp_path / "corpus").facts()["lengths"]
    assert told["source"] == {"mean": 0.0, "quantiles": {}, "longest": 0}


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_the_length_limit_cuts_fewer_than_one_target_in_ten_thousand(seed):
    chance = np.random.default_rng(seed)
    sources = chance.integers(1, 60, 50_000)
    targets = np.maximum(1, sources * chance.normal(1.5, 0.2, 50_000) + chance.exponential(2, 50_000)).astype(int)
    targets[:4] = 500  # pairs that do not belong together must not make the limit long
    limit = length_limit(offsets_of(sources), offsets_of(targets))
    longest = limit["ratio"] * sources + limit["extra"]
    assert (targets > longest).mean() < 1e-4
    assert longest.mean() < 3 * targets.mean()
    assert limit["ratio"] >= 1.2 * targets.sum() / sources.sum() - 0.01


def test_a_corpus_without_tokens_has_no_length_limit():
    assert length_limit(offsets_of([]), offsets_of([])) == {}
    assert length_limit(offsets_of([3, 3]), offsets_of([0, 0])) == {}


def test_the_limit_of_a_corpus_without_sources_is_that_of_its_targets():
    assert length_limit(offsets_of([0, 0]), offsets_of([3, 7]))["extra"] == 7 + SPARE_TOKENS


def test_a_small_corpus_of_another_language_has_a_say_in_the_length_limit():
    chance = np.random.default_rng(1)
    sources = chance.integers(1, 60, 50_200)
    targets = np.where(np.arange(50_200) < 50_000, sources, 3 * sources)
    limit = length_limit(offsets_of(sources), offsets_of(targets), (50_000, 200))
    assert (targets <= limit["ratio"] * sources + limit["extra"]).all()
