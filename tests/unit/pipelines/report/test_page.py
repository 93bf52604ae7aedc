"""The page as a browser would get it: whole, alone, with what rows hold as text and nothing else."""

import json
import random
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bulk.manifest import InputRecord, Manifest, OutputRecord, StageRecord
from llm_blender_ray.pipelines.quality.evaluation import evaluate_uri, main
from llm_blender_ray.pipelines.quality.judge_bias import bias_lines
from llm_blender_ray.pipelines.quality.metrics import read_metric
from llm_blender_ray.pipelines.report.costs import cost_of, manifest_of
from llm_blender_ray.pipelines.report.numbers import count
from llm_blender_ray.pipelines.report.page import render_page, write_report
from llm_blender_ray.pipelines.report.plots import short
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.writers import FileRecord

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</text></svg><img src=http://x.example/a.png onerror=alert(1)>",
    "$\\frac{x}{y}$ {{ 7777*9 }}",
    "a\nb\u202etxt\x07",
    "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8-with-a-long-name",
    "模型",
)


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps tags, attributes, ids and texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.ids, self.texts, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def checked(text):
    """The page, which needs and starts nothing."""
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "embed", "foreignobject", "base"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#")
            assert value[1:] in page.ids
    assert "url(#" not in text or all(part.split(")")[0] in page.ids for part in text.split("url(#")[1:])
    assert "@import" not in text
    return page


def written(folder, rows, name="run.jsonl"):
    file = folder / name
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def made(folder, rows):
    """The page of rows without a manifest."""
    return checked(render_page("run", count(read_rows(written(folder, rows))), None, NOON))


def blended(models, rows=30, seed=0):
    """Rows of a whole blend with everything a row can have."""
    chance = random.Random(seed)
    n = len(models)
    for number in range(rows):
        texts = [f"1) {chance.choice('abc')}" + " and more" * chance.randrange(3) for _ in models]
        order = chance.sample(range(n), n)
        yield {
            "id": f"row-{number}",
            "prompt": f"Which? {models[0]}",
            "output": "1) a",
            "candidates": [
                {
                    "model": name,
                    "text": text,
                    "finish_reason": "stop",
                    "completion_tokens": 3,
                    "scores": {"s": chance.random()},
                }
                for name, text in zip(models, texts, strict=True)
            ],
            "ranking": order,
            "scores": [-float(order.index(i)) for i in range(n)],
            "comparisons": n,
            "logits": [[None if i == j else chance.gauss(0, 1) for j in range(n)] for i in range(n)],
            "fused": f"1) {chance.choice('ab')}",
            "fused_from": order[:3],
            "error": f"fusing failed: {models[0]} {number}" if number % 10 == 9 else None,
        }


def manifest(rows=30, **stage):
    ranker = StageRecord(
        name="ranker", kind="rank", runs="m/r", wave=0, replicas=2, rows=rows, failed=0, seconds=8, both_orders=40,
        agreeing=30,
    )  # fmt: skip
    one = {"name": "tiny", "kind": "generate", "runs": "m/t", "wave": 0, "replicas": 1, "rows": rows, "failed": 1}
    generate = StageRecord(**{**one, "seconds": 4.0, "prompt_tokens": 90, "completion_tokens": 600, **stage})
    return Manifest(
        command="blend run <config>",
        started=NOON - timedelta(hours=1, minutes=2),
        finished=NOON,
        sessions=2,
        config={"models": [{"name": "tiny", "system_prompt": "</pre><b>"}]},
        versions={"python": "3.11", "ray": "2.60.0"},
        input=InputRecord(uri="in.jsonl", rows=rows, bad=0, digest="d"),
        output=OutputRecord(
            uri="out", rows=rows, errors=0, files=(FileRecord(path="p", rows=rows, bytes=9, sha256="s"),)
        ),
        stages=(generate, ranker),
        errors={},
    )


