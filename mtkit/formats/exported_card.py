"""README.md of an exported model: how its library translates with it."""

from collections.abc import Callable

from mtkit.formats.huggingface_config import silent_ids
from mtkit.formats.huggingface_tokenizer import misread_tags
from mtkit.formats.portable import PortableModel

# SentencePiece does not know these tags: each is a token of its own before the pieces of the line.
_CUT_TAGS = """    tags = {tags}
    def pieces(line):
        first, _, rest = line.partition(" ")
        return [first, *pieces(rest)] if first in tags else source.encode(line, out_type=str)
"""


def ctranslate2_card(model: PortableModel) -> str:
    """With CTranslate2 and SentencePiece."""
    decoding, pieces = model.config.decoding, model.target.pieces
    silent = [[pieces[id_]] for id_ in silent_ids(model) if id_ != model.target.special.unknown]
    unknown = "" if model.target.special.unknown not in silent_ids(model) else ", disable_unk=True"
    longest = int(model.config.data.max_length * decoding.max_length_ratio) + decoding.max_length_extra
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
        beam_size={decoding.beam_size}, length_penalty={decoding.length_penalty:g},
        suppress_sequences={silent}{unknown},
        max_input_length={model.config.data.max_length}, max_decoding_length={longest},
        min_decoding_length={decoding.min_length}, no_repeat_ngram_size={decoding.no_repeat_ngram},
    )
    print(target.decode([result.hypotheses[0] for result in results]))

What is suppressed no translation may hold. A source of more tokens than max_input_length is cut: split it. A blank line
wants no translation: leave it out.{form}
"""


def marian_card(model: PortableModel) -> str:
    """With transformers."""
    if not (tags := misread_tags(model)):
        return _huggingface(model, "MarianMTModel", "MarianTokenizer")
    return f"""{_huggingface(model, "MarianMTModel", "AutoTokenizer")}
Take AutoTokenizer, which opens tokenizer.json: a MarianTokenizer would read {", ".join(tags)} as other ids.
"""


def m2m100_card(model: PortableModel) -> str:
    """With transformers."""
    return _huggingface(model, "M2M100ForConditionalGeneration", "AutoTokenizer")


def _huggingface(model: PortableModel, kind: str, tokenizer: str) -> str:
    return f"""{_heading(model, f"a {kind} of Hugging Face transformers")}
    from transformers import {kind}, {tokenizer}

    tokenizer, model = {tokenizer}.from_pretrained("."), {kind}.from_pretrained(".")
    said = model.generate(**tokenizer(lines, return_tensors="pt", padding=True))
    print(tokenizer.batch_decode(said, skip_special_tokens=True))

Beam, length penalty and what is never said stand in generation_config.json.
"""


def _heading(model: PortableModel, what: str) -> str:
    config = model.config
    return f"""# {config.name}: {config.languages.source} to {config.languages.target}

A translation model for {what}, exported by mtkit. In this directory:
"""


CARDS: dict[str, Callable[[PortableModel], str]] = {
    "ctranslate2": ctranslate2_card,
    "marian": marian_card,
    "m2m100": m2m100_card,
}
