"""Guided alignment: one attention head learns given word alignments, which binarize maps to pieces."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mtkit.bundle.opening import checkpoint_steps
from mtkit.config.data_and_model_settings import AnyModelConfig, RecurrentConfig, TransformerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import AlignedTokens, Batch, PlannedBatch, aligned_tokens, padded_batch, ragged
from mtkit.data.corpus import Corpus
from mtkit.errors import DataError
from mtkit.models.registry import new_model
from mtkit.preparation.prepare import binarize, binarized_changes
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import word_of_each_piece
from mtkit.training.optimizers import Adam
from mtkit.training.train import Trainer
from mtkit.training.update import alignment_cross_entropy, cross_entropy
from mtkit.translation.decode import source_attention
from tests.conftest import CorpusFiles, write_lines
from tests.runs import Killed, at_step, doing, kill, outcome, trained

GUIDED = TrainingConfig(guided_alignment=Path("x.align"), guided_alignment_weight=1.0, label_smoothing=0.0)
SIZES = {"d_model": 16, "dropout": 0.0, "encoder_layers": 1, "decoder_layers": 1}


def links_batch(links: list[tuple[int, int, int]], shares: list[float], batch: Batch) -> Batch:
    """The batch with links (row, target, source)."""
    rows, targets, sources = torch.tensor(links).T
    return Batch(**{**vars(batch), "alignment": AlignedTokens(rows, targets, sources, torch.tensor(shares))})


def test_the_loss_is_the_cross_entropy_of_one_head_with_the_aligned_tokens() -> None:
    torch.manual_seed(1)
    attention = [torch.rand(2, 2, 4, 5).softmax(-1).requires_grad_() for _ in range(3)]
    batch = links_batch(
        [(0, 0, 3), (0, 2, 1), (0, 2, 4), (1, 3, 0)],
        [1, 0.5, 0.5, 1],
        padded_batch(ragged([[5, 6, 7, 8], [5]]), ragged([[5, 6, 7], [5, 6, 7]])),
    )
    settings = GUIDED.model_copy(update={"guided_alignment_head": 2})
    found = alignment_cross_entropy(attention, batch, settings)
    head = attention[1][:, 1]  # of three layers, the last but one
    wanted = -(head[0, 0, 3].log() + (head[0, 2, 1].log() + head[0, 2, 4].log()) / 2 + head[1, 3, 0].log())
    assert torch.allclose(found, wanted)
    found.backward()
    assert [layer.grad is None for layer in attention] == [True, False, True]
    assert not attention[1].grad[:, 0].any()


@pytest.mark.parametrize("model", [TransformerConfig(num_heads=2, d_ff=32, **SIZES), RecurrentConfig(**SIZES)])
def test_a_guided_head_learns_to_reverse_in_a_few_updates(model: AnyModelConfig) -> None:
    torch.manual_seed(1)
    lines = torch.randint(4, 20, (64, 5)).tolist()
    targets = [line[::-1] for line in lines]
    batch = padded_batch(ragged(lines), ragged(targets))
    links = [(row, place, 4 - place) for row in range(64) for place in range(5)]
    batch = links_batch(links, [1.0] * len(links), batch)
    agreement = {}
    for settings in (GUIDED, TrainingConfig(label_smoothing=0.0)):
        translator = new_model(model, 20, 20, seed=1)
        optimizer = Adam(translator.parameters(), lr=0.02)
        for _ in range(40):
            (cross_entropy(translator, batch, settings).total / 320).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights = source_attention(translator.eval(), lines, targets, 4096, lambda layers: layers[0][:, 0])
        found = torch.stack(weights).argmax(2)  # (R, T)
        agreement[settings is GUIDED] = (found == torch.arange(4, -1, -1)).float().mean()
    assert agreement[True] > 0.9 > agreement[False]


def with_alignments(config: Config, lines: list[str], **training: object) -> Config:
    """The settings with guided alignment by a file with these lines, in the run directory's folder."""
    path = config.run_path.parent / "train.align"
    write_lines(path, lines)
    update = {"guided_alignment": path, **training}
    return config.model_copy(update={"training": config.training.model_copy(update=update)})


def diagonals(corpus_files: CorpusFiles) -> list[str]:
    """The alignments of the toy training text, which translates word by word."""
    return [" ".join(f"{i}-{i}" for i in range(len(line.split()))) for line in corpus_files.lines("train")[0]]