def test_a_whole_run(tmp_path):
    uri = written(tmp_path, blended(["alder", "birch", "cedar"]))
    text = render_page(uri, count(read_rows(uri)), manifest(), NOON)
    page = checked(text)
    for heading in (
        "Quality against references",
        "Quality by given score: s",
        "Who wins",
        "Comparisons",
        "Length of the answers",
        "Errors and ends",
        "Time and tokens",
        "Examples",
        "Versions and settings",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert page.tags.count("svg") == 4 + 1 + 2 + 1 + 2  # metrics, score, ranking, lengths, stages
    alts = [value for name, value in page.attributes if name == "aria-label"]
    assert len(alts) == page.tags.count("svg")
    assert all(len(alt) > 20 for alt in alts)
    assert "What this page lacks" not in text
    for told in (
        "30 30 with a fused answer",
        "1 h 2 min later, in 2 sessions",
        "fusing failed: alder N 3 10.0% fusing failed: alder 9",
        "generate m/t 0 1 30 1 4.0 7.5 90 600 150.0",
        "ray 2.60.0.",
        "system_prompt: </pre><b>",
        "The blend is",
    ):
        assert told in page.text
    assert text == render_page(uri, count(read_rows(uri)), manifest(), NOON)


def test_what_a_blend_costs_beside_its_best_single_model(tmp_path, capsys):
    uri = written(tmp_path, blended(["tiny", "birch"]))
    numbers = count(read_rows(uri))
    page = checked(render_page(uri, numbers, manifest(), NOON))
    assert "Cost" not in page.text
    stages = [
        stage.model_copy(update={"cost_usd": usd}) for stage, usd in zip(manifest().stages, (0.3, 0.6), strict=True)
    ]
    best = min(numbers.models, key=lambda name: numbers.models[name].rank.value)
    stages[0] = stages[0].model_copy(update={"name": best})
    priced = manifest().model_copy(update={"stages": tuple(stages), "unpriced": ("far",)})
    page = checked(render_page(uri, numbers, priced, NOON))
    assert "The run cost $0.9: $0.03 a row." in page.text
    assert f"is {best}, whose answers alone cost $0.3: the blend cost 3.0 times that." in page.text
    assert "Not in these amounts: far, whose price is unknown." in page.text
    assert cost_of(uri) is None
    work = Path(Output(uri).work_folder)
    work.mkdir(parents=True)
    (work / "manifest.json").write_text(priced.json_text())
    main(uri, cost_of=cost_of)
    *_, told = capsys.readouterr().out.splitlines()
    assert told in page.text and told.startswith("The run cost $0.9: ") and told.endswith("price is unknown.")
    main(uri, as_json=True, cost_of=cost_of)
    known = {"usd": pytest.approx(0.9), "usd_per_row": pytest.approx(0.03), "best_model": best}
    rest = {"best_model_usd": 0.3, "unpriced": ["far"], "incomplete": []}
    assert json.loads(capsys.readouterr().out)["cost"] == known | rest
    (work / "manifest.json").write_text(manifest().json_text())  # nothing has a price
    main(uri, as_json=True, cost_of=cost_of)
    assert "cost" not in json.loads(capsys.readouterr().out)


def test_what_is_in_the_manifest_and_not_in_rows(tmp_path):
    rows = [
        {"prompt": "p", "candidates": [{"model": m, "text": m} for m in "ab"], "ranking": [0, 1]} for _ in range(3)
    ]
    uri = written(tmp_path, rows)
    numbers = count(read_rows(uri))
    page = checked(render_page(uri, numbers, manifest(seconds=0.0), NOON))
    assert "both orders prefer the same answer (ranker) 75.0%" in page.text
    assert "The manifest counts 30 rows, 3 were read" in page.text
    assert "generate m/t 0 1 30 1 0.0 90 600" in page.text  # no rate without seconds
    assert "No agreement of both orders" in checked(render_page(uri, numbers, None, NOON)).text


def test_what_comes_from_rows_stays_text(tmp_path):
    rows = [
        {
            **row,
            "fused": HOSTILE[0],
            "error": HOSTILE[1] if index % 2 else None,
            "candidates": [{**one, "text": HOSTILE[index % 4]} for one in row["candidates"]],
        }
        for index, row in enumerate(blended(HOSTILE, rows=8))
    ]
    page = made(tmp_path, rows)
    for name in HOSTILE:
        assert " ".join(name.replace("\x07", "").split()) in page.text.replace("\x07", "")
    assert "69993" not in page.text  # {{ 7777*9 }}


def test_names_as_labels():
    assert short("alder") == "alder"
    assert short("org/a-name-of-20-chars.") == "a-name-of-20-chars."
    assert len(short("x" * 100)) == 20
    assert short("a-very-long-name-that-ends-in-seed-1") != short("a-very-long-name-that-ends-in-seed-2")
    assert short(" a\nb\x00\u202e ") == "a b"
    assert short("") == short("\n") == "(no name)"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "There are no rows."),
        ([{"prompt": "p"}], "No LLMs: no row has candidates"),
        ([{"prompt": 1}, {"prompt": 2}, []], "prompt: expected text, got int 2 66.7%"),
        ([{"prompt": "p", "candidates": [{"model": "a", "error": "lost"}], "error": "none"}], "a lost 1 100.0%"),
        ([{"prompt": "p", "candidates": [{"model": "a", "text": ""}]}], "No ranking: no row"),
        ([{"prompt": "p", "fused": "x", "output": "y"}], "1 with a fused answer"),
        ([{"prompt": "p", "fused": "x", "candidates": [{"text": "x"}], "output": "y"}] * 2, "candidate 1"),
    ],
    ids=["empty", "no candidates", "all bad", "all failed", "not ranked", "only fused", "no names"],
)  # fmt: skip
def test_rows_that_tell_little_make_a_page_too(tmp_path, rows, told):
    assert told in made(tmp_path, rows).text


