"""Language models: a decoder alone, trained, scored, continued from a prefix, and fused with a translation model."""

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import mtkit
from mtkit.bundle.bundle import open_bundle
from mtkit.cli import _run
from mtkit.config.data_and_model_settings import AnyModelConfig, RecurrentConfig, TransformerConfig
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.corpus import Corpus
from mtkit.errors import CheckpointError, ConfigError, MtkitError
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import new_model
from mtkit.pipeline import run_all, run_binarize
from mtkit.text.vocabulary import END, NUM_SPECIAL
from mtkit.translation.decode import Fusion, decode, likeliest_next, log_probs_of
from mtkit.translation.stream import check
from tests.conftest import CorpusFiles, config_with, toy_settings, write_toy_corpus
from tests.runs import MODEL, RECURRENT, TRAINING, outcome, whole_and_killed

TINY = {"d_model": 8, "num_heads": 2, "d_ff": 8, "decoder_layers": 1, "dropout": 0.0}
ALONE: dict[str, AnyModelConfig] = {
    "transformer": TransformerConfig(**TINY, encoder_layers=0),
    "rnn": RecurrentConfig(d_model=8, encoder_layers=0, dropout=0.0, input_feeding=True, context="every_step"),
}
BOTH = pytest.mark.parametrize("name", ALONE)


def sharp(config: AnyModelConfig, vocab_size: int, seed: int) -> TranslationModel:
    """A random model in fp64 whose probabilities are far from uniform."""
    model = new_model(config, vocab_size, vocab_size, seed).double().eval().requires_grad_(False)
    model.output.table.weight.mul_(3)
    return model


# Probabilities.


@BOTH
def test_probabilities_of_all_strings_up_to_a_length_and_of_all_that_go_on_sum_to_one(name: str) -> None:
    model, longest = sharp(ALONE[name], 5, seed=1), 4
    assert not any(part in key for key in dict(model.named_parameters()) for part in ("encoder", "source", "begin"))
    tokens = [token for token in range(5) if token != END]
    strings = [list(string) for n in range(longest + 1) for string in itertools.product(tokens, repeat=n)]
    found = log_probs_of(model, [[] for _ in strings], strings, 1000)
    ended = sum(math.exp(sum(log_probs)) for log_probs in found)
    last = zip(strings, found, strict=True)
    still_open = sum(
        math.exp(sum(log_probs[:-1])) * -math.expm1(log_probs[-1])
        for string, log_probs in last
        if len(string) == longest
    )
    assert ended < 0.999
    assert abs(ended + still_open - 1) < 1e-6
    for string, row in zip(strings[:30], likeliest_next(model, [[]] * 30, strings[:30], 9), strict=True):
        probabilities = dict(row)
        assert sorted(probabilities) == list(range(5))
        assert [p for _, p in row] == sorted(probabilities.values(), reverse=True)
        longer = found[strings.index([*string, 0])]
        assert probabilities[0] == pytest.approx(math.exp(longer[len(string)]), abs=1e-9)
        assert probabilities[END] == pytest.approx(math.exp(found[strings.index(string)][-1]), abs=1e-9)


# Shallow fusion.


