"""What a base LLM of the miniature is trained on."""

from pathlib import Path

from llm_blender_ray.pipelines.miniature.base_llm import build_chat_tokenizer, examples
from llm_blender_ray.pipelines.miniature.recipe import Miniature
from llm_blender_ray.pipelines.miniature.world import Beliefs
from llm_blender_ray.pipelines.train.examples import IGNORED


def test_a_base_llm_is_trained_on_what_the_chat_template_gives() -> None:
    tokenizer = build_chat_tokenizer()
    task = Miniature(0, Path("unused")).tasks("heldout")[0]
    (example,) = examples([task], Beliefs("alder", 0), tokenizer)
    text = f"<|user|>{task.instruction}\n{task.input}<|end|><|assistant|>"
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    answer = example["labels"][len(prompt) :]
    assert answer == example["input_ids"][len(prompt) :]
    assert tokenizer.decode(answer) == Beliefs("alder", 0).answers(task) + "<|end|>"
