"""Experiment files: what they may hold, and the settings that come of them."""

import re
from pathlib import Path

import pytest

from mtkit.errors import ConfigError
from mtkit.experiment.measures import GROUPS, MEASURES, parse
from mtkit.experiment.run import card_named, chosen_cards, differing_yaml, load_folder, merged
from tests.experiment.conftest import MASK, Folder

ROOT = Path(__file__).parents[2]


def test_the_highest_teaching_value_comes_first(folder):
    folder.write("00-late.yaml", MASK.replace("rank: 1", "rank: 3"))
    assert [card.name for card in folder.cards] == ["01-mask", "02-order", "00-late"]


def test_an_experiment_is_named_by_file_name_number_or_short_name(folder):
    cards = folder.cards
    for name in ("02-order", "02", "order"):
        assert [card.name for card in chosen_cards(cards, [name], folder.path)] == ["02-order"]
        assert card_named(name, folder.path).name == "02-order"
    assert card_named(str(folder.path / "01-mask.yaml"), folder.path).name == "01-mask"
    with pytest.raises(ConfigError, match=r"found 07, which is no experiment .* wants one of 01-mask, 02-order"):
        chosen_cards(cards, ["07"], folder.path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("rank: 1", "rnk: 1"), "unknown key 'rnk'; did you mean 'rank'?"),
        (("rank: 1", "rank: first"), "rank: found first, wants a valid integer"),
        (("claim: Without its mask a decoder is another one.\n", ""), "claim: missing"),
        (("base: base.yaml", "base: other.yaml"), "other.yaml: no such file"),
        (("measure: [bleu,", "measure: [blue,"), "measure: found blue (did you mean bleu?), wants some of bleu, exact"),
        (('"perplexity[by source]"', '"bleu[by colour]"'), "found bleu[by colour], wants bleu or bleu[by length] or"),
        (('abs(perplexity["base"]', 'abs(accuracy["base"]'), "but measure does not list accuracy"),
        (('perplexity["no mask"]', 'perplexity["no msk"]'), "no msk is neither a variant nor a control (did you mean"),
        (
            ('perplexity["no mask"]', 'perplexity["no mask", "long"]'),
            "wants one of right source (perplexity[by source])",
        ),
        (("causal_mask]", "causal_msk]"), "01-mask.yaml: no mask, size toy: model.ablate[0]: found causal_msk, wants"),
        (("sizes: {toy: {}}\n", ""), "sizes: missing; variants want one of toy, small, full"),
        (("sizes: {toy: {}}", "sizes: {tiny: {}}"), "sizes.tiny"),
        (("picture: {y: perplexity}", "picture: {y: colour}"), "picture.y: found colour, wants one of bleu"),
        (("  wide: {model", "  base: {model"), "controls: base is a variant, too"),
        (("valid_if:", "board: [nothing]\nvalid_if:"), "board: found nothing"),
        ((" > 0\n", " + 1\n"), "which is no comparison"),
        (
            ("sizes: {toy: {}}", "sizes: {toy: {}}\nonly: {small: [nobody]}"),
            "nobody is neither a variant nor a control",
        ),
    ],
)
def test_a_mistake_is_told_with_its_file(folder: Folder, change, told):
    assert change[0] in MASK
    path = folder.write("01-mask.yaml", MASK.replace(*change))
    with pytest.raises(ConfigError) as error:
        load_folder(folder.path)
    assert told in str(error.value)
    assert all(line.startswith(str(folder.path)) for line in str(error.value).splitlines())
    assert path.name in str(error.value) or "other.yaml" in told


def test_mistakes_of_all_files_are_told_together(folder):
    folder.write("01-mask.yaml", MASK.replace("rank: 1", "rnk: 1"))
    folder.write("02-order.yaml", "experiment: [")
    with pytest.raises(ConfigError) as error:
        load_folder(folder.path)
    assert re.search(r"01-mask\.yaml: unknown key", str(error.value))
    assert re.search(r"02-order\.yaml:1: not valid YAML", str(error.value))