@pytest.mark.parametrize("n", [1, 2, 25])
def test_few_and_many_llms(tmp_path, n):
    names = [f"llm-{i}" for i in range(n)]
    page = made(tmp_path, blended(names, rows=4))
    told = page.text.partition("Examples")[0]
    assert sum(f" {name} " in told for name in names) == min(n, 24)
    assert ("Of 25 LLMs the 24" in page.text) == (n == 25)
    assert ("Who beats whom" in page.text) == (n > 1)


def test_the_page_lies_beside_the_rows(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    one = written(folder, [{"prompt": "p"}], "part-0.jsonl")
    assert write_report(one) == f"{one}.report.html"
    assert write_report(f"{folder}/") == f"{folder}.report.html"
    elsewhere = str(tmp_path / "pages" / "index.html")
    assert write_report(f"{folder}/*.jsonl", elsewhere) == elsewhere
    for file in (f"{one}.report.html", f"{folder}.report.html", elsewhere):
        checked(Path(file).read_text("utf-8"))
    for nameless in (f"{folder}/*.jsonl", ".", "..", "s3://bucket/"):
        with pytest.raises(BlendError, match="give --output"):
            write_report(nameless)
    with pytest.raises(BlendError, match="no such file"):
        write_report(str(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize("name", ["out", "run.jsonl"])
def test_the_manifest_of_a_folder_and_of_a_file(tmp_path, name):
    uri = str(tmp_path / name)
    assert manifest_of(uri) is None
    work = Path(Output(uri).work_folder)
    work.mkdir(parents=True)
    (work / "manifest.json").write_text(manifest().json_text())
    assert manifest_of(uri) == manifest()
    (work / "manifest.json").write_text('{"format": 99}')
    assert manifest_of(uri) is None
    assert manifest_of(str(tmp_path / "*")) is None


def test_calls_and_tokens_of_a_stage_and_what_they_lack(tmp_path):
    uri = written(tmp_path, blended(["alder", "birch"]))
    whole = {"calls": 31, "cached_prompt_tokens": 40, "reasoning_tokens": 500}
    page = checked(render_page(uri, count(read_rows(uri)), manifest(**whole), NOON))
    assert "generate m/t 0 1 30 1 4.0 7.5 31 90 40 600 500 150.0" in page.text
    assert "lower bound" not in page.text and "earlier version" not in page.text
    lacking = manifest(**whole, unreported_calls=2, uncounted=7)
    page = checked(render_page(uri, count(read_rows(uri)), lacking, NOON))
    assert "2 calls came without token counts" in page.text and "7 results of an earlier version" in page.text


def test_the_page_has_the_numbers_of_evaluate(tmp_path: Path) -> None:
    """Long answers have an exact match of 0: the page ordered by ROUGE-L and `evaluate` by that 0."""
    candidates = [
        {"model": f"m{i}", "text": text} for i, text in enumerate(("the cat", "a dog sat", "the cat sat"))
    ]
    row = {"prompt": "p", "output": "the cat sat on it", "candidates": candidates, "ranking": [2, 0, 1]}
    uri = str(tmp_path / "long.jsonl")
    Path(uri).write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(3)))
    for metrics in (None, [read_metric("rouge_2"), read_metric("rouge_l:stemmer=true")]):
        report = evaluate_uri(uri, metrics=metrics)
        leading = report["references"][report["order_by"]]
        page = Page(render_page(uri, count(read_rows(uri), metrics=metrics), None, NOON))
        start = page.texts.index("best candidate (oracle)")
        for name, model in leading["models"].items():
            cells = page.texts[page.texts.index(name, start) :]
            line = [text.strip() for text in cells if text.strip()][: len(report["references"]) + 3]
            shown = {text.split(" ")[0] for text in line}
            assert {f"{model['rank']:.2f}", f"{100 * model['best_share']:.1f}", f"{model['mean']:.3f}"} <= shown


def test_judgements_are_a_section_with_the_numbers_of_evaluate(tmp_path: Path) -> None:
    """a beats b on 16 of 20 rows: better. b and c beat each other in turn: nothing holds."""
    lines = [
        {
            "id": str(at),
            "instruction": f"p {at}",
            "candidates": [{"model": name, "text": name} for name in "abc"],
            "cmp_results": {
                "a,b": "A is better" if at % 5 else "B is better",
                "b,c": "A is better" if at % 2 else "B is better",
                "a,c": "Same good",
            },
        }
        for at in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = checked(Path(write_report(str(tmp_path / "rows.jsonl"), None)).read_text()).text
    table = evaluate_uri(str(tmp_path / "rows.jsonl"))["judgements"]["table"]
    a = table["systems"]["a"]
    assert f"{a['strength']['elo']:.0f} [{a['strength']['elo_low']:.0f}, {a['strength']['elo_high']:.0f}]" in text
    assert "60 judgements of 20 rows, by cmp_results (60)" in text
    assert {one["better"] for one in table["differences"]} == {"a", None}
    assert "a is better than b." in text and "b is better" not in text and "c is better" not in text
    assert "No quality" not in text


def test_biases_of_llm_judges_are_those_of_evaluate(tmp_path: Path) -> None:
    lines = [
        {
            "id": str(at),
            "instruction": f"p {at}",
            "candidates": [{"model": name, "text": name * size} for name, size in (("a", 1), ("b", 2))],
            "judgements": [
                {"judge": "gpt", "left": left, "right": 1 - left, "preferred": "left" if at % 3 else "tie"}
                for left in (0, 1)
            ],
        }
        for at in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = checked(Path(write_report(str(tmp_path / "rows.jsonl"), None)).read_text()).text
    (gpt,) = bias_lines(evaluate_uri(str(tmp_path / "rows.jsonl"))["judges"])
    assert gpt[:2] == ("gpt", "24") and gpt[2].startswith("33.3 ["), "the ties agree in both orders"
    assert " ".join(cell for cell in gpt if cell) in " ".join(text.split())
