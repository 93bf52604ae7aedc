"""PairRanker (LLM-Blender, arXiv 2306.02561): how a pair becomes tokens, the network, and its checkpoints."""
