"""A search with a shortlist is a search over each sentence's own list, whatever else is in the batch."""

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mtkit
from mtkit.bundle.bundle import SHORTLIST, open_bundle
from mtkit.bundle.info import info_of, info_text, pack
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, MtkitError
from mtkit.exchange.formats import extend
from mtkit.models.interface import Ensemble
from mtkit.models.registry import speed_up
from mtkit.pipeline import run_train
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import END, UNKNOWN
from mtkit.training.records import bundle
from mtkit.translation.decode import decode
from mtkit.translation.search import BeamStep, Hypothesis
from mtkit.translation.shortlist import (
    Lists,
    Shortlist,
    TokenPairs,
    likeliest,
    links_of,
    model_1,
    most_frequent,
    with_copies,
)
from mtkit.translation.stream import check
from mtkit.translation.translator import Translator
from tests.commands.test_cli import Call, call  # noqa: F401
from tests.translation.test_translator import ARCHITECTURES, random_translator, sentences, settings
from tests.translation.test_translator import tokenizer as tokenizer

LINES = sentences(8)
SIZE = 6


def shortlist_of(tokenizer: Tokenizer, seed: int = 3) -> Shortlist:
    """Each source token has nine translations, drawn at random."""
    chance = np.random.default_rng(seed)
    rows = [chance.choice(np.arange(4, tokenizer.target_vocab_size), 9, replace=False) for _ in range(320)]
    frequent = chance.choice(np.arange(4, tokenizer.target_vocab_size), 9, replace=False)
    return Shortlist(torch.tensor(np.array(rows), dtype=torch.int32), torch.tensor(frequent, dtype=torch.int32))


def own_list(shortlist: Shortlist, sentence: Sequence[int], prefix: Sequence[int] = ()) -> list[int]:
    own = {END, *prefix, *shortlist.frequent[:SIZE].tolist()}
    own |= {token for each in sentence for token in shortlist.of_source[each, :SIZE].tolist()}
    return sorted(own)


class OwnTokens(torch.nn.Module):
    """An output layer that gives all tokens but some a logit of -inf, before the softmax."""

    def __init__(self, output: torch.nn.Module, own: list[int]) -> None:
        super().__init__()
        self.output, self.own, self.weight, self.untrained = output, own, output.weight, []

    def forward(self, features: Tensor) -> Tensor:
        logits = self.output(features)
        outside = torch.ones(logits.shape[-1], dtype=torch.bool)
        outside[self.own] = False
        return logits.masked_fill(outside, -torch.inf)


def by_brute_force(
    translator: Translator, shortlist: Shortlist, sentence: list[int], num_best: int, prefix: list[int]
) -> list[Hypothesis]:
    """Searches with the whole vocabulary for one sentence."""
    decoding = translator.config.decoding.model_copy(update={"shortlist": None})
    model = translator.model
    members = model.members if isinstance(model, Ensemble) else [model]
    outputs = [member.decoder.output for member in members]
    for member, output in zip(members, outputs, strict=True):
        member.decoder.output = OwnTokens(output, own_list(shortlist, sentence, prefix))
    try:
        [found] = decode(model, decoding, [sentence], num_best, [prefix], forbidden=[0, 1, 2])
    finally:
        for member, output in zip(members, outputs, strict=True):
            member.decoder.output = output
    return found


def assert_same(found: list[list[Hypothesis]], wanted: list[list[Hypothesis]]) -> None:
    assert [[h.tokens for h in each] for each in found] == [[h.tokens for h in each] for each in wanted]
    scores, wanted_scores = ([h.score for each in hypotheses for h in each] for hypotheses in (found, wanted))
    assert scores == pytest.approx(wanted_scores, abs=1e-9)


