"""Compares a model with its exports as their libraries read them: logits, greedy translations, BLEU of beam search.

.venv/bin/python scripts/compare_exports.py MODEL SOURCE REFERENCE

Exports the model to a temporary folder in every format that supports it, opens each export with its library, and
reports: the number of lines with the same ids and the same greedy translation, with the tags of the model before them
in turn; the largest difference of the logits of the references under teacher forcing (log-probabilities for
CTranslate2); the greedy translations that differ; and the BLEU of a beam of 5 in mtkit and in the library. Runs on the
CPU in fp32; a thousand captions take minutes.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from mtkit.bundle.opening import open_model
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import CheckpointError
from mtkit.exchange.formats import FORMATS, compare, export, portable
from mtkit.text.lines import read_lines
from mtkit.text.parallel import tagged
from mtkit.translation.decode import log_probs_of
from mtkit.translation.scores import validation_score
from mtkit.translation.translator import Translator, load

BATCH = 32
LIMIT = 200  # tokens of a translation, so that endless ones stop at the same length in all libraries
ENDS = ["decoding.max_length_ratio=0.001", f"decoding.max_length_extra={LIMIT}"]
GREEDY, BEAM = ["decoding.beam_size=1", *ENDS], ["decoding.beam_size=5", "decoding.length_penalty=1.0", *ENDS]


def main(model: Path, source: Path, reference: Path) -> None:
    """Print a report for each format."""
    sources, references = list(read_lines(source)), list(read_lines(reference))
    here = load(model, ["device=cpu", *GREEDY])
    greedy = timed("greedy here", lambda: here.translate(sources))
    beam = timed("beam here", lambda: load(model, ["device=cpu", *BEAM]).translate(sources))
    print(f"mtkit: beam 5 BLEU {bleu(here, beam, references):.2f}")
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            try:
                export(model, name, Path(folder) / name)
            except CheckpointError as error:
                print(f"{name}: not exported: {error}")
                continue
            print(f"{name}: {agreement_text(here, model, name, Path(folder) / name, sources)}")
            there = OPENED[name](Path(folder) / name, here)
            print(f"{name}: largest difference of {there.what}: {there.difference(sources, references):.1e}")
            found = timed("greedy there", lambda there=there: there.translate(sources, 1))
            different = [number for number, both in enumerate(zip(greedy, found, strict=True)) if both[0] != both[1]]
            print(f"{name}: {len(different)} of {len(sources)} greedy translations differ")
            for number in different[:10]:
                print(f"    line {number + 1}: {greedy[number]} | {found[number]}")
            translated = timed("beam there", lambda there=there: there.translate(sources, 5))
            print(f"{name}: beam 5 BLEU {bleu(here, translated, references):.2f}")


def agreement_text(here: Translator, path: Path, name: str, directory: Path, lines: Sequence[str]) -> str:
    """Text on how many lines the library encodes and translates as mtkit does, with the model's tags in turn."""
    tags = here.tags or [None]
    text = [tagged(line, tag) for line, tag in zip(lines, cycle(tags), strict=False) if line.strip()]
    exported, format_ = portable(open_model(path), here), FORMATS[name]
    texts = format_.texts(directory, exported)
    agreement = None if texts is None else compare(here, exported, text, texts, format_.observe, directory)
    return "its library is not here" if agreement is None else next(agreement.report())


def timed(what: str, work: Callable[[], Any]) -> Any:
    """The result of work; prints the seconds it took."""
    begun = time.monotonic()
    result = work()
    print(f"    {what}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
    return result


def bleu(translator: Translator, hypotheses: list[str], references: list[str]) -> float:
    """BLEU of detokenised text."""
    return validation_score(hypotheses, references, "bleu", translator.config.languages.target)


def batches(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yields the lines in batches."""
    yield from (list(lines[begin : begin + BATCH]) for begin in range(0, len(lines), BATCH))


class HuggingFace:
    """An export opened by transformers, with its own tokenizer."""

    what = "logits"

    def __init__(self, directory: Path, here: Translator) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.here = here
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).eval()

    @torch.inference_mode()
    def translate(self, lines: Sequence[str], beam_size: int) -> list[str]:
        """Translate with the generation settings of the files, except the beam size and the length limit."""
        found = []
        for some in batches(lines):
            tokens = self.tokenizer(some, return_tensors="pt", padding=True)
            generated = self.model.generate(**tokens, num_beams=beam_size, do_sample=False, max_length=LIMIT + 2)
            found += self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return found

    @torch.inference_mode()
    def difference(self, sources: Sequence[str], references: Sequence[str]) -> float:
        """Largest absolute difference of logits over all tokens of the references and the whole vocabulary."""
        ours, furthest = self.here.tokenizer, 0.0
        vocabulary = self.tokenizer.get_vocab()
        order = [vocabulary[piece] for piece in ours.target_pieces(range(ours.target_vocab_size))]
        boundaries = self.here.model.boundaries
        for some, others in zip(batches(sources), batches(references), strict=True):
            batch = padded_batch(ragged(ours.encode_source(some)), ragged(ours.encode_target(others)), boundaries)
            wanted = self.here.model.output(self.here.model(batch.source, batch.target))
            moved = torch.tensor(order)
            logits = self.model(
                input_ids=torch.where(batch.source.mask, moved[batch.source.ids], self.model.config.pad_token_id),
                attention_mask=batch.source.mask.long(),
                decoder_input_ids=moved[batch.target.ids],
            ).logits[:, :, order]
            furthest = max(furthest, float((logits - wanted)[batch.target.mask].abs().max()))
        return furthest


class CTranslate2:
    """An export opened by CTranslate2, with SentencePiece models as tokenizers."""

    what = "log-probabilities"

    def __init__(self, directory: Path, here: Translator) -> None:
        import ctranslate2
        import sentencepiece

        self.here = here
        self.translator = ctranslate2.Translator(str(directory), device="cpu", intra_threads=1)
        self.source = sentencepiece.SentencePieceProcessor(model_file=str(directory / "source.spm"))
        self.target = sentencepiece.SentencePieceProcessor(model_file=str(directory / "target.spm"))

    def translate(self, lines: Sequence[str], beam_size: int) -> list[str]:
        """Translate as the README in the export describes."""
        special = self.here.tokenizer.specials.target
        suppressed = [[piece] for piece in self.here.tokenizer.target_pieces(special.never_generated)]
        results = self.translator.translate_batch(
            self.source.encode(list(lines), out_type=str),
            beam_size=beam_size,
            length_penalty=1.0,
            suppress_sequences=suppressed,
            max_decoding_length=LIMIT,
            max_batch_size=BATCH,
        )
        return self.target.decode([result.hypotheses[0] for result in results])

    def difference(self, sources: Sequence[str], references: Sequence[str]) -> float:
        """Largest absolute difference of log-probabilities over all tokens of the references."""
        ours = self.here.tokenizer
        ids = ours.encode_source(sources), ours.encode_target(references)
        wanted = log_probs_of(self.here.model, *ids, 4096)
        pieces = [ours.source_pieces(row) for row in ids[0]], [ours.target_pieces(row) for row in ids[1]]
        found = self.translator.score_batch(*pieces, max_batch_size=BATCH)
        return max(
            abs(one - other)
            for result, row in zip(found, wanted, strict=True)
            for one, other in zip(result.log_probs, row, strict=True)
        )


OPENED: dict[str, Callable[[Path, Translator], Any]] = {
    "ctranslate2": CTranslate2,
    "marian": HuggingFace,
    "m2m100": HuggingFace,
}

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
