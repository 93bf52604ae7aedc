"""The vLLM engine alone: it writes what transformers writes, drops cancelled requests, tells when it has died.

Runs on a base LLM of the miniature, on the CPU. The contract's tests (test_engines) run it too.
"""

import asyncio
import importlib.util
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from endings import followed
from paths import ROOT
from safetensors.torch import load_file
from tiny_models import CHAT_TEMPLATE, FACTS, make_tokenizer, save_chat_model

from llm_blender_ray.actors.engines import Completion, Engine, load_engine
from llm_blender_ray.actors.engines.transformers_engine import TransformersEngine
from llm_blender_ray.actors.errors import BlendError, GenerationError, ModelLoadError, PromptError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling, TransformersModel, VLLMModel

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # vLLM's own import
]

MINIATURE = ROOT / "configs" / "miniature"
GREEDY = Sampling(max_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base LLM of the miniature; a tiny chat model where it hasn't been trained yet.

    As some are published: pickled weights, and a byte-level tokenizer whose config names another class.
    """
    folder = tmp_path_factory.mktemp("model")
    for config in sorted(MINIATURE.glob("*/config.json")):
        if json.loads(config.read_text())["model_type"] == "llama":
            shutil.copytree(config.parent, folder, dirs_exist_ok=True)
            break
    else:
        save_chat_model(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizerFast"}))
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def vllm(folder: Path, runner: asyncio.Runner) -> Iterator[Engine]:
    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    arguments = {"enable_prefix_caching": False, "max_num_batched_tokens": 4096}
    engine = VLLMEngine(
        VLLMModel(name="v", engine="vllm", model=str(folder), sampling=GREEDY, engine_args=arguments)
    )
    yield engine
    runner.run(engine.close())


def chats() -> list[list[Message]]:
    heldout = MINIATURE / "heldout.jsonl"
    if heldout.is_file():
        rows = [json.loads(line) for line in heldout.read_text(encoding="utf-8").splitlines()[:60]]
        prompts = [f"{row['instruction']}\n{row['input']}" for row in rows]
    else:
        prompts = [f"{a} of {b}" for a in ("capital", "past", "") for b in ("France", "go", "see", "🦊 fox")]
    prompts.append("Say <|end|> or </s>.")
    return [[Message(role="user", content=prompt)] for prompt in prompts]


def test_greedy_answers_equal_transformers(vllm: Engine, folder: Path, runner: asyncio.Runner) -> None:
    """Text, finish reason and token counts, in float32; also of prompts that spell special tokens."""

    async def answers(engine: Engine) -> list[Completion]:
        return await asyncio.gather(*(engine.generate(chat, GREEDY) for chat in chats()))

    local = TransformersEngine(
        TransformersModel(name="t", engine="transformers", model=str(folder), device="cpu", sampling=GREEDY)
    )
    try:
        assert runner.run(answers(vllm)) == runner.run(answers(local))
    finally:
        runner.run(local.close())


def test_cancelled_request_is_aborted(vllm: Engine, runner: asyncio.Runner) -> None:
    async def main() -> None:
        processor = vllm._llm.output_processor  # type: ignore[attr-defined]
        task = asyncio.create_task(vllm.generate(chats()[0], Sampling(max_tokens=60, temperature=2.0)))
        while not processor.has_unfinished_requests():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not processor.has_unfinished_requests()

    runner.run(main())


def test_closed_stream_is_aborted(vllm: Engine, runner: asyncio.Runner) -> None:
    """Its first piece comes while the answer is still being made (on a busy machine not each time)."""

    async def main() -> None:
        processor = vllm._llm.output_processor  # type: ignore[attr-defined]
        unfinished = False
        for seed in range(20):
            stream = vllm.stream(chats()[0], Sampling(max_tokens=60, temperature=2.0, seed=seed))
            assert isinstance(await anext(stream), str)
            unfinished |= processor.has_unfinished_requests()
            await stream.aclose()
            assert not processor.has_unfinished_requests()
        assert unfinished

    runner.run(main())


def test_longest_prompt_is_the_configured_one(vllm: Engine, runner: asyncio.Runner) -> None:
    answer = runner.run(vllm.generate(chats()[0], GREEDY))
    assert answer.prompt_tokens is not None
    with pytest.MonkeyPatch.context() as patch:  # a second engine takes half a minute
        patch.setattr(vllm, "_max_prompt_tokens", answer.prompt_tokens)
        assert runner.run(vllm.generate(chats()[0], GREEDY)) == answer
        patch.setattr(vllm, "_max_prompt_tokens", answer.prompt_tokens - 1)
        with pytest.raises(PromptError, match="max_prompt_tokens"):
            runner.run(vllm.generate(chats()[0], GREEDY))


def test_engine_args_reach_vllm(vllm: Engine) -> None:
    config = vllm._llm.vllm_config  # type: ignore[attr-defined]
    assert config.cache_config.enable_prefix_caching is False
    assert config.scheduler_config.max_num_batched_tokens == 4096


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_stages_on_cpus_are_refused_at_load(folder: Path) -> None:
    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    with pytest.raises(ModelLoadError, match="pipeline_parallel_size: vLLM's engine for CPUs dies"):
        VLLMEngine(VLLMModel(name="v", engine="vllm", model=str(folder), pipeline_parallel_size=2))


def test_wrong_engine_args_are_told_by_the_installed_vllm(folder: Path) -> None:
    """Of a setting that no check of ours knows: vLLM's own reason, in a line."""
    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    wrong = {"compilation_config": {"no_such_field": 1}}
    with pytest.raises(ModelLoadError, match="no_such_field") as caught:
        VLLMEngine(VLLMModel(name="v", engine="vllm", model=str(folder), sampling=GREEDY, engine_args=wrong))
    assert "\n" not in str(caught.value)


def test_every_engine_draws_anew(vllm: Engine) -> None:
    """Engines of vLLM's default seed, 0, give equal prompts equal "random" answers; seen by starting two."""
    assert vllm._llm.vllm_config.model_config.seed != 0  # type: ignore[attr-defined]


def test_max_tokens_beyond_the_context_is_told_at_load(folder: Path) -> None:
    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    with pytest.raises(ModelLoadError, match="max_tokens"):
        VLLMEngine(
            VLLMModel(
                name="v",
                engine="vllm",
                model=str(folder),
                max_model_len=32,
                sampling=Sampling(max_tokens=32),
            )
        )


def test_death_of_the_engine_process_is_told(vllm: Engine, runner: asyncio.Runner) -> None:
    """Last in this module: the engine is gone afterwards."""

    async def main() -> None:
        await vllm.check_health()
        cores = [p for p in psutil.Process().children() if "EngineCore" in p.name() + " ".join(p.cmdline())]
        assert cores
        for core in cores:
            core.send_signal(signal.SIGKILL)
        with pytest.raises(GenerationError):
            for _ in range(1000):
                await vllm.generate(chats()[0], GREEDY)
        with pytest.raises(GenerationError):
            await anext(vllm.stream(chats()[0], GREEDY))
        with pytest.raises(BlendError):
            await vllm.check_health()

    runner.run(main())


def test_a_parser_of_vllm_and_its_budget(tmp_path: Path, runner: asyncio.Runner) -> None:
    """The template opens the reasoning; the answer is the same whole and streamed."""
    marks = ("<think>", "</think>")
    save_chat_model(tmp_path, ["capital of France"], "<think>Which one?</think>\n\n", marks)
    opens = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    make_tokenizer(opens, marks).save_pretrained(tmp_path)
    settings = {"name": "r", "model": str(tmp_path), "sampling": GREEDY}
    question = [Message(role="user", content="capital of France")]

    async def answers(engine: Engine, budget: int | None) -> Completion:
        sampling = GREEDY.model_copy(update={"thinking_token_budget": budget})
        whole = await engine.generate(question, sampling)
        pieces, streamed = await followed(engine.stream(question, sampling))
        assert streamed == whole
        assert "".join(piece for piece in pieces if isinstance(piece, str)) == whole.text
        return whole

    engine = load_engine(VLLMModel(engine="vllm", reasoning_parser="deepseek_r1", **settings))
    free, bounded = (runner.run(answers(engine, budget)) for budget in (None, 2))
    runner.run(engine.close())
    assert (free.text, free.reasoning) == (bounded.text, "Which one?") == (FACTS["capital of France"], "Which one?")
    assert (bounded.reasoning, bounded.reasoning_tokens) == ("Wh", 3)  # with the end mark
    with pytest.raises(ModelLoadError, match=r"no parser 'deepseek_r2'; did you mean deepseek_r1\?"):
        load_engine(VLLMModel(engine="vllm", reasoning_parser="deepseek_r2", **settings))
    settings["sampling"] = GREEDY.model_copy(update={"thinking_token_budget": 2})
    with pytest.raises(ModelLoadError, match="between marks of one token, and none are known of this model"):
        load_engine(VLLMModel(engine="vllm", reasoning_parser="granite", **settings))
