"""`mtkit explain`: a page on how a model translates a sentence, token by token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkit.bundle.opening import readable_steps, step_directory
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import DataError, Meter, MtkitError, counted
from mtkit.evaluation.page import (
    Bar,
    Cell,
    Html,
    bar_chart,
    contents,
    data_script,
    element,
    folded,
    joined,
    note,
    number,
    page,
    require_page,
    section,
    table,
    weight_map,
    weighted_words,
    write_page,
)
from mtkit.models.interface import TranslationModel, log_probs_from
from mtkit.translation.search import BeamStep, Continuations, Hypothesis
from mtkit.translation.translator import Translator, load

NUM_SHOWN = 10  # the most probable tokens in a chart, and the best hypotheses in a table
MOST_CHECKPOINTS = 20  # checkpoints to translate with, evenly spaced, the newest among them


def explain(model: Path, sources: Sequence[str], output: Path, overrides: Sequence[str] = ()) -> None:
    """Write a page that shows how the model translates each of the sources.

    `overrides` are settings such as decoding.beam_size=1. Raises MtkitError if the model does not search by beam or
    greedy search; DataError if a source is blank or too long.
    """
    require_page(output, "explain")
    translator = load(model, overrides)
    explained = [explain_sentence(translator, source) for source in sources]
    spoken = spoken_by_checkpoints(model, explained, overrides)
    write_page(output, explanation(model, translator, explained, spoken))


# What the page shows. Shapes: H heads, Q target tokens with the end mark, S source tokens with the end mark, V
# vocabulary size, W beam size.


@dataclass(frozen=True)
class Candidate:
    """A hypothesis that a step of beam search considered."""

    tokens: tuple[int, ...]  # with the end mark if the hypothesis ended
    log_prob: float
    score: float | None  # None if the hypothesis did not end
    fate: str  # what became of it, and why


@dataclass
class Recorder:
    """Records the candidates of each beam-search step for one sentence; pass it to `Translator.search` as `watch`."""

    end: int  # the id of the end mark
    steps: list[list[Candidate]] = field(default_factory=list)
    _alive: list[tuple[int, ...]] = field(default_factory=lambda: [()])  # tokens of the hypotheses in the beam

    def __call__(self, step: BeamStep) -> None:
        """Record the candidates of a step, the most probable first."""
        width = step.alive.tokens.shape[1]
        found: dict[tuple[int, int], Candidate] = {}  # by parent and token
        alive = list(zip(*(side[0].tolist() for side in _sides(step.alive)), strict=True))
        scores = step.scores[0].tolist()
        ended = list(zip(*(side[0].tolist() for side in _sides(step.ended)), scores, strict=True))
        for place, (log_prob, parent, token) in enumerate(alive, start=1):
            if log_prob > -torch.inf:
                fate = f"kept, place {place}"
                found[parent, token] = Candidate((*self._alive[parent], token), log_prob, None, fate)
        for log_prob, parent, token, score in ended:
            if log_prob > -torch.inf:
                found[parent, token] = Candidate((*self._alive[parent], token), log_prob, score, "ended")
        if not bool(step.full[0]):
            for log_prob, parent, token in _likeliest(step, 2 * width):
                tokens = (*self._alive[parent], token)
                found.setdefault((parent, token), Candidate(tokens, log_prob, None, self._why_cut(token, width)))
        self.steps.append(sorted(found.values(), key=lambda candidate: -candidate.log_prob))
        self._alive = [(*self._alive[parent], token) for _, parent, token in alive]

    def _why_cut(self, token: int, width: int) -> str:
        if token == self.end:
            return f"cut: an end mark counts only among the {width} most probable"
        return f"cut: the beam keeps {width}"


def _sides(continuations: Continuations) -> tuple[Tensor, Tensor, Tensor]:
    return continuations.log_probs, continuations.parents, continuations.tokens


def _likeliest(step: BeamStep, count: int) -> list[tuple[float, int, int]]:
    """Returns (log-probability, parent, token) for the `count` most probable continuations of a step, best first.

    The log-probability is that of the prefix together with the token. The parent is the prefix's index in the beam.
    Impossible continuations are left out.
    """
    sums = (step.totals[0][:, None] + step.log_probs[0]).flatten()
    values, places = sums.topk(min(count, len(sums)))
    width = step.log_probs.shape[2]
    return [
        (value, place // width, place % width)
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value > -torch.inf
    ]


@dataclass(frozen=True)
class Explained:
    """A sentence, its translation, and the steps, probabilities and attention that led to the translation."""

    source: str
    text: str  # the translation, as `mtkit translate` gives it
    hypothesis: Hypothesis
    source_pieces: list[str]  # the last is the end mark
    pieces: list[str]  # of the translation; the last is the end mark
    tokens: list[int]  # the ids of `pieces`
    log_probs: NDArray[np.float64]  # (Q, V); row q is the distribution over the vocabulary after q target tokens
    attention: list[NDArray[np.float32]]  # (H, Q, S) for each layer; empty if the model has no attention
    beam: list[list[Candidate]]  # the candidates of each step of the search

    @property
    def chosen(self) -> list[float]:
        """The log-probability (natural logarithm) of each token of the translation, the end mark included."""
        return [float(row[token]) for row, token in zip(self.log_probs, self.tokens, strict=True)]


def explain_sentence(translator: Translator, source: str) -> Explained:
    """Translate a sentence; return the translation with its search steps, probabilities and attention.

    Raises MtkitError if the model does not search by beam or greedy search; DataError if `source` is blank or too long,
    or if the model finds no translation.
    """
    decoding, model, tokenizer = translator.config.decoding, translator.model, translator.tokenizer
    translator.require_task("translation")
    if decoding.method == "mask_predict":
        raise MtkitError("this model predicts all tokens together; only beam search can be explained")
    if decoding.stopping == "optimal":
        raise MtkitError("exact search goes beyond the beam; only beam search can be explained: --set stopping=exact")
    if decoding.draws or decoding.mbr_samples or not isinstance(model, TranslationModel):
        raise MtkitError("this model draws samples; only beam search can be explained: --set method=beam mbr_samples=0")
    [ids] = tokenizer.encode_source([source])
    if not ids:
        raise DataError("--source: found a blank text, wants a sentence")
    if len(ids) > translator.max_source_length:
        raise DataError(
            f"--source: found {counted(len(ids), 'token')}, wants one sentence of at most "
            f"{translator.max_source_length:,}; longer lines are translated in parts"
        )
    recorder = Recorder(model.boundaries.target_end)
    [[hypothesis, *_]] = translator.search([ids], watch=recorder)
    if not hypothesis.found:
        raise DataError(f"--source: the model finds no translation of {source}")
    [line] = translator.translate_lines([source])
    log_probs, attention = forced(model, ids, hypothesis.tokens)
    tokens = [*hypothesis.tokens, model.boundaries.target_end]
    return Explained(
        source,
        line.text,
        hypothesis,
        tokenizer.source_pieces([*ids, model.boundaries.source_end]),
        tokenizer.target_pieces(tokens),
        tokens,
        log_probs,
        attention,
        recorder.steps,
    )


@torch.inference_mode()
def forced(
    model: TranslationModel, source: Sequence[int], target: Sequence[int]
) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """Returns the log-probabilities (Q, V) of the next token after each prefix of a translation, and the attention.

    `source` and `target` are token ids without end marks. Q is the number of target tokens plus 1, for the end mark, S
    the number of source tokens plus 1, and V the vocabulary size. The attention is a tensor (heads, Q, S) for each
    layer; the list is empty if the model has no attention.
    """
    batch = padded_batch(ragged([source]), ragged([target]), model.boundaries).to(model.device)
    features, state = model.decode(batch.target, model.encode(batch.source, watch=True))
    log_probs = log_probs_from(model.output(features[0]))
    return log_probs.double().cpu().numpy(), [layer[0].float().cpu().numpy() for layer in state.attention]


@dataclass(frozen=True)
class Spoken:
    """The translation of a sentence by one of the checkpoints of training.

    `text` is the translation by the checkpoint itself. `log_prob` is the log-probability that the checkpoint gives to
    the translation that the page explains.
    """

    step: int
    text: str
    log_prob: float  # of the translation that the page explains


def spoken_by_checkpoints(model: Path, explained: Sequence[Explained], overrides: Sequence[str]) -> list[list[Spoken]]:
    """Returns, for each sentence, its translations by the checkpoints of the run at `model`.

    At most MOST_CHECKPOINTS checkpoints are used, in the order of their steps. Without checkpoints, the list of each
    sentence is empty.
    """
    steps = readable_steps(model / "checkpoints") if model.is_dir() else []
    stride = max(1, -(-len(steps) // MOST_CHECKPOINTS))
    spoken: list[list[Spoken]] = [[] for _ in explained]
    with Meter("translating", "checkpoints", len(steps[::-1][::stride])) as meter:
        for step in sorted(steps[::-1][::stride]):
            translator = load(step_directory(model / "checkpoints", step), overrides)
            sources, targets = [one.source for one in explained], [one.text for one in explained]
            texts = [line.text for line in translator.translate_lines(sources)]
            scored = list(translator.score_lines(zip(sources, targets, strict=True)))
            for one, text, score in zip(spoken, texts, scored, strict=True):
                one.append(Spoken(step, text, score.log_prob))
            meter.add()
    return spoken


# The page.


def explanation(
    model: Path, translator: Translator, explained: Sequence[Explained], spoken: Sequence[Sequence[Spoken]]
) -> str:
    """Returns the page as HTML, with a section for each sentence of `explained`.

    `spoken` holds, for each sentence, its translations by checkpoints, as `spoken_by_checkpoints` returns them.
    """
    config = translator.config
    parts = [
        _sentence(number_, translator, one, said)
        for number_, (one, said) in enumerate(zip(explained, spoken, strict=True), start=1)
    ]
    data = {
        "sentences": [
            {
                "source": one.source,
                "translation": one.text,
                "score": one.hypothesis.score,
                "source_pieces": one.source_pieces,
                "pieces": one.pieces,
                "log_probs": one.chosen,
                "attention": [np.round(layer.astype(float), 4).tolist() for layer in one.attention],
                "checkpoints": [{"step": each.step, "text": each.text} for each in said],
            }
            for one, said in zip(explained, spoken, strict=True)
        ]
    }
    title = f"How {config.name} translates"
    intro = element(
        "p",
        f"{config.languages.source} to {config.languages.target}, {config.model.architecture}, "
        f"{translator.model.num_parameters:,} parameters. "
        if isinstance(translator.model, TranslationModel)
        else None,
        "The model writes one token at a time. Each token gets a probability, given the source and the tokens before. ",
        "The same numbers come from ",
        element("code", f"mtkit translate {model}"),
        ", mtkit score and mtkit plot attention.",
    )
    titles = [(f"sentence-{n}", one.source) for n, one in enumerate(explained, start=1)]
    return page(
        title,
        intro,
        contents(titles) if len(titles) > 1 else None,
        *parts,
        data_script("data", data),
        command="explain",
        style=STYLE,
        script=SCRIPT,
    )


def _sentence(index: int, translator: Translator, one: Explained, spoken: Sequence[Spoken]) -> Html:
    """Returns the section of the page on the sentence `one`, which is number `index`, from 1."""
    prefix = f"sentence-{index}"
    links = [
        element("a", piece, href=f"#{prefix}-step-{step}", class_="piece")
        for step, piece in enumerate(one.pieces, start=1)
    ]
    steps = [_step(f"{prefix}-step-{n + 1}", n, translator, one) for n in range(len(one.beam))]
    return section(
        one.source,
        element("p", one.text, class_="translation", lang=_language(translator.config.languages.target)),
        element("p", links, class_="pieces"),
        _spelling(translator, one),
        element("div", _controls(one), element("div", steps, aria_live="polite"), class_="player"),
        element("h3", "Hypotheses that ended"),
        _ended(translator, one),
        element("h3", "Attention of every head"),
        *_heads(one),
        *(_checkpoints(spoken) if spoken else ()),
        id_=prefix,
    )


def _language(code: str) -> str | None:
    """Returns a language code in the form of HTML's `lang`, such as zh-Hans; `None` if it is no language code."""
    return code.replace("_", "-") if len(re.split("[-_]", code)[0]) in (2, 3) else None


