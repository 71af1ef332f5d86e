"""Measures are taken of sources with the tag of their test set, and mean what they mean elsewhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtkit.bundle.bundle import open_bundle
from mtkit.config.data_and_model_settings import TestSetConfig as SetConfig  # pytest would collect the name Test…
from mtkit.exchange.formats import extend
from mtkit.experiment.measures import GROUPS, MEASURES, Subject, record_name, values_of
from mtkit.translation.alignments import Gold, alignment_scores, diagonal, pharaoh, shifted
from tests.conftest import CorpusFiles, write_lines

TAG = "<2xx>"


@pytest.fixture(scope="module")
def subject_of(
    tiny_run: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str | None, bool], Subject]:
    """A function that returns a model with the tag TAG, and a test set whose last source is a single token.

    It takes the tag of the test set, and whether the lines of its source begin with TAG.
    """
    run = tmp_path_factory.mktemp("run")
    extend(tiny_run, run / "model", [], [TAG])
    config = open_bundle(run / "model").config
    # Limits at which shuffles may leave a translation as it is, and at which one more source token may matter.
    decoding = config.decoding.model_copy(update={"max_length_ratio": 0.5, "max_length_extra": 0})
    sources, targets = corpus_files.lines("test")
    sources, targets = [*sources, "four"], [*targets, "4"]
    links = [diagonal(len(target.split()), len(target.split())) for target in targets]

    def make(tag: str | None, is_inside: bool) -> Subject:
        source, target, gold = (run / f"{is_inside}.{end}" for end in ("src", "tgt", "align"))
        write_lines(source, [f"{TAG} {line}" if is_inside else line for line in sources])
        write_lines(target, targets)
        write_lines(gold, [pharaoh(shifted(each, source=int(is_inside))) for each in links])
        data = config.data.model_copy(update={"test": {"toy": SetConfig(source=source, target=(target,), tag=tag)}})
        return Subject(config.model_copy(update={"data": data, "decoding": decoding}), run, lambda: None)

    return make


@pytest.mark.parametrize("group", ["translations", "shuffled", "alignments"])
def test_the_tag_of_the_test_set_stands_before_each_source(
    group: str, subject_of: Callable[[str | None, bool], Subject]
) -> None:
    plain, tagged, inside = subject_of(None, False), subject_of(TAG, False), subject_of(None, True)
    found, wanted, without = (GROUPS[group](subject)["sets"]["all"] for subject in (tagged, inside, plain))
    assert found == wanted != without
    assert record_name(group, tagged.config) != record_name(group, plain.config)
    if group == "shuffled":
        assert found[-1] == without[-1] == [0, 0]  # a single token besides the tag, which stays first


def test_the_error_rate_of_no_links_at_all_is_0_as_it_is_in_alignment_scores() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])  # the columns of the group alignments
    measure = MEASURES["alignment_error"]
    assert not values_of(measure, rows[:2]).any()
    assert values_of(measure, rows)[0] == 25
    assert alignment_scores([()], [Gold(frozenset(), frozenset())]).error_rate == 0
