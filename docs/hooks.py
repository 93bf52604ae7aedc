"""MkDocs hooks: generated pages of the site, and links that work both on GitHub and in the site.

- `configuration.md`: the line `<!-- settings -->` becomes one table per settings class of the pydantic schema.
- `presets.md`: the line `<!-- presets -->` becomes one table per config in `configs/`, with the plans for it.
- `first_hour.ipynb`: rendered to a page by nbconvert.
- Pages that live elsewhere in the repository (`INCLUDED`) become pages of the site.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from contextlib import suppress
from inspect import get_annotations, getdoc, getsourcefile
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llm_blender_ray.cluster.placement import Capacity, PlanError
from llm_blender_ray.cluster.plan import make_plan
from llm_blender_ray.configs.judges import JudgeConfig
from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.registry import OneOf
from llm_blender_ray.configs.sampling import Sampling, SamplingOverrides
from llm_blender_ray.configs.schema import BlendConfig, LocalLLM
from llm_blender_ray.configs.settings import RUNTIME_ONLY, Settings
from llm_blender_ray.configs.training import FuserTraining, RankerTraining

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
NOTEBOOK = "first_hour.ipynb"
INCLUDED = {
    "index.md": "README.md",
    "cluster.md": "cluster/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
ROOTS = {
    "Bulk runs and the service": (BlendConfig,),
    "blend judge": (JudgeConfig,),
    "blend train ranker": (RankerTraining,),
    "blend train fuser": (FuserTraining,),
}
MODEL_NOTE = re.compile(r"\bname: ([\w.-]+)[^#\n]*?#\s*(.+)")  # a preset's comment behind a model's name
PLANNED_GPUS = (0, 1, 4, 8)
PLANNED_CPUS = 16


def on_files(files: "Files", *, config: "MkDocsConfig") -> "Files":
    """Add the pages that aren't Markdown files in `docs/`."""
    from mkdocs.structure.files import File

    for page, source in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, NOTEBOOK.replace(".ipynb", ".md"), content=notebook_page()))
    return files


