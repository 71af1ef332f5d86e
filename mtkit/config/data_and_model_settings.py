"""Settings of the data (languages, corpora, test sets, filters), of the tokenizer, and of the models.

Each architecture has a section of its own.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from mtkit.config.section import (
    FOR_BOTH,
    FOR_EACH,
    MANY_FILES,
    ONE_FILE,
    CarriedSection,
    Section,
    form_of,
    number_of_files,
)

# The names of scripts in Unicode.
_NAMES = """
Adlam Ahom Anatolian_Hieroglyphs Arabic Armenian Avestan Balinese Bamum Bassa_Vah Batak Bengali Bhaiksuki
Bopomofo Brahmi Braille Buginese Buhid Canadian_Aboriginal Carian Caucasian_Albanian Chakma Cham Cherokee
Chorasmian Coptic Cuneiform Cypriot Cypro_Minoan Cyrillic Deseret Devanagari Dives_Akuru Dogra Duployan
Egyptian_Hieroglyphs Elbasan Elymaic Ethiopic Georgian Glagolitic Gothic Grantha Greek Gujarati Gunjala_Gondi
Gurmukhi Han Hangul Hanifi_Rohingya Hanunoo Hatran Hebrew Hiragana Imperial_Aramaic Inscriptional_Pahlavi
Inscriptional_Parthian Javanese Kaithi Kannada Katakana Kayah_Li Kharoshthi Khitan_Small_Script Khmer Khojki
Khudawadi Lao Latin Lepcha Limbu Linear_A Linear_B Lisu Lycian Lydian Mahajani Makasar Malayalam Mandaic
Manichaean Marchen Masaram_Gondi Medefaidrin Meetei_Mayek Mende_Kikakui Meroitic_Cursive Meroitic_Hieroglyphs
Miao Modi Mongolian Mro Multani Myanmar Nabataean Nandinagari New_Tai_Lue Newa Nko Nushu Nyiakeng_Puachue_Hmong
Ogham Ol_Chiki Old_Hungarian Old_Italic Old_North_Arabian Old_Permic Old_Persian Old_Sogdian Old_South_Arabian
Old_Turkic Old_Uyghur Oriya Osage Osmanya Pahawh_Hmong Palmyrene Pau_Cin_Hau Phags_Pa Phoenician Psalter_Pahlavi
Rejang Runic Samaritan Saurashtra Sharada Shavian Siddham SignWriting Sinhala Sogdian Sora_Sompeng Soyombo
Sundanese Syloti_Nagri Syriac Tagalog Tagbanwa Tai_Le Tai_Tham Tai_Viet Takri Tamil Tangsa Tangut Telugu Thaana
Thai Tibetan Tifinagh Tirhuta Toto Ugaritic Vai Vithkuqi Wancho Warang_Citi Yezidi Yi Zanabazar_Square
"""

SCRIPTS = frozenset(_NAMES.split())


def nearest_script(name: str) -> str | None:
    """Returns the Unicode script whose name is most similar to `name`, ignoring case; `None` if none is similar."""
    by_lower = {script.lower(): script for script in sorted(SCRIPTS)}
    near = get_close_matches(name.lower().replace(" ", "_"), by_lower, n=1)
    return by_lower[near[0]] if near else None


# Settings of the tokenizer.

Rule = Literal["identity", "nfkc", "nmt_nfkc", "nmt_nfkc_zwnj", "model"]
Side = Literal["source", "target"]
Size = Annotated[int, Field(ge=5, le=10_000_000)]
Symbol = Annotated[str, Field(pattern=r"^\S+$")]

LEAST_WITH_BYTES = 264  # the smallest vocab_size with byte_fallback: 4 special pieces, 256 bytes, a few characters


class SideSizes(Section):
    """Separate vocabulary sizes for the source and the target."""

    source: Size = Field(description="Largest number of pieces of the source.")
    target: Size = Field(description="Largest number of pieces of the target.")


class SideModels(Section):
    """Separate SentencePiece models for the source and the target."""

    source: Path = Field(description="The model of the source.")
    target: Path = Field(description="The model of the target.")


class TokenizerTextConfig(Section):
    """Extra text to train the tokenizer on: a source file, a target file, or both, which need not be parallel."""

    # For editors that use the JSON schema; mtkit itself relies on the validator below.
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["source"]}, {"required": ["target"]}]})

    source: Path | None = Field(None, description="Text of the source side: a text file, or .gz, .xz, .zst.")
    target: Path | None = Field(None, description="Text of the target side: such a file.")

    @model_validator(mode="after")
    def some_file_is_given(self) -> "TokenizerTextConfig":
        """Raise ValueError if neither `source` nor `target` is given."""
        if self.source is None and self.target is None:
            raise ValueError("found no file, wants source, target or both")
        return self

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are given: the source file, then the target file."""
        return tuple(path for path in (self.source, self.target) if path is not None)


