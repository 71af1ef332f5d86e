"""One model, two target languages: a tag before the line says which is wanted, however the tag came there."""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CorpusFiles, config_with, toy_pairs, toy_settings, write_lines

from mtkit.cli import main
from mtkit.config.show import config_text
from mtkit.data.corpus import Corpus
from mtkit.errors import ConfigError, MtkitError
from mtkit.pipeline import run_all, run_binarize
from mtkit.prepare import binarized_is_current, read_validation, tokenizer_is_current
from mtkit.text.splitting import split_tags
from mtkit.text.tokenizer import Tokenizer
from mtkit.translate import translate
from mtkit.translator import Translator, load
from mtkit.validation import Validation

FORWARD, BACKWARD = "<2digits>", "<2stigid>"


def reverse(digits: str) -> str:
    return " ".join(reversed(digits.split()))


def write_corpus(root: Path) -> Path:
    """Each name in two target languages: digits, and digits from the last to the first."""
    pairs = toy_pairs(1600)
    for name, chosen in (("train", pairs[:1500]), ("valid", pairs[1500:1524]), ("test", pairs[1524:1600])):
        write_lines(root / f"{name}.src", [source for source, _ in chosen])
        write_lines(root / f"{name}.tgt", [target for _, target in chosen])
        write_lines(root / f"{name}.tgr", [reverse(target) for _, target in chosen])
    return root


