"""A bundle in the files of another library, and the proof that it says the same there."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtkit import __version__
from mtkit.agreement import Observe, compare, lines_to_compare
from mtkit.config.decoding_settings import DecodingConfig
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, MtkitError
from mtkit.files import replaced_directory
from mtkit.formats.bundle import Bundle
from mtkit.formats.ctranslate2 import QUANTIZATIONS, check_ctranslate2, observe_with_ctranslate2, write_ctranslate2
from mtkit.formats.exported_card import CARDS
from mtkit.formats.huggingface_config import not_carried
from mtkit.formats.huggingface_tokenizer import write_m2m100_tokenizer, write_marian_tokenizer
from mtkit.formats.m2m100 import check_m2m100, in_m2m100_order, write_m2m100_weights
from mtkit.formats.marian import check_marian, in_marian_order, write_marian_weights
from mtkit.formats.observed import Observed, Texts, observe_with_transformers, texts_of_transformers
from mtkit.formats.portable import MARKER, PortableModel, Vocabulary
from mtkit.formats.tensors import not_finite
from mtkit.messages import say
from mtkit.opening import open_and_tell
from mtkit.progress import working
from mtkit.text.tokenizer import open_sentencepiece
from mtkit.translator import Translator, load_bundle


@dataclass(frozen=True)
class Format:
    """Files of another library."""

    check: Callable[[Config], None]  # raises what the format cannot express, before any work
    write: Callable[[PortableModel, Path, str | None], None]
    texts: Callable[[Path, PortableModel], Texts | None]  # the tokenizer that its users have; None where it is not here
    observe: Observe
    extra: str  # what is installed to have that library, mtkit[extra]
    quantizations: tuple[str, ...] = ()


def _write_marian(model: PortableModel, directory: Path, _: str | None) -> None:
    model = in_marian_order(model)
    write_marian_weights(model, directory)
    write_marian_tokenizer(model, directory)


def _write_m2m100(model: PortableModel, directory: Path, _: str | None) -> None:
    model = in_m2m100_order(model)
    write_m2m100_weights(model, directory)
    write_m2m100_tokenizer(model, directory)


def _texts_of_ctranslate2(directory: Path, model: PortableModel) -> Texts:
    """SentencePiece's models beside the model, used as the card says."""
    source, target = (open_sentencepiece(directory / name) for name in ("source.spm", "target.spm"))
    known, unknown = {*model.source.pieces}, model.source.pieces[model.source.special.unknown]
    tags = model.loose_tags

    def pieces(line: str) -> list[str]:
        first, _, rest = line.partition(" ")
        found: list[str] = [first, *pieces(rest)] if first in tags else source.encode(line, out_type=str)
        return [piece if piece in known else unknown for piece in found]

    return Texts(
        lambda lines: [pieces(line) for line in lines], lambda rows: target.decode([list(row) for row in rows])
    )


def _texts_of_transformers(directory: Path, _: PortableModel) -> Texts | None:
    return texts_of_transformers(directory)


def _observe_with_transformers(
    directory: Path,
    sources: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    silent: Sequence[str],
    _: DecodingConfig,  # which is in generation_config.json
) -> Observed | None:
    return observe_with_transformers(directory, sources, targets, silent)


FORMATS = {
    "ctranslate2": Format(
        check_ctranslate2,
        write_ctranslate2,
        _texts_of_ctranslate2,
        observe_with_ctranslate2,
        "ctranslate2",
        tuple(QUANTIZATIONS),
    ),
    "marian": Format(check_marian, _write_marian, _texts_of_transformers, _observe_with_transformers, "huggingface"),
    "m2m100": Format(check_m2m100, _write_m2m100, _texts_of_transformers, _observe_with_transformers, "huggingface"),
}