def _spelling(translator: Translator, one: Explained) -> Html | None:
    """Returns a note if the tokenizer segments the translation differently than the model did; else `None`."""
    [again] = translator.tokenizer.encode_target([one.text])
    if again == one.hypothesis.tokens:
        return None
    pieces = " ".join(translator.tokenizer.target_pieces(again))
    return note(
        f"The model spelt its translation in other pieces than the tokenizer spells the same text: {pieces}. ",
        "mtkit score and mtkit plot attention show these.",
    )


def _controls(one: Explained) -> Html:
    buttons = [
        element("button", text, type="button", data_move=move, aria_label=label)
        for text, move, label in (("◀", -1, "Previous step"), ("▶", 1, "Next step"))
    ]
    slider = element("input", type="range", min=1, max=len(one.beam), value=1, aria_label="Step of the search")
    heads = [
        element("option", f"layer {layer + 1}, head {head + 1}", value=f"{layer},{head}")
        for layer, weights in enumerate(one.attention)
        for head in range(len(weights))
    ]
    select = element("label", "Attention ", element("select", element("option", "last layer, mean", value=""), heads))
    return element("div", *buttons[:1], slider, *buttons[1:], select if heads else None, class_="controls", hidden=True)


def _step(name: str, place: int, translator: Translator, one: Explained) -> Html:
    """Returns the article of one step of the search: the model's probabilities, its attention, and the beam.

    `name` is the id of the article, for links, and `place` counts steps from 0. After the last token of the
    translation, only the beam is shown.
    """
    is_written = place < len(one.pieces)
    if not is_written:
        heading = f"Step {place + 1}: the search goes on after the translation has ended"
        return element("article", element("h3", heading), _beam(translator, one, place), id=name, class_="step")
    before = translator.tokenizer.decode_target([one.tokens[:place]])[0]
    probability = float(np.exp(one.chosen[place]))
    after = [" after “", element("b", before), "”"] if before else [" at the beginning"]
    parts = [
        element("h3", f"Step {place + 1}: {one.pieces[place]}"),
        element("p", "Probability ", element("b", f"{probability:.4f}"), *after, "."),
        element("div", _distribution(translator, one, place), _looks(one, place), class_="charts"),
        _beam(translator, one, place),
    ]
    return element("article", *parts, id=name, class_="step")