MODES: dict[str, dict[str, object]] = {
    "greedy": {"beam_size": 1},
    "beam": {},
    "count": {"stopping": "count"},
    "diverse": {"diversity_groups": 2},
    "constrained": {"min_length": 6, "no_repeat_ngram": 2},
    "coverage": {"coverage_penalty": 0.4},
    "sample": {"method": "sample"},
    "sample of few": {"method": "sample", "top_k": 45, "top_p": 0.9},
}


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [
        *((name, "beam") for name in list(ARCHITECTURES)[1:]),
        *(("transformer", mode) for mode in MODES),
    ],
)
def test_it_finds_what_a_search_over_all_tokens_finds_that_may_take_only_those_of_the_list(
    tokenizer: Tokenizer, architecture: str, mode: str
) -> None:
    config = settings(ARCHITECTURES[architecture], **{"shortlist": SIZE, "max_length_extra": 3, **MODES[mode]})
    translator = random_translator(tokenizer, config, "fp64")
    shortlist = shortlist_of(tokenizer)
    encoded = tokenizer.encode_source(LINES)
    prefixes = [[], [300, 17], [], [], [END + 5], [], [], []]
    num_best = 1 if mode == "greedy" else 3
    wanted = [
        by_brute_force(translator, shortlist, sentence, num_best, prefix)
        for sentence, prefix in zip(encoded, prefixes, strict=True)
    ]
    assert any(len(hypotheses[0].tokens) > 2 for hypotheses in wanted)
    order = random.Random(1).sample(range(8), 8)
    for size in (1, 2, 7) if architecture == "transformer" and mode in ("greedy", "beam") else (2,):
        found: list[list[Hypothesis]] = [[] for _ in encoded]
        for begin in range(0, 8, size):
            chosen = order[begin : begin + size]
            args = ([encoded[i] for i in chosen], num_best, [prefixes[i] for i in chosen])
            results = decode(translator.model, config.decoding, *args, forbidden=[0, 1, 2], shortlist=shortlist)
            for i, hypotheses in zip(chosen, results, strict=True):
                found[i] = hypotheses
        assert_same(found, wanted)


def test_groups_of_sentences_change_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(shortlist=SIZE)
    translator = random_translator(tokenizer, config, "fp64")
    translator.shortlist = shortlist_of(tokenizer)
    encoded = tokenizer.encode_source(LINES)
    wanted = translator.search(encoded, 2)
    monkeypatch.setattr("mtkit.translation.shortlist.GROUP_ROWS", 9)  # two sentences in each group
    assert len(translator.shortlist.lists(translator.model, encoded, (), SIZE, (), 4).columns) == 4
    assert_same(translator.search(encoded, 2), wanted)


def test_an_ensemble_has_a_softmax_over_the_list_for_each_member(tokenizer: Tokenizer) -> None:
    config = settings(shortlist=SIZE)
    members = [random_translator(tokenizer, config, "fp64", seed).model for seed in (1, 2)]
    translator = Translator(Ensemble(members), tokenizer, config, shortlist=shortlist_of(tokenizer))
    encoded = tokenizer.encode_source(LINES[:3])
    found = translator.search(encoded, 2)
    translator._forbidden = (0, 1, 2)
    assert translator.shortlist is not None
    wanted = [by_brute_force(translator, translator.shortlist, sentence, 2, []) for sentence in encoded]
    assert_same(found, wanted)


@pytest.mark.parametrize("mode", ["greedy", "beam", "constrained", "sample", "sample of few"])
def test_a_list_of_the_whole_vocabulary_changes_nothing(tokenizer: Tokenizer, mode: str) -> None:
    everything = torch.arange(tokenizer.target_vocab_size, dtype=torch.int32)
    shortlist = Shortlist(torch.full((320, 1), -1, dtype=torch.int32), everything)
    config = settings(**MODES[mode])
    translator = random_translator(tokenizer, config, "fp64")
    encoded = tokenizer.encode_source(LINES)
    wanted = translator.search(encoded, 2)
    listed = config.decoding.model_copy(update={"shortlist": tokenizer.target_vocab_size})
    found = decode(translator.model, listed, encoded, 2, forbidden=translator._forbidden, shortlist=shortlist)
    assert_same(found, wanted)


def test_int8_and_float_rows_of_some_columns_are_those_of_all(tokenizer: Tokenizer) -> None:
    columns = torch.tensor([3, 17, 18, 300])
    features = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(1))
    for precision in ("int8", "fp32"):
        output = random_translator(tokenizer, settings()).model
        speed_up(output, precision)
        torch.testing.assert_close(output.output.of(columns)(features), output.output(features)[..., columns])


def test_a_watched_search_shows_ids_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    config = settings(shortlist=SIZE)
    translator = random_translator(tokenizer, config, "fp64")
    translator.shortlist = shortlist_of(tokenizer)
    sentence = tokenizer.encode_source(["the cat sees"])[0]
    steps: list[BeamStep] = []
    [found] = translator.search([sentence], watch=lambda step: steps.append(replace(step)))
    own = own_list(translator.shortlist, sentence)
    assert steps[0].log_probs.shape[2] == tokenizer.target_vocab_size
    assert steps[0].log_probs[0, 0].isfinite().nonzero()[:, 0].tolist() == own
    assert set(steps[0].alive.tokens[0].tolist()) <= set(own)
    assert found[0].tokens[0] in steps[0].alive.tokens[0].tolist()


