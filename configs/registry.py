"""Registries of replaceable parts: engines, rankers, fusers, and whatever else is chosen by name.

A registry maps names to objects. Built-in objects are listed where the registry is defined; other packages add
theirs by entry points (`[project.entry-points."llm_blender_ray.engines"]`). An object is imported when its name is
first used, so that a config costs no import of the parts that it does not name.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llm_blender_ray.configs.settings import Settings

ItemT = TypeVar("ItemT")


class RegistryError(ValueError):
    """A name is not registered, or what is registered under it cannot be used."""


class Registry(Generic[ItemT]):
    """Objects of one kind by name: built-in ones, those of other packages, and those added in this process."""

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        """Define a registry.

        Args:
            what: What a name means, for error messages, such as "engine".
            group: Entry point group in which other packages register theirs.
            built_in: Names of the built-in objects, each with its import path, `module:attribute`.
        """
        self._what = what
        self._group = group
        self._built_in = dict(built_in)
        self._added: dict[str, ItemT] = {}

    def names(self) -> tuple[str, ...]:
        """Registered names, the built-in ones first."""
        return tuple(dict.fromkeys((*self._built_in, *self._entry_points, *self._added)))

    def check(self, name: str) -> str:
        """Return a registered name, without importing its object.

        Raises:
            RegistryError: The name is unknown.
        """
        if name not in self.names():
            raise RegistryError(f"unknown {self._what} {name!r}, expected one of {', '.join(self.names())}")
        return name

    def get(self, name: str) -> ItemT:
        """Import the object of a name.

        Args:
            name: A registered name.

        Returns:
            The object.

        Raises:
            RegistryError: The name is unknown or registered twice, or its module cannot be imported.
        """
        if self.check(name) in self._added:
            return self._added[name]
        found = self._entry_points.get(name, ())
        if name in self._built_in:
            if found:
                raise RegistryError(f"{self._what} {name!r} is built in; {_packages(found)} must use another name")
            return cast(ItemT, import_object(self._built_in[name]))
        if len(found) > 1:
            raise RegistryError(f"{self._what} {name!r} is registered twice, by {_packages(found)}")
        try:
            return cast(ItemT, found[0].load())
        except Exception as error:  # whatever another package's import raises
            raise RegistryError(
                f"{self._what} {name!r} of {_packages(found)} cannot be imported ({found[0].value}): "
                f"{type(error).__name__}: {error}"
            ) from error

    def add(self, name: str, item: ItemT) -> None:
        """Register an object in this process, such as in a notebook or a test.

        Args:
            name: Its name; replaces what the name meant before.
            item: The object.
        """
        self._added[name] = item

    @functools.cached_property
    def _entry_points(self) -> dict[str, tuple[EntryPoint, ...]]:
        found: dict[str, tuple[EntryPoint, ...]] = {}
        for point in dict.fromkeys(entry_points(group=self._group)):  # a package may be on the path twice
            found[point.name] = (*found.get(point.name, ()), point)
        return found


def import_object(path: str) -> Any:
    """Import what `module:attribute` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _packages(points: tuple[EntryPoint, ...]) -> str:
    return " and ".join(point.dist.name if point.dist else point.value for point in points)


@dataclass(frozen=True)
class OneOf:
    """Annotation of a settings field that holds one of a registry's settings classes: a union by kind.

    Attributes:
        registry: The classes.
        field: Name of the field that names the kind, such as `engine`.
        default: Kind of settings without that field; None: the field is required.
    """

    registry: Registry[Any]
    field: str
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by the class that the kind names (pydantic's hook)."""

        def validate(value: object) -> Settings:
            if isinstance(value, source):
                return cast(Settings, value)
            if not isinstance(value, Mapping):
                raise PydanticCustomError("model_type", "Input should be a mapping of settings")
            chosen = self._class_of(value.get(self.field, self.default), source)
            return chosen.model_validate(value)  # pydantic puts its errors at this field's path

        return core_schema.no_info_plain_validator_function(validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """List the JSON schemas of all registered classes (pydantic's hook)."""
        names = self.registry.names()
        return {"oneOf": [handler(self.registry.get(name).__pydantic_core_schema__) for name in names]}

    def _class_of(self, kind: object, source: type[Settings]) -> type[Settings]:
        if kind is None:
            raise PydanticCustomError(
                "unknown_kind", "{problem}", {"problem": f"{self.field} is required, but missing"}
            )
        try:
            found = self.registry.get(str(kind))
            if not (isinstance(found, type) and issubclass(found, source)):
                raise RegistryError(
                    f"{self.field} {kind!r}: expected a subclass of {source.__name__}, got {found!r}"
                )
        except RegistryError as error:
            raise PydanticCustomError("unknown_kind", "{problem}", {"problem": str(error)}) from error
        return found
