"""One model, two target languages: a tag before the line selects one, wherever the tag comes from."""

import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import mtkit.bundle.opening
from mtkit.cli import _run, main
from mtkit.config.settings import config_text
from mtkit.data.corpus import Corpus
from mtkit.errors import ConfigError, MtkitError
from mtkit.evaluation.evaluate import evaluate
from mtkit.exchange.formats import extend
from mtkit.pipeline import run_all, run_binarize
from mtkit.preparation.prepare import binarized_is_current, read_validation, tokenizer_is_current
from mtkit.preparation.sources import SetFiles
from mtkit.text.parallel import ExpectedTags, describe_tags
from mtkit.text.tokenizer import Tokenizer, extended
from mtkit.text.vocabulary import split_tags
from mtkit.training.records import Validation
from mtkit.translation.stream import translate
from mtkit.translation.translator import Translator, load
from tests.conftest import LEARNING, CorpusFiles, config_with, toy_pairs, toy_settings, write_lines

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
    """Settings of a run that learns both languages."""
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
    """A run trained on both languages; tests must not change it."""
    root = write_corpus(tmp_path_factory.mktemp("tags"))
    run_all(
        config_with(
            settings_of(root, root / "run"),
            training={**LEARNING, "max_steps": 440, "validate_every": 440, "save_every": 220},
            decoding={"max_length_ratio": 2.0, "max_length_extra": 20},
        )
    )
    return root / "run"


@pytest.fixture(scope="module")
def translator(run: Path) -> Translator:
    return load(run, ["device=cpu", "decoding.beam_size=1"])


def refusal(tag: str, known: str) -> str:
    """The error for a tag that the model does not know."""
    return (
        f"tag {tag}: the model does not know it; {known}. `mtkit extend MODEL --tag '{tag}' -o LARGER` adds it, and "
        "training with training.start_from LARGER teaches it"
    )


def test_the_tag_decides_the_language(run: Path, translator: Translator) -> None:
    sources = (run.parent / "test.src").read_text("utf-8").splitlines()
    digits = (run.parent / "test.tgt").read_text("utf-8").splitlines()
    for tag, wanted in ((FORWARD, digits), (BACKWARD, [reverse(line) for line in digits])):
        found = translator.translate(sources, tag=tag)
        right = sum(a == b for a, b in zip(found, wanted, strict=True))
        assert right >= 50
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
    kept = read_validation(config)[0]
    assert sorted(kept) == sorted(f"{tag} {line}" for line in valid for tag in (FORWARD, BACKWARD))
    assert [line.split()[0] for line in kept] == [FORWARD, BACKWARD] * len(valid)  # one of each corpus in turn


def test_a_validation_translates_sentences_of_every_tag_though_they_are_few(run: Path) -> None:
    config = config_with(settings_of(run.parent, run), training={"validation_sentences": 5})
    sources = Validation.prepare(config, Tokenizer.load(run / "tokenizer"), *read_validation(config)).sources
    assert [source.split()[0] for source in sources] == [FORWARD, BACKWARD, FORWARD, BACKWARD, FORWARD]


def test_a_tag_is_a_piece_of_its_own_and_is_never_split(run: Path) -> None:
    tokenizer = Tokenizer.load(run / "tokenizer")
    assert tokenizer.tags == (FORWARD, BACKWARD)
    forward, backward, line = tokenizer.encode_source([FORWARD, BACKWARD, "four two"])
    assert forward[:-1] == backward[:-1]
    assert forward[-1] != backward[-1]
    assert tokenizer.encode_source([f"{FORWARD} four two", f" {BACKWARD}  four two"]) == [
        forward + line,
        backward + line,
    ]


def test_blank_lines_stay_blank_and_every_line_has_its_line(translator: Translator) -> None:
    source = f"four two\n\n   \n{BACKWARD}\n \u200b\n{FORWARD}  \nnine one\n".encode()
    for tag, last in ((FORWARD, "9 1"), (BACKWARD, "1 9")):
        out = io.BytesIO()
        translate(translator, io.BytesIO(source), out, tag=tag)
        lines = out.getvalue().decode().split("\n")
        assert len(lines) == 8
        assert lines[1:6] == [""] * 5
        assert lines[6] == last


