"""The forward with packed attention against transformers', for DeBERTa variants: JSON of the largest differences.

Run with TRITON_INTERPRET=1, set before triton is imported: the kernel then runs on a CPU, in Python.
"""

import json
import sys

import torch
from deberta_models import POSITIONS, VARIANTS, config, own, random_model, sequences
from transformers import DebertaV2Model

from llm_blender_ray.actors.pairrm import packed_attention
from llm_blender_ray.actors.pairrm.deberta import marker_encoder


def main() -> None:
    """Print one line."""
    packed_attention.has_kernel = lambda *_: True
    differences = {}
    for name in sys.argv[1:]:
        model = random_model(DebertaV2Model(config(**VARIANTS[name])))
        longest = POSITIONS if model.config.position_biased_input else 3 * POSITIONS + 1
        ids, markers = sequences([17, longest, 1, 40, 17])
        expected = own(model, ids, markers)
        packed = marker_encoder(model, device=torch.device("cpu"), dtype=torch.float32)
        differences[name] = (packed.at_markers(ids, markers) - expected).abs().max().item()
    print(json.dumps(differences))


if __name__ == "__main__":
    main()
