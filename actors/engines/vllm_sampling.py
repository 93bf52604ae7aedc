"""Sampling settings as vLLM's parameters, its beam search, and its log-probabilities."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_blender_ray.actors.detokenization import starts_of
from llm_blender_ray.actors.records import TokenLogprob
from llm_blender_ray.configs.sampling import BeamSampling, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM


def sampling_params(sampling: Sampling, **more: Any) -> "SamplingParams":
    """Make vLLM's parameters.

    Args:
        sampling: The settings; those of a beam search are `beam_search`'s.
        **more: Further parameters.

    Raises:
        VLLMValidationError: vLLM refuses one.
    """
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.local_temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p,
        min_tokens=sampling.min_tokens,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.logprobs,
        stop=list(sampling.stop),
        seed=sampling.seed,
        **more,
    )


async def beam_search(
    llm: "AsyncLLM",
    prompt_ids: list[int],
    sampling: Sampling,
    request_id: str,
    lora: "LoRARequest | None" = None,
    *,
    skip_special_tokens: bool,
) -> "CompletionOutput":
    """Answer by the beam search of vLLM's own server, a step of the engine for each token.

    Args:
        llm: The engine.
        prompt_ids: The prompt.
        sampling: With `num_beams`; a `BeamSampling` gets another beam than the best.
        request_id: Any that is not in use.
        lora: Adapter that answers; None: the model alone.
        skip_special_tokens: Leave them out of the text.

    Returns:
        The answer, cut at the first stop string.
    """
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.inputs import tokens_input
    from vllm.sampling_params import BeamSearchParams

    search = BeamSearchOnlineMixin()
    search.engine_client, search.renderer = llm, llm.renderer
    params = BeamSearchParams(beam_width=sampling.num_beams, max_tokens=sampling.max_tokens, temperature=0.0)
    params.skip_special_tokens = skip_special_tokens
    (output,) = [found async for found in search.beam_search(tokens_input(prompt_ids), request_id, params, lora)]
    answers = output.outputs
    answer: CompletionOutput = answers[
        min(sampling.beam if isinstance(sampling, BeamSampling) else 0, len(answers) - 1)
    ]
    if answer.finish_reason == "stop":
        answer.token_ids = [*answer.token_ids, answer.stop_reason]  # the end token, which the search leaves out
    if starts := starts_of(sampling.stop, answer.text):
        answer.text, answer.finish_reason = answer.text[: min(starts)], "stop"
    return answer


def read_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[Mapping[int, Any]], top: int, token_text: Callable[[int], str]
) -> list[TokenLogprob]:
    """Log-probabilities of an answer.

    Args:
        token_ids: The answer.
        logprobs: vLLM's `Logprob` of the chosen token and of the likeliest ones, by token id, for each token.
        top: How many of the likeliest to keep.
        token_text: Text of a token.
    """
    read: list[TokenLogprob] = []
    for token, found in zip(token_ids, logprobs, strict=True):
        ranked = sorted((one.rank, i) for i, one in found.items())[:top]
        likeliest = tuple(TokenLogprob(token_text(i), found[i].logprob) for _, i in ranked)
        read.append(TokenLogprob(token_text(token), found[token].logprob, likeliest))
    return read
