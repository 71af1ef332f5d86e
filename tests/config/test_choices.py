"""What the settings offer is what there is: each list of choices agrees with the table that does them."""

from collections.abc import Collection
from typing import get_args

import pytest

from mtkit.commands.models import FORMATS as OFFERED_FORMATS
from mtkit.config.data_and_model_settings import AnyModelConfig, RecurrentConfig, TransformerConfig
from mtkit.config.section import Section
from mtkit.config.training_settings import DecodingConfig, TrainingConfig
from mtkit.exchange.formats import FORMATS
from mtkit.models.layers import ACTIVATIONS, EXPONENTS, GATES, LAYOUTS, POSITIONS
from mtkit.models.recurrent import ATTENTION_SCORES, CELLS
from mtkit.models.registry import ARCHITECTURES, DTYPES
from mtkit.models.transformer import NORMS, RESIDUAL_FACTORS
from mtkit.text.vocabulary import START_TOKENS
from mtkit.training.optimizers import OPTIMIZERS, SCHEDULES
from mtkit.training.update import OBJECTIVES
from mtkit.translation.scores import METRICS, UTILITIES
from mtkit.translation.search import LENGTH_PENALTIES, STOPPING


@pytest.mark.parametrize(
    ("section", "setting", "table"),
    [
        (TransformerConfig, "norm", NORMS),
        (TransformerConfig, "activation", ACTIVATIONS | GATES),
        (TransformerConfig, "positions", POSITIONS),
        (TransformerConfig, "sinusoid_layout", LAYOUTS),
        (TransformerConfig, "sinusoid_exponent", EXPONENTS),
        (TransformerConfig, "residual_init", RESIDUAL_FACTORS),
        (TransformerConfig, "start_token", START_TOKENS),
        (RecurrentConfig, "cell", CELLS),
        (RecurrentConfig, "attention", {"none", *ATTENTION_SCORES}),
        (RecurrentConfig, "start_token", START_TOKENS),
        (TrainingConfig, "optimizer", OPTIMIZERS),
        (TrainingConfig, "schedule", SCHEDULES),
        (TrainingConfig, "consistency", OBJECTIVES),
        (TrainingConfig, "precision", {"auto", *DTYPES} - {"fp64"}),
        (TrainingConfig, "select_by", {"loss", *METRICS} - {"chrf++", "ter"}),
        (DecodingConfig, "length_penalty_form", LENGTH_PENALTIES),
        (DecodingConfig, "stopping", STOPPING),
        (DecodingConfig, "mbr_utility", UTILITIES),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_choice_on_offer_exists(section: type[Section], setting: str, table: Collection[str]) -> None:
    assert set(get_args(section.model_fields[setting].annotation)) == set(table)


def test_every_architecture_on_offer_exists() -> None:
    offered = [get_args(kind.model_fields["architecture"].annotation) for kind in get_args(AnyModelConfig)]
    assert {name for names in offered for name in names} == set(ARCHITECTURES)


def test_every_export_format_on_offer_exists() -> None:
    assert tuple(FORMATS) == OFFERED_FORMATS