def _distribution(translator: Translator, one: Explained, place: int) -> Html:
    """Returns a chart of the most probable tokens of a step, with a note on the other tokens.

    `place` counts steps from 0. The chosen token is always in the chart. The note has the total and the mean
    probability of the other tokens. For comparison, it has the probabilities that training asked for, with label
    smoothing: one for each wrong token, and one for the right token.
    """
    probabilities = np.exp(one.log_probs[place])
    order = np.argsort(-probabilities, kind="stable")[:NUM_SHOWN].tolist()
    if one.tokens[place] not in order:
        order = [*order[:-1], one.tokens[place]]
    bars = [
        Bar(piece, float(probabilities[token]), f"{probabilities[token]:.4f}{' chosen' * (token == one.tokens[place])}")
        for token, piece in zip(order, translator.tokenizer.target_pieces(order), strict=True)
    ]
    rest = max(0.0, 1 - float(probabilities[order].sum()))
    num_rest = len(probabilities) - len(order)
    smoothing = translator.config.training.label_smoothing
    floor = smoothing / len(probabilities)
    words = f"The other {num_rest:,} tokens have {rest:.4f} together, {number(rest / max(num_rest, 1))} each. "
    words += (
        f"Label smoothing of {smoothing:g} asked training for {number(floor)} each, and for "
        f"{1 - smoothing + floor:.4f} for the right token."
        if smoothing
        else "Training had no label smoothing: it asked for 0 each, and for 1 for the right token."
    )
    return element("div", bar_chart("Most probable tokens", [("", bars)]), note(words))


