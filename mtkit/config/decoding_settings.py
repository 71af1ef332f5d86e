"""Settings of decoding."""

from typing import Literal

from pydantic import Field, model_validator

from mtkit.config.section import Section


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
