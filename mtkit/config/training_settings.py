"""Settings of training and of decoding."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from mtkit.config.section import AUTO, NUMBER, CarriedSection, Section, number_or_auto

Auto = Literal["auto"]
Updates = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag(NUMBER)] | Annotated[Auto, Tag(AUTO)], Discriminator(number_or_auto)
]
Tokens = Updates  # has the same limits
WarmupUpdates = Annotated[
    Annotated[Annotated[int, Field(ge=0)], Tag(NUMBER)] | Annotated[Auto, Tag(AUTO)], Discriminator(number_or_auto)
]
LengthRatio = Annotated[
    Annotated[Annotated[float, Field(gt=0, le=100)], Tag(NUMBER)] | Annotated[Auto, Tag(AUTO)],
    Discriminator(number_or_auto),
]
ExtraTokens = Annotated[
    Annotated[Annotated[int, Field(ge=0, le=10_000)], Tag(NUMBER)] | Annotated[Auto, Tag(AUTO)],
    Discriminator(number_or_auto),
]

ShortlistSize = Annotated[
    Annotated[Annotated[int, Field(ge=1, le=100)], Tag(NUMBER)] | Annotated[Auto, Tag(AUTO)],
    Discriminator(number_or_auto),
]

LEAST_BATCH_TOKENS = 1024  # the smallest "auto" batch, unless update_tokens is less; smaller batches are slow

# In YAML, a bare `on` or `off` is a truth value.
Switch = Annotated[
    Literal["auto", "on", "off"],
    BeforeValidator(lambda value: ("off", "on")[value] if isinstance(value, bool) else value),
]

# The numbers that "auto" stands for if the lengths of the training pairs are not known.
LENGTH_RATIO, EXTRA_TOKENS = 2.0, 20

SHORTLIST_SIZE = 50  # the size that "auto" stands for; smaller lists cost BLEU

# Schedules that end at max_steps. Since their rates depend on max_steps, a run needs --change to change max_steps. With
# wsd, it needs --change only once the rate has begun to fall.
ENDING = ("linear", "cosine", "wsd")

# If max_steps is auto, each of these settings is auto, too, unless it is given.
SHARES = ("warmup_steps", "validate_every", "save_every")


class TrainingConfig(Section):
    """How the model is trained, and how its checkpoints are kept and chosen."""

    start_from: Path | None = Field(
        None,
        description="Run directory, checkpoint or model bundle whose weights training starts from, with its "
        "tokenizer; settings of model, tokenizer, languages and decoding that are not given are taken "
        "from it, too; null: random weights.",
    )
    batch_tokens: Tokens = Field(
        4096,
        description="Largest size of a batch: sentences x longest side, in tokens, counting end marks; auto: as large "
        "as the memory allows, found once before the first update, and such that batches of equal size make up "
        "update_tokens, which must be given; on a CPU at most 4096.",
    )
    batching: Literal["auto", "bucketed", "packed"] = Field(
        "auto",
        description="How sentences share a batch: bucketed: one pair in a row, with pairs of similar length; packed: "
        "several pairs in a row, which do not see each other, with hardly any padding (Transformers only); auto: "
        "bucketed.",
    )
    accumulate: int = Field(1, ge=1, description="Batches of each device whose gradients make one update.")
    update_tokens: int | None = Field(
        None,
        ge=1,
        description="Size of an update over all devices, measured as batch_tokens is, instead of accumulate: each "
        "device accumulates update_tokens / (batch_tokens x devices) batches, rounded, at least 1; null: as "
        "accumulate says.",
    )
    recompute: bool = Field(
        False,
        description="Whether the backward pass computes the layers of a Transformer again, so that their inner values "
        "need not be kept (activation checkpointing): less memory, about a third more time, the same weights.",
    )
    compile: Switch = Field(
        "auto",
        description="Whether PyTorch's compiler translates the layers of a Transformer before the first update: on, "
        "which takes up to minutes, and on a CPU wants a C++ compiler; off; or auto: on a GPU, with batching packed "
        "and precision bf16 or fp16.",
    )
    max_steps: Updates = Field(
        100_000,
        description="Updates after which training ends; auto: as many as fit into max_minutes, fixed once by the "
        "speed of the first ones, together with warmup_steps, validate_every and save_every unless "
        "you set these.",
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes after which training ends; null: no limit. linear, cosine and wsd still end at "
        "max_steps: set that to auto, or to what fits into the minutes.",
    )
    optimizer: Literal["adam", "adamw", "sgd", "muon", "schedule_free"] = Field(
        "adam",
        description="Optimizer; muon orthogonalises the updates of hidden matrices and trains all other weights with "
        "Adam; schedule_free is AdamW that averages the weights instead of lowering the learning rate, with schedule "
        "constant (Defazio et al. 2024).",
    )
    matrix_learning_rate: float | None = Field(
        None, gt=0, description="Peak of muon's learning rate for hidden matrices; null: as learning_rate."
    )
    adam_betas: tuple[float, float] = Field(
        (0.9, 0.98),
        description="Decay of Adam's averages of the gradient and of its square; with schedule_free, the first is the "
        "share of the averaged weights in the mixture of weights at which the gradient is computed.",
    )
    adam_eps: float = Field(1e-9, gt=0, description="Adam's guard against division by zero.")
    momentum: float = Field(
        0.0, ge=0, lt=1, description="Momentum of sgd: share of the last update that is added again."
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Weight decay; adam and sgd add it to the gradient, adamw, muon and schedule_free to the update.",
    )
    weight_decay_of: Literal["all", "matrices"] = Field(
        "all",
        description="Which weights decay: all, or only hidden matrices, which leaves out embeddings, the output layer, "
        "biases and the gains of norms.",
    )
    schedule: Literal["noam", "inverse_sqrt", "constant", "linear", "cosine", "wsd", "plateau"] = Field(
        "noam",
        description="How the learning rate changes after warm-up; linear and cosine lower it until max_steps, wsd "
        "(warm-up, stable, decay) only in the last decay_steps updates, plateau whenever validations stop improving.",
    )
    warmup_steps: WarmupUpdates = Field(
        4000,
        description="Updates during which the learning rate rises to its peak; auto, the default where max_steps is "
        "auto: a tenth of max_steps, at most 4000.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak of the learning rate, whatever the schedule; null: noam with the paper's factor of 1.",
    )
    final_learning_rate: float = Field(
        0.0, ge=0, description="Learning rate at which linear, cosine, wsd and plateau stop falling."
    )
    decay_steps: Updates = Field(
        "auto",
        description="Updates before max_steps during which wsd lowers the learning rate linearly; auto: a fifth of "
        "max_steps.",
    )
    plateau_factor: float = Field(0.7, gt=0, lt=1, description="Factor by which plateau multiplies the learning rate.")
    plateau_patience: int = Field(
        5,
        ge=1,
        description="Validations in a row without improvement after which plateau lowers the learning rate.",
    )
    bpe_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a merge of byte pairs is skipped (Provilkov et al. 2020)."
    )
    unigram_alpha: float | None = Field(
        None,
        ge=0,
        description="How sharply segmentations of a unigram model are sampled (Kudo 2018): 0 is uniform, larger "
        "values favour likelier ones; null: always the best.",
    )
    unigram_nbest: int = Field(
        -1,
        ge=-1,
        le=512,
        description="Number of best segmentations that unigram_alpha samples from, 2 or more; -1: all.",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of a label's probability that is spread evenly over the vocabulary."
    )
    consistency: Literal["none", "rdrop", "simcut"] = Field(
        "none",
        description="Train a second pass, under other dropout (rdrop: Liang et al. 2021) or with tokens cut "
        "(simcut: Gao et al. 2022), to agree with the first; it takes as long again, and as much "
        "memory again as batch_tokens bounds.",
    )
    consistency_weight: float | None = Field(
        None,
        gt=0,
        description="Weight of that agreement, alpha in the papers; null: theirs, 5 for rdrop and 3 for simcut.",
    )
    cutoff: float = Field(0.05, gt=0, lt=1, description="Share of the tokens whose embeddings simcut sets to zero.")
    guided_alignment: Path | None = Field(
        None,
        description="Word alignments of data.train that one attention head learns (Garg et al. 2019): a file with a "
        "line such as 0-0 1-2 for each pair, source-target, counted from 0, of all corpora in order; null: none. A "
        "relative path starts from data.root.",
    )
    guided_alignment_layer: int | None = Field(
        None, ge=1, description="Decoder layer of that head, from 1; null: the last but one, or the only one."
    )
    guided_alignment_head: int = Field(1, ge=1, description="Number of that head in its layer, from 1.")
    guided_alignment_weight: float = Field(
        0.05, gt=0, description="Weight of its cross-entropy, which is summed over the aligned target tokens."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, which validation, average_checkpoints and the "
        "bundle then use; null: none.",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of an update's gradient, to which larger ones are scaled; null: no limit."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Number format of matrix products; auto: bf16 where the device is fast at it, fp16 on older "
        "GPUs that are fast at that, else fp32.",
    )
    validate_every: Updates = Field(
        1000,
        description="Updates between validations; auto, the default where max_steps is auto: a tenth of max_steps, or "
        "more where validations would take too much of max_minutes.",
    )
    validation_sentences: int = Field(
        1000,
        ge=1,
        description="Largest number of sentences that a validation translates, taken from the corpora of "
        "data.valid in turn and spread evenly over each.",
    )
    save_every: Updates = Field(
        1000,
        description="Updates between checkpoints; auto, the default where max_steps is auto: as validate_every.",
    )
    keep_checkpoints: int = Field(2, ge=1, description="Number of newest checkpoints from which training can resume.")
    select_by: Literal["bleu", "chrf", "loss"] = Field(
        "bleu", description="What the best checkpoint is chosen by; loss is without label smoothing."
    )
    patience: int | None = Field(
        None, ge=1, description="Validations in a row without improvement after which training ends; null: no limit."
    )
    target_score: float | None = Field(
        None,
        ge=0,
        description="Validation score (bleu, chrf or loss, as select_by says) at which training ends; null: training "
        "goes on to its other limits.",
    )
    average_checkpoints: int = Field(
        5,
        ge=1,
        description="Number of checkpoints, ending with the best one, whose average the bundle holds if it is "
        "better than that one.",
    )
    max_skipped: int = Field(
        10, ge=1, description="Number of updates skipped in a row, because they were not finite, that ends training."
    )
    log_every: int = Field(50, ge=1, description="Updates between lines of the log.")
    tensorboard: bool = Field(
        False,
        description="Draw the log with TensorBoard, into tensorboard of the run directory; wants mtkit[tensorboard].",
    )
    seed: int = Field(1, ge=0, description="Seed of all randomness in training.")

    def batches_per_update(self, devices: int = 1) -> int:
        """Returns how many batches each device contributes to an update; the number is the same for every device.

        With `update_tokens`, the number is rounded, so the size of an update may differ from `update_tokens` by up to
        half a batch for each device. The number is at least 1, even if one batch for each device is already larger than
        `update_tokens`.
        """
        if self.update_tokens is None:
            return self.accumulate
        return max(1, int(self.update_tokens / (settled(self.batch_tokens) * devices) + 0.5))

    @property
    def tokens_per_update(self) -> int:
        """The size of an update in a run on one device, measured like `batch_tokens`: sentences x longest side."""
        if self.batch_tokens == "auto":
            assert self.update_tokens is not None, "update_fits checks it"
            return self.update_tokens
        return self.batch_tokens * self.batches_per_update()

    @property
    def told_batch_tokens(self) -> str:
        """`batch_tokens` in words, for messages: "auto", or a number such as "4,096"."""
        return "auto" if self.batch_tokens == "auto" else f"{self.batch_tokens:,}"

    @model_validator(mode="after")
    def update_fits(self) -> "TrainingConfig":
        """Raise ValueError if the size of an update is given twice, or not at all.

        It is given twice if `update_tokens` is given and `accumulate` is not at its default. It is not given at all if
        `batch_tokens` is "auto" and `update_tokens` is missing.
        """
        if self.update_tokens is not None and (said := self.first_changed("accumulate")):
            raise ValueError(f"{said} and update_tokens {self.update_tokens} both say how large an update is; give one")
        if self.batch_tokens == "auto" and self.update_tokens is None:
            raise ValueError(
                "batch_tokens auto wants update_tokens, the size of an update, which would depend on the memory of the "
                "machine otherwise"
            )
        return self

    @model_validator(mode="after")
    def updates_fit(self) -> "TrainingConfig":
        """If `max_steps` is "auto", set `warmup_steps`, `validate_every` and `save_every` to "auto" unless given.

        Raises ValueError if `max_steps` is "auto" but `max_minutes` is not given.
        """
        if self.max_steps != "auto":
            return self
        if self.max_minutes is None:
            raise ValueError("max_steps auto wants max_minutes, the time that the updates are to fit into")
        said = self.model_fields_set
        self.__dict__.update({name: "auto" for name in SHARES if name not in said})
        return self

    @model_validator(mode="after")
    def schedule_fits(self) -> "TrainingConfig":
        """Raise ValueError if a setting does not fit the schedule, or a setting that the schedule needs is missing."""
        if self.learning_rate is None and self.schedule != "noam":
            raise ValueError(f"schedule {self.schedule} wants a learning_rate; only noam knows its own")
        if self.learning_rate is None and not self.warmup_steps:
            raise ValueError("noam without a learning_rate wants warmup_steps of 1 or more")
        if self.schedule not in (*ENDING, "plateau") and (said := self.first_changed("final_learning_rate")):
            raise ValueError(f"{said} wants schedule linear, cosine, wsd or plateau, not {self.schedule}")
        if self.schedule != "wsd" and (said := self.first_changed("decay_steps")):
            raise ValueError(f"{said} wants schedule wsd, not {self.schedule}")
        if self.schedule != "plateau" and (said := self.first_changed("plateau_factor", "plateau_patience")):
            raise ValueError(f"{said} wants schedule plateau, not {self.schedule}")
        if self.learning_rate is not None and self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate} must be at most learning_rate {self.learning_rate}"
            )
        if (
            self.schedule in ENDING
            and self.max_steps != "auto"
            and self.warmup_steps != "auto"
            and self.max_steps <= max(self.warmup_steps, 1)
        ):
            raise ValueError(
                f"schedule {self.schedule} wants max_steps above warmup_steps {self.warmup_steps} and 1, found "
                f"{self.max_steps}"
            )
        if "auto" not in (steps := (self.max_steps, self.warmup_steps, self.decay_steps)):
            max_steps, warmup_steps, decay_steps = map(settled, steps)
            if warmup_steps + decay_steps > max_steps:
                raise ValueError(
                    f"decay_steps {decay_steps} and warmup_steps {warmup_steps} are together more than max_steps "
                    f"{max_steps}"
                )
        if self.schedule == "plateau" and self.patience is not None and self.patience <= self.plateau_patience:
            raise ValueError(
                f"patience {self.patience} ends training before plateau_patience {self.plateau_patience} lowers the "
                "learning rate; it must be more"
            )
        return self

    @model_validator(mode="after")
    def target_fits(self) -> "TrainingConfig":
        """Raise ValueError if `target_score` is above the maximum of the metric that `select_by` names."""
        if self.target_score is not None and self.target_score > 100 and self.select_by != "loss":
            raise ValueError(f"target_score {self.target_score:g} cannot be reached: {self.select_by} is at most 100")
        return self

    @model_validator(mode="after")
    def optimizer_fits(self) -> "TrainingConfig":
        """Raise ValueError if settings of the optimizer are incompatible or have no effect.

        A setting without effect is accepted at its default. Also raises ValueError if one of `adam_betas` is out of
        range.
        """
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum {self.momentum} is for optimizer sgd; {self.optimizer} has adam_betas")
        if self.optimizer == "sgd" and (said := self.first_changed("adam_betas", "adam_eps")):
            raise ValueError(f"{said} is not for optimizer sgd, which has momentum")
        if self.matrix_learning_rate is not None and self.optimizer != "muon":
            raise ValueError(f"matrix_learning_rate is for optimizer muon, not {self.optimizer}")
        if self.matrix_learning_rate is not None and self.learning_rate is None:
            raise ValueError("matrix_learning_rate wants learning_rate, since the schedule moves both alike")
        if self.weight_decay_of == "matrices" and not self.weight_decay:
            raise ValueError("weight_decay_of matrices wants a weight_decay above 0")
        if self.optimizer == "schedule_free" and self.schedule != "constant":
            raise ValueError(
                f"optimizer schedule_free wants schedule constant, not {self.schedule}: after warm-up it needs no other"
            )
        if self.optimizer == "schedule_free" and self.ema_decay is not None:
            raise ValueError(
                f"ema_decay {self.ema_decay:g} does not go with optimizer schedule_free, which averages the weights"
            )
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas {list(self.adam_betas)} must each be at least 0 and less than 1")
        return self

    @model_validator(mode="after")
    def objective_fits(self) -> "TrainingConfig":
        """Raise ValueError if a setting of consistency training or unigram sampling is invalid or has no effect."""
        if self.consistency_weight is not None and self.consistency == "none":
            raise ValueError(
                f"consistency_weight {self.consistency_weight:g} wants consistency rdrop or simcut, not none"
            )
        if self.consistency != "simcut" and (said := self.first_changed("cutoff")):
            raise ValueError(f"{said} wants consistency simcut, not {self.consistency}")
        if self.unigram_nbest in (0, 1):
            raise ValueError(f"unigram_nbest {self.unigram_nbest} leaves nothing to sample; it wants 2 or more, or -1")
        if self.unigram_nbest != -1 and self.unigram_alpha is None:
            raise ValueError(f"unigram_nbest {self.unigram_nbest} wants a unigram_alpha, without which none is sampled")
        return self

    @model_validator(mode="after")
    def guided_alignment_fits(self) -> "TrainingConfig":
        """Raise ValueError if settings of guided alignment have no effect or are incompatible.

        The settings for the layer, the head and the weight of guided alignment have an effect only with
        `guided_alignment`. `guided_alignment` cannot be combined with consistency training or sampled segmentations.
        """
        if self.guided_alignment is None:
            names = ("guided_alignment_layer", "guided_alignment_head", "guided_alignment_weight")
            if said := self.first_changed(*names):
                raise ValueError(f"{said} wants guided_alignment, a file of word alignments")
        elif self.consistency != "none":
            raise ValueError(f"guided_alignment wants consistency none, found {self.consistency}")
        elif self.samples_subwords:
            said = self.first_changed("bpe_dropout", "unigram_alpha")
            raise ValueError(
                f"guided_alignment wants one segmentation of each sentence, found {said}, which samples them"
            )
        return self

    def guided_layer(self, num_layers: int) -> int:
        """Returns the layer, counted from 1, that guided alignment trains in a decoder with `num_layers` layers."""
        return self.guided_alignment_layer or max(1, num_layers - 1)

    @property
    def matrix_rate_factor(self) -> float:
        """The learning rate of hidden matrices divided by that of all other weights."""
        if self.matrix_learning_rate is None or self.learning_rate is None:
            return 1.0
        return self.matrix_learning_rate / self.learning_rate

    @property
    def samples_subwords(self) -> bool:
        """Whether segmentations of the training text are sampled, so that they differ from epoch to epoch."""
        return self.bpe_dropout > 0 or self.unigram_alpha is not None


def settled(number: int | Auto) -> int:
    """Returns `number`, a setting that counts updates or tokens, as an int; it must not be "auto".

    Before training begins, numbers replace the settings that are "auto".
    """
    assert number != "auto", "training replaces auto before it begins"
    return number


# Settings of decoding.

# The settings of beam search, sampling and minimum Bayes risk decoding, which method mask_predict does not use.
NOT_MASKED = [
    *("beam_size", "length_penalty", "length_penalty_form", "stopping", "search_steps", "min_length"),
    "no_repeat_ngram",
    *("coverage_penalty", "diversity_groups", "diversity_strength", "temperature", "top_k", "top_p"),
    *("mbr_samples", "mbr_utility", "shortlist", "language_model_weight", "refill"),
]


class DecodingConfig(CarriedSection):
    """How the trained model translates by default."""

    method: Literal["beam", "sample", "mask_predict"] = Field(
        "beam",
        description="Search for the best translation (beam), or sample one by its probability (sample); mask_predict, "
        "the method of architecture cmlm, predicts all tokens at once, then the least probable ones again "
        "(Ghazvininejad et al. 2019).",
    )
    iterations: int = Field(
        10, ge=1, le=1000, description="mask_predict: passes of the decoder, whatever the length of the translation."
    )
    length_candidates: int = Field(
        5,
        ge=1,
        le=100,
        description="mask_predict: number of lengths, the most probable ones, for each of which a translation is made; "
        "the one with the highest mean log-probability is taken, where the length counts as one token.",
    )
    beam_size: int = Field(5, ge=1, le=10_000, description="Hypotheses kept at each step; 1 is greedy search.")
    # A length raised to a larger exponent might not fit into fp32.
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="Exponent of the length penalty; 0 is none, larger values favour longer translations.",
    )
    length_penalty_form: Literal["power", "gnmt"] = Field(
        "power", description="A score is divided by length^p, or by ((5 + length) / 6)^p (Wu et al. 2016, equation 14)."
    )
    stopping: Literal["exact", "count", "optimal"] = Field(
        "exact",
        description="Search until no better translation can come from the beam (exact), or until beam_size hypotheses "
        "have ended (count), or until no translation at all can be better (optimal, an exact search for short "
        "sentences; Stahlberg & Byrne 2019).",
    )
    search_steps: int = Field(
        10_000, ge=1, description="Prefixes that stopping optimal may extend for each sentence before it gives up."
    )
    min_length: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Smallest number of target tokens of a translation, capped at the largest that it may have.",
    )
    max_length_ratio: LengthRatio = Field(
        "auto",
        description="Most target tokens of a translation for each source token; max_length_extra is added. auto: "
        "by the lengths of the training pairs, or 2.0 where they are not known.",
    )
    max_length_extra: ExtraTokens = Field(
        "auto",
        description="Target tokens that a translation may have beyond what max_length_ratio allows. auto: by the "
        "lengths of the training pairs, so that fewer than 1 in 10,000 is longer, or 20 where they are not known.",
    )
    no_repeat_ngram: int = Field(
        0, ge=0, description="Length of the n-grams, in tokens, that no translation repeats; 0: any may be repeated."
    )
    coverage_penalty: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weight of the penalty for source tokens that got little attention (Wu et al. 2016, equation "
        "15); 0: none.",
    )
    diversity_groups: int = Field(
        1,
        ge=1,
        description="Groups that a diverse beam is divided into (Vijayakumar et al. 2018); 1: an ordinary beam.",
    )
    diversity_strength: float = Field(
        0.5, ge=0, le=1000, description="How much a group avoids what earlier groups chose, in log-probability."
    )
    temperature: float = Field(
        1.0, ge=1e-9, le=1000, description="Samples: below 1 likelier ones, above 1 more varied ones."
    )
    top_k: int | None = Field(None, ge=1, description="Samples: drawn from this many likeliest tokens; null: from all.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Samples: drawn from the likeliest tokens that hold this share of the probability (Holtzman et al. "
        "2020); null: from all.",
    )
    seed: int = Field(1, ge=0, description="Samples: seed of all randomness, together with the text of the line.")
    mbr_samples: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Minimum Bayes risk decoding: number of samples, of which the one most like the others is "
        "chosen (Eikema & Aziz 2020); 0: none.",
    )
    mbr_utility: Literal["chrf", "bleu"] = Field(
        "chrf", description="How the samples of mbr_samples are compared with each other."
    )
    unknown: Literal["keep", "ban", "copy"] = Field(
        "keep",
        description="<unk>, where the vocabulary has it: allowed like any token (keep), never produced (ban), or "
        "replaced by the source word that it attends to most (copy).",
    )
    shortlist: ShortlistSize | None = Field(
        None,
        description="Tokens that a translation may have: this many of the most frequent ones, and as many likely "
        "translations of each source token (Jean et al. 2015, section 4); auto is 50, null is all tokens. Training "
        "counts them if this is set.",
    )
    language_model_weight: float = Field(
        0.2,
        ge=0,
        le=10,
        description="Where a language model takes part in the search (shallow fusion, Gulcehre et al. 2015): weight of "
        "its log-probabilities, which are added to those of the translation.",
    )
    batch_tokens: int = Field(
        16384,
        ge=1,
        description="Largest size of a batch: sentences x longest source, in tokens, x beam size or samples; "
        "sentences x beam size or samples x vocabulary is at most 2,048 times as much.",
    )
    refill: Switch = Field(
        "auto",
        description="Whether waiting sentences take the places of those that are finished (continuous batching): on, "
        "off, or auto: on a GPU. This changes speed and memory, not the translations.",
    )

    def check(self) -> None:
        """Raise ValueError if settings of decoding are incompatible, or have no effect with the chosen `method`."""
        if self.method == "mask_predict":
            if said := self.first_changed(*NOT_MASKED):
                raise ValueError(f"{said} is not for method mask_predict, which has iterations and length_candidates")
            return
        if self.beam_size % self.diversity_groups:
            raise ValueError(
                f"beam_size {self.beam_size} is not a multiple of diversity_groups {self.diversity_groups}"
            )
        if self.diversity_groups == 1 and (said := self.first_changed("diversity_strength")):
            raise ValueError(f"{said} wants diversity_groups of 2 or more, which divide the beam")
        if self.mbr_samples == 0 and (said := self.first_changed("mbr_utility")):
            raise ValueError(f"{said} compares samples that elect a translation; it wants mbr_samples of 2 or more")
        if self.mbr_samples == 1:
            raise ValueError("mbr_samples 1 leaves a sample nothing to be compared with; wants 2 or more, or 0")
        if self.stopping != "optimal" and (said := self.first_changed("search_steps")):
            raise ValueError(f"{said} limits an exact search; it wants stopping optimal")
        if self.stopping == "optimal":
            self._check_optimal()
        if self.draws:
            if self.coverage_penalty:
                raise ValueError(f"coverage_penalty {self.coverage_penalty} ranks what a beam finds; samples want 0")
            if self.diversity_groups > 1:
                raise ValueError(f"diversity_groups {self.diversity_groups} divides a beam; samples want 1")
        else:
            if said := self.first_changed("temperature", "top_k", "top_p"):
                raise ValueError(f"{said} is of samples; it goes with method sample or with mbr_samples")
            if self.coverage_penalty and self.beam_size == 1:
                raise ValueError("coverage_penalty ranks what a beam finds; it wants a beam_size of 2 or more")

    def _check_optimal(self) -> None:
        """Raise ValueError if a setting cannot be combined with `stopping` "optimal".

        The settings that cannot be combined with it are those of sampling and of minimum Bayes risk decoding,
        `coverage_penalty`, `diversity_groups` and `shortlist`.
        """
        if self.draws:
            said = self.first_changed("method", "mbr_samples")
            raise ValueError(f"stopping optimal finds the best translation, and {said} draws some; take out one")
        if said := self.first_changed("coverage_penalty", "diversity_groups"):
            raise ValueError(f"{said} is of beams; stopping optimal has only a length penalty")
        if said := self.first_changed("shortlist"):
            raise ValueError(f"{said} leaves tokens out; stopping optimal looks at all of them")

    def with_length_limit(self, ratio: float = LENGTH_RATIO, extra: int = EXTRA_TOKENS) -> "DecodingConfig":
        """Returns a copy in which the two settings that limit the length are numbers.

        If `max_length_ratio` is "auto", it becomes `ratio`; if `max_length_extra` is "auto", it becomes `extra`.
        """
        numbers = {"max_length_ratio": ratio, "max_length_extra": extra}
        return self.model_copy(update={name: value for name, value in numbers.items() if getattr(self, name) == "auto"})

    @property
    def shortlist_size(self) -> int:
        """The size N of shortlists: the N most frequent tokens, and N likely translations of each source token.

        A shortlist holds the target tokens that a translation may have. N is SHORTLIST_SIZE if `shortlist` is "auto" or
        `None`.
        """
        return SHORTLIST_SIZE if self.shortlist is None or self.shortlist == "auto" else self.shortlist

    def max_length(self, source_length: int) -> int:
        """Returns the maximum length of a translation, in tokens without the end mark; it is at least 1.

        `source_length` is the number of tokens of the source.
        """
        ratio = LENGTH_RATIO if self.max_length_ratio == "auto" else self.max_length_ratio
        extra = EXTRA_TOKENS if self.max_length_extra == "auto" else self.max_length_extra
        return max(1, int(source_length * ratio + extra))

    @property
    def num_hypotheses(self) -> int:
        """The number of hypotheses for each sentence in a search.

        This is the beam size or, for mask_predict, the number of candidate lengths.
        """
        return self.length_candidates if self.method == "mask_predict" else self.beam_size

    @property
    def draws(self) -> bool:
        """Whether translations are sampled, or chosen from samples, instead of being found by beam search."""
        return self.method == "sample" or self.mbr_samples > 0