def _looks(one: Explained, place: int) -> Html | None:
    """Returns the source pieces with the attention that a step gives to them; `None` if the model has no attention.

    The attention is averaged over the heads of the last layer. `place` counts steps from 0.
    """
    if not one.attention:
        return None
    weights = one.attention[-1].mean(0)[place].tolist()
    heading = element("p", "Attention to the source, in %: ", element("span", "last layer, mean", class_="head"))
    return element("div", heading, weighted_words(one.source_pieces, weights))


def _beam(translator: Translator, one: Explained, place: int) -> Html:
    """Returns a table of the candidates of step `place`, from 0; an arrow marks the prefix of the translation."""
    rows: list[list[Cell]] = []
    for candidate in one.beam[place]:
        is_on_way = candidate.tokens == tuple(one.tokens[: place + 1])
        pieces = " ".join(translator.tokenizer.target_pieces(candidate.tokens))
        score = None if candidate.score is None else f"{candidate.score:.4f}"
        text = f"{'→ ' * is_on_way}{pieces}"
        rows.append([candidate.fate, element("b", text) if is_on_way else text, f"{candidate.log_prob:.4f}", score])
    caption = f"The beam after step {place + 1}; → leads to the translation"
    return table(("fate", "hypothesis", "log-probability", "score"), rows, caption, stacks=True)