def test_a_file_that_is_neither_experiment_nor_base_is_a_mistake(folder):
    folder.write("03-lost.yaml", "experimnt: lost\n")
    with pytest.raises(ConfigError, match=r"03-lost\.yaml: has no key experiment, and is the base of none"):
        load_folder(folder.path)


@pytest.mark.parametrize(
    "text",
    [
        '__import__("os").system("true") == 0',
        'bleu["base"].real > 0',
        "bleu[base] > 0",
        '[bleu["base"]] == 0',
        'bleu["base"] > 0 if 1 else 2',
        'bleu["a", "b", "c"] > 0',
        'abs(bleu["base"], 1) > 0',
        "True",
        "bleu",
        'bleu["base"] ** 2 > 1',
        'bleu["base"] in [1]',
        'bleu["base"] >',
        "(lambda: 1)() > 0",
        "",
    ],
)
def test_expressions_hold_nothing_but_arithmetic_and_comparisons(text):
    with pytest.raises(ValueError, match=r"wants|which is no comparison|abs takes|names stand"):
        parse(text)


def test_the_measures_of_expressions_are_found():
    expression = parse('min(bleu["a", "long"], -2 * bleu["b"]) / 3 >= 1 and not board["x", "y"] == 0')
    assert [str(each) for each in expression.references] == ['bleu["a", "long"]', 'bleu["b"]', 'board["x", "y"]']


def test_every_measure_has_a_group_that_exists():
    for measure in MEASURES.values():
        assert measure.group in GROUPS
        assert all(group in GROUPS for names in measure.by.values() for group, _ in names.values())


def test_a_variant_of_another_architecture_keeps_the_settings_that_it_has_too():
    base = {"model": {"d_model": 16, "num_heads": 2, "dropout": 0.3}, "training": {"seed": 2}}
    found = merged(base, {"model": {"architecture": "rnn", "cell": "gru"}})
    assert found["model"] == {"d_model": 16, "dropout": 0.3, "architecture": "rnn", "cell": "gru"}
    assert merged(base, {"model": {"d_ff": 8}})["model"] == {**base["model"], "d_ff": 8}
    assert found["training"] == base["training"]
    assert base["model"]["num_heads"] == 2


def test_sizes_add_to_the_base_and_variants_come_last(folder):
    card = folder.cards[1]
    assert card.config("base", "toy", 1).training.max_steps == 6
    assert card.config("recurrent", "small", 1).training.max_steps == 8
    assert [card.config("base", "toy", seed).training.seed for seed in (1, 2, 3)] == [1, 2, 3]
    assert card.runs_at("toy") == ["base"]
    assert card.runs_at("small") == ["base", "recurrent"]
    assert card.runs_at("full") == []


def test_data_of_ones_own_wants_a_file_that_names_it(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"--data .*: wants .*base-data\.yaml"):
        folder.cards[0].config("base", "toy", 1, str(tmp_path))
    folder.write("base-data.yaml", "data: {train: [{source: a.fr, target: a.en}]}\ntraining: {max_steps: 9}\n")
    config = folder.cards[0].config("base", "toy", 1, str(tmp_path))
    assert config.data.root == tmp_path
    assert config.training.max_steps == 9
    assert str(config.data.train[0].source) == "a.fr"


def test_what_a_size_adds_for_all_experiments_of_a_base_stands_once(folder):
    folder.write("base-toy.yaml", "training: {max_steps: 4, log_every: 3}\n")
    folder.write("base-small.yaml", "training: {max_steps: 5}\n")
    mask, order = folder.cards
    assert mask.config("base", "toy", 1).training.max_steps == 4
    assert order.config("base", "toy", 1).training.log_every == 3
    assert order.config("base", "small", 1).training.max_steps == 8  # what the experiment itself adds comes after


def test_differences_are_shown_as_yaml():
    assert differing_yaml({"model": {"ablate": ["shift"]}}) == "model:\n  ablate: [shift]"
    assert differing_yaml({}) == "{}"


def test_the_page_of_the_commands_lists_every_measure():
    page = (ROOT / "mtkit" / "commands" / "README.md").read_text("utf-8")
    named = re.findall(r"`(\w+)`", page[page.index("## Experiments") :])
    assert set(MEASURES) <= set(named)
