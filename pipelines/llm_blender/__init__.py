"""Drop-in for the original package (llm-blender 0.0.2, no longer maintained), on this project's ranker and fuser.

    from llm_blender_ray.pipelines.llm_blender import Blender        # was: from llm_blender import Blender

Methods, arguments and numbers are the original's, as it gives them for one row at a time. Differences:

- A row's result depends on that row alone, and rows may have different numbers of candidates. Where the original
  returns one array of shape [rows, n], rows of different lengths are returned as a list of arrays, one per row.
- Texts are text: what spells a marker or a special token is read as characters. Equal texts share a score.
- An input too long for the fuser loses text of its prompt; the original drops the candidates.
- No rows give an empty result. Wrong arguments raise ValueError, a missing ranker or fuser BlendError, where the
  original asserts, or warns and returns None. Nothing is printed; progress goes to the logger of this package.
- Bubble sort always starts from the same order, and `return_all` is fully sorted.
- The default device is the GPU if there is one, else the CPU, where both models are float32. Any torch device
  is accepted (`cuda:1`, `mps`).
- `batch_size` of ranking methods, `use_tqdm` and `disable_tqdm` are accepted and have no effect: the number of
  pairs in a forward follows from their tokens.
"""

from llm_blender_ray.pipelines.llm_blender.arguments import get_topk_candidates_from_ranks
from llm_blender_ray.pipelines.llm_blender.blender import Blender
from llm_blender_ray.pipelines.llm_blender.configs import BlenderConfig, GenFuserConfig, RankerConfig

__all__ = ["Blender", "BlenderConfig", "GenFuserConfig", "RankerConfig", "get_topk_candidates_from_ranks"]
