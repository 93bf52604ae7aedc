"""The included miniature: small real models that the whole blend runs on where no weights can be downloaded.

Six base LLMs, a PairRanker and a GenFuser, trained from nothing on a world of facts in which each LLM knows
other things (`world`). `python -m pipelines.miniature --seed N --output DIR` makes them all and measures the
blend; it is also the worked example of training a ranker and a fuser with this project's own training code.
"""
