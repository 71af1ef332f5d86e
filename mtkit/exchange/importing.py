"""Import of other libraries' models as bundles, and extension of a bundle's vocabulary."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit import __version__
from mtkit.bundle.bundle import DESCRIPTION, UNTRAINED, UNTRAINED_TAGS, open_bundle, save_bundle, save_scores
from mtkit.bundle.info import card_text
from mtkit.bundle.opening import open_and_tell
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, MtkitError, say, working
from mtkit.exchange.huggingface_config import CONFIG, FIRST_BYTE, TheirConfig, read_json
from mtkit.exchange.huggingface_models import read_m2m100, read_marian
from mtkit.exchange.native_marian import is_native_marian, read_native_marian
from mtkit.exchange.portable import MARKER, PortableModel, reordered
from mtkit.exchange.tokenizers import MarianVocabulary, read_marian_vocabulary
from mtkit.models.registry import empty_model, require_weights_of
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.tokenizer_training import extended
from mtkit.text.vocabulary import ModelType, SpecialIds, Specials, model_type_of
from mtkit.translation.canaries import make_canaries
from mtkit.translation.translator import load_bundle, translator_of

READERS: dict[str, Callable[[Path], PortableModel]] = {"marian": read_marian, "m2m_100": read_m2m100}

NUM_LINES, LONGEST_LINE = 64, 40  # canaries are chosen from 64 made-up lines of at most 40 tokens


def import_model(directory: Path, output: Path, languages: tuple[str, str] | None = None) -> None:
    """Makes a bundle from a MarianMTModel or M2M100 of Hugging Face transformers, or from Marian's own files.

    The model is read from `directory`, and the bundle is written to `output`. `languages` are the language codes of
    source and target; without them, the codes are taken from the checkpoint. Raises MtkitError if `output` exists and
    is no bundle, and CheckpointError if the checkpoint cannot be imported.
    """
    if output.exists() and not (output / DESCRIPTION).is_file():
        raise MtkitError(f"{output}: is there already and is no bundle; name a new folder")
    model, vocabulary, files, layout = _read(directory)
    model = _without_spare_rows(model, vocabulary)
    tokenizer = _tokenizer(directory, model, vocabulary)
    bans_unknown = layout in READERS and TheirConfig(directory).bans(tokenizer.specials.target.unknown)
    config = _config(model, vocabulary, tokenizer, languages, bans_unknown)
    sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    require_weights_of(empty_model(config.model, *sizes, tokenizer.specials), model.weights, str(directory))
    about = {
        "mtkit": __version__,
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
        "num_parameters": sum(weight.numel() for weight in model.weights.values()),
        "imported": _provenance(files, layout),
    }
    translator = translator_of(config, tokenizer, model.weights)
    with working(f"writing {output}"):
        canaries = make_canaries(translator, _made_up_lines(tokenizer))
        save_bundle(output, model.weights, config, tokenizer.save, about, canaries)
    bundle = open_bundle(output)
    save_scores(bundle, [], card_text(bundle, []))
    if layout in READERS and (ignored := TheirConfig(directory).ignored(tokenizer.specials.target.never_generated)):
        say(f"{directory}: not carried over, so translations may differ: {', '.join(ignored)}")
    say(f"{about['num_parameters']:,} parameters; {sizes[0]:,} source and {sizes[1]:,} target pieces")
    say(f"model: {output}")


def _without_spare_rows(model: PortableModel, found: MarianVocabulary) -> PortableModel:
    """Returns `model` without the rows of the embeddings that belong to no token of the tokenizer."""
    sides = (model.source, found.source), (model.target, found.target)
    spare = [len(rows.pieces) - len(named.pieces) for rows, named in sides]
    are_there = all(max(rows.special.all) < len(named.pieces) for rows, named in sides)
    if max(spare) <= 0 or not are_there:  # special ids outside the vocabulary are reported later
        return model
    say(f"{max(spare):,} rows of the embeddings belong to no token of the tokenizer; they are left out")
    source, target = (range(min(len(rows.pieces), len(named.pieces))) for rows, named in sides)
    return reordered(model, source, target)


def _read(directory: Path) -> tuple[PortableModel, MarianVocabulary, list[Path], str]:
    """Returns the model in `directory`, its vocabularies, the paths of its files, and the layout of these files.

    The layout is a key of READERS or, for Marian's own files, "native-marian".
    """
    if not (directory / CONFIG).exists() and is_native_marian(directory):
        native = read_native_marian(directory)
        return native.model, native.vocabulary, native.files, "native-marian"
    layout = read_json(directory / CONFIG).get("model_type")
    if not isinstance(layout, str) or layout not in READERS:
        raise CheckpointError(f"{directory / CONFIG}: model_type is {layout!r}; mtkit imports {' and '.join(READERS)}")
    model, vocabulary = READERS[layout](directory), read_marian_vocabulary(directory)
    return model, vocabulary, [path for path in directory.iterdir() if path.is_file()], layout


def _tokenizer(directory: Path, model: PortableModel, found: MarianVocabulary) -> Tokenizer:
    """Returns the tokenizer of an imported model.

    The special ids are those in the tokenizer's files, with one exception. On the target side, the ids of padding and
    of the end mark are those in config.json, as in Hugging Face transformers. Raises CheckpointError if a special id of
    the source or the target is larger than the last id of that side's vocabulary.
    """
    named, configured = found.target.special, model.target.special
    target = SpecialIds(configured.pad, named.unknown, _begin(named.begin, configured), configured.end)
    named = found.source.special
    source = SpecialIds(named.pad, named.unknown, _begin(named.begin, named), named.end)
    for side, special in (("source", source), ("target", target)):
        size = len(getattr(found, side).pieces)
        if max(special.all) >= size:
            raise CheckpointError(
                f"{directory}: a special id of the {side} is {max(special.all)}, and its vocabulary has {size:,} pieces"
            )
    own_symbols = _own_symbols(directory, found)
    return Tokenizer(
        found.source.sentencepiece,
        found.target.sentencepiece,
        _type(directory, found),
        found.shared,
        "model",
        "model",
        (*found.symbols, *(symbol for symbol in found.defined if symbol not in own_symbols)),
        (found.source.pieces, found.target.pieces),
        Specials(source, target),
        own_symbols,
    )


def _own_symbols(directory: Path, found: MarianVocabulary) -> list[str]:
    """Returns the user-defined pieces that are placeholders, that is, values of the setting tokenizer.symbols.

    Placeholders are known only if mtkit exported the model: then mtkit.json (MARKER) lists them. All other user-defined
    pieces may be tags.
    """
    noted = read_json(directory / MARKER).get("own_symbols") if (directory / MARKER).exists() else None
    return [symbol for symbol in found.defined if symbol in noted] if isinstance(noted, list) else []


def _begin(begin: int | None, special: SpecialIds) -> int | None:
    """Returns `begin`, the id of the begin mark; `None` if padding or the end mark has the same id."""
    return None if begin in (special.pad, special.end) else begin


def _type(directory: Path, found: MarianVocabulary) -> ModelType:
    try:
        return model_type_of(found.source.sentencepiece)
    except ValueError as error:
        raise CheckpointError(f"{directory / 'source.spm'}: not a SentencePiece model: {error}") from None


def _config(
    model: PortableModel,
    found: MarianVocabulary,
    tokenizer: Tokenizer,
    languages: tuple[str, str] | None,
    bans_unknown: bool,
) -> Config:
    """Returns the settings of the imported model, including those of its tokenizer and languages."""
    source, target = languages or found.languages
    settings: dict[str, Any] = model.config.model_dump(mode="json", exclude_unset=True)
    settings["languages"] = {"source": source or "source", "target": target or "target"}
    settings["tokenizer"] = {
        "type": model_type_of(found.source.sentencepiece),
        "vocab_size": max(tokenizer.source_vocab_size, tokenizer.target_vocab_size),
        "byte_fallback": FIRST_BYTE in found.target.pieces,
        "shared": found.shared,
        "source_normalization": "model",
        "target_normalization": "model",
    }
    if bans_unknown and tokenizer.target_shows_unknown:
        settings.setdefault("decoding", {})["unknown"] = "ban"
    return Config.model_validate_json(json.dumps(settings))


def _provenance(files: list[Path], layout: str) -> dict[str, Any]:
    """Returns {"layout": layout, "files": {file name: SHA-256 checksum}}; the file names are without folders."""
    sums = {}
    for path in sorted(files):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"layout": layout, "files": sums}


def _made_up_lines(tokenizer: Tokenizer) -> list[str]:
    """Returns NUM_LINES lines that consist of random source pieces; every call returns the same lines."""
    special = tokenizer.specials.source.all
    plain = [id_ for id_ in range(tokenizer.source_vocab_size) if id_ not in special]
    generator = random.Random(0)
    rows = [generator.choices(plain, k=generator.randint(1, LONGEST_LINE)) for _ in range(NUM_LINES)]
    return tokenizer.decode_source(rows)


# Extension of the vocabulary of a bundle.


def extend(path: Path, output: Path, pieces: Sequence[str], tags: Sequence[str]) -> None:
    """Adds pieces and tags to the vocabulary of the bundle at `path`, and writes the new bundle to `output`.

    The embeddings, the output layer and the output bias get a row for each new piece: the mean of the rows of the old
    pieces into which the old tokenizer splits the new piece. Until a training run starts from the new bundle, new
    pieces are never generated and are left out of the softmax, so translations and their scores do not change. Raises
    MtkitError if `output` exists and is no bundle, and ConfigError if a piece or tag cannot be added.
    """
    if output.exists() and not (output / DESCRIPTION).is_file():
        raise MtkitError(f"{output}: is there already and is no bundle; name a new folder")
    bundle = open_and_tell(path)
    old = load_bundle(bundle, ["device=cpu"])
    tokenizer = extended(old.tokenizer, pieces, tags)
    sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    wanted = empty_model(bundle.config.model, *sizes, tokenizer.specials)
    weights = {name: weight.float() for name, weight in bundle.weights().items()}
    for name, parameter in wanted.named_parameters():
        if parameter.shape != weights[name].shape:
            weights[name] = _longer(weights[name], _spellings(old.tokenizer, tokenizer, name.startswith("encoder.")))
    config = bundle.config.model_copy(update={"tokenizer": bundle.config.tokenizer.with_room_for(*sizes)})
    untrained = [*bundle.untrained, *range(old.tokenizer.target_vocab_size, sizes[1])]
    untrained_tags = [*bundle.untrained_tags, *tags]
    about: dict[str, Any] = {
        **{key: bundle.description[key] for key in ("training", "imported") if key in bundle.description},
        "mtkit": __version__,
        "source_vocab_size": sizes[0],
        "target_vocab_size": sizes[1],
        "num_parameters": sum(map(Tensor.numel, weights.values())),
        UNTRAINED: untrained,
        **({UNTRAINED_TAGS: untrained_tags} if untrained_tags else {}),
    }
    translator = translator_of(config, tokenizer, weights, untrained)
    canaries = make_canaries(translator, [canary.source for canary in bundle.canaries()])
    save_bundle(output, weights, config, tokenizer.save, about, canaries)
    new = open_bundle(output)
    save_scores(new, [], card_text(new, []))
    say(
        f"{len(pieces) + len(tags):,} new pieces: {sizes[0]:,} source and {sizes[1]:,} target ones now; they are said "
        f"once a training has started from {output}"
    )


def _spellings(old: Tokenizer, new: Tokenizer, of_source: bool) -> list[list[int]]:
    """Returns, for each piece that only the new tokenizer has, the ids that the old tokenizer encodes this piece as.

    If `of_source` is true, the source vocabularies of the tokenizers are compared, else their target vocabularies.
    """
    if of_source:
        ids = range(old.source_vocab_size, new.source_vocab_size)
        return old.encode_source(new.source_pieces(ids))
    ids = range(old.target_vocab_size, new.target_vocab_size)
    return old.encode_target(new.target_pieces(ids))


def _longer(table: Tensor, spellings: Sequence[Sequence[int]]) -> Tensor:
    """Returns `table` (V, …) with one new row for each list of ids in `spellings`.

    A new row is the mean of the old rows with the ids in the list, or of all old rows if the list is empty.
    """
    rows = [table[list(spelling)].mean(0) if spelling else table.mean(0) for spelling in spellings]
    return torch.cat([table, torch.stack(rows)])
