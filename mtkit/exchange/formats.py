"""Export of bundles to other libraries' files, import of such files as bundles, and extension of vocabularies.

An exported model is compared with mtkit's: both translate the same lines.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit import __version__
from mtkit.bundle.bundle import (
    DESCRIPTION,
    UNTRAINED,
    UNTRAINED_TAGS,
    Bundle,
    not_finite,
    open_bundle,
    save_bundle,
    save_scores,
)
from mtkit.bundle.info import card_text
from mtkit.bundle.opening import open_and_tell
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import CheckpointError, MtkitError, say, working
from mtkit.exchange.engines import QUANTIZATIONS, check_ctranslate2, observe_with_ctranslate2, write_ctranslate2
from mtkit.exchange.huggingface import (
    MarianVocabulary,
    check_m2m100,
    check_marian,
    in_m2m100_order,
    in_marian_order,
    misread_tags,
    read_m2m100,
    read_marian,
    read_marian_vocabulary,
    write_m2m100_tokenizer,
    write_m2m100_weights,
    write_marian_tokenizer,
    write_marian_weights,
)
from mtkit.exchange.native_marian import is_native_marian, read_native_marian
from mtkit.exchange.portable import (
    CONFIG,
    FIRST_BYTE,
    MARKER,
    Observed,
    PortableModel,
    Texts,
    TheirConfig,
    Vocabulary,
    not_carried,
    observe_with_transformers,
    read_json,
    reordered,
    silent_ids,
    texts_of_transformers,
)
from mtkit.files import replaced_directory
from mtkit.models.registry import empty_model, require_weights_of
from mtkit.text.parallel import tagged
from mtkit.text.tokenizer import Tokenizer, extended, open_sentencepiece
from mtkit.text.vocabulary import ModelType, SpecialIds, Specials, model_type_of, split_tags
from mtkit.translation.decode import decode, log_probs_of
from mtkit.translation.stream import make_canaries
from mtkit.translation.translator import Translator, load_bundle, translator_of

# Export.

Pieces = Sequence[Sequence[str]]
Observe = Callable[[Path, Pieces, Pieces, Sequence[str], DecodingConfig], Observed | None]


@dataclass(frozen=True)
class Format:
    """An export format, given by functions that check and write a model, and that translate with the written model."""

    check: Callable[[Config], None]  # raises CheckpointError if the format cannot express a model
    write: Callable[[PortableModel, Path, str | None], None]  # model, directory, quantization
    texts: Callable[[Path, PortableModel], Texts | None]  # the library's tokenizer; None if it is not installed
    observe: Observe  # translates and scores with the library
    card: Callable[[PortableModel], str]  # the README.md of an exported model
    extra: str  # `pip install mtkit[extra]` installs the library
    quantizations: tuple[str, ...] = ()


def export(path: Path, to: str, directory: Path, quantization: str | None = None) -> None:
    """Exports the model at `path` to the folder `directory`, in the format `to` (a key of FORMATS).

    Afterwards, translates with mtkit and with the library that the format is for, and prints whether the translations
    agree. Raises MtkitError if the format does not offer `quantization`, or if `directory` must not be replaced (see
    `_require_free`). Raises CheckpointError if the model cannot be exported.
    """
    format_ = FORMATS[to]
    if quantization is not None and quantization not in format_.quantizations:
        raise MtkitError(_no_quantization(to, quantization))
    bundle = open_and_tell(path)
    if bundle.config.task != "translation":
        raise CheckpointError(f"{path}: is a language model; mtkit export writes translation models alone")
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
        (new / "README.md").write_text(format_.card(model), encoding="utf-8")
        _write_marker(new / MARKER, to, bundle, quantization, translator.tokenizer.symbols)
        for file in new.glob("*.safetensors"):
            shutil.copymode(new / MARKER, file)  # safetensors makes files that only their owner can read
    say(f"{to}: {directory}")
    if lost := not_carried(bundle.config, to):
        say(f"{to}: has no place for {', '.join(lost)}; translations there are searched without")
    for line in _comparison(format_, bundle, translator, model, directory):
        say(line)


def portable(bundle: Bundle, translator: Translator) -> PortableModel:
    """Returns `bundle` as a PortableModel, with the vocabularies and tags of the translator's tokenizer."""
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
    return PortableModel(bundle.with_length_limit(bundle.config), weights, source, target, tokenizer.tags)


