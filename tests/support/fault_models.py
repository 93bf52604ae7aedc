"""One of the miniature's LLMs with code of its own, which ends the process that runs it."""

import json
import shutil
from pathlib import Path
from typing import Literal

from llm_blender_ray.configs.loading import PRESETS

POISON = "Ω"
_LAST_BYTE = "©"  # how byte-level BPE writes the last of its two bytes; no other text in these tests has it
_CODE = '''
import os

from transformers import LlamaForCausalLM


class Dying(LlamaForCausalLM):
    """A Llama that ends its process without a word, as the kernel does to one that takes too much memory."""

    def __init__(self, config):
        super().__init__(config)
        if config.dies == "loading":
            os._exit(137)

    def forward(self, input_ids=None, **others):
        if self.config.dies == "working" or (input_ids == self.config.poison).any():
            os._exit(137)
        return super().forward(input_ids=input_ids, **others)
'''


def save_dying_model(folder: Path, dies: Literal["loading", "working", "on poison"]) -> Path:
    """A folder for `trust_remote_code`; on poison: when POISON is in a prompt."""
    shutil.copytree(PRESETS / "miniature" / "rowan", folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    config = json.loads((folder / "config.json").read_text())
    config |= {"dies": dies, "poison": vocabulary[_LAST_BYTE], "auto_map": {"AutoModelForCausalLM": "dying.Dying"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "dying.py").write_text(_CODE)
    return folder
