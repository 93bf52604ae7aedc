"""The `blend` command: what it imports for a list of its commands, and for a refusal."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

SLOW = ("ray", "torch", "transformers", "pandas", "pyarrow.dataset", "matplotlib", "huggingface_hub", "vllm")
# Runs each command that is given, then prints the exit codes and the slow modules that were imported.
PROGRAM = f"""
import json, sys
from llm_blender_ray.pipelines.cli.commands import main
codes = []
for arguments in json.load(sys.stdin):
    sys.argv = ["blend", *arguments]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps({{"codes": codes, "imported": [name for name in {SLOW} if name in sys.modules]}}))
"""
FILES = {
    "in.jsonl": '{"instruction": "Hi"}\n',
    "adapter/adapter_config.json": "{}",
    "empty/notes.txt": "",
    "multimodal/config.json": '{"model_type": "llava_of_ours", "vision_config": {"layers": 1}}',
    "model.gguf": "GGUF",
}


def test_the_list_of_commands_needs_no_tables() -> None:
    program = "import sys, llm_blender_ray.pipelines.cli.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert "typer" in imported and not {"pyarrow", "numpy", *SLOW} & set(imported)


def test_a_refused_command_imports_nothing_slow(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def config(model: str, engine: str = "transformers", **settings: object) -> str:
        llm = {"name": "a", "model": str(tmp_path / model), "engine": engine, **settings}
        path = tmp_path / f"{model}-{len(settings)}.yaml"
        path.write_text(yaml.safe_dump({"models": [llm], "ranker": {"kind": "echo"}}))
        return str(path)

    places = ("--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"))
    refused = [
        (["run", config("adapter"), *places], 1, "a PEFT adapter of another model"),
        (["run", config("empty"), *places], 1, "no config.json in it"),
        (["run", config("multimodal"), *places], 1, "a multimodal model (llava_of_ours"),
        (["run", config("model.gguf", "vllm"), *places], 1, "give the file itself to engine: transformers"),
        (["run", config("empty", "vllm", engine_args={"no_such": 1}), *places], 2, "no argument no_such"),
        (["run", config("adapter"), "--input", str(tmp_path / "none.jsonl"), *places[2:]], 1, "no such file"),
        (["rank", "--ranker", str(tmp_path / "empty"), *places], 1, "no config.json in it"),
        (["fuse", "--fuser", str(tmp_path / "empty"), *places], 1, "no config.json in it"),
        (["train", "ranker", str(tmp_path / "none.yaml")], 2, "none.yaml"),
        (["train", "fuser", str(tmp_path / "none.yaml")], 2, "none.yaml"),
        (["serve", config("adapter")], 1, "a PEFT adapter of another model"),
        (["serve", config("adapter"), "--host", "0.0.0.0"], 2, "needs API keys"),
        (
            ["deploy", config("adapter")],
            2,
            "give --address, the cluster's dashboard (http://HOST:8265), or --print",
        ),
        (["deploy", str(tmp_path / "none.yaml"), "--print"], 2, "none.yaml"),
        (["key", "a name"], 2, "a key's name has 1 to 64 letters"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([arguments for arguments, _, _ in refused]),
        env={
            name: value
            for name, value in os.environ.items()
            if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        },
        capture_output=True,
        text=True,
        check=True,
    )
    for (_, _, told), line in zip(refused, done.stderr.splitlines(), strict=True):
        assert told in line
    assert json.loads(done.stdout) == {"codes": [code for _, code, _ in refused], "imported": []}


def test_the_version_is_that_of_the_installed_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_blender_ray", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"blend {version('llm-blender-ray')}\n"