@BOTH
def test_fusion_finds_the_strings_with_the_largest_weighted_sums(name: str) -> None:
    vocab_size, longest, source = NUM_SPECIAL + 3, 3, [4, 6, 5]
    model = sharp(TransformerConfig(**TINY, encoder_layers=1), vocab_size, seed=2)
    fusion = Fusion(sharp(ALONE[name], vocab_size, seed=3), 0.7)
    tokens = range(NUM_SPECIAL, vocab_size)
    strings = [list(string) for n in range(longest + 1) for string in itertools.product(tokens, repeat=n)]
    own, fused = (
        log_probs_of(each, [given] * len(strings), strings, 10_000)
        for each, given in ((model, source), (fusion.language_model, []))
    )
    wanted = {tuple(string): sum(a) + 0.7 * sum(b) for string, a, b in zip(strings, own, fused, strict=True)}
    limit = {"length_penalty": 0.0, "max_length_ratio": 1.0, "max_length_extra": 0}
    wide = DecodingConfig(beam_size=len(strings), **limit)
    found = decode(model, wide, [source, source[:1]], num_best=len(strings), fusion=fusion)[0]
    assert {tuple(each.tokens): each.score for each in found} == pytest.approx(wanted, abs=1e-9)
    best = max(wanted, key=wanted.__getitem__)
    assert best != max(strings, key=lambda string: sum(own[strings.index(string)])), "the language model does nothing"
    greedy, tokens_so_far = DecodingConfig(beam_size=1, **limit), []
    while len(tokens_so_far) < longest:
        rows = [
            dict(likeliest_next(each, [given], [tokens_so_far], vocab_size)[0])
            for each, given in ((model, source), (fusion.language_model, []))
        ]
        token = max([*tokens, END], key=lambda t: math.log(rows[0][t]) + 0.7 * math.log(rows[1][t]))
        if token == END:
            break
        tokens_so_far.append(token)
    assert decode(model, greedy, [source], fusion=fusion)[0][0].tokens == tokens_so_far
    for decoding in (wide, greedy):
        assert decode(model, decoding, [source], fusion=Fusion(fusion.language_model, 0.0)) == decode(
            model, decoding, [source]
        )


# A run.


@pytest.fixture(scope="module")
def prepared_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy corpus and the run of a language model that reads its targets alone, before training."""
    root = write_toy_corpus(tmp_path_factory.mktemp("alone"), 120)
    run_binarize(alone(root, root / "run"))
    return root


def alone(root: Path, run_dir: Path, model: dict[str, Any] | None = None, **training: Any) -> Config:
    """Settings of a language model of the toy corpus in `root`."""
    settings = toy_settings(CorpusFiles(root), run_dir)
    settings = {**settings, "task": "language_model", "name": "alone"}
    data = {"train": [{"target": "train.tgt"}], "valid": [{"target": "valid.tgt"}]}
    return config_with(
        settings,
        data=data,
        tokenizer={"vocab_size": 280},
        model=model or {**MODEL, "encoder_layers": 3},
        training={**TRAINING, **training},
    )


@pytest.fixture(scope="module")
def run(prepared_alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the toy corpus, trained for a while."""
    copy = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(prepared_alone / "run", copy)
    assert run_all(alone(prepared_alone, copy)) == []
    return copy


@pytest.mark.parametrize("model", [MODEL, RECURRENT], ids=["transformer", "rnn"])
def test_a_killed_language_model_resumes_to_the_bit(
    model: dict[str, Any], prepared_alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared_alone / "run", tmp_path / "uninterrupted")

    def make(name: str) -> Config:
        return alone(prepared_alone, tmp_path / name, model, max_steps=12)

    whole, killed = whole_and_killed(make, 9)
    assert outcome(killed) == outcome(whole)


