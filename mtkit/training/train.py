"""Trains a run: begins or resumes it, then updates, validates and saves in a loop, and writes the bundle at the end."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mtkit import __version__
from mtkit.bundle.opening import (
    FIRST_SCALE,
    TRAINED,
    Progress,
    Update,
    Window,
    average_weights,
    averaged_steps,
    checkpoint_steps,
    measured_weights,
    noted_start,
    read_progress,
    start_bundle,
    start_checksum,
    step_directory,
)
from mtkit.config.settings import Config
from mtkit.config.training_settings import SHARES, TrainingConfig, settled
from mtkit.data.batches import Batch, Feed, Share, Stream
from mtkit.data.corpus import Corpus, Verification
from mtkit.errors import CheckpointError, DivergedError, MtkitError, StoppedError, counted, is_out_of_memory, say
from mtkit.files import Stop, stopping_by_signal
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import keep_few_kernels, new_model, pick_device, pick_precision, require_weights_of
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.checkpoint import clear_leftovers, delete_old, load_checkpoint, save_checkpoint
from mtkit.training.distributed import ALONE, Ranks
from mtkit.training.optimizers import (
    FEW_UPDATES,
    Ending,
    Forecast,
    Pace,
    Plan,
    advice,
    divergence,
    has_reached_target,
    learning_rate,
    lowers_rate,
    make_average,
    make_optimizer,
    make_plan,
    no_ending,
    reason_to_end,
    reviewed_plan,
    reviews_due,
    saves_at,
    shortcomings,
    with_shares,
)
from mtkit.training.records import (
    MEASURES,
    Board,
    Changes,
    Difference,
    Log,
    NoLog,
    ShownTraining,
    Validation,
    best_logged,
    changes_since,
    differences,
    earlier_budgets,
    facts_of,
    identity_of,
    measures_text,
    nothing_to_end,
    require_allowed,
    selection_score,
    validation_digest,
    with_changes,
    write_facts,
    write_model,
    write_trained,
)
from mtkit.training.update import LossScaler, TrainState, Updater, find_batch_tokens, with_batch_tokens

NUM_SAMPLES = 3  # number of translations shown at each validation


def nothing() -> None:
    """Does nothing; `train` calls this function after each checkpoint if no other function is given as `after_save`."""


def train(
    config: Config,
    validation: tuple[list[str], list[str]],
    change: bool = False,
    after_save: Callable[[], None] = nothing,
    end_in: int | None = None,
    ranks: Ranks = ALONE,
    deadline: float = math.inf,
) -> None:
    """Train until a limit in the settings is reached, and write the bundle into the run directory.

    `validation` holds the source sentences and the references. Training resumes from the newest checkpoint if there is
    one; `change=True` (--change) allows settings that differ from those of the checkpoint. `after_save` is called after
    each checkpoint. If `end_in` (--end-in) is given, the learning rate decays over the `end_in` updates after the
    newest checkpoint, and the run then ends. After Ctrl-C, SIGTERM or SIGHUP, or when time.monotonic() reaches
    `deadline`, the state is saved and StoppedError is raised. `ranks` are the processes that train together: each of
    them calls this function, but only rank 0 writes files.
    """
    run = config.run_path
    if ranks.is_first:
        clear_leftovers(run / "checkpoints")
        ranks.begin(trains=True)
    tokenizer = Tokenizer.load(run / "tokenizer")
    corpus = Corpus.open(run / "data" / "train")
    corpus.require_tokenizer(tokenizer.hash)
    with Verification(corpus) if ranks.is_first_here else nullcontext() as verification:
        measured = Validation.prepare(config, tokenizer, *validation)
        trainer = Trainer(config, tokenizer, corpus, measured, change, after_save, end_in, ranks)
        with stopping_by_signal(silent=not ranks.is_first) as stop:
            stop.deadline = deadline
            trainer.run(stop, verification)


class Trainer:
    """Trains one run: begins with the first update, or after the newest checkpoint, and ends with the bundle."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        corpus: Corpus,
        validation: Validation,
        change: bool = False,
        after_save: Callable[[], None] = nothing,
        end_in: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.given = config
        self.config = config  # as given, with numbers in place of "auto" once they are known
        self.after_save = after_save
        self.run_path = config.run_path
        self.checkpoints = config.run_path / "checkpoints"
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.validation = validation
        self.device = pick_device(config.device)

        sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
        specials = tokenizer.specials
        self.model = new_model(config.model, *sizes, config.training.seed, specials).to(self.device)
        self.feed = Feed.prepare(config, tokenizer, corpus, self.model.boundaries, self.device)
        self.batch_tokens: int | None = None  # the number in place of "auto" for training.batch_tokens, once known
        optimizer = make_optimizer(self.model, self.settings, self.device)
        precision = pick_precision(self.settings.precision, self.device, config.model.d_model)
        keep_few_kernels(self.model, self.device, precision)
        if config.training.max_steps != "auto":
            self._settle(with_shares(config.training))
        average = make_average(self.model, optimizer, config.training)
        self.state = TrainState(self.model, optimizer, Progress(precision=precision), average)
        self.is_saved = False  # whether the newest checkpoint holds the current state
        self.started_from: str | None = None  # checksum of the weights that training started from
        self.validates_start = False  # whether to validate the model that training starts from, before any update
        self.changes = Changes([], [], [])  # differences from the checkpoint that training resumes from
        self.begins_ending = False  # whether the decay of --end-in begins now; False if it began earlier
        self._resume(change, end_in)
        progress = self.state.progress
        scaler = LossScaler(self.device, progress.precision, progress.loss_scale, progress.scale_updates)
        self.updater = Updater(self.state, self.settings, scaler, ranks, splits=True)
        self.log = self._open_log() if ranks.is_first else NoLog()

    @property
    def settings(self) -> TrainingConfig:
        """The training settings; a number replaces each "auto" as soon as this number is known."""
        return self.config.training

    def _settle(self, training: TrainingConfig) -> None:
        """Use `training`, which has numbers in place of "auto", as the training settings from now on.

        Only `training.batch_tokens` may still be "auto"; if the batch size is already known, it replaces this "auto".
        """
        if training.batch_tokens == "auto" and self.batch_tokens is not None:
            training = training.model_copy(update={"batch_tokens": self.batch_tokens})
            self.feed = with_batch_tokens(self.feed, self.batch_tokens)
        self.config = self.given.model_copy(update={"training": training})

    def _use_batch_tokens(self, tokens: int) -> None:
        """Put `tokens` in place of "auto" in training.batch_tokens from now on."""
        self.batch_tokens = tokens
        self._settle(self.settings)

    def _rate(self, step: int, settings: TrainingConfig) -> float:
        """Returns the learning rate of update number `step` under the given settings."""
        return learning_rate(step, settings, self.config.model.d_model, self.state.progress.rate_lowered)

    def _open_log(self) -> Log:
        step, length = self.state.progress.step, self.state.progress.log_bytes
        board = Board(self.run_path / "tensorboard", step) if self.settings.tensorboard else None
        return Log(self.run_path / "log.jsonl", length, board)

    # How a run begins: new, from another model, or from its newest checkpoint.

    def _begin(self) -> None:
        """Begin a new run: load the weights of `training.start_from` if it is given, else keep the random weights."""
        if bundle := start_bundle(self.config):
            weights = bundle.weights()
            require_weights_of(self.model, weights, str(bundle.path))
            self._set_weights(weights)
            self.started_from = noted_start(bundle)
            # A model with pieces or tags that were never trained must not become the best one before it learns them.
            self.validates_start = not (bundle.untrained or bundle.untrained_tags)
            if self.state.average:
                self.state.average.restore(weights)
            say(f"starting from the weights of {bundle.path}")

    def _resume(self, change: bool, end_in: int | None) -> None:
        """Load the newest checkpoint, or begin a new run if there is none.

        Raises CheckpointError in three cases: the checkpoint is damaged; the settings or the data have changed in a way
        that is not allowed, or is allowed only with `change=True`; or the run cannot end in `end_in` updates.
        """
        steps = checkpoint_steps(self.checkpoints)
        if not steps:
            if end_in is not None:
                raise nothing_to_end(self.run_path)
            self._begin()
            return
        step = steps[-1]
        saved, found, _ = read_progress(self.checkpoints, step)
        if self.given.training.batch_tokens == "auto":
            self._use_batch_tokens(found["training"]["batch_tokens"])
        plan = self._plan_of(saved, step) if self.settings.max_steps == "auto" else None
        if plan:
            self._settle(plan.settings(self.given.training))
        ending = self._ending_of(saved, end_in)
        noted = found["training"].get("start_from")
        self.started_from = start_checksum(self.config, noted)
        if self.settings.start_from and not self.started_from:
            self.started_from = noted or "a model that is not there"
        self.changes = changes_since(found, self._identity(), self.config, step)
        require_allowed(self.changes, self.run_path, step, change)
        if end_in is not None and not ending:
            ending = self._begin_ending(step, end_in)
            self.changes = changes_since(found, self._identity(), self.config, step)
        load_checkpoint(self.checkpoints, step, self.state)
        if plan:
            self.state.progress.plan = asdict(plan)
        self.state.progress.ending = asdict(ending) if ending else None
        self.is_saved = True
        say(f"going on from step {step:,} in {self.run_path}")
        if ending and step < ending.last_step:
            self._tell_ending(ending)
        progress = self.state.progress
        if progress.has_best and progress.best_step not in steps:
            say(f"the best checkpoint, step {progress.best_step:,}, is gone: the search for the best one starts again")
            progress.best_step, progress.best_score = 0, float("-inf")
        if self.changes.all:
            self._change(found)

    def _plan_of(self, progress: Progress, step: int) -> Plan:
        """Returns the plan stored in `progress`, scaled if `max_minutes` has changed since the run began.

        A plan has the numbers that replace "auto" in the settings. Raises CheckpointError if the run began with numbers
        instead of "auto", so that there is no plan; the message names `step`, the step of the checkpoint.
        """
        if progress.plan is None:
            raise CheckpointError(
                f"{self.run_path}: cannot go on from step {step:,} with training.max_steps auto, since the run began "
                "with numbers; give those, or start anew with --fresh"
            )
        minutes = self.given.training.max_minutes
        assert minutes is not None, "the settings check it"
        plan = Plan(**progress.plan)
        return plan if minutes == plan.max_minutes else plan.for_minutes(minutes)

    def _ending_of(self, progress: Progress, end_in: int | None) -> Ending | None:
        """Returns the decay of the learning rate (--end-in) that is stored in `progress`; `None` if no decay had begun.

        If a decay had begun, it becomes part of the settings. Raises CheckpointError if the settings no longer allow
        the decay, or if `end_in` asks for a different decay.
        """
        if progress.ending is None:
            return None
        ending = Ending(**progress.ending)
        begun = f"{self.run_path}: the run {'ended' if progress.step >= ending.last_step else 'is ending'} by"
        if end_in not in (None, ending.steps):
            raise CheckpointError(
                f"{begun} --end-in {ending.steps}, from step {ending.start + 1:,} to {ending.last_step:,}; found "
                f"--end-in {end_in}, wants {ending.steps} or no --end-in. training.start_from={self.run_path} starts "
                "another run from these weights"
            )
        if fault := no_ending(self.settings):
            raise CheckpointError(f"{begun} --end-in {ending.steps}, and now: {fault}")
        self._settle(ending.settings(self.settings))
        return ending

    def _begin_ending(self, step: int, end_in: int) -> Ending:
        """Begin the decay of the learning rate (--end-in) after `step`, over `end_in` updates.

        The decay becomes part of the settings, and is returned. Raises CheckpointError if the settings do not allow it.
        """
        if fault := no_ending(self.settings, step):
            raise CheckpointError(f"{self.run_path}: --end-in {end_in}: {fault}")
        self.begins_ending = True
        ending = Ending(step, end_in)
        self._settle(ending.settings(self.settings))
        return ending

    def _tell_ending(self, ending: Ending) -> None:
        """Report the decay of the learning rate (--end-in), and which limits of training no longer apply."""
        limits = [name for name in ("max_minutes", "patience") if getattr(self.given.training, name) is not None]
        ignored = f"; training.{' and '.join(limits)} cannot end it earlier" if limits else ""
        say(
            f"--end-in {ending.steps}: the learning rate falls to {self.settings.final_learning_rate:g} from step "
            f"{ending.start + 1:,} to {ending.last_step:,}, where training ends{ignored}"
        )

    def _identity(self) -> dict[str, Any]:
        validation = validation_digest(self.config)
        return identity_of(self.config, self.corpus.digest, self.tokenizer.hash, validation, self.started_from)

    def _change(self, found: dict[str, Any]) -> None:
        """Record, report and apply the changes of settings and data since the checkpoint was written.

        `found` is the identity in the checkpoint: the settings and checksums of the run when the checkpoint was
        written.
        """
        progress, differences = self.state.progress, self.changes.all
        changed = {difference.name for difference in differences}
        chain = progress.changes
        progress.changes = with_changes(chain, progress.step, progress.pairs, differences)
        self.is_saved = False
        say(f"changed from step {progress.step + 1:,} on: {'; '.join(map(str, differences))}")
        if "training.precision" in changed:
            progress.precision = pick_precision(self.settings.precision, self.device, self.config.model.d_model)
            progress.loss_scale, progress.scale_updates = FIRST_SCALE, 0
        then = self.settings.model_copy(update=found["training"])
        rate = self._rate(progress.step + 1, then)
        if changed & {"training.learning_rate", "training.schedule"}:
            progress.rate_lowered = progress.stale_validations = 0
        if (now := self._rate(progress.step + 1, self.settings)) != rate:
            say(f"the learning rate of step {progress.step + 1:,} is {now:.3e} (it would have been {rate:.3e})")
        if progress.has_best and changed & MEASURES:
            # The log has all measures of each validation; they can be used unless the validation sentences changed.
            is_logged = changed & MEASURES == {"training.select_by"}
            is_logged &= not any(MEASURES & change["settings"].keys() for change in chain)
            self._find_best_again(is_logged)

    def _find_best_again(self, is_logged: bool) -> None:
        """Choose the best checkpoint again, after a change of a setting on which validation scores depend (`MEASURES`).

        `is_logged` says whether the log may have scores of the kind that `select_by` now names (BLEU, for example). If
        it has, the checkpoint with the best of these scores is chosen. Otherwise, the best checkpoint so far is kept,
        and its score is measured again, since its old score cannot be compared with later ones.
        """
        progress, steps = self.state.progress, checkpoint_steps(self.checkpoints)
        best = best_logged(self.run_path / "log.jsonl", progress, self.settings, steps) if is_logged else None
        if best:
            progress.best_step, progress.best_score, progress.bad_validations = best
        else:
            self._measure_best_again()
        say(f"the best checkpoint so far by the new measure is that of step {progress.best_step:,}")

    def _measure_best_again(self) -> None:
        """Validate the best checkpoint so far with the current settings, and set `progress.best_score`."""
        progress = self.state.progress
        weights = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self._set_weights(measured_weights(self.checkpoints, progress.best_step))
        measured, _ = self.validation.measure(self.model, self.tokenizer, Stop(), self.ranks)
        progress.best_score = selection_score(measured, self.settings)
        self._set_weights(weights)

    # The run as a whole.

    def run(self, stop: Stop, verification: Verification | None = None) -> None:
        """Train to the end, wait until the checksums of the training data are verified, then write the bundle.

        Raises StoppedError if a signal or the deadline in `stop` ends training early, and MtkitError if training fails.
        """
        self.asked = stop
        if verification:
            stop.watched.append(verification.check)
        if self.ranks.are_many:
            stop.watched.append(self.ranks.check)
        if not self.ranks.is_first:
            stop = Stop(watched=stop.watched)  # signals take effect only when `Ranks.agree` adds them
        progress = self.state.progress
        try:
            self._require_alike()
            if self.ranks.is_first:
                (self.run_path / TRAINED).unlink(missing_ok=True)
            if self.settings.batch_tokens == "auto":
                self._find_batch_tokens(stop)
            if self.ranks.are_many:
                batches = self.settings.batches_per_update(self.ranks.count) * self.ranks.count
                say(f"training on {self.ranks.count} devices; an update takes {batches:,} batches")
            if self.settings.max_steps == "auto":
                self._make_plan(stop)
            self._write_facts()
            if self.changes.all:
                told = {change.name: [change.before, change.after] for change in self.changes.all}
                self.log.write("change", step=progress.step, settings=told)
            if self.changes.all or self.begins_ending:
                self._save()  # so that --change and --end-in need not be given again
            if self.validates_start:
                self._validate_start(stop)
            share, earlier = Share(self.ranks.rank, self.ranks.count), earlier_budgets(progress, self.settings)
            with self.feed.batches(progress.step, progress.pairs, earlier, share, progress.order) as stream:
                reason = self._loop(stream, stop)
            say(f"training ends at step {progress.step:,}: {reason}")
            found = [] if has_reached_target(progress, self.settings) else shortcomings(self.settings, progress.step)
            if found:
                say(f"mtkit: warning: training ended too early: {'; '.join(found)}. {advice(self.given.training)}")
            if verification:
                verification.wait(stop.check)
            self._finish(stop)
        except StoppedError:
            self._save_what_is_new()
            where = f"stopped at step {progress.step:,} by {stop.reason}"
            saved = "the state is saved" if self.is_saved else self._saved_text()
            raise StoppedError(
                f"{where}; {saved} in {self.checkpoints}, and the same command (without --fresh) goes on from there"
                if self._last_saved() is not None
                else f"{where}, before there was anything to save"
            ) from None
        finally:
            self.log.close()

    def _require_alike(self) -> None:
        """Raise CheckpointError if not all ranks train the same run, else give all ranks the weights of rank 0.

        The ranks must have the same version of mtkit, step, precision, settings and checksums of data.
        """
        if not self.ranks.are_many:
            return
        progress = self.state.progress
        mine = {"mtkit": __version__, "step": progress.step, "precision": progress.precision, **self._identity()}
        first, *others = self.ranks.gather(mine)
        for rank, found in enumerate(others, start=1):
            if found != first:
                told = "; ".join(
                    f"{each.name} is {each.before} in rank 0, {each.after} there" for each in differences(first, found)
                )
                raise CheckpointError(
                    f"{self.run_path}: rank {rank} does not train the same: {told}. All machines need the same command "
                    "and the same run directory, on a disk that they share"
                )
        self.ranks.share(self.model)

    def _find_batch_tokens(self, stop: Stop) -> None:
        """Find the largest batch that fits into memory; its size replaces "auto" in `training.batch_tokens`.

        The time that the search takes counts as training time.
        """
        begun, progress = time.monotonic(), self.state.progress
        found = find_batch_tokens(self.model, self.feed, progress.precision, stop, self.ranks)
        progress.seconds = self.ranks.of_first(time.monotonic() - begun)
        self._use_batch_tokens(found.tokens)
        say(found.told())

    def _make_plan(self, stop: Stop) -> None:
        """Measure the speed of training; replace "auto" in the settings by numbers that suit `max_minutes`.

        The time that the measurement takes counts as training time.
        """
        begun = time.monotonic()
        progress = self.state.progress
        try:
            pace = measure_pace(self.model, self.feed, self.validation, self.tokenizer, progress, stop, self.ranks)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory("while its speed was measured", self._less_memory()) from None
        progress.seconds += self.ranks.of_first(time.monotonic() - begun)
        spent = progress.seconds + (pace.validation if self.validates_start else 0.0)
        plan = make_plan(self.settings, pace, spent)
        progress.plan = asdict(plan)
        self._settle(plan.settings(self.given.training))
        say(f"training.max_steps auto: {plan.told(pace)}")
        if plan.max_steps < FEW_UPDATES:
            say(
                "mtkit: warning: so few updates teach a model little; raise training.max_minutes, or lower "
                f"training.batch_tokens, which is {self.settings.told_batch_tokens}, or the sizes of the model"
            )

    def _review_plan(self, pace: "MeanSeconds") -> bool:
        """Review the plan (`max_steps` "auto") if a review is due; returns whether a review was due.

        A plan has the numbers that replace "auto" in the settings. `pace` is the present time of an update; numbers of
        the plan that do not fit this time are replaced. New numbers are recorded like a change of settings, so that the
        run resumes with the new numbers if it is stopped.
        """
        progress = self.state.progress
        if progress.plan is None or progress.ending or not pace.is_known:
            return False
        old = Plan(**progress.plan)
        if reviews_due(old, progress.step, progress.seconds) == old.reviews:
            return False
        given = self.given.training
        update = self.ranks.of_first(pace.mean)
        plan = reviewed_plan(given, old, update, progress.step, progress.seconds)
        progress.plan = asdict(plan)
        self.is_saved = False
        before, after = old.settings(given), plan.settings(given)
        numbers = {f"training.{name}": (getattr(before, name), getattr(after, name)) for name in ("max_steps", *SHARES)}
        found = [Difference(name, *sides) for name, sides in numbers.items() if sides[0] != sides[1]]
        if found:
            progress.changes = with_changes(progress.changes, progress.step, progress.pairs, found)
            self._settle(after)
            told = {difference.name: [difference.before, difference.after] for difference in found}
            self.log.write("change", step=progress.step, settings=told)
            say(
                f"step {progress.step:,}: an update takes {update:.2g} s now, so the rest is planned anew: "
                f"{'; '.join(map(str, found))}"
            )
            if self.ranks.is_first:
                write_facts(*self._facts())
        return True

    def _facts(self) -> tuple[Config, Corpus, TranslationModel, Progress, str | None, int, int]:
        """Returns what is to be recorded about the run: the arguments of `write_facts`.

        The last three items are the checksum of the weights that training started from (`None` if they were random),
        the number of ranks, and `training.batch_tokens`.
        """
        progress, tokens = self.state.progress, settled(self.settings.batch_tokens)
        return self.given, self.corpus, self.model, progress, self.started_from, self.ranks.count, tokens

    def _write_facts(self) -> None:
        """Write config.yaml and run.json, log the content of run.json, and report the main facts."""
        if not self.ranks.is_first:
            return
        progress = self.state.progress
        facts = write_facts(*self._facts())
        self.log.write("start", step=progress.step, **facts)
        say(
            f"{self.model.num_parameters:,} parameters on {facts['device']} in {progress.precision}, "
            f"{counted(facts['threads'], 'thread')}; {counted(len(self.corpus), 'pair')}"
        )

    # The loop.

    def _loop(self, stream: Stream, stop: Stop) -> str:
        """Update, validate and save until a limit is reached; returns this limit in words."""
        progress, settings = self.state.progress, self.settings
        has_matrices = settings.optimizer == "muon"  # whether hidden matrices have a learning rate of their own
        self.model.train()
        begun = time.monotonic() - progress.seconds
        pace = MeanSeconds()  # of the updates since the plan was last reviewed
        forecast = Forecast(settings, is_planned=self.given.training.max_steps == "auto")
        forecast.begin(progress.step)
        with closing(ShownTraining(progress, settings)) as shown:
            while True:
                # A checkpoint is saved after each validation, so that a kill neither repeats nor loses a validation.
                step = progress.step
                if step % settled(settings.validate_every) == 0 and progress.validated_step < step and self._is_savable:
                    shown.catch_up()
                    self._validate_or_save(stop)
                    progress.seconds = time.monotonic() - begun
                    progress.window = Window(since=progress.seconds)
                if self._saves_at(step) and not self.is_saved and self._is_savable:
                    self._save()
                progress.seconds = self.ranks.agree(self.asked, stop, progress.seconds)
                if stop.save:
                    stop.save = False
                    self._save_what_is_new()
                    say(f"SIGUSR1: {self._saved_text()}; going on")
                if self._review_plan(pace):
                    settings, pace = self.settings, MeanSeconds()
                if reason := reason_to_end(progress, settings):
                    return reason
                stop.check()

                with pace.timing():
                    epoch = self._update_or_save(stream)
                if what := divergence(progress, settings, self.updater.scaler.scale):
                    raise DivergedError(self._with_remedy(what))
                shown.update()
                progress.seconds = time.monotonic() - begun
                forecast.see(progress.step, progress.seconds)
                is_logged = progress.step % settings.log_every == 0
                if progress.window.updates and (is_logged or shown.is_overdue):
                    record = progress.window.record(progress.seconds)
                    if is_logged:
                        rates = {"matrix_lr": record["lr"] * settings.matrix_rate_factor} if has_matrices else {}
                        self.log.write("train", step=progress.step, epoch=epoch, **record, **rates)
                        progress.window = Window(since=progress.seconds)
                    shown.tell(self._epochs(), record)

    def _update(self, stream: Stream) -> int:
        """Take the batches of one update from the stream and make the update; returns the epoch of the last batch."""
        progress, settings = self.state.progress, self.settings
        taken = list(islice(stream, settings.batches_per_update(self.ranks.count)))
        batches = [batch for _, parts in taken for batch in parts]
        self.is_saved = False
        progress.step += 1
        counts = [sum(batch.num_pairs for batch in batches), sum(batch.target_tokens for batch in batches)]
        pairs, tokens, epoch = map(int, self.ranks.sums([*counts, taken[-1][0] if self.ranks.is_last else 0]))
        progress.pairs += pairs
        progress.target_tokens += tokens
        scale_before = self.updater.scaler.scale
        update = self.updater.update(batches, progress.step, self._rate(progress.step, settings), tokens)
        if update.is_finite:
            progress.skipped_in_row = 0
            progress.window.add(update)
        elif math.isfinite(update.loss) and self.updater.scaler.scale < scale_before:
            self._overflow()
        else:
            self._skip(update)
        return epoch

    def _skip(self, update: Update) -> None:
        """Count and report an update that was skipped because its loss or gradient was not finite."""
        progress = self.state.progress
        progress.skipped += 1
        progress.skipped_in_row += 1
        what = "gradient" if math.isfinite(update.loss) else "loss"
        say(f"step {progress.step:,}: the {what} is not finite; the update is skipped ({progress.skipped} so far)")
        self.log.write("skipped", step=progress.step, what=what)

    def _overflow(self) -> None:
        """Count and report an overflow in fp16.

        Overflows are no sign of divergence, since the loss scale is found by trial and error.
        """
        progress = self.state.progress
        progress.overflows += 1
        say(
            f"step {progress.step:,}: the gradient overflows fp16; the update is skipped and the loss scale lowered to "
            f"{self.updater.scaler.scale:g} ({progress.overflows} so far)"
        )
        self.log.write("overflow", step=progress.step, loss_scale=self.updater.scaler.scale)

    def _epochs(self) -> float:
        """Returns the number of sentence pairs consumed so far, divided by the number of pairs in the corpus."""
        return self.state.progress.pairs / len(self.corpus)

    # Validation.

    def _validate_start(self, stop: Stop) -> None:
        """Validate and save the model that a new run starts from.

        This model counts as the best one until a validation has a better score.
        """
        progress, begun = self.state.progress, time.monotonic()
        self._validate_or_save(stop)
        progress.seconds += time.monotonic() - begun
        progress.window = Window(since=progress.seconds)
        self._save()

    def _validate(self, stop: Stop) -> None:
        """Validate the model, note whether it is the best one so far, and log and report the result.

        With the schedule "plateau", also lowers the learning rate after `plateau_patience` validations without a new
        best score; validations during the warm-up do not count.
        """
        progress = self.state.progress
        begun = time.monotonic()
        with self.state.average.in_use() if self.state.average else nullcontext():
            measured, translations = self.validation.measure(self.model, self.tokenizer, stop, self.ranks)
        score = selection_score(measured, self.settings)
        better = score > progress.best_score
        if better:
            progress.best_score, progress.best_step, progress.bad_validations = score, progress.step, 0
            progress.stale_validations = 0
        elif progress.step:  # a validation at step 0 does not count, since it comes before training
            progress.bad_validations += 1
            progress.stale_validations += progress.step > settled(self.settings.warmup_steps)
        progress.validated_step = progress.step
        self.is_saved = False
        clock = {"seconds": round(time.monotonic() - begun, 3), "minutes": round(progress.seconds / 60, 4)}
        if progress.plan:
            progress.plan["validation"] = self.ranks.of_first(clock["seconds"])
        self.log.write("validation", step=progress.step, **measured, best=better, **clock)
        at = f"step {progress.step:,}, epoch {self._epochs():.1f}"
        say(f"{at}: {measures_text(measured)}{' (best)' if better else ''}")
        self._show_samples(translations)
        if lowers_rate(progress.stale_validations, self.settings, progress.rate_lowered):
            progress.stale_validations, progress.rate_lowered = 0, progress.rate_lowered + 1
            validations = counted(self.settings.plateau_patience, "validation")
            say(f"nothing better in {validations}: the learning rate is lowered")

    def _show_samples(self, translations: list[str]) -> None:
        """Show and log `NUM_SAMPLES` of the translations.

        Successive validations show different sentences; the choice of sentences depends only on the step.
        """
        first = self.state.progress.step // settled(self.settings.validate_every) * NUM_SAMPLES
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

    # Saving.

    def _save(self) -> None:
        """Write a checkpoint, delete checkpoints that are no longer needed, and call `after_save`.

        Only rank 0 does this; all other ranks only note that the state is saved.
        """
        if not self.ranks.is_first:
            self.is_saved = True
            return
        progress = self.state.progress
        progress.log_bytes = self.log.length
        progress.loss_scale, progress.scale_updates = self.updater.scaler.state
        save_checkpoint(self.checkpoints, self.state, self._identity())
        self.is_saved = True
        settings = self.settings
        best = progress.best_step
        delete_old(self.checkpoints, self._scheduled(), best, settings.average_checkpoints, settings.keep_checkpoints)
        self.after_save()

    def _save_what_is_new(self) -> None:
        """Write a checkpoint if there are unsaved updates, unless the last update was skipped."""
        if not self.is_saved and self._is_savable and self.state.progress.step:
            self._save()

    def _last_saved(self) -> int | None:
        """Returns the step of the newest checkpoint that training can resume from; `None` if there is none."""
        return max(checkpoint_steps(self.checkpoints, resumable=True), default=None)

    def _saved_text(self) -> str:
        step = self._last_saved()
        return "nothing is lost" if step is None else f"the state of step {step:,} is saved"

    def _scheduled(self) -> list[int]:
        """Returns the steps of the checkpoints that were due.

        A stopped run also writes a checkpoint when none is due; the step of such a checkpoint is left out.
        """
        return [step for step in checkpoint_steps(self.checkpoints) if self._saves_at(step)]

    def _saves_at(self, step: int) -> bool:
        return saves_at(step, self.settings, self.state.progress.changes)

    @property
    def _is_savable(self) -> bool:
        """Whether the state may be saved.

        If the last update was skipped, training may be diverging, so the state must not be saved.
        """
        return self.state.progress.skipped_in_row == 0

    # The end: choose the weights, write the bundle.

    def _finish(self, stop: Stop) -> None:
        """Write the bundle, then trained.json.

        The bundle gets the weights of the best checkpoint, unless the average of the best checkpoint and the last
        checkpoints before it (see `averaged_steps`) has a better validation score. In that case, the bundle gets the
        average.
        """
        progress, settings = self.state.progress, self.settings
        if progress.validated_step < progress.step or not progress.has_best:
            self._validate_or_save(stop)
        if not self.is_saved:
            self._save()
        best = progress.best_step if progress.has_best else progress.step  # the last step if no score was finite
        steps = [best]
        # Rank 0 has written the checkpoints; the other ranks may not see all of the files yet.
        chosen = self.ranks.of_first(averaged_steps(self._scheduled(), best, settings.average_checkpoints))
        if len(chosen) > 1:
            if self.ranks.is_first:
                self._set_weights(average := average_weights(self.checkpoints, chosen))
            self.ranks.share(self.model)
            measured, _ = self.validation.measure(self.model, self.tokenizer, stop, self.ranks)
        self.ranks.part()
        if not self.ranks.is_first:
            return
        weights = measured_weights(self.checkpoints, best)
        if len(chosen) > 1:
            better = selection_score(measured, settings) > progress.best_score
            self.log.write("average", steps=chosen, **measured, better=better)
            verdict = "taken" if better else "not taken"
            say(f"average of {len(chosen)} checkpoints: {measures_text(measured)} ({verdict})")
            if better:
                weights, steps = average, chosen
        if self.started_from and steps == [0]:
            say(
                "mtkit: warning: training made the model no better: no validation was better than that of step 0, so "
                "the bundle holds the weights that training started from; train again with --fresh and a lower "
                "training.learning_rate, or on text that is more like data.valid"
            )
        self._write_bundle(weights, steps)
        write_trained(self.given, self.started_from, progress.ending)

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])

    def _write_bundle(self, weights: dict[str, Tensor], steps: list[int]) -> None:
        progress = self.state.progress
        training = {
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 1),
            "pairs_seen": progress.pairs,
            "averaged_steps": steps,
            "start_from": self.started_from,
            **({"changes": progress.changes} if progress.changes else {}),
            "data": facts_of(self.corpus, self.started_from),
        }
        path = self.run_path / "model"
        lines = (self.validation.sources, self.validation.references)
        write_model(path, self.config, self.tokenizer, weights, *lines, training, lambda: self.corpus)
        say(f"model: {path}")

    # Failures: memory that runs out, training that diverges.

    def _update_or_save(self, stream: Stream) -> int:
        """Make an update; returns the epoch of the last batch of the update.

        If memory runs out, goes back to the state before the update, saves this state, and raises MtkitError, whose
        message says what to change.
        """
        progress = self.state.progress
        before, was_saved = replace(progress, window=replace(progress.window)), self.is_saved
        try:
            return self._update(stream)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the except block: until that ends, the error keeps the tensors of the update in memory.
        step = progress.step
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.progress, self.is_saved = before, was_saved
        raise self._out_of_memory(
            f"in step {step:,}, with {_shape(self.updater.batch)}",
            self._less_memory(),
        )

    def _validate_or_save(self, stop: Stop) -> None:
        """Validate; if memory runs out, save the state, and raise MtkitError, whose message says what to change."""
        try:
            self._validate(stop)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        raise self._out_of_memory(
            f"in the validation of step {self.state.progress.step:,}",
            f"lower decoding.batch_tokens, which is {self.config.decoding.batch_tokens:,}, or, with --change, "
            f"training.batch_tokens, which is {self.settings.told_batch_tokens}",
        )

    def _less_memory(self) -> str:
        """Returns advice for the error message if an update runs out of memory."""
        half = f"training.batch_tokens={settled(self.settings.batch_tokens) // 2}"
        lower = f"lower training.batch_tokens, which is {self.settings.told_batch_tokens}"
        if self.settings.update_tokens is not None:
            return f"{lower}, and go on with --change ({half}); updates stay as large"
        return (
            f"{lower}, and raise training.accumulate as much, and go on with --change ({half} "
            f"training.accumulate={self.settings.accumulate * 2})"
        )

    def _out_of_memory(self, where: str, advice: str) -> MtkitError:
        """Save the state; returns the error to raise, whose message contains `where` and `advice`."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._save_what_is_new()
        return MtkitError(f"{self.run_path}: out of memory {where}; {self._saved_text()}. To go on, {advice}")

    def _with_remedy(self, divergence: str) -> str:
        """Returns the error message for a training run that diverged, with advice on what to do.

        `divergence` says, in words, why the run counts as diverged.
        """
        remedy = "a lower training.learning_rate, training.clip_norm, or training.precision fp32"
        steps = checkpoint_steps(self.checkpoints, resumable=True)
        if steps:
            newest = step_directory(self.checkpoints, steps[-1])
            older = f" (if that ends so, too, delete {newest} to go on from step {steps[-2]:,})" if steps[1:] else ""
            return (
                f"{self.run_path}: {divergence}; the last good checkpoint is that of step {steps[-1]:,}. With "
                f"the same settings training would end so again: go on from there with --change and {remedy}{older}, "
                "or start anew with --fresh and one of these"
            )
        return f"{self.run_path}: {divergence}; there is no checkpoint yet. Start again with {remedy}"


def _shape(batch: Batch | None) -> str:
    assert batch is not None, "an update has a batch"
    source, target = batch.source.ids.shape[1], batch.target.ids.shape[1]
    return f"a batch of {counted(batch.num_pairs, 'pair')} of up to {source:,} source and {target:,} target tokens"


class MeanSeconds:
    """Times repeated work, such as the updates of training, and computes the mean time."""

    def __init__(self) -> None:
        self._times, self._seconds = 0, 0.0

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Times the body of the `with` statement."""
        begun = time.monotonic()
        yield
        self._times, self._seconds = self._times + 1, self._seconds + time.monotonic() - begun

    @property
    def is_known(self) -> bool:
        """Whether anything was timed yet."""
        return self._times > 0

    @property
    def mean(self) -> float:
        """The mean time in seconds, at least 1 ns, so that it can be a divisor; something must have been timed."""
        return max(self._seconds / self._times, 1e-9)


