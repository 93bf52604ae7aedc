"""Every run starts with this check, on a machine that has the weights."""

import subprocess
import sys

from llm_blender_ray.configs.loading import PRESETS


def test_safetensors_are_checked_without_what_would_load_them() -> None:
    script = f"""
import sys
from llm_blender_ray.actors.weight_checks import check_weights
check_weights({str(PRESETS / "miniature" / "ranker")!r})
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