def test_lists_have_special_tokens_only_where_they_can_be_generated(tokenizer: Tokenizer) -> None:
    model = random_translator(tokenizer, settings()).model
    shortlist = shortlist_of(tokenizer)

    def real(lists: Lists) -> list[list[int]]:
        return [own[kept].tolist() for own, kept in zip(lists.tokens, lists.real, strict=True)]

    assert real(shortlist.lists(model, [[7]], (), SIZE, [0, 1, 2])) == [own_list(shortlist, [7])]
    assert real(shortlist.lists(model, [[7]], (), SIZE, [0, 2])) == [sorted({UNKNOWN, *own_list(shortlist, [7])})]
    model.output.untrained = [int(shortlist.frequent[0])]
    assert real(shortlist.lists(model, [[]], (), SIZE, [0, 1, 2])) == [
        sorted({END, *shortlist.frequent[1:SIZE].tolist()})
    ]


# Counting.


PAIRS = [([5, 6, 7], [8, 9]), ([5], [8, 8]), ([6, 5], [9, 10, 8]), ([7], [11])]


def token_pairs(pairs: Sequence[tuple[list[int], list[int]]]) -> TokenPairs:
    sides = [[np.array(pair[side]) for pair in pairs] for side in (0, 1)]
    lengths = [np.array([len(tokens) for tokens in side]) for side in sides]
    return TokenPairs(np.concatenate(sides[0]), np.concatenate(sides[1]), lengths[0], lengths[1])


