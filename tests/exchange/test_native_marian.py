"""Models that Marian wrote are imported, and say what Marian says."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtkit.bundle.bundle import open_bundle
from mtkit.cli import _run
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import CheckpointError, MtkitError
from mtkit.exchange.formats import import_model
from mtkit.exchange.huggingface import read_vocabularies
from mtkit.exchange.native_marian import read_native_marian
from mtkit.translation.decode import decode
from mtkit.translation.translator import Translator, load
from tests.marian_files import (
    OPTIONS,
    PRE,
    SEPARATE,
    VARIATIONS,
    as_yaml,
    has_two,
    log_probs,
    marian_says,
    save_npz,
    write_native,
    write_sentencepiece,
)

LINES = ["one two three", "nine", "four five  six seven", "zero zero eight", "six one", "two"]


def imported(folder: Path) -> Translator:
    import_model(folder, folder / "imported")
    return load(folder / "imported", ["device=cpu"])


@torch.no_grad()
def ours(translator: Translator, sources: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
    """The log-probabilities of the words of the targets and of their ends."""
    [model] = getattr(translator.model, "models", [translator.model])
    batch = padded_batch(ragged(sources), ragged(targets), model.boundaries)
    found = model.output(model(batch.source, batch.target)).log_softmax(-1)
    end = model.boundaries.target_end
    return [
        [found[row, place, word].item() for place, word in enumerate([*target, end])]
        for row, target in enumerate(targets)
    ]


@pytest.fixture(scope="session")
def natives(tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any], dict[str, Any], Translator]]:
    """Every variation: where it lies, its options, its arrays, and what was imported."""
    root, made = tmp_path_factory.mktemp("native"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtkit.exchange.formats.make_canaries", lambda *_: [])  # they take half of the time of an import
        for number, (name, options) in enumerate(VARIATIONS.items()):
            folder = root / str(number)
            arrays = write_native(folder, transposed=name.endswith("transposed"), **options)
            made[name] = folder, {**OPTIONS, **options}, arrays, imported(folder)
    return made


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_variation_says_what_its_formulas_say(natives, name):
    _, options, arrays, translator = natives[name]
    sources = translator.tokenizer.encode_source(LINES)
    targets = [[9, 7, 5, 2], [], [3, 3, 10], [11], [8, 4], [2] * 7]
    for found, source, target in zip(ours(translator, sources, targets), sources, targets, strict=True):
        assert found == pytest.approx(log_probs(options, arrays, source, target), abs=1e-4)


def different(translations: list[list[str]]) -> list[list[str]]:
    """The first of each text: mtkit gives no text twice."""
    return [told for place, told in enumerate(translations) if told[1] not in [t[1] for t in translations[:place]]]


def greedy_of(translator: Translator, source: list[int]) -> list[int]:
    """The tokens of the greedy translation, as long as Marian allows by default."""
    limits = {"beam_size": 1, "max_length_ratio": 3.0, "max_length_extra": 3}
    return decode(translator.model, translator.config.decoding.model_copy(update=limits), [source])[0][0].tokens


# Marian 1.12 stores biases and weights of norms whatever these options say, and loads no model without them.
NOT_FOR_MARIAN = ("older gelu", "no biases", "norms without weights")


def test_marian_itself_gives_the_same_scores_and_texts(natives):
    """Greedily word by word, and with a beam; of a beam the best two, unless Marian cut them off.

    With norms before the sublayers, Marian 1.12 searches otherwise than it trains and validates: from the second word
    on, the keys and values of its decoder are not normalised. There only the first word is compared.
    """
    pytest.importorskip("pymarian", reason="pymarian is not installed: pip install 'mtkit[marian]'")
    names = [name for name in VARIATIONS if name not in NOT_FOR_MARIAN]
    jobs = []
    for name in names:
        folder, options, _, _ = natives[name]
        vocabularies = ("vocab.src.spm", "vocab.trg.spm") if has_two(options) else ("vocab.spm", "vocab.spm")
        files = f"-m {folder / 'model.npz'} -v {' '.join(str(folder / each) for each in vocabularies)}"
        model = f"{files} --n-best --word-scores --normalize 0.6 --beam-size"
        jobs += [(f"{model} 1", LINES), (f"{model} 3", LINES)]
    said, num_ended = iter(marian_says(jobs)), 0
    for name in names:
        greedy, beam = next(said), next(said)
        _, options, _, translator = natives[name]
        is_pre = options["transformer-preprocess"] == "n"
        sources = translator.tokenizer.encode_source(LINES)
        mine = translator.translate_lines(LINES, num_best=3)
        lists = [[told.split(" ||| ") for told in beam if told.startswith(f"{n} |||")] for n in range(len(LINES))]
        for source, told, theirs_best, line in zip(sources, greedy, lists, mine, strict=True):
            _, text, scores, _, _ = told.split(" ||| ")
            theirs = [float(score) for score in scores.split("=")[1].split()]
            tokens = greedy_of(translator, source)
            upto = 1 if is_pre else len(theirs)
            assert ours(translator, [source], [tokens])[0][:upto] == pytest.approx(theirs[:upto], abs=1e-4), name
            if not is_pre and len(theirs) < 3 * len(source) + 3:
                assert translator.tokenizer.decode_target([tokens]) == [text.strip()], name
            for (_, text, scores, _, total), found in zip(different(theirs_best)[:2], line.translations, strict=False):
                if is_pre or len(scores.split("=")[1].split()) >= 2 * len(source):
                    break
                num_ended += text.strip() != ""
                assert found.text == text.strip(), name
                assert found.score == pytest.approx(float(total), abs=1e-4), name
    assert num_ended > len(names)


def test_the_layout_of_opus_archives_is_imported(tmp_path, capsys):
    """Lists of pieces beside source.spm and target.spm, a decoder.yml, and files that mean nothing here."""
    folder = tmp_path / "opus"
    write_native(folder, kind="yml")
    (folder / "model.npz").rename(folder / "opus.spm32k-spm32k.transformer-align.model1.npz.best-perplexity.npz")
    told = (folder / "decoder.yml").read_text().replace("model.npz", "opus.spm32k-spm32k.transformer-align.model1.npz")
    (folder / "decoder.yml").write_text(told.replace('model1.npz"', 'model1.npz.best-perplexity.npz"'))
    for name in ("README.md", "LICENSE", "preprocess.sh", "postprocess.sh"):
        (folder / name).write_text("text\n")
    assert _run(["import", str(folder), "-o", str(tmp_path / "model"), "--languages", "fr-en"]) == 0
    assert "preprocess.sh: is not run; what it does to text before SentencePiece is left out" in capsys.readouterr().err
    translator = load(tmp_path / "model", ["device=cpu"])
    size = translator.tokenizer.source_vocab_size
    assert translator.tokenizer.source_pieces([0, 1, size - 1]) == ["</s>", "<unk>", "<pad>"]
    assert translator.config.decoding.beam_size == 3
    assert translator.config.decoding.length_penalty == 0.6
    assert translator.config.languages.source == "fr"
    source = translator.tokenizer.encode_source(["one two"])[0]
    model = write_sentencepiece(tmp_path / "again.spm", 0, 50)
    assert translator.tokenizer.source_pieces(source) == model.encode("one two", out_type=str)
    assert len(translator.translate(["one two", "nine"])) == 2
    about = open_bundle(tmp_path / "model").description["imported"]
    assert about["layout"] == "native-marian"
    assert len(about["files"]) == 5


def test_a_language_tag_of_the_list_is_one_token_outside_sentencepiece(tmp_path):
    write_native(tmp_path / "opus", kind="yml")
    path = tmp_path / "opus" / "opus.spm32k-spm32k.vocab.yml"
    lines = path.read_text("utf-8").split("\n")
    lines[-2] = f'">>fra<<": {len(lines) - 2}'
    path.write_text("\n".join(lines), "utf-8")
    tokenizer = imported(tmp_path / "opus").tokenizer
    assert tokenizer.tags == (">>fra<<",)
    [tagged, plain] = tokenizer.encode_source([">>fra<< one", "one"])
    assert tagged == [len(lines) - 2, *plain]


def test_a_folder_of_marians_training_names_its_model_or_is_told_it(tmp_path):
    folder = tmp_path / "trained"
    write_native(folder)
    (folder / "decoder.yml").rename(folder / "model.npz.decoder.yml")
    (folder / "model.npz.optimizer.npz").write_bytes(b"not read")
    assert read_native_marian(folder).model.config.decoding.beam_size == 3
    (folder / "model.iter10.npz").write_bytes((folder / "model.npz").read_bytes())
    with pytest.raises(CheckpointError, match=r"holds 2 models \(model\.iter10\.npz, model\.npz\) and no decoder\.yml"):
        read_native_marian(folder)
    for name in ("model.npz", "model.iter10.npz", "model.npz.decoder.yml"):
        assert read_native_marian(folder / name).vocabulary.shared


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"transformer-decoder-autoreg": "rnn"},
            "option transformer-decoder-autoreg is rnn; mtkit imports self-att",
        ),
        ({"type": "s2s"}, "option type is s2s; mtkit imports transformer alone"),
        ({"right-left": True}, "option right-left is true; mtkit imports false alone"),
        ({"transformer-no-projection": True}, "option transformer-no-projection is true"),
        ({"transformer-tied-layers": [1, 1]}, r"option transformer-tied-layers is \[1, 1\]"),
        ({"transformer-ffn-depth": 3}, "option transformer-ffn-depth is 3; mtkit imports 2 alone"),
        ({"transformer-attention-mask": "alibi"}, "option transformer-attention-mask is alibi"),
        ({"transformer-ffn-activation": "reglu"}, "activation is reglu; mtkit imports swish or relu or gelu alone"),
        ({"transformer-postprocess": "da"}, "transformer-postprocess 'da', .* mtkit imports '', 'dan', ''"),
        ({"transformer-postprocess-emb": "a"}, "option transformer-postprocess-emb is a; mtkit imports d or n or nd"),
        ({"transformer-ffn-gated": True}, "transformer-ffn-gated is true; mtkit knows no option of this name"),
        ({"lemma-dim-emb": 8}, "option lemma-dim-emb is 8"),
        ({"input-types": ["sequence", "class"]}, "option input-types is"),
        ({"dim-vocabs": [60, 60]}, r"vocab\.spm: has \d+ pieces, and the model's option dim-vocabs tells 60"),
        ({"dim-vocabs": [60, 60, 60]}, r"option dim-vocabs is \[60, 60, 60\]; wanted are the sizes of one source"),
        ({"transformer-heads": "two"}, "option transformer-heads is two; wanted is a whole number"),
        ({"transformer-heads": 3}, "d_model 16 is not a multiple of num_heads 3"),
        ({"tied-embeddings-all": "yes, all"}, "option tied-embeddings-all is yes, all; wanted is true or false"),
        ({"enc-depth": 3}, "holds no encoder_l3_self_Wq, which its options ask for"),
        (
            {"enc-depth": 1},
            "holds encoder_l2_ffn_W1, which mtkit's Transformer has no place for",
        ),
        ({"enc-depth": 10**12}, "holds no encoder_l3_self_Wq, which its options ask for"),
        ({"dim-emb": 10**12}, r"Wemb is \(48, 16\), its options ask for \(48, 1000000000000\)"),
        ({"transformer-dim-ffn": 10**12}, r"ffn_W1 is \(16, 24\), its options ask for \(16, 1000000000000\)"),
        ({"transformer-dim-ffn": 8}, r"encoder_l1_ffn_W1 is \(16, 24\), its options ask for \(16, 8\)"),
    ],
)
def test_an_option_that_mtkit_cannot_express_is_refused_by_name(changed, message, tmp_path):
    arrays = write_native(tmp_path / "model")
    sizes = {"dim-vocabs": [len(arrays["Wemb"])] * 2}
    save_npz(tmp_path / "model" / "model.npz", {**OPTIONS, **sizes, **changed}, arrays)
    with pytest.raises(MtkitError, match=message) as told:
        import_model(tmp_path / "model", tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def spoil_npz(folder: Path, **arrays: Any) -> None:
    with np.load(folder / "model.npz") as found:
        kept = {name: found[name] for name in found.files} | arrays
    with (folder / "model.npz").open("wb") as file:
        np.savez(file, **{name: array for name, array in kept.items() if array is not None})


def spoil_npy(folder: Path, shape: tuple[int, int]) -> None:
    """Let an array tell that it has this shape, and hold no numbers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(folder / "model.npz", "a") as file:
        file.writestr("extra.npy", header.getvalue())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.npz").write_bytes(b"PK\x03\x04 cut"), r"model\.npz: no \.npz of Marian, or damaged"),
        (lambda f: (f / "model.npz").unlink(), r"model\.npz: missing, and .*decoder\.yml names it; copy it there"),
        (lambda f: spoil_npz(f, extra=np.array([{}])), r"model\.npz: no \.npz of Marian, or damaged: Object arrays"),
        (lambda f: spoil_npz(f, **{"special:model.yml": None}), "holds no special:model.yml, which tells what the mod"),
        (lambda f: spoil_npz(f, Wpos=np.ones((9, 16), "f4")), "holds Wpos, which mtkit's Transformer has no place for"),
        (lambda f: spoil_npz(f, Wemb=np.ones((4, 4), "i1")), "Wemb is int8; mtkit imports float32 and float16"),
        (lambda f: spoil_npy(f, (1 << 40, 1 << 10)), r"model\.npz: no \.npz of Marian, or damaged"),
        (lambda f: spoil_npz(f, Wemb=np.full((4, 4), np.nan, "f4")), "Wemb has values that are not finite"),
        (lambda f: (f / "vocab.spm").write_bytes(b"\x0a\x05hello"), r"vocab\.spm: not a SentencePiece model"),
        (lambda f: (f / "vocab.spm").unlink(), r"vocab\.spm: missing, and .*decoder\.yml names it"),
        (lambda f: (f / "decoder.yml").write_text("models: [a.npz, b.npz]"), "models lists 2 files; mtkit imports one"),
        (lambda f: (f / "decoder.yml").write_text("models: 3"), "models is 3; wanted is a list of files"),
        (
            lambda f: (f / "decoder.yml").write_text("models: [model.npz]\nvocabs: [vocab.spm]"),
            "vocabs lists 1 files; wanted are those of source and target",
        ),
        (
            lambda f: (f / "decoder.yml").write_text("models: [model.npz]\nnormalize: x"),
            "normalize is x; wanted is a",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_told_in_one_line(spoil, message, tmp_path):
    write_native(tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(MtkitError, match=message) as told:
        import_model(tmp_path / "model", tmp_path / "out")
    assert "\n" not in str(told.value)


def test_two_vocabularies_are_told_apart_by_their_names(tmp_path):
    write_native(tmp_path / "model", kind="yml", **SEPARATE)
    (tmp_path / "model" / "decoder.yml").unlink()
    native = read_native_marian(tmp_path / "model")
    assert not native.vocabulary.shared
    (tmp_path / "model" / "a.vocab.yml").write_text("x: 0")
    with pytest.raises(CheckpointError, match="which files are the vocabularies of source and target is not told"):
        read_native_marian(tmp_path / "model")


PIECES = ["</s>", "<unk>", "no", "1.0", "~", "a: b", '"', "'", "\\", "#", "▁the", "\x85", "\u2028", "- x", "null", "é"]
WRITTEN = {
    "json quotes": as_yaml(PIECES),
    "single quotes": "".join("'" + piece.replace("'", "''") + f"': {id_}\n" for id_, piece in enumerate(PIECES)),
    "plain": "".join(
        f"? {json.dumps(piece)}\n: {id_}\n" if piece in ('"', "'") else f"{piece}: {id_}\n"
        for id_, piece in enumerate(PIECES)
    ),
    "json": json.dumps({piece: id_ for id_, piece in enumerate(PIECES)}),
    "escapes": as_yaml(PIECES).replace('"é"', '"\\xe9"').replace("\u2028", "\\L").replace("\x85", "\\N"),
    "lines": "\n".join(PIECES) + "\n",
    "of Nematus": as_yaml(["eos", "UNK", *PIECES[2:]]),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_way_to_write_a_list_of_pieces_is_read(kind, tmp_path):
    for name in ("source.spm", "target.spm"):
        write_sentencepiece(tmp_path / name, None, 50)
    path = tmp_path / ("vocab.txt" if kind == "lines" else "vocab.yml")
    path.write_text(WRITTEN[kind], encoding="utf-8", newline="")
    size = len(PIECES)
    source, target, files = read_vocabularies(tmp_path, [path, path], (size, size))
    assert source.pieces == target.pieces == [*PIECES, "<pad>"]
    assert (source.special.pad, source.special.unknown, source.special.begin, source.special.end) == (size, 1, None, 0)
    assert files == [path, tmp_path / "source.spm", tmp_path / "target.spm"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.yml", "</s>: 0\n<unk>: x\n", r"vocab\.yml:2: found '<unk>: x'; wanted is a piece, a colon and its id"),
        ("vocab.yml", '</s>: 0\n"<unk>: 1\n', r"vocab\.yml:2: found"),
        ("vocab.yml", "</s>: 0\n<unk>: 0\n", "'<unk>' or its id 0 stands there more than once"),
        ("vocab.yml", "</s>: 0\n<unk>: 2\n", "no piece has the id 1; wanted are all from 0 to 1"),
        ("vocab.yml", "a: 0\n<unk>: 1\n", "has no </s>, which Marian's vocabularies have"),
        ("vocab.yml", "{", "damaged"),
        ("vocab.txt", "a\na\n", "'a' stands there more than once"),
        ("vocab.fsv", "", "a factored vocabulary; mtkit imports those of .yml and .spm files"),
        ("vocab.spm", "\x0a\x05hello", "not a SentencePiece model"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_told(name, text, message, tmp_path):
    for side in ("source.spm", "target.spm"):
        write_sentencepiece(tmp_path / side, None, 50)
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_vocabularies(tmp_path, [tmp_path / name] * 2, (2, 2))


def test_a_list_without_a_model_that_cuts_text_is_refused(tmp_path):
    (tmp_path / "vocab.yml").write_text("</s>: 0\n<unk>: 1\n")
    (tmp_path / "source.bpe").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match=r"source\.spm: missing; .*source\.bpe is of subword-nmt, which mtkit d"):
        read_vocabularies(tmp_path, [tmp_path / "vocab.yml"] * 2, (2, 2))


def test_what_the_search_of_marian_has_and_ours_has_not_is_told(tmp_path, capsys):
    write_native(tmp_path / "model", **PRE)
    with (tmp_path / "model" / "decoder.yml").open("a") as file:
        file.write("word-penalty: 0.5\nmax-length-factor: 3\n")
    decoding = read_native_marian(tmp_path / "model").model.config.decoding
    assert (decoding.max_length_ratio, decoding.max_length_extra) == (3.0, 3)
    assert "word-penalty 0.5 is left out; mtkit's search has none" in capsys.readouterr().err