def _no_quantization(to: str, quantization: str) -> str:
    if not FORMATS[to].quantizations:
        return f"--quantization goes with --to ctranslate2; {to} has its weights as they are"
    return f"--quantization: found {quantization}, wants one of {', '.join(FORMATS[to].quantizations)}"


def _require_free(directory: Path) -> None:
    """Raises MtkitError if `directory` is a file, or a folder that an export must not replace.

    A folder may be replaced if it is empty, or if it has the file mtkit.json (MARKER), which every export writes.
    Whether such a folder has other files besides is not checked.
    """
    if directory.is_file():
        raise MtkitError(f"{directory}: is a file; wants a folder for the exported model")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MARKER).is_file():
        raise MtkitError(f"{directory}: holds files that no export wrote; name an empty folder or a new one")


def _write_marker(path: Path, to: str, bundle: Bundle, quantization: str | None, own_symbols: Sequence[str]) -> None:
    config = bundle.with_length_limit(bundle.config)
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


# Comparison of translations by mtkit ("here") with translations by the other library ("there").

TOKENS = 4096  # most tokens of a batch, with padding
MOST_TAGGED = 32  # most lines that are compared with a tag before them
MOST_SHOWN = 3  # most differing lines of each kind that a report shows


def _comparison(
    format_: Format, bundle: Bundle, translator: Translator, model: PortableModel, directory: Path
) -> Iterator[str]:
    """Yields a report, line by line, that compares translations by mtkit with translations by the library of `format_`.

    The translated lines are the canaries of the bundle: source lines that a bundle stores for checks. Each library
    encodes the lines with its own tokenizer.
    """
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
        yield from agreement.report()


@dataclass(frozen=True)
class Line:
    """A source line with its translations: `here` is by mtkit, and `there` is by the other library."""

    text: str
    same_ids: bool  # both tokenizers encode the line as the same ids
    same_tokens: bool  # both translations consist of the same tokens
    here: str
    there: str


@dataclass(frozen=True)
class Agreement:
    """The result of comparing mtkit's translations of some lines with another library's translations of these lines."""

    library: str  # name and version of the other library
    lines: list[Line]
    furthest: float  # largest difference between the two log-probabilities of a token, in lines with the same ids

    @property
    def num_same_ids(self) -> int:
        """The number of lines that mtkit's tokenizer and the other library's tokenizer encode as the same ids."""
        return sum(line.same_ids for line in self.lines)

    @property
    def num_same_texts(self) -> int:
        """The number of lines that mtkit and the other library translate as the same text, character by character."""
        return sum(line.here == line.there for line in self.lines)

    def report(self) -> Iterator[str]:
        """Yields a report on the comparison, line by line.

        The first line has the counts. Then follow a few source lines that mtkit and the other library encode as
        different ids, and a few source lines that have the same ids but different translations.
        """
        num_respelled = sum(line.same_tokens and line.here != line.there for line in self.lines)
        respelled = f" ({num_respelled} more in tokens, but not in how they are written)" if num_respelled else ""
        drift = f"; log-probabilities of tokens differ by at most {self.furthest:.1e}" if self.num_same_ids else ""
        yield (
            f"{self.library}, from text to text: {self.num_same_ids} of {len(self.lines)} lines have the same ids, "
            f"{self.num_same_texts} the same greedy translation{respelled}{drift}"
        )
        other_ids = [line for line in self.lines if not line.same_ids]
        other_texts = [line for line in self.lines if line.same_ids and line.here != line.there]
        for line in other_ids[:MOST_SHOWN]:
            yield f"  other ids: {line.text}"
        for line in other_texts[:MOST_SHOWN]:
            yield f"  other translation: {line.text} | here: {line.here} | there: {line.there}"