def export(path: Path, to: str, directory: Path, quantization: str | None = None) -> None:
    """Write the bundle at a path in that format, open the files with their library, and tell how far it agrees."""
    format_ = FORMATS[to]
    if quantization is not None and quantization not in format_.quantizations:
        raise MtkitError(_no_quantization(to, quantization))
    bundle = open_and_tell(path)
    format_.check(bundle.config)
    if bundle.config.tokenizer.type == "word":
        raise CheckpointError(
            f"{path}: tokenizer.type is word; the libraries make one unknown of several in a row, and export wants "
            "bpe, unigram or char"
        )
    if bundle.untrained:
        raise CheckpointError(
            f"{path}: {len(bundle.untrained):,} pieces were added that no training has seen; train from it first"
        )
    _require_free(directory)
    if fault := not_finite(bundle.weights()):
        raise CheckpointError(f"{path}: {fault}; train it again, or take an earlier checkpoint")
    translator = load_bundle(bundle, ["device=cpu"])
    model = portable(bundle, translator)
    with working(f"writing {to} files to {directory}"), replaced_directory(directory) as new:
        format_.write(model, new, quantization)
        (new / "README.md").write_text(CARDS[to](model), encoding="utf-8")
        _write_marker(new / MARKER, to, bundle, quantization, translator.tokenizer.own_symbols)
        for path in new.glob("*.safetensors"):
            shutil.copymode(new / MARKER, path)  # which safetensors lets nobody else read
    say(f"{to}: {directory}")
    if lost := not_carried(bundle.config, to):
        say(f"{to}: has no place for {', '.join(lost)}; translations there are searched without")
    for line in _comparison(format_, bundle, translator, model, directory):
        say(line)


def portable(bundle: Bundle, translator: Translator) -> PortableModel:
    """The bundle as other formats write it; the translator is of the same bundle."""
    tokenizer = translator.tokenizer
    source = Vocabulary(
        tokenizer.source_pieces(range(tokenizer.source_vocab_size)),
        tokenizer.specials.source,
        tokenizer.source_sentencepiece(),
        tokenizer.source_scores(),
    )
    target = Vocabulary(
        tokenizer.target_pieces(range(tokenizer.target_vocab_size)),
        tokenizer.specials.target,
        tokenizer.target_sentencepiece(),
        tokenizer.target_scores(),
    )
    weights = {name: weight.float() for name, weight in bundle.weights().items()}
    return PortableModel(bundle.config, weights, source, target, tokenizer.symbols)


def _no_quantization(to: str, quantization: str) -> str:
    if not FORMATS[to].quantizations:
        return f"--quantization goes with --to ctranslate2; {to} has its weights as they are"
    return f"--quantization: found {quantization}, wants one of {', '.join(FORMATS[to].quantizations)}"


def _require_free(directory: Path) -> None:
    """Nothing that somebody else put there is lost."""
    if directory.is_file():
        raise MtkitError(f"{directory}: is a file; wants a folder for the exported model")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MARKER).is_file():
        raise MtkitError(f"{directory}: holds files that no export wrote; name an empty folder or a new one")


def _write_marker(path: Path, to: str, bundle: Bundle, quantization: str | None, own_symbols: Sequence[str]) -> None:
    config = bundle.config
    content = {
        "format": to,
        "mtkit": __version__,
        "name": config.name,
        "languages": config.languages.model_dump(mode="json"),
        "quantization": quantization,
        "decoding": config.decoding.model_dump(mode="json"),
        **({"own_symbols": list(own_symbols)} if own_symbols else {}),
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _comparison(
    format_: Format, bundle: Bundle, translator: Translator, model: PortableModel, directory: Path
) -> Iterator[str]:
    """What comes of translating the bundle's canaries here and there, from text to text."""
    lines = lines_to_compare(translator, [canary.source for canary in bundle.canaries()])
    if not lines:
        yield "the model carries no canaries, so nothing was compared"
        return
    texts = format_.texts(directory, model)
    agreement = None
    if texts is not None:
        with working(f"comparing the translations of {len(lines):,} lines with those of the library"):
            agreement = compare(translator, model, lines, texts, format_.observe, directory)
    if agreement is None:
        yield f"nothing was compared, since the library is not here: pip install 'mtkit[{format_.extra}]'"
    else:
        yield from agreement.told()
