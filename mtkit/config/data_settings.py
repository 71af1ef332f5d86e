"""Settings of the text: its languages, the corpora and test sets, and which pairs are left out."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from mtkit.config.scripts import SCRIPTS, nearest_script
from mtkit.config.section import MANY_FILES, ONE_FILE, Section, number_of_files

MOST_TAGS_SHOWN = 20  # some models know more than a hundred languages


def listed_tags(tags: Sequence[str]) -> str:
    """Tags as a message lists them."""
    shown, more = ", ".join(tags[:MOST_TAGS_SHOWN]) or "none", len(tags) - MOST_TAGS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


class LanguagesConfig(Section):
    """What is translated into what; evaluation picks its tokenizer by the target language."""

    source: str = Field("source", min_length=1, description="Code of the source language, such as en.")
    target: str = Field("target", min_length=1, description="Code of the target language, such as de.")


ColumnNumber = Annotated[int, Field(ge=1)]
Files = Annotated[
    Annotated[Path, Tag(ONE_FILE)] | Annotated[tuple[Path, ...], Tag(MANY_FILES)],
    Discriminator(number_of_files),
]


class CorpusConfig(Section):
    """Sentence pairs: two files, of which line n translates line n, or one file with both in columns.

    Where there are several files of each, part n of the source goes with part n of the target.
    """

    # What an editor should offer; which forms there are is checked below.
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["source", "target"]}, {"required": ["tsv"]}]})

    source: Files | None = Field(
        None,
        description="The source side: a text file, also packed (gzip, bzip2, xz, zstd, zip), or its parts: a list of "
        "files, or a pattern such as parts/*.en.gz.",
    )
    target: Files | None = Field(
        None,
        description="The target side: such a file with as many lines, or as many parts; those of two patterns go "
        "together where the wildcards stand for the same text.",
    )
    tsv: Files | None = Field(
        None,
        description="Instead of source and target: such a file, its columns separated by tabs, or its parts.",
    )
    columns: tuple[ColumnNumber, ColumnNumber] = Field((1, 2), description="Columns of tsv: the source, the target.")
    weight: float = Field(
        1.0, gt=0, description="Share of an epoch, next to the weights of the other corpora of data.train."
    )
    tag: str | None = Field(None, pattern=r"^\S+$", description="Word put before each source line, such as <2de>.")

    @model_validator(mode="after")
    def one_form_is_given(self) -> "CorpusConfig":
        """Two files or one, and columns only of one."""
        given = [name for name in ("source", "target", "tsv") if listed(getattr(self, name))]
        if given not in (["source", "target"], ["tsv"]):
            raise ValueError(f"found {' and '.join(given) or 'no file'}, wants source and target, or tsv alone")
        if self.tsv is None and self.columns != (1, 2):
            raise ValueError("found columns without tsv; only a file of columns has some to choose")
        if self.columns[0] == self.columns[1]:
            raise ValueError(f"found column {self.columns[0]} for both sides, wants two different columns")
        num_source, num_target = len(listed(self.source)), len(listed(self.target))
        if num_source != num_target:
            raise ValueError(
                f"found {num_source} in source and {num_target} in target, wants as many of both; part n of the source "
                "goes with part n of the target"
            )
        return self

    @property
    def parts(self) -> "tuple[CorpusConfig, ...]":
        """The same corpus file by file, or pair of files by pair of files."""
        if self.tsv is not None:
            return tuple(self.model_copy(update={"tsv": path}) for path in listed(self.tsv))
        sides = zip(listed(self.source), listed(self.target), strict=True)
        return tuple(self.model_copy(update={"source": source, "target": target}) for source, target in sides)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files: both sides of each part, or the one that holds both."""
        return tuple(
            path for part in self.parts for files in (part.source, part.target, part.tsv) for path in listed(files)
        )


def listed(files: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    """One file, several, or none as a list."""
    return () if files is None else (files,) if isinstance(files, Path) else files


class TestSetConfig(Section):
    """A source text and its references: files, or a set that sacreBLEU knows by name."""

    # What an editor should offer; which forms there are is checked below.
    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["source", "target"]}, {"required": ["sacrebleu"]}]}
    )

    source: Path | None = Field(None, description="Text file, also packed.")
    target: tuple[Path, ...] = Field(
        (),
        description="The reference, or several references of the same source: a list of files, or a pattern such as "
        "test.ref*.en.",
    )
    sacrebleu: str | None = Field(None, min_length=1, description="Name in sacreBLEU, such as wmt14/full.")
    tag: str | None = Field(
        None, pattern=r"^\S+$", description="Put before each source line, for models that know several languages."
    )

    @field_validator("target", mode="before", json_schema_input_type=Path | tuple[Path, ...])
    @classmethod
    def one_reference_is_a_list(cls, value: object) -> object:
        """A single path stands for a list of one."""
        # A list becomes a tuple here, since strict pydantic no longer takes one after a validator has seen it.
        return (value,) if isinstance(value, str | Path) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def files_or_a_name(self) -> "TestSetConfig":
        """One or the other says where the text is."""
        if self.sacrebleu is not None and (self.source is not None or self.target):
            raise ValueError("a test set has source and target, or a name in sacrebleu, not both")
        if self.sacrebleu is None and (self.source is None or not self.target):
            raise ValueError("a test set wants source and target, or sacrebleu, the name of a set such as wmt14/full")
        return self