def lines_to_compare(translator: Translator, texts: Sequence[str]) -> list[str]:
    """Returns the lines to translate: `texts` and, if the model has tags, variants of `texts`.

    The variants are all texts without their tags, and some texts with one tag each. At most MOST_TAGGED variants have a
    tag; the tags of the model take turns.

    Lines are left out if they are blank, consist of tags only, are too long for the model, or repeat an earlier line.
    """
    tags = translator.tags
    split = [split_tags(text, tags)[1].strip() for text in texts]
    bare = [text for text in split if text]
    lines = list(texts)
    if tags and bare:
        count = min(max(len(bare), len(tags)), MOST_TAGGED)
        lines += bare
        lines += [tagged(text, tag) for text, tag in islice(zip(cycle(bare), cycle(tags), strict=False), count)]
    lines = list(dict.fromkeys(line for line in lines if split_tags(line, tags)[1].strip()))
    lengths = map(len, translator.tokenizer.encode_source(lines))
    return [line for line, n in zip(lines, lengths, strict=True) if 0 < n <= translator.max_source_length]


def compare(
    translator: Translator, model: PortableModel, lines: Sequence[str], texts: Texts, observe: Observe, directory: Path
) -> Agreement | None:
    """Translates `lines` by greedy search with mtkit and with another library, and compares the translations.

    `directory` has the files that were exported for the other library, `texts` is the tokenizer of that library, and
    `observe` translates with that library. `model` is the exported model with the ids in mtkit's order, which may
    differ from the order in the exported files. Returns `None` if the other library is not installed.
    """
    tokenizer, silent = translator.tokenizer, silent_ids(model)
    sources = tokenizer.encode_source(lines)
    decoding = _greedy(translator.config.decoding)
    translations = [best.tokens for best, *_ in decode(translator.model, decoding, sources, forbidden=silent)]
    log_probs = log_probs_of(translator.model, sources, translations, TOKENS)
    source_pieces = [tokenizer.source_pieces(row) for row in sources]
    target_pieces = [tokenizer.target_pieces(row) for row in translations]
    their_sources = texts.encode(lines)
    observed = observe(directory, their_sources, target_pieces, [model.target.pieces[id_] for id_ in silent], decoding)
    if observed is None:
        return None
    here, there = tokenizer.decode_target(translations), texts.decode(observed.translations)
    same_ids = [ours == theirs for ours, theirs in zip(source_pieces, their_sources, strict=True)]
    same_tokens = [ours == theirs for ours, theirs in zip(target_pieces, observed.translations, strict=True)]
    compared = list(map(Line, lines, same_ids, same_tokens, here, there))
    differences = [
        abs(ours - theirs)
        for line, our_row, their_row in zip(compared, log_probs, observed.log_probs, strict=True)
        if line.same_ids
        for ours, theirs in zip(our_row, their_row, strict=True)
    ]
    return Agreement(observed.library, compared, max(differences, default=0.0))


def _greedy(decoding: DecodingConfig) -> DecodingConfig:
    """Returns settings for greedy search, with min_length and no_repeat_ngram taken from `decoding`."""
    return DecodingConfig(beam_size=1, min_length=decoding.min_length, no_repeat_ngram=decoding.no_repeat_ngram)


# Cards. A card is the README.md of an exported model; it shows how to translate with the other library.

# Code that the card of a model has if the SentencePiece model lacks some tags. The code makes each of the missing tags
# one token at the start of a line.
_CUT_TAGS = """    tags = {tags}
    def pieces(line):
        first, _, rest = line.partition(" ")
        return [first, *pieces(rest)] if first in tags else source.encode(line, out_type=str)
"""