def settings_of(root: Path, run_dir: Path) -> dict[str, object]:
    """Settings of a run that learns both."""
    settings = toy_settings(CorpusFiles(root), run_dir)

    def both(name: str) -> list[dict[str, str]]:
        return [
            {"source": f"{name}.src", "target": f"{name}.tgt", "tag": FORWARD},
            {"source": f"{name}.src", "target": f"{name}.tgr", "tag": BACKWARD},
        ]

    assert isinstance(settings["data"], dict)
    settings["data"] = {**settings["data"], "train": both("train"), "valid": both("valid"), "test": {}}
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt both; not to be changed."""
    root = write_corpus(tmp_path_factory.mktemp("tags"))
    run_all(
        config_with(
            settings_of(root, root / "run"), training={"max_steps": 800, "validate_every": 400, "save_every": 400}
        )
    )
    return root / "run"


@pytest.fixture(scope="module")
def translator(run: Path) -> Translator:
    return load(run, ["device=cpu", "decoding.beam_size=1"])


def test_the_tag_decides_the_language(run: Path, translator: Translator) -> None:
    sources = (run.parent / "test.src").read_text("utf-8").splitlines()
    digits = (run.parent / "test.tgt").read_text("utf-8").splitlines()
    for tag, wanted in ((FORWARD, digits), (BACKWARD, [reverse(line) for line in digits])):
        found = translator.translate(sources, tag=tag)
        right = sum(a == b for a, b in zip(found, wanted, strict=True))
        assert right >= 60
        assert translator.translate([f"{tag} {line}" for line in sources]) == found


def test_a_tag_is_put_before_the_source_of_training_and_validation_and_before_nothing_blank(run: Path) -> None:
    config = config_with(settings_of(run.parent, run))
    tokenizer = Tokenizer.load(run / "tokenizer")
    corpus = Corpus.open(run / "data" / "train")
    lines = (run.parent / "train.src").read_text("utf-8").splitlines()
    tagged = [f"{FORWARD} {line}" for line in lines] + [f"{BACKWARD} {line}" for line in lines]
    assert tokenizer.decode_source([corpus.source(pair) for pair in range(len(corpus))]) == tagged
    assert corpus.manifest.corpora == (1500, 1500)
    valid = (run.parent / "valid.src").read_text("utf-8").splitlines()
    assert read_validation(config)[0] == [f"{tag} {line}" for line in valid for tag in (FORWARD, BACKWARD)]


def test_a_validation_translates_sentences_of_every_tag_though_they_are_few(run: Path) -> None:
    config = config_with(settings_of(run.parent, run), training={"validation_sentences": 5})
    sources = Validation.prepare(config, Tokenizer.load(run / "tokenizer"), *read_validation(config)).sources
    assert [source.split()[0] for source in sources] == [FORWARD, BACKWARD, FORWARD, BACKWARD, FORWARD]


def test_a_tag_is_a_piece_of_its_own_and_is_never_split(run: Path) -> None:
    tokenizer = Tokenizer.load(run / "tokenizer")
    assert tokenizer.symbols == (FORWARD, BACKWARD)
    forward, backward, line = tokenizer.encode_source([FORWARD, BACKWARD, "four two"])
    assert forward[:-1] == backward[:-1]
    assert forward[-1] != backward[-1]
    assert tokenizer.encode_source([f"{FORWARD} four two", f" {BACKWARD}  four two"]) == [
        forward + line,
        backward + line,
    ]


def test_blank_lines_stay_blank_and_every_line_has_its_line(translator: Translator) -> None:
    source = f"four two\n\n   \n{BACKWARD}\n \u200b\n{FORWARD}  \nnine\n".encode()
    for tag in (FORWARD, BACKWARD):
        out = io.BytesIO()
        translate(translator, io.BytesIO(source), out, tag=tag)
        lines = out.getvalue().decode().split("\n")
        assert len(lines) == 8
        assert lines[1:6] == [""] * 5
        assert lines[6] == "9"


@pytest.mark.parametrize("by_option", [True, False])
def test_a_long_line_carries_its_tag_on_every_part(translator: Translator, by_option: bool) -> None:
    line = " ".join(["one two three four."] * 20) + " five six seven"
    seen: list[list[int]] = []
    search = translator.search
    tokenizer = translator.tokenizer

    class Watched(Translator):
        def search(self, sentences, num_best=1, prefixes=()):  # type: ignore[no-untyped-def]
            seen.extend(sentences)
            return search(sentences, num_best, prefixes)

    watched = Watched(translator.model, tokenizer, translator.config)
    for tag in (FORWARD, BACKWARD):
        seen.clear()
        line_and_tag = (line, tag) if by_option else (f"{tag}  {line}", None)
        [found] = watched.translate_lines([line_and_tag[0]], tag=line_and_tag[1])
        assert found.num_parts == len(seen) > 2
        tag_tokens = tokenizer.encode_source([tag])[0]
        assert all(tokens[: len(tag_tokens)] == tag_tokens for tokens in seen)
        assert max(map(len, seen)) <= translator.max_source_length
        texts = tokenizer.decode_source([tokens[len(tag_tokens) :] for tokens in seen])
        assert sorted(" ".join(texts).split()) == sorted(line.split()), "no word is lost or said twice"


def test_a_single_word_too_long_for_the_model_carries_its_tag_too(translator: Translator) -> None:
    [found] = translator.translate_lines(["\U0001f600" * 40], tag=FORWARD)
    assert found.num_parts > 4
    assert "\n" not in found.text


def test_a_tag_that_the_model_does_not_know_is_refused(translator: Translator, tiny_run: Path) -> None:
    with pytest.raises(MtkitError) as raised:
        translator.translate_lines(["one"], tag="<2fr>")
    assert str(raised.value) == f"tag <2fr>: the model does not know it; it knows {FORWARD}, {BACKWARD}"
    with pytest.raises(MtkitError) as raised:
        load(tiny_run, ["device=cpu"]).translate(["one"], tag=FORWARD)
    assert str(raised.value) == f"tag {FORWARD}: the model does not know it; it was trained without any"


def test_the_command_line_takes_a_tag_and_refuses_an_unknown_one_before_it_writes(
    run: Path,
    translator: Translator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "source").write_text("four two one\n\n")
    out = tmp_path / "out"

    def call(tag: str) -> int:
        command = ["mtkit", "translate", str(run), str(tmp_path / "source"), "--tag", tag, "-o", str(out)]
        monkeypatch.setattr(sys, "argv", [*command, "--device", "cpu", "--beam-size", "1"])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    assert call("<2fr>") == 1
    told = f"mtkit: error: tag <2fr>: the model does not know it; it knows {FORWARD}, {BACKWARD}\n"
    assert capfd.readouterr().err == told
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    for tag in (FORWARD, BACKWARD):
        assert call(tag) == 0
        assert out.read_text().splitlines() == translator.translate(["four two one", ""], tag=tag)


def test_other_tags_make_the_data_out_of_date(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    settings = settings_of(run.parent, tmp_path / "run")

    def current(change: Callable[[dict[str, list[dict[str, str]]]], None]) -> tuple[bool, bool]:
        config = config_with(settings)
        data = config.model_dump(mode="json")["data"]
        change(data)
        changed = config_with(settings, data={name: data[name] for name in ("train", "valid")})
        return tokenizer_is_current(changed), binarized_is_current(changed)

    def swap(data: dict[str, list[dict[str, str]]], name: str) -> None:
        data[name][0]["tag"], data[name][1]["tag"] = BACKWARD, FORWARD

    assert current(lambda data: None) == (True, True)
    assert current(lambda data: swap(data, "train")) == (True, False), "the tokenizer knows both all the same"
    assert current(lambda data: swap(data, "valid")) == (True, False)

    def rename(data: dict[str, list[dict[str, str]]]) -> None:
        data["train"][0]["tag"] = data["valid"][0]["tag"] = "<2other>"

    assert current(rename) == (False, False)


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ("<s>", "every vocabulary has a piece of that name; take another, such as <2de>"),
        ("<0x41>", "every vocabulary has a piece of that name; take another, such as <2de>"),
        ("<2ﬁ>", "becomes <2fi> by tokenizer.source_normalization; take another tag, such as <2de>"),
        ("\u200b", "becomes nothing by tokenizer.source_normalization; take another tag, such as <2de>"),
    ],
)
def test_a_tag_that_cannot_be_a_piece_is_refused(run: Path, tmp_path: Path, tag: str, problem: str) -> None:
    settings = settings_of(run.parent, tmp_path / "run")
    train = [{"source": "train.src", "target": "train.tgt", "tag": tag}]
    with pytest.raises(ConfigError) as raised:
        run_binarize(config_with(settings, data={"train": train, "valid": []}))
    assert str(raised.value) == f"tag {tag}: {problem}"


def test_odd_tags_are_pieces_too(run: Path, tmp_path: Path) -> None:
    settings = settings_of(run.parent, tmp_path / "run")
    tags = ["<2,de>", '"fr"', "to:en|formal", "__ja__", "two"]
    train = [{"source": "test.src", "target": "test.tgt", "tag": tag} for tag in tags]
    config = config_with(
        settings, data={"train": train, "valid": []}, tokenizer={"shared": False}, model={"tie_embeddings": "none"}
    )
    run_binarize(config)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    assert sorted(tokenizer.symbols) == sorted(tags)
    assert len({tokenizer.encode_source([tag])[0][-1] for tag in tags}) == len(tags)
    for tag in tags:
        assert tokenizer.decode_source(tokenizer.encode_source([f"{tag} nine"])) == [f"{tag} nine"]


@pytest.mark.parametrize(
    ("line", "split"),
    [
        ("a b", ("", "a b")),
        ("<x> a b", ("<x>", "a b")),
        ("  <x>\u3000a  b ", ("<x>", "a  b ")),
        ("<x> <y> a", ("<x> <y>", "a")),
        ("<x>", ("<x>", "")),
        (" <x> ", ("<x>", "")),
        ("<x>a <x> b", ("", "<x>a <x> b")),
        ("", ("", "")),
    ],
)
def test_the_tags_of_a_line_are_its_first_words(line: str, split: tuple[str, str]) -> None:
    assert split_tags(line, ("<x>", "<y>")) == split


def test_settings_with_tags_are_printed_and_read_back(run: Path) -> None:
    config = config_with(settings_of(run.parent, run))
    assert f"  - {{source: train.src, target: train.tgt, tag: {FORWARD}}}\n" in config_text(config)
