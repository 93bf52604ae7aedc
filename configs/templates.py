"""Chat templates that a config can name: one Jinja file each, after their publishers' documentation.

They serve models whose tokenizer comes without a template. To add one, add its file.
"""

from pathlib import Path

BARE = "bare"  # no template: the contents of the messages, a line each
_FOLDER = Path(__file__).parent / "chat_templates"


def template_names() -> list[str]:
    """The names of all templates, `bare` included."""
    return sorted([BARE, *(file.stem for file in _FOLDER.glob("*.jinja"))])


def is_inline(value: str) -> bool:
    """Whether the value of a `chat_template` setting is a template itself."""
    return "{{" in value or "{%" in value


def template_text(value: str) -> str | None:
    """Find the template that a `chat_template` setting means.

    Args:
        value: A checked setting: a template or the name of one.

    Returns:
        The Jinja text; None for `bare`.
    """
    if is_inline(value):
        return value
    return None if value == BARE else (_FOLDER / f"{value}.jinja").read_text(encoding="utf-8")


def read_if_file(value: str, base: Path) -> str:
    """Replace the path of a template file by what it holds, so that a config works on every node.

    Args:
        value: A `chat_template` setting as the config file has it.
        base: Folder that a relative path starts from.

    Returns:
        The file's text; the value itself when it isn't a file.
    """
    if is_inline(value) or "\n" in value or value in template_names():
        return value
    try:
        return (base / Path(value).expanduser()).read_text(encoding="utf-8")
    except (OSError, ValueError):  # the schema names the mistake
        return value