class DataConfig(Section):
    """The parallel text, and which pairs are left out of training."""

    root: Path | None = Field(None, description="Folder that relative paths start from; null: the working directory.")
    train: tuple[CorpusConfig, ...] = Field(
        (),
        description="Corpora to train on.",
        examples=[
            [
                {"source": "news.fr", "target": "news.en"},
                {"source": "web.fr.gz", "target": "web.en.gz", "weight": 0.5},
                {"tsv": "subtitles.tsv", "columns": [3, 1]},
                {"source": "news.fr", "target": "news.de", "tag": "<2de>"},
            ]
        ],
    )
    valid: tuple[CorpusConfig, ...] = Field(
        (),
        description="Corpora that validations translate and measure; the best checkpoint is chosen by them.",
        examples=[
            [{"source": "dev.fr", "target": "dev.en"}, {"source": "dev.fr", "target": "dev.de", "tag": "<2de>"}],
        ],
    )
    test: dict[str, TestSetConfig] = Field(
        {},
        description="Test sets to evaluate, each under a name of its own.",
        examples=[
            {
                "mine": {"source": "test.fr", "target": "test.en"},
                "two-references": {"source": "talks.fr", "target": ["talks.en.0", "talks.en.1"]},
                "newstest2014": {"sacrebleu": "wmt14/full"},
            }
        ],
    )
    temperature: float = Field(
        1.0, ge=1, description="Shares of corpora follow weight x pairs^(1/temperature) (Arivazhagan et al. 2019)."
    )
    max_length: int = Field(
        256, ge=1, description="Longest side of a training pair, in tokens; a longer line to translate is split."
    )
    min_length: int = Field(1, ge=1, description="Shortest side of a training pair, in tokens.")
    max_length_ratio: float | None = Field(
        9.0, gt=1, description="Most tokens of one side of a training pair for each token of the other; null: any."
    )
    drop_identical: bool = Field(False, description="Leave out training pairs whose sides are equal but for case.")
    source_script: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Unicode script of the source, such as Latin, or a list; a training pair mostly in others is left "
        "out; null: any.",
    )
    target_script: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Unicode script of the target, or a list; a training pair mostly in others is left out; null: any.",
    )
    min_letters: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least share of letters among the characters of each side of a training pair, white space aside.",
    )
    drop_duplicates: bool = Field(
        False, description="Leave out training pairs that stood before; takes 16 bytes of memory for each pair."
    )

    @field_validator(
        "source_script",
        "target_script",
        mode="before",
        json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)] | None,
    )
    @classmethod
    def one_script_is_a_list(cls, value: object) -> object:
        """A single name stands for a list of one."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("source_script", "target_script")
    @classmethod
    def scripts_exist(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Names as Unicode writes them."""
        for name in names or ():
            if name not in SCRIPTS:
                near = nearest_script(name)
                meant = f"did you mean {near}?" if near else "wants a name such as Latin, Cyrillic or Han"
                raise ValueError(f"unknown script '{name}'; {meant}")
        return names

    @model_validator(mode="after")
    def some_pairs_are_left(self) -> "DataConfig":
        """The limits leave room for a pair."""
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} must be at most max_length {self.max_length}")
        return self

    @model_validator(mode="after")
    def only_training_is_weighed(self) -> "DataConfig":
        """Validation sees every pair once."""
        for i, corpus in enumerate(self.valid):
            if said := corpus.first_changed("weight"):
                raise ValueError(f"valid[{i}] has {said}; only the corpora of data.train have shares of an epoch")
        return self

    @property
    def train_tags(self) -> list[str]:
        """The tags of the training corpora, each once, sorted."""
        return sorted({corpus.tag for corpus in self.train if corpus.tag is not None})

    def untrained_tags(self, known: Collection[str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The tags of validation corpora and test sets that are not known, each with the keys of its setting."""
        for number, corpus in enumerate(self.valid):
            if corpus.tag is not None and corpus.tag not in known:
                yield ("valid", number, "tag"), corpus.tag
        for name, test_set in self.test.items():
            if test_set.tag is not None and test_set.tag not in known:
                yield ("test", name, "tag"), test_set.tag
