"""A pair of languages is read as it is meant, or refused."""

import pytest

from mtkit.commands.options import language_pair
from mtkit.errors import MtkitError


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("en-de", "en de"),
        ("en-zh-CN", "en zh-CN"),
        ("en-zh_CN", "en zh_CN"),
        ("zh-CN-en", "zh-CN en"),
        ("en-sr-Latn", "en sr-Latn"),
        ("sr-latn-en", "sr-latn en"),
        ("pt-BR-en", "pt-BR en"),
        ("en-pt-BR", "en pt-BR"),
        ("en-pt_br", "en pt_br"),
        ("en-US-de-AT", "en-US de-AT"),
        ("en-us-de-at", "en-us de-at"),
        ("zh-Hant-TW-zh-Hans-CN", "zh-Hant-TW zh-Hans-CN"),
        ("es-419-en", "es-419 en"),
        ("de-CH-1996-en", "de-CH-1996 en"),
        ("zho_Hans-eng_Latn", "zho_Hans eng_Latn"),
        ("source-digits", "source digits"),
    ],
)
def test_a_pair_may_have_codes_with_script_and_region(text: str, pair: str) -> None:
    assert language_pair(text) == tuple(pair.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("en-pt-br", "which may mean en to pt-br or en-pt to br; join the parts of a code by underscores: en-pt_br"),
        ("pt-br-en", "which may mean pt to br-en or pt-br to en; join the parts of a code by underscores: pt-br_en"),
        ("EN-ZH-CN", "which may mean EN to ZH-CN or EN-ZH to CN; join the parts of a code by underscores: EN-ZH_CN"),
        *(
            (text, "wants the codes of source and target, such as en-de or en-zh-CN")
            for text in ("en", "en-", "-de", "-", "en--de", "en-de-", "a-b-c", "en-zh-CN-fr-CA", "en-de fr-x")
        ),
    ],
)
def test_a_pair_that_is_none_or_unclear_is_refused(text: str, told: str) -> None:
    with pytest.raises(MtkitError) as caught:
        language_pair(text)
    assert str(caught.value) == f"--languages: found {text}, {told}"
