"""Writes and reads tokenizer files of Hugging Face, and reads the vocabularies of Marian."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtkit.errors import CheckpointError, ConfigError
from mtkit.exchange.huggingface_config import require_fetched
from mtkit.exchange.portable import PortableModel, Vocabulary, added_token, tokenizer_json
from mtkit.text.vocabulary import Piece, SpecialIds, cuts_at_spaces, is_whole, model_type_of, pieces_of

# Writing Hugging Face's tokenizer files.

SOURCE_MODEL, TARGET_MODEL = "source.spm", "target.spm"
VOCABULARY, TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
SETTINGS, SPECIAL_TOKENS, TOKENIZER = "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"

ADDED_TOKENS = "added_tokens.json"
TAG = re.compile(r"[<\[_>]\S*[>\]_<]")  # the form that an added token must have to become a tag
SPECIAL = ("<pad>", "<unk>", "</s>", "<s>", "<mask>")

MAX_LENGTH = 512  # tokens, as in OPUS-MT's models; an exported model has at least as many positions

# The special tokens that are assumed if no file names them.
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}


def write_marian_tokenizer(model: PortableModel, directory: Path) -> None:
    """Writes the files of a MarianTokenizer for `model` to `directory`.

    The tokenizer encodes and decodes as mtkit does, except in the cases that `Tokenizer.source_sentencepiece` lists and
    in these:

    - At the start of a line, text between >> and << is one token without a space mark (▁) before it.
    - Unknown text that is written like a special token becomes that token.
    - Decoding with skip_special_tokens drops <unk>, and strips white space of all kinds.

    If the model has `misread_tags`, the files of `write_m2m100_tokenizer` are written instead. Those files need a
    shared vocabulary, so ConfigError is raised if a model with misread tags has no shared vocabulary.

    ConfigError is also raised if the special tokens of source and target differ, and for a tokenizer of words: a
    MarianTokenizer would encode several unknown words in a row as a single <unk>.
    """
    _require_no_words(model)
    shared = model.source.pieces == model.target.pieces
    if tags := misread_tags(model):
        if not shared:
            raise ConfigError(
                f"tag {tags[0]}: a MarianTokenizer would read it as other ids, and with tokenizer.shared false no "
                "other tokenizer there reads the model; export --to ctranslate2, or train with tags such as <2xx>"
            )
        write_m2m100_tokenizer(model, directory)
        return
    names = [[side.pieces[id_] for id_ in side.special.all] for side in (model.source, model.target)]
    if names[0] != names[1]:
        raise ConfigError(
            f"the special tokens of the source are {' '.join(names[0])}, those of the target {' '.join(names[1])}; "
            "Hugging Face's Marian wants the same for both, --to ctranslate2 takes them as they are"
        )
    _write_vocabularies(model, directory, shared)
    settings = {"separate_vocabs": not shared, "sp_model_kwargs": {}}
    _write_settings(model, directory, "MarianTokenizer", settings)


def misread_tags(model: PortableModel) -> list[str]:
    """Returns the tags that a MarianTokenizer would encode as other ids than mtkit does.

    There are two kinds of such tags:

    - Tags written like >>eng<<, if the SentencePiece model has them: they would lose the space mark (▁) before them.
    - Tags written in another way, if the SentencePiece model lacks them: they would be split into pieces.
    """
    pieces = pieces_of(model.source.sentencepiece)
    known = [piece.text for piece in pieces if piece.type == "user_defined" and _is_language(piece.text)]
    return [*known, *(tag for tag in model.loose_tags if not _is_language(tag))]


def write_m2m100_tokenizer(model: PortableModel, directory: Path) -> None:
    """Writes a tokenizer.json, a file of tokenizer settings, and the vocabulary files that mtkit needs for an import.

    With these files, AutoTokenizer encodes as `Tokenizer.encode_source` does and appends the end mark, except in the
    cases that `tokenizer_json` lists and in two more: a tag that the SentencePiece model lacks is one token anywhere in
    a line, and target texts are normalised by the rule of the source.

    Raises ConfigError in each of three cases: the tokenizer is one of words, the vocabulary is not shared, or the
    SentencePiece model does not split text at spaces.
    """
    _require_no_words(model)
    if model.source.pieces != model.target.pieces:
        raise ConfigError(
            "tokenizer.shared false: M2M100 has one vocabulary for both sides; train with tokenizer.shared true"
        )
    if not cuts_at_spaces(model.source.sentencepiece):
        raise ConfigError(
            "the SentencePiece model of this tokenizer does not cut text at its spaces, as a tokenizer.json does; "
            "--to ctranslate2 and --to marian take it as it is"
        )
    _write_vocabularies(model, directory, shared=True)
    _write(directory / TOKENIZER, tokenizer_json(model.source, model.loose_tags))
    _write_settings(model, directory, "PreTrainedTokenizerFast", {})


def _require_no_words(model: PortableModel) -> None:
    if "word" in (model_type_of(model.source.sentencepiece), model_type_of(model.target.sentencepiece)):
        raise ConfigError(
            "tokenizer.type word: Hugging Face's tokenizers make one token of several unknown words in a row; "
            "train with tokenizer.type bpe, unigram or char"
        )


def _write_vocabularies(model: PortableModel, directory: Path, shared: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SOURCE_MODEL).write_bytes(model.source.sentencepiece)
    (directory / TARGET_MODEL).write_bytes(model.target.sentencepiece)
    _write(directory / VOCABULARY, {piece: id_ for id_, piece in enumerate(model.source.pieces)})
    if not shared:
        _write(directory / TARGET_VOCABULARY, {piece: id_ for id_, piece in enumerate(model.target.pieces)})


def _write_settings(model: PortableModel, directory: Path, tokenizer_class: str, more: Mapping[str, Any]) -> None:
    special, pieces = model.source.special, model.source.pieces
    names = {"eos_token": special.end, "unk_token": special.unknown, "pad_token": special.pad}
    tokens = {name: pieces[id_] for name, id_ in names.items()}
    _write(directory / SPECIAL_TOKENS, tokens)
    settings = {
        "tokenizer_class": tokenizer_class,
        "source_lang": model.config.languages.source,
        "target_lang": model.config.languages.target,
        "model_max_length": MAX_LENGTH,
        **tokens,
        # Text that is written like a special token is encoded as any other text.
        "split_special_tokens": True,
        # Decoding keeps spaces before punctuation.
        "clean_up_tokenization_spaces": False,
        **more,
    }
    if loose := [tag for tag in model.loose_tags if not _is_language(tag)]:
        if words := [tag for tag in loose if not TAG.fullmatch(tag)]:
            raise ConfigError(
                f"tag {words[0]}: SentencePiece does not know it, and transformers would cut it out of lines wherever "
                "it stands; export --to ctranslate2"
            )
        settings["added_tokens_decoder"] = {
            str(pieces.index(token)): added_token(token, special=token in tokens.values())
            for token in (*tokens.values(), *loose)
        }
    _write(directory / SETTINGS, settings)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# Reading Hugging Face's tokenizer files.


@dataclass(frozen=True)
class MarianVocabulary:
    """The vocabularies, languages and tags in the files of a MarianTokenizer, or in Marian's own files."""

    source: Vocabulary
    target: Vocabulary
    shared: bool
    languages: tuple[str | None, str | None]  # of source and target; None if the files do not name it
    symbols: tuple[str, ...]  # tags, such as >>fra<<, that the SentencePiece model lacks
    defined: tuple[str, ...]  # user-defined pieces of the source's SentencePiece model, such as mtkit's own tags


