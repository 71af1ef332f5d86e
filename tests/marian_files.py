"""Models in Marian's file format and their log-probabilities, both made with numpy, and Marian itself if installed."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from tests.conftest import toy_pairs

Arrays = dict[str, NDArray[Any]]

OPTIONS: dict[str, Any] = {
    "type": "transformer",
    "dim-emb": 16,
    "enc-depth": 2,
    "dec-depth": 2,
    "transformer-heads": 2,
    "transformer-dim-ffn": 24,
    "transformer-decoder-dim-ffn": 0,
    "transformer-ffn-depth": 2,
    "transformer-ffn-activation": "swish",
    "transformer-decoder-autoreg": "self-attention",
    "transformer-guided-alignment-layer": "last",
    "transformer-preprocess": "",
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": "",
    "transformer-no-projection": False,
    "transformer-depth-scaling": False,
    "transformer-tied-layers": [],
    "tied-embeddings": False,
    "tied-embeddings-src": False,
    "tied-embeddings-all": True,
    "output-omit-bias": False,
    "right-left": False,
    "input-types": [],
    "lemma-dim-emb": 0,
    "ulr": False,
    "version": "v1.12.42 b7be0e964 2025-05-24 22:34:42 -0700",
}
SEPARATE = {"tied-embeddings-all": False}
PRE = {"transformer-preprocess": "n", "transformer-postprocess": "da", "transformer-postprocess-top": "n"}
VARIATIONS: dict[str, dict[str, Any]] = {
    "post": {},
    "pre": PRE,
    "relu": {"transformer-ffn-activation": "relu"},
    "gelu": {"transformer-ffn-activation": "gelu"},
    "older gelu": {"transformer-ffn-activation": "gelu", "version": "v1.7.8 63e1cfe4 2019-02-11 21:04:00 -0800"},
    "decoder tied": {**SEPARATE, "tied-embeddings": True},
    "nothing tied": SEPARATE,
    "nothing tied, transposed": SEPARATE,
    "both sides tied, not the output": {**SEPARATE, "tied-embeddings-src": True},
    "all tied by two options": {**SEPARATE, "tied-embeddings-src": True, "tied-embeddings": True},
    "no output bias": {"output-omit-bias": True},
    "no biases": {"transformer-no-bias": True},
    "norms without weights": {"transformer-no-affine": True},
    "embeddings normalised": {"transformer-postprocess-emb": "nd"},
    "no positions": {"transformer-disable-position-embeddings": True},
    "another width in the decoder": {"transformer-decoder-dim-ffn": 20, "transformer-depth-scaling": True},
    "positions said to be trained": {"transformer-train-position-embeddings": True},
}


def has_two(options: dict[str, Any]) -> bool:
    """Whether source and target have separate vocabularies."""
    return not (options["tied-embeddings-all"] or options["tied-embeddings-src"])


def write_sentencepiece(path: Path, side: int | None, vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """Write a SentencePiece model with Marian's special ids, of one side of the toy corpus, or of both if None."""
    path.write_bytes(sentencepiece_model(side, vocab_size))
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@cache
def sentencepiece_model(side: int | None, vocab_size: int) -> bytes:
    """The model, which is trained once."""
    lines = [text for pair in toy_pairs(200) for text in (pair if side is None else pair[side : side + 1])]
    file = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=file, vocab_size=vocab_size, hard_vocab_limit=False,
        bos_id=-1, eos_id=0, unk_id=1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return file.getvalue()


