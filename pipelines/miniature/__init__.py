"""The included miniature: small real models that the whole blend runs on where no weights can be downloaded.

Six base LLMs, a PairRanker and a GenFuser, trained from nothing on a world of facts in which each LLM knows
other things (`world`). It is also the worked example of training a ranker and a fuser with this project's own
training code. Train all and measure the blend:

    python -m llm_blender_ray.pipelines.miniature --seed N --output DIR
"""