class TokenizerConfig(CarriedSection):
    """The vocabulary, and how text is segmented into its pieces."""

    model: (
        Annotated[Annotated[Path, Tag(FOR_BOTH)] | Annotated[SideModels, Tag(FOR_EACH)], Discriminator(form_of)] | None
    ) = Field(
        None,
        description="A SentencePiece model to use instead of training one, or with shared false one for each "
        "side; it keeps its type, size, normalisation and ids, and padding, begin and end marks that "
        "it lacks are added at the end. Relative paths start from data.root.",
    )
    type: Literal["bpe", "unigram", "char", "word"] = Field(
        "bpe",
        description="How text is cut into pieces: byte-pair encoding (Sennrich et al. 2016), a unigram model "
        "(Kudo 2018), characters, or words between spaces.",
    )
    vocab_size: Annotated[
        Annotated[Size, Tag(FOR_BOTH)] | Annotated[SideSizes, Tag(FOR_EACH)], Discriminator(form_of)
    ] = Field(
        8000,
        description="Largest number of pieces in a vocabulary, or with shared false {source: 8000, target: 4000}; "
        "small data may give fewer.",
    )
    byte_fallback: bool | None = Field(
        None,
        description="Spell characters without a piece in bytes, so that nothing is <unk>; null: true, but false "
        "for type word.",
    )
    shared: bool = Field(True, description="Whether both sides share one vocabulary, or have one each.")
    symbols: tuple[Symbol, ...] = Field(
        (),
        description="Placeholders, such as <url>, that are one piece each on both sides, wherever they occur; "
        "with type word they get spaces around them.",
    )
    split_digits: bool = Field(False, description="Make each digit a piece of its own. Not for type word.")
    source_normalization: Rule = Field(
        "nmt_nfkc_zwnj",
        description="How SentencePiece normalises the source; identity: not at all; nmt_nfkc_zwnj: as nmt_nfkc, "
        "but keeping U+200C, which nmt_nfkc turns into a space; model: as the model of a given "
        "tokenizer does by itself.",
    )
    target_normalization: Rule = Field(
        "identity",
        description="How SentencePiece normalises the target; identity can produce every character of a reference.",
    )
    character_coverage: float = Field(
        0.9999,
        ge=0.98,
        le=1,
        description="Share of the text whose characters get a piece; the rarest get none. Not for type word.",
    )
    sample_lines: int = Field(
        2_000_000, ge=1, description="Largest number of lines, drawn at random, that a tokenizer is trained on."
    )
    text: tuple[TokenizerTextConfig, ...] = Field(
        (),
        description="More text to train the tokenizer on, besides that of data.train; no training pairs are made "
        "of it. Relative paths start from data.root.",
        examples=[[{"target": "monolingual.en.gz"}, {"source": "wiki.fr", "target": "wiki.en"}]],
    )

    @field_validator("symbols")
    @classmethod
    def symbols_differ(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        """Raise ValueError if a symbol is given twice."""
        for number, symbol in enumerate(symbols):
            if symbol in symbols[:number]:
                raise ValueError(f"symbols has {symbol} twice")
        return symbols

    def check(self) -> None:
        """Raise ValueError if settings of the tokenizer are incompatible."""
        self._check_sides()
        self._check_model()
        self._check_type()

    def _check_sides(self) -> None:
        """Raise ValueError if `vocab_size` or `model` is given separately for each side although `shared` is true."""
        for name, what in (("vocab_size", "has one size"), ("model", "is of one model")):
            if self.shared and form_of(getattr(self, name)) == FOR_EACH:
                raise ValueError(f"{self.first_changed(name)} wants shared false; one vocabulary {what}")

    def _check_model(self) -> None:
        """Raise ValueError if `model` is given together with settings that apply only to training a tokenizer."""
        if self.model is None:
            return
        said = self.first_changed(
            "type", "vocab_size", "byte_fallback", "split_digits", "character_coverage", "sample_lines", "text"
        )
        for name in ("source_normalization", "target_normalization"):
            if getattr(self, name) != "model":
                said = said or self.first_changed(name)
        if said:
            raise ValueError(f"{said} is for a tokenizer that is trained, and model names one; take out one of both")

    def _check_type(self) -> None:
        """Raise ValueError if a setting has no effect with the chosen `type` of tokenizer.

        Also raises ValueError if `vocab_size` is too small for `byte_fallback`.
        """
        if self.type == "word" and self.byte_fallback:
            raise ValueError(
                "byte_fallback true is not for type word, whose pieces spell nothing; set it to false, or change type"
            )
        for name, size in self._sizes():
            if self.spells_bytes and size < LEAST_WITH_BYTES:
                raise ValueError(
                    f"{name} {size} is too small for the 256 bytes of byte_fallback; "
                    f"set it to {LEAST_WITH_BYTES} or more, or byte_fallback to false"
                )
        if self.type == "word" and (said := self.first_changed("character_coverage", "split_digits")):
            raise ValueError(f"{said} is not for type word, whose pieces are words, with all their characters")

    @property
    def spells_bytes(self) -> bool:
        """Whether characters without a piece in the vocabulary are segmented into bytes."""
        return self.type != "word" if self.byte_fallback is None else self.byte_fallback

    def size_of(self, side: Side) -> tuple[str, int]:
        """Returns the setting that limits the vocabulary size of a side: its name and its value.

        The name is "vocab_size" if one size applies to both sides; otherwise it is "vocab_size.source" or
        "vocab_size.target".
        """
        if isinstance(self.vocab_size, SideSizes):
            return f"vocab_size.{side}", getattr(self.vocab_size, side)
        return "vocab_size", self.vocab_size

    def models(self) -> dict[Side, Path]:
        """Returns the SentencePiece model given for each side; empty if the tokenizer is to be trained."""
        if self.model is None:
            return {}
        if isinstance(self.model, SideModels):
            return {"source": self.model.source, "target": self.model.target}
        return {"source": self.model, "target": self.model}

    def with_room_for(self, source: int, target: int) -> "TokenizerConfig":
        """Returns a copy in which `vocab_size` allows at least `source` source pieces and `target` target pieces.

        A size that is already large enough stays as it is.
        """
        sizes = {"source": max(self.size_of("source")[1], source), "target": max(self.size_of("target")[1], target)}
        each = isinstance(self.vocab_size, SideSizes)
        return self.model_copy(update={"vocab_size": SideSizes(**sizes) if each else max(sizes.values())})

    def _sizes(self) -> list[tuple[str, int]]:
        return [self.size_of("source"), self.size_of("target")]


# Settings of the text: languages, corpora, test sets, and filters of training pairs.

MOST_TAGS_SHOWN = 20  # in a message; some models have more than a hundred


def listed_tags(tags: Sequence[str]) -> str:
    """Returns the tags as text for messages, such as "<2de>, <2fr> and 9 more"; "none" if `tags` is empty."""
    shown, more = ", ".join(tags[:MOST_TAGS_SHOWN]) or "none", len(tags) - MOST_TAGS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


class LanguagesConfig(CarriedSection):
    """The source and target languages; evaluation chooses BLEU's tokenizer by the target language."""

    source: str = Field("source", min_length=1, description="Code of the source language, such as en.")
    target: str = Field("target", min_length=1, description="Code of the target language, such as de.")


ColumnNumber = Annotated[int, Field(ge=1)]
Files = Annotated[
    Annotated[Path, Tag(ONE_FILE)] | Annotated[tuple[Path, ...], Tag(MANY_FILES)],
    Discriminator(number_of_files),
]


class CorpusConfig(Section):
    """A corpus of sentence pairs: a source and a target file, aligned line by line, or a TSV file with both sides.

    A side may be split into several files; part n of the source is then aligned with part n of the target. A corpus for
    a language model may consist of the target alone.
    """

    # For editors that use the JSON schema; mtkit itself relies on the validator below.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["source", "target"]},
                {"required": ["tsv"]},
                {"required": ["target"], "not": {"required": ["source"]}},
            ]
        }
    )

    source: Files | None = Field(
        None,
        description="The source side: a text file, plain or packed (gzip, bzip2, xz, zstd, zip), or its parts: a "
        "list of files, or a pattern such as parts/*.en.gz; a language model does without.",
    )
    target: Files | None = Field(
        None,
        description="The target side: a file with as many lines, or as many parts; the files of two patterns are "
        "paired where the wildcards match the same text.",
    )
    tsv: Files | None = Field(
        None,
        description="Instead of source and target: a file with columns separated by tabs, or its parts.",
    )
    columns: tuple[ColumnNumber, ColumnNumber] = Field((1, 2), description="Columns of tsv: the source, the target.")
    weight: float = Field(
        1.0, gt=0, description="Share of an epoch, relative to the weights of the other corpora of data.train."
    )
    tag: str | None = Field(None, pattern=r"^\S+$", description="Word put before each source line, such as <2de>.")

    @model_validator(mode="after")
    def one_form_is_given(self) -> "CorpusConfig":
        """Raise ValueError unless the files of the corpus are given in one of the three possible ways.

        One way is to give `source` and `target`, with equally many parts. Another is to give `tsv`, with two different
        columns. For a language model, the third is to give `target` alone.
        """
        given = [name for name in ("source", "target", "tsv") if listed(getattr(self, name))]
        if given not in (["source", "target"], ["tsv"], ["target"]):
            raise ValueError(f"found {' and '.join(given) or 'no file'}, wants source and target, or tsv alone")
        if self.tsv is None and self.columns != (1, 2):
            raise ValueError("found columns without tsv; only a file of columns has some to choose")
        if self.columns[0] == self.columns[1]:
            raise ValueError(f"found column {self.columns[0]} for both sides, wants two different columns")
        num_source, num_target = len(listed(self.source)), len(listed(self.target))
        if self.has_source and num_source != num_target:
            raise ValueError(
                f"found {num_source} in source and {num_target} in target, wants as many of both; part n of the source "
                "goes with part n of the target"
            )
        return self

    @property
    def has_source(self) -> bool:
        """Whether the corpus has a source side; a corpus for a language model may lack it."""
        return self.source is not None or self.tsv is not None

    @property
    def parts(self) -> "tuple[CorpusConfig, ...]":
        """The parts of the corpus, each with a source and a target file, a TSV file, or a target file alone."""
        if self.tsv is not None:
            return tuple(self.model_copy(update={"tsv": path}) for path in listed(self.tsv))
        if self.source is None:
            return tuple(self.model_copy(update={"target": path}) for path in listed(self.target))
        sides = zip(listed(self.source), listed(self.target), strict=True)
        return tuple(self.model_copy(update={"source": source, "target": target}) for source, target in sides)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of all parts, in order; the source of a part precedes its target."""
        return tuple(
            path for part in self.parts for files in (part.source, part.target, part.tsv) for path in listed(files)
        )


def listed(files: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    """Returns the files as a tuple; `None` gives an empty tuple."""
    return () if files is None else (files,) if isinstance(files, Path) else files


class TestSetConfig(Section):
    """A source text and its references: either files, or the name of a test set of sacreBLEU."""

    # For editors that use the JSON schema; mtkit itself relies on the validator below.
    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["source", "target"]}, {"required": ["sacrebleu"]}]}
    )

    source: Path | None = Field(None, description="Text file, plain or packed.")
    target: tuple[Path, ...] = Field(
        (),
        description="The reference, or several references of the same source: a list of files, or a pattern such as "
        "test.ref*.en.",
    )
    sacrebleu: str | None = Field(None, min_length=1, description="Name in sacreBLEU, such as wmt14/full.")
    tag: str | None = Field(
        None, pattern=r"^\S+$", description="Word put before each source line, for models that know several languages."
    )

    @field_validator("target", mode="before", json_schema_input_type=Path | tuple[Path, ...])
    @classmethod
    def one_reference_is_a_list(cls, value: object) -> object:
        """Convert a single path or a list of paths to a tuple before validation."""
        # Lists are converted too, since strict pydantic rejects a list that a validator with mode="before" returns.
        return (value,) if isinstance(value, str | Path) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def files_or_a_name(self) -> "TestSetConfig":
        """Raise ValueError unless the test set has either `source` and `target`, or `sacrebleu` alone."""
        if self.sacrebleu is not None and (self.source is not None or self.target):
            raise ValueError("a test set has source and target, or a name in sacrebleu, not both")
        if self.sacrebleu is None and (self.source is None or not self.target):
            raise ValueError("a test set wants source and target, or sacrebleu, the name of a set such as wmt14/full")
        return self


class JoinConfig(Section):
    """Joins consecutive pairs of the training text, for experiments with longer sentences."""

    max: int = Field(
        1,
        ge=1,
        le=1000,
        description="Most consecutive pairs that are joined, with spaces between them, to one training pair; their "
        "number is drawn from 1 to this.",
    )


class DataConfig(Section):
    """The text for training, validation and test, and which pairs are left out of training."""

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
        description="Corpora for validation, by which the best checkpoint is chosen.",
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
        1.0,
        ge=1,
        description="The share of a corpus is proportional to weight x pairs^(1/temperature) (Arivazhagan et al. "
        "2019).",
    )
    max_length: int = Field(
        256, ge=1, description="Longest side of a training pair, in tokens; a longer line to translate is split."
    )
    max_training_length: int | None = Field(
        None,
        ge=1,
        description="Longest side of a training pair, in tokens, if it is to be less than max_length, at which lines "
        "to translate are split; null: max_length.",
    )
    min_length: int = Field(1, ge=1, description="Shortest side of a training pair, in tokens.")
    max_length_ratio: float | None = Field(
        9.0,
        gt=1,
        description="Largest number of tokens on one side of a training pair for each token of the other; null: any.",
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
        description="Smallest share of letters among the characters of each side of a training pair, not counting "
        "white space.",
    )
    drop_duplicates: bool = Field(
        False,
        description="Leave out repeated training pairs, all but the first; takes 16 bytes of memory for each pair.",
    )
    join: JoinConfig = Field(JoinConfig(), description="Joins consecutive pairs of the training text.")
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the training pairs that is used, drawn at random after join; a larger share includes a "
        "smaller one. The tokenizer is trained on the whole text.",
    )
    seed: int = Field(1, ge=0, description="Seed of join and of fraction.")

    @field_validator(
        "source_script",
        "target_script",
        mode="before",
        json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)] | None,
    )
    @classmethod
    def one_script_is_a_list(cls, value: object) -> object:
        """Convert a single name or a list of names to a tuple before validation."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("source_script", "target_script")
    @classmethod
    def scripts_exist(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Raise ValueError if a name is not the name of a Unicode script."""
        for name in names or ():
            if name not in SCRIPTS:
                near = nearest_script(name)
                meant = f"did you mean {near}?" if near else "wants a name such as Latin, Cyrillic or Han"
                raise ValueError(f"unknown script '{name}'; {meant}")
        return names

    @model_validator(mode="after")
    def lengths_fit(self) -> "DataConfig":
        """Raise ValueError if limits on the lengths of training pairs contradict each other.

        `min_length` must be at most `max_length`; `max_training_length`, if given, must be between the two.
        """
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} must be at most max_length {self.max_length}")
        if self.max_training_length is not None and not self.min_length <= self.max_training_length <= self.max_length:
            raise ValueError(
                f"max_training_length {self.max_training_length} must be from min_length {self.min_length} to "
                f"max_length {self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def seed_is_used(self) -> "DataConfig":
        """Raise ValueError if `seed` is given although nothing is drawn at random.

        Only `join` and `fraction` draw at random by this seed. A seed at its default is always accepted.
        """
        if not self.draws and (said := self.first_changed("seed")):
            raise ValueError(f"{said} is of join and fraction; it wants a fraction below 1 or a join.max above 1")
        return self

    @model_validator(mode="after")
    def only_training_has_weights(self) -> "DataConfig":
        """Raise ValueError if a corpus of `data.valid` has a weight.

        Validation reads every pair once, so a weight would have no effect there.
        """
        for i, corpus in enumerate(self.valid):
            if said := corpus.first_changed("weight"):
                raise ValueError(f"valid[{i}] has {said}; only the corpora of data.train have shares of an epoch")
        return self

    @property
    def draws(self) -> bool:
        """Whether the training pairs depend on `seed`."""
        return self.fraction < 1 or self.join.max > 1

    @property
    def longest_training_side(self) -> int:
        """The maximum length of each side of a training pair, in tokens."""
        return self.max_length if self.max_training_length is None else self.max_training_length

    @property
    def train_tags(self) -> list[str]:
        """The tags of the training corpora, sorted and without duplicates."""
        return sorted({corpus.tag for corpus in self.train if corpus.tag is not None})

    def untrained_tags(self, known: Collection[str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yields (keys, tag) for each validation corpus or test set whose tag is not in `known`.

        The keys, such as ("valid", 0, "tag"), say where in the data section the tag is set.
        """
        for number, corpus in enumerate(self.valid):
            if corpus.tag is not None and corpus.tag not in known:
                yield ("valid", number, "tag"), corpus.tag
        for name, test_set in self.test.items():
            if test_set.tag is not None and test_set.tag not in known:
                yield ("test", name, "tag"), test_set.tag


# Models.

# The highest allowed dropout rate. Dropout divides the values that it keeps by 1 - rate. On some devices, this
# divisor would round to 0 if the rate were higher.
MOST_DROPOUT = 0.999

ScaleEmbeddings = Annotated[bool, Field(description="Multiply embeddings by sqrt(d_model).")]
TieEmbeddings = Annotated[
    Literal["none", "decoder", "all"],
    Field(
        description="Which embeddings share one matrix: target and output (decoder), or the source too (all); where "
        "tokenizer.shared is false, decoder by default."
    ),
]
OutputBias = Annotated[bool, Field(description="A learned bias for each token of the output.")]
EncoderLayers = Annotated[int, Field(ge=0, description="Depth of the encoder; 0: no encoder, as in a language model.")]
StartToken = Annotated[
    Literal["begin", "pad", "end", "zero"],
    Field(description="What the decoder reads first; zero, as in Marian, is padding, whose embedding stays zero."),
]

Stack = Literal["encoder", "decoder"]
Positions = Literal["sinusoidal", "learned", "rotary", "alibi", "scalar", "binary", "none"]

QueryKeyNorm = Literal[False, True, "layer"]

STACKS: tuple[Stack, ...] = ("encoder", "decoder")

# What can be taken out of a Transformer, to study what it is for.
Ablation = Literal[
    "causal_mask",
    "causal_mask_product",
    "shift",
    "cross_attention",
    "residual",
    "attention_scale",
    "encoder_causal",
]
# If one of these parts is taken out, the decoder's output for a token depends on later tokens, so no cache can be used.
SEES_LATER = ("causal_mask", "causal_mask_product", "shift")
# The parts that belong to reading the source; a language model lacks them.
OF_THE_SOURCE = ("cross_attention", "encoder_causal")


class TransformerConfig(CarriedSection):
    """The Transformer (Vaswani et al. 2017)."""

    architecture: Literal["transformer"] = Field("transformer", description="Kind of model.")
    d_model: int = Field(512, ge=2, description="Width of embeddings and layers.")
    num_heads: int = Field(8, ge=1, description="Attention heads; they divide d_model.")
    d_ff: int = Field(2048, ge=0, description="Inner width of the feed-forward layers; 0: there are none.")
    encoder_layers: EncoderLayers = 6
    decoder_layers: int = Field(6, ge=1, description="Depth of the decoder.")
    decoder_num_heads: int | None = Field(None, ge=1, description="Heads in the decoder; null: num_heads.")
    decoder_d_ff: int | None = Field(None, ge=0, description="Feed-forward width in the decoder; null: d_ff.")
    norm_placement: Literal["pre", "post"] = Field("pre", description="Normalise before or after each sublayer.")
    norm: Literal["layer", "rms", "none"] = Field(
        "layer", description="LayerNorm; RMSNorm, which only scales; or none at all."
    )
    activation: Literal["relu", "gelu", "silu", "reglu", "geglu", "swiglu"] = Field(
        "relu", description="Nonlinearity of the feed-forward layers; those in glu are gated."
    )
    attention_bias: bool = Field(True, description="Whether the four projections of attention have biases.")
    query_key_norm: QueryKeyNorm = Field(
        False,
        description="Normalise the queries and keys of each attention head (Henry et al. 2020): by RMSNorm (true), or "
        "by LayerNorm without biases (layer; Dehghani et al. 2023), which takes less time on a CPU.",
    )
    positions: Positions = Field(
        "sinusoidal",
        description="How the position of a token in its sentence is encoded: sinusoidal or learned embeddings; rotary; "
        "alibi, which lowers attention scores in proportion to the distance (Press et al. 2022), before and after a "
        "token alike in the encoder; scalar or binary, the number or its bits as further inputs; none: not at all.",
    )
    encoder_positions: Positions | None = Field(None, description="Positions in the encoder; null: as positions.")
    decoder_positions: Positions | None = Field(None, description="Positions in the decoder; null: as positions.")
    max_positions: int = Field(1024, ge=2, description="Longest sentence, in tokens, that learned positions allow.")
    sinusoid_layout: Literal["halves", "interleaved"] = Field(
        "halves", description="Sinusoids: sines before cosines, or each sine before its cosine."
    )
    sinusoid_exponent: Literal["paper", "tensor2tensor"] = Field(
        "paper",
        description="Sinusoids: wave i has frequency 10000^(-2i/d_model) (paper), or 10000^(-i/(d_model/2 - 1)) "
        "(tensor2tensor).",
    )
    sinusoid_first: int = Field(
        0, ge=0, le=1_000_000, description="Sinusoids: position of the first token of a sentence; 2 in M2M100."
    )
    scale_embeddings: ScaleEmbeddings = True
    embedding_norm: bool = Field(False, description="Normalise the input of the first layer, as mBART does.")
    residual_init: Literal["default", "zero", "scaled"] = Field(
        "default",
        description="Initial weights of the last matrix of each sublayer: drawn like all others (default), zero, or "
        "drawn and divided by the square root of the number of sublayers in the encoder or decoder, as in GPT-2 "
        "(scaled).",
    )
    tie_embeddings: TieEmbeddings = "all"
    output_bias: OutputBias = False
    start_token: StartToken = "begin"
    dropout: float = Field(
        0.1, ge=0, le=MOST_DROPOUT, description="Dropout of embeddings and of each sublayer's output."
    )
    attention_dropout: float = Field(0.0, ge=0, le=MOST_DROPOUT, description="Dropout of attention weights.")
    activation_dropout: float = Field(0.0, ge=0, le=MOST_DROPOUT, description="Dropout inside the feed-forward layers.")
    layer_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a layer is skipped for a batch (Fan et al. 2020)."
    )
    ablate: tuple[Ablation, ...] = Field(
        (),
        description="Parts taken out, to study what they are for. causal_mask: self-attention in the decoder sees "
        "later tokens; causal_mask_product: their scores are multiplied by 0 instead; shift: the decoder reads the "
        "token that it should predict; cross_attention: the decoder does not see the source; residual: no residual "
        "connections; attention_scale: scores are not divided by the square root of the width of a head; "
        "encoder_causal: the encoder does not see later tokens.",
    )

    def check(self) -> None:
        """Raise ValueError if settings of the model are incompatible."""
        self._check_width()
        self._check_positions()
        self._check_parts()

    def _check_parts(self) -> None:
        """Raise ValueError if a setting concerns a part that the model does not have.

        Also raises ValueError if `ablate` has a name twice, or has both causal_mask and causal_mask_product.
        """
        for number, name in enumerate(self.ablate):
            if name in self.ablate[:number]:
                raise ValueError(f"ablate has {name} twice")
        if {"causal_mask", "causal_mask_product"} <= {*self.ablate}:
            raise ValueError("ablate has causal_mask and causal_mask_product, which takes its place; take out one")
        if not self.reads_source and (found := [name for name in self.ablate if name in OF_THE_SOURCE]):
            raise ValueError(f"ablate has {found[0]}, which a model without encoder_layers lacks anyway")
        if self.norm == "none" and (said := self.first_changed("norm_placement", "embedding_norm")):
            raise ValueError(f"{said} wants norm layer or rms, found none")
        has_feed_forward = self.width_of("encoder") or self.width_of("decoder")
        if not has_feed_forward and (said := self.first_changed("activation", "activation_dropout")):
            raise ValueError(f"{said} wants feed-forward layers; d_ff is 0")

    def width_of(self, side: Stack) -> int:
        """Returns the inner width of the feed-forward layers of the encoder or decoder; 0 if it has none."""
        return self.decoder_d_ff if side == "decoder" and self.decoder_d_ff is not None else self.d_ff

    def _check_width(self) -> None:
        """Raise ValueError if `d_model` is odd or not a multiple of the number of heads.

        With rotary positions, also raises ValueError if the width of a head is odd.
        """
        rotates = {side: self.positions_of(side) == "rotary" for side in STACKS}
        for name, heads, is_rotary in (
            ("num_heads", self.num_heads, rotates["encoder"] or (rotates["decoder"] and not self.decoder_num_heads)),
            ("decoder_num_heads", self.decoder_num_heads, rotates["decoder"]),
        ):
            if heads and self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {name} {heads}")
            if heads and is_rotary and self.d_model // heads % 2:
                raise ValueError(
                    f"positions rotary wants heads of even width; d_model {self.d_model} over {name} {heads} is "
                    f"{self.d_model // heads}"
                )
        if self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} is odd; it must be even")

    def _check_positions(self) -> None:
        """Raise ValueError if a setting is not at its default but has no effect with the chosen position encoding."""
        shapes = {
            "sinusoidal": ("sinusoid_layout", "sinusoid_exponent", "sinusoid_first"),
            "learned": ("max_positions",),
        }
        found = dict.fromkeys(self.positions_of(side) for side in STACKS)
        for kind, names in shapes.items():
            if kind not in found and (said := self.first_changed(*names)):
                raise ValueError(f"{said} wants positions {kind}, found {' and '.join(found)}")

    def positions_of(self, side: Stack) -> Positions:
        """Returns the position encoding of the encoder or decoder."""
        own = self.encoder_positions if side == "encoder" else self.decoder_positions
        return self.positions if own is None else own

    def limit_of(self, side: Stack) -> int | None:
        """Returns the maximum length of an input of the encoder or decoder, in tokens; `None` if there is no limit."""
        return self.max_positions if self.positions_of(side) == "learned" else None

    @property
    def reads_source(self) -> bool:
        """Whether the model has an encoder; a language model has none."""
        return self.encoder_layers > 0

    @property
    def attends_to_source(self) -> bool:
        """Whether the layers of the decoder have attention to the source."""
        return self.reads_source and "cross_attention" not in self.ablate

    @property
    def has_attention(self) -> bool:
        """Whether the attention of each target token to the source can be shown."""
        return self.attends_to_source

    @property
    def source_attention(self) -> tuple[int, int]:
        """The number of layers that attend to the source, and of attention heads in each; (0, 0) if none does."""
        return (self.decoder_layers, self.decoder_num_heads or self.num_heads) if self.has_attention else (0, 0)

    @property
    def can_pack(self) -> bool:
        """Whether several sentences can be packed into one row of a batch."""
        return True

    @property
    def position_limits(self) -> dict[str, int]:
        """Maps the name of a setting that limits the sentence length, "max_positions", to the limit in tokens.

        Empty if there is no limit.
        """
        return {"max_positions": self.max_positions} if any(map(self.limit_of, STACKS)) else {}


