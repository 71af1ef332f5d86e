"""Settings: what is read, what is refused and how that is said, and that what is printed reads back (law 9)."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from mtkit.config import section as parsing
from mtkit.config.data_and_model_settings import (
    CorpusConfig,
    DataConfig,
    LanguagesConfig,
    MaskedConfig,
    MixedConfig,
    RecurrentConfig,
    TestSetConfig,
    TokenizerConfig,
    TransformerConfig,
)
from mtkit.config.load import alias_of, aliases, config_from_text, load_config
from mtkit.config.section import Section, read_yaml
from mtkit.config.settings import Config, config_schema, config_text, is_setting, setting_names, setting_schema, wanted
from mtkit.config.training_settings import TrainingConfig
from mtkit.errors import ConfigError

TestSetConfig.__test__ = False  # type: ignore[attr-defined]  # no test, whatever its name says

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def faults(text: str, *overrides: str, folder: Path) -> list[str]:
    """The lines of the error that a file of that text and those overrides give; the file is called x.yaml."""
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return [line.removeprefix(f"{folder}/") for line in str(error.value).split("\n")]


# Reading


def test_no_file_and_an_empty_file_give_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "comments.yaml").write_text("# nothing\n---\n# at all\n")
    assert load_config(None) == Config()
    assert load_config(tmp_path / "empty.yaml") == Config()
    assert load_config(tmp_path / "comments.yaml") == Config()


def test_a_file_overrides_defaults_and_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: a\ntraining: {max_steps: 10, seed: 7}\n")
    config = load_config(path, ["training.max_steps=20", "training.max_steps=30", "device=cpu"])
    assert (config.name, config.device) == ("a", "cpu")
    assert (config.training.max_steps, config.training.seed, config.training.batch_tokens) == (30, 7, 4096)


def test_an_override_is_read_as_yaml() -> None:
    config = load_config(
        None,
        [
            "training.adam_betas=[0.8, 0.9]",
            "training.learning_rate=1e-4",
            "tokenizer.shared=true",
            "data.max_length_ratio=null",
            "data.train=[{source: a.fr, target: a.en}]",
            "name=a=b",
            "data.root=",
        ],
    )
    assert config.training.adam_betas == (0.8, 0.9)
    assert config.training.learning_rate == 1e-4
    assert config.data.max_length_ratio is None
    assert config.data.train == (CorpusConfig(source=Path("a.fr"), target=Path("a.en")),)
    assert (config.name, config.data.root) == ("a=b", None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("exp #2/run", "exp #2/run"),
        ("#2", "#2"),
        ("# all of it", "# all of it"),
        ("exp#2", "exp#2"),
        ("1 #2", "1 #2"),
        ("true #x", "true #x"),
        ('"exp #2"', "exp #2"),
        ("'exp #2' ", "exp #2"),
        ("C++ &x *y", "C++ &x *y"),
    ],
)
def test_an_override_has_no_comments(text: str, value: str) -> None:
    assert load_config(None, [f"name={text.replace('/', '-')}"]).name == value.replace("/", "-")
    assert load_config(None, [f"run_dir={text}"]).run_dir == Path(value)


def test_lists_and_tables_of_an_override_have_no_comments() -> None:
    config = load_config(None, ["data.train=[{source: a #1.fr, target: 'b # 2.en'}, {tsv: \"#3\"}]"])
    assert [corpus.paths for corpus in config.data.train] == [(Path("a #1.fr"), Path("b # 2.en")), (Path("#3"),)]
    config = load_config(None, ["data.train=[&first {source: a, target: b}, *first]"])
    assert config.data.train[0] == config.data.train[1]


def test_text_of_an_override_that_would_be_lost_is_refused() -> None:
    for override in ("name=&some", "name=&some thing"):
        with pytest.raises(ConfigError) as raised:
            load_config(None, [override])
        assert str(raised.value) == f"{override}:1: not valid YAML: found text that begins with &; quote it"
    assert load_config(None, ["name='&some'"]).name == "&some"


def test_a_file_still_has_comments(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: some # the first\nrun_dir: 'a #b' # where\n")
    config = load_config(tmp_path / "x.yaml")
    assert (config.name, config.run_dir) == ("some", Path("a #b"))


def test_a_tilde_at_the_beginning_of_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (tmp_path / "x.yaml").write_text(
        "run_dir: ~/exp\n"
        "data:\n"
        "  root: ~/\n"
        "  train: [{source: ~/a, target: b~}, {tsv: ~/c}]\n"
        "  test: {one: {source: ~/d, target: ~/e}, two: {source: d/~, target: [~/e, ~/f]}}\n"
        "training: {start_from: ~/model}\n"
    )
    config = load_config(tmp_path / "x.yaml")
    assert (config.run_path, config.data.root) == (home / "exp", home)
    assert [corpus.paths for corpus in config.data.train] == [(home / "a", Path("b~")), (home / "c",)]
    assert config.data_path(config.data.train[0].paths[0]) == home / "a"
    one, two = config.data.test.values()
    assert (one.source, one.target, two.source, two.target) == (
        *(home / "d", (home / "e",)),
        *(Path("d/~"), (home / "e", home / "f")),
    )
    assert config.training.start_from == home / "model"
    assert load_config(None, ["run_dir=~/exp", "training.start_from=~/model"]).run_path == home / "exp"
    (tmp_path / "y.yaml").write_text(config_text(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(tmp_path / "y.yaml") == config


def test_a_home_folder_that_is_not_known_is_told() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, ["run_dir=~no-such-user/exp"])
    assert str(raised.value) == (
        "run_dir=~no-such-user/exp: found ~no-such-user/exp, but it is not known where the home folder ~no-such-user is"
    )


def test_an_override_reaches_into_tables_and_replaces_whole_sections(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("data: {test: {a: {source: x, target: y}}}\ntraining: {seed: 5}\n")
    config = load_config(path, ["data.test.a.source=z", "training={max_steps: 3}"])
    assert config.data.test == {"a": TestSetConfig(source=Path("z"), target=(Path("y"),))}
    assert config.training == TrainingConfig(max_steps=3)


def test_an_override_fills_a_section_that_is_empty_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("training:\n")
    assert load_config(path, ["training.seed=5"]).training.seed == 5


def test_a_section_list_or_table_whose_lines_are_all_commented_out_is_empty() -> None:
    text = "training:\n  # seed: 5\nmodel:\ndata:\n  train:\n  # - {source: a, target: b}\n  test:\n"
    assert config_from_text(text, "x.yaml") == Config()


def test_one_reference_and_several_are_both_read() -> None:
    config = config_from_text("data: {test: {a: {source: x, target: y}, b: {source: x, target: [y, z]}}}", "x.yaml")
    assert [config.data.test[name].target for name in "ab"] == [(Path("y"),), (Path("y"), Path("z"))]


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", "1.0e-4", "+.0001"])
def test_numbers_are_read_as_yaml_1_2_has_them(number: str) -> None:
    assert config_from_text(f"training: {{learning_rate: {number}}}", "x.yaml").training.learning_rate == 1e-4


def test_a_whole_number_is_a_number_too() -> None:
    assert config_from_text("training: {weight_decay: 1}", "x.yaml").training.weight_decay == 1.0


def test_text_that_yaml_1_1_takes_for_something_else_stays_text() -> None:
    config = config_from_text("name: 2026-01-01\nlanguages: {source: 'no', target: 1:20}", "x.yaml")
    assert (config.name, config.languages.source, config.languages.target) == ("2026-01-01", "no", "1:20")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfname: a\n")
    assert load_config(tmp_path / "x.yaml").name == "a"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_prints_what_loads_back(recipe: Path) -> None:
    config = load_config(recipe)
    assert config_from_text(config_text(config), "printed") == config


# Refusing values

LINES_OF_VALUES = [
    ("training: {max_steps: true}", "training.max_steps: found true, wants a whole number, at least 1, or auto"),
    ("training: {max_steps: 0}", "training.max_steps: found 0, wants a whole number, at least 1, or auto"),
    ("training: {max_steps: 8e3}", "training.max_steps: found 8000.0, wants a whole number, at least 1, or auto"),
    ("training: {max_steps: '5'}", "training.max_steps: found '5', wants a whole number, at least 1, or auto"),
    ("training: {max_steps: }", "training.max_steps: found null, wants a whole number, at least 1, or auto"),
    ("training: {adam_eps: .inf}", "training.adam_eps: found .inf, wants a number, more than 0"),
    ("training: {adam_eps: 1e999}", "training.adam_eps: found .inf, wants a number, more than 0"),
    ("training: {weight_decay: .nan}", "training.weight_decay: found .nan, wants a number, at least 0"),
    ("training: {clip_norm: 0}", "training.clip_norm: found 0, wants a number, more than 0, or null"),
    ("training: {label_smoothing: 1}", "training.label_smoothing: found 1, wants a number, at least 0, less than 1"),
    (
        "tokenizer: {character_coverage: 2}",
        "tokenizer.character_coverage: found 2, wants a number, at least 0.98, at most 1",
    ),
    (
        "tokenizer: {vocab_size: 10000000000}",  # more than SentencePiece can count
        "tokenizer.vocab_size: found 10000000000, wants a whole number, at least 5, at most 10000000, "
        "or {source: …, target: …}",
    ),
    (
        "training: {consistency: both}",
        "training.consistency: found both, wants one of none, rdrop, simcut",
    ),
    (
        "training: {schedule: off}",
        "training.schedule: found false, wants one of noam, inverse_sqrt, constant, linear, cosine, wsd, plateau",
    ),
    (
        "training: {schedule: cosin}",
        "training.schedule: found cosin, wants one of noam, inverse_sqrt, constant, linear, cosine, wsd, plateau",
    ),
    ("tokenizer: {type: words}", "tokenizer.type: found words, wants one of bpe, unigram, char, word"),
    ("tokenizer: {shared: 'yes'}", "tokenizer.shared: found 'yes', wants true or false"),
    ("tokenizer: {shared: 1}", "tokenizer.shared: found 1, wants true or false"),
    ("training: {adam_betas: 1}", "training.adam_betas: found 1, wants a list of 2 items, each a number"),
    ("training: {adam_betas: [0.9]}", "training.adam_betas: found [0.9], wants a list of 2 items, each a number"),
    (
        "training: {adam_betas: [0.9, 0.9, 0.9]}",
        "training.adam_betas: found [0.9, 0.9, 0.9], wants a list of 2 items, each a number",
    ),
    ("training: {adam_betas: [0.9, a]}", "training.adam_betas[1]: found a, wants a number"),
    ("languages: {source: ''}", "languages.source: found '', wants text, not empty"),
    ("languages: {source: [a]}", "languages.source: found [a], wants text, not empty"),
    ("name: a/b", r"name: found a/b, wants text that matches ^[^/\\]*[^/\\.\s][^/\\]*$"),
    ("run_dir: {a: b}", "run_dir: found {a: b}, wants a path, or null"),
    ("training: 5", "training: found 5, wants keys and values"),
    ("training: [5]", "training: found [5], wants keys and values"),
    (
        "data: {train: {source: a, target: b}}",
        "data.train: found {source: a, target: b}, wants a list of items, each {source: …, target: …} "
        "or {tsv: …} or {target: …}",
    ),
    ("data: {train: [a]}", "data.train[0]: found a, wants {source: …, target: …} or {tsv: …} or {target: …}"),
    ("data: {valid: [{source: a}]}", "data.valid[0]: found source, wants source and target, or tsv alone"),
    (
        "data: {train: [{target: a}]}",
        "data.train[0] has a target alone; task translation wants source and target, or tsv",
    ),
    ("data: {train: [{weight: 2}]}", "data.train[0]: found no file, wants source and target, or tsv alone"),
    (
        "data: {train: [{source: a, target: b, tsv: c}]}",
        "data.train[0]: found source and target and tsv, wants source and target, or tsv alone",
    ),
    (
        "data: {train: [{source: a, target: b, columns: [2, 1]}]}",
        "data.train[0]: found columns without tsv; only a file of columns has some to choose",
    ),
    (
        "data: {train: [{tsv: a, columns: [2, 2]}]}",
        "data.train[0]: found column 2 for both sides, wants two different columns",
    ),
    (
        "data: {train: [{tsv: a, columns: [0, 2]}]}",
        "data.train[0].columns[0]: found 0, wants a whole number, at least 1",
    ),
    ("data: {train: [{tsv: a, weight: 0}]}", "data.train[0].weight: found 0, wants a number, more than 0"),
    ("data: {train: [{tsv: a, tag: a b}]}", r"data.train[0].tag: found a b, wants text that matches ^\S+$, or null"),
    ("data: {min_length: 9, max_length: 8}", "data: min_length 9 must be at most max_length 8"),
    (
        "data: {valid: [{tsv: a, weight: 2}]}",
        "data: valid[0] has weight 2.0; only the corpora of data.train have shares of an epoch",
    ),
    ("data: {temperature: 0.5}", "data.temperature: found 0.5, wants a number, at least 1"),
    ("data: {source_script: Latn}", "data.source_script: unknown script 'Latn'; did you mean Latin?"),
    ("data: {target_script: [Han, hiragana]}", "data.target_script: unknown script 'hiragana'; did you mean Hiragana?"),
    (
        "data: {target_script: '?'}",
        "data.target_script: unknown script '?'; wants a name such as Latin, Cyrillic or Han",
    ),
    (
        "data: {target_script: []}",
        "data.target_script: found [], wants text, or a list of 1 or more items, each text, or null",
    ),
    (
        "data: {train: [{tsv: a, tag: <2de>}, {tsv: b}], valid: [{tsv: c, tag: <2fr>}]}",
        "data.valid[0].tag: found <2fr>, which no corpus of data.train has; they have <2de>",
    ),
    (
        "data: {train: [{tsv: a, tag: <2de>}, {tsv: b, tag: <2at>}], test: {t: {sacrebleu: wmt14, tag: <2fr>}}}",
        "data.test.t.tag: found <2fr>, which no corpus of data.train has; they have <2at>, <2de>",
    ),
    (
        "data: {test: [a]}",
        "data.test: found [a], wants names, each with {source: …, target: …} or {sacrebleu: …}",
    ),
    (
        "data: {test: {a: {target: b}}}",
        "data.test.a: a test set wants source and target, or sacrebleu, the name of a set such as wmt14/full",
    ),
    (
        "data: {test: {a: {sacrebleu: wmt14, source: b, target: c}}}",
        "data.test.a: a test set has source and target, or a name in sacrebleu, not both",
    ),
    (
        "data: {test: {a: {sacrebleu: wmt14, tag: to de}}}",
        r"data.test.a.tag: found to de, wants text that matches ^\S+$, or null",
    ),
    (
        "data: {test: {a: {source: b, target: {c: d}}}}",
        "data.test.a.target: found {c: d}, wants a path, or a list of items, each a path",
    ),
    (
        "data: {test: {a: {source: b, target: []}}}",
        "data.test.a: a test set wants source and target, or sacrebleu, the name of a set such as wmt14/full",
    ),
]


@pytest.mark.parametrize(("text", "line"), LINES_OF_VALUES, ids=[text for text, _ in LINES_OF_VALUES])
def test_a_wrong_value_is_told_with_what_is_wanted(text: str, line: str, tmp_path: Path) -> None:
    assert faults(text, folder=tmp_path) == [f"x.yaml:1: {line}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("languages: {source: no}", 'languages.source: found false; quote it, "no", if text is meant'),
        ("languages: {source: off}", 'languages.source: found false; quote it, "no", if text is meant'),
        ("languages: {source: yes}", 'languages.source: found true; quote it, "yes", if text is meant'),
        ("name: 2026", 'name: found 2026; quote it, "2026", if text is meant'),
        ("data: {root: no}", 'data.root: found false; quote it, "no", if text is meant'),
        (
            "data: {train: [{source: no, target: a}]}",
            'data.train[0].source: found false; quote it, "no", if text is meant',
        ),
        (
            "data: {test: {a: {source: b, target: no}}}",
            'data.test.a.target: found false; quote it, "no", if text is meant',
        ),
        (
            "data: {test: {a: {source: b, target: [c, no]}}}",
            'data.test.a.target[1]: found false; quote it, "no", if text is meant',
        ),
    ],
)
def test_norwegian_and_years_are_to_be_quoted(text: str, line: str, tmp_path: Path) -> None:
    assert faults(text, folder=tmp_path) == [f"x.yaml:1: {line}"]


def test_a_long_wrong_value_is_cut_and_stays_on_one_line(tmp_path: Path) -> None:
    (line,) = faults('training: {seed: "' + "a b\\n" * 100 + '"}', folder=tmp_path)
    assert line.startswith("x.yaml:1: training.seed: found ")
    assert line.endswith("…, wants a whole number, at least 0")
    assert len(line) < 150


# Refusing keys


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("training: {learnign_rate: 1}", "unknown key 'training.learnign_rate'; did you mean 'learning_rate'?"),
        ("trainig: {seed: 1}", "unknown key 'trainig'; did you mean 'training'?"),
        ("beam_size: 3", "unknown key 'beam_size'; did you mean 'decoding.beam_size'?"),
        ("beam_sise: 3", "unknown key 'beam_sise'; did you mean 'decoding.beam_size'?"),
        ("training: {dropout: 0.1}", "unknown key 'training.dropout'; did you mean 'model.dropout'?"),
        (
            "batch_tokens: 3",
            "unknown key 'batch_tokens'; did you mean 'training.batch_tokens' or 'decoding.batch_tokens'?",
        ),
        ("training: {device: cpu}", "unknown key 'training.device'; did you mean 'device' at the top level?"),
        (
            "training.max_steps: 3",
            "unknown key 'training.max_steps'; write 'max_steps' on a line of its own below 'training:'",
        ),
        ("data: {test: {a: {source: x, target: y, tokens: z}}}", "unknown key 'data.test.a.tokens'"),
        ("data: {train: [{srouce: x}]}", "unknown key 'data.train[0].srouce'; did you mean 'source'?"),
        ("zzz: 3", "unknown key 'zzz'"),
        ("true: 3", "unknown key 'true'"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_right_name_if_any_is_near(
    text: str, line: str, tmp_path: Path
) -> None:
    assert f"x.yaml:1: {line}" in faults(text, folder=tmp_path)


# Names of other toolkits


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.lr=1", "did you mean 'training.learning_rate'?"),
        ("lr=1", "did you mean 'training.learning_rate'?"),
        ("model.learn-rate=1", "did you mean 'training.learning_rate'?"),
        ("max_updates=5", "did you mean 'training.max_steps'?"),
        (
            "epochs=3",
            "see 'training.max_steps': training is measured in updates, not epochs; one epoch is about tokens of the "
            "longer side / training.batch_tokens updates",
        ),
        ("update_freq=2", "see 'training.accumulate': the number of batches whose gradients make one update"),
        ("training.fp16=true", "see 'training.precision': auto, fp32, bf16 or fp16, such as training.precision: fp16"),
        (
            "threads=4",
            "the environment sets the number of threads: OMP_NUM_THREADS=4 mtkit train …; the default is one per core",
        ),
        ("model.hidden_size=3", "see 'model.d_model': one width for embeddings and layers of both sides"),
        ("model.num_layers=3", "see 'model.encoder_layers' and 'model.decoder_layers': one for each side"),
        (
            "model.arch=x",
            "see 'model.architecture': transformer, rnn or mixed; sizes are settings of their own",
        ),
        (
            "tokenizer.vocab_file=x",
            "see 'tokenizer.model': the vocabulary is made from the training text, so dictionaries are not read; "
            "tokenizer.model takes a SentencePiece model",
        ),
        ("training.encoder_layers=3", "did you mean 'model.encoder_layers'?"),
        ("training.beam-size=3", "did you mean 'decoding.beam_size'?"),
        ("training.cell=gru", "did you mean 'model.cell', which only architecture rnn has?"),
    ],
)
def test_names_of_other_toolkits_are_told_by_the_names_they_have_here(override: str, told: str, tmp_path: Path) -> None:
    keys, value = override.split("=")
    message = f"unknown key '{keys}'; {told}"
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert str(error.value) == f"{override}: {message}"
    section, _, key = keys.rpartition(".")
    text = f"{section}: {{{key}: {value}}}" if section else f"{key}: {value}"
    assert faults(text, folder=tmp_path) == [f"x.yaml:1: {message}"]


def test_names_of_other_toolkits_lead_to_settings_that_exist() -> None:
    named = [setting for alias in set(aliases().values()) for setting in alias.settings]
    named += [word for alias in set(aliases().values()) for word in re.findall(r"\b[a-z]+\.[a-z_]{2,}", alias.advice)]
    assert "training.batch_tokens" in named
    assert [name for name in named if not is_setting(tuple(name.split(".")))] == []


def test_a_run_directory_in_place_of_its_settings_names_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: my\n")
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path)
    kept = tmp_path / "config.yaml"
    assert str(raised.value) == f"{tmp_path}: found a folder, wants a YAML file of settings, such as {kept}"


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("data.train_source", "data.train"),
        ("data.src", "data.train"),
        ("data.test_source", "data.test"),
        ("data.jsonl", "data.train"),
        ("training.keep_last", "training.keep_checkpoints"),
        ("training.time_limit", "training.max_minutes"),
        ("training.metric", "training.select_by"),
        ("tokenizer.size", "tokenizer.vocab_size"),
        ("tokenizer.merges", "tokenizer.vocab_size"),
        ("model.dim", "model.d_model"),
        ("model.hidden_dim", "model.d_model"),
        ("model.kind", "model.architecture"),
    ],
)
def test_a_name_that_people_try_leads_to_the_setting(key: str, setting: str, tmp_path: Path) -> None:
    section, _, name = key.partition(".")
    (message,) = faults(f"{section}: {{{name}: 3}}", folder=tmp_path)
    assert f"'{setting}'" in message


def test_each_name_of_another_toolkit_means_one_thing_and_is_no_setting() -> None:
    names = [name for alias in set(aliases().values()) for name in alias.names.split()]
    assert len(names) == len(set(names)) > 300
    settings = {name[-1] for kind in KINDS.split(", ") for name in setting_names({"model": {"architecture": kind}})}
    assert not settings & set(names)
    assert all(alias_of(f"--{name.replace('_', '-')}") is not None for name in names)
    assert all(alias.settings or alias.advice for alias in aliases().values())


def test_a_key_that_is_given_twice_is_an_error(tmp_path: Path) -> None:
    text = "training:\n  seed: 1\n  max_steps: 2\n  seed: 3\n"
    assert faults(text, folder=tmp_path) == ["x.yaml:4: key 'seed' is given twice; first on line 2"]


# Refusing settings that do not fit each other


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "training:\n  seed: 1\n  schedule: constant\n",
            "x.yaml:3: training: schedule constant wants a learning_rate; only noam knows its own",
        ),
        (
            "training:\n  warmup_steps: 0\n",
            "x.yaml:2: training: noam without a learning_rate wants warmup_steps of 1 or more",
        ),
        (
            "training:\n  seed: 1\n  adam_betas: [0.9, 1.0]\n",
            "x.yaml:3: training: adam_betas [0.9, 1.0] must each be at least 0 and less than 1",
        ),
        ("model:\n  d_model: 30\n", "x.yaml:2: model: d_model 30 is not a multiple of num_heads 8"),
        ("model:\n  decoder_num_heads: 3\n", "x.yaml:2: model: d_model 512 is not a multiple of decoder_num_heads 3"),
        ("model:\n  d_model: 15\n  num_heads: 5\n", "x.yaml:2: model: d_model 15 is odd; it must be even"),
        (
            "model:\n  d_model: 30\n  num_heads: 10\n  positions: rotary\n",
            "x.yaml:4: model: positions rotary wants heads of even width; d_model 30 over num_heads 10 is 3",
        ),
        (
            "model:\n  d_model: 36\n  num_heads: 6\n  positions: rotary\n  decoder_num_heads: 12\n",
            "x.yaml:5: model: positions rotary wants heads of even width; d_model 36 over decoder_num_heads 12 is 3",
        ),
        (
            "model:\n  sinusoid_layout: interleaved\n  positions: rotary\n",
            "x.yaml:3: model: sinusoid_layout interleaved wants positions sinusoidal, found rotary",
        ),
        (
            "model:\n  positions: none\n  sinusoid_exponent: tensor2tensor\n",
            "x.yaml:3: model: sinusoid_exponent tensor2tensor wants positions sinusoidal, found none",
        ),
        (
            "model:\n  positions: learned\n  sinusoid_first: 2\n",
            "x.yaml:3: model: sinusoid_first 2 wants positions sinusoidal, found learned",
        ),
        (
            "name: a\nmodel:\n  tie_embeddings: all\ntokenizer:\n  shared: false\n",
            "x.yaml:5: model.tie_embeddings all wants tokenizer.shared true; set it to decoder or none, or take it out",
        ),
        (
            "model:\n  positions: learned\n  max_positions: 256\n",
            "x.yaml:3: model.max_positions 256 must be more than data.max_length 256",
        ),
        (
            "training:\n  schedule: cosine\n  learning_rate: 0.1\n  plateau_patience: 3\n",
            "x.yaml:4: training: plateau_patience 3 wants schedule plateau, not cosine",
        ),
        (
            "training:\n  plateau_factor: 0.5\n",
            "x.yaml:2: training: plateau_factor 0.5 wants schedule plateau, not noam",
        ),
        (
            "training:\n  final_learning_rate: 0.1\n",
            "x.yaml:2: training: final_learning_rate 0.1 wants schedule linear, cosine, wsd or plateau, not noam",
        ),
        (
            "training:\n  optimizer: sgd\n  adam_betas: [0.9, 0.99]\n",
            "x.yaml:3: training: adam_betas [0.9, 0.99] is not for optimizer sgd, which has momentum",
        ),
        (
            "training:\n  adam_eps: 1e-8\n  optimizer: sgd\n",
            "x.yaml:3: training: adam_eps 1.0e-08 is not for optimizer sgd, which has momentum",
        ),
        (
            "training:\n  cutoff: 0.1\n  consistency: rdrop\n",
            "x.yaml:3: training: cutoff 0.1 wants consistency simcut, not rdrop",
        ),
        (
            "training:\n  unigram_nbest: 1\n",
            "x.yaml:2: training: unigram_nbest 1 leaves nothing to sample; it wants 2 or more, or -1",
        ),
        (
            "training:\n  bpe_dropout: 0.1\ntokenizer:\n  type: unigram\n",
            "x.yaml:4: training.bpe_dropout 0.1 wants tokenizer.type bpe, not unigram",
        ),
        (
            "tokenizer:\n  type: word\n  character_coverage: 0.99\n",
            "x.yaml:3: tokenizer: character_coverage 0.99 is not for type word, whose pieces are words, "
            "with all their characters",
        ),
        (
            "model:\n  max_positions: 99\n",
            "x.yaml:2: model: max_positions 99 wants positions learned, found sinusoidal",
        ),
        (
            "decoding:\n  diversity_strength: 0.7\n",
            "x.yaml:2: decoding: diversity_strength 0.7 wants diversity_groups of 2 or more, which divide the beam",
        ),
        (
            "decoding:\n  mbr_utility: bleu\n",
            "x.yaml:2: decoding: mbr_utility bleu compares samples that elect a translation; it wants mbr_samples of 2 "
            "or more",
        ),
        (
            "decoding:\n  coverage_penalty: 0.2\nmodel:\n  architecture: rnn\n  attention: none\n",
            "x.yaml:3: decoding.coverage_penalty 0.2 wants a model with attention, which tells what was covered; "
            "set it to 0",
        ),
        (
            "model:\n  architecture: mixed\n  decoder:\n    attention: none\ndecoding:\n  coverage_penalty: 0.2\n",
            "x.yaml:6: decoding.coverage_penalty 0.2 wants a model with attention, which tells what was covered; "
            "set it to 0",
        ),
        (
            "training:\n  consistency_weight: 3\n",
            "x.yaml:2: training: consistency_weight 3 wants consistency rdrop or simcut, not none",
        ),
        (
            "training:\n  guided_alignment_head: 2\n",
            "x.yaml:2: training: guided_alignment_head 2 wants guided_alignment, a file of word alignments",
        ),
        (
            "training:\n  consistency: rdrop\n  guided_alignment: x\n",
            "x.yaml:3: training: guided_alignment wants consistency none, found rdrop",
        ),
        (
            "training:\n  bpe_dropout: 0.1\n  guided_alignment: x\n",
            "x.yaml:3: training: guided_alignment wants one segmentation of each sentence, found bpe_dropout 0.1, "
            "which samples them",
        ),
        (
            "model:\n  architecture: rnn\n  attention: none\ntraining:\n  guided_alignment: x\n",
            "x.yaml:5: training.guided_alignment wants a model with attention, one head of which learns it",
        ),
        (
            "model:\n  decoder_num_heads: 2\ntraining:\n  guided_alignment: x\n  guided_alignment_head: 3\n",
            "x.yaml:5: training.guided_alignment_head 3 must be at most 2, the number of heads of attention to the "
            "source",
        ),
        (
            "model:\n  layer_dropout: 0.1\ntraining:\n  guided_alignment: x\n",
            "x.yaml:4: training.guided_alignment wants model.layer_dropout 0, found 0.1, which may skip the layer that "
            "learns it",
        ),
        (
            "model:\n  architecture: rnn\ntraining:\n  batching: packed\n",
            "x.yaml:4: training.batching packed wants a Transformer, found model.architecture rnn, whose rows hold one "
            "sentence; take it out",
        ),
        (
            "model:\n  dropout: 0.0\ntraining:\n  consistency: rdrop\n",
            "x.yaml:4: training.consistency rdrop wants model.dropout above 0; two equal passes always agree",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told_where_one_of_them_was_said(text: str, line: str, tmp_path: Path) -> None:
    assert faults(text, folder=tmp_path) == [line]


def test_any_kind_of_dropout_will_do_for_rdrop() -> None:
    text = "model: {dropout: 0.0, attention_dropout: 0.1}\ntraining: {consistency: rdrop}"
    assert config_from_text(text, "x.yaml").training.consistency == "rdrop"


def test_of_settings_that_do_not_fit_the_last_said_is_told(tmp_path: Path) -> None:
    text = "model:\n  d_model: 64\n  num_heads: 4\n"
    line = "model.num_heads=3: model: d_model 64 is not a multiple of num_heads 3"
    assert faults(text, "model.num_heads=3", folder=tmp_path) == [line]


# Refusing files and overrides


def test_all_faults_are_told_at_once_in_the_order_in_which_they_were_said(tmp_path: Path) -> None:
    text = "decoding:\n  beam_size: 0\ntraining:\n  seed: -1\n  sed: 1\nmodel:\n  d_model: 30\nname: no\n"
    assert faults(text, "device=tpu", "training.seed=x", "data.max_len=3", folder=tmp_path) == [
        "x.yaml:2: decoding.beam_size: found 0, wants a whole number, at least 1, at most 10000",
        "x.yaml:5: unknown key 'training.sed'; did you mean 'seed'?",
        "x.yaml:7: model: d_model 30 is not a multiple of num_heads 8",
        'x.yaml:8: name: found false; quote it, "no", if text is meant',
        "device=tpu: found tpu, wants one of auto, cpu, cuda, mps",
        "training.seed=x: found x, wants a whole number, at least 0",
        "data.max_len=3: unknown key 'data.max_len'; see 'data.max_length': in tokens, for both sides of a "
        "training pair",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("foo", "foo: wants key=value, such as training.max_steps=1000"),
        ("=3", "=3: wants key=value, such as training.max_steps=1000"),
        ("zzz=3", "zzz=3: unknown key 'zzz'"),
        ("training.max_steps=true", "training.max_steps=true: found true, wants a whole number, at least 1, or auto"),
        (
            "training={max_steps: true}",
            "training={max_steps: true}: training.max_steps: found true, wants a whole number, at least 1, or auto",
        ),
        (
            "data.valid=[{tsv: a}, {tsv: b, tag: <2de>}]",
            "data.valid=[{tsv: a}, {tsv: b, tag: <2de>}]: data.valid[1].tag: found <2de>, which no corpus of "
            "data.train has; they have none",
        ),
        (
            "data.valid=[{tsv: a, weight: 3}]",
            "data.valid=[{tsv: a, weight: 3}]: data: valid[0] has weight 3.0; only the corpora of data.train have "
            "shares of an epoch",
        ),
        ("trainig.seed=3", "trainig.seed=3: unknown key 'trainig'; did you mean 'training'?"),
        ("languages.source=no", 'languages.source=no: found false; quote it, "no", if text is meant'),
        ("seed=3", "seed=3: unknown key 'seed'; did you mean 'data.seed' or 'training.seed' or 'decoding.seed'?"),
        ("run_dir.x=1", None),
        (
            "data.train.0.source=x",
            "data.train.0.source=x: unknown key 'data.train.0'; "
            "'data.train' takes a list of items, each {source: …, target: …} or {tsv: …} or {target: …}",
        ),
        (
            "data.test.mine.tsv=x.tsv",
            "data.test.mine.tsv=x.tsv: unknown key 'data.test.mine.tsv'; a test set has a file of each side: "
            "cut -f 1 FILE.tsv > SOURCE, cut -f 2 FILE.tsv > TARGET",
        ),
        (
            "data.train[0].source=x",
            "data.train[0].source=x: unknown key 'data.train[0]'; items of a list are not set one by one: "
            "give the whole list, 'data.train=[…]'",
        ),
        (
            "training.seed=[1",
            "training.seed=[1: ends before its [ is closed; put quotes around all of it, 'training.seed=…', "
            "since the shell cuts at spaces",
        ),
        (
            "model={d_model:",
            "model={d_model:: ends before its { is closed; put quotes around all of it, 'model=…', "
            "since the shell cuts at spaces",
        ),
        (
            "data.train=[{source: *.fr.gz, target: a}]",
            "data.train=[{source: *.fr.gz, target: a}]:1: not valid YAML: text that begins with * needs quotes, "
            "'*.fr.gz'",
        ),
    ],
)
def test_a_wrong_override_is_told_by_its_own_text(override: str, line: str | None) -> None:
    line = line or f"{override}: unknown key 'run_dir.x'; 'run_dir' takes a path, or null"
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert str(error.value) == line


def test_a_long_override_is_cut_and_stays_on_one_line() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, ["training.seed='" + "a\n" * 100 + "'"])
    start, _, end = str(error.value).partition("…: found ")
    assert start == "training.seed='" + "a " * 22
    assert end.endswith("…, wants a whole number, at least 0")


def test_an_override_does_not_hide_that_a_section_of_the_file_is_none(tmp_path: Path) -> None:
    line = "x.yaml:1: training: found 5, wants keys and values"
    assert faults("training: 5", "training.seed=1", folder=tmp_path) == [line]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"# a comment\nname: caf\xe9\n")
    (tmp_path / "file").write_text("")
    wanted_lines = {
        "missing.yaml": "{}: no such file; wants a YAML file of settings",
        ".": "{}: found a folder, wants a YAML file of settings",
        "file/x.yaml": "{}: cannot be read: Not a directory",
        "latin.yaml": "{}:2: found byte 0xe9, wants UTF-8",
    }
    for name, line in wanted_lines.items():
        with pytest.raises(ConfigError) as error:
            load_config(tmp_path / name)
        assert str(error.value) == line.format(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1, 2]", "x.yaml:1: found [1, 2], wants keys and values"),
        ("# comment\nname", "x.yaml:2: found name, wants keys and values"),
        ("name: [a\n", "x.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("data:\n  root: *.gz\n", "x.yaml:2: not valid YAML: text that begins with * needs quotes, '*.gz'"),
        ("a: [**/b, c]\n", "x.yaml:1: not valid YAML: text that begins with * needs quotes, '**/b'"),
        (
            "a: {b: part-?.gz}\n",
            "x.yaml:1: not valid YAML: expected ',' or '}', but got '?'; text with ? in it needs quotes",
        ),
        (
            "a: [part-{1..9}.gz]\n",
            "x.yaml:1: not valid YAML: expected ',' or ']', but got '{'; text with { in it needs quotes",
        ),
        ("a: [b] {c}\n", "x.yaml:1: not valid YAML: expected <block end>, but found '{'"),
        ("a: *unknown\n", "x.yaml:1: not valid YAML: found undefined alias 'unknown'"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: not valid YAML: but found another document"),
        ("name: !!python/name:os.system a", None),
        ("[a]: 1", "x.yaml:1: a key must be a plain word"),
        ("name: a\0", "x.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ('name: "\\0"', "x.yaml:1: name: found character U+0000, which no text may have"),
        ('name: a\nrun_dir: "\\ud800"', "x.yaml:2: run_dir: found character U+D800, which no text may have"),
        (
            "run_dir: !!timestamp 2026-01-01",
            "x.yaml:1: run_dir: found !!timestamp '2026-01-01', wants plain text, a number, true, false or null",
        ),
        ("name: " + "[" * 250 + "]" * 250, "x.yaml:1: lists or sections are nested too deeply"),
    ],
)
def test_what_is_no_yaml_of_settings_is_told(text: str, line: str | None, tmp_path: Path) -> None:
    found = faults(text, folder=tmp_path)
    if line is None:
        assert found[0].startswith("x.yaml:1: not valid YAML: could not determine a constructor for the tag ")
    else:
        assert found == [line]


# Found by comparing the two parsers on a hundred thousand texts, such as these, that differ by a few characters.
@pytest.mark.parametrize(
    "text",
    [
        "a: b\tc",
        "a: [part-?.en]",
        "a: !",
        "a: |#",
        "a: >#",
        "---\n ",
        "\n\ufeff",
        "a: 1 # b?\u2028b: c\td",
        "a: {b: [c, d]}",
    ],
)
def test_text_is_read_alike_with_libyaml_and_without(text: str) -> None:
    def read(loader: type[Any]) -> object:
        try:
            return parsing._parsed(loader, text, "x.yaml")
        except ConfigError as error:
            return str(error)

    assert parsing._is_plain(text) <= (read(parsing._FastLoader) == read(parsing._Loader))
    with suppress(ConfigError):
        assert read_yaml(text, "x.yaml") == read(parsing._Loader)


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
def test_settings_are_parsed_by_libyaml(tiny_config: Config) -> None:
    assert parsing._is_plain(config_text(tiny_config))
    assert issubclass(parsing._FastLoader, yaml.CSafeLoader)


# Printing


def odd_config() -> Config:
    """A config with something odd in every place that has room for it."""
    return Config(
        name="no: #1",
        run_dir=Path("/tmp/ünï 'x' \"y\""),
        languages=LanguagesConfig(source="no", target="1e5"),
        data=DataConfig(
            root=Path("~"),
            train=(
                CorpusConfig(source=Path("a, b.fr"), target=Path("[c].en")),
                CorpusConfig(source=Path("{d}"), target=Path("- e"), weight=0.5, tag="<2:no>"),
                CorpusConfig(tsv=Path("#f"), columns=(3, 1), tag="#"),
            ),
            valid=(CorpusConfig(source=Path("#f"), target=Path("g: h")),),
            test={
                "2016": TestSetConfig(source=Path("null"), target=(Path("true"), Path("1.5"), Path("a\nb\x85c"))),
                "x: {y}, [z]": TestSetConfig(source=Path("*a"), target=(Path("&b"),)),
                "a\nb": TestSetConfig(source=Path("a\t"), target=(Path("c"),)),
                "": TestSetConfig(source=Path("?"), target=(Path("a" * 300),)),
                "wmt": TestSetConfig(sacrebleu="wmt14/full", tag="<2de>"),
            },
            max_length_ratio=None,
            source_script=("Latin",),
            target_script=("Han", "Hiragana"),
        ),
        training=TrainingConfig(adam_eps=1e-9, learning_rate=5e-324, max_minutes=1e22, clip_norm=0.1, patience=3),
    )


@pytest.mark.parametrize("config", [Config(), odd_config()], ids=["defaults", "odd"])
def test_the_printed_config_loads_back_to_the_same_config(config: Config) -> None:
    assert config_from_text(config_text(config), "printed") == config


def test_every_key_is_printed_below_its_meaning_choices_and_limits() -> None:
    lines = config_text(Config()).splitlines()
    for names in setting_names():
        schema = setting_schema(names)
        assert schema is not None
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{names[-1]}:"))
        comment = lines[at - 1].strip()
        assert comment.startswith("# ")
        del lines[: at + 1]
    text = config_text(Config())
    assert " One of adam, adamw, sgd, muon, schedule_free.\n  optimizer: adam\n" in text
    assert (
        "  # Batches of each device whose gradients make one update. A whole number, at least 1.\n  accumulate: 1\n"
        in text
    )
    assert "# How the model is trained, and how its checkpoints are kept and chosen.\ntraining:\n" in text


def test_a_setting_that_differs_is_printed_with_its_default() -> None:
    text = config_text(load_config(None, ["training.accumulate=5"]))
    comment = "  # Batches of each device whose gradients make one update. A whole number, at least 1. Default: 1.\n"
    assert f"{comment}  accumulate: 5\n" in text


def test_the_printed_examples_of_corpora_and_test_sets_are_yaml_that_loads() -> None:
    text = config_text(Config())
    examples = re.findall(r"((?:  # .*\n)+)  (\w+): (?:\[\]|\{\})\n", text)
    shown = {key: comment.partition("# Example:\n")[2].replace("  # ", "  ") for comment, key in examples}
    assert all(f"  {key}:\n    " in shown[key] for key in ("train", "valid", "test", "text"))
    data = "data:\n" + "".join(shown[key] for key in ("train", "valid", "test"))
    config = config_from_text(f"{data}tokenizer:\n{shown['text']}", "examples")
    corpora = config.data.train
    assert [corpus.weight for corpus in corpora] == [1, 0.5, 1, 1]
    assert (corpora[2].tsv, corpora[2].columns, corpora[3].tag) == (Path("subtitles.tsv"), (3, 1), "<2de>")
    assert len(config.data.valid) == 2
    assert len(config.data.test["two-references"].target) == 2
    assert len(config.tokenizer.text) == 2


def test_the_printed_config_explains_each_key_of_a_corpus_and_of_a_test_set_once() -> None:
    text = config_text(odd_config())
    for key in ("tsv", "columns", "weight", "sacrebleu"):
        assert text.count(f"  # - {key}: ") == 1
    assert "  # - columns: Columns of tsv: the source, the target. A list of 2 items, each a whole number, at\n" in text


def test_the_printed_comments_fit_a_screen() -> None:
    comments = [line for line in config_text(Config()).splitlines() if "#" in line]
    assert max(map(len, comments)) <= 100


def test_a_corpus_is_printed_without_what_nobody_said() -> None:
    text = config_text(odd_config())
    assert "    - {source: 'a, b.fr', target: '[c].en'}\n" in text
    assert "    - {tsv: '#f', columns: [3, 1], tag: '#'}\n" in text


def test_a_script_alone_is_a_list_of_one() -> None:
    config = config_from_text("data: {source_script: Latin, target_script: [Han, Hiragana]}", "x.yaml")
    assert (config.data.source_script, config.data.target_script) == (("Latin",), ("Han", "Hiragana"))


# What follows from other settings


@pytest.mark.parametrize(
    "model",
    [
        "{}",
        "{d_model: 64}",
        "{architecture: rnn}",
        "{architecture: mixed}",
        "{architecture: mixed, encoder: {d_model: 64}, decoder: {d_model: 32}}",
    ],
)
def test_embeddings_are_tied_in_the_decoder_alone_where_each_side_has_a_vocabulary(model: str) -> None:
    shared = config_from_text("{}", "x.yaml").model
    assert shared.tie_embeddings == "all"
    config = config_from_text(f"tokenizer: {{shared: false}}\nmodel: {model}", "x.yaml")
    assert config.model.tie_embeddings == "decoder"
    assert config_from_text(config_text(config), "printed") == config
    said = config_from_text(f"tokenizer: {{shared: false}}\nmodel: {model}", "x.yaml", ["model.tie_embeddings=none"])
    assert said.model.tie_embeddings == "none"


def test_tied_embeddings_that_follow_count_as_unsaid_and_settings_made_in_python_follow_too() -> None:
    config = Config(tokenizer=TokenizerConfig(shared=False))
    assert config.model == TransformerConfig(tie_embeddings="decoder")
    assert "tie_embeddings" not in config.model.model_fields_set  # so that training.start_from carries over its own


# The schema


def test_the_json_schema_knows_every_setting_and_refuses_others() -> None:
    schema: Any = json.loads(json.dumps(config_schema()))
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    for definition in schema["$defs"].values():
        assert definition["additionalProperties"] is False


def test_the_json_schema_takes_one_reference_as_well_as_a_list() -> None:
    schema = setting_schema(("data", "test", "a", "target"))
    assert schema is not None
    assert {choice["type"] for choice in schema["anyOf"]} == {"string", "array"}


def test_the_json_schema_tells_which_keys_of_a_file_go_together() -> None:
    schema: Any = config_schema()
    forms = {name: definition["oneOf"] for name, definition in schema["$defs"].items() if "oneOf" in definition}
    assert forms == {
        "CorpusConfig": [
            {"required": ["source", "target"]},
            {"required": ["tsv"]},
            {"required": ["target"], "not": {"required": ["source"]}},
        ],
        "TestSetConfig": [{"required": ["source", "target"]}, {"required": ["sacrebleu"]}],
    }


def test_what_is_wanted_can_be_said_of_every_setting() -> None:
    for names in setting_names():
        schema = setting_schema(names)
        assert schema is not None
        assert wanted(schema)


def test_every_setting_has_a_meaning_and_a_section_has_a_docstring() -> None:
    sections: list[type[Section]] = [Config]
    for section in sections:
        assert parsing.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{parsing.__name__}.{name}"
            parts = [field.annotation, *get_args(field.annotation)]
            inner = [kind for part in parts for kind in (part, *get_args(part))]  # kinds of a section have a tag each
            sections += [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
    assert {TrainingConfig, TransformerConfig, RecurrentConfig, MixedConfig, TestSetConfig, CorpusConfig} <= set(
        sections
    )


# Sections of several kinds


def test_the_architecture_says_of_which_kind_a_section_is_and_the_first_is_meant_without() -> None:
    assert type(config_from_text("model: {d_model: 64}", "x.yaml").model) is TransformerConfig
    assert config_from_text("model: {architecture: rnn, cell: gru}", "x.yaml").model == RecurrentConfig(cell="gru")
    mixed = config_from_text("model: {architecture: mixed, encoder: {num_heads: 4}, decoder:}", "x.yaml").model
    assert mixed == MixedConfig(encoder=TransformerConfig(num_heads=4), decoder=RecurrentConfig())
    reverse = "model: {architecture: mixed, encoder: {architecture: rnn}, decoder: {architecture: transformer}}"
    assert config_from_text(reverse, "x.yaml").model == MixedConfig(
        encoder=RecurrentConfig(), decoder=TransformerConfig()
    )


@pytest.mark.parametrize(
    ("overrides", "model"),
    [
        (["model.architecture=rnn", "model.cell=gru"], RecurrentConfig(cell="gru")),
        (["model.cell=gru", "model.architecture=rnn"], RecurrentConfig(cell="gru")),
        (["model={architecture: rnn, attention: none}"], RecurrentConfig(attention="none")),
        (
            ["model.encoder.num_heads=2", "model.decoder.cell=tanh", "model.architecture=mixed"],
            MixedConfig(encoder=TransformerConfig(num_heads=2), decoder=RecurrentConfig(cell="tanh")),
        ),
    ],
)
def test_an_override_reaches_into_a_section_of_any_kind(overrides: list[str], model: Section) -> None:
    assert load_config(None, overrides).model == model


RNN, MIXED = "model.architecture=rnn", "model.architecture=mixed"
KINDS = "transformer, rnn, mixed, cmlm"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: {architecture: cnn}", f"model.architecture: found cnn, wants one of {KINDS}"),
        ("model: {architecture: }", f"model.architecture: found null, wants one of {KINDS}"),
        ("model: {architecture: [rnn]}", f"model.architecture: found [rnn], wants one of {KINDS}"),
        ("model: 5", "model: found 5, wants keys and values"),
        (
            "model: {architecture: mixed, decoder: {architecture: mixed}}",
            "model.decoder.architecture: found mixed, wants one of rnn, transformer",
        ),
        ("model: {architecture: mixed, encoder: [5]}", "model.encoder: found [5], wants keys and values"),
        ("model: {architecture: rnn, cell: rnn}", "model.cell: found rnn, wants one of lstm, gru, tanh"),
        (
            "model: {architecture: mixed, decoder: {dropout: 1}}",
            "model.decoder.dropout: found 1, wants a number, at least 0, at most 0.999",
        ),
        ("model: {architecture: rnn, cel: gru}", "unknown key 'model.cel'; did you mean 'cell'?"),
        ("model: {architecture: rnn, num_head: 4}", "unknown key 'model.num_head'"),
        (
            "model: {architecture: rnn, num_heads: 4}",
            "unknown key 'model.num_heads'; only architecture transformer or cmlm has it",
        ),
        ("model: {cell: gru}", "unknown key 'model.cell'; only architecture rnn has it"),
        ("model: {encoder: {}}", "unknown key 'model.encoder'; only architecture mixed has it"),
        (
            "model: {architecture: mixed, d_model: 64}",
            "unknown key 'model.d_model'; did you mean 'model.encoder.d_model' or 'model.decoder.d_model'?",
        ),
        (
            "model: {architecture: mixed, decoder: {num_heads: 4}}",
            "unknown key 'model.decoder.num_heads'; only architecture transformer has it",
        ),
        (
            "model: {architecture: mixed, decoder: {d_modle: 4}}",
            "unknown key 'model.decoder.d_modle'; did you mean 'd_model'?",
        ),
        (
            "model: {encoder.d_model: 4}",
            "unknown key 'model.encoder.d_model'; write 'd_model' on a line of its own below 'encoder:'",
        ),
        (
            "model: {architecture: rnn, input_feeding: true, attention: none}",
            "model: input_feeding true wants an attention: additive, dot or general",
        ),
        (
            "model: {architecture: rnn, d_model: 15}",
            "model: d_model 15 is odd; it must be even where bidirectional is true",
        ),
        (
            "model: {architecture: mixed, encoder: {d_model: 64}}",
            "model: tie_embeddings all wants encoder.d_model and decoder.d_model alike, found 64 and 512",
        ),
        (
            "model: {architecture: mixed, encoder: {scale_embeddings: false}}",
            "model: tie_embeddings all wants encoder.scale_embeddings and decoder.scale_embeddings alike, "
            "found false and true",
        ),
        (
            "model: {architecture: mixed, encoder: {positions: learned, max_positions: 256}}",
            "model.encoder.max_positions 256 must be more than data.max_length 256",
        ),
    ],
)
def test_faults_in_a_section_of_several_kinds_are_told_as_elsewhere(text: str, line: str, tmp_path: Path) -> None:
    assert faults(text, folder=tmp_path) == [f"x.yaml:1: {line}"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.cel=gru", RNN], "model.cel=gru: unknown key 'model.cel'; did you mean 'cell'?"),
        (["model.cell=gru"], "model.cell=gru: unknown key 'model.cell'; only architecture rnn has it"),
        (
            ["model.encoder.num_layers=3"],
            "model.encoder.num_layers=3: unknown key 'model.encoder'; only architecture mixed has it",
        ),
        (["model.architecture=cnn"], f"model.architecture=cnn: found cnn, wants one of {KINDS}"),
        (
            [MIXED, "model.num_head=3"],
            "model.num_head=3: unknown key 'model.num_head'; did you mean 'model.encoder.num_heads'?",
        ),
        ([MIXED, "model.decoder.cell=x"], "model.decoder.cell=x: found x, wants one of lstm, gru, tanh"),
    ],
)
def test_faulty_overrides_of_a_section_of_several_kinds_are_told(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    assert str(error.value) == line


def test_settings_of_another_architecture_in_the_file_are_told_where_they_stand(tmp_path: Path) -> None:
    text = "model:\n  d_model: 64\n  num_heads: 4\n  encoder_layers: 1\n  d_ff: 9\n"
    assert faults(text, RNN, folder=tmp_path) == [
        "x.yaml:3: unknown key 'model.num_heads'; only architecture transformer or cmlm has it",
        "x.yaml:5: unknown key 'model.d_ff'; only architecture transformer or cmlm has it",
    ]


KINDS_OF_MODEL = [
    MaskedConfig(positions="rotary"),
    RecurrentConfig(cell="gru", attention="none", context="every_step"),
    MixedConfig(decoder=RecurrentConfig(bidirectional=False)),
    MixedConfig(encoder=RecurrentConfig(), decoder=TransformerConfig(num_heads=4), tie_embeddings="none"),
    MixedConfig(encoder=RecurrentConfig(cell="tanh"), decoder=RecurrentConfig()),
]


@pytest.mark.parametrize("model", KINDS_OF_MODEL)
def test_every_kind_of_model_is_printed_whole_and_loads_back(model: Section) -> None:
    config = Config(model=model)
    text = config_text(config)
    assert config_from_text(text, "printed") == config
    assert text.count(f"# Kind of model. One of {KINDS}. Default: transformer.\n  architecture: ") == 1
    for names in setting_names(config.model_dump(mode="json")):
        schema = setting_schema(names, config.model_dump(mode="json"))
        assert schema is not None
        assert wanted(schema)


def test_the_json_schema_lets_the_architecture_be_left_out() -> None:
    # With oneOf a section that fits several kinds would fit none.
    schema: Any = config_schema()
    mixed, model = schema["$defs"]["MixedConfig"]["properties"], schema["properties"]["model"]
    assert all("oneOf" not in kinds for kinds in (model, mixed["encoder"], mixed["decoder"]))
    assert [kind["$ref"].split("/")[-1] for kind in model["anyOf"]] == [
        "TransformerConfig",
        "RecurrentConfig",
        "MixedConfig",
        "MaskedConfig",
    ]


def test_settings_are_never_edited() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().training.seed = 5  # type: ignore[misc]


def test_settings_of_earlier_versions_are_dropped_if_they_mean_what_is_done_now():
    retired = {"embedding_skip": False, "residual_scales": False, "logit_softcap": None}
    text = json.dumps({"model": retired, "training": {"z_loss": 0}})
    assert config_from_text(text, "c.yaml") == config_from_text("", "c.yaml")
    halves = {"architecture": "mixed", "encoder": {"d_ff": 64, **retired}, "decoder": {"architecture": "rnn"}}
    found = config_from_text(json.dumps({"model": halves}), "c.yaml")
    assert isinstance(found.model, MixedConfig)
    assert found.model.encoder.d_ff == 64


@pytest.mark.parametrize(("section", "name", "value"), [("model", "logit_softcap", 15.0), ("training", "z_loss", 0.1)])
def test_settings_of_earlier_versions_with_another_value_are_unknown(section, name, value):
    with pytest.raises(ConfigError, match=f"c.yaml:.*: unknown key '{section}.{name}'"):
        config_from_text(json.dumps({section: {name: value}}), "c.yaml")
