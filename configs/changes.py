"""Changes between two configs, in the words of the config: what a run or a service says before it continues."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_TAGS = ("engine", "kind")  # of the unions in the schema: with another one, other settings follow
_LONGEST = 60  # characters of a value that is shown
# Sections of an identity that have their own wording.
_RECORDED = ("models", "order", "ranker", "fuser", "weights", "stage_versions", "results", "command", "limit")

_Change = tuple[str, Any, Any]  # path, old value, new value


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe how what decides results has changed.

    Args:
        before: Identity of an earlier run (`pipelines.bulk.keys.run_identity`), as JSON values.
        now: That of the current one. `limit` is not compared: it decides no result of a row.

    Returns:
        One text for each change: `model qwen is new`, `ranker.strategy: full -> focus`,
        `sampling.temperature of llama: 0.7 -> 0.2`.
    """
    commands = [identity.get("command", "run") for identity in (before, now)]
    if commands[0] != commands[1]:
        return [f"command: {commands[0]} -> {commands[1]}"]
    return [*_of_models(before, now), *_of_sections(before, now), *_of_code(before, now), *_of_weights(before, now)]


def _of_models(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = before.get("models", {}), now.get("models", {})
    yield from (f"model {name} is removed" for name in old if name not in new)
    yield from (f"model {name} is new" for name in new if name not in old)
    for name in new:
        for path, was, value in _changed(old.get(name, new[name]), new[name]):
            if path.endswith("results_version"):
                where = path.removesuffix("results_version").rstrip(".")
                yield _other_results(f"{where} of {name}" if where else name)
            else:
                yield _told(f"{path} of {name}", was, value)
    orders = [
        [name for name in identity.get("order", ()) if name in old and name in new] for identity in (before, now)
    ]
    if orders[0] != orders[1]:
        yield f"order of models: {', '.join(orders[0])} -> {', '.join(orders[1])}"


def _of_sections(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    others = [name for name in {**before, **now} if name not in _RECORDED]
    # a blend's ranker has the top_k that its fuser takes, unless its own is set
    follows = all(
        _section(one, "ranker").get("top_k") == _section(one, "fuser").get("top_k", 1) for one in (before, now)
    )
    for section in ("ranker", "fuser", *others):
        for path, was, value in _changed(before.get(section), now.get(section), section):
            if path.endswith(".results_version"):
                yield _other_results(path.removesuffix(".results_version"))
            elif path != "ranker.top_k" or not follows:
                yield _told(path, was, value)
    columns = [identity.get("results", []) for identity in (before, now)]
    if columns[0] != columns[1]:
        matrix = ["logits" in names for names in columns]
        yield _told("matrix", *matrix) if matrix[0] != matrix[1] else _told("results", *columns)


def _section(identity: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return identity.get(name) or {}


def _of_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = before.get("stage_versions", {}), now.get("stage_versions", {})
    yield from (_other_results(stage) for stage in new if old.get(stage, new[stage]) != new[stage])


def _of_weights(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Weights that changed under a name that did not."""
    old, new = before.get("weights", {}), now.get("weights", {})
    for name in {**old, **new}:
        parts = [identity.get("models", {}).get(name) or identity.get(name) for identity in (before, now)]
        if old.get(name) == new.get(name) or _changed_model(*parts):
            continue
        if name in old and name in new:
            yield f"weights of {name} have changed"
        else:
            yield f"weights of {name} are {'now' if name in new else 'no longer'} on this machine"


def _changed_model(old: Any, new: Any) -> bool:
    """Whether a part has another model, so that its weights are another's."""
    changed = {name for path, _, _ in _changed(old, new) for name in path.split(".")}
    return not changed.isdisjoint({"model", "revision", "adapter", *_TAGS, ""})


def _changed(old: Any, new: Any, path: str = "") -> Iterator[_Change]:
    """Values that differ, with their paths; a part of another kind is one change."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if old != new:
            yield path, _kind(old), _kind(new)
        return
    for tag in _TAGS:
        if old.get(tag) != new.get(tag):
            yield (path if path and tag == "kind" else f"{path}.{tag}".lstrip(".")), old.get(tag), new.get(tag)
            return
    for name in {**old, **new}:
        yield from _changed(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))


def _kind(value: Any) -> Any:
    """A part's kind in place of its settings."""
    return value["kind"] if isinstance(value, Mapping) and "kind" in value else value


def _told(path: str, was: Any, value: Any) -> str:
    if isinstance(was, Mapping) or isinstance(value, Mapping):
        return f"{path}: {'new' if was is None else 'removed' if value is None else 'changed'}"
    old, new = _text(was), _text(value)
    return f"{path} has changed" if max(len(old), len(new)) > _LONGEST else f"{path}: {old} -> {new}"


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value)


def _other_results(part: str) -> str:
    return f"{part}: this release gives other results"