class MaskedConfig(TransformerConfig):
    """A conditional masked language model, which predicts all tokens together (Ghazvininejad et al. 2019)."""

    # The other settings are those of the Transformer; pydantic tells the two apart by this one.
    architecture: Literal["cmlm"] = Field("cmlm", description="Kind of model.")  # type: ignore[assignment]

    def check(self) -> None:
        """Raise ValueError if settings are incompatible, or do not fit this architecture.

        The decoder of a masked language model reads no start token, so `start_token` must be at its default. The
        decoder also sees later tokens, so `ablate` must not name parts that hide them in other decoders, such as
        causal_mask.
        """
        super().check()
        if said := self.first_changed("start_token"):
            raise ValueError(f"{said} has no effect with architecture cmlm, whose decoder reads no start token")
        if found := [name for name in self.ablate if name in SEES_LATER]:
            raise ValueError(f"ablate has {found[0]}, which a decoder of architecture cmlm lacks anyway")

    @property
    def has_attention(self) -> bool:
        """Always `False`: attention to the source is not recorded for this architecture, so it cannot be shown."""
        return False

    @property
    def can_pack(self) -> bool:
        """Always `False`: a row has one predicted length, so it holds one sentence."""
        return False


class RecurrentConfig(CarriedSection):
    """A recurrent encoder-decoder, with attention (Bahdanau et al. 2015) or without (Sutskever et al. 2014)."""

    architecture: Literal["rnn"] = Field("rnn", description="Kind of model.")
    cell: Literal["lstm", "gru", "tanh"] = Field("lstm", description="Kind of recurrent cell; tanh is Elman's (1990).")
    d_model: int = Field(
        512, ge=2, description="Width of embeddings, cells and the features that go to the output layer."
    )
    encoder_layers: EncoderLayers = 2
    decoder_layers: int = Field(2, ge=1, description="Depth of the decoder.")
    bidirectional: bool = Field(True, description="Read the source in both directions, each with half of d_model.")
    attention: Literal["none", "additive", "dot", "general"] = Field(
        "general",
        description="Score of a source token (additive: Bahdanau et al. 2015; others: Luong et al. 2015).",
    )
    input_feeding: bool = Field(
        False, description="Each step also reads the features of the step before (Luong et al. 2015, section 3.3)."
    )
    context: Literal["initial", "every_step"] = Field(
        "initial",
        description="Where the decoder reads the encoder's last state: as its initial state, or at every step too.",
    )
    reverse_source: bool = Field(False, description="Read the source backwards (Sutskever et al. 2014).")
    scale_embeddings: ScaleEmbeddings = True
    tie_embeddings: TieEmbeddings = "all"
    output_bias: OutputBias = False
    start_token: StartToken = "begin"
    dropout: float = Field(
        0.1, ge=0, le=MOST_DROPOUT, description="Dropout of embeddings, between layers and of features."
    )

    def check(self) -> None:
        """Raise ValueError if settings of the model are incompatible.

        A bidirectional encoder needs an even `d_model`; `input_feeding` needs attention.
        """
        if self.bidirectional and self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} is odd; it must be even where bidirectional is true")
        if self.input_feeding and self.attention == "none":
            raise ValueError("input_feeding true wants an attention: additive, dot or general")

    @property
    def reads_source(self) -> bool:
        """Whether the model has an encoder; a language model has none."""
        return self.encoder_layers > 0

    @property
    def has_attention(self) -> bool:
        """Whether the decoder attends to the source."""
        return self.attention != "none" and self.encoder_layers > 0

    @property
    def source_attention(self) -> tuple[int, int]:
        """The number of layers that attend to the source, and of attention heads in each; (0, 0) if none does."""
        return (1, 1) if self.has_attention else (0, 0)

    @property
    def can_pack(self) -> bool:
        """Whether several sentences can be packed into one row of a batch."""
        return False

    @property
    def position_limits(self) -> dict[str, int]:
        """Limits of the sentence length; always empty, since recurrent models have no limit."""
        return {}


