"""Model card of a trained ranker or fuser: README.md in its folder, with data, settings and held-out figures.

The card is made to be published with the folder: it has no path of the machine, no user or query of a URL, and no
licence, which depends on the base model and the data.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from llm_blender_ray.configs.training import FuserTraining, RankerTraining

_USER = re.compile(r"(?<=://)[^/]*@")
_PACKAGES = ("llm-blender-ray", "transformers", "torch")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_model_card(
    config: RankerTraining | FuserTraining,
    folder: Path,
    *,
    examples: Mapping[str, int],
    measured: Mapping[str, float],
    findings: Sequence[str] = (),
) -> None:
    """Write the card into the folder of the trained model.

    Args:
        config: All settings of the training.
        folder: The model's folder.
        examples: Number of examples (pairs of a ranker, rows of a fuser) of `train` and `heldout`.
        measured: The last evaluation: `eval_loss`, `eval_accuracy`; empty without held-out rows.
        findings: Further lines about held-out rows.
    """
    model_card(config, folder.name, examples, measured, findings).save(folder / "README.md")


def model_card(
    config: RankerTraining | FuserTraining,
    name: str,
    examples: Mapping[str, int],
    measured: Mapping[str, float],
    findings: Sequence[str],
) -> ModelCard:
    """Make the card of a model of this name; see `write_model_card`."""
    ranker = isinstance(config, RankerTraining)
    base = config.backbone if isinstance(config, RankerTraining) else config.model
    unit, what = ("pairs", "PairRanker") if ranker else ("rows", "GenFuser")
    accuracy = f"accuracy on {unit}, one order" if ranker else "accuracy of tokens"
    labels = {"eval_accuracy": accuracy, "eval_loss": "loss"}
    figures = {label: round(measured[key], 4) for key, label in labels.items() if key in measured}
    heldout = _public(config.heldout) if config.heldout else None
    data = ModelCardData(
        base_model=base if _is_on_hub(base) else None,
        library_name="llm-blender-ray",
        pipeline_tag="text-ranking" if ranker else None,
        tags=["llm-blender", what.lower()],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-ranking" if ranker else "text-generation",
                dataset_type="rows",
                dataset_name=str(heldout),
                dataset_split="heldout",
                metric_type="accuracy",
                metric_name=accuracy,
                metric_value=figures[accuracy],
            )
        ]
        if accuracy in figures
        else None,
    )
    rows = [f"| `train` | `{_public(config.train)}` | {examples['train']:,} {unit} |"]
    if heldout:
        rows.append(f"| `heldout` | `{heldout}` | {examples['heldout']:,} {unit} |")
    measures = [f"- {label}: {value}" for label, value in figures.items()] + [f"- {line}" for line in findings]
    option = "--ranker" if ranker else "--fuser"
    command = f"blend {'rank' if ranker else 'fuse'} {option} {name} --input rows.jsonl --output out.jsonl"
    public = _public_settings(config.model_dump(mode="json", exclude={"output", "ray", "scaling"}))
    settings = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
    text = f"""# {name}

{what} trained from `{_public(base)}` by `blend train {"ranker" if ranker else "fuser"}`.

```
{command}
```

## Data

| | rows | examples |
|---|---|---|
{chr(10).join(rows)}

## Held-out figures

{chr(10).join(measures) or "Nothing was measured: the training had no held-out rows."}

## Settings

```yaml
{settings}```

Versions: {", ".join(_versions())}.
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # a source tree on the path, as in a job
            continue
    return found


def _is_on_hub(model: str) -> bool:
    return _HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def _public(value: str) -> str:
    """A URI or path without what is private: the folders of an absolute path, user and query of a URL."""
    if "://" in value and not value.startswith("file:"):
        return _USER.sub("", value).partition("?")[0]
    if value.startswith(("/", "~", "file:")) or Path(value).is_absolute():
        return PurePosixPath(value).name
    return value


def _public_settings(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _public_settings(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_public_settings(one) for one in value]
    return _public(value) if isinstance(value, str) else value
