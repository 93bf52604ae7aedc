"""Rubrics that a config of `blend judge` can name: one YAML file each, with the whole prompt of the judge.

To add one, add its file. A rubric of your own is a file beside the config: YAML with the same settings, or the text
of the prompt.
"""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, model_validator

from llm_blender_ray.configs.judging import Judging

_FOLDER = Path(__file__).parent / "rubric_presets"
_YAML = (".yaml", ".yml")


class Rubric(Judging):
    """What an LLM judges by: criterion, prompt, and form of the verdict."""

    # verdicts "same good" and "same bad" in place of a tie, as in MixInstruct; the prompt has to ask for them
    four_way: bool = False

    @model_validator(mode="after")
    def _asks_for_them(self) -> "Rubric":
        if self.four_way and self.prompt is None:
            raise ValueError("four_way needs a prompt that names the four verdicts")
        return self


def rubric_names() -> list[str]:
    """The names of all included rubrics."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def read_rubric_file(value: str, base: Path) -> Any:
    """Replace the path of a rubric file by what it holds, so that a config works on every node.

    Args:
        value: A `rubric` setting as the config file has it.
        base: Folder that a relative path starts from.

    Returns:
        The settings of a YAML file, the text of any other; the value itself when it isn't a file.
    """
    if "\n" in value or value in rubric_names():
        return value
    file = base / Path(value).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        return yaml.safe_load(text) if file.suffix in _YAML else {"prompt": text}
    except (OSError, ValueError, yaml.YAMLError):  # the schema names the mistake
        return value


def _named(value: object) -> object:
    """Settings of a rubric that is a name or a prompt; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value in rubric_names():
        return yaml.safe_load((_FOLDER / f"{value}.yaml").read_text(encoding="utf-8"))
    if "\n" in value:
        return {"prompt": value}
    raise ValueError(
        f"{value!r} is neither a readable file (YAML, or the text of a prompt) nor one of "
        f"{', '.join(rubric_names())}"
    )


RubricSettings = Annotated[Rubric, BeforeValidator(_named)]