def read_marian_vocabulary(directory: Path) -> MarianVocabulary:
    """Returns the vocabularies of the MarianTokenizer in `directory`.

    Raises CheckpointError if a file is missing, damaged or contradicts another file.
    """
    _require_parts(directory)
    settings = _read(directory / SETTINGS) if (directory / SETTINGS).exists() else {}
    if (directory / SPECIAL_TOKENS).exists():
        settings = {**_read(directory / SPECIAL_TOKENS), **settings}
    separate = settings.get("separate_vocabs") is True
    names = VOCABULARY, TARGET_VOCABULARY if separate else VOCABULARY
    source, target = (
        _read_side(directory / name, directory / model, settings)
        for name, model in zip(names, (SOURCE_MODEL, TARGET_MODEL), strict=True)
    )
    added = _added_tokens(directory, settings, source.pieces)
    source = _with_added(source, added)
    target = target if separate else _with_added(target, added)
    known = {piece.text: piece.type for piece in pieces_of(source.sentencepiece)}
    defined = tuple(text for text, kind in known.items() if kind == "user_defined")
    return MarianVocabulary(
        source,
        target,
        shared=not separate,
        languages=(_text(settings.get("source_lang")), _text(settings.get("target_lang"))),
        symbols=tuple(
            piece for piece in source.pieces if (_is_language(piece) and piece not in defined) or piece in added
        ),
        defined=defined,
    )


