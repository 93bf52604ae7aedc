"""Base class of all settings, and the markers of fields that leave results as they are."""

from typing import Final, final

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base class of all settings: immutable; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
