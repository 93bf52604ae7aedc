"""A base LLM under transformers' `generate`, causal or seq2seq, on CPU or one GPU."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace

import transformers
from transformers import GenerationConfig, PreTrainedTokenizerBase

from llm_blender_ray.actors.adapters import locate_adapter, with_adapters
from llm_blender_ray.actors.decoding import BatchDecoder
from llm_blender_ray.actors.detokenization import Detokenizer
from llm_blender_ray.actors.dtypes import resolve_dtype
from llm_blender_ray.actors.engines import Completion, Piece, chat
from llm_blender_ray.actors.engines.chat import ChatPrompt, ChatTokenizer
from llm_blender_ray.actors.engines.model_defaults import model_defaults
from llm_blender_ray.actors.engines.reasoning_tokens import ReasoningTokens
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.weights import load_config, load_model, locate, resolve_device
from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.schema import Sampling, TransformersModel


class TransformersEngine:
    """See `actors.engines.Engine`."""

    def __init__(self, model: TransformersModel) -> None:
        device = resolve_device(model.device)
        folder = locate(model.model, model.revision)
        adapters = [locate_adapter(one, model.weight_formats, folder) for one in model.loaded_adapters]
        trust = model.trust_remote_code
        config = load_config(folder, trust_remote_code=trust)
        self._seq2seq: bool = config.is_encoder_decoder
        self._context: int | None = model.max_model_len or getattr(
            config.get_text_config(), "max_position_embeddings", None
        )
        self._max_prompt_tokens = model.max_prompt_tokens
        self._parser = model.reasoning_parser
        chat.check_room(model.sampling, self._context)
        self._chat = ChatTokenizer.load(folder, model)
        self._tokenizer = self._chat.tokenizer
        self._model = load_model(
            transformers.AutoModelForSeq2SeqLM if self._seq2seq else transformers.AutoModelForCausalLM,
            folder,
            device=device,
            dtype=resolve_dtype(model.dtype, device, config.dtype),
            trust_remote_code=trust,
        )
        self._defaults = model_defaults(self._model.generation_config) if model.sampling.from_model else {}
        self._model.generation_config = _special_tokens(
            self._model.generation_config, self._tokenizer, self._chat.token_ids(model.sampling.stop)
        )
        self._adapters = {adapter: number for number, adapter in enumerate(model.loaded_adapters)}
        self._decoder = BatchDecoder(
            with_adapters(self._model, adapters),
            Detokenizer(self._chat.decoder(), self._tokenizer.get_vocab(), self._chat.token_text),
            name=f"decode {model.name}",
            pad_id=self._model.generation_config.pad_token_id,
            max_batch_size=model.max_batch_size,
            smaller="max_model_len or max_tokens",
        )

    async def generate(
        self, messages: list[Message], sampling: Sampling, adapter: Adapter | None = None
    ) -> Completion:
        """See `actors.engines.AdaptingEngine`."""
        sampling = sampling.with_defaults(self._defaults)
        prompt = self._prompt(messages, sampling)
        reasoning, number = self._reasoning(prompt, sampling), self._number(adapter)
        completion = await self._decoder.complete(prompt.ids, sampling, reasoning, number)
        return replace(completion, text=prompt.opened + completion.text)

    async def stream(
        self, messages: list[Message], sampling: Sampling, adapter: Adapter | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.AdaptingEngine`."""
        sampling = sampling.with_defaults(self._defaults)
        prompt = self._prompt(messages, sampling)
        if prompt.opened:
            yield prompt.opened
        reasoning, number = self._reasoning(prompt, sampling), self._number(adapter)
        async with aclosing(self._decoder.stream(prompt.ids, sampling, reasoning, number)) as pieces:
            async for piece in pieces:
                yield piece if isinstance(piece, str) else replace(piece, text=prompt.opened + piece.text)

    def _number(self, adapter: Adapter | None) -> int | None:
        return None if adapter is None else self._adapters[adapter]

    def _reasoning(self, prompt: ChatPrompt, sampling: Sampling) -> ReasoningTokens:
        return self._chat.reasoning_tokens(self._parser, prompt.opened, sampling.thinking_token_budget)

    async def check_health(self) -> None:
        """See `actors.engines.Engine`."""
        self._decoder.check()

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await self._decoder.close()

    def _prompt(self, messages: list[Message], sampling: Sampling) -> ChatPrompt:
        prompt = self._chat.prompt(messages, sampling.template_variables)
        answer_tokens = 0 if self._seq2seq else sampling.max_tokens
        chat.check_fits(len(prompt.ids), answer_tokens, self._context, self._max_prompt_tokens)
        return prompt


def _special_tokens(
    config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, stop: Iterable[int]
) -> GenerationConfig:
    """The special tokens of a model's generation config, without its maker's sampling (`from_model` has that).

    The tokenizer's end token counts too: chat models often leave it out of their generation config. So do stop
    strings that are special tokens, which never show in the text.
    """
    given = config.eos_token_id
    ends = {tokenizer.eos_token_id, *stop, *(given if isinstance(given, list) else [given])} - {None}
    pads = (tokenizer.pad_token_id, config.pad_token_id, *sorted(ends), 0)  # any: padding is masked
    return GenerationConfig(
        eos_token_id=sorted(ends),
        pad_token_id=next(token for token in pads if token is not None),
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        forced_bos_token_id=config.forced_bos_token_id,
        forced_eos_token_id=config.forced_eos_token_id,
    )
