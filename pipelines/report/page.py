"""`blend report`: one self-contained HTML page of a run, without scripts, files beside it or network access.

The numbers come from the rows (`numbers`), the times from the run's manifest if there is one. The same rows give
the same page, except for its creation time.
"""

import glob
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import read_prompt
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.quality.evaluation import name_of
from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.quality.row_progress import with_progress
from llm_blender_ray.pipelines.report.costs import manifest_of
from llm_blender_ray.pipelines.report.numbers import Numbers, count
from llm_blender_ray.pipelines.report.parts import share
from llm_blender_ray.pipelines.report.quality import headline
from llm_blender_ray.pipelines.report.sections import missing, sections
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.storage import put
from llm_blender_ray.pipelines.rows.uris import filesystem

MAX_TEXT_LENGTH = 600  # characters of a text in an example


def write_report(
    uri: str,
    output: str | None = None,
    metrics: Sequence[Metric] | None = None,
    order_by: Metric | None = None,
) -> str:
    """Write the page of a file, folder or glob of rows, and show progress.

    Args:
        uri: The rows.
        output: Path of the page; None: beside the rows, `NAME.report.html`. Not inside a folder of them, which
            readers of Parquet folders take as a whole.
        metrics: See `Quality`.
        order_by: See `Quality`.

    Returns:
        Path of the page.

    Raises:
        BlendError: There are no files to read, the page cannot be written, or (for a glob, `.` or a bucket) it
            has no default path.
    """
    if output is None:
        if glob.has_magic(uri) or PurePosixPath(uri).name in ("", "..") or "/" not in filesystem(uri)[1]:
            raise BlendError(f"{uri}: has no name to put the page beside; give --output FILE.html")
        output = f"{uri.rstrip('/')}.report.html"
    numbers = count(with_progress(read_rows(uri), "report"), metrics=metrics, order_by=order_by)
    page = render_page(uri, numbers, manifest_of(uri), datetime.now(UTC))
    put(output, page.encode("utf-8", "replace"))
    return output


def render_page(uri: str, numbers: Numbers, manifest: Manifest | None, made: datetime) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=uri.rstrip("/").rsplit("/", 1)[-1] or uri,
        uri=uri,
        made=_time(made),
        facts=_facts(numbers),
        run=_run(manifest),
        missing=missing(numbers, manifest),
        sections=sections(numbers, manifest),
        examples=[_example(row) for row in numbers.examples],
        versions=manifest.versions if manifest else {},
        config=yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True) if manifest else None,
    )


def _facts(numbers: Numbers) -> list[tuple[str, str, str]]:
    """The key figures on top: label, value, note."""
    errors = numbers.errors.total
    facts = [("rows", f"{numbers.rows:,}", f"{numbers.fused:,} with a fused answer" if numbers.fused else "")]
    facts.append(("rows with an error", f"{errors:,}", share(errors, numbers.rows)))
    if numbers.models:
        answers = sum(model.answers for model in numbers.models.values())
        failed = sum(model.failed for model in numbers.models.values())
        facts.append(("LLMs", f"{len(numbers.models):,}", f"{answers:,} answers, {failed:,} failed"))
    if numbers.compared and 0 < numbers.forwards < numbers.full:
        saved = share(numbers.full - numbers.forwards, numbers.full)
        facts.append(("comparisons saved", saved, f"{numbers.forwards:,} made of {numbers.full:,}"))
    quality = headline(numbers)
    if quality is not None:
        facts.append(quality)
    return facts


def _run(manifest: Manifest | None) -> list[tuple[str, str]]:
    """The run's command, times, input and output."""
    if manifest is None:
        return []
    seconds = (manifest.finished - manifest.started).total_seconds()
    files, size = manifest.output.files, sum(file.bytes for file in manifest.output.files)
    sessions = f", in {manifest.sessions} sessions" if manifest.sessions > 1 else ""
    return [
        ("command", manifest.command),
        ("started", _time(manifest.started)),
        ("finished", f"{_time(manifest.finished)}, {_duration(seconds)} later{sessions}"),
        ("input", f"{manifest.input.uri}: {manifest.input.rows:,} rows, {manifest.input.bad:,} of them bad"),
        ("output", f"{manifest.output.uri}: {len(files):,} file{'s' * (len(files) != 1)}, {size / 1e6:,.1f} MB"),
        ("input's digest", manifest.input.digest),
    ]


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    instruction, given_input = read_prompt(row).texts()
    candidates, ranking = row["candidates"], row["ranking"] or []
    places = {index: place for place, index in enumerate(ranking, 1)}
    order = [*ranking, *(index for index in range(len(candidates)) if index not in places)]
    return {
        "id": _cut(row["id"], 80),
        "prompt": _cut("\n".join(text for text in (instruction, given_input) if text)),
        "reference": _cut(row["output"]) if row["output"] else None,
        "fused": _cut(row["fused"]) if row["fused"] is not None else None,
        "candidates": [
            {
                "name": name_of(candidates[index], index),
                "place": places.get(index),
                "taken": index in (row["fused_from"] or ()),
                "text": None if candidates[index]["text"] is None else _cut(candidates[index]["text"]),
                "error": candidates[index]["error"],
            }
            for index in order
        ],
    }


def _cut(text: str, most: int = MAX_TEXT_LENGTH) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"
