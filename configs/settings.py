"""Base class of all settings, and the markers of fields that leave results as they are."""

from collections.abc import Sequence
from typing import Final, final

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Settings(BaseModel):
    """Base class of all settings: immutable; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def at_least_one(what: str) -> BeforeValidator:
    """Metadata of a list that must not be empty.

    `Field(min_length=1)` counts only items that are valid, and so reports a second mistake that is none.
    """

    def check(value: object) -> object:
        if isinstance(value, list | tuple) and not value:
            raise ValueError(f"expected at least one {what}")
        return value

    return BeforeValidator(check)


def check_distinct(field: str, names: Sequence[str]) -> None:
    """Check that the items of a field have names of their own.

    Raises:
        ValueError: Two have the same name.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{field}: two have the same name: {', '.join(twice)}")


@final
class RuntimeOnly:
    """Type of `RUNTIME_ONLY`."""

    def __repr__(self) -> str:
        return "RUNTIME_ONLY"


# Metadata of a field that decides where and how fast a part runs, but not its results, as in
# `Annotated[int, RUNTIME_ONLY]`. Results stay valid when only such fields change.
RUNTIME_ONLY: Final = RuntimeOnly()


@final
class OmitDefault:
    """Type of `OMIT_DEFAULT`."""

    def __repr__(self) -> str:
        return "OMIT_DEFAULT"


# Metadata of a field that came after a release, whose default is what every earlier config did: with its default it
# is no part of what decides results, so the results of earlier sessions stay valid.
OMIT_DEFAULT: Final = OmitDefault()
