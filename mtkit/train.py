"""Training: from binarized data to a bundle, going on from where an earlier run stopped.

runs/NAME/checkpoints/step-…/   log.jsonl   run.json   model/
"""

import json
import math
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mtkit import __version__
from mtkit.batch import Batch
from mtkit.config.settings import Config
from mtkit.config.show import config_text
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.ahead import made_ahead
from mtkit.data.batches import Sampling, micro_batches
from mtkit.data.corpus import Corpus
from mtkit.data.mixing import Mixture, is_natural, mix
from mtkit.data.verification import Verification
from mtkit.errors import CheckpointError, DataError, MtkitError, StoppedError
from mtkit.files import write_file
from mtkit.formats.bundle import save_bundle
from mtkit.models.device import mixed_precision, pick_device, pick_precision
from mtkit.models.registry import new_model, require_weights_of
from mtkit.objective import OBJECTIVES
from mtkit.start import start_bundle, start_checksum
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.average import MovingAverage
from mtkit.training.board import Board
from mtkit.training.checkpoint import (
    Progress,
    TrainState,
    average_weights,
    averaged_steps,
    checkpoint_steps,
    clear_leftovers,
    delete_old,
    load_checkpoint,
    measured_weights,
    read_progress,
    save_checkpoint,
)
from mtkit.training.log import Log, Update, Window
from mtkit.training.optimizer import make_optimizer
from mtkit.training.scaler import LossScaler
from mtkit.training.schedule import ENDING, learning_rate, lowers_rate
from mtkit.training.stop import Stop, stopping_by_signal
from mtkit.validation import Validation

NUM_SAMPLES = 3  # translations shown at each validation
NUM_AHEAD = 8  # batches that are made before they are needed


def say(text: str) -> None:
    """A line for the user, on stderr, that does not break a progress bar."""
    tqdm.write(text, file=sys.stderr)


def train(config: Config, validation: tuple[list[str], list[str]]) -> None:
    """Train until a limit of the settings is reached, and leave the bundle in the run directory.

    validation holds the sources and the references. Goes on from the last checkpoint there is. Raises StoppedError
    after Ctrl-C or SIGTERM, the state saved.
    """
    run = config.run_path
    tokenizer = Tokenizer.load(run / "tokenizer")
    corpus = Corpus.open(run / "data" / "train")
    corpus.require_tokenizer(tokenizer.hash)
    with Verification(corpus) as verification:
        trainer = Trainer(config, tokenizer, corpus, Validation.prepare(config, tokenizer, *validation))
        with stopping_by_signal() as stop:
            trainer.run(stop, verification)