def _require_parts(directory: Path) -> None:
    """Raises CheckpointError if `directory` has a tokenizer.json, but lacks other files that mtkit needs."""
    missing = [name for name in (VOCABULARY, SOURCE_MODEL, TARGET_MODEL) if not (directory / name).exists()]
    if missing and (directory / TOKENIZER).exists():
        raise CheckpointError(
            f"{directory}: its tokenizer is {TOKENIZER} alone, which mtkit does not read; copy {', '.join(missing)} "
            "here from the folder that the model was loaded from"
        )


def _added_tokens(directory: Path, settings: Mapping[str, Any], pieces: Sequence[str]) -> list[str]:
    """Returns the tokens that were added to the tokenizer, in the order of their ids; mtkit uses these tokens as tags.

    Hugging Face transformers finds an added token anywhere in a line; mtkit finds a tag only at the start of a line. So
    a token whose id is greater than all ids of `pieces` must be written like a tag, for example <2eo>; otherwise,
    CheckpointError is raised. CheckpointError is also raised if the ids of added tokens contradict those of `pieces` or
    have gaps.
    """
    path = directory / ADDED_TOKENS
    added: dict[str, Any] = _read(path) if path.exists() else {}
    decoder = settings.get("added_tokens_decoder")
    for id_, token in decoder.items() if isinstance(decoder, dict) else ():
        content = _text(token)
        if content is not None and id_.isdecimal():
            added.setdefault(content, int(id_))
            path = path if path.exists() else directory / SETTINGS
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    found: dict[int, str] = {}
    for content, id_ in added.items():
        if type(id_) is not int or ids.get(content, id_) != id_ or (id_ < len(pieces) and pieces[id_] != content):
            raise CheckpointError(f"{path}: gives {content!r} the id {id_!r}, and {VOCABULARY} says otherwise")
        if id_ >= len(pieces) or (TAG.fullmatch(content) and content not in SPECIAL):
            found[id_] = content
    for place, id_ in enumerate(sorted(id_ for id_ in found if id_ >= len(pieces)), start=len(pieces)):
        if id_ != place:
            raise CheckpointError(f"{path}: gives {found[id_]!r} the id {id_}, and no token has the id {place}")
        if not TAG.fullmatch(found[id_]):
            raise CheckpointError(
                f"{path}: transformers cuts the added token {found[id_]!r} out of lines wherever it stands, which "
                "mtkit cannot do; it reads added tokens such as <2eo> or [eo], as tags"
            )
    return [found[id_] for id_ in sorted(found)]


def _with_added(side: Vocabulary, added: Sequence[str]) -> Vocabulary:
    new = [token for token in added if token not in side.pieces]
    return replace(side, pieces=[*side.pieces, *new], scores=[*side.scores, *(0.0 for _ in new)])


def _is_language(piece: str) -> bool:
    """Whether `piece` is written >>…<<, which a MarianTokenizer treats as a language tag at the start of a line."""
    return piece.startswith(">>") and piece.endswith("<<")


def _read_side(vocabulary: Path, model: Path, settings: Mapping[str, Any]) -> Vocabulary:
    pieces = _read_pieces(vocabulary)
    found = _read_model(model)
    scores = _scores(model, found)
    ids = {piece: id_ for id_, piece in enumerate(pieces)}

    def named(name: str) -> int:
        token = _text(settings.get(name)) or NAMES[name]
        if token not in ids:
            raise CheckpointError(f"{vocabulary}: has no {token}, which is the {name} of this tokenizer")
        return ids[token]

    special = SpecialIds(
        pad=named("pad_token"),
        unknown=named("unk_token"),
        begin=ids.get(_text(settings.get("bos_token")) or NAMES["bos_token"]),
        end=named("eos_token"),
    )
    return Vocabulary(pieces, special, found, [scores.get(piece, 0.0) for piece in pieces])


