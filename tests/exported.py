"""Helpers for tests of exported and imported models: random weights, and comparison with transformers' models."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import padded_batch, ragged
from mtkit.exchange.huggingface import in_marian_order, write_marian_tokenizer, write_marian_weights
from mtkit.exchange.portable import PortableModel, Vocabulary
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import empty_model, fill_model, new_model
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import DEFAULT_IDS, Specials
from mtkit.translation.decode import decode, next_log_probs
from mtkit.translation.search import beam_search, power


def names(size: int) -> list[str]:
    return ["<pad>", "<unk>", "<s>", "</s>", "<0x00>", *(f"▁{number}" for number in range(size - 5))]


def lively(model: TranslationModel) -> TranslationModel:
    """Adds noise to all weights, so that no two tokens are almost equally likely; rows of zeros stay zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                noise *= (weight != 0).any(-1, keepdim=True)
            weight += (0.5 if "norm" in name or "bias" in name else 0.15) * noise
    return model.eval()


def model_of(portable: PortableModel) -> TranslationModel:
    """The mtkit model with these weights."""
    sizes = len(portable.source.pieces), len(portable.target.pieces)
    model = empty_model(portable.config.model, *sizes, Specials(portable.source.special, portable.target.special))
    fill_model(model, portable.weights, "test")
    return model.requires_grad_(False).eval()


def rows(num: int, size: int, special: Sequence[int], seed: int) -> list[list[int]]:
    """Random sentences of 1 to 8 tokens, without special ids."""
    generator = torch.Generator().manual_seed(seed)
    plain = torch.tensor([token for token in range(size) if token not in special])
    lengths = torch.randint(1, 9, (num,), generator=generator).tolist()
    return [plain[torch.randint(len(plain), (n,), generator=generator)].tolist() for n in lengths]


def sentences_of(portable: PortableModel, num: int = 20) -> tuple[list[list[int]], list[list[int]]]:
    source, target = portable.source, portable.target
    return (
        rows(num, len(source.pieces), source.special.all, 1),
        rows(num, len(target.pieces), target.special.all, 2),
    )


@torch.no_grad()
def check_logits(portable: PortableModel, theirs: Any) -> None:
    """Checks that both models give the same logits under teacher forcing, on a padded batch."""
    model = model_of(portable)
    batch = padded_batch(*map(ragged, sentences_of(portable)), model.boundaries)
    ours = model.output(model(batch.source, batch.target))
    found = theirs(
        input_ids=batch.source.ids, attention_mask=batch.source.mask.long(), decoder_input_ids=batch.target.ids
    ).logits
    real = batch.target.mask
    assert ours.shape == found.shape
    assert (ours - found)[real].abs().max() < 1e-4
    assert ours[real].std() > 0.5


def check_greedy(portable: PortableModel, theirs: Any, forbidden: Sequence[int]) -> None:
    model = model_of(portable)
    sources, _ = sentences_of(portable, 4)
    decoding = DecodingConfig(beam_size=1, max_length_ratio=1.0, max_length_extra=6)  # theirs takes long for a token
    ours = [best.tokens for [best] in decode(model, decoding, sources, forbidden=forbidden)]
    for source, tokens in zip(sources, ours, strict=True):
        ids = torch.tensor([[*source, model.boundaries.source_end]])
        most = len(source) + 6
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=1,
            do_sample=False,
            max_length=most + 2,
            bad_words_ids=[[id_] for id_ in forbidden],
            forced_eos_token_id=model.boundaries.target_end,
        )[0, 1:].tolist()
        if model.boundaries.target_end in found:
            found = found[: found.index(model.boundaries.target_end)]
        assert found == tokens


@dataclass(frozen=True)
class Written:
    """A decoding state for transformers' model: the tokens of each hypothesis so far, without a cache."""

    sources: Tensor  # (R, S)
    mask: Tensor  # (R, S)
    read: Tensor  # (R, W, T)

    def branch(self, parents: Tensor) -> "Written":
        index = parents[:, :, None].expand(-1, -1, self.read.shape[2])
        return Written(self.sources, self.mask, self.read.gather(1, index))

    def keep(self, sentences: Tensor) -> "Written":
        return Written(self.sources[sentences], self.mask[sentences], self.read[sentences])


@torch.no_grad()
def their_step(theirs: Any, forbidden: Sequence[int], ids: Tensor, state: Written) -> tuple[Tensor, Written]:
    read = torch.cat([state.read, ids[:, :, None]], dim=2)
    num_rows, width, length = read.shape
    logits = theirs(
        input_ids=state.sources.repeat_interleave(width, 0),
        attention_mask=state.mask.repeat_interleave(width, 0),
        decoder_input_ids=read.view(num_rows * width, length),
    ).logits[:, -1]
    log_probs = logits.log_softmax(-1).view(num_rows, width, -1)
    log_probs[:, :, list(forbidden)] = float("-inf")
    return log_probs, Written(state.sources, state.mask, read)


def check_beam(portable: PortableModel, theirs: Any, forbidden: Sequence[int]) -> None:
    """Checks that our beam search finds the same hypotheses with their logits as with ours."""
    model = model_of(portable)
    num, longest = 5, 8
    sources, _ = sentences_of(portable, num)
    batch = padded_batch(ragged(sources), ragged(sources), model.boundaries)
    start, most = torch.full((num,), model.boundaries.start), torch.full((num,), longest)
    search = (start, most, model.boundaries.target_end, 4, partial(power, exponent=1.0))
    with torch.no_grad():
        step = partial(next_log_probs, model, forbidden)
        ours = beam_search(step, model.encode(batch.source), *search)
    written = Written(batch.source.ids, batch.source.mask.long(), torch.zeros(num, 1, 0, dtype=torch.int64))
    found = beam_search(partial(their_step, theirs, forbidden), written, *search)
    assert [[h.tokens for h in row] for row in ours] == [[h.tokens for h in row] for row in found]
    assert [row[0].score for row in ours] == pytest.approx([row[0].score for row in found], abs=1e-4)


def loaded(directory: Path, kind: str = "MarianMTModel") -> Any:
    """The model that transformers loads, without missing or unexpected weights."""
    transformers: Any = pytest.importorskip("transformers")
    model, report = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def write_opus(directory: Path, run: Path) -> None:
    """Write a checkpoint like those of OPUS-MT on the Hugging Face hub, with random weights and a run's tokenizer."""
    tokenizer = Tokenizer.load(run / "model" / "tokenizer")
    model = {"d_model": 32, "num_heads": 4, "d_ff": 64, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.1}
    marian = {"norm_placement": "post", "activation": "silu", "output_bias": True, "start_token": "zero"}
    settings = {"model": {**model, **marian}, "languages": {"source": "fr", "target": "en"}}
    config = Config.model_validate_json(json.dumps(settings))
    sizes = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    weights = dict(lively(new_model(config.model, *sizes, seed=1)).named_parameters())
    source, target = (
        Vocabulary(pieces(range(size)), DEFAULT_IDS, model_bytes)
        for pieces, size, model_bytes in (
            (tokenizer.source_pieces, sizes[0], tokenizer.source_sentencepiece()),
            (tokenizer.target_pieces, sizes[1], tokenizer.target_sentencepiece()),
        )
    )
    portable = in_marian_order(PortableModel(config, {n: w.detach() for n, w in weights.items()}, source, target))
    directory.mkdir(parents=True)
    write_marian_weights(portable, directory)
    write_marian_tokenizer(portable, directory)
