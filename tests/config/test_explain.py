"""Settings are compared and explained: each by its name, all of them, and with both values."""

from typing import get_args

import pytest

from mtkit.config.data_and_model_settings import AnyModelConfig
from mtkit.config.load import ARCHITECTURES, REASONS, differences, explanation, load_config, settings_by_name
from mtkit.config.section import write_yaml
from mtkit.config.settings import setting_names, setting_schema
from mtkit.errors import ConfigError


@pytest.fixture(autouse=True)
def without_recipes(tmp_path, monkeypatch):
    """Recipes are looked for in an empty folder, unless a test adds some."""
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)


def test_settings_differ_in_what_was_overridden_and_in_nothing_else():
    changes = {"model.d_model": "64", "training.max_steps": "7", "data.train": "[{source: a, target: b}]"}
    changed = load_config(None, [f"{name}={value}" for name, value in changes.items()])
    default = load_config(None)
    found = differences(default, changed)
    assert set(found) == set(changes)
    assert found["model.d_model"] == ("512", "64")
    assert differences(changed, default) == {name: (b, a) for name, (a, b) in found.items()}
    assert differences(changed, changed) == {}
    assert differences(default, load_config(None, ["model.architecture=rnn"]))["model.num_heads"] == ("8", "-")


def test_every_architecture_is_known():
    assert set(ARCHITECTURES) == {
        get_args(kind.model_fields["architecture"].annotation)[0] for kind in get_args(AnyModelConfig)
    }
    assert "Architectures that have it: transformer, rnn, cmlm." in explanation("model.dropout")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_setting_and_section_is_explained_with_its_default(architecture):
    names = [".".join(keys) for keys in setting_names({"model": {"architecture": architecture}})]
    values = settings_by_name(load_config(None, [f"model.architecture={architecture}"]))
    assert set(values) <= set(names)
    for name in names:
        text = explanation(name)
        assert text.startswith(name)
        if name in values and name not in ("model.architecture", "name"):
            assert write_yaml(values[name])[:20] in text.partition("Default: ")[2]
    assert set(REASONS) <= set(names) or architecture != "transformer"


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("decoding", "transformer"),
        ("model", "transformer"),
        ("model.encoder", "mixed"),
        ("model.decoder", "mixed"),
    ],
)
def test_a_section_is_explained_with_the_beginning_of_each_description(name, architecture):
    data = {"model": {"architecture": architecture}}
    section = setting_schema(name.split("."), data)
    rows = dict(line.split(": ", 1) for line in explanation(name).splitlines()[2:])
    assert list(rows) == [f"{name}.{key}" for key in section["properties"]]
    for setting, beginning in rows.items():
        assert beginning
        assert beginning.count("(") == beginning.count(")")
        assert setting_schema(setting.split("."), data)["description"].startswith(beginning)


def test_the_last_part_of_a_name_is_enough_and_what_is_unclear_is_told(tmp_path):
    (tmp_path / "configs" / "mine.yaml").write_text("model: {d_model: 48}")
    (tmp_path / "configs" / "broken.yaml").write_text("model: {d_model: none}")
    assert "48: mine" in explanation("model.d_model")
    assert explanation("max_steps") == explanation("training.max_steps")
    with pytest.raises(
        ConfigError, match=r"seed, which several settings have; say data.seed or training.seed or decoding.seed"
    ):
        explanation("seed")
    with pytest.raises(ConfigError, match=r"no setting; did you mean .*max_steps"):
        explanation("max_step")
    assert "Here: 9" in explanation("max_steps", load_config(None, ["training.max_steps=9"]))
