"""BLEU with the tokenizer that a language needs, and text that its tokenizer cannot cut into words."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path

from portalocker.exceptions import LockException  # sacreBLEU's way of letting one process download at a time
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR, download_file

from mtkit.errors import MtkitError
from mtkit.messages import say

DEFAULT_TOKENIZER = "13a"

# The languages that have a tokenizer of their own, by the code of two or three letters. Chinese languages share the
# characters that the tokenizer zh separates.
_TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "lzh"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor"), "ko-mecab"),
}

_EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}  # of mtkit, which install what the tokenizer needs

# The same model and signature, but a warning before it.
_SAME = {"spm": "flores101"}


def tokenizer_of(language: str) -> str:
    """SacreBLEU's tokenizer for a language, whose code may have a script and a region: zh, zh-CN, zho_Hans."""
    return _TOKENIZERS.get(re.split("[-_]", language.lower())[0], DEFAULT_TOKENIZER)


def require_tokenizer_name(name: str) -> None:
    """An MtkitError if sacreBLEU has no tokenizer of that name."""
    if name not in BLEU.TOKENIZERS:
        near = get_close_matches(name, BLEU.TOKENIZERS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise MtkitError(f"--tokenize: found {name}{meant}, wants one of {', '.join(BLEU.TOKENIZERS)}")


def bleu(
    language: str,
    tokenizer: str | None = None,
    lowercase: bool = False,
    effective_order: bool = False,
    instead: str = "",
) -> BLEU:
    """BLEU with the named tokenizer, or else the one for the language.

    An MtkitError if the tokenizer needs something that is not installed and cannot be downloaded; instead is what else
    the user may do then.
    """
    name = tokenizer or tokenizer_of(language)
    name = _SAME.get(name, name)
    or_else = f", or {instead}" if instead else ""
    with _model_of(name, or_else):
        try:
            # looks_processed warns instead of force.
            return BLEU(lowercase=lowercase, tokenize=name, force=True, effective_order=effective_order)
        except RuntimeError as error:
            if name not in _EXTRAS:
                raise
            of_language = f" of '{language}'" if tokenizer is None else ""
            raise MtkitError(
                f"BLEU{of_language} needs the tokenizer {name}, which is not installed; install it with: "
                f"pip install 'mtkit[{_EXTRAS[name]}]'{or_else}"
            ) from error


@contextmanager
def _model_of(tokenizer: str, or_else: str) -> Iterator[None]:
    """Downloads the SentencePiece model of a tokenizer that has one, and tells in one line what goes wrong with it."""
    if tokenizer not in SPM_MODELS:
        yield
        return
    url = SPM_MODELS[tokenizer]["url"]
    path = Path(SACREBLEU_DIR, "models", url.rpartition("/")[2])
    if not path.exists():
        say(f"downloading the model of BLEU's tokenizer {tokenizer} from {url}")
        try:
            with _silent():
                download_file(url, str(path))
        except (OSError, HTTPException, LockException, SystemExit) as error:
            raise MtkitError(
                f"BLEU's tokenizer {tokenizer} needs a model that cannot be downloaded from {url} ({error}); "
                f"save it as {path}{or_else}"
            ) from None
    try:
        yield
    except (OSError, RuntimeError):
        raise MtkitError(
            f"BLEU's tokenizer {tokenizer} cannot read its model {path}; delete it to download it again{or_else}"
        ) from None


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps sacreBLEU's log off stderr."""
    logger = logging.getLogger("sacrebleu")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


# Characters of scripts that put no spaces between words.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_SCRIPTS = {
    "Chinese": _HAN,
    "Japanese": _KANA,
    "Thai": "\u0e00-\u0e7f",
    "Lao": "\u0e80-\u0eff",
    "Khmer": "\u1780-\u17ff",
    "Burmese": "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",
    "Tibetan": "\u0f00-\u0fff",
    "Tai": "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf",
    "Javanese": "\ua980-\ua9df",
    "Balinese": "\u1b00-\u1b7f",
}
_LANGUAGE_OF = {"Chinese": "zh", "Japanese": "ja"}

# The characters that a tokenizer separates or cuts into words; some do so with any script.
_SEPARATED = {"zh": _HAN, "ja-mecab": _HAN + _KANA}
_ANY_SCRIPT = {"char", *SPM_MODELS}

_LARGE_SHARE = 0.25  # of the letters
# Segmented text has a space after every few characters; where spaces part phrases, there are fewer.
_SPACED_SHARE = 0.1
_KANA_SHARE = 0.1  # Japanese mixes kana with Chinese characters
_MOST_LINES = 2_000


@dataclass(frozen=True)
class Unspaced:
    """Text without spaces between words, whose phrases a tokenizer takes for words."""

    script: str
    language: str | None  # code of the language that has a tokenizer of its own

    def advice(self, otherwise: str) -> str:
        """What to do: name the language if that helps, or else what the caller offers."""
        if self.language is None:
            return f"sacreBLEU has no tokenizer of its own for it: {otherwise}"
        return (
            f"name the language, such as {self.language} (--target-language or --languages of mtkit evaluate, "
            f"languages.target in the settings), or {otherwise}"
        )


def unspaced(lines: Sequence[str], tokenizer: str) -> Unspaced | None:
    """What text it is if it has no spaces between words and the tokenizer needs them."""
    if tokenizer in _ANY_SCRIPT:
        return None
    separated = _SEPARATED.get(tokenizer, "")
    scripts = {script: chars for script, chars in _SCRIPTS.items() if chars not in separated}
    text = "\n".join(lines[:_MOST_LINES])
    missed = "".join(scripts.values())
    counts = {script: len(re.findall(f"[{chars}]", text)) for script, chars in scripts.items()}
    total = sum(counts.values())
    if not total or total < _LARGE_SHARE * len(re.findall(rf"[{missed}]|[^\W\d_]", text)):
        return None
    num_joined = len(re.findall(f"[{missed}](?=[{missed}])", text))
    num_spaced = len(re.findall(rf"[{missed}][^\S\n]+(?=[{missed}])", text))
    if num_spaced >= _SPACED_SHARE * (num_spaced + num_joined):
        return None
    is_japanese = counts.get("Japanese", 0) >= _KANA_SHARE * total
    script = "Japanese" if is_japanese else max(counts, key=lambda name: counts[name])
    return Unspaced(script, _LANGUAGE_OF.get(script))