def on_page_markdown(markdown: str, *, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Fill in generated parts and turn links to repository files into links to pages of the site."""
    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", settings_reference())
    if "<!-- presets -->" in markdown:
        markdown = markdown.replace("<!-- presets -->", presets_reference())
    for name, source in INCLUDED.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({name}", markdown)
    markdown = re.sub(r"\]\((?:\.\./)?docs/", "](", markdown)
    markdown = re.sub(r"\[([^\]]+)\]\(CITATION\.cff\)", r"`\1`", markdown)
    return markdown.replace(f"]({NOTEBOOK})", f"]({NOTEBOOK.replace('.ipynb', '.md')})")


def notebook_page() -> str:
    """The notebook as Markdown, outputs included."""
    from nbconvert import MarkdownExporter

    body, _ = MarkdownExporter(exclude_input_prompt=True).from_filename(str(ROOT / "docs" / NOTEBOOK))
    return str(body)


def blend_presets() -> dict[str, Path]:
    """Config files of whole blends in `configs/` by name."""
    files = sorted(PRESETS.glob("*.yaml"))
    return {file.stem: file for file in files if not file.stem.startswith(("train-", "judge"))}


def model_notes(text: str) -> dict[str, str]:
    """Comments behind the names of a preset's models: parameters, weights, licence."""
    return dict(MODEL_NOTE.findall(text))


def presets_reference() -> str:
    """One section per preset: its header comment, its models, and its waves on machines with 0 to 8 GPUs."""
    return "\n\n".join(_preset(name, file) for name, file in blend_presets().items())


def _preset(name: str, file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    config, notes = load(file, BlendConfig), model_notes(text)
    header = re.match(r"(?:#.*\n)*", text)
    about = re.sub(r"^# ?", "", header.group() if header else "", flags=re.MULTILINE).strip()
    lines = ["| model | engine | GPUs | parameters, weights, licence |", "|---|---|---|---|"]
    for model in config.models:
        gpus = model.default_gpus(has_gpus=True) if model.num_gpus is None else model.num_gpus
        shown = Path(model.model).name if Path(model.model).is_dir() else model.model
        revision = f" @ {model.revision}" if isinstance(model, LocalLLM) and model.revision else ""
        cells = (f"`{shown}`{revision}", model.engine, f"{gpus:g}", notes.get(model.name, ""))
        lines.append(f"| {' | '.join(cells)} |")
    plans = ", ".join(
        f"{waves} with {gpus} GPU{'s' * (gpus != 1)}" for gpus, waves in planned_waves(config).items()
    )
    return f"## `configs/{name}.yaml`\n\n{about}\n\n" + "\n".join(lines) + f"\n\nWaves: {plans}."


def planned_waves(config: BlendConfig) -> dict[int, int]:
    """Waves of a config on one machine, by its GPUs, where it can run at all."""
    found: dict[int, int] = {}
    for gpus in PLANNED_GPUS:
        with suppress(PlanError):
            found[gpus] = len(make_plan(config, Capacity.machine(PLANNED_CPUS, gpus)).waves)
    return found


def settings_reference() -> str:
    """One section per settings class that a config file can contain, in the order of their first use."""
    parts: list[str] = []
    seen: dict[type[BaseModel], str] = {}
    for title, roots in ROOTS.items():
        parts.append(f"## {title}")
        for root in roots:
            for path, schema in _walk(root):
                if schema in seen:
                    continue
                seen[schema] = path
                parts.append(_section(path, schema))
    return "\n\n".join(parts)


def _walk(root: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Settings classes with the path at which a config has them, depth first; shared bases before their users."""
    for base in root.__mro__[1:]:
        if issubclass(base, Settings) and base is not Settings and _own_fields(base):
            yield "", base
    yield path or "top level", root
    for name, field in root.model_fields.items():
        for schema, many in _schemas(_whole(field)):
            inner = f"{path}.{name}".lstrip(".") + ("[]" if many else "")
            yield from _walk(schema, inner)


def _schemas(annotation: Any, many: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """Settings classes within a type, and whether in a list; of a part, those of its registry."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, many
        return
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        registries = [one.registry for one in arguments[1:] if isinstance(one, OneOf)]
        for registry in registries:
            yield from ((registry.get(name), many) for name in registry.names())
        arguments = () if registries else arguments[:1]
    listed = many or get_origin(annotation) in (tuple, list)
    for argument in arguments:
        yield from _schemas(argument, listed)


def _whole(field: FieldInfo) -> Any:
    """A field's type with the metadata that pydantic took out of it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _own_fields(schema: type[BaseModel]) -> list[str]:
    """Fields that the class itself declares, in source order."""
    return [name for name in get_annotations(schema) if name in schema.model_fields]


def _title(path: str, schema: type[BaseModel]) -> str:
    """Heading of a class: its path in a config, and what selects it among others at that path."""
    if not path:
        return f"Shared: {schema.__name__}"
    for name in ("engine", "kind"):
        field = schema.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is Literal:
            place = path if name == "kind" else "models[]"
            return f"`{place}` with `{name}: {get_args(field.annotation)[0]}`"
    return "Top level" if path == "top level" else f"`{path}`"


def _section(path: str, schema: type[BaseModel]) -> str:
    lines = [f"### {_title(path, schema)} {{ #{schema.__name__.lower()} }}", "", _lead(schema), ""]
    bases = [
        base
        for base in schema.__mro__[1:]
        if issubclass(base, Settings) and base is not Settings and _own_fields(base)
    ]
    if bases and path:
        links = ", ".join(f"[{base.__name__}](#{base.__name__.lower()})" for base in bases)
        lines += [f"Also takes the settings of {links}.", ""]
    meanings = meanings_of(schema)
    rows = []
    for name in _own_fields(schema):
        field = schema.model_fields[name]
        mark = " *Runtime.*" if RUNTIME_ONLY in field.metadata else ""
        meaning = meanings.get(name, "") + mark
        rows.append(f"| `{name}` | {_type(field)} | {_default(field)} | {_cell(meaning)} |")
    if rows:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines)


def _lead(schema: type[BaseModel]) -> str:
    """The docstring without its `Attributes:` section."""
    return (getdoc(schema) or "").partition("\nAttributes:")[0].strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def meanings_of(schema: type[BaseModel]) -> dict[str, str]:
    """Meaning of each field that a class declares: from `meanings.yaml`, its description, docstring or comment.

    A comment is the one on the field's own lines, or else on lines of its own directly above them.
    """
    if schema is SamplingOverrides:  # the same fields
        return {
            name: text for name, text in meanings_of(Sampling).items() if name in SamplingOverrides.model_fields
        }
    own = _own_fields(schema)
    written = yaml.safe_load((ROOT / "docs" / "meanings.yaml").read_text(encoding="utf-8"))
    meanings = {name: written[name] for name in own if name in written}
    meanings |= _comments(schema) | _attributes(getdoc(schema) or "")
    meanings |= {name: text for name in own if (text := schema.model_fields[name].description)}
    meanings |= {name: text for name in own if (text := written.get(f"{schema.__name__}.{name}"))}
    return {name: _sentence(meanings[name]) for name in own if meanings.get(name)}


def _sentence(text: str) -> str:
    """A comment as a sentence: YAML's null, a capital, a full stop."""
    text = re.sub(r"\bNone\b", "null", " ".join(text.split()))
    start = text if text.startswith(("vLLM", "max_", "top_")) else text[:1].upper() + text[1:]
    return start if start.endswith((".", "...")) else f"{start}."


def _attributes(doc: str) -> dict[str, str]:
    """Entries of the `Attributes:` section of a docstring."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)*)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    for name, text in re.findall(
        r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", section.group(1) if section else "", re.MULTILINE
    ):
        found[name] = text
    return found


def _comments(schema: type[BaseModel]) -> dict[str, str]:
    """Comments at the fields of a class, from its source file."""
    source = Path(getsourcefile(schema) or "").read_text(encoding="utf-8")
    comments = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa")
    }
    tree = ast.parse(source)
    body = next(
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == schema.__name__
    ).body
    found: dict[str, str] = {}
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        inline = [comments[line][0] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
        above: list[str] = []
        line = node.lineno - 1
        while line in comments and comments[line][1]:
            above.insert(0, comments[line][0])
            line -= 1
        if text := " ".join(inline or above):
            found[node.target.id] = text
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(value, BaseModel):
        given = {
            name: getattr(value, name)
            for name, inner in type(value).model_fields.items()
            if not inner.is_required() and not isinstance(getattr(value, name), BaseModel)
        }
        compact = ", ".join(f"{name}: {_yaml(one)}" for name, one in given.items())
        return f"`{{{compact}}}`" if 0 < len(compact) <= 48 else "its defaults"
    return f"`{_yaml(value)}`"


def _yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_yaml(one) for one in value) + "]"
    if isinstance(value, float) and value >= 1e6:
        return f"{value:g}"
    return str(value)


def _type(field: FieldInfo) -> str:
    """A field's type in words, bounds included."""
    return _cell(_words(_whole(field)))


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for one in arguments[1:]:
            if isinstance(one, OneOf):
                classes = [one.registry.get(name) for name in one.registry.names()]
                return " or ".join(_words(schema) for schema in classes)
        return _words(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return " \\| ".join(f"`{one}`" for one in arguments).replace("\\|", "|")
    if origin in (Union, UnionType):
        parts = [_words(one) for one in arguments if one is not NoneType]
        unique = list(dict.fromkeys(parts))
        return " or ".join([*unique, *(["null"] if NoneType in arguments else [])])
    if origin in (tuple, list):
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"mapping of text to {_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {int: "integer", float: "number", str: "text", bool: "boolean"}
    return names.get(annotation, "any JSON value")


def _bounds(metadata: Any) -> str:
    """Bounds of a type as text, such as `, >= 1`."""
    found: list[str] = []
    for one in metadata:
        inner = one.metadata if isinstance(one, FieldInfo) else [one]
        for bound in inner:
            match bound:
                case Ge():
                    found.append(f">= {bound.ge}")
                case Gt():
                    found.append(f"> {bound.gt}")
                case Le():
                    found.append(f"<= {bound.le}")
                case Lt():
                    found.append(f"< {'2^63' if bound.lt == 2**63 else bound.lt}")
                case MultipleOf():
                    found.append(f"multiple of {bound.multiple_of}")
                case MinLen() | Len():
                    found.append("not empty")
                case MaxLen():
                    found.append(f"at most {bound.max_length} long")
    return f", {', '.join(found)}" if found else ""
