"""Settings of decoding."""

from typing import Literal

from pydantic import Field, model_validator

from mtkit.config.section import Section


class DecodingConfig(Section):
    """How the trained model translates unless told otherwise."""

    method: Literal["beam", "sample"] = Field("beam", description="Look for the best translation, or draw one.")
    beam_size: int = Field(5, ge=1, description="Hypotheses kept at each step; 1 is greedy search.")
    length_penalty: float = Field(1.0, description="Exponent of the length penalty; 0 is none, more favours longer.")
    length_penalty_form: Literal["power", "gnmt"] = Field(
        "power", description="A score is divided by length^p, or by ((5 + length) / 6)^p (Wu et al. 2016, equation 14)."
    )
    stopping: Literal["exact", "count"] = Field(
        "exact", description="Search while a better one may come (exact), or until beam_size ended (count)."
    )
    min_length: int = Field(0, ge=0, description="Fewest target tokens, as far as the most allow.")
    max_length_ratio: float = Field(2.0, gt=0, description="Most target tokens for each source token …")
    max_length_extra: int = Field(20, ge=0, description="… and so many more.")
    no_repeat_ngram: int = Field(0, ge=0, description="No so many tokens in a row are said twice; 0: any may be.")
    coverage_penalty: float = Field(
        0.0, ge=0, description="Weight of source tokens that were not looked at (Wu et al. 2016, equation 15)."
    )
    diversity_groups: int = Field(1, ge=1, description="Groups of a diverse beam (Vijayakumar et al. 2018).")
    diversity_strength: float = Field(0.5, ge=0, description="How much a group avoids what those before it say.")
    temperature: float = Field(1.0, gt=0, description="Samples: below 1 likelier ones, above 1 more different ones.")
    top_k: int | None = Field(None, ge=1, description="Samples: from so many likeliest tokens; null: all.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Samples: from the likeliest of this mass (Holtzman et al. 2020).",
    )
    seed: int = Field(1, ge=0, description="All chance of samples comes from it and from the text of the line.")
    mbr_samples: int = Field(0, ge=0, description="Samples that elect a translation (Eikema & Aziz 2020); 0: none.")
    mbr_utility: Literal["chrf", "bleu"] = Field("chrf", description="How a sample is compared with the others.")
    batch_tokens: int = Field(16384, ge=1, description="Most sentences x longest source x beam of a batch.")

    @model_validator(mode="after")
    def parts_fit(self) -> "DecodingConfig":
        """Settings that only make sense together."""
        if self.beam_size % self.diversity_groups:
            raise ValueError(
                f"beam_size {self.beam_size} is not a multiple of diversity_groups {self.diversity_groups}"
            )
        if self.mbr_samples == 1:
            raise ValueError("mbr_samples 1 leaves a sample nothing to be compared with; wants 2 or more, or 0")
        if self.draws:
            if self.coverage_penalty:
                raise ValueError(f"coverage_penalty {self.coverage_penalty} ranks what a beam finds; samples want 0")
            if self.diversity_groups > 1:
                raise ValueError(f"diversity_groups {self.diversity_groups} divides a beam; samples want 1")
        else:
            for name in ("temperature", "top_k", "top_p"):
                if (value := getattr(self, name)) != DecodingConfig.model_fields[name].default:
                    raise ValueError(f"{name} {value} is of samples; it goes with method sample or with mbr_samples")
            if self.coverage_penalty and self.beam_size == 1:
                raise ValueError("coverage_penalty ranks what a beam finds; it wants a beam_size of 2 or more")
        return self

    @property
    def draws(self) -> bool:
        """Whether translations come of samples."""
        return self.method == "sample" or self.mbr_samples > 0