def ctranslate2_card(model: PortableModel) -> str:
    """Returns the card (the README.md) of a model that is exported for CTranslate2.

    The card shows how to translate with CTranslate2 and SentencePiece.
    """
    decoding, pieces = model.config.decoding, model.target.pieces
    silent = [[pieces[id_]] for id_ in silent_ids(model) if id_ != model.target.special.unknown]
    unknown = "" if model.target.special.unknown not in silent_ids(model) else ", disable_unk=True"
    longest = decoding.max_length(model.config.data.max_length)
    form = (
        ""
        if decoding.length_penalty_form == "power"
        else (
            " CTranslate2 divides a score by length^p, where this model's settings have the form of GNMT: tune p anew."
        )
    )
    encoded = "[pieces(line) for line in lines]" if model.loose_tags else "source.encode(lines, out_type=str)"
    tags = _CUT_TAGS.format(tags=list(model.loose_tags)) if model.loose_tags else ""
    return f"""{_heading(model, "CTranslate2")}
    import ctranslate2
    import sentencepiece

    source = sentencepiece.SentencePieceProcessor(model_file="source.spm")
    target = sentencepiece.SentencePieceProcessor(model_file="target.spm")
    translator = ctranslate2.Translator(".")
{tags}    results = translator.translate_batch(
        {encoded},
        {_ctranslate2_search(decoding)},
        suppress_sequences={silent}{unknown},
        max_input_length={model.config.data.max_length}, max_decoding_length={longest},
        min_decoding_length={decoding.min_length}, no_repeat_ngram_size={decoding.no_repeat_ngram},
    )
    print(target.decode([result.hypotheses[0] for result in results]))

Suppressed pieces are never generated. A source of more tokens than max_input_length is cut: split it. Leave out blank
lines, which need no translation.{form} With 8-bit weights on an AMD processor without VNNI, set the environment
variable CT2_USE_MKL to 1, since products overflow there otherwise.
"""


def _ctranslate2_search(decoding: DecodingConfig) -> str:
    """Returns, as Python code, the arguments that make CTranslate2's translate_batch search as `decoding` says.

    In these arguments, sampling_topk=0 means that tokens are sampled from the whole vocabulary.
    """
    if decoding.method == "beam":
        return f"beam_size={decoding.beam_size}, length_penalty={decoding.length_penalty:g}"
    top_p = 1.0 if decoding.top_p is None else decoding.top_p
    return (
        f"beam_size=1, sampling_topk={decoding.top_k or 0}, sampling_topp={top_p:g}, "
        f"sampling_temperature={decoding.temperature:g}"
    )


def marian_card(model: PortableModel) -> str:
    """Returns the card (the README.md) of a model that is exported as a MarianMTModel."""
    if not (tags := misread_tags(model)):
        return _huggingface(model, "MarianMTModel", "MarianTokenizer")
    return f"""{_huggingface(model, "MarianMTModel", "AutoTokenizer")}
Take AutoTokenizer, which opens tokenizer.json: a MarianTokenizer would read {", ".join(tags)} as other ids.
"""


def m2m100_card(model: PortableModel) -> str:
    """Returns the card (the README.md) of a model that is exported as an M2M100 model."""
    return _huggingface(model, "M2M100ForConditionalGeneration", "AutoTokenizer")


def _huggingface(model: PortableModel, kind: str, tokenizer: str) -> str:
    return f"""{_heading(model, f"a {kind} of Hugging Face transformers")}
    from transformers import {kind}, {tokenizer}

    tokenizer, model = {tokenizer}.from_pretrained("."), {kind}.from_pretrained(".")
    translations = model.generate(**tokenizer(lines, return_tensors="pt", padding=True))
    print(tokenizer.batch_decode(translations, skip_special_tokens=True))

generation_config.json has the search settings: beam size or sampling, length penalty, tokens that are never generated.
"""


def _heading(model: PortableModel, what: str) -> str:
    config = model.config
    return f"""# {config.name}: {config.languages.source} to {config.languages.target}

A translation model for {what}, exported by mtkit. In this directory:
"""


# Formats.


def _write_marian(model: PortableModel, directory: Path, _: str | None) -> None:
    model = in_marian_order(model)
    write_marian_weights(model, directory)
    write_marian_tokenizer(model, directory)


def _write_m2m100(model: PortableModel, directory: Path, _: str | None) -> None:
    model = in_m2m100_order(model)
    write_m2m100_weights(model, directory)
    write_m2m100_tokenizer(model, directory)


def _texts_of_ctranslate2(directory: Path, model: PortableModel) -> Texts:
    """Returns a tokenizer that encodes and decodes with the exported SentencePiece models.

    The tokenizer does the same as the code in the README.md of the exported model.
    """
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
    _: DecodingConfig,  # not used, since generation_config.json has these settings
) -> Observed | None:
    return observe_with_transformers(directory, sources, targets, silent)


