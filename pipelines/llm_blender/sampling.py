"""Several answers of one LLM to each prompt, by transformers' `generate` or by vLLM, for best-of-n.

The caller has loaded the LLM, so this is not one of `actors.engines`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llm_blender_ray.actors.batching import padded, token_mask

DEFAULTS: dict[str | None, dict[str, Any]] = {
    "top_p_sampling": {"do_sample": True, "top_p": 1.0, "temperature": 0.7},
    "top_k_sampling": {"do_sample": True, "top_k": 50, "temperature": 0.7},
    None: {},
}
UNLIMITED = 10**9  # tokens; transformers gives 10**30 for a tokenizer without a limit


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    n: int,
    sampling_mode: str | None,
    batch_size: int,
    options: Mapping[str, Any],
) -> list[list[str]]:
    """Generate n answers to each prompt. See `Blender.n_generate`."""
    if sampling_mode not in DEFAULTS:
        raise ValueError(f"sampling_mode {sampling_mode!r}: expected one of {', '.join(map(str, DEFAULTS))}")
    options = {**DEFAULTS[sampling_mode], **options}
    vllm = sys.modules.get("vllm")  # imported, if the caller has an LLM of it
    if vllm is not None and isinstance(model, vllm.LLM):
        return _with_vllm(model, prompts, n, options)
    batches = (prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size))
    return [answers for batch in batches for answers in _with_transformers(model, tokenizer, batch, n, options)]


def _with_transformers(
    model: Any, tokenizer: Any, prompts: Sequence[str], n: int, options: Mapping[str, Any]
) -> list[list[str]]:
    """Generate n answers to each of B prompts, decoded together.

    Prompts of a causal model are padded on the left, whatever its tokenizer's setting: it continues the last token.
    """
    seq2seq = model.config.is_encoder_decoder
    limit = tokenizer.model_max_length if tokenizer.model_max_length < UNLIMITED else None
    room = (
        limit
        if seq2seq
        else _smaller(limit, getattr(model.config.get_text_config(), "max_position_embeddings", None))
    )
    options = dict(options)
    if "max_new_tokens" not in options:
        if "max_length" in options:
            options["max_new_tokens"] = None  # the model's own would take precedence
        elif model.generation_config.max_new_tokens is None:
            if room is None:
                raise ValueError("give max_new_tokens: neither tokenizer nor model limits the length of a text")
            options["max_length"] = room
    rows = [tokenizer(prompt, truncation=limit is not None)["input_ids"] for prompt in prompts]
    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)  # masked
    side: Literal["left", "right"] = "right" if seq2seq else "left"
    ids_B_L = padded(rows, pad_id, device=model.device, side=side)
    output = model.generate(
        input_ids=ids_B_L,
        attention_mask=token_mask(rows, device=model.device, side=side),
        **{"pad_token_id": pad_id} | options | {"num_return_sequences": n, "return_dict_in_generate": False},
    )
    start = 0 if seq2seq else ids_B_L.shape[1]
    answers = tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
    return [answers[at : at + n] for at in range(0, len(answers), n)]


def _smaller(a: int | None, b: int | None) -> int | None:
    return min((length for length in (a, b) if length is not None), default=None)


def _with_vllm(llm: Any, prompts: Sequence[str], n: int, options: Mapping[str, Any]) -> list[list[str]]:
    """Translate transformers' arguments to vLLM's; without a length, an answer may fill the model's context."""
    from vllm import SamplingParams

    options = dict(options)
    lengths = [options.pop(name, None) for name in ("max_tokens", "max_new_tokens", "max_length")]
    if options.pop("do_sample", True) is False:
        options["temperature"] = 0.0
    max_tokens = next((length for length in lengths if length is not None), None)
    params = SamplingParams(**options | {"n": n, "max_tokens": max_tokens})
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    return [[answer.text for answer in output.outputs] for output in outputs]