def _ended(translator: Translator, one: Explained) -> Html:
    """Returns a table of all hypotheses that ended, best first, with a note on the score and when the search stops."""
    decoding = translator.config.decoding
    ended = [candidate for step in one.beam for candidate in step if candidate.score is not None]
    ended.sort(key=lambda candidate: -(candidate.score or 0.0))
    texts = translator.tokenizer.decode_target([list(candidate.tokens[:-1]) for candidate in ended])
    rows: list[list[Cell]] = [
        [text, f"{candidate.log_prob:.4f}", len(candidate.tokens), f"{candidate.score:.4f}"]
        for text, candidate in zip(texts, ended, strict=True)
    ]
    head = ("translation", "log-probability", "tokens", "score")
    more = table(head, rows[NUM_SHOWN:], "Hypotheses after these", hidden_caption=True, stacks=True)
    return joined(
        table(head, rows[:NUM_SHOWN], "Best first; the end mark is a token", stacks=True),
        folded(f"{len(rows) - NUM_SHOWN:,} more", more) if len(rows) > NUM_SHOWN else None,
        note(_scoring(decoding)),
    )


def _scoring(decoding: DecodingConfig) -> str:
    divisor = {"power": "length", "gnmt": "((5 + length) / 6)"}.get(decoding.length_penalty_form, "length")
    stopped = "as soon as no hypothesis that is still alive can reach a better score"
    if decoding.stopping == "count":
        stopped += f", or as soon as the number of hypotheses that have ended is {decoding.beam_size:,}"
    coverage = ", and a coverage penalty is added" if decoding.coverage_penalty else ""
    return (
        f"The score is the log-probability divided by {divisor}^{decoding.length_penalty:g}{coverage}. "
        f"The search stops {stopped}."
    )


def _heads(one: Explained) -> list[Html]:
    """Returns a picture of the attention of every head of every layer; a note if the model has no attention."""
    if not one.attention:
        return [note("This model has no attention: it sees the source as one vector.")]
    maps = [
        weight_map(f"layer {layer + 1}, head {head + 1}", one.pieces, one.source_pieces, matrix.tolist())
        for layer, weights in enumerate(one.attention)
        for head, matrix in enumerate(weights)
    ]
    return [
        note("Rows are tokens of the translation, columns tokens of the source; the area of a square is its weight."),
        element("div", *maps, class_="maps"),
    ]


def _checkpoints(spoken: Sequence[Spoken]) -> list[Html]:
    rows = [[f"{each.step:,}", each.text, f"{each.log_prob:.4f}"] for each in spoken]
    slider = element("input", type="range", min=1, max=len(spoken), value=len(spoken), aria_label="Checkpoint")
    return [
        element("h3", "During training"),
        element(
            "div",
            element("div", slider, element("output", ""), class_="controls", hidden=True),
            table(
                ("update", "translation", "log-probability of the translation above"),
                rows,
                "What checkpoints of the run make of the source",
                stacks=True,
            ),
            class_="scrubber",
        ),
    ]


