"""Models as Marian itself writes them (Junczys-Dowmunt et al. 2018), and OPUS-MT's archives hold them: .npz and .yml.

The options of a model lie in its .npz as text, under a name of their own. Nothing is unpickled, no code is run.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtkit.config.yaml_text import read_yaml
from mtkit.errors import CheckpointError
from mtkit.formats.huggingface_tokenizer import MarianVocabulary
from mtkit.formats.native_options import MarianOptions, search_of, settings_of
from mtkit.formats.native_vocabulary import read_vocabularies
from mtkit.formats.native_weights import our_weights
from mtkit.formats.portable import PortableModel, Vocabulary
from mtkit.messages import say
from mtkit.model_proto import pieces_of

OPTIONS, DECODER, OPTIMIZER = "special:model.yml", "decoder.yml", ".optimizer.npz"
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class NativeMarian:
    """A model that was read, its vocabularies, and the files that it was read from."""

    model: PortableModel
    vocabulary: MarianVocabulary
    files: list[Path]


def is_native_marian(path: Path) -> bool:
    """Whether it is a folder that holds an .npz or a decoder.yml, or one of these files itself."""
    if path.is_dir():
        return any(path.glob("*.npz")) or any(path.glob(f"*{DECODER}"))
    return path.suffix == ".npz" or (path.suffix == ".yml" and path.is_file())


def read_native_marian(path: Path) -> NativeMarian:
    """The model of a folder, of a decoder.yml in it, or of an .npz in it; what cannot be read is a CheckpointError."""
    found = _Setup.find(path)
    options, weights = _read_npz(found.npz)
    source, target, files = read_vocabularies(found.directory, found.vocabularies, options.vocab_sizes)
    decoding = search_of(found.decoder, found.settings_file[0] if found.settings_file else None)
    name = found.directory.resolve().name or "imported"
    config = settings_of(options, name, source.pieces == target.pieces, decoding)
    if config.model.tie_embeddings == "all" and source.pieces != target.pieces:
        raise CheckpointError(
            f"{found.npz}: both sides share one matrix, and the vocabularies {' and '.join(p.name for p in files[:2])} "
            "differ; name the one that the model was trained with"
        )
    ours = our_weights(options, config, weights)
    directory = found.directory
    if (directory / "preprocess.sh").exists():
        say(f"{directory / 'preprocess.sh'}: is not run; what it does to text before SentencePiece is left out")
    model = PortableModel(config, ours, source, target)
    return NativeMarian(model, _vocabulary(source, target), [found.npz, *found.settings_file, *files])


def _vocabulary(source: Vocabulary, target: Vocabulary) -> MarianVocabulary:
    """What an import asks of vocabularies; Marian tells no languages."""
    defined = tuple(piece.text for piece in pieces_of(source.sentencepiece) if piece.type == "user_defined")
    tags = tuple(piece for piece in source.pieces if re.fullmatch(">>.+<<", piece) and piece not in defined)
    return MarianVocabulary(source, target, source.pieces == target.pieces, (None, None), tags, defined)


@dataclass(frozen=True)
class _Setup:
    """Which files make a model, and how Marian's decoder is told to search."""

    directory: Path
    npz: Path
    vocabularies: list[Path]  # of source and target; empty where no file tells
    decoder: Mapping[str, Any]
    settings_file: list[Path]  # the decoder.yml, or none

    @staticmethod
    def find(path: Path) -> "_Setup":
        directory = path if path.is_dir() else path.parent
        if path.name.endswith(".npz"):
            npz, decoder = path, path.with_name(f"{path.name}.{DECODER}")
            return _Setup._read(directory, decoder if decoder.exists() else None, npz)
        if path.is_file():
            return _Setup._read(directory, path, None)
        if (directory / DECODER).exists():
            return _Setup._read(directory, directory / DECODER, None)
        models = sorted(each for each in directory.glob("*.npz") if not each.name.endswith(OPTIMIZER))
        if len(models) == 1:
            return _Setup.find(models[0])
        if not models:
            raise CheckpointError(f"{directory}: holds no model in an .npz file; copy the model again")
        names = ", ".join(each.name for each in models)
        raise CheckpointError(
            f"{directory}: holds {len(models)} models ({names}) and no {DECODER}; name one: {models[0]}"
        )

    @staticmethod
    def _read(directory: Path, settings_file: Path | None, npz: Path | None) -> "_Setup":
        decoder = _mapping(_text(settings_file), str(settings_file)) if settings_file else {}
        models, vocabularies = (_listed(decoder, key, settings_file) for key in ("models", "vocabs"))
        if npz is None and len(models) != 1:
            raise CheckpointError(f"{settings_file}: models lists {len(models)} files; mtkit imports one model")
        if len(vocabularies) not in (0, 2):
            raise CheckpointError(
                f"{settings_file}: vocabs lists {len(vocabularies)} files; wanted are those of source and target"
            )
        beside = [_beside(directory, name, settings_file) for name in vocabularies]
        npz = npz or _beside(directory, models[0], settings_file)
        return _Setup(directory, npz, beside, decoder, [settings_file] if settings_file else [])


def _listed(decoder: Mapping[str, Any], key: str, path: Path | None) -> list[str]:
    names = decoder.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"{path}: {key} is {names!r}; wanted is a list of files")
    return names


def _beside(directory: Path, name: str, settings_file: Path | None) -> Path:
    """The file of this name in the folder, else where it is told to be, which may be on another machine."""
    places = directory / name, directory / Path(name).name, Path(name)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise CheckpointError(f"{places[1]}: missing, and {settings_file} names it; copy it there")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; copy it again") from None


def _mapping(text: str, name: str) -> dict[str, Any]:
    content = read_yaml(text, name).data
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: holds no options of Marian; copy the model again")
    return content


def _read_npz(path: Path) -> tuple[MarianOptions, dict[str, Tensor]]:
    """The options of a model and its tensors in float32."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; copy the model again") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: no .npz of Marian, or damaged: {first}; copy the model again") from None
    if OPTIONS not in found:
        raise CheckpointError(f"{path}: holds no {OPTIONS}, which tells what the model is; mtkit imports no other .npz")
    text = found[OPTIONS].tobytes().split(b"\0", 1)[0].decode("utf-8", errors="replace")
    options = MarianOptions(path, _mapping(text, f"{path} ({OPTIONS})"))
    weights = {}
    for name, array in found.items():
        if name.startswith("special:"):
            continue
        if str(array.dtype) not in DTYPES:
            raise CheckpointError(f"{path}: {name} is {array.dtype}; mtkit imports {' and '.join(DTYPES)}")
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} has values that are not finite; the training went wrong")
        weights[name] = torch.from_numpy(array.astype(np.float32))
    return options, weights
