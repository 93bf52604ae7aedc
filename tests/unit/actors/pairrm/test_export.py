"""Export of a ranker: equal logits after every way through the layouts, and what a layout cannot hold."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from paths import GOLDEN, ROOT
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.actors.pairrm.checkpoints import create_pairrm, load_pairrm, save_adapted_pairrm, save_pairrm
from llm_blender_ray.actors.pairrm.export import export_pairrm
from llm_blender_ray.actors.pairrm.tokenization import PairBudget
from llm_blender_ray.actors.records import Matchup, Prompt
from llm_blender_ray.actors.scorers.pairwise import PairwiseScorer
from llm_blender_ray.configs.lora import LoraTraining
from llm_blender_ray.configs.rankers import RankerLayout
from llm_blender_ray.configs.schema import PairRanker
from llm_blender_ray.pipelines.train.lora import add_lora, save_adapter

CHECKPOINTS = GOLDEN / "checkpoints"
LLM = str(ROOT / "configs" / "miniature" / "alder")
CASES = [
    (case["instruction"], case["input"], text, other)
    for case in json.loads((GOLDEN / "pairranker.json").read_text())["cases"][:3]
    for text, other in zip(case["candidates"], case["candidates"][1:], strict=False)
]


def logits(folder: Path) -> list[object]:
    matchups = [Matchup(Prompt("", instruction, given), left, right) for instruction, given, left, right in CASES]
    return list(PairwiseScorer(PairRanker(model=str(folder), device="cpu")).logits(matchups))


@pytest.mark.parametrize(
    "way",
    [
        ("PairRM", "pairrm"),
        ("PairRM-hf", "pairrm-hf"),
        ("PairRM", "pairrm-hf", "pairrm"),
        ("PairRM-hf", "pairrm", "pairrm-hf"),
    ],
    ids=" to ".join,
)
def test_logits_are_equal_to_the_digit(way: tuple[str, RankerLayout], tmp_path: Path) -> None:
    folder = CHECKPOINTS / way[0]
    expected, budget = logits(folder), load_pairrm(str(folder))[1].budget
    for number, layout in enumerate(way[1:]):
        exported = tmp_path / f"{number}" / "ranker"
        export_pairrm(str(folder), layout, exported)
        folder = exported
    assert [one.name for one in folder.parent.iterdir()] == ["ranker"]  # nothing temporary
    assert logits(folder) == expected
    assert load_pairrm(str(folder))[1].budget == budget
    assert ("ranker_type" in json.loads((folder / "config.json").read_text())) == (way[-1] == "pairrm")


def test_the_original_layout_names_a_given_backbone_and_keeps_its_further_fields(tmp_path: Path) -> None:
    backbone = str(CHECKPOINTS / "backbone")
    export_pairrm(str(CHECKPOINTS / "PairRM"), "pairrm", tmp_path / "ranker", backbone=backbone)
    before = json.loads((CHECKPOINTS / "PairRM" / "config.json").read_text())
    assert json.loads((tmp_path / "ranker" / "config.json").read_text()) == before | {"model_name": backbone}
    assert not (tmp_path / "ranker" / "backbone").exists()
    assert logits(tmp_path / "ranker") == logits(CHECKPOINTS / "PairRM")


def test_a_trained_ranker_with_several_outputs_goes_both_ways_in_its_own_type(tmp_path: Path) -> None:
    network, tokenizer = create_pairrm(str(CHECKPOINTS / "backbone"), PairBudget(48, 24), n_tasks=3, dropout=0.2)
    save_pairrm(network, tokenizer, tmp_path / "ranker", dtype=torch.bfloat16)
    (tmp_path / "ranker" / "README.md").write_text("its card")
    export_pairrm(str(tmp_path / "ranker"), "pairrm", tmp_path / "original")
    export_pairrm(str(tmp_path / "original"), "pairrm-hf", tmp_path / "again")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("ranker", "again"))
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == torch.bfloat16 for name, tensor in before.items()
    )
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (tmp_path / "ranker" / "config.json").read_text()
    )
    assert (tmp_path / "again" / "README.md").read_text() == "its card"


def test_a_kept_adapter_is_merged(tmp_path: Path) -> None:
    network, tokenizer = load_pairrm(str(CHECKPOINTS / "PairRM-hf"))
    adapted = add_lora(network.pretrained_model, str(CHECKPOINTS / "PairRM-hf"), LoraTraining(rank=2))
    torch.manual_seed(0)
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:  # zero in a new adapter
            tensor.data.normal_()
    folder = tmp_path / "adapter"
    save_adapter(adapted, folder)
    save_adapted_pairrm(network, tokenizer, folder)
    export_pairrm(str(folder), "pairrm-hf", tmp_path / "out")
    assert logits(tmp_path / "out") == logits(folder) != logits(CHECKPOINTS / "PairRM-hf")


class TestWhatALayoutCannotHold:
    def test_a_causal_lm(self, tmp_path: Path) -> None:
        network, tokenizer = create_pairrm(LLM, PairBudget(32, 16))
        save_pairrm(network, tokenizer, tmp_path / "ranker")
        for layout in ("pairrm", "pairrm-hf"):
            with pytest.raises(BlendError, match=r"ranker: a ranker on a causal LM \(llama\), .* its only layout$"):
                export_pairrm(str(tmp_path / "ranker"), layout, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_another_encoder_is_held_by_the_original_layout_alone(self, tmp_path: Path) -> None:
        bert = tmp_path / "bert"
        shutil.copytree(ROOT / "configs" / "miniature" / "ranker", bert)
        size = json.loads((bert / "config.json").read_text())["vocab_size"]
        BertModel(
            BertConfig(
                vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32
            )
        ).save_pretrained(bert)
        network, tokenizer = create_pairrm(str(bert), PairBudget(32, 16))
        save_pairrm(network, tokenizer, tmp_path / "ranker")
        with pytest.raises(BlendError, match="pairrm-hf holds DeBERTa-v2 and v3 alone, not bert"):
            export_pairrm(str(tmp_path / "ranker"), "pairrm-hf", tmp_path / "out")
        export_pairrm(str(tmp_path / "ranker"), "pairrm", tmp_path / "out")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "bert"
        assert logits(tmp_path / "out") == logits(tmp_path / "ranker")

    def test_a_backbone_of_another_shape_or_vocabulary(self, tmp_path: Path) -> None:
        ranker = str(CHECKPOINTS / "PairRM")
        with pytest.raises(ModelLoadError, match=r"backbone .*ranker is not this ranker's: .* has shape"):
            export_pairrm(
                ranker, "pairrm", tmp_path / "out", backbone=str(ROOT / "configs" / "miniature" / "ranker")
            )
        other = tmp_path / "other"
        shutil.copytree(CHECKPOINTS / "backbone", other)
        for name in ("tokenizer_config.json", "spm.model"):
            (other / name).unlink()
        for file in (ROOT / "configs" / "miniature" / "ranker").glob("*token*"):
            shutil.copy(file, other)
        with pytest.raises(ModelLoadError, match=r"other"):
            export_pairrm(ranker, "pairrm", tmp_path / "out", backbone=str(other))
        assert not (tmp_path / "out").exists()


def test_weights_of_several_types_are_written_as_float32(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "PairRM-hf", tmp_path / "ranker")
    file = tmp_path / "ranker" / "model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first].half()}, file, metadata={"format": "pt"})
    export_pairrm(str(tmp_path / "ranker"), "pairrm-hf", tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        torch.float32
    }
    assert logits(tmp_path / "out") == logits(tmp_path / "ranker")


def test_a_used_folder_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BlendError, match="not an empty folder"):
        export_pairrm(str(CHECKPOINTS / "PairRM"), "pairrm", tmp_path)
    with pytest.raises(BlendError, match="backbone is of layout pairrm"):
        export_pairrm(str(CHECKPOINTS / "PairRM"), "pairrm-hf", tmp_path / "out", backbone="a/b")
    assert [one.name for one in tmp_path.iterdir()] == ["mine.txt"]
