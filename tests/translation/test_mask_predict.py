"""Mask-predict: all tokens in a number of passes that the length does not change; what it cannot do is refused."""

import pytest
import torch
from torch import Tensor

import mtkit
from mtkit.bundle.info import decoding_text
from mtkit.config.data_and_model_settings import MaskedConfig
from mtkit.config.load import load_config
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import ConfigError, MtkitError
from mtkit.evaluation.bench import default_beam_sizes
from mtkit.evaluation.plot import attention_of
from mtkit.models.registry import new_model
from mtkit.models.transformer import MaskedModel
from mtkit.text.vocabulary import BEGIN, END, PAD, UNKNOWN
from mtkit.translation.decode import decode, log_probs_of
from mtkit.translation.search import mask_predict
from tests.conftest import toy_pairs
from tests.runs import MASKED, Make, events, trained

VOCAB = 20
SOURCES = [[5, 6, 7], [8, 9], [4, 4, 4, 4, 4, 4, 4, 4]]


@pytest.fixture
def model() -> MaskedModel:
    config = MaskedConfig(d_model=16, num_heads=2, d_ff=16, encoder_layers=1, decoder_layers=1)
    made = new_model(config, VOCAB, VOCAB, seed=1)
    assert isinstance(made, MaskedModel)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made.double().eval()


def search(model: MaskedModel, num_best: int = 1, **settings: object) -> list:
    decoding = DecodingConfig(method="mask_predict", max_length_extra=3, **settings)  # type: ignore[arg-type]
    return decode(model, decoding, SOURCES, num_best)