STYLE = """
.translation { font-size: 1.25rem; margin: .2rem 0; }
.pieces { display: flex; flex-wrap: wrap; gap: .3rem; max-width: none; }
.piece { padding: .1rem .4rem; border: 1px solid var(--line); border-radius: 3px; text-decoration: none; }
.piece.on { background: var(--mark); color: var(--ink); font-weight: 600; }
.controls:not([hidden]) { display: flex; flex-wrap: wrap; align-items: center; gap: .6rem; margin: .6rem 0; }
.controls button, .controls select { font: inherit; color: var(--ink); background: var(--panel); min-height: 2rem;
  border: 1px solid var(--line); border-radius: 4px; padding: .2rem .7rem; }
.controls input { flex: 1 1 10rem; max-width: 24rem; min-height: 2rem; }
.controls output { flex-basis: 100%; font-size: 1.1rem; }
.step { margin: 0 0 1.4rem; }
.map .now.on { fill: var(--mark); }
nav a[aria-current] { font-weight: 600; color: var(--ink); }
tr.on > * { background: var(--mark); }
@media screen { .js .step:not(.on), .js main > section:not(.on) { display: none; } }
"""

# Shows one sentence and one step of the search at a time, with controls to move through the steps. Without scripts, the
# page shows all of them below one another; then only the choice of an attention head for the steps is missing.
SCRIPT = """
document.documentElement.classList.add("js");
const data = JSON.parse(document.getElementById("data").textContent).sentences;
const sections = [...document.querySelectorAll("main > section")];
const links = [...document.querySelectorAll("nav a")];
function choose(index) {
  sections.forEach((section, place) => section.classList.toggle("on", place === index));
  links.forEach((link, place) => {
    if (place === index) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  });
}
links.forEach((link, index) => link.addEventListener("click", () => choose(index)));
choose(0);
sections.forEach((section, index) => {
  const sentence = data[index];
  const steps = [...section.querySelectorAll(".step")];
  const pieces = [...section.querySelectorAll(".piece")];
  const marks = [...section.querySelectorAll(".now")];
  const player = section.querySelector(".player");
  const controls = player.querySelector(".controls");
  const slider = controls.querySelector("input");
  const select = controls.querySelector("select");
  let now = 0;
  function showHead(step) {
    const words = steps[step].querySelectorAll(".words span");
    if (!select || !words.length) return;
    const chosen = select.value.split(",").map(Number);
    const last = sentence.attention[sentence.attention.length - 1];
    const rows = select.value ? [sentence.attention[chosen[0]][chosen[1]][step]] : last.map((head) => head[step]);
    words.forEach((word, place) => {
      const weight = rows.reduce((sum, row) => sum + row[place], 0) / rows.length;
      word.style.setProperty("--w", (100 * weight).toFixed(0) + "%");
      word.querySelector("small").textContent = (100 * weight).toFixed(0);
    });
    steps[step].querySelector(".head").textContent = select.selectedOptions[0].textContent;
  }
  function show(step) {
    now = Math.max(0, Math.min(steps.length - 1, step));
    steps.forEach((one, place) => one.classList.toggle("on", place === now));
    pieces.forEach((one, place) => {
      one.classList.toggle("on", place === now);
      if (place === now) one.setAttribute("aria-current", "step"); else one.removeAttribute("aria-current");
    });
    marks.forEach((mark) => {
      mark.classList.toggle("on", now < pieces.length);
      mark.setAttribute("y", Number(mark.dataset.top) + 13 * Math.min(now, pieces.length - 1));
    });
    slider.value = now + 1;
    showHead(now);
  }
  controls.hidden = false;
  controls.querySelectorAll("button").forEach((button) =>
    button.addEventListener("click", () => show(now + Number(button.dataset.move))));
  slider.addEventListener("input", () => show(Number(slider.value) - 1));
  if (select) select.addEventListener("change", () => show(now));
  pieces.forEach((piece, place) => piece.addEventListener("click", (event) => {
    event.preventDefault();
    show(place);
  }));
  section.querySelector(".pieces").addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { show(now + move); pieces[Math.min(now, pieces.length - 1)].focus(); event.preventDefault(); }
  });
  const scrubber = section.querySelector(".scrubber");
  if (scrubber) {
    const bar = scrubber.querySelector(".controls");
    const input = bar.querySelector("input");
    const rows = [...scrubber.querySelectorAll("tbody tr")];
    const scrub = () => {
      const place = Number(input.value) - 1;
      rows.forEach((row, number) => row.classList.toggle("on", number === place));
      const said = sentence.checkpoints[place];
      bar.querySelector("output").textContent = "Update " + said.step.toLocaleString("en") + ": " + said.text;
    };
    bar.hidden = false;
    input.addEventListener("input", scrub);
    scrub();
  }
  show(0);
});
"""