def _text(token: Any) -> str | None:
    """Returns the text of `token`, which is a string or an object with a "content"; `None` for any other value."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_pieces(path: Path) -> list[str]:
    """Returns the pieces of a vocab.json, ordered by id; raises CheckpointError if an id is missing or occurs twice."""
    content = _read(path)
    if not content:
        raise CheckpointError(f"{path}: is empty; wanted is an id for each piece")
    by_id: dict[int, str] = {}
    for piece, id_ in content.items():
        if type(id_) is not int:
            raise CheckpointError(f"{path}: the id of {piece!r} is {id_!r}; wanted is a number from 0 on")
        if id_ in by_id:
            raise CheckpointError(f"{path}: {by_id[id_]!r} and {piece!r} have both the id {id_}; wanted is one each")
        by_id[id_] = piece
    missing = next((id_ for id_ in range(len(by_id)) if id_ not in by_id), None)
    if missing is not None:
        raise CheckpointError(f"{path}: no piece has the id {missing}; wanted are all from 0 to {len(by_id) - 1}")
    return [by_id[id_] for id_ in range(len(by_id))]


def _read_model(path: Path) -> bytes:
    require_fetched(path)
    try:
        return path.read_bytes()
    except OSError:
        raise CheckpointError(f"{path}: missing; the model is not whole, copy it again") from None


def _scores(path: Path, model: bytes) -> dict[str, float]:
    try:
        pieces = pieces_of(model)
    except ValueError:
        pieces = []
    if not pieces:
        raise CheckpointError(f"{path}: not a SentencePiece model; copy it again")
    if not is_whole(model):
        raise CheckpointError(f"{path}: the SentencePiece model is cut off after its pieces; copy it again")
    return {piece.text: piece.score for piece in pieces}


def _read(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; raises CheckpointError if the file is missing, damaged or has a key twice."""
    require_fetched(path)
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError:
        raise CheckpointError(f"{path}: missing; the model is not whole, copy it again") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; copy it again")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs of a JSON object as a dict; raises ValueError if a key occurs more than once."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in content if keys.count(key) > 1)!r} stands there more than once")
    return content


# Reading Marian's vocabularies: SentencePiece models, or lists of pieces with SentencePiece models that split text.

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"
OLDER = {0: ("eos", END), 1: ("UNK", UNKNOWN)}  # by id, the token's name in Nematus and in Marian
MAPPINGS = (".yml", ".yaml", ".json")
SENTENCEPIECE, FACTORED = ".spm", ".fsv"
SIDES = ("source", "src"), ("target", "trg", "tgt")

# The escape sequences of double-quoted YAML, except those with character codes.
ESCAPES = dict(zip("0abtnvfreN_LP", "\0\a\b\t\n\v\f\r\x1b\x85\xa0\u2028\u2029", strict=True))
ESCAPES |= {character: character for character in '\t "/\\'}
_ESCAPED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def read_vocabularies(
    directory: Path, named: Sequence[Path], sizes: tuple[int, int]
) -> tuple[Vocabulary, Vocabulary, list[Path]]:
    """Returns Marian's vocabularies of source and target, and the files that the vocabularies were read from.

    Padding is added to each vocabulary as the last piece. `named` are the vocabulary files that a decoder.yml names; if
    `named` is empty, the files are searched for in `directory`. `sizes` are the vocabulary sizes of the model, without
    padding. Raises CheckpointError if a file is missing or damaged, or if its number of pieces is not the one in
    `sizes`.
    """
    paths = list(named) or _find(directory)
    source, target = (
        _read_marian_side(path, directory / model, size)
        for path, model, size in zip(paths, (SOURCE_MODEL, TARGET_MODEL), sizes, strict=True)
    )
    models = [directory / SOURCE_MODEL, directory / TARGET_MODEL]
    used = [model for path, model in zip(paths, models, strict=True) if path.suffix != SENTENCEPIECE]
    return source, target, list(dict.fromkeys([*paths, *used]))


