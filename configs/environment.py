"""Environment variables that a config names: an endpoint's key is in one, and nowhere in the config."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

ENDING = "_env"  # of the settings that name a variable, or several (a mapping's values, a list)


def variables(*settings: BaseModel | None) -> dict[str, list[str]]:
    """Find the variables that parts of a config need.

    Args:
        settings: The parts; what they hold is searched, too.

    Returns:
        Each variable's name, with the names of the models that it is for.
    """
    found: dict[str, list[str]] = {}
    for part in settings:
        for name, owner in _needed(part, ""):
            owners = found.setdefault(name, [])
            if owner not in owners:
                owners.append(owner)
    return found


def missing_variables(environment: Mapping[str, str], *settings: BaseModel | None) -> str | None:
    """List the variables that are not set, in one line.

    Args:
        environment: What is set; blank values count as missing.
        settings: Parts of a config.

    Returns:
        The message, None when nothing is missing.
    """
    missing = {
        name: owners for name, owners in variables(*settings).items() if not environment.get(name, "").strip()
    }
    if not missing:
        return None
    listed = ", ".join(f"{name} (for {', '.join(owners)})" for name, owners in missing.items())
    several = "variables are" if len(missing) > 1 else "variable is"
    return f"environment {several} not set: {listed}; set each to its endpoint's key"


def _needed(value: object, owner: str) -> Iterator[tuple[str, str]]:
    """Variables with the model that each is for: the innermost settings around it that have a name."""
    if isinstance(value, BaseModel):
        owner = getattr(value, "name", None) or owner
        for field in type(value).model_fields:
            held = getattr(value, field)
            if field.endswith(ENDING):
                yield from ((name, owner) for name in _names(held))
            else:
                yield from _needed(held, owner)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _needed(item, owner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _needed(item, owner)


def _names(held: object) -> Iterator[str]:
    if isinstance(held, str):
        yield held
    elif isinstance(held, Mapping):
        yield from _names(list(held.values()))
    elif isinstance(held, Sequence):
        for item in held:
            yield from _names(item)
