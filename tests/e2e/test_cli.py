"""The `blend` command as a user runs it: its exit code, its two streams, its files.

`blend` is a process, `blend_here` the same command in this one: a process that loads models takes seconds to start.
"""

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import InProcess
from paths import GOLDEN

from llm_blender_ray.configs.loading import PRESETS

RANKER = str(GOLDEN / "checkpoints" / "PairRM-hf")
FUSER = str(GOLDEN / "checkpoints" / "gen_fuser")
CASES = json.loads((GOLDEN / "pairranker.json").read_text())["cases"]


def blend(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "llm_blender_ray", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=GOLDEN.parent.parent,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def write_rows(file: Path, *rows: dict) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def candidates(*texts: str | None) -> list[dict]:
    return [{"model": f"m{i}", "text": text} for i, text in enumerate(texts)]


def printed_and_imported(*args: str) -> tuple[str, str]:
    """What a command prints, and which of the slow packages it imports."""
    code = f"import sys; sys.argv = {['blend', *args]}\nfrom llm_blender_ray.pipelines.cli.commands import main\n"
    code += "try:\n    main()\nfinally:\n"
    code += "    print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=GOLDEN.parent.parent)
    printed, imported = done.stdout.rstrip().rsplit("\n", 1)
    return printed, imported


def test_help_needs_neither_torch_nor_ray() -> None:
    printed, imported = printed_and_imported("--help")
    assert imported == "[]"
    for command in ("run", "rank", "fuse", "compare", "plan", "train", "evaluate"):
        assert command in printed


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "Missing command"),
        (["nonsense"], "nonsense"),
        (["rank", "--ranker", "x"], "--input"),
        (["run", "none.yaml"], "none.yaml: can't be read"),
        (["run", PRESETS / "demo.yaml", "--input", "x"], "no output"),
        (["run", PRESETS / "demo.yaml", "--set", "limit=many"], "limit: expected a valid integer"),
        (["run", PRESETS / "demo.yaml", "--limit", "0"], "--limit"),
        (["rank", "--ranker", "x", "--input", "i", "--output", "o", "--strategy", "magic"], "--strategy"),
        (["rank", "--ranker", "x", "--input", "i", "--output", "o", "--strategy", "swiss:turns=2"], "'turns'"),
        (["rank", "--ranker", "x", "--input", "i", "--output", "o", "--cache", "s3://b/c"], "--cache"),
        (["rank", "--ranker", "x", "--input", "i", "--output", "o", "--kind", "oracle"], "unknown kind"),
        (["rank", "--ranker", "x", "--input", "i", "--output", "o", "--dtype", "int3"], "--dtype"),
        (["fuse", "--fuser", "x", "--input", "i", "--output", "o", "--top-k", "0"], "--top-k"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(args: list, told: str, blend_here: InProcess) -> None:
    done = blend_here(*args, code=2)
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_a_process_ends_with_the_code_of_its_command() -> None:
    done = blend("run", "none.yaml", code=2)
    assert done.stderr.startswith("blend: none.yaml: can't be read") and not done.stdout


def test_config_mistakes_are_a_line_each(tmp_path: Path, blend_here: InProcess) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("models: [{name: a, engine: endpoint}]\nranker: {modle: x}\n")
    lines = blend_here("plan", config, code=2).stderr.splitlines()
    assert [line.split(": ", 2)[2] for line in lines] == [
        "models.0.model: required, but missing",
        "models.0.base_url: required, but missing",
        "ranker.model: required, but missing",
        "ranker.modle: unknown setting",
    ]


@pytest.mark.usefixtures("ray_session")
def test_rank_fuse_compare_evaluate(tmp_path: Path, blend_here: InProcess) -> None:
    """A user's files through the commands, one after the other."""
    golden = [case for case in CASES if "error" not in case and len(case["candidates"]) < 6][:2]
    given = write_rows(
        tmp_path / "in.jsonl",
        *(
            {"id": f"g{i}", "instruction": case["instruction"], "input": case["input"], "extra field": [i],
             "candidates": candidates(*case["candidates"]), "output": case["candidates"][0]}
            for i, case in enumerate(golden)
        ),
        {"id": "two", "prompt": "Which?", "candidates": candidates("a long answer", "none")},
        {"id": "same", "prompt": "Which?", "candidates": candidates("equal", "equal")},
        {"id": "bad", "prompt": "Which?", "candidates": "none"},
    )  # fmt: skip

    ranked = tmp_path / "ranked.jsonl"
    pairs = ("--preferences", tmp_path / "pairs.jsonl", "--pair-column", "output", "--pair-column")
    command = ("rank", "--ranker", RANKER, "--input", given, "--output", ranked, "--matrix", *pairs)
    refused = blend_here(*command, "fild", code=1).stderr
    assert "preferences.columns: the rows have no column fild; they have " in refused and not ranked.exists()
    done = blend_here(*command, "extra field")
    assert "5 rows, 1 of them with an error" in done.stderr
    carried = [(pair["id"], pair["extra field"], pair["output"]) for pair in read_rows(tmp_path / "pairs.jsonl")]
    assert carried == [
        *((f"g{i}", [i], case["candidates"][0]) for i, case in enumerate(golden)),
        ("two", None, None),
    ]
    rows = read_rows(ranked)
    assert [row["id"] for row in rows] == ["g0", "g1", "two", "same", "bad"]
    for i, row in enumerate(rows[:2]):
        n = len(row["candidates"])
        assert sorted(row["ranking"]) == list(range(n))
        assert row["comparisons"] == sum(x is not None for line in row["logits"] for x in line) == n * (n - 1)
        assert row["extra field"] == [i]
    assert rows[3]["scores"] == [0.0, 0.0]
    assert rows[4]["error"] and rows[4]["ranking"] is None
    assert "logits" in rows[0] and "fused" not in rows[0]

    assert (
        "exists already, made with another config"
        in blend_here("rank", "--ranker", RANKER, "--input", given, "--output", ranked, code=1).stderr
    )

    fused = tmp_path / "fused"
    blend_here("fuse", "--fuser", FUSER, "--input", ranked, "--output", fused, "--top-k", 2, "--num-beams", 1,
               "--max-new-tokens", 4)  # fmt: skip
    table = pq.read_table(fused).to_pylist()
    assert [row["fused_from"] for row in table[:2]] == [row["ranking"][:2] for row in rows[:2]]
    assert all(isinstance(row["fused"], str) for row in table[:4])
    assert table[4]["error"] == rows[4]["error"]

    compared = tmp_path / "compared.jsonl"
    blend_here("compare", "--ranker", RANKER, "--input", given, "--output", compared)
    by_id = {row["id"]: row for row in read_rows(compared)}
    assert by_id["two"]["preference"] == int(by_id["two"]["margin"] < 0)
    assert (by_id["same"]["margin"], by_id["same"]["preference"]) == (0.0, None)
    assert "expected two" in next(row for row in by_id.values() if len(row["candidates"]) > 2)["error"]

    report = json.loads(blend("evaluate", fused, "--json").stdout)
    assert report["rows"] == 5 and report["references"]["exact"]["rows"] == 2
    assert "ranker's choice" in blend_here("evaluate", fused).stdout


@pytest.mark.usefixtures("ray_session")
def test_rank_with_a_strategy_a_cache_and_a_config(tmp_path: Path, blend_here: InProcess) -> None:
    given = [
        {"instruction": case["instruction"], "input": case["input"], "candidates": candidates(*case["candidates"])}
        for case in CASES
        if len(set(case["candidates"])) == len(case["candidates"]) >= 6
    ][:4]
    rows = write_rows(tmp_path / "in.jsonl", *given)
    config = tmp_path / "ranker.yaml"
    config.write_text(f"models: nothing of interest here\nranker: {{model: {RANKER}, device: cpu}}\n")
    common = ("--input", rows, "--cache", tmp_path / "cache", "--dtype", "float32")
    blend_here("rank", "--ranker", config, "--output", tmp_path / "1.jsonl", "--top-k", 2, "--matrix", *common)
    first = read_rows(tmp_path / "1.jsonl")
    for row in first:
        n = len(row["candidates"])
        compared = sum(logit is not None for line in row["logits"] for logit in line)
        assert row["error"] is None and row["comparisons"] == compared < n * (n - 1)
        assert [row["scores"][i] for i in row["ranking"]] == sorted(row["scores"], reverse=True)
    knockout = ("--ranker", RANKER, "--top-k", 1, "--strategy", "knockout:orders=both", *common)
    blend_here("rank", "--output", tmp_path / "2.jsonl", "--replicas", 2, *knockout)
    blend_here("rank", "--output", tmp_path / "3.jsonl", "--replicas", 1, *knockout)
    second, third = read_rows(tmp_path / "2.jsonl"), read_rows(tmp_path / "3.jsonl")
    assert all(row["error"] is None for row in second)
    assert [row["comparisons"] for row in third] == [0] * len(given)
    assert [row["ranking"] for row in third] == [row["ranking"] for row in second]


@pytest.mark.usefixtures("ray_of_commands")
def test_what_is_not_there_is_one_line_and_exit_1(tmp_path: Path, blend_here: InProcess) -> None:
    given = write_rows(tmp_path / "in.jsonl", {"prompt": "x", "candidates": candidates("a", "b")})
    output = tmp_path / "out.jsonl"
    done = blend("rank", "--ranker", tmp_path / "no-ranker", "--input", given, "--output", output, code=1)
    told = [
        line for line in done.stderr.splitlines() if not line.startswith("rank | ")
    ]  # progress of a slow machine
    assert told == [f"blend: {tmp_path / 'no-ranker'}: no such folder"]
    assert not done.stdout
    done = blend_here("rank", "--ranker", RANKER, "--input", tmp_path / "no-rows.jsonl", "--output", output, code=1)
    assert "no-rows.jsonl" in done.stderr.splitlines()[-1]
    assert "nothing to evaluate" in blend_here("evaluate", given.parent / "in.jsonl", code=1).stderr
    assert not output.exists()


def test_plan_shows_and_refuses(blend_here: InProcess) -> None:
    printed, imported = printed_and_imported("plan", str(PRESETS / "demo.yaml"))
    assert imported == "['ray']"
    for name in ("alder", "rowan", "ranker", "fuser", "0.1"):
        assert name in printed
    done = blend_here("plan", PRESETS / "three-models.yaml", "--gpus", 5)
    assert "fits" in done.stdout
    done = blend_here("plan", PRESETS / "three-models.yaml", "--gpus", 2)
    assert "3 waves, one after the other: qwen + mistral, then llama + ranker, then fuser." in done.stdout
    done = blend_here("plan", PRESETS / "three-models.yaml", "--gpus", 0, code=1)
    assert done.stderr.startswith("blend: qwen needs 1 GPU, beside 1 CPU for reading: the cluster has 0 GPU ")
    assert len(done.stderr.splitlines()) == 1


def test_environment_of_a_local_ray_stays_on_this_machine() -> None:
    code = (
        "from llm_blender_ray.cluster.session import session\n"
        "from llm_blender_ray.configs.schema import RayCluster\n"
        "import ray, socket, psutil\n"
        "with session(RayCluster(num_cpus=1)):\n"
        "    import os\n"
        "    mine = {p.pid for p in psutil.Process().children(recursive=True)} | {os.getpid()}\n"
        "    sockets = [c for c in psutil.net_connections('inet') if c.status == 'LISTEN' and c.pid in mine]\n"
        "    print(*{c.laddr.ip for c in sockets})\n"
        "    print(ray.get(ray.remote(lambda: os.environ['RAY_USAGE_STATS_ENABLED']).remote()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=GOLDEN.parent.parent, env=dict(os.environ)
    )
    *addresses, usage = done.stdout.split()
    assert addresses and usage == "0", done.stdout + done.stderr
    for address in map(ipaddress.ip_address, addresses):
        assert (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_missing_key_variables_are_told_before_anything_starts(tmp_path: Path, blend_here: InProcess) -> None:
    def endpoint(name: str, variable: str) -> str:
        return f"{{name: {name}, engine: endpoint, model: m, base_url: 'http://h/v1', api_key_env: {variable}}}"

    judge = f"ranker: {{kind: judge, llm: {endpoint('judge', 'NO_KEY_2')}}}\n"
    config = tmp_path / "c.yaml"
    config.write_text(f"models: [{endpoint('a', 'NO_KEY_1')}]\n{judge}")
    rows = write_rows(tmp_path / "in.jsonl", {"prompt": "p", "candidates": candidates("x", "y")})
    io = ("--input", rows, "--output", tmp_path / "out.jsonl")
    told = "NO_KEY_1 (for a), NO_KEY_2 (for judge)"
    for command in (("plan", config), ("run", config, *io), ("serve", config)):
        assert told in blend_here(*command, code=1).stderr
    assert "not set: NO_KEY_2 (for judge)" in blend_here("rank", "--ranker", config, *io, code=1).stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))] == []
