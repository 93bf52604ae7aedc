"""PairRanker (LLM-Blender, arXiv 2306.02561): tokenization of pairs, network, checkpoints."""