def pieces_of(model: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [model.id_to_piece(id_) for id_ in range(model.vocab_size())]


def as_yaml(pieces: Sequence[str]) -> str:
    return "".join(f"{json.dumps(piece, ensure_ascii=False)}: {id_}\n" for id_, piece in enumerate(pieces))


def write_native(directory: Path, kind: str = "spm", transposed: bool = False, **changed: Any) -> Arrays:
    """Write a model with random weights, its vocabularies and decoder.yml.

    Vocabularies are SentencePiece models, or, if kind is yml, lists beside the models as OPUS-MT has them.
    """
    options = {**OPTIONS, **changed}
    directory.mkdir(parents=True)
    sides = (0, 1) if has_two(options) else (None, None)
    names = ("vocab.src.spm", "vocab.trg.spm") if has_two(options) else ("vocab.spm", "vocab.spm")
    if kind == "yml":
        models = [
            write_sentencepiece(directory / f"{name}.spm", side, 50) for side, name in enumerate(("source", "target"))
        ]
        lists = [pieces_of(model) for model in models]
        if not has_two(options):  # as OPUS-MT has it: the pieces of both, in one list
            lists = [list(dict.fromkeys(lists[0] + lists[1]))] * 2
        names = tuple(f"opus.spm32k-spm32k.{name.removesuffix('.spm')}.yml" for name in names)  # type: ignore[assignment]
        for name, pieces in zip(names, lists, strict=True):
            (directory / name).write_text(as_yaml(pieces), encoding="utf-8")
    else:
        models = [
            write_sentencepiece(directory / n, s, 50 if s is None else 46 + s)
            for n, s in zip(names, sides, strict=True)
        ]
        lists = [pieces_of(model) for model in models]
    sizes = [len(pieces) for pieces in lists]
    arrays = random_arrays({**options, "dim-vocabs": sizes}, transposed)
    save_npz(directory / "model.npz", {**options, "dim-vocabs": sizes}, arrays)
    decoder = {"relative-paths": True, "models": ["model.npz"], "vocabs": list(names), "beam-size": 3, "normalize": 0.6}
    (directory / "decoder.yml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in decoder.items()))
    return arrays


def save_npz(path: Path, options: dict[str, Any], arrays: Arrays) -> None:
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in options.items())
    told = np.frombuffer(text.encode() + b"\0" * 7, dtype=np.int8)
    with path.open("wb") as file:
        np.savez(file, **{"special:model.yml": told, **arrays})


def random_arrays(options: dict[str, Any], transposed: bool) -> Arrays:
    """Random weights, large enough that no two words are almost equally likely."""
    chance = np.random.default_rng(3)
    width, (source, target) = options["dim-emb"], options["dim-vocabs"]
    arrays: Arrays = {}

    def add(name: str, *shape: int, mean: float = 0.0, spread: float = 0.4) -> None:
        arrays[name] = (mean + spread * chance.standard_normal(shape)).astype(np.float32)

    def norm(name: str, suffix: str) -> None:
        if not options.get("transformer-no-affine"):
            add(f"{name}_ln_scale{suffix}", 1, width, mean=1.0)
            add(f"{name}_ln_bias{suffix}", 1, width)

    def linear(place: str, name: str, rows: int, columns: int) -> None:
        add(f"{place}_W{name}", rows, columns)
        if not options.get("transformer-no-bias"):
            add(f"{place}_b{name}", 1, columns)

    for name, size in (
        [("Wemb", target)] if not has_two(options) else [("encoder_Wemb", source), ("decoder_Wemb", target)]
    ):
        add(name, size, width)
    before = "_pre" if options["transformer-preprocess"] == "n" else ""
    for side, depth in (("encoder", options["enc-depth"]), ("decoder", options["dec-depth"])):
        d_ff = (options["transformer-decoder-dim-ffn"] if side == "decoder" else 0) or options["transformer-dim-ffn"]
        for layer in range(1, depth + 1):
            for part in ("self", "context") if side == "decoder" else ("self",):
                for name in "qkvo":
                    linear(f"{side}_l{layer}_{part}", name, width, width)
                norm(f"{side}_l{layer}_{part}_Wo", before)
            linear(f"{side}_l{layer}_ffn", "1", width, d_ff)
            linear(f"{side}_l{layer}_ffn", "2", d_ff, width)
            norm(f"{side}_l{layer}_ffn_ffn", before)
        if before:
            norm(f"{side}_top", "")
        if "n" in options["transformer-postprocess-emb"]:
            norm(f"{side}_emb", "_pre")
    if not (options["tied-embeddings"] or options["tied-embeddings-all"]):
        add("decoder_ff_logit_out_W" if transposed else "decoder_ff_logit_out_Wt", target, width)
        if transposed:
            arrays["decoder_ff_logit_out_W"] = arrays["decoder_ff_logit_out_W"].T.copy()
    if not options["output-omit-bias"]:
        add("decoder_ff_logit_out_b", 1, target)
        arrays["decoder_ff_logit_out_b"][0, :2] = 3.5, -30.0  # sentences end, and nothing is unknown
    return arrays


def log_probs(options: dict[str, Any], arrays: Arrays, source: Sequence[int], target: Sequence[int]) -> list[float]:
    """Log-probabilities of the target and the end mark in fp64, by the papers' formulas and Marian's names."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    heads, width = options["transformer-heads"], options["dim-emb"]
    pre = options["transformer-preprocess"] == "n"
    activation = {
        "swish": lambda x: x / (1 + np.exp(-x)),
        "relu": lambda x: np.maximum(x, 0),
        "gelu": np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    }[options["transformer-ffn-activation"]]
    if options["transformer-ffn-activation"] == "gelu" and options["version"].startswith("v1.7"):
        activation = lambda x: x / (1 + np.exp(-1.702 * x))  # noqa: E731

    def normed(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return y * a.get(f"{name}_ln_scale", a.get(f"{name}_ln_scale_pre", 1.0)) + a.get(
            f"{name}_ln_bias", a.get(f"{name}_ln_bias_pre", 0.0)
        )

    def linear(x: Any, place: str, name: str) -> Any:
        return x @ a[f"{place}_W{name}"] + a.get(f"{place}_b{name}", 0.0)

    def around(x: Any, name: str, function: Any) -> Any:
        return x + function(normed(x, name)) if pre else normed(x + function(x), name)

    def attention(place: str, query: Any, memory: Any, causal: bool) -> Any:
        q, k, v = (
            linear(x, place, name).reshape(len(x), heads, -1).transpose(1, 0, 2)
            for x, name in ((query, "q"), (memory, "k"), (memory, "v"))
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(width // heads)
        if causal:
            scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return linear(mixed.transpose(1, 0, 2).reshape(len(query), width), place, "o")

    def one_layer(place: str, x: Any, memory: Any) -> Any:
        x = around(x, f"{place}_self_Wo", lambda y: attention(f"{place}_self", y, y, memory is not None))
        if memory is not None:
            x = around(x, f"{place}_context_Wo", lambda y: attention(f"{place}_context", y, memory, False))
        ffn = f"{place}_ffn"
        return around(x, f"{ffn}_ffn", lambda y: linear(activation(linear(y, ffn, "1")), ffn, "2"))

    def layers(side: str, x: Any, memory: Any) -> Any:
        if not options.get("transformer-disable-position-embeddings"):
            half = width // 2
            angles = np.arange(len(x))[:, None] * np.exp(-np.arange(half) * math.log(10000) / (half - 1))
            x = x * math.sqrt(width) + np.concatenate([np.sin(angles), np.cos(angles)], 1)
        if "n" in options["transformer-postprocess-emb"]:
            x = normed(x, f"{side}_emb")
        for layer in range(1, options["enc-depth" if side == "encoder" else "dec-depth"] + 1):
            x = one_layer(f"{side}_l{layer}", x, memory)
        return normed(x, f"{side}_top") if pre else x

    of_target = a.get("Wemb", a.get("decoder_Wemb"))
    of_source = a.get("Wemb", a.get("encoder_Wemb"))
    assert of_source is not None
    assert of_target is not None
    memory = layers("encoder", of_source[[*source, 0]], None)
    words = [*target, 0]
    read = np.concatenate([np.zeros((1, width)), of_target[words[:-1]]])  # the decoder starts from nothing
    older = a.get("decoder_ff_logit_out_W")
    output = older.T if older is not None else a.get("decoder_ff_logit_out_Wt", of_target)
    logits = layers("decoder", read, memory) @ output.T + a.get("decoder_ff_logit_out_b", 0.0)
    logits -= logits.max(-1, keepdims=True)
    found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [float(found[place, word]) for place, word in enumerate(words)]


CODE = """
import json, sys
from pymarian import Translator
said = []
for options, text in json.load(sys.stdin):
    said.append(Translator(options + " --cpu-threads 1 -w 32 --quiet").translate(text))
print()
print(json.dumps(said))
"""


def marian_says(jobs: Sequence[tuple[str, Sequence[str]]]) -> list[list[str]]:
    """The output of Marian itself for options and lines, in a process of its own, because Marian may abort."""
    told = json.dumps([(options, "\n".join(lines)) for options, lines in jobs])
    ran = subprocess.run([sys.executable, "-c", CODE], input=told, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [said.rstrip("\n").split("\n") for said in json.loads(ran.stdout.splitlines()[-1])]
