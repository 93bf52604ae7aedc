"""The service's Serve config, as `blend deploy --print` writes it, and why an application did not start."""

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from llm_blender_ray.configs.loading import PRESETS, load, load_mapping
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.cli.commands import app
from llm_blender_ray.pipelines.serve.serve_config import failed_part

DEMO = PRESETS / "demo.yaml"


def printed(*arguments: str) -> ServeDeploySchema:
    done = CliRunner().invoke(app, ["deploy", str(DEMO), "--print", *arguments])
    assert done.exit_code == 0, done.output
    return ServeDeploySchema.model_validate(yaml.safe_load(done.stdout))


def test_the_printed_config_holds_the_whole_blend(tmp_path: Path) -> None:
    written = printed("--port", "8123", "--set", "serve.deadline_s=20", "--set", "ray.address=elsewhere:6379")
    assert (written.http_options.port, written.http_options.request_timeout_s) == (8123, 25)
    (application,) = written.applications
    there = load_mapping(application.args["config"], BlendConfig, name="config", folder=tmp_path)
    assert there == load(DEMO, BlendConfig, ["serve.deadline_s=20", "ray={num_cpus: 2}"])


def test_equal_configs_are_equal_arguments_and_others_are_not() -> None:
    assert printed() == printed()
    assert printed().applications[0].args != printed("--set", "fuser.top_k=2").applications[0].args


def test_the_first_part_that_failed_is_named_with_its_error() -> None:
    trace = "The deployment failed to start 2 times:\n\nTraceback ...\nllm.errors.ModelLoadError: no weights\n"
    parts = [("a", "HEALTHY", ""), ("b", "DEPLOY_FAILED", trace), ("c", "DEPLOY_FAILED", "later")]
    assert failed_part(parts) == "b: no weights"
    assert failed_part(parts[:1]) is None
