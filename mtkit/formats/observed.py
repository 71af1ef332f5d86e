"""What another library makes of an exported model: the proof of an export, where that library is installed."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Observed:
    """Of some sentences, what the library did with them; tokens are told as pieces, without marks."""

    library: str  # its name and version
    translations: list[list[str]]  # greedily
    log_probs: list[list[float]]  # of each token of the given translations, and of the end mark


@dataclass(frozen=True)
class Texts:
    """How a library's tokenizer reads lines and writes translations, with the exported files."""

    encode: Callable[[Sequence[str]], list[list[str]]]  # pieces of each line, the end mark left out
    decode: Callable[[Sequence[Sequence[str]]], list[str]]  # of each row of pieces


def most_tokens(source: Sequence[str]) -> int:
    """How long a translation may get: what decoding allows unless told otherwise."""
    return 2 * len(source) + 20


@torch.inference_mode()
def observe_with_transformers(
    directory: Path, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], silent: Sequence[str]
) -> Observed | None:
    """What Hugging Face transformers makes of a checkpoint; None where it is not installed.

    sources are translated without what is silent; targets are translations whose log-probabilities are asked for. The
    checkpoint's generation_config.json decides what else a translation may not hold.
    """
    transformers = _transformers()
    if transformers is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            directory, local_files_only=True, dtype=torch.float32
        ).eval()
        ours, theirs = _vocabularies(directory)
        config = model.config
        translations, log_probs = [], []
        names = {id_: piece for piece, id_ in theirs.items()}
        marks = {config.pad_token_id, config.eos_token_id, config.decoder_start_token_id}
        for source, target in zip(sources, targets, strict=True):
            ids = torch.tensor([[*(ours[piece] for piece in source), config.eos_token_id]])
            said = model.generate(
                ids,
                num_beams=1,
                do_sample=False,
                max_length=most_tokens(source) + 2,  # the marks counted
                bad_words_ids=[[theirs[piece]] for piece in silent],
                forced_eos_token_id=config.eos_token_id,
            )
            translations.append([names[id_] for id_ in said[0].tolist() if id_ not in marks])
            labels = [*(theirs[piece] for piece in target), config.eos_token_id]
            read = torch.tensor([[config.decoder_start_token_id, *labels[:-1]]])
            logits = model(input_ids=ids, decoder_input_ids=read).logits[0].log_softmax(-1)
            log_probs.append(logits[range(len(labels)), labels].tolist())
    return Observed(f"transformers {transformers.__version__}", translations, log_probs)


def texts_of_transformers(directory: Path) -> Texts | None:
    """The tokenizer that AutoTokenizer makes of a checkpoint; None where transformers is not installed."""
    transformers = _transformers()
    if transformers is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ours, theirs = _vocabularies(directory)
    names, end = {id_: piece for piece, id_ in ours.items()}, tokenizer.eos_token_id

    def encode(lines: Sequence[str]) -> list[list[str]]:
        rows = [tokenizer(line).input_ids for line in lines]
        # A row that does not end with the mark gets one more, so that it differs from what is wanted.
        rows = [row[:-1] if row[-1:] == [end] else [*row, end] for row in rows]
        return [[names[id_] for id_ in row] for row in rows]

    def decode(rows: Sequence[Sequence[str]]) -> list[str]:
        return [tokenizer.decode([*(theirs[piece] for piece in row), end], skip_special_tokens=True) for row in rows]

    return Texts(encode, decode)


def _transformers() -> Any:
    """The library, which says nothing of its own accord; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of a library at import are not ours to mend
            import transformers
    except ImportError:
        return None
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def _vocabularies(directory: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Pieces to ids, of both sides."""
    ours = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    apart = directory / "target_vocab.json"
    return ours, json.loads(apart.read_text(encoding="utf-8")) if apart.exists() else ours