def test_pairs_that_are_left_out_keep_their_lines(
    make: Callable[..., Config], corpus_files: CorpusFiles, tmp_path: Path
) -> None:
    config = make()
    texts = (["four nine", "", "one two three"], ["4 9", "7", "1 2 3"])
    for name, text in zip(("a.src", "a.tgt"), texts, strict=True):
        write_lines(tmp_path / name, text)
    parts = [{"source": tmp_path / "a.src", "target": tmp_path / "a.tgt"}, corpus_files.pair("train")]
    train = [type(config.data.train[0]).model_validate(part, strict=False) for part in parts]
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": tuple(train)})})
    lines = ["0-1 1-0", "", "2-0"]
    config = with_alignments(config, [*lines, *diagonals(corpus_files)])
    binarize(config)
    corpus, tokenizer = Corpus.open(config.run_path / "data" / "train"), Tokenizer.load(config.run_path / "tokenizer")
    assert corpus.has_links
    assert not binarized_changes(config)
    for pair, wanted in enumerate([{(0, 1), (1, 0)}, {(2, 0)}, *[None] * 20]):
        source = word_of_each_piece(tokenizer.source_pieces(corpus.source(pair).tolist()))
        target = word_of_each_piece(tokenizer.target_pieces(corpus.target(pair).tolist()))
        wanted = wanted or {(word, word) for word in source}
        pieces = {(s, t) for s, i in enumerate(source) for t, j in enumerate(target) if (i, j) in wanted}
        assert set(map(tuple, corpus.links(pair).tolist())) == pieces
    batch = aligned_tokens(corpus, PlannedBatch(np.array([1, 0, 1]), np.arange(3)))
    assert set(batch.rows.tolist()) == {0, 1, 2}
    linked = []
    for rows in ([0, 1, 2], [0, 0, 1]):
        chosen = PlannedBatch(np.array([2, 1, 0]), np.array(rows))
        sides = [[read(pair).tolist() for pair in chosen.pairs] for read in (corpus.source, corpus.target)]
        whole, found = padded_batch(*map(ragged, sides), rows=chosen.rows), aligned_tokens(corpus, chosen)
        ids = whole.source.ids[found.rows, found.sources], whole.labels[found.rows, found.targets]
        linked.append(sorted(zip(*(each.tolist() for each in (*ids, found.shares)), strict=True)))
    assert linked[0] == linked[1], "packed rows link the same tokens"
    for row in range(3):  # the shares of each target token add up to 1
        sums = torch.zeros(9).index_add(0, batch.targets[batch.rows == row], batch.shares[batch.rows == row])
        assert set(sums.tolist()) <= {0.0, 1.0}

    write_lines(tmp_path / "train.align", [*lines, *reversed(diagonals(corpus_files))])
    [told] = binarized_changes(config)
    assert told.startswith("training.guided_alignment: ")
    assert told.endswith("train.align holds other alignments")
    faults = {
        "train.align has 1,502 lines, wants 1,503: one for each pair": [*lines, *diagonals(corpus_files)[1:]],
        "train.align:1: found 0-2, but the target has 2 words": ["0-2", *lines[1:], *diagonals(corpus_files)],
    }
    for told, changed in faults.items():
        with pytest.raises(DataError, match=told):
            binarize(with_alignments(config, changed))


def test_a_killed_guided_training_ends_with_the_same_weights(
    make: Callable[..., Config], corpus_files: CorpusFiles
) -> None:
    def prepared(name: str) -> Config:
        config = with_alignments(make(name, max_steps=8, save_every=4), diagonals(corpus_files))
        if not (config.run_path / "ready").exists():
            binarize(config)
            (config.run_path / "ready").touch()
        return config

    wanted = outcome(trained(prepared("whole")))
    with doing(kill, Trainer, "_update", at_step(6)), pytest.raises(Killed):
        trained(prepared("killed"))
    config = prepared("killed")
    assert checkpoint_steps(config.run_path / "checkpoints") == [4]
    moved = config.run_path.parent / "moved.align"  # the file may be moved, since its content is in the corpus
    shutil.move(config.training.guided_alignment, moved)
    training = config.training.model_copy(update={"guided_alignment": moved})
    assert outcome(trained(config.model_copy(update={"training": training}))) == wanted


def test_training_wants_the_alignments_in_the_corpus(make: Callable[..., Config]) -> None:
    config = with_alignments(make(), [])
    with pytest.raises(DataError, match=r"holds no word alignments, which training\.guided_alignment learns"):
        trained(config)
