"""The vLLM engine alone: it writes what transformers writes, drops cancelled requests, tells when it has died.

Runs on a base LLM of the miniature, on the CPU. The contract's tests (test_engines) run it too.
"""

import asyncio
import importlib.util
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from endings import followed
from paths import ROOT
from safetensors.torch import load_file
from tiny_models import CHAT_TEMPLATE, FACTS, make_tokenizer, save_adapter, save_chat_model, save_merged

from llm_blender_ray.actors.engines import Completion, Engine, load_engine
from llm_blender_ray.actors.engines.adapted_engine import AdaptedEngine
from llm_blender_ray.actors.engines.transformers_engine import TransformersEngine
from llm_blender_ray.actors.engines.vllm_executor import placement_group_gpus
from llm_blender_ray.actors.errors import BlendError, GenerationError, ModelLoadError, PromptError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.adapters import Adapter, AdapterMember
from llm_blender_ray.configs.schema import Sampling, TransformersModel, VLLMModel

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # vLLM's own import
]

MINIATURE = ROOT / "configs" / "miniature"
GREEDY = Sampling(max_tokens=40)
# The contract's tests run an engine without any.
OPTIONS = {
    "enable_prefix_caching": True,
    "block_size": 32,
    "max_num_batched_tokens": 4096,
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
}
NARROW = {"kv_cache_dtype": "fp8"}


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
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of the model, of other ranks and for other layers; the second one's weights are a pickle."""
    into = tmp_path_factory.mktemp("adapters")
    made = {
        "legal": save_adapter(folder, into / "legal"),
        "code": save_adapter(folder, into / "code", 1, r=9, target_modules="all-linear", use_rslora=True),
    }
    weights = made["code"] / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return made


