"""The recipe from nothing, with a few steps of everything: what it makes loads, and what is made is kept."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm
from llm_blender_ray.pipelines.miniature.base_llm import train_base_llm
from llm_blender_ray.pipelines.miniature.data import write_rows
from llm_blender_ray.pipelines.miniature.evaluation import quality_table
from llm_blender_ray.pipelines.miniature.recipe import Miniature, Sizes, make
from llm_blender_ray.pipelines.miniature.world import LLM_NAMES, Beliefs

TINY = Sizes(base_llm_steps=2, ranker_steps=2, fuser_steps=2, train_tasks=60, heldout_tasks=10, fuser_copies=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """A recipe that goes on where two LLMs had answered; the others are too little trained to be ever right."""
    miniature = Miniature(5, tmp_path_factory.mktemp("miniature"), TINY)
    tasks = miniature.tasks("train") + miniature.tasks("heldout")
    for name in ("alder", "hazel"):
        beliefs = Beliefs(name, 5)
        write_rows(({"text": beliefs.answers(task)} for task in tasks), miniature.answers(name))
    make(miniature, workers=2)
    return miniature


def test_it_makes_loadable_models_rows_and_results(made: Miniature) -> None:
    for name in LLM_NAMES:
        tokenizer = AutoTokenizer.from_pretrained(made.folder / name)
        model = AutoModelForCausalLM.from_pretrained(made.folder / name)
        assert model.dtype == torch.bfloat16
        assert model.config.vocab_size == len(tokenizer)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert load_pairrm(str(made.ranker))[1].budget.source_max_length == 128
    assert len((made.folder / "heldout.jsonl").read_text().splitlines()) == 10
    row = json.loads(made.rows("train").read_text().splitlines()[0])
    assert [candidate["model"] for candidate in row["candidates"]] == list(LLM_NAMES)
    assert not list(made.folder.glob("*/checkpoints"))
    results = json.loads(made.results.read_text())
    assert results["prompts"] == 10
    assert all(name in quality_table(results) for name in LLM_NAMES)


def test_what_is_made_is_kept(made: Miniature) -> None:
    def times() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in made.folder.rglob("*") if file.is_file()}

    before = times()
    assert make(made, workers=1)["seed"] == 5
    assert times() == before


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the recipe's workers: how many threads add up numbers decides their last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_seed_decides_the_weights(made: Miniature, tmp_path: Path) -> None:
    train_base_llm("alder", 5, tmp_path / "again", steps=TINY.base_llm_steps)
    train_base_llm("alder", 6, tmp_path / "other", steps=TINY.base_llm_steps)
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (made.folder / "alder", tmp_path / "again", tmp_path / "other")
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