@pytest.mark.parametrize("by_option", [True, False])
def test_a_long_line_carries_its_tag_on_every_part(translator: Translator, by_option: bool) -> None:
    line = " ".join(["one two three four."] * 20) + " five six seven"
    seen: list[list[int]] = []
    search = translator.search
    tokenizer = translator.tokenizer

    class Watched(Translator):
        def search(self, sentences, num_best=1, prefixes=(), **options):  # type: ignore[no-untyped-def]
            seen.extend(sentences)
            return search(sentences, num_best, prefixes, **options)

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


def test_a_tag_that_the_model_does_not_know_is_refused(run: Path, translator: Translator, tiny_run: Path) -> None:
    with pytest.raises(MtkitError) as raised:
        translator.translate_lines(["one"], tag="<2fr>")
    assert str(raised.value) == refusal("<2fr>", f"it knows {FORWARD}, {BACKWARD}")
    with pytest.raises(MtkitError) as raised:
        load(tiny_run, ["device=cpu"]).translate(["one"], tag=FORWARD)
    assert str(raised.value) == refusal(FORWARD, "it knows no tags")
    with pytest.raises(MtkitError) as raised:
        load(run, ["device=cpu"], ensemble=[run]).score(["one"], ["1"], "<2fr>")
    assert str(raised.value) == refusal("<2fr>", f"it knows {FORWARD}, {BACKWARD}")


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
    told = refusal("<2fr>", f"it knows {FORWARD}, {BACKWARD}")
    assert capfd.readouterr().err == f"mtkit: error: {told}\n"
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
    assert sorted(tokenizer.tags) == sorted(tags)
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


# What is said of a tag.


@pytest.mark.parametrize("tag", ["", " ", f" {FORWARD}", f"{FORWARD} ", f"{FORWARD} {BACKWARD}", f"{FORWARD}\t"])
def test_a_tag_is_one_word(translator: Translator, tag: str) -> None:
    for call in (translator.translate, lambda lines, tag: translator.score(lines, lines, tag)):
        with pytest.raises(MtkitError) as raised:
            call(["one"], tag=tag)
        assert str(raised.value) == f"tag {tag!r}: wants one word, without spaces; it knows {FORWARD}, {BACKWARD}"


@pytest.mark.parametrize("tag", [FORWARD[:-1], f"{FORWARD}>", FORWARD.upper(), "two"])
def test_what_is_nearly_a_tag_is_none(translator: Translator, tag: str) -> None:
    with pytest.raises(MtkitError, match="the model does not know it"):
        translator.require_tag(tag)


def test_a_tag_that_extend_would_refuse_is_told_without_that_advice(translator: Translator, tmp_path: Path) -> None:
    [piece, *_] = [
        piece
        for piece in translator.tokenizer.source_pieces(range(260, translator.tokenizer.source_vocab_size))
        if "\u2581" not in piece and piece not in translator.tags
    ]
    for tag in (piece, "\ufb01", "a\u2581b"):
        with pytest.raises(MtkitError) as raised:
            translator.require_tag(tag)
        assert str(raised.value) == f"tag {tag}: the model does not know it; it knows {FORWARD}, {BACKWARD}"
        with pytest.raises(ConfigError):
            extended(translator.tokenizer, [], [tag])


def test_of_many_tags_a_message_lists_some() -> None:
    tags = [f"<{number}>" for number in range(130)]
    assert describe_tags(tags[:20]) == f"it knows {', '.join(tags[:20])}"
    assert describe_tags(tags) == f"it knows {', '.join(tags[:20])} and 110 more"


