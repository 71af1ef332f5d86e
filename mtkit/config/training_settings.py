"""Settings of training and of decoding."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mtkit.config.section import AUTO, NUMBER, Section, number_or_auto

Auto = Literal["auto"]
Updates = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag(NUMBER)] | Annotated[Auto, Tag(AUTO)], Discriminator(number_or_auto)
]
WarmupUpdates = Annotated[
    Annotated[Annotated[int, Field(ge=0)], Tag(NUMBER)] | Annotated[Auto, Tag(AUTO)], Discriminator(number_or_auto)
]

# Settings that follow from max_steps: where that is auto they are auto too, unless they are said.
SHARES = ("warmup_steps", "validate_every", "save_every")


class TrainingConfig(Section):
    """How the model is trained, and how its checkpoints are kept and chosen."""

    start_from: Path | None = Field(
        None,
        description="Run directory, checkpoint or model bundle whose weights training starts from, with its tokenizer; "
        "what the sections model, tokenizer, languages and decoding do not say is taken from it, too; null: random "
        "weights.",
    )
    batch_tokens: int = Field(
        4096, ge=1, description="Most sentences x longest side, in tokens, of a batch; end marks count."
    )
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one update.")
    max_steps: Updates = Field(
        100_000,
        description="Updates after which training ends; auto: as many as fit into max_minutes, fixed once by the speed "
        "of the first ones, and with them warmup_steps, validate_every and save_every unless you say them.",
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes of training after which it ends; null: any. linear and cosine still end at max_steps: "
        "set that to auto, or to what fits into the minutes.",
    )
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = Field(
        "adam",
        description="How weights follow gradients; muon orthogonalises the updates of hidden matrices and trains all "
        "else by Adam.",
    )
    matrix_learning_rate: float | None = Field(
        None, gt=0, description="Peak of the learning rate of hidden matrices with muon; null: learning_rate."
    )
    adam_betas: tuple[float, float] = Field(
        (0.9, 0.98), description="Decay of Adam's averages of the gradient and of its square."
    )
    adam_eps: float = Field(1e-9, gt=0, description="Adam's guard against division by zero.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of its last update that sgd repeats.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Pull of weights to zero; adam and sgd add it to the gradient, adamw to the update, muon to the "
        "update of hidden matrices alone.",
    )
    schedule: Literal["noam", "inverse_sqrt", "constant", "linear", "cosine", "plateau"] = Field(
        "noam",
        description="How the learning rate moves after warm-up; linear and cosine fall until max_steps, plateau when "
        "validations bring nothing better.",
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
        0.0, ge=0, description="Learning rate at which linear, cosine and plateau stop falling."
    )
    plateau_factor: float = Field(0.7, gt=0, lt=1, description="What plateau multiplies the learning rate by.")
    plateau_patience: int = Field(
        5,
        ge=1,
        description="Validations in a row without a better one after which plateau lowers the learning rate.",
    )
    bpe_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a merge of byte pairs is left out (Provilkov et al. 2020)."
    )
    unigram_alpha: float | None = Field(
        None,
        ge=0,
        description="How sharply segmentations of a unigram model are sampled (Kudo 2018): 0 all alike, more the "
        "likelier; null: only the best.",
    )
    unigram_nbest: int = Field(
        -1, ge=-1, le=512, description="How many best segmentations unigram_alpha samples from, 2 or more; -1: all."
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of a label's probability that is spread evenly over the vocabulary."
    )
    consistency: Literal["none", "rdrop", "simcut"] = Field(
        "none",
        description="A second pass, under other dropout (rdrop: Liang et al. 2021) or with tokens cut (simcut: Gao "
        "et al. 2022), must agree; it takes as long again, and as much memory again as batch_tokens bounds.",
    )
    consistency_weight: float | None = Field(
        None,
        gt=0,
        description="Weight of that agreement, the papers' alpha; null: theirs, 5 for rdrop and 3 for simcut.",
    )
    cutoff: float = Field(0.05, gt=0, lt=1, description="Share of the tokens whose embeddings simcut sets to zero.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, which then is what validation measures, "
        "average_checkpoints averages and the bundle holds; null: none.",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of an update's gradient, to which larger ones are scaled; null: any."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Numbers of matrix products; auto: bf16 where the device is fast at it, fp16 on older GPUs that "
        "are fast at that, else fp32.",
    )
    validate_every: Updates = Field(
        1000,
        description="Updates between validations; auto, the default where max_steps is auto: a tenth of max_steps, or "
        "more where validations would take too much of max_minutes.",
    )
    validation_sentences: int = Field(
        1000,
        ge=1,
        description="Most sentences that a validation translates: one of each corpus of data.valid in turn, spread "
        "evenly over it.",
    )
    save_every: Updates = Field(
        1000,
        description="Updates between checkpoints; auto, the default where max_steps is auto: as validate_every.",
    )
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that keep all it takes to go on.")
    select_by: Literal["bleu", "chrf", "loss"] = Field(
        "bleu", description="What the best checkpoint is best at; loss is the likelihood's, without label smoothing."
    )
    patience: int | None = Field(
        None, ge=1, description="Validations in a row without a better one after which training ends; null: any."
    )
    average_checkpoints: int = Field(
        5, ge=1, description="Checkpoints, up to the best one, whose average the bundle holds if it is better."
    )
    max_skipped: int = Field(10, ge=1, description="Updates skipped in a row, for not being finite, that end training.")
    log_every: int = Field(50, ge=1, description="Updates between lines of the log.")
    tensorboard: bool = Field(
        False,
        description="Draw the log with TensorBoard, into tensorboard of the run directory; wants mtkit[tensorboard].",
    )
    seed: int = Field(1, ge=0, description="All chance in training comes from it.")

    @model_validator(mode="after")
    def updates_fit(self) -> "TrainingConfig":
        """Updates without a number follow from the minutes, and what depends on them follows them."""
        if self.max_steps != "auto":
            return self
        if self.max_minutes is None:
            raise ValueError("max_steps auto wants max_minutes, the time that the updates are to fit into")
        said = self.model_fields_set
        self.__dict__.update({name: "auto" for name in SHARES if name not in said})
        return self

    @model_validator(mode="after")
    def schedule_fits(self) -> "TrainingConfig":
        """A schedule has all that it needs, and nothing is said of another."""
        if self.learning_rate is None and self.schedule != "noam":
            raise ValueError(f"schedule {self.schedule} wants a learning_rate; only noam knows its own")
        if self.learning_rate is None and not self.warmup_steps:
            raise ValueError("noam without a learning_rate wants warmup_steps of 1 or more")
        if self.schedule not in ("linear", "cosine", "plateau") and (said := self.first_changed("final_learning_rate")):
            raise ValueError(f"{said} wants schedule linear, cosine or plateau, not {self.schedule}")
        if self.schedule != "plateau" and (said := self.first_changed("plateau_factor", "plateau_patience")):
            raise ValueError(f"{said} wants schedule plateau, not {self.schedule}")
        if self.learning_rate is not None and self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate} must be at most learning_rate {self.learning_rate}"
            )
        if (
            self.schedule in ("linear", "cosine")
            and self.max_steps != "auto"
            and self.warmup_steps != "auto"
            and self.max_steps <= max(self.warmup_steps, 1)
        ):
            raise ValueError(
                f"schedule {self.schedule} wants max_steps above warmup_steps {self.warmup_steps} and 1, found "
                f"{self.max_steps}"
            )
        if self.schedule == "plateau" and self.patience is not None and self.patience <= self.plateau_patience:
            raise ValueError(
                f"patience {self.patience} ends training before plateau_patience {self.plateau_patience} lowers the "
                "learning rate; it must be more"
            )
        return self

    @model_validator(mode="after")
    def optimizer_fits(self) -> "TrainingConfig":
        """Each optimizer has its own settings."""
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum {self.momentum} is for optimizer sgd; {self.optimizer} has adam_betas")
        if self.optimizer == "sgd" and (said := self.first_changed("adam_betas", "adam_eps")):
            raise ValueError(f"{said} is for optimizer adam, adamw or muon; sgd has momentum")
        if self.matrix_learning_rate is not None and self.optimizer != "muon":
            raise ValueError(f"matrix_learning_rate is for optimizer muon, not {self.optimizer}")
        if self.matrix_learning_rate is not None and self.learning_rate is None:
            raise ValueError("matrix_learning_rate wants learning_rate, since the schedule moves both alike")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas {list(self.adam_betas)} must each be at least 0 and less than 1")
        return self

    @model_validator(mode="after")
    def objective_fits(self) -> "TrainingConfig":
        """What the text and the second pass are like is said only where there is such a thing."""
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

    @property
    def samples_subwords(self) -> bool:
        """Whether each epoch sees other segmentations of the text."""
        return self.bpe_dropout > 0 or self.unigram_alpha is not None


def settled(updates: int | Auto) -> int:
    """A setting in updates, where the number that auto stands for has taken its place."""
    assert updates != "auto", "training fixes it before it begins"
    return updates


# Settings of decoding.


class DecodingConfig(Section):
    """How the trained model translates unless told otherwise."""

    method: Literal["beam", "sample"] = Field(
        "beam", description="Look for the best translation (beam), or draw one by its probability (sample)."
    )
    beam_size: int = Field(5, ge=1, le=10_000, description="Hypotheses kept at each step; 1 is greedy search.")
    # Beyond this, a power of a length no longer fits into fp32.
    length_penalty: float = Field(
        1.0, ge=-10, le=10, description="Exponent of the length penalty; 0 is none, more favours longer."
    )
    length_penalty_form: Literal["power", "gnmt"] = Field(
        "power", description="A score is divided by length^p, or by ((5 + length) / 6)^p (Wu et al. 2016, equation 14)."
    )
    stopping: Literal["exact", "count"] = Field(
        "exact", description="Search while a better translation may come (exact), or until beam_size ended (count)."
    )
    min_length: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Fewest target tokens of a translation, but no more than the most that it may have.",
    )
    max_length_ratio: float = Field(
        2.0, gt=0, le=100, description="Target tokens that each source token allows; max_length_extra come on top."
    )
    max_length_extra: int = Field(
        20,
        ge=0,
        le=10_000,
        description="Target tokens that a translation may have beyond what max_length_ratio allows.",
    )
    no_repeat_ngram: int = Field(
        0, ge=0, description="Number of tokens in a row that no translation says twice; 0: any may be repeated."
    )
    coverage_penalty: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weight of source tokens that were not looked at (Wu et al. 2016, equation 15); 0: none.",
    )
    diversity_groups: int = Field(
        1, ge=1, description="Groups that a diverse beam is divided into (Vijayakumar et al. 2018); 1: it is not."
    )
    diversity_strength: float = Field(
        0.5, ge=0, le=1000, description="How much a group avoids what those before it say, in log-probability."
    )
    temperature: float = Field(
        1.0, ge=1e-9, le=1000, description="Samples: below 1 likelier ones, above 1 more different ones."
    )
    top_k: int | None = Field(None, ge=1, description="Samples: drawn from so many likeliest tokens; null: from all.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Samples: drawn from the likeliest tokens that hold this share of the probability (Holtzman et al. "
        "2020); null: from all.",
    )
    seed: int = Field(1, ge=0, description="Samples: all chance comes from it and from the text of the line.")
    mbr_samples: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Samples of which the one most like the others is chosen (Eikema & Aziz 2020); 0: none.",
    )
    mbr_utility: Literal["chrf", "bleu"] = Field(
        "chrf", description="How the samples of mbr_samples are compared with each other."
    )
    unknown: Literal["keep", "ban", "copy"] = Field(
        "keep",
        description="<unk>, where the vocabulary has it: said as any token (keep), never (ban), or replaced by the "
        "source word that it attends to most (copy).",
    )
    batch_tokens: int = Field(
        16384,
        ge=1,
        description="Most sentences x longest source, in tokens, x beam size or samples of a batch; sentences x beam "
        "size or samples x vocabulary is at most 2,048 times as much.",
    )

    @model_validator(mode="after")
    def parts_fit(self) -> "DecodingConfig":
        """Settings that only make sense together."""
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
        return self

    @property
    def draws(self) -> bool:
        """Whether translations come of samples."""
        return self.method == "sample" or self.mbr_samples > 0
