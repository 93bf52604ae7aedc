"""Adapters of one model in one batch: each row answers as its adapter merged into the model does, and as alone.

Real small models and adapters of peft's own making. vLLM's are in `engines/test_vllm`.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import FACTS, SHOUT, make_tokenizer, save_adapter, save_merged, save_plain_model

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.generator import Generator, load_generators
from llm_blender_ray.actors.model_digest import model_digest
from llm_blender_ray.actors.records import Candidate, Prompt
from llm_blender_ray.configs.adapters import AdapterMember
from llm_blender_ray.configs.schema import Sampling, SamplingOverrides, TransformersModel

PROMPTS = [Prompt(str(at), question) for at, question in enumerate(FACTS)]
SAMPLING = Sampling(max_tokens=10)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_plain_model(tmp_path_factory.mktemp("base"))
    make_tokenizer().save_pretrained(folder)  # with a chat template
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    into = tmp_path_factory.mktemp("adapters")
    made = {
        "legal": save_adapter(base, into / "legal"),
        "code": save_adapter(base, into / "code", 1, r=3, target_modules="all-linear", use_rslora=True),
    }
    weights = made["code"] / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return made


def model(folder: Path, **more: Any) -> TransformersModel:
    given = {"name": "base", "device": "cpu", "sampling": SAMPLING, **more}
    return TransformersModel(engine="transformers", model=str(folder), **given)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def members(base: Path, adapters: dict[str, Path], runner: asyncio.Runner) -> Iterator[dict[str, Generator]]:
    named = {name: AdapterMember(path=str(path)) for name, path in adapters.items()}
    named["loud"] = AdapterMember(path=str(adapters["legal"]), system_prompt=SHOUT)
    loaded = load_generators(model(base, adapters=named, max_batch_size=16))
    yield loaded
    for generator in loaded.values():
        runner.run(generator.close())


@pytest.fixture(scope="module")
def expected(
    base: Path, adapters: dict[str, Path], runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Candidate]]:
    """Answers of the model, and of each adapter merged into it by peft: of models without adapters."""
    folders = {"base": base}
    into = tmp_path_factory.mktemp("merged")
    folders |= {name: save_merged(base, path, into / name) for name, path in adapters.items()}
    found = {}
    for name, folder in folders.items():
        found[name] = runner.run(answered([(Generator(model(folder, name=name)), prompt) for prompt in PROMPTS]))
    loud = Generator(model(folders["legal"], name="loud", system_prompt=SHOUT))
    found["loud"] = runner.run(answered([(loud, prompt) for prompt in PROMPTS]))
    return found


async def answered(asked: list[tuple[Generator, Prompt]], **change: Any) -> list[Candidate]:
    override = SamplingOverrides(**change)
    return await asyncio.gather(*(generator.answer(prompt, change=override) for generator, prompt in asked))


def test_members_in_one_batch_answer_as_models_of_their_own(
    members: dict[str, Generator], expected: dict[str, list[Candidate]], runner: asyncio.Runner
) -> None:
    asked = [(members[name], prompt) for prompt in PROMPTS for name in expected]
    wanted = [expected[name][at] for at in range(len(PROMPTS)) for name in expected]
    assert runner.run(answered(asked)) == wanted
    assert len({tuple(one.text for one in answers) for answers in expected.values()}) == 4


@settings(max_examples=5, deadline=None)
@given(asked=st.lists(st.tuples(st.sampled_from(["base", "legal", "code"]), st.integers(0, 9)), max_size=9))
def test_an_answer_does_not_depend_on_the_adapters_in_its_batch(
    members: dict[str, Generator], asked: list[tuple[str, int]], runner: asyncio.Runner
) -> None:
    drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 6}
    pairs = [(members[name], PROMPTS[at]) for name, at in asked]
    alone = [runner.run(answered([pair], **drawn))[0] for pair in pairs]
    assert runner.run(answered(pairs, **drawn)) == alone


def test_a_beam_search_has_its_adapter(
    base: Path, adapters: dict[str, Path], members: dict[str, Generator], runner: asyncio.Runner, tmp_path: Path
) -> None:
    """Equal prompts share a search only with those of the same adapter."""
    merged = Generator(model(save_merged(base, adapters["code"], tmp_path / "code"), name="code"))
    names = ("base", "code", "legal")
    found = runner.run(answered([(members[name], PROMPTS[5]) for name in names], num_beams=3))
    assert found[1] == runner.run(answered([(merged, PROMPTS[5])], num_beams=3))[0]
    assert len({one.text for one in found}) == 3


def test_a_stream_has_its_adapter(
    members: dict[str, Generator], expected: dict[str, list[Candidate]], runner: asyncio.Runner
) -> None:
    async def pieces() -> list[Any]:
        return [piece async for piece in members["legal"].stream(PROMPTS[0])]

    *texts, last = runner.run(pieces())
    assert last == expected["legal"][0] and "".join(texts) == last.text


def test_one_adapter_of_a_model_of_its_own(
    base: Path, adapters: dict[str, Path], expected: dict[str, list[Candidate]], runner: asyncio.Runner
) -> None:
    alone = model(base, name="legal", adapter=str(adapters["legal"]))
    hidden = model(base, adapters={"legal": AdapterMember(path=str(adapters["legal"]))}, include_base=False)
    for settings_ in (alone, hidden):
        (generator,) = load_generators(settings_).values()
        assert runner.run(answered([(generator, PROMPTS[2])])) == [expected["legal"][2]]
        runner.run(generator.close())


def test_weights_that_are_not_those_of_the_settings(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    """peft itself would leave what is missing at random, and load an embedding into the model that others share."""
    file = save_adapter(base, tmp_path / "adapter") / "adapter_model.safetensors"
    whole = load_file(file)
    settings_ = model(base, adapter=str(tmp_path / "adapter"))
    short = dict(list(whole.items())[1:])
    embedding = whole | {"base_model.model.model.embed_tokens.weight": torch.zeros(400, 64)}
    for weights in (short, embedding):
        save_file(weights, file)
        with pytest.raises(ModelLoadError, match=r"/adapter: its weights are not those .*: 1 tensors") as caught:
            settings_.load()
        assert "\n" not in str(caught.value)


def test_code_in_a_pickle_does_not_run(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").touch()
    torch.save({"weight": _Touches(tmp_path / "ran")}, folder / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match="its pickle calls code"):
        model(base, adapter=str(folder)).load()
    assert not (tmp_path / "ran").exists()


class _Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


def test_weights_replaced_in_place_have_another_digest(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "adapter")
    before = model_digest(folder)
    assert before is not None and model_digest(folder) == before
    save_adapter(base, folder, 1)
    assert model_digest(folder) not in (None, before)