def _architecture(default: str) -> Callable[[Any], str]:
    """Returns a discriminator for pydantic: a function that returns the architecture that a section names.

    If the section names no architecture, the function returns `default`.
    """

    def found(section: Any) -> str:
        if isinstance(section, Section):
            return str(getattr(section, "architecture", ""))
        return str(section.get("architecture", default)) if isinstance(section, dict) else default

    return found


# If a section gives no architecture, the first kind is the default.
EncoderConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")] | Annotated[RecurrentConfig, Tag("rnn")],
    Discriminator(_architecture("transformer")),
]
DecoderConfig = Annotated[
    Annotated[RecurrentConfig, Tag("rnn")] | Annotated[TransformerConfig, Tag("transformer")],
    Discriminator(_architecture("rnn")),
]


class MixedConfig(CarriedSection):
    """The encoder of one model with the decoder of another (Chen et al. 2018); the other half of each is not used."""

    architecture: Literal["mixed"] = Field("mixed", description="Kind of model.")
    encoder: EncoderConfig = Field(TransformerConfig(), description="A whole model, of which the encoder is built.")
    decoder: DecoderConfig = Field(RecurrentConfig(), description="A whole model, of which the decoder is built.")
    tie_embeddings: TieEmbeddings = "all"

    def check(self) -> None:
        """Raise ValueError if encoder or decoder is not from a whole translation model.

        A mixed model cannot be built from a language model, which has 0 `encoder_layers`, or from a model with
        parts taken out by `ablate`.
        """
        for name, half in (("encoder", self.encoder), ("decoder", self.decoder)):
            if isinstance(half, TransformerConfig) and half.ablate:
                raise ValueError(f"{name}.{half.first_changed('ablate')} wants architecture transformer, found mixed")
            if not half.encoder_layers:
                raise ValueError(f"{name}.encoder_layers 0 is of a language model; a mixed model wants 1 or more")

    def check_ties(self) -> None:
        """Raise ValueError if encoder and decoder share embeddings but differ in `d_model` or `scale_embeddings`."""
        for name in ("d_model", "scale_embeddings") if self.tie_embeddings == "all" else ():
            found = [getattr(half, name) for half in (self.encoder, self.decoder)]
            if found[0] != found[1]:
                raise ValueError(
                    f"tie_embeddings all wants encoder.{name} and decoder.{name} alike, "
                    f"found {found[0]} and {found[1]}".replace("True", "true").replace("False", "false")
                )

    @property
    def d_model(self) -> int:
        """The width of the decoder."""
        return self.decoder.d_model

    @property
    def reads_source(self) -> bool:
        """Always `True`: a mixed model has an encoder."""
        return True

    @property
    def has_attention(self) -> bool:
        """Whether the decoder attends to the source."""
        return self.decoder.has_attention

    @property
    def source_attention(self) -> tuple[int, int]:
        """The number of layers that attend to the source, and of attention heads in each; (0, 0) if none does."""
        return self.decoder.source_attention

    @property
    def can_pack(self) -> bool:
        """Whether several sentences can be packed into one row of a batch."""
        return self.encoder.can_pack and self.decoder.can_pack

    @property
    def position_limits(self) -> dict[str, int]:
        """Maps settings that limit the sentence length, such as "encoder.max_positions", to the limits in tokens."""
        halves = {"encoder": self.encoder, "decoder": self.decoder}
        return {f"{half}.{name}": limit for half in halves for name, limit in halves[half].position_limits.items()}


AnyModelConfig = TransformerConfig | RecurrentConfig | MixedConfig | MaskedConfig

ModelConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[RecurrentConfig, Tag("rnn")]
    | Annotated[MixedConfig, Tag("mixed")]
    | Annotated[MaskedConfig, Tag("cmlm")],
    Discriminator(_architecture("transformer")),
]