def is_trained(config: Config) -> bool:
    """Whether training with these settings has come to its end, and its bundle is there."""
    done = config.run_path / "trained.json"
    if not done.exists() or not (config.run_path / "model" / "bundle.json").exists():
        return False
    try:
        found = json.loads(done.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and all(found.get(key) == value for key, value in _completion(config).items())


def _completion(config: Config) -> dict[str, Any]:
    """What training depends on: if none of it changed, training again would give the same.

    The model that it started from is no part of it once it is gone.
    """
    start = start_checksum(config)
    return {
        **({"start_from": start} if start else {}),
        "model": config.model.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json"),
        "data": Corpus.open(config.run_path / "data" / "train").digest,
        **_mixing(config),
    }


class Trainer:
    """The training loop and all that it needs at hand."""

    def __init__(self, config: Config, tokenizer: Tokenizer, corpus: Corpus, validation: Validation) -> None:
        self.config = config
        self.settings = config.training
        self.run_path = config.run_path
        self.checkpoints = config.run_path / "checkpoints"
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.validation = validation
        self.device = pick_device(config.device)
        self.mixture = mixture_of(config, corpus)

        sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
        self.model = new_model(config.model, *sizes, config.training.seed).to(self.device)
        optimizer = make_optimizer(self.model.parameters(), self.settings, self.device)
        precision = pick_precision(self.settings.precision, self.device, config.model.d_model)
        decay = config.training.ema_decay
        average = MovingAverage(self.model, decay) if decay else None
        self.state = TrainState(self.model, optimizer, Progress(precision=precision), average)
        self.is_saved = False  # whether the newest checkpoint holds all of the state
        self.start = start_checksum(config)  # of the weights that training started from
        self._resume()
        progress = self.state.progress
        self.scaler = LossScaler(self.device, progress.precision, progress.loss_scale, progress.scale_updates)
        board = Board(self.run_path / "tensorboard", progress.step) if self.settings.tensorboard else None
        self.log = Log(self.run_path / "log.jsonl", progress.log_bytes, board)

    # Going on.

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run, else it would be another run."""
        free = {"start_from", "max_minutes", "patience", "log_every", "tensorboard", "keep_checkpoints", "max_skipped"}
        free |= set() if self.settings.schedule in ENDING else {"max_steps"}
        return {
            "data": self.corpus.digest,
            "tokenizer": self.tokenizer.hash,
            "model": self.config.model.model_dump(mode="json"),
            "training": {
                # Where it lay does not matter; what it was does.
                "start_from": self.start,
                **{k: v for k, v in self.settings.model_dump(mode="json").items() if k not in free},
            },
            **_mixing(self.config),
        }

    def _with_defaults(self, identity: dict[str, Any]) -> dict[str, Any]:
        """An identity in which settings that were not there yet when it was saved have their defaults."""
        defaults = {"model": type(self.config.model)(), "training": TrainingConfig()}
        filled = {name: {**section.model_dump(mode="json"), **identity[name]} for name, section in defaults.items()}
        kept = self._identity()["training"].keys() | identity["training"].keys()
        filled["training"] = {key: value for key, value in filled["training"].items() if key in kept}
        return {**identity, **filled}

    def _resume(self) -> None:
        clear_leftovers(self.checkpoints)
        steps = checkpoint_steps(self.checkpoints)
        if not steps:
            self._start()
            return
        _, found, _ = read_progress(self.checkpoints, steps[-1])
        if self.settings.start_from and not self.start:
            self.start = found["training"].get("start_from") or "a model that is not there"
        if changes := list(_differences(self._with_defaults(found), self._identity())):
            raise CheckpointError(
                f"{self.run_path}: cannot go on from step {steps[-1]:,}, since these changed: {'; '.join(changes)}. "
                "Change them back, give the run another name, or start anew with --fresh"
            )
        load_checkpoint(self.checkpoints, steps[-1], self.state)
        self.is_saved = True
        say(f"going on from step {steps[-1]:,} in {self.run_path}")
        progress = self.state.progress
        if progress.best_step and progress.best_step not in steps:
            say(f"the best checkpoint, step {progress.best_step:,}, is gone: the search for the best one starts again")
            progress.best_step, progress.best_score = 0, float("-inf")

    def _start(self) -> None:
        """Step 0: random weights stay, or make way for those that the settings name."""
        if bundle := start_bundle(self.config):
            weights = bundle.weights()
            require_weights_of(self.model, weights, str(bundle.path))
            self._put(weights)
            if self.settings.ema_decay:
                self.state.average = MovingAverage(self.model, self.settings.ema_decay)
            say(f"starting from the weights of {bundle.path}")

    def _scheduled(self) -> list[int]:
        """Steps whose checkpoints were made on time; one made because the run was stopped is not averaged."""
        return [step for step in checkpoint_steps(self.checkpoints) if self._saves_at(step)]

    def _saves_at(self, step: int) -> bool:
        return step % self.settings.save_every == 0 or step % self.settings.validate_every == 0

    def _save(self) -> None:
        self.state.progress.log_bytes = self.log.length
        save_checkpoint(self.checkpoints, self.state, self._identity())
        self.is_saved = True
        settings = self.settings
        best = self.state.progress.best_step
        delete_old(self.checkpoints, self._scheduled(), best, settings.average_checkpoints, settings.keep_checkpoints)

    # The loop.

    def run(self, stop: Stop, verification: Verification | None = None) -> None:
        """Train to the end, validate, average, and write the bundle; only data that is verified makes one."""
        if verification:
            stop.watched.append(verification.check)
        progress = self.state.progress
        (self.run_path / "trained.json").unlink(missing_ok=True)
        try:
            self._write_start()
            with self._stream() as stream:
                reason = self._loop(stream, stop)
            say(f"training ends at step {progress.step:,}: {reason}")
            if verification:
                verification.wait(stop.check)
            self._finish(stop)
        except StoppedError:
            if not self.is_saved:
                self._save()
            raise StoppedError(
                f"stopped at step {progress.step:,} by {signal.Signals(stop.signal).name}; the state is saved in "
                f"{self.checkpoints}, and the same command goes on from there"
            ) from None
        finally:
            self.log.close()

    def _loop(self, stream: Iterator[tuple[int, tuple[Batch, ...]]], stop: Stop) -> str:
        progress, settings = self.state.progress, self.settings
        self.model.train()
        begun = time.monotonic() - progress.seconds
        with tqdm(
            total=settings.max_steps,
            initial=progress.step,
            unit="step",
            disable=not sys.stderr.isatty(),
            smoothing=0.05,
        ) as bar:
            while True:
                # A checkpoint follows each validation, so that no kill repeats or loses one.
                step = progress.step
                if step % settings.validate_every == 0 and progress.validated_step < step:
                    self._validate(stop)
                    progress.seconds = time.monotonic() - begun
                    progress.window = Window(since=progress.seconds)
                if step and self._saves_at(step) and not self.is_saved:
                    self._save()
                if reason := self._reason_to_end():
                    return reason
                stop.check()

                epoch = self._update(stream)
                if progress.skipped_in_row >= settings.max_skipped or progress.loss_scale < 1:
                    raise MtkitError(self._divergence())
                bar.update()
                progress.seconds = time.monotonic() - begun
                if progress.step % settings.log_every == 0 and progress.window.updates:
                    record = progress.window.record(progress.seconds)
                    self.log.write("train", step=progress.step, epoch=epoch, **record)
                    bar.set_postfix_str(
                        f"epoch {self._epochs():.1f}, "
                        f"loss {record['loss']:.3f}, lr {record['lr']:.2e}, {record['tokens_per_second']:,.0f} tokens/s"
                    )
                    progress.window = Window(since=progress.seconds)
                    bar.total = self._expected_steps()

    def _epochs(self) -> float:
        """Passes over the corpus so far."""
        return self.state.progress.pairs / len(self.corpus)

    def _expected_steps(self) -> int:
        """Where training will end if it goes on at this pace, by the limits on steps and minutes."""
        progress, settings = self.state.progress, self.settings
        if settings.max_minutes is None:
            return settings.max_steps
        return min(settings.max_steps, round(progress.step * 60 * settings.max_minutes / progress.seconds))

    @contextmanager
    def _stream(self) -> Iterator[Iterator[tuple[int, tuple[Batch, ...]]]]:
        """The batches from here on, made in a thread that ends with the block."""
        sampling = sampling_of(self.config, self.tokenizer, self.corpus)
        stream = micro_batches(
            self.corpus, self.settings, self.state.progress.pairs, sampling, self.model.start, self.mixture
        )
        try:
            first = next(stream)
        except ValueError as error:
            raise CheckpointError(
                f"{self.run_path}: cannot go on from step {self.state.progress.step:,}: {error}, so another version of "
                "mtkit ordered its data; go on with that one, or start anew with --fresh"
            ) from None
        with made_ahead(stream, NUM_AHEAD) as rest:
            yield chain([first], rest)

    def _reason_to_end(self) -> str:
        progress, settings = self.state.progress, self.settings
        if progress.step >= settings.max_steps:
            return f"training.max_steps {settings.max_steps:,} is reached"
        if settings.max_minutes is not None and progress.seconds >= 60 * settings.max_minutes:
            return f"training.max_minutes {settings.max_minutes:g} is reached"
        if settings.patience is not None and progress.bad_validations >= settings.patience:
            best = f" than that of step {progress.best_step:,}" if progress.best_step else ""
            return f"no better {settings.select_by} in {progress.bad_validations} validations (training.patience){best}"
        return ""

    def _update(self, stream: Iterator[tuple[int, tuple[Batch, ...]]]) -> int:
        """One step of the optimizer, over accumulated batches and their parts, whose epoch comes back.

        The loss is divided once, by all their tokens.
        """
        progress, settings = self.state.progress, self.settings
        taken = list(islice(stream, settings.accumulate))
        batches = [batch for _, parts in taken for batch in parts]
        self.is_saved = False
        progress.step += 1
        progress.pairs += sum(batch.num_pairs for batch in batches)
        rate = learning_rate(progress.step, settings, self.config.model.d_model, progress.rate_lowered)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate

        tokens = sum(batch.target_tokens for batch in batches)
        sums = []
        for number, batch in enumerate(batches):
            batch = batch.to(self.device)
            # No random state is kept: chance is a function of where training is.
            torch.manual_seed(chance_seed(settings.seed, progress.step, number))
            with mixed_precision(self.device, progress.precision):
                loss = OBJECTIVES[settings.consistency](self.model, batch, settings)
            self.scaler.scaled(loss.total / tokens).backward()  # type: ignore[no-untyped-call]
            sums.append(loss.sums)

        self.scaler.unscale(self.state.optimizer)
        limit = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        smoothed, likelihood, *consistency = torch.stack(sums).sum(0).tolist()
        update = Update(smoothed, likelihood, tokens, norm, rate, _padding(batches), *consistency)
        scale_before = progress.loss_scale
        progress.loss_scale, progress.scale_updates = self.scaler.next()
        if update.is_finite:
            self.state.optimizer.step()
            if self.state.average is not None:
                self.state.average.update(progress.step)
            progress.skipped_in_row = 0
            progress.window.add(update)
        elif math.isfinite(update.loss) and progress.loss_scale < scale_before:
            self._overflow()
        else:
            self._skip(update)
        self.state.optimizer.zero_grad(set_to_none=True)
        return taken[-1][0]

    def _skip(self, update: Update) -> None:
        progress = self.state.progress
        progress.skipped += 1
        progress.skipped_in_row += 1
        what = "gradient" if math.isfinite(update.loss) else "loss"
        say(f"step {progress.step:,}: the {what} is not finite; the update is skipped ({progress.skipped} so far)")
        self.log.write("skipped", step=progress.step, what=what)

    def _overflow(self) -> None:
        """No divergence: the loss scale of fp16 is found by trying."""
        progress = self.state.progress
        progress.overflows += 1
        say(
            f"step {progress.step:,}: the gradient overflows fp16; the update is skipped and the loss scale lowered to "
            f"{progress.loss_scale:g} ({progress.overflows} so far)"
        )
        self.log.write("overflow", step=progress.step, loss_scale=progress.loss_scale)

    def _divergence(self) -> str:
        progress = self.state.progress
        steps = checkpoint_steps(self.checkpoints, resumable=True)
        last = f"the last good checkpoint is that of step {steps[-1]:,}" if steps else "there is no checkpoint yet"
        what = (
            f"{progress.skipped_in_row} updates in a row, the last at step {progress.step:,}, were not finite"
            if progress.loss_scale >= 1
            else f"the gradient of step {progress.step:,} overflows fp16 at any loss scale"
        )
        return (
            f"{self.run_path}: {what}; {last}. Start anew with --fresh and a lower training.learning_rate, with "
            "training.clip_norm, or with training.precision fp32"
        )

    # Validation, choice, average.

    def _validate(self, stop: Stop) -> None:
        progress = self.state.progress
        begun = time.monotonic()
        with self.state.average.in_use() if self.state.average else nullcontext():
            measured, translations = self.validation.measure(self.model, self.tokenizer, stop)
        score = selection_score(measured, self.settings)
        better = score > progress.best_score
        if better:
            progress.best_score, progress.best_step, progress.bad_validations = score, progress.step, 0
            progress.stale_validations = 0
        else:
            progress.bad_validations += 1
            progress.stale_validations += progress.step > self.settings.warmup_steps
        progress.validated_step = progress.step
        self.is_saved = False
        seconds = time.monotonic() - begun
        self.log.write("validation", step=progress.step, **measured, best=better, seconds=round(seconds, 3))
        at = f"step {progress.step:,}, epoch {self._epochs():.1f}"
        say(f"{at}: {_measures(measured)}{' (best)' if better else ''}")
        self._show_samples(translations)
        if lowers_rate(progress.stale_validations, self.settings, progress.rate_lowered):
            progress.stale_validations, progress.rate_lowered = 0, progress.rate_lowered + 1
            say(f"nothing better in {self.settings.plateau_patience} validations: the learning rate is lowered")

    def _show_samples(self, translations: list[str]) -> None:
        """Other lines each time, the same ones for the same step."""
        first = self.state.progress.step // self.settings.validate_every * NUM_SAMPLES
        for i in range(first, first + min(NUM_SAMPLES, len(translations))):
            i %= len(translations)
            sample = {
                "source": self.validation.sources[i],
                "hypothesis": translations[i],
                "reference": self.validation.references[i],
            }
            self.log.write("sample", step=self.state.progress.step, **sample)
            for name, text in sample.items():
                say(f"    {name:>10}: {text}")

    def _finish(self, stop: Stop) -> None:
        """Choose between the best checkpoint and the average that ends at it, and write the bundle."""
        progress, settings = self.state.progress, self.settings
        if progress.validated_step < progress.step or not progress.best_step:
            self._validate(stop)
        if not self.is_saved:
            self._save()
        best = progress.best_step or progress.step  # the last one if no figure was a number
        weights, steps = measured_weights(self.checkpoints, best), [best]
        chosen = averaged_steps(self._scheduled(), best, settings.average_checkpoints)
        if len(chosen) > 1:
            average = average_weights(self.checkpoints, chosen)
            self._put(average)
            measured, _ = self.validation.measure(self.model, self.tokenizer, stop)
            better = selection_score(measured, settings) > progress.best_score
            self.log.write("average", steps=chosen, **measured, better=better)
            say(
                f"average of {len(chosen)} checkpoints: {_measures(measured)}{' (taken)' if better else ' (not taken)'}"
            )
            if better:
                weights, steps = average, chosen
        self._write_bundle(weights, steps)
        write_json(self.run_path / "trained.json", _completion(self.config))

    def _put(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])

    def _write_bundle(self, weights: dict[str, Tensor], steps: list[int]) -> None:
        about = {
            "mtkit": __version__,
            "source_vocab_size": self.tokenizer.source_vocab_size,
            "target_vocab_size": self.tokenizer.target_vocab_size,
            "num_parameters": self.model.num_parameters,
            "training": {
                "steps": self.state.progress.step,
                "minutes": round(self.state.progress.seconds / 60, 1),
                "pairs_seen": self.state.progress.pairs,
                "averaged_steps": steps,
                "start_from": self.start,
                "data": self.corpus.facts(),
            },
        }
        path = self.run_path / "model"
        # The data stays where it is: a bundle names no folder of the machine that it was trained on.
        training = self.settings.model_copy(update={"start_from": None})
        config = self.config.model_copy(update={"run_dir": None, "training": training})
        save_bundle(path, weights, config, self.tokenizer.save, about)
        say(f"model: {path}")

    def _write_start(self) -> None:
        progress = self.state.progress
        facts = {
            "mtkit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.platform(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else str(self.device),
            "threads": torch.get_num_threads(),
            "precision": progress.precision,
            "start_from": self.start,
            "parameters": self.model.num_parameters,
            "command": sys.argv,
            "data": self.corpus.facts(),
        }
        write_file(self.run_path / "config.yaml", config_text(self.config).encode())
        write_json(self.run_path / "run.json", facts)
        self.log.write("start", step=progress.step, **facts)
        say(
            f"{self.model.num_parameters:,} parameters on {facts['device']} in {progress.precision}, "
            f"{facts['threads']} threads; {len(self.corpus):,} pairs"
        )


def mixture_of(config: Config, corpus: Corpus) -> Mixture | None:
    """How often an epoch goes through each of the corpora; None where it goes through all once."""
    weights = [text.weight for text in config.data.train]
    if is_natural(weights, config.data.temperature):
        return None
    if len(corpus.manifest.corpora) != len(weights):
        raise DataError(
            f"{corpus.directory}: tells the pairs of {len(corpus.manifest.corpora)} corpora, but data.train has "
            f"{len(weights)}; binarize the corpora again"
        )
    return mix(corpus.manifest.corpora, weights, config.data.temperature)


def _mixing(config: Config) -> dict[str, Any]:
    """What the order of the pairs depends on beside the training settings; nothing where every pair comes once."""
    weights = [text.weight for text in config.data.train]
    if is_natural(weights, config.data.temperature):
        return {}
    return {"mixing": {"weights": weights, "temperature": config.data.temperature}}


def selection_score(measured: dict[str, float], settings: TrainingConfig) -> float:
    """What the best checkpoint is best at; higher is better."""
    value = -measured["nll"] if settings.select_by == "loss" else measured[settings.select_by]
    return value if math.isfinite(value) else float("-inf")


def sampling_of(config: Config, tokenizer: Tokenizer, corpus: Corpus) -> Sampling | None:
    """How training samples segmentations of the corpus's text, if it does."""
    settings = config.training
    if not settings.samples_subwords:
        return None
    corpus.require_text()
    alpha = settings.bpe_dropout if settings.unigram_alpha is None else settings.unigram_alpha
    source, target = (
        partial(sample, alpha=alpha, nbest=settings.unigram_nbest)
        for sample in (tokenizer.sample_source, tokenizer.sample_target)
    )
    return Sampling(source, target, config.data.max_length)


def chance_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of one forward pass: a function of where training is, so that no random state has to be saved."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def write_json(path: Path, value: object) -> None:
    """One JSON file, replaced whole."""
    try:
        write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}; make room and start again") from None


def _padding(batches: list[Batch]) -> float:
    return sum(batch.padding for batch in batches) / len(batches)


def _measures(measured: dict[str, float]) -> str:
    return (
        f"loss {measured['loss']:.4f}, nll {measured['nll']:.4f} (perplexity {measured['perplexity']:.2f}), "
        f"BLEU {measured['bleu']:.2f}, chrF {measured['chrf']:.2f}"
    )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after and prefix:
            yield f"{prefix}{key} was {before}, is {after}"
        elif before != after:
            yield f"the {key}"