def by_dicts(pairs: Sequence[tuple[list[int], list[int]]], null: int, iterations: int) -> dict[tuple[int, int], float]:
    """IBM model 1, as figure 4.3 of a textbook has it: t(target | source), one pair after another."""
    t: dict[tuple[int, int], float] = defaultdict(lambda: 1.0)
    for _ in range(iterations):
        count: dict[tuple[int, int], float] = defaultdict(float)
        total: dict[int, float] = defaultdict(float)
        for source, target in pairs:
            for token in target:
                links = [null, *source]
                whole = sum(t[each, token] for each in links)
                for each in links:
                    count[each, token] += t[each, token] / whole
                    total[each] += t[each, token] / whole
        t = defaultdict(float, {key: value / total[key[0]] for key, value in count.items()})
    return t


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_model_1_is_that_of_plain_dicts(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtkit.translation.shortlist.CHUNK_LINKS", chunk)
    found = model_1(iter([token_pairs(PAIRS[:3]), token_pairs(PAIRS[3:])]), 12, 12)
    wanted = by_dicts(PAIRS, 12, 4)
    keys = list(zip(found.source.tolist(), found.target.tolist(), strict=True))
    assert dict(zip(keys, found.probability.tolist(), strict=True)) == pytest.approx(wanted)
    best = likeliest(found, 12, 2)
    assert best.shape == (12, 2)
    for source in (5, 6, 7):
        ranked = sorted((-p, target) for (each, target), p in wanted.items() if each == source)
        assert best[source].tolist() == ([target for _, target in ranked] + [-1])[:2]
    assert (best[8] == -1).all()
    assert most_frequent(iter([token_pairs(PAIRS)]), 12, 2).tolist() == [8, 9]


def test_links_begin_with_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    [(sources, targets, begins)] = links_of(token_pairs([([5, 6], [8, 9])]), 12)
    assert (sources.tolist(), targets.tolist(), begins.tolist()) == ([12, 5, 6] * 2, [8] * 3 + [9] * 3, [0, 3])


def test_a_token_is_the_first_of_its_own_translations_unless_it_is_special() -> None:
    best = np.array([[2, -1], [1, 2], [0, 1], [-1, -1]], dtype=np.int32)
    assert with_copies(best, [0]).tolist() == [[2, -1], [1, 2], [2, 0], [3, -1]]


# The file, from training to the command line.


@pytest.fixture(scope="module")
def listed_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was given a shortlist afterwards."""
    run = tmp_path_factory.mktemp("listed") / "run"
    shutil.copytree(tiny_run, run)
    run_train(listed_config(run))
    return run


def test_the_command_takes_the_size_of_lists(listed_run: Path, call: Call) -> None:  # noqa: F811
    options = ((), ("--shortlist", "20"), ("--shortlist", "1"), ("--shortlist", "null"))
    default, of_20, of_1, without = (
        call("translate", listed_run, "--scores", *given, stdin=b"one two three\nfour nine\n") for given in options
    )
    assert default == of_20
    assert default.out.splitlines()[0].endswith("1 2 3")
    assert len({default.out, of_1.out, without.out}) == 3  # the softmax is over other tokens


def listed_config(run: Path) -> Config:
    from mtkit.config.load import load_config

    return load_config(run / "config.yaml", [f"run_dir={run}", "decoding.shortlist=20"])


def test_a_finished_run_gets_a_shortlist_that_is_part_of_its_model(
    listed_run: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (listed_config(listed_run).data.root / "test.src").read_text().splitlines()
    plain = mtkit.load(tiny_run).translate(lines)
    translator = mtkit.load(listed_run)
    assert translator.shortlist is not None
    assert translator.config.decoding.shortlist == 20
    assert translator.translate(lines) == plain  # the toy language has few tokens
    told = open_bundle(listed_run).description["shortlist"]
    assert told["sentences"] == 24
    assert told["bleu"] == pytest.approx(told["bleu_without"], abs=1)
    assert "shortlist" in info_text(info_of(listed_run))
    assert "## Shortlist" in (listed_run / "model" / "README.md").read_text()
    pack(listed_run, tmp_path / "model.mtkit")
    for model in (listed_run, tmp_path / "model.mtkit"):
        assert not check(model, "cpu").faults
        assert mtkit.load(model).translate(lines[:2]) == plain[:2]
    before = (listed_run / "model" / "bundle.json").read_bytes()
    run_train(listed_config(listed_run))  # it is there already
    assert (listed_run / "model" / "bundle.json").read_bytes() == before


def test_a_model_without_a_shortlist_loads_and_says_how_to_get_one(tiny_run: Path) -> None:
    assert mtkit.load(tiny_run).shortlist is None
    with pytest.raises(CheckpointError, match="has no shortlist; mtkit train CONFIG decoding"):
        mtkit.load(tiny_run, ["decoding.shortlist=auto"])


def test_other_models_of_a_run_have_it_too_but_checkpoints_have_none(listed_run: Path, tmp_path: Path) -> None:
    made = open_bundle(listed_run).shortlist()
    assert made is not None
    bundle(listed_run, output=tmp_path / "again")
    again = open_bundle(tmp_path / "again").shortlist()
    assert again is not None
    assert all(torch.equal(again[name], made[name]) for name in made)
    extend(listed_run, tmp_path / "larger", ["onezero"], [])
    translator = mtkit.load(tmp_path / "larger")
    assert translator.translate(["one two three"]) == ["1 2 3"]
    checkpoint = sorted((listed_run / "checkpoints").iterdir())[-1]
    assert mtkit.load(checkpoint).config.decoding.shortlist is None


def test_damaged_files_are_refused(listed_run: Path, tmp_path: Path) -> None:
    shutil.copytree(listed_run / "model", tmp_path / "model")
    good = open_bundle(tmp_path / "model").shortlist()
    assert good is not None
    good = {name: tensor.clone() for name, tensor in good.items()}
    rows = len(good["of_source"])
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({**good, "frequent": good["frequent"] + 10_000}, "frequent has the ids"),
        ({**good, "frequent": good["frequent"] - 10_000}, "frequent has the ids"),
        ({**good, "of_source": good["of_source"] - 2}, "of_source has the ids -3 to"),
        ({**good, "of_source": good["of_source"][1:]}, rf"want \({rows}, K\)"),
        ({**good, "of_source": good["of_source"][:, 0]}, rf"want \({rows}, K\)"),
        ({"frequent": good["frequent"]}, "wants the tensors of_source and frequent"),
        ({**good, "frequent": good["frequent"].float()}, "of no type that is known: I32"),
    ]
    for tensors, message in wrong:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model" / SHORTLIST)
        with pytest.raises(CheckpointError, match=message):
            mtkit.load(tmp_path / "model")
    (tmp_path / "model" / SHORTLIST).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="too few for a header"):
        mtkit.load(tmp_path / "model")


def test_what_cannot_use_it_says_so(tiny_run: Path) -> None:
    for override, message in (
        ("decoding.stopping=optimal", "shortlist 20 leaves tokens out; stopping optimal looks at all of them"),
        ("decoding.shortlist=101", "at most 100"),
        ("decoding.shortlist=0", "at least 1"),
    ):
        with pytest.raises(MtkitError, match=message):
            mtkit.load(tiny_run, ["decoding.shortlist=20", override])
    model = {"architecture": "cmlm"}
    with pytest.raises(ValueError, match="shortlist 20 is not for method mask_predict"):
        Config.model_validate_json(
            json.dumps({"model": model, "decoding": {"shortlist": 20, "method": "mask_predict"}})
        )
    with pytest.raises(ValueError, match="a language model reads no source"):
        Config.model_validate_json(json.dumps({"task": "language_model", "decoding": {"shortlist": 20}}))