@pytest.mark.parametrize("iterations", [1, 3, 4, 9])
def test_the_least_probable_tokens_are_masked_again_fewer_each_time(iterations: int) -> None:
    lengths, generator = torch.tensor([1, 7, 4]), torch.Generator().manual_seed(1)
    calls: list[tuple[Tensor, Tensor]] = []

    def predict(tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((tokens.clone(), masked))
        given = torch.full((int(masked.sum()),), 10 * len(calls)) + torch.arange(int(masked.sum())) % 10
        predicted.append((given, torch.randn(len(given), generator=generator)))
        return predicted[-1]

    predicted: list[tuple[Tensor, Tensor]] = []
    tokens, log_probs = mask_predict(predict, lengths, iterations)
    assert len(calls) == iterations
    known, scores = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7)
    for t, (seen, masked) in enumerate(calls):
        for row, length in enumerate(lengths.tolist()):
            count = max(length * (iterations - t) // iterations, 1)
            lowest = scores[row, :length].argsort()[:count] if t else torch.arange(length)
            assert sorted(masked[row].nonzero()[:, 0].tolist()) == sorted(lowest.tolist())
        assert torch.equal(seen[~masked], known[~masked])
        known[masked], scores[masked] = predicted[t]
    assert torch.equal(tokens, known)
    assert torch.equal(log_probs, scores)


def test_one_iteration_is_one_pass_in_which_each_token_is_the_most_probable_one(model: MaskedModel) -> None:
    found = search(model, iterations=1, length_candidates=1)
    with torch.no_grad():
        for source, [hypothesis] in zip(SOURCES, found, strict=True):
            length = len(hypothesis.tokens)
            batch = padded_batch(ragged([source]), ragged([[5] * length]))
            state = model.encode(batch.source)
            log_probs = model.output(model.decode(model.hide(batch, everything=True).target, state)[0]).log_softmax(-1)
            log_probs[:, :, [PAD, UNKNOWN, BEGIN, END]] = -torch.inf
            best = log_probs[0, :length].max(1)
            assert hypothesis.tokens == best.indices.tolist()
            likeliest, of_length = model.likeliest_lengths(state, torch.tensor([2 * len(source) + 3]), 1)
            assert likeliest.tolist() == [[length]]
            assert hypothesis.log_prob == pytest.approx(best.values.sum().item() + of_length.item())
            assert hypothesis.score == pytest.approx(hypothesis.log_prob / (length + 1))
            scored = log_probs_of(model, [source], [hypothesis.tokens], 100)[0]
            of_length = model.length_log_probs(state, torch.tensor([length])).item()
            assert scored == pytest.approx([*best.values.tolist(), of_length])


def test_the_decoder_runs_once_for_each_iteration_whatever_the_lengths(
    model: MaskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, forward = [], model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda *arguments: (calls.append(1), forward(*arguments))[1])
    for iterations in (1, 4):
        calls.clear()
        found = search(model, num_best=3, iterations=iterations, length_candidates=3)
        assert len(calls) == iterations
        assert len({len(hypothesis.tokens) for hypotheses in found for hypothesis in hypotheses}) > 3


def test_the_best_of_several_lengths_has_the_highest_mean_log_probability(model: MaskedModel) -> None:
    several = search(model, num_best=4, iterations=3, length_candidates=4)
    best = search(model, iterations=3, length_candidates=4)
    narrow = search(model, iterations=3, length_candidates=1)
    for hypotheses, [first], [likeliest] in zip(several, best, narrow, strict=True):
        assert len({len(hypothesis.tokens) for hypothesis in hypotheses}) == len(hypotheses) == 4
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert first.tokens == hypotheses[0].tokens
        assert likeliest.tokens in [hypothesis.tokens for hypothesis in hypotheses]
        assert {PAD, UNKNOWN, BEGIN, END}.isdisjoint(token for h in hypotheses for token in h.tokens)


def test_a_model_that_is_not_a_number_gives_no_translation(model: MaskedModel) -> None:
    with torch.no_grad():
        model.output.weight.fill_(torch.nan)
    assert not any(hypothesis.found for [hypothesis] in search(model, iterations=2, length_candidates=2))


def test_a_trained_model_translates_all_at_once_and_refuses_what_it_cannot_do(make: Make) -> None:
    path = trained(make(model=MASKED, max_steps=2, validate_every=2))
    [validation] = events(path, "validation")
    assert validation["bleu"] >= 0
    translator = mtkit.load(path)
    decoding = translator.config.decoding
    assert (decoding.method, decoding.iterations, decoding.length_candidates) == ("mask_predict", 10, 5)
    assert decoding_text(decoding) == "mask-predict, iterations 10, length candidates 5"
    assert default_beam_sizes(path) == [None]
    lines = ["", *(source for source, _ in toy_pairs(5)), " "]
    translated = list(translator.translate_lines(lines, num_best=3))
    assert [line.text == "" for line in translated] == [True, *[False] * 5, True]
    assert all(1 <= len(line.translations) <= 3 for line in translated)
    assert len(translator.score(lines, lines)) == 7
    for refused, message in [
        (lambda: translator.translate(["one"], prefixes=["1"]), "^prefixes: a model of architecture cmlm cannot begin"),
        (lambda: mtkit.load(path, ensemble=[path]), "a model of architecture cmlm is no member of an ensemble$"),
        (lambda: mtkit.load(path, ["decoding.beam_size=1"]), "beam_size 1 is not for method mask_predict, which has"),
        (lambda: mtkit.load(path, ["decoding.method=sample"]), "cmlm wants decoding.method mask_predict, found sample"),
        (lambda: attention_of(translator, "one", None), "^a model of architecture cmlm has no attention to draw$"),
    ]:
        with pytest.raises(MtkitError, match=message):
            refused()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.consistency=rdrop"], "training.consistency rdrop is not for model.architecture cmlm"),
        (["decoding.unknown=copy"], "decoding.unknown copy wants a model with attention"),
        (["decoding.length_penalty=0"], "length_penalty 0.0 is not for method mask_predict"),
        (["decoding.mbr_samples=8"], "mbr_samples 8 is not for method mask_predict"),
        (["model.start_token=pad"], "start_token pad has no effect with architecture cmlm"),
        (["decoding.method=beam"], "model.architecture cmlm wants decoding.method mask_predict, found beam"),
        (["model.architecture=rnn", "decoding.iterations=4"], "iterations 4 wants model.architecture cmlm, found rnn"),
        (
            ["model.architecture=rnn", "decoding.method=mask_predict"],
            "decoding.method mask_predict wants model.architecture cmlm, found rnn",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["model.architecture=cmlm", *overrides])
    assert load_config(None, ["model.architecture=cmlm", "decoding.iterations=4"]).decoding.method == "mask_predict"