def test_a_run_reads_the_target_alone_and_has_a_loss_and_no_translations(
    run: Path, prepared_alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, bundle = Corpus.open(run / "data" / "train"), open_bundle(run)
    assert corpus.manifest.source.num_tokens == 0 < corpus.manifest.target.num_tokens
    assert bundle.config.model.encoder_layers == 0
    assert bundle.config.training.select_by == "loss"
    assert '"bleu"' not in (run / "log.jsonl").read_text()
    report = check(run)
    assert not report.faults
    assert "canaries: 1 of 1 give the same tokens on cpu" in report.lines
    assert (run / "model" / "README.md").read_text().startswith("# alone: language model of digits\n\nA language model")
    run_all(alone(prepared_alone, run))
    assert "is up to date" in capsys.readouterr().err


def test_scores_and_their_summary_are_those_of_the_loss(
    run: Path, prepared_alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [*(prepared_alone / "valid.tgt").read_text().splitlines(), ""]
    text = tmp_path / "text"
    text.write_text("".join(f"{line}\n" for line in lines))
    translator = mtkit.load(run)
    wanted = [scored.log_probs for scored in translator.score([""] * len(lines), lines)]
    assert _run(["score", str(run), "--target", str(text)]) == 0
    rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [(float(row[0]), int(row[1])) for row in rows] == [
        (pytest.approx(sum(log_probs), abs=1e-3), len(log_probs)) for log_probs in wanted
    ]
    assert _run(["score", str(run), "--target", str(text), "--summary"]) == 0
    found = dict(line.split("\t") for line in capfd.readouterr().out.splitlines())
    total, characters = sum(map(sum, wanted)), len(text.read_text())
    assert int(found["lines"]) == len(lines)
    assert int(found["characters"]) == characters
    assert float(found["perplexity_per_token"]) == pytest.approx(math.exp(-total / sum(map(len, wanted))), rel=1e-3)
    assert float(found["bits_per_character"]) == pytest.approx(-total / characters / math.log(2), rel=1e-3)
    assert float(found["perplexity_per_character"]) == pytest.approx(2 ** float(found["bits_per_character"]), rel=1e-3)


def test_every_line_is_continued_in_order_and_listed_tokens_are_what_the_search_chooses(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prefixes = ["4 9", "", "1", "4 9"]
    text = tmp_path / "prefixes"
    text.write_text("".join(f"{prefix}\n" for prefix in prefixes))
    greedy = mtkit.load(run, ["decoding.beam_size=1", "decoding.max_length_extra=4"])
    texts = greedy.generate(prefixes)
    assert all(text.startswith(prefix) for text, prefix in zip(texts, prefixes, strict=True))
    assert [greedy.generate([prefix])[0] for prefix in prefixes] == texts
    sampled = mtkit.load(run, ["decoding.method=sample", "decoding.max_length_extra=4", "decoding.batch_tokens=1"])
    samples = [line.translations for line in sampled.generate_lines(prefixes, num_best=3)]
    assert samples[0] == samples[3]
    assert len({sample.text for sample in (*samples[0], *samples[1], *samples[2])}) > 3
    options = ["--sample", "--n-best", "3", "--set", "max_length_extra=4"]
    assert _run(["generate", str(run), str(text), *options, "-o", str(tmp_path / "out")]) == 0
    rows = [line.split("\t") for line in (tmp_path / "out").read_text().removesuffix("\n").split("\n")]
    assert [(int(row[0]), row[2]) for row in rows] == [
        (number, sample.text) for number, each in enumerate(samples, start=1) for sample in each
    ]
    assert _run(["generate", str(run), str(text), "--next", "2"]) == 0
    listed = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [int(row[0]) for row in listed] == [1, 1, 2, 2, 3, 3, 4, 4]
    for number, prefix in enumerate(prefixes):
        [[(piece, probability), _]] = greedy.next_tokens([prefix], 2)
        assert listed[2 * number][1:] == [f"{probability:.6f}", piece]
        [prefix_tokens] = greedy.tokenizer.encode_target([prefix])
        [[best]] = greedy.search([[]], prefixes=[prefix_tokens])
        following = [*best.tokens, END][len(prefix_tokens)]
        assert greedy.tokenizer.target_pieces([following]) == [piece]


# What does not go together.


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["model.encoder_layers=0"], "model.encoder_layers 0 wants task language_model"),
        (["data.train=[{target: x}]"], r"data.train\[0\] has a target alone; task translation wants source and target"),
        (["task=language_model", "model={architecture: mixed}"], "architecture mixed has an encoder"),
        (["model={architecture: mixed, encoder: {encoder_layers: 0}}"], "encoder_layers 0 is of a language model"),
        (["task=language_model", "training.select_by=bleu"], "select_by bleu is of translations"),
        (["task=language_model", "data.drop_identical=true"], "data.drop_identical true is about the source"),
        (["task=language_model", "decoding.unknown=copy"], "wants a model with attention"),
        (
            ["task=language_model", "data.train=[{source: a, target: b, tag: <x>}]"],
            r"data.train\[0\].tag is put before a source",
        ),
        (
            ["task=language_model", "data.train=[{target: b}]", "tokenizer.shared=false"],
            "tokenizer.shared false wants text of the source",
        ),
    ],
)
def test_settings_that_do_not_fit_the_task_are_told(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(None, settings)


def test_what_a_language_model_cannot_do_is_told_in_one_line(
    run: Path, finished_toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("1 2\n")
    files = ["--source", str(text), "--reference", str(text)]
    for arguments, told in [
        (["translate", str(run), str(text)], "alone: is a language model, which cannot translate"),
        (["evaluate", str(run), *files], "alone: is a language model, which cannot translate"),
        (["translate", str(run), str(text), "--ensemble", str(finished_toy)], "its tokenizer is not that of"),
        (
            ["export", str(run), "--to", "marian", "-o", str(tmp_path / "x")],
            f"{run}: is a language model; mtkit export",
        ),
        (["score", str(run), "--source", str(text), "--target", str(text)], "score: a language model reads no source"),
        (["score", str(finished_toy), "--target", str(text)], "score: a translation model wants the sources, too"),
        (["generate", str(finished_toy), str(text)], "toy: is a translation model; only a language model generates"),
        (["generate", str(run), str(text), "--next", "3", "--sample"], "--next lists single tokens"),
        (
            ["translate", str(finished_toy), str(text), "--set", "language_model_weight=0.2"],
            "--set language_model_weight weighs a language model; name one",
        ),
    ]:
        assert _run(arguments) in (1, 2)
        printed = capfd.readouterr()
        assert printed.out == ""
        assert told in printed.err.splitlines()[-1]


def test_fusion_wants_a_language_model_of_the_same_vocabulary(
    run: Path, finished_toy: Path, prepared: Path, prepared_alone: Path, tmp_path: Path, corpus_files: CorpusFiles
) -> None:
    with pytest.raises(CheckpointError, match="its target vocabulary is not that of"):
        mtkit.load(finished_toy, language_model=run)
    with pytest.raises(CheckpointError, match="its task is translation; wants a language model"):
        mtkit.load(finished_toy, language_model=finished_toy)
    with pytest.raises(CheckpointError, match="is a language model itself"):
        mtkit.load(run, language_model=run)
    fitting = tmp_path / "run"
    same = alone(prepared.parent, fitting, max_steps=2, validate_every=1)
    shutil.copytree(prepared / "tokenizer", fitting / "tokenizer")
    settings = {"data": {"train": [{"source": "train.src", "target": "train.tgt"}]}, "tokenizer": {"vocab_size": 330}}
    run_all(config_with(same.model_dump(mode="json"), **settings))
    assert Corpus.open(fitting / "data" / "train").manifest.source.num_tokens == 0, "the source of a pair was read"
    source, _ = corpus_files.lines("test")
    plain, without, with_ = (
        mtkit.load(finished_toy, [f"decoding.{each}" for each in overrides], language_model=language_model)
        for overrides, language_model in (
            ([], None),
            (["language_model_weight=0"], fitting),
            (["language_model_weight=1.5"], fitting),
        )
    )
    assert with_.fusion is not None
    found = [[line.translations for line in each.translate_lines(source[:6])] for each in (plain, without, with_)]
    assert found[0] == found[1]
    assert all(a[0].score != b[0].score for a, b in zip(found[0], found[2], strict=True))
    with pytest.raises(MtkitError, match="samples are drawn by probabilities"):
        mtkit.load(finished_toy, ["decoding.method=sample"], language_model=fitting)
