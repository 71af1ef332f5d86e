"""The recipes: each loads, and the models of "Attention is all you need" have the sizes that the paper gives."""

from pathlib import Path

import pytest

from mtkit.config.load import load_config
from mtkit.models.registry import empty_model

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_like_its_file_and_says_how_it_is_called(path):
    assert load_config(path).name == path.stem
    text = path.read_text(encoding="utf-8")
    assert path.stem == "demo" or f"mtkit run configs/{path.name} data.root=FOLDER" in text


@pytest.mark.parametrize(("name", "millions"), [("wmt14-en-de-base", 65), ("wmt14-en-de-big", 213)])
def test_the_models_of_the_paper_have_as_many_parameters_as_it_says(name, millions):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    vocab_size = config.tokenizer.vocab_size
    model = empty_model(config.model, vocab_size, vocab_size)
    # Vaswani et al. 2017, table 3. The paper's count of its vocabulary, "about 37000", leaves as much open.
    assert model.num_parameters / 1e6 == pytest.approx(millions, rel=0.035)
