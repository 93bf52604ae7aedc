"""The base of every settings schema, by itself so that the schemas can import one another."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: immutable, and a misspelt key is a mistake rather than a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
