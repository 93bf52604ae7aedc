"""The miniature's base LLMs: Llama-shaped chat models, each of which learns to answer by its own beliefs."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.actors.weights import quiet
from llm_blender_ray.configs.training import Optimization
from llm_blender_ray.pipelines.miniature.tokenizer import build_tokenizer, compact
from llm_blender_ray.pipelines.miniature.world import Beliefs, Task, random_tasks
from llm_blender_ray.pipelines.train.checkpoints import Checkpoints
from llm_blender_ray.pipelines.train.examples import IGNORED, Example, mask, pad
from llm_blender_ray.pipelines.train.loop import remove_checkpoints, run_trainer

PAD, END_OF_TURN = "<|pad|>", "<|end|>"
_ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_ANSWER_TOKENS = 32

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,  # of 32, the smallest that vLLM's attention kernels take
    "initializer_range": 0.09,  # 1/sqrt(hidden size): narrow models need it
}


def build_chat_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all base LLMs, with their chat template."""
    backend = build_tokenizer([PAD, END_OF_TURN, *(f"<|{role}|>" for role in _ROLES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def examples(tasks: Sequence[Task], beliefs: Beliefs, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Prompts and believed answers as token ids; the loss covers the answer and its end."""
    prompts = tokenizer.apply_chat_template(
        [task.prompt.chat() for task in tasks], add_generation_prompt=True, return_dict=False
    )
    answers = tokenizer([beliefs.answers(task) + END_OF_TURN for task in tasks], add_special_tokens=False)[
        "input_ids"
    ]
    return [
        {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@quiet()
def train_base_llm(name: str, seed: int, output: Path, *, steps: int, batch_size: int = 64) -> None:
    """Train the base LLM `name` from scratch and save it in `output`, bfloat16, as a Hugging Face folder."""
    tokenizer = build_chat_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    def collate(batch: Sequence[Example]) -> dict[str, Tensor]:
        ids = [example["input_ids"] for example in batch]
        return {
            "input_ids": pad(ids, tokenizer.pad_token_id),
            "attention_mask": mask(ids),
            "labels": pad([example["labels"] for example in batch], IGNORED),
        }

    rng = random.Random(f"base LLM {name} {seed}")
    tasks = list(islice(random_tasks(rng, heldout=False), steps * batch_size))
    run_trainer(
        model,
        examples(tasks, Beliefs(name, seed), tokenizer),
        None,
        collate,
        Optimization(
            learning_rate=2e-3,
            max_steps=steps,
            batch_size=batch_size,
            schedule="cosine",
            warmup_share=0.05,
            weight_decay=0.01,
            seed=seed,
            log_every=100,
            save_every=steps,
        ),
        Checkpoints(output / "checkpoints"),
        title=f"base LLM {name}",
    )
    model.generation_config.max_new_tokens = MAX_ANSWER_TOKENS
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    compact(output)
    remove_checkpoints(output)


def answer(folder: Path, prompts: Sequence[Prompt], *, batch_size: int = 256) -> Iterator[str]:
    """Greedy answers of the base LLM, in order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for start in range(0, len(prompts), batch_size):
        chats = [prompt.chat() for prompt in prompts[start : start + batch_size]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS)
        yield from tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
