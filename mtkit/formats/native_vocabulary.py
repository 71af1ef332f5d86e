"""Marian's vocabularies: SentencePiece models, or lists of pieces beside the SentencePiece models that cut the text."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mtkit.errors import CheckpointError
from mtkit.formats.huggingface_tokenizer import SOURCE_MODEL, TARGET_MODEL
from mtkit.formats.portable import Vocabulary
from mtkit.model_proto import Piece, pieces_of
from mtkit.symbols import SpecialIds

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"
OLDER = {0: ("eos", END), 1: ("UNK", UNKNOWN)}  # ids, what Nematus calls them, and what Marian takes that for
MAPPINGS = (".yml", ".yaml", ".json")
SENTENCEPIECE, FACTORED = ".spm", ".fsv"
SIDES = ("source", "src"), ("target", "trg", "tgt")

# What a backslash may stand before in a double-quoted text of YAML, besides the codes of characters.
ESCAPES = dict(zip("0abtnvfreN_LP", "\0\a\b\t\n\v\f\r\x1b\x85\xa0\u2028\u2029", strict=True))
ESCAPES |= {character: character for character in '\t "/\\'}
_ESCAPED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def read_vocabularies(
    directory: Path, named: Sequence[Path], sizes: tuple[int, int]
) -> tuple[Vocabulary, Vocabulary, list[Path]]:
    """The vocabularies of source and target, padding added as the last piece, and the files that they were read from.

    named are their files where a decoder.yml tells; sizes are those that the model was built for. What cannot be read
    is a CheckpointError.
    """
    paths = list(named) or _find(directory)
    source, target = (
        _read_side(path, directory / model, size)
        for path, model, size in zip(paths, (SOURCE_MODEL, TARGET_MODEL), sizes, strict=True)
    )
    models = [directory / SOURCE_MODEL, directory / TARGET_MODEL]
    used = [model for path, model in zip(paths, models, strict=True) if path.suffix != SENTENCEPIECE]
    return source, target, list(dict.fromkeys([*paths, *used]))


def _find(directory: Path) -> list[Path]:
    """Where no file tells: the only vocabulary, or those whose names tell their sides."""
    found = sorted(filter(_is_vocabulary, directory.iterdir()))
    if len(found) == 1:
        return found * 2
    sides = [[path for path in found if any(word in _words(path) for word in words)] for words in SIDES]
    if len(found) == 2 and [len(side) for side in sides] == [1, 1] and sides[0] != sides[1]:
        return [sides[0][0], sides[1][0]]
    names = ", ".join(path.name for path in found) or "none"
    raise CheckpointError(
        f"{directory}: which files are the vocabularies of source and target is not told (found: {names}); name them "
        "in a decoder.yml with models and vocabs"
    )


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", path.name.lower())


def _is_vocabulary(path: Path) -> bool:
    if path.name in (SOURCE_MODEL, TARGET_MODEL):
        return False
    return path.suffix in (SENTENCEPIECE, FACTORED, ".vocab") or (path.suffix in MAPPINGS and "vocab" in _words(path))


def _read_side(path: Path, model: Path, size: int) -> Vocabulary:
    """The vocabulary in a file; the model cuts the text where the file does not do it itself."""
    if path.suffix == FACTORED:
        raise CheckpointError(f"{path}: a factored vocabulary; mtkit imports those of .yml and .spm files")
    if path.suffix == SENTENCEPIECE:
        sentencepiece, known = _read_model(path)
        pieces = [piece.text for piece in known]
        special = _special_of_model(path, known)
    else:
        sentencepiece, known = _read_model(model)
        pieces = _renamed(_read_mapping(path) if path.suffix in MAPPINGS else _read_lines(path))[:size]
        special = _special_of_pieces(path, pieces)
    if len(pieces) != size:
        raise CheckpointError(
            f"{path}: has {len(pieces):,} pieces, and the model's option dim-vocabs tells {size:,}; wanted is the "
            "vocabulary that it was trained with"
        )
    pad = PAD
    while pad in pieces:
        pad = f"<{pad}>"
    scores = {piece.text: piece.score for piece in known}
    pieces.append(pad)
    end, unknown = special
    return Vocabulary(pieces, SpecialIds(size, unknown, None, end), sentencepiece, [scores.get(p, 0.0) for p in pieces])


def _read_model(path: Path) -> tuple[bytes, list[Piece]]:
    """A SentencePiece model."""
    try:
        content = path.read_bytes()
    except OSError:
        other = next(iter(path.parent.glob(f"{path.stem}.bpe")), None)
        raise CheckpointError(
            f"{path}: missing; the vocabulary tells ids, and this model how text is cut"
            + (f". {other.name} is of subword-nmt, which mtkit does not read" if other else "; copy it there")
        ) from None
    try:
        pieces = pieces_of(content)
    except ValueError:
        pieces = []
    if not pieces:
        raise CheckpointError(f"{path}: not a SentencePiece model; copy it again")
    return content, pieces


def _special_of_model(path: Path, pieces: Sequence[Piece]) -> tuple[int, int]:
    """The ids of the end mark and of the unknown, as SentencePiece itself tells them."""
    end = [id_ for id_, piece in enumerate(pieces) if piece.type == "control" and piece.text == END]
    unknown = [id_ for id_, piece in enumerate(pieces) if piece.type == "unknown"]
    if not end or not unknown:
        raise CheckpointError(f"{path}: has no {END if not end else UNKNOWN}, which Marian's vocabularies have")
    return end[0], unknown[0]


def _special_of_pieces(path: Path, pieces: Sequence[str]) -> tuple[int, int]:
    """The same for a list of pieces, where they are found by their names."""
    for name in (END, UNKNOWN):
        if name not in pieces:
            raise CheckpointError(f"{path}: has no {name}, which Marian's vocabularies have")
    return pieces.index(END), pieces.index(UNKNOWN)


def _renamed(pieces: list[str]) -> list[str]:
    """The pieces with what Nematus calls the special ones called as Marian does."""
    for id_, (older, name) in OLDER.items():
        if len(pieces) > id_ and pieces[id_] == older and name not in pieces:
            pieces[id_] = name
    return pieces


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; copy it again") from None


def _read_lines(path: Path) -> list[str]:
    """A piece a line."""
    pieces = [line.removesuffix("\r") for line in _read_text(path).removesuffix("\n").split("\n")]
    if len(set(pieces)) < len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise CheckpointError(f"{path}: {twice!r} stands there more than once; wanted is one piece a line")
    return pieces


def _read_mapping(path: Path) -> list[str]:
    """The pieces by id, of a YAML or JSON file that gives each piece its id."""
    text = _read_text(path)
    entries = _json_entries(text, path) if text.lstrip().startswith("{") else _yaml_entries(text, path)
    by_id: dict[int, str] = {}
    seen: set[str] = set()
    for piece, id_ in entries:
        if id_ in by_id or piece in seen:
            raise CheckpointError(f"{path}: {piece!r} or its id {id_} stands there more than once; wanted is one each")
        by_id[id_] = piece
        seen.add(piece)
    missing = next((id_ for id_ in range(len(by_id)) if id_ not in by_id), None)
    if missing is not None:
        raise CheckpointError(f"{path}: no piece has the id {missing}; wanted are all from 0 to {len(by_id) - 1}")
    return [by_id[id_] for id_ in range(len(by_id))]


def _json_entries(text: str, path: Path) -> list[tuple[str, int]]:
    try:
        entries: list[tuple[str, int]] = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; copy it again") from None
    if not all(isinstance(entry, tuple) and type(entry[1]) is int for entry in entries):
        raise CheckpointError(f"{path}: wanted is an id for each piece, a number from 0 on")
    return entries


def _yaml_entries(text: str, path: Path) -> list[tuple[str, int]]:
    """Of `piece: id` a line. A piece is text whatever YAML takes it for, such as `no`, `1.0` or `~`."""
    entries, key = [], None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line in ("---", "...", "{}"):
            continue
        if key is None and line.startswith("? "):
            key = line[2:]  # its id stands on the next line
            continue
        written, colon, id_ = (key, line[:1], line[1:]) if key is not None else line.rpartition(":")
        piece = _scalar(written.strip(" "))
        if colon != ":" or piece is None or not re.fullmatch(r" *[0-9]{1,9} *", id_):
            raise CheckpointError(f"{path}:{number}: found {line[:80]!r}; wanted is a piece, a colon and its id")
        entries.append((piece, int(id_)))
        key = None
    return entries


def _scalar(written: str) -> str | None:
    """The text of a YAML scalar; None where its quotes are wrong."""
    quote = written[:1]
    if quote not in ("'", '"') or len(written) == 1:
        return written
    inner = written[1:-1]
    if len(written) < 2 or not written.endswith(quote):
        return None
    if quote == "'":
        return inner.replace("''", "'")
    try:
        return _ESCAPED.sub(_unescaped, inner)
    except (KeyError, ValueError, OverflowError):
        return None


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    return chr(int(code, 16)) if code else ESCAPES[match[4]]