def test_one_tag_may_begin_as_another_does(run: Path, tmp_path: Path) -> None:
    tags = ["<2pt", "<2pt>", "<2pt>br", "2pt"]
    train = [{"source": "test.src", "target": "test.tgt", "tag": tag} for tag in tags]
    config = config_with(settings_of(run.parent, tmp_path / "run"), data={"train": train, "valid": []})
    run_binarize(config)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    for tag in tags:
        ids = tokenizer.encode_source([f"{tag} nine"])[0]
        assert tag in tokenizer.source_pieces(ids)


def test_score_takes_a_tag(
    run: Path, translator: Translator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, targets = ["four two", "nine", ""], ["4 2", "9", ""]
    tagged = translator.score([f"{BACKWARD} four two", f"{BACKWARD} nine", ""], targets)
    assert translator.score(sources, targets, tag=BACKWARD) == tagged
    assert list(translator.score_lines(zip(sources, targets, strict=True))) != tagged
    write_lines(tmp_path / "source", sources)
    write_lines(tmp_path / "target", targets)
    files = ["--source", str(tmp_path / "source"), "--target", str(tmp_path / "target"), "--device", "cpu"]
    assert _run(["score", str(run), *files, "--tag", "<2fr>"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"mtkit: error: {refusal('<2fr>', f'it knows {FORWARD}, {BACKWARD}')}\n"


def test_evaluate_refuses_unknown_tags_of_the_option_and_of_the_settings(
    run: Path, translator: Translator, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = str(run.parent / "test.src"), str(run.parent / "test.tgt")
    files = ["--source", source, "--reference", target, "--device", "cpu"]
    for tag, told in (
        ("<2fr>", refusal("<2fr>", f"it knows {FORWARD}, {BACKWARD}")),
        ("", f"tag '': wants one word, without spaces; it knows {FORWARD}, {BACKWARD}"),
    ):
        assert _run(["evaluate", str(run), *files, "--tag", tag]) == 1
        assert capsys.readouterr().err == f"mtkit: error: {run}, test.src: {told}\n"
    assert _run(["evaluate", str(run), *files, "--tag", FORWARD, "--against", str(tiny_run)]) == 1
    told = f"mtkit: error: {tiny_run}, test.src: {refusal(FORWARD, 'it knows no tags')}\n"
    assert capsys.readouterr().err == told
    with pytest.raises(MtkitError) as raised:
        evaluate(translator, "t", SetFiles(Path(source), (Path(target),), "<2fr>"), save_to=tmp_path / "translations")
    assert str(raised.value) == f"t: {refusal('<2fr>', f'it knows {FORWARD}, {BACKWARD}')}"
    assert not list(tmp_path.iterdir())


# What is said of the tags of a run that starts from a model.


def settings_from(run: Path, start: Path, run_dir: Path, tags: tuple[str, str, str]) -> dict[str, object]:
    """Settings of a run that starts from a model; tags are those of train, valid and test."""
    train, valid, test = ({"source": "test.src", "target": "test.tgt", "tag": tag} for tag in tags)
    settings = settings_of(run.parent, run_dir)
    data = settings["data"]
    assert isinstance(data, dict)
    training = {"start_from": str(start), "max_steps": 2, "validate_every": 2, "save_every": 2, "learning_rate": 0.001}
    return {
        "run_dir": str(run_dir),
        "device": "cpu",
        "data": {**data, "train": [train], "valid": [valid], "test": {"t": test}},
        "training": {**training, "batch_tokens": 512, "validation_sentences": 2},
    }


COMMANDS = ("run", "train", "binarize", "train-tokenizer", "config")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tag_that_the_model_to_start_from_would_cut_into_pieces_is_refused_before_any_work(
    run: Path, tiny_run: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_from(run, tiny_run, tmp_path / "run", ("<2x>", "<2x>", "<2x>"))
    (tmp_path / "x.yaml").write_text(json.dumps(settings))
    assert _run([command, str(tmp_path / "x.yaml")]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"mtkit: error: training.start_from {tiny_run}: the model does not know tag <2x> of data.train; it knows no "
        f"tags. Add what is missing by `mtkit extend {tiny_run} --tag '<2x>' -o LARGER`, and start from LARGER\n"
    )
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["x.yaml"]
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_the_model_that_the_message_names_can_be_started_from(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    extend(tiny_run, tmp_path / "larger", [], ["<2x>"])
    config = config_with(settings_from(run, tmp_path / "larger", tmp_path / "run", ("<2x>", "<2x>", "<2x>")))
    run_all(config)
    load(tmp_path / "run", ["device=cpu"]).translate(["one"], tag="<2x>")


def test_tags_of_validation_and_test_sets_may_be_those_that_the_start_knows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_from(run, run, tmp_path / "run", (FORWARD, BACKWARD, BACKWARD))
    run_all(config_with(settings))
    assert _run(["evaluate", str(tmp_path / "run"), "--json"]) == 0  # though its own settings have no such corpus
    capsys.readouterr()
    for tags, at in (((FORWARD, "<2x>", FORWARD), "valid[0]"), ((FORWARD, FORWARD, "<2x>"), "test.t")):
        with pytest.raises(ConfigError) as raised:
            run_all(config_with(settings_from(run, run, tmp_path / "other", tags)))
        assert str(raised.value) == (
            f"data.{at}.tag: found <2x>, which neither data.train nor the model to start from has; they have "
            f"{FORWARD}, {BACKWARD}"
        )
        with pytest.raises(ConfigError, match=r"which no corpus of data\.train has; they have <2digits>"):
            run_all(config_with(settings_from(run, run, tmp_path / "o", tags), training={"start_from": None}))


def test_a_piece_of_the_vocabulary_is_no_tag(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_run / "tokenizer")
    piece = next(
        piece for piece in tokenizer.source_pieces(range(260, tokenizer.source_vocab_size)) if "\u2581" not in piece
    )
    with pytest.raises(ConfigError) as raised:
        run_all(config_with(settings_from(run, tiny_run, tmp_path / "run", (piece, piece, piece))))
    assert str(raised.value).endswith(
        f"does not know tag {piece} of data.train, and {piece} is a piece of its vocabulary that other words are made "
        "of; take another tag, such as <2de>"
    )


@pytest.mark.filterwarnings("ignore:.*reached the maximum length")  # of a model that has learnt little
def test_a_run_that_began_with_such_a_tag_goes_on_and_translates_as_it_was_trained(
    run: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_from(run, tiny_run, tmp_path / "run", ("<2x>", "<2x>", "<2x>"))
    with monkeypatch.context() as earlier:  # as earlier versions trained it
        earlier.setattr(mtkit.bundle.opening, "_require_train_tags", lambda *_: None)
        run_all(config_with(settings))
    run_all(config_with(settings, training={"max_steps": 4}))
    translator = load(tmp_path / "run", ["device=cpu"])
    assert translator.config.training.max_steps == 4
    assert translator.translate(["one two"], tag="<2x>") == translator.translate(["<2x> one two"])
    line = " ".join(["one two three four."] * 20)
    tag = translator.tokenizer.encode_source(["<2x>"])[0]
    assert len(tag) > 1
    parts = list(translator._parts([f"<2x> {line}"], [""]))
    assert len(parts) > 1
    assert all(part.tokens[: len(tag)] == tag for part in parts)
    with pytest.raises(ConfigError, match=r"does not know tag <2x> of data\.train"):
        run_all(config_with(settings, training={"max_steps": 4}), fresh=True)
    assert (tmp_path / "run" / "model" / "bundle.json").exists()
    with pytest.raises(ConfigError, match=r"does not know tag <2x> of data\.train"):
        run_all(config_with({**settings, "run_dir": str(tmp_path / "another")}))


# Lines that lack a tag.

LINES = [f"{FORWARD} four two", "nine one", "", " ", "<2fr> nine", FORWARD, f" {BACKWARD}  one"]
KNOWN = f"{FORWARD}, {BACKWARD}"
MISSING = f"begins with none of the model's tags, and the model was trained with one: {KNOWN}"
UNKNOWN = f"begins with what looks like a tag, and is none of the model's: {KNOWN}"


def test_lines_without_a_tag_are_warned_of(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "source", LINES)
    write_lines(tmp_path / "target", [""] * len(LINES))
    told = f"mtkit: warning: line 2 {MISSING}\nmtkit: warning: line 5 {UNKNOWN}\n"
    files = ["--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")]
    for command in (["translate", str(run), str(tmp_path / "source")], ["score", str(run), *files]):
        assert _run([*command, "--device", "cpu"]) == 0
        assert capsys.readouterr().err == told
        assert _run([*command, "--device", "cpu", "--tag", FORWARD]) == 0
        assert capsys.readouterr().err == ""


def test_evaluate_warns_of_lines_without_a_tag(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "source", [*LINES, "four", "five"])
    write_lines(tmp_path / "reference", ["1"] * (len(LINES) + 2))
    files = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "reference"), "--device", "cpu"]
    assert _run(["evaluate", "--quiet", str(run), *files]) == 0
    assert capsys.readouterr().err == (
        f"mtkit: warning: source: line 2 {MISSING}; the same for 2 more lines\n"
        f"mtkit: warning: source: line 5 {UNKNOWN}\n"
    )
    assert _run(["evaluate", "--quiet", str(run), *files, "--tag", FORWARD]) == 0
    assert capsys.readouterr().err == ""


def test_python_is_warned_once(run: Path) -> None:
    translator = load(run, ["device=cpu", "decoding.beam_size=1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translator.translate([LINES[0], "", LINES[6]])
        translator.translate(["nine"], tag=FORWARD)
        list(translator.translate_lines(["nine"]))
    with pytest.warns(UserWarning, match=f"line 2 {MISSING}") as told:
        translator.translate(LINES)
    translator.score(LINES, LINES)
    assert [Path(warning.filename) for warning in told] == [Path(__file__)]
    with pytest.warns(UserWarning, match=f"line 1 {UNKNOWN}"):
        load(run, ["device=cpu"]).score(["<2fr> nine"], ["9"])


@pytest.mark.parametrize(
    ("tags", "needed", "line", "fault"),
    [
        ((">>fra<<", ">>deu<<"), True, ">>spa<< hello", "looks like a tag"),
        ((">>fra<<", ">>deu<<"), True, ">>fra<< hello", None),
        ((">>fra<<", ">>deu<<"), True, "hello >>fra<<", "none of the model's tags"),
        ((">>fra<<", ">>deu<<"), False, "hello", None),
        ((">>fra<<", ">>deu<<"), False, ">>xx_Latn<< hello", "looks like a tag"),
        (("__de__",), False, "__fr__ hello", "looks like a tag"),
        (("__de__",), False, "__init__.py is a file", None),
        (("deu_Latn",), False, "fra_Latn hello", None),
        (("deu_Latn",), True, "fra_Latn hello", "none of the model's tags"),
        (("<2de>",), True, "\u3000", None),
        ((), False, "<2de> hello", None),
    ],
)
def test_what_looks_like_a_tag(tags: tuple[str, ...], needed: bool, line: str, fault: str | None) -> None:
    found = ExpectedTags(tags, needed).fault(line)
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)


def test_a_model_trained_without_tags_too_or_extended_by_one_wants_none(
    run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    translator = load(run, ["device=cpu"])
    first, second = translator.config.data.train
    data = translator.config.data.model_copy(update={"train": (first, second.model_copy(update={"tag": None}))})
    config = translator.config.model_copy(update={"data": data})
    mixed = Translator(translator.model, translator.tokenizer, config)
    assert mixed.tag_fault("nine one") is None
    assert mixed.tag_fault("<2fr> nine") is not None
    extend(tiny_run, tmp_path / "larger", [], ["<2eo>"])
    larger = load(tmp_path / "larger", ["device=cpu"])
    assert larger.tag_fault("nine one") is None
    assert larger.tag_fault("<2fr> nine") is not None
    assert load(tiny_run).tag_fault("<2fr> nine") is None
