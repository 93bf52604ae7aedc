"""Settings of reasoning models: families that a config can name, and how much one reasons."""

from typing import Literal

# OpenAI's values, and `max` of DeepSeek V4
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
AUTO = "auto"  # whatever marks of reasoning an answer begins with, or its chat template wrote

# Known to every engine, by the names of vLLM's reasoning parsers where it has one; their marks are in
# `actors.engines.reasoning_formats`.
FAMILIES = (
    *("apertus", "apriel", "cohere_command3", "cohere_command4", "deepseek_r1", "deepseek_v3", "deepseek_v4"),
    *("ernie45", "exaone_deep", "gemma4", "glm45", "glm47", "granite", "holo2", "hunyuan_a13b", "kimi_k2"),
    *("kimi_vl", "ling3", "longcat", "mimo", "minicpmv", "minimax_m2", "minimax_m3", "mistral", "nemotron_v3"),
    *("olmo3", "openai_gptoss", "openthinker", "qwen3", "seed_oss", "smollm3", "step3", "step3p5"),
)