@pytest.fixture(scope="module")
def vllm(folder: Path, adapters: dict[str, Path], runner: asyncio.Runner) -> Iterator[Engine]:
    """An engine with adapters: most tests ask the model alone."""
    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    engine = VLLMEngine(
        VLLMModel(
            name="v",
            engine="vllm",
            model=str(folder),
            sampling=GREEDY,
            engine_args=OPTIONS,
            adapters={name: AdapterMember(path=str(path)) for name, path in adapters.items()},
        )
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


@pytest.fixture(scope="module")
def local(folder: Path, runner: asyncio.Runner) -> Iterator[Engine]:
    engine = TransformersEngine(
        TransformersModel(name="t", engine="transformers", model=str(folder), device="cpu", sampling=GREEDY)
    )
    yield engine
    runner.run(engine.close())


async def answers(engine: Engine, questions: list[list[Message]], sampling: Sampling) -> list[Completion]:
    return await asyncio.gather(*(engine.generate(chat, sampling) for chat in questions))


def test_greedy_answers_equal_transformers(vllm: Engine, local: Engine, runner: asyncio.Runner) -> None:
    """Text, finish reason and token counts, in float32; also of prompts that spell special tokens."""
    assert runner.run(answers(vllm, chats(), GREEDY)) == runner.run(answers(local, chats(), GREEDY))


def test_adapters_in_one_batch_answer_as_each_merged_into_the_model(
    vllm: Engine,
    local: Engine,
    folder: Path,
    adapters: dict[str, Path],
    runner: asyncio.Runner,
    tmp_path: Path,
) -> None:
    """The model itself among them, and the answers alone."""
    questions, expected = chats()[::12], {}
    for name, path in adapters.items():
        merged = str(save_merged(folder, path, tmp_path / name))
        engine = TransformersEngine(TransformersModel(name=name, engine="transformers", model=merged, device="cpu"))
        expected[name] = runner.run(answers(engine, questions, GREEDY))
        runner.run(engine.close())
    expected["v"] = runner.run(answers(local, questions, GREEDY))
    members = {name: AdaptedEngine(vllm, Adapter(path=str(path))) for name, path in adapters.items()} | {"v": vllm}

    async def mixed() -> list[list[Completion]]:
        return await asyncio.gather(*(answers(members[name], questions, GREEDY) for name in expected))

    assert dict(zip(expected, runner.run(mixed()), strict=True)) == expected
    assert len({tuple(one.text for one in given) for given in expected.values()}) == 3
    for name, engine in members.items():
        assert runner.run(engine.generate(questions[0], GREEDY)) == expected[name][0]
        assert runner.run(followed(engine.stream(questions[1], GREEDY)))[-1] == expected[name][1]


def test_an_adapter_s_number_is_never_another_s(folder: Path, adapters: dict[str, Path]) -> None:
    """vLLM continues to load an adapter whose caller is gone, under its number."""
    from llm_blender_ray.actors.engines.vllm_adapters import VLLMAdapters

    class Loading:
        loaded: list[tuple[int, str]] = []  # noqa: RUF012

        async def add_lora(self, request: Any) -> bool:
            self.loaded.append((request.lora_int_id, request.lora_path))
            if len(self.loaded) == 1:
                await asyncio.Event().wait()  # its caller is cancelled meanwhile
            return True

    async def main() -> None:
        named = {name: AdapterMember(path=str(path)) for name, path in adapters.items()}
        loads = VLLMAdapters(VLLMModel(name="v", engine="vllm", model=str(folder), adapters=named), folder)
        llm: Any = Loading()
        legal, code = (Adapter(path=str(path)) for path in adapters.values())
        first = asyncio.create_task(loads.request(llm, legal))
        while not llm.loaded:
            await asyncio.sleep(0)
        first.cancel()
        numbers = [(await loads.request(llm, one)).lora_int_id for one in (code, legal, code)]  # type: ignore[union-attr]
        assert numbers == [2, 1, 2] and len(llm.loaded) == 3  # the cancelled one once more
        assert len({*llm.loaded}) == 2
        assert await loads.request(llm, None) is None

    asyncio.run(main())


def test_drafts_and_shared_prefixes_change_no_answer(
    vllm: Engine, local: Engine, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts by n-grams are taken, and prompts found in the cache, without another answer."""
    some = [str(chat[0]["content"]) for chat in chats()[:16]]
    pairs = zip(some[::2], some[1::2], strict=True)  # longer than a block of the cache
    questions = [[Message(role="user", content=f"{one}\n{other}")] for one, other in pairs]
    sampling = Sampling(max_tokens=40, min_tokens=40)  # beyond an answer's end the model repeats itself
    processor, steps = vllm._llm.output_processor, []  # type: ignore[attr-defined]
    process_outputs = processor.process_outputs

    def recorded(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        steps.extend(outputs)
        return process_outputs(outputs, *args, **kwargs)

    monkeypatch.setattr(processor, "process_outputs", recorded)
    expected = runner.run(answers(local, questions, sampling))
    assert runner.run(answers(vllm, questions, sampling)) == expected
    assert max(len(step.new_token_ids) for step in steps) > 1
    steps.clear()
    again = runner.run(answers(vllm, questions, sampling))
    assert again == expected
    cached = [step.prefill_stats.num_cached_tokens for step in steps if step.prefill_stats]
    assert sum(cached) == sum(one.usage.cached_prompt_tokens for one in again) > 0


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
    assert config.cache_config.enable_prefix_caching is True
    assert config.speculative_config.method == "ngram"
    assert config.scheduler_config.max_num_batched_tokens == 4096


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_cache_that_cpus_read_wrongly_is_refused_at_load(folder: Path) -> None:
    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    narrow = {"kv_cache_dtype": "bfloat16"}
    with pytest.raises(ModelLoadError, match="kv_cache_dtype: vLLM's engine for CPUs has auto, fp8, "):
        VLLMEngine(VLLMModel(name="v", engine="vllm", model=str(folder), engine_args=narrow))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_stages_on_cpus_are_refused_at_load(folder: Path) -> None:
    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    with pytest.raises(ModelLoadError, match="pipeline_parallel_size: vLLM's engine for CPUs dies"):
        VLLMEngine(VLLMModel(name="v", engine="vllm", model=str(folder), pipeline_parallel_size=2))


def test_an_engine_over_nodes_runs_on_rays_executor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing binds its processes to this node, and vLLM takes the arguments."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from llm_blender_ray.actors.engines.vllm_engine import VLLMEngine

    configs: list[Any] = []
    monkeypatch.setattr(AsyncLLM, "from_vllm_config", lambda config, **_: configs.append(config))
    settings = VLLMModel(name="v", engine="vllm", model=str(folder), tensor_parallel_size=2)
    addresses = []
    for there in (True, False):
        monkeypatch.delenv("VLLM_HOST_IP", raising=False)
        with placement_group_gpus(there):
            VLLMEngine(settings)
        addresses.append(os.environ.get("VLLM_HOST_IP"))
    assert [one.parallel_config.distributed_executor_backend for one in configs] == ["ray", "mp"]
    assert [one.model_config.model for one in configs] == [str(folder)] * 2
    assert addresses == [None, "127.0.0.1"]


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
        (core,) = (process for process in multiprocessing.active_children() if "EngineCore" in process.name)
        core.kill()
        with pytest.raises(GenerationError):
            for _ in range(1000):
                await vllm.generate(chats()[0], GREEDY)
        with pytest.raises(GenerationError):
            await anext(vllm.stream(chats()[0], GREEDY))
        with pytest.raises(BlendError):
            await vllm.check_health()

    runner.run(main())


def test_a_parser_of_vllm_and_its_budget(tmp_path: Path, runner: asyncio.Runner) -> None:
    """The template opens the reasoning; the answer is the same whole and streamed. The cache has 8 bits."""
    marks = ("<think>", "</think>")
    save_chat_model(tmp_path, ["capital of France"], "<think>Which one?</think>\n\n", marks)
    opens = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    make_tokenizer(opens, marks).save_pretrained(tmp_path)
    settings = {"name": "r", "model": str(tmp_path), "sampling": GREEDY}
    question = [Message(role="user", content="capital of France")]

    async def bounded_answer(engine: Engine, budget: int | None) -> Completion:
        sampling = GREEDY.model_copy(update={"thinking_token_budget": budget})
        whole = await engine.generate(question, sampling)
        pieces, streamed = await followed(engine.stream(question, sampling))
        assert streamed == whole
        assert "".join(piece for piece in pieces if isinstance(piece, str)) == whole.text
        return whole

    engine = load_engine(VLLMModel(engine="vllm", reasoning_parser="deepseek_r1", engine_args=NARROW, **settings))
    free, bounded = (runner.run(bounded_answer(engine, budget)) for budget in (None, 2))
    runner.run(engine.close())
    assert (free.text, free.reasoning) == (bounded.text, "Which one?") == (FACTS["capital of France"], "Which one?")
    assert (bounded.reasoning, bounded.reasoning_tokens) == ("Wh", 3)  # with the end mark
    with pytest.raises(ModelLoadError, match=r"no parser 'deepseek_r2'; did you mean deepseek_r1\?"):
        load_engine(VLLMModel(engine="vllm", reasoning_parser="deepseek_r2", **settings))
    settings["sampling"] = GREEDY.model_copy(update={"thinking_token_budget": 2})
    with pytest.raises(ModelLoadError, match="between marks of one token, and none are known of this model"):
        load_engine(VLLMModel(engine="vllm", reasoning_parser="granite", **settings))
