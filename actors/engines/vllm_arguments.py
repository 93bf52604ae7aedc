"""Arguments of the installed vLLM's engine, described as `configs.engine_args` checks them.

`python -m llm_blender_ray.actors.engines.vllm_arguments FILE` writes what `configs/vllm_arguments.json` holds.
"""

import dataclasses
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


def installed_arguments() -> dict[str, Any]:
    """Describe the arguments of the installed `AsyncEngineArgs`, as `configs.engine_args.known_arguments` does."""
    import vllm

    fields = sorted(dataclasses.fields(vllm.AsyncEngineArgs), key=lambda field: field.name)
    return {
        "version": vllm.__version__.partition("+")[0],
        "arguments": {field.name: described_type(field.type) for field in fields},
    }


def described_type(kind: Any) -> dict[str, Any]:
    """Describe a field's type as far as a value of YAML can be checked: by JSON Schema's `type` and `enum`."""
    parts = list(_parts(kind))
    if None in parts:
        return {}
    types = sorted({part for part in parts if isinstance(part, str)})
    values = [part[0] for part in parts if isinstance(part, tuple)]
    described: dict[str, Any] = {"enum": values} if values and "string" not in types else {}
    return described | ({"type": types} if types else {})


def _parts(kind: Any) -> Iterator[str | tuple[Any] | None]:
    """JSON types in a type, and values in tuples of one; None for what has no form in JSON."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        for one in get_args(kind):
            yield from _parts(one)
    elif origin is Literal:
        yield from ((value,) for value in get_args(kind))
    elif origin in _NAMES:
        yield _NAMES[origin]
    elif isinstance(origin, type) and issubclass(origin, Enum):
        yield "integer" if issubclass(origin, int) else "string"
    elif isinstance(origin, type) and (issubclass(origin, Mapping) or dataclasses.is_dataclass(origin)):
        yield "object"
    elif isinstance(origin, type) and issubclass(origin, Collection):
        yield "array"
    elif not isinstance(kind, type) or origin is type:  # a callable, a class: none that YAML has
        yield None if isinstance(kind, str) else "null"


def main(file: Path) -> None:
    """Write the description, an argument a line."""
    described = installed_arguments()
    lines = (f"  {json.dumps(name)}: {json.dumps(kind)}" for name, kind in described["arguments"].items())
    head = f'{{\n "version": {json.dumps(described["version"])},\n "arguments": {{\n'
    file.write_text(head + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
