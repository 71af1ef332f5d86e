"""All settings together (Config), checks across sections, and output as commented YAML and as a JSON schema."""

import json
import textwrap
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mtkit.config.data_and_model_settings import (
    AnyModelConfig,
    DataConfig,
    LanguagesConfig,
    MaskedConfig,
    MixedConfig,
    ModelConfig,
    TokenizerConfig,
    TransformerConfig,
)
from mtkit.config.section import FORMS, Keys, Section, is_incomplete, write_yaml
from mtkit.config.training_settings import LEAST_BATCH_TOKENS, DecodingConfig, TrainingConfig


def _dropouts(model: Section) -> Iterator[float]:
    """Yields every dropout rate of a model, including those of the encoder and decoder of a mixed model."""
    for name, value in model:
        if isinstance(value, Section):
            yield from _dropouts(value)
        elif name.endswith("dropout"):
            yield value


class Config(Section):
    """All settings of a run."""

    name: str = Field("translator", pattern=r"^[^/\\]*[^/\\.\s][^/\\]*$", description="Name of the run.")
    task: Literal["translation", "language_model"] = Field(
        "translation",
        description="What the model learns: to translate, or the probabilities of target sentences by themselves "
        "(language_model), with a decoder that has neither an encoder nor attention to a source.",
    )
    run_dir: Path | None = Field(None, description="Where all results go; null: runs/NAME.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    languages: LanguagesConfig = Field(LanguagesConfig(), description="What is translated into what.")
    data: DataConfig = Field(DataConfig(), description="The parallel text.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="The vocabulary.")
    model: ModelConfig = Field(TransformerConfig(), description="The model.", validate_default=True)
    training: TrainingConfig = Field(TrainingConfig(), description="How it is trained.", validate_default=True)
    decoding: DecodingConfig = Field(DecodingConfig(), description="How it translates.", validate_default=True)

    @field_validator("model")
    @classmethod
    def ties_follow_the_vocabulary(cls, model: AnyModelConfig, info: ValidationInfo) -> AnyModelConfig:
        """Returns `model`; `tie_embeddings` becomes "decoder" if not given and each side has its own vocabulary.

        Raises ValueError if a mixed model cannot tie its embeddings in the given way.
        """
        tokenizer = info.data.get("tokenizer")  # absent if that section is invalid
        if tokenizer is not None and not tokenizer.shared and "tie_embeddings" not in model.model_fields_set:
            model = model.model_copy(update={"tie_embeddings": "decoder"})
            model.model_fields_set.remove("tie_embeddings")  # not given, so start_from may replace it
        if isinstance(model, MixedConfig) and not is_incomplete(info):
            model.check_ties()
        return model

    @field_validator("decoding")
    @classmethod
    def method_follows_the_model(cls, decoding: DecodingConfig, info: ValidationInfo) -> DecodingConfig:
        """Returns `decoding`; `method` becomes "mask_predict" if `method` is not given and the architecture is cmlm.

        Raises ValueError if other settings of decoding do not fit mask_predict.
        """
        if "method" in decoding.model_fields_set or not isinstance(info.data.get("model"), MaskedConfig):
            return decoding
        decoding = decoding.model_copy(update={"method": "mask_predict"})
        decoding.model_fields_set.remove("method")  # not given, so start_from may replace it
        if not is_incomplete(info):
            decoding.check()
        return decoding

    @field_validator("model")
    @classmethod
    def language_models_have_no_encoder(cls, model: AnyModelConfig, info: ValidationInfo) -> AnyModelConfig:
        """Returns `model`; `encoder_layers` becomes 0 if the task is a language model.

        Raises ValueError if the task is a language model and the architecture is mixed or cmlm, which always have an
        encoder.
        """
        if info.data.get("task") != "language_model":
            return model
        if isinstance(model, MixedConfig | MaskedConfig):
            raise ValueError(
                f"architecture {model.architecture} has an encoder, which a language model has not; wants transformer "
                "or rnn"
            )
        return model.model_copy(update={"encoder_layers": 0})

    @field_validator("training")
    @classmethod
    def language_models_are_chosen_by_loss(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        """Returns `training`; `select_by` becomes "loss" if not given and the task is a language model.

        Raises ValueError if the task is a language model and `select_by` is given as another measure, since a language
        model makes no translations to measure.
        """
        if info.data.get("task") != "language_model" or training.select_by == "loss":
            return training
        if "select_by" in training.model_fields_set:
            raise ValueError(f"select_by {training.select_by} is of translations; task language_model wants loss")
        return training.model_copy(update={"select_by": "loss"})

    @model_validator(mode="after")
    def sections_fit(self) -> "Config":
        """Raise ValueError if settings of different sections are incompatible.

        Settings that are still to be taken from the model named by `training.start_from` are checked later.
        """
        self._check_task()
        self._check_batches()
        self._check_tokenizer_model()
        if not self._has_carried_settings():
            self._check_model()
            self._check_method()
            self._check_segmentation()
        self._check_symbols()
        return self

    def _has_carried_settings(self) -> bool:
        """Whether some model or tokenizer settings are to be taken from the model named by `training.start_from`."""
        return self.training.start_from is not None and any(
            section.model_fields_set != type(section).model_fields.keys() for section in (self.model, self.tokenizer)
        )

    def _check_task(self) -> None:
        """Raise ValueError if a setting does not fit the task."""
        corpora = {
            f"data.{name}[{number}]": corpus
            for name, listed in (("train", self.data.train), ("valid", self.data.valid))
            for number, corpus in enumerate(listed)
        }
        if self.task == "translation":
            if alone := next((name for name, corpus in corpora.items() if not corpus.has_source), None):
                raise ValueError(f"{alone} has a target alone; task translation wants source and target, or tsv")
            if not self.model.reads_source and not self._has_carried_settings():
                raise ValueError("model.encoder_layers 0 wants task language_model; translation wants 1 or more")
            return
        tags = {name: corpus.tag for name, corpus in corpora.items()}
        tags |= {f"data.test.{name}": test_set.tag for name, test_set in self.data.test.items()}
        if tagged := next((name for name, tag in tags.items() if tag is not None), None):
            raise ValueError(f"{tagged}.tag is put before a source, and a language model has none; take it out")
        if said := self.data.first_changed("drop_identical", "source_script"):
            raise ValueError(f"data.{said} is about the source, and a language model has none; take it out")
        has_source = any(corpus.has_source for corpus in self.data.train)
        is_trained = self.tokenizer.model is None and self.training.start_from is None
        if self.data.train and not has_source and is_trained and not self.tokenizer.shared:
            raise ValueError(
                "tokenizer.shared false wants text of the source, and data.train has the target alone; set it to true"
            )

    def _check_batches(self) -> None:
        """Raise ValueError if the longest possible pair does not fit into a batch."""
        name = "update_tokens" if self.training.batch_tokens == "auto" else "batch_tokens"
        if (tokens := getattr(self.training, name)) <= self.data.max_length:
            raise ValueError(
                f"training.{name} {tokens} must be more than data.max_length {self.data.max_length}, so that the "
                "longest pair fits"
            )

    @property
    def known_batch_tokens(self) -> int:
        """A batch size, in tokens, that is the same on every machine.

        It is `training.batch_tokens` or, if that is "auto", a small number that is large enough for any pair. Use it
        where results must not depend on the batch size that training finds for a machine.
        """
        training = self.training
        if training.batch_tokens != "auto":
            return training.batch_tokens
        return max(min(LEAST_BATCH_TOKENS, training.tokens_per_update), self.data.max_length + 1)

    def _check_model(self) -> None:
        """Raise ValueError if the model does not support what settings of other sections require."""
        if self.model.tie_embeddings == "all" and not self.tokenizer.shared:
            raise ValueError(
                "model.tie_embeddings all wants tokenizer.shared true; set it to decoder or none, or take it out"
            )
        if self.training.batching == "packed" and not self.model.can_pack:
            raise ValueError(
                f"training.batching packed wants a Transformer, found model.architecture {self.model.architecture}, "
                "whose rows hold one sentence; take it out"
            )
        if self.training.recompute and self.model.architecture == "rnn":
            raise ValueError("training.recompute wants a model with layers of a Transformer; take it out")
        if self.training.compile == "on" and self.model.architecture == "rnn":
            raise ValueError("training.compile on wants a model with layers of a Transformer; take it out")
        for name, limit in self.model.position_limits.items():
            if limit <= self.data.max_length:
                raise ValueError(f"model.{name} {limit} must be more than data.max_length {self.data.max_length}")
        if self.decoding.coverage_penalty and not self.model.has_attention:
            raise ValueError(
                f"decoding.coverage_penalty {self.decoding.coverage_penalty} wants a model with attention, "
                "which tells what was covered; set it to 0"
            )
        if self.decoding.shortlist is not None and self.task == "language_model":
            raise ValueError(
                f"decoding.shortlist {self.decoding.shortlist} has translations of source tokens, and a language model "
                "reads no source; set it to null"
            )
        if self.decoding.unknown == "copy" and not self.model.has_attention:
            raise ValueError(
                "decoding.unknown copy wants a model with attention, which tells the source word; set it to ban or keep"
            )
        if self.training.consistency == "rdrop" and not any(_dropouts(self.model)):
            raise ValueError("training.consistency rdrop wants model.dropout above 0; two equal passes always agree")
        if self.training.guided_alignment is not None:
            self._check_guided_alignment()

    def _check_guided_alignment(self) -> None:
        """Raise ValueError if guided alignment does not fit the model or the data.

        The decoder must attend to the source, and have the layer and the head that guided alignment trains. It must
        not skip layers at random (`layer_dropout`), since it might then skip the layer that is trained. `data.join` and
        `data.fraction` must be unset, since the file of alignments has a line for each pair.
        """
        num_layers, num_heads = self.model.source_attention
        if not num_layers:
            raise ValueError("training.guided_alignment wants a model with attention, one head of which learns it")
        for name, most in (("layer", num_layers), ("head", num_heads)):
            number = getattr(self.training, f"guided_alignment_{name}")
            if number is not None and number > most:
                raise ValueError(
                    f"training.guided_alignment_{name} {number} must be at most {most}, the number of {name}s of "
                    "attention to the source"
                )
        if self.data.draws:
            raise ValueError(
                "training.guided_alignment has a line for each pair; it wants data.join and data.fraction unset"
            )
        decoder = self.model.decoder if isinstance(self.model, MixedConfig) else self.model
        if isinstance(decoder, TransformerConfig) and decoder.layer_dropout:
            raise ValueError(
                f"training.guided_alignment wants model.layer_dropout 0, found {decoder.layer_dropout}, which may skip "
                "the layer that learns it"
            )

    def _check_method(self) -> None:
        """Raise ValueError if the architecture is cmlm, but other settings are for models that decode token by token.

        Also raises ValueError if settings of decoding are for cmlm, but the model has another architecture.
        """
        decoding = self.decoding
        if isinstance(self.model, MaskedConfig):
            if decoding.method != "mask_predict":
                raise ValueError(f"model.architecture cmlm wants decoding.method mask_predict, found {decoding.method}")
            if self.training.consistency != "none":
                raise ValueError(f"training.consistency {self.training.consistency} is not for model.architecture cmlm")
            return
        said = decoding.first_changed("iterations", "length_candidates")
        if decoding.method == "mask_predict" or said:
            said = said or "method mask_predict"
            raise ValueError(f"decoding.{said} wants model.architecture cmlm, found {self.model.architecture}")

    def _check_segmentation(self) -> None:
        """Raise ValueError if `bpe_dropout` or `unigram_alpha` is given but the type of tokenizer does not allow it."""
        type_ = self.tokenizer.type
        if self.tokenizer.model is not None:
            # The type of a given model is not known yet; it is checked when the model is read.
            type_ = "bpe" if self.training.bpe_dropout else "unigram"
        if self.training.bpe_dropout and type_ != "bpe":
            raise ValueError(f"training.bpe_dropout {self.training.bpe_dropout} wants tokenizer.type bpe, not {type_}")
        if self.training.unigram_alpha is not None and type_ != "unigram":
            raise ValueError(
                f"training.unigram_alpha {self.training.unigram_alpha} wants tokenizer.type unigram, not {type_}"
            )

    def _check_tokenizer_model(self) -> None:
        """Raise ValueError if `tokenizer.model` is given together with `training.start_from`.

        The model to start from already has a tokenizer.
        """
        if self.training.start_from is not None and (said := self.tokenizer.first_changed("model")):
            raise ValueError(
                f"tokenizer.{said} is for a model that starts from nothing; that of training.start_from has a "
                "tokenizer of its own"
            )

    def _check_symbols(self) -> None:
        """Raise ValueError if one of `tokenizer.symbols` is also a tag of `data.train`."""
        tags = [corpus.tag for corpus in self.data.train]
        if both := next((symbol for symbol in self.tokenizer.symbols if symbol in tags), None):
            raise ValueError(
                f"tokenizer.symbols has {both}, which is a tag of data.train, too; take it out of one of them"
            )

    @property
    def run_path(self) -> Path:
        """The run directory: `run_dir` or, if that is `None`, runs/NAME."""
        return self.run_dir or Path("runs") / self.name

    @property
    def guided_head(self) -> tuple[int, int] | None:
        """The layer and the head that guided alignment trains, both counted from 1; `None` without guided alignment."""
        if self.training.guided_alignment is None:
            return None
        return self.training.guided_layer(self.model.source_attention[0]), self.training.guided_alignment_head

    def data_path(self, path: Path) -> Path:
        """Returns a path from the data or tokenizer section, resolved against `data.root` if that is given."""
        return self.data.root / path if self.data.root else path


# Settings as commented YAML, as a JSON schema for editors, and as descriptions in messages.

Schema = dict[str, Any]

WIDTH = 100  # of comments, in characters

LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def config_text(config: Config) -> str:
    """Returns the settings as YAML, with a comment above each key that gives its meaning and limits.

    When loaded, the YAML gives equal settings.
    """
    schema = setting_schema(())
    assert schema is not None
    lines = [*_comment(schema["description"]), "", *_section_lines(config.model_dump(mode="json"), schema, set())]
    return "\n".join(lines) + "\n"


def config_schema() -> dict[str, object]:
    """Returns the JSON schema of a settings file."""
    # A model section without an architecture fits several architectures, which oneOf forbids and anyOf allows.
    text = json.dumps(_root()).replace('"oneOf": [{"$ref"', '"anyOf": [{"$ref"')
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **json.loads(text)}


def setting_schema(keys: Keys, data: Any = None) -> Schema | None:
    """Returns the JSON schema of the setting or section at `keys`; `None` if there is no such setting or section.

    The keys of some sections depend on the architecture. The architecture is looked up in `data`, the settings given so
    far. If `data` names no architecture, the first possible architecture is assumed.
    """
    schema: Schema | None = _root()
    for key in keys:
        schema = _child(schema, key) if schema else None
        data = _item(data, key)
        schema = _chosen(schema, data) if schema else None
    return schema


def is_setting(keys: Keys) -> bool:
    """Whether there is a setting or section at `keys` for at least one architecture."""
    schema: Schema | None = _root()
    for key in keys:
        schema = _child(schema, key) if schema else None
    return schema is not None


def kinds_with(keys: Keys) -> list[str]:
    """Returns the architectures that have a setting at `keys`, such as ["rnn"] for ("model", "input_feeding").

    Returns [] if the section of the setting does not depend on the architecture.
    """
    schema: Schema | None = _root()
    for key in keys[:-1]:
        schema = _child(schema, key) if schema else None
    return [name for name, kind in _kinds(schema or {}).items() if keys[-1] in kind["properties"]]


def may_be_no_section(keys: Keys) -> bool:
    """Whether the setting at `keys` may be either a section or another type of value.

    For example, `tokenizer.vocab_size` is a number, or a section with a number for each side.
    """
    schema = setting_schema(keys)
    return len({"properties" in choice for choice in _choices(schema)}) > 1 if schema else False


def keys_of(schema: Schema) -> list[str] | None:
    """Returns the keys of a section; `None` if the schema is not that of a section.

    Some settings may be either a section or another value. For such a setting, the keys of the section are returned.
    """
    return next((list(choice["properties"]) for choice in _choices(schema) if "properties" in choice), None)


def without_kinds(places: Keys) -> Keys:
    """Converts the location in a pydantic error to the keys of the setting, as in a settings file.

    The location also contains names of architectures, and of the forms that a setting may have (FORMS). These names are
    dropped. For example, ("model", "transformer", "d_model") becomes ("model", "d_model").
    """
    keys: Keys = ()
    schema: Schema | None = _root()
    for key in places:
        kinds = _kinds(schema or {})
        if key in kinds:
            schema = kinds[str(key)]
        elif key in FORMS and _forms(schema or {}):
            continue
        else:
            keys = (*keys, key)
            schema = _child(schema, key) if schema else None
    return keys


def setting_names(data: Any = None) -> list[tuple[str, ...]]:
    """Returns the keys of every section and setting, such as ("model", "d_model"), but not of items of lists or tables.

    The keys of some sections depend on the architecture. The architecture is looked up in `data`, the settings given so
    far. If `data` names no architecture, the first possible architecture is assumed.
    """
    return list(_names((), _root(), data))


def wanted(schema: Schema) -> str:
    """Returns a description of the values that a setting accepts, such as "a whole number, at least 1"."""
    if _forms(schema):
        return ", or ".join(choice["const"] if "const" in choice else wanted(choice) for choice in _choices(schema))
    if "const" in schema:
        return f"only {schema['const']}"
    if "enum" in schema:
        return f"one of {', '.join(str(x).lower() if isinstance(x, bool) else x for x in schema['enum'])}"
    limits = [f"{words} {schema[limit]:.10g}" for limit, words in LIMITS.items() if limit in schema]
    return ", ".join([_kind(schema), *limits])


def takes_text(schema: Schema) -> bool:
    """Whether a setting accepts free text or a path."""
    return any(choice.get("type") == "string" and not {"enum", "const"} & choice.keys() for choice in _choices(schema))


@cache
def _root() -> Schema:
    return Config.model_json_schema()


def _resolved(schema: Schema) -> Schema:
    """Returns the schema; if it has a $ref, the $ref is replaced by the definition that it refers to.

    Entries of the definition take precedence over entries beside the $ref. So a section is described by the docstring
    of its class, not by the description of the field that holds the section.
    """
    if "$ref" not in schema:
        return schema
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    definition: Schema = _root()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return {**beside, **definition}


def _choices(schema: Schema) -> list[Schema]:
    """Returns a schema for each type of value that a setting may have, such as a number and null.

    For a section whose keys depend on the architecture, returns a schema for each architecture. If there are no such
    alternatives, returns only `schema` itself. In each alternative, a $ref is replaced by the definition that it refers
    to.
    """
    forms = [_resolved(form) for form in _forms(schema)]
    if forms:
        return [choice for form in forms for choice in _choices(form)]
    return [_resolved(choice) for choice in _kinds(schema).values()] or [schema]


def _forms(schema: Schema) -> list[Schema]:
    """Returns a schema for each form that a setting may have, such as a number and null.

    Returns [] if there is only one form, and for sections.
    """
    if "properties" in schema or _kinds(schema):  # anyOf and oneOf of a section list which keys are required together
        return []
    forms: list[Schema] = schema.get("anyOf") or schema.get("oneOf", [])
    return forms


def _kinds(schema: Schema) -> dict[str, Schema]:
    """Maps each architecture to the schema that a section has for this architecture.

    Empty if the section does not depend on the architecture.
    """
    kinds = (_resolved(kind).get("properties", {}) for kind in schema.get("oneOf", []))
    architectures = [kind["architecture"]["const"] for kind in kinds if "architecture" in kind]
    return dict(zip(architectures, map(_resolved, schema["oneOf"]), strict=True)) if architectures else {}


def _chosen(schema: Schema, data: Any) -> Schema:
    """Returns the schema of a section for the architecture given in `data`, or else for the first architecture.

    In this schema, the setting `architecture` lists all architectures as choices. The schema of anything that does not
    depend on the architecture is returned unchanged.
    """
    kinds = _kinds(schema)
    if not kinds:
        return schema
    names = list(kinds)
    found = data.get("architecture") if isinstance(data, dict) else None
    kind = kinds[found if found in names else names[0]]
    architecture = {**kind["properties"]["architecture"], "enum": names, "default": names[0]}
    del architecture["const"]
    return {**kind, "properties": {**kind["properties"], "architecture": architecture}}


def _item(data: Any, key: str | int) -> Any:
    """Returns the item of a mapping or list at `key`; `None` if there is no such item."""
    if isinstance(data, dict):
        return data.get(key)
    return data[key] if isinstance(data, list) and isinstance(key, int) and key < len(data) else None


def _child(schema: Schema, key: str | int) -> Schema | None:
    """Returns the schema of the setting or item at `key` in a section, list or table; `None` if there is none."""
    for choice in _choices(schema):
        if isinstance(key, int):
            items = choice.get("prefixItems", [])
            child = items[key] if key < len(items) else choice.get("items")
        else:
            child = choice.get("properties", {}).get(key, choice.get("additionalProperties"))
        if isinstance(child, dict):
            return _resolved(child)
    return None


def _names(section: tuple[str, ...], schema: Schema, data: Any) -> list[tuple[str, ...]]:
    names: list[tuple[str, ...]] = []
    for key, child in schema.get("properties", {}).items():
        inner = _item(data, key)
        names += [(*section, key), *_names((*section, key), _chosen(_resolved(child), inner), inner)]
    return names


def _kind(schema: Schema) -> str:
    match schema["type"]:
        case "string":
            return _kind_of_text(schema)
        case "array":
            return f"a list of {_count_of_items(schema)}items, each {_each_item(schema)}"
        case "object":
            if isinstance(schema.get("additionalProperties"), dict):
                return f"names, each with {wanted(_resolved(schema['additionalProperties']))}"
            forms = schema.get("oneOf") or schema.get("anyOf") or [schema]
            forms = [form["required"] for form in forms if "required" in form]
            shown = ["{" + ", ".join(f"{key}: …" for key in form) + "}" for form in forms]
            return " or ".join(shown) or "keys and values"
        case kind:
            names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
            return names[kind]


def _kind_of_text(schema: Schema) -> str:
    if schema.get("format") == "path":
        return "a path"
    if "pattern" in schema:
        return f"text that matches {schema['pattern']}"
    return "text, not empty" if schema.get("minLength") else "text"


def _count_of_items(schema: Schema) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    if not least:
        return ""
    return f"{least} " if least == most else f"{least} or more "


def _each_item(schema: Schema) -> str:
    items = schema.get("prefixItems", [schema.get("items", {})])
    return " or ".join(dict.fromkeys(wanted(_resolved(item)) for item in items))


def _section_lines(data: dict[str, Any], schema: Schema, told: set[str], indent: str = "") -> list[str]:
    """Returns the lines of a section, whose values are `data`, as commented YAML.

    The keys of the items of a list or table are explained only once. `told`, which is updated in place, holds the
    titles of the item schemas that have been explained so far.
    """
    lines: list[str] = []
    for key, value in data.items():
        child = _child(schema, key)
        assert child is not None
        child = _chosen(child, value)
        if "properties" in child:
            inner = _section_lines(value, child, told, indent + "  ")
            lines += ["", *_comment(child["description"], indent), f"{indent}{key}:", *inner]
        else:
            lines += [*_comment(_meaning(value, child), indent), *_item_lines(child, told, indent)]
            lines += [*_example_lines(key, child, indent), *_value_lines(key, as_said(value, child), indent)]
    return lines


def _item_lines(schema: Schema, told: set[str], indent: str) -> list[str]:
    """Returns comment lines that describe the keys that each item of a list or table has.

    Returns [] if the items are not sections, or if `told` already holds the title of their schema. Otherwise the title
    is added to `told`.
    """
    items = _item_schema(schema)
    if "properties" not in items or items["title"] in told:
        return []
    told.add(items["title"])
    lines = [f"{indent}# Keys of each:"]
    for key, child in items["properties"].items():
        default = child.get("default")
        known = f" Default: {write_yaml(default)}." if default not in (None, []) else ""
        meaning = _meaning(default, {"default": default, **child})
        lines += _comment(f"- {key}: {meaning}{known}", f"{indent}", hanging="  ")
    return lines


def _example_lines(key: str, schema: Schema, indent: str) -> list[str]:
    """Returns comment lines with the example that the schema of a list or table gives; [] if there is no example.

    Without the `# ` at the beginning of each line, the example is valid YAML.
    """
    if "examples" not in schema:
        return []
    order = list(_item_schema(schema).get("properties", {}))  # pydantic sorts the keys of an example
    items = schema["examples"][0]
    example: Any = (
        {name: _in_order(item, order) for name, item in items.items()}
        if isinstance(items, dict)
        else [_in_order(item, order) for item in items]
    )
    return [f"{indent}# Example:", *(f"{indent}# {line}" for line in _value_lines(key, example, ""))]


def _item_schema(schema: Schema) -> Schema:
    """Returns the schema of the items of a list or table; {} if `schema` is neither that of a list nor of a table."""
    return _resolved(schema.get("items") or schema.get("additionalProperties") or {})


def _in_order(item: dict[str, Any], order: list[str]) -> dict[str, Any]:
    return {key: item[key] for key in order if key in item}


def _meaning(value: object, schema: Schema) -> str:
    takes = wanted(schema)
    sentences = [schema["description"], f"{takes[0].upper()}{takes[1:]}."]
    if value != schema["default"]:
        sentences.append(f"Default: {write_yaml(schema['default'])}.")
    return " ".join(sentences)


def as_said(value: Any, schema: Schema) -> Any:
    """Returns a value as a settings file gives it: in items of lists and tables, settings at defaults are left out.

    `schema` is the schema of the value. For example, a corpus in the list `data.train` keeps only the settings that
    differ from their defaults. Items that are not sections are returned unchanged, and so are numbers, text and null.
    """
    if isinstance(value, list):
        return [as_said(item, _child(schema, number) or {}) for number, item in enumerate(value)]
    if isinstance(value, dict) and "properties" in schema:
        defaults = {key: child["default"] for key, child in schema["properties"].items() if "default" in child}
        return {key: item for key, item in value.items() if key not in defaults or item != defaults[key]}
    if isinstance(value, dict):
        return {key: as_said(item, _child(schema, key) or {}) for key, item in value.items()}
    return value


def _value_lines(key: str, value: Any, indent: str) -> list[str]:
    if value and isinstance(value, dict):
        # Writing the name as an item of a list adds the quotes that it needs as a key.
        inner = [f"{indent}  {write_yaml([name])[1:-1]}: {write_yaml(item)}" for name, item in value.items()]
        return [f"{indent}{key}:", *inner]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [f"{indent}{key}:", *(f"{indent}  - {write_yaml(item)}" for item in value)]
    return [f"{indent}{key}: {write_yaml(value)}"]


@lru_cache(maxsize=1024)  # about all of the comments; every run writes them several times
def _comment(text: str, indent: str = "", hanging: str = "") -> tuple[str, ...]:
    width = WIDTH - len(f"{indent}# ")
    lines = textwrap.wrap(text, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
    return tuple(f"{indent}# {line}" for line in lines)
