"""The included miniature: small real models that run the whole blend where no weights can be downloaded.

Six base LLMs, a PairRanker and a GenFuser, trained from scratch on a world of facts of which each LLM knows a
different part (`world`). It is also the worked example of training a ranker and a fuser with this project's own
training code. To train everything and measure the blend:

    python -m llm_blender_ray.pipelines.miniature --seed N --output DIR
"""
