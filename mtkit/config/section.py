"""What every section of the settings is."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

from mtkit.config.yaml_text import write_yaml

# What pydantic calls the two forms of a setting that may have one value for both sides, or one for each.
FOR_BOTH, FOR_EACH = ("one for both sides", "one for each side")
# The same of a setting that is one file or a list of them,
ONE_FILE, MANY_FILES = ("one file", "several files")
# and of one that is a number or worked out by mtkit.
NUMBER, AUTO = ("a number", "auto")

FORMS = (FOR_BOTH, FOR_EACH, ONE_FILE, MANY_FILES, NUMBER, AUTO)


def form_of(value: object) -> str:
    """Which of the two forms a value has."""
    return FOR_EACH if isinstance(value, dict | BaseModel) else FOR_BOTH


def number_or_auto(value: object) -> str:
    """Whether a value is a number or auto."""
    return AUTO if value == "auto" else NUMBER


def number_of_files(value: object) -> str:
    """Whether a value is one file or a list of them."""
    return MANY_FILES if isinstance(value, list | tuple) else ONE_FILE


class Section(BaseModel):
    """Settings that belong together: immutable, strict about types, and no key is unknown."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def paths_may_begin_at_home(cls, value: object) -> object:
        """`~` at the beginning of a path is the user's home folder, and `~name` another's."""
        if isinstance(value, tuple):
            return tuple(map(_expanded, value))
        return _expanded(value)

    def first_changed(self, *names: str) -> str | None:
        """The first of these settings that is not at its default, as a message tells it: its name and value.

        What has no meaning beside other settings is refused only then, so that a printed config can hold all of them.
        """
        changed = (name for name in names if getattr(self, name) != type(self).model_fields[name].default)
        return next((f"{name} {write_yaml(self.model_dump(mode='json')[name])}" for name in changed), None)


def _expanded(value: object) -> object:
    if not isinstance(value, Path):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError(f"found {value}, but it is not known where the home folder {value.parts[0]} is") from None