# Measuring how fast training is on this machine, to plan a run whose training.max_steps is "auto".

LEAST, MOST = 3, 50  # minimum and maximum of timed updates, after a first one that is not timed
# Timing ends after the fraction SHARE of max_minutes, or after LONGEST seconds, whichever is earlier, but not before
# LEAST updates.
SHARE, LONGEST = 0.03, 60.0


def measure_pace(
    model: TranslationModel,
    feed: Feed,
    validation: Validation,
    tokenizer: Tokenizer,
    progress: Progress,
    stop: Stop,
    ranks: Ranks = ALONE,
) -> Pace:
    """Measures how long an update takes, and estimates how long a validation takes, in seconds.

    All ranks return the times of rank 0. `model` and `progress` stay unchanged.
    """
    update = _update_seconds(model, feed, progress, stop, ranks)
    seconds = validation.expected_seconds(model, tokenizer, stop) / ranks.count  # the ranks share a validation
    return Pace(*ranks.of_first([update, seconds]))


def _update_seconds(model: TranslationModel, feed: Feed, progress: Progress, stop: Stop, ranks: Ranks) -> float:
    """Returns the mean seconds of an update, measured on a copy of `model`.

    The first update is not timed, since it also allocates memory.
    """
    settings, device = feed.config.training, model.device
    trial = copy.deepcopy(model)
    state = TrainState(trial, make_optimizer(trial, settings, device), replace(progress))
    uncompiled = settings.model_copy(update={"compile": "off"})  # a copy of a compiled model stays compiled
    updater = Updater(state, uncompiled, LossScaler(device, progress.precision, FIRST_SCALE, 0), ranks)
    longest = min(60 * (settings.max_minutes or 1) * SHARE, LONGEST)
    begun = time.monotonic()
    share = Share(ranks.rank, ranks.count)
    with feed.batches(progress.step, progress.pairs, share=share, order=progress.order) as stream:
        for done in range(MOST + 1):
            stop.check()
            taken = islice(stream, settings.batches_per_update(ranks.count))
            updater.update([batch for _, parts in taken for batch in parts], done + 1, 0.0)
            if not done:
                begun = time.monotonic()
            elif ranks.of_first(done >= LEAST and time.monotonic() - begun >= longest):
                break
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - begun) / done