FORMATS = {
    "ctranslate2": Format(
        check_ctranslate2,
        write_ctranslate2,
        _texts_of_ctranslate2,
        observe_with_ctranslate2,
        ctranslate2_card,
        "ctranslate2",
        tuple(QUANTIZATIONS),
    ),
    "marian": Format(
        check_marian, _write_marian, _texts_of_transformers, _observe_with_transformers, marian_card, "huggingface"
    ),
    "m2m100": Format(
        check_m2m100, _write_m2m100, _texts_of_transformers, _observe_with_transformers, m2m100_card, "huggingface"
    ),
}


# Import.

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
    """Returns `model` without spare embedding rows, that is, rows for ids beyond the tokenizer's vocabularies."""
    sides = (model.source, found.source), (model.target, found.target)
    spare = [len(rows.pieces) - len(named.pieces) for rows, named in sides]
    are_there = all(max(rows.special.all) < len(named.pieces) for rows, named in sides)
    if max(spare) <= 0 or not are_there:  # special ids outside the vocabulary are reported later
        return model
    say(f"{max(spare):,} rows of the embeddings belong to no token of the tokenizer; they are left out")
    source, target = (range(min(len(rows.pieces), len(named.pieces))) for rows, named in sides)
    return reordered(model, source, target)


def _read(directory: Path) -> tuple[PortableModel, MarianVocabulary, list[Path], str]:
    """Returns (model, vocabularies, paths of the files, layout) of the model in `directory`.

    The layout of the files is a key of READERS or, for Marian's own files, "native-marian".
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

    The special ids are those in the tokenizer's files, except that padding and the end mark of the target have the ids
    in config.json, as in Hugging Face transformers. Raises CheckpointError if a special id of the source or the target
    is larger than the last id of that side's vocabulary.
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

    Placeholders are known only if mtkit exported the model: then mtkit.json (MARKER) lists them. Any other user-defined
    piece is imported as a tag.
    """
    noted = read_json(directory / MARKER).get("own_symbols") if (directory / MARKER).exists() else None
    return [symbol for symbol in found.defined if symbol in noted] if isinstance(noted, list) else []


def _begin(begin: int | None, special: SpecialIds) -> int | None:
    """Returns `begin`, the id of the begin mark, or `None` if padding or the end mark in `special` has the same id."""
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
    """Returns the settings of the imported model, including those of its tokenizer and languages.

    `languages` are the codes of source and target; `None` takes those of the checkpoint. `bans_unknown` tells whether
    the checkpoint forbids <unk> in translations.
    """
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
        **{key: bundle.description[key] for key in ("training", "imported", "shortlist") if key in bundle.description},
        "mtkit": __version__,
        "source_vocab_size": sizes[0],
        "target_vocab_size": sizes[1],
        "num_parameters": sum(map(Tensor.numel, weights.values())),
        UNTRAINED: untrained,
        **({UNTRAINED_TAGS: untrained_tags} if untrained_tags else {}),
    }
    shortlist = bundle.shortlist()
    if shortlist is not None:
        new_rows = torch.full((sizes[0] - len(shortlist["of_source"]), shortlist["of_source"].shape[1]), -1)
        shortlist["of_source"] = torch.cat([shortlist["of_source"], new_rows.int()])
    translator = translator_of(config, tokenizer, weights, untrained)
    canaries = make_canaries(translator, [canary.source for canary in bundle.canaries()])
    save_bundle(output, weights, config, tokenizer.save, about, canaries, shortlist)
    new = open_bundle(output)
    save_scores(new, [], card_text(new, []))
    say(
        f"{len(pieces) + len(tags):,} new pieces: {sizes[0]:,} source and {sizes[1]:,} target ones now; they are said "
        f"once a training has started from {output}"
    )


def _spellings(old: Tokenizer, new: Tokenizer, of_source: bool) -> list[list[int]]:
    """Returns, for each piece that only `new` has, the ids of the pieces into which `old` splits the piece's text.

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