def _find(directory: Path) -> list[Path]:
    """Returns the paths of the source and target vocabularies in `directory`.

    If there is one vocabulary, both paths are the same. If there are two, one file name must contain a word that means
    source, and the other file name a word that means target (see SIDES). In any other case, raises CheckpointError.
    """
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


def _read_marian_side(path: Path, model: Path, size: int) -> Vocabulary:
    """Returns the vocabulary in the file at `path`, with padding added as the last piece.

    `size` is the number of pieces without padding. `model` is the path of the SentencePiece model that splits text; if
    the vocabulary file is a SentencePiece model itself, `model` is not read. Raises CheckpointError if a file is
    missing, damaged or of an unsupported kind, or if the vocabulary does not have `size` pieces.
    """
    if path.suffix == FACTORED:
        raise CheckpointError(f"{path}: a factored vocabulary; mtkit imports those of .yml and .spm files")
    if path.suffix == SENTENCEPIECE:
        sentencepiece, known = _read_marian_model(path)
        pieces = [piece.text for piece in known]
        special = _special_of_model(path, known)
    else:
        sentencepiece, known = _read_marian_model(model)
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


def _read_marian_model(path: Path) -> tuple[bytes, list[Piece]]:
    """Returns the content and the pieces of a SentencePiece model file.

    Raises CheckpointError if the file cannot be read.
    """
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
    """Returns the ids of the end mark and of <unk> in a SentencePiece model.

    Raises CheckpointError if the end mark or <unk> is missing.
    """
    end = [id_ for id_, piece in enumerate(pieces) if piece.type == "control" and piece.text == END]
    unknown = [id_ for id_, piece in enumerate(pieces) if piece.type == "unknown"]
    if not end or not unknown:
        raise CheckpointError(f"{path}: has no {END if not end else UNKNOWN}, which Marian's vocabularies have")
    return end[0], unknown[0]


def _special_of_pieces(path: Path, pieces: Sequence[str]) -> tuple[int, int]:
    """Returns the ids of </s> and <unk> in a list of pieces; raises CheckpointError if </s> or <unk> is missing."""
    for name in (END, UNKNOWN):
        if name not in pieces:
            raise CheckpointError(f"{path}: has no {name}, which Marian's vocabularies have")
    return pieces.index(END), pieces.index(UNKNOWN)


def _renamed(pieces: list[str]) -> list[str]:
    """Renames the special pieces in `pieces` from Nematus's names to Marian's, and returns the list."""
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
    """Returns the pieces in a file that has one piece on each line; raises CheckpointError if a piece occurs twice."""
    pieces = [line.removesuffix("\r") for line in _read_text(path).removesuffix("\n").split("\n")]
    if len(set(pieces)) < len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise CheckpointError(f"{path}: {twice!r} stands there more than once; wanted is one piece a line")
    return pieces


def _read_mapping(path: Path) -> list[str]:
    """Returns the pieces of a YAML or JSON file that maps each piece to its id, ordered by id.

    Raises CheckpointError if the file is damaged, an id is missing, or an id or piece occurs twice.
    """
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
    """Returns (piece, id) for lines `piece: id`, or `? piece` and `: id`; raises CheckpointError for other lines.

    A piece is always text, even where YAML would read another type: `no`, `1.0` or `~`.
    """
    entries, key = [], None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line in ("---", "...", "{}"):
            continue
        if key is None and line.startswith("? "):
            key = line[2:]  # its id is on the next line
            continue
        written, colon, id_ = (key, line[:1], line[1:]) if key is not None else line.rpartition(":")
        piece = _scalar(written.strip(" "))
        if colon != ":" or piece is None or not re.fullmatch(r" *[0-9]{1,9} *", id_):
            raise CheckpointError(f"{path}:{number}: found {line[:80]!r}; wanted is a piece, a colon and its id")
        entries.append((piece, int(id_)))
        key = None
    return entries


def _scalar(written: str) -> str | None:
    """Returns the text of a YAML scalar without its quotes; `None` if its quotes or escape sequences are wrong."""
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
