"""Model folders made on the spot: real architectures and files, small enough to train within seconds.

`save_chat_model` learns its few facts by heart, so that answers have meaning: they can be right, end by
themselves, and differ with the system prompt. The other folders hold random weights, which is enough where only
form matters.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from paths import GOLDEN
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SHOUT = "Answer in capital letters."
FACTS = {
    "capital of France": "Paris",
    "capital of Spain": "Madrid",
    "capital of Italy": "Rome",
    "capital of Japan": "Tokyo",
    "capital of Peru": "Lima",
    "capital of Norway": "Oslo",
    "capital of Cuba": "Havana",
    "capital of Kenya": "Nairobi",
    "opposite of hot": "cold",
    "opposite of big": "small",
    "opposite of early": "late",
    "opposite of rich": "poor",
    "past of go": "went",
    "past of see": "saw",
    "past of take": "took",
    "past of write": "wrote",
    "hello in Japanese": "こんにちは",
    "coffee in French": "café crème",
    "a fox": "🦊 fox",
    "numbers": "one two three four five six seven eight nine ten",
}
CONTEXT = 128  # tokens of prompt and answer together

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE, marks: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens that knows the facts' words, and marks that are a token each."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [*FACTS, *FACTS.values(), SHOUT],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.add_tokens(list(marks))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", chat_template=chat_template
    )


def llama_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Two layers with heads of 32, the smallest that vLLM runs."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_chat_model(
    folder: Path, questions: Iterable[str] = FACTS, reasoning: str = "", marks: Sequence[str] = ()
) -> Path:
    """A chat model that knows the answers of FACTS to questions, in capital letters under the system prompt SHOUT.

    Args:
        folder: Where to write it.
        questions: Those that it knows; the fewer, the sooner it is trained.
        reasoning: What it writes before each answer.
        marks: See `make_tokenizer`.

    Returns:
        The folder.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer(marks=marks)
    model = LlamaForCausalLM(llama_config(tokenizer))
    rows = []
    for question in questions:
        answer, user = FACTS[question], {"role": "user", "content": question}
        for chat, text in (([user], answer), ([{"role": "system", "content": SHOUT}, user], answer.upper())):
            prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer_ids = tokenizer(f"{reasoning}{text}<|end|>", add_special_tokens=False)["input_ids"]
            rows.append((prompt_ids + answer_ids, [-100] * len(prompt_ids) + answer_ids))
    ids_B_L, labels_B_L = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[part]) for row in rows], batch_first=True, padding_value=filler
        )
        for part, filler in ((0, tokenizer.pad_token_id), (1, -100))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small, and on a busy machine, more threads are slower
    for _ in range(200):  # padding is on the right and has no label: no mask needed
        loss = model(input_ids=ids_B_L, labels=labels_B_L).loss
        if loss.item() < 0.005:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    else:
        raise AssertionError(f"the tiny model didn't learn its facts: loss {loss.item():.3f}")
    torch.set_num_threads(threads)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, seed: int = 0, **settings: object) -> Path:
    """A LoRA adapter of a causal LM, with random weights that change its answers.

    Args:
        base: Folder of the model.
        folder: Where to write it.
        seed: Of its weights.
        **settings: Of peft's `LoraConfig`.

    Returns:
        The folder.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    given = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **given)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def save_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The model that peft makes of a causal LM and an adapter: what the adapter's answers have to equal."""
    from peft import PeftModel

    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    return folder


def save_plain_model(folder: Path) -> Path:
    """A causal LM without a chat template, with random weights."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.save_pretrained(folder)
    config = llama_config(tokenizer)
    config.initializer_range = 0.2  # far-apart logits
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_seq2seq_model(folder: Path) -> Path:
    """A T5 with random weights."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        initializer_factor=5.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, kind: str, *, labels: int = 1, chat_template: str = CHAT_TEMPLATE) -> Path:
    """A sequence classifier with random weights, of one of the forms that reward models have.

    deberta: a pair of texts. bert: the same, told apart by token types. gpt2: the texts joined, no pad token.
    llama: a chat.
    """
    torch.manual_seed(0)
    model: PreTrainedModel
    match kind:
        case "deberta":
            published = GOLDEN / "checkpoints" / "backbone"
            for name in ("spm.model", "tokenizer_config.json"):
                shutil.copy(published / name, folder)
            shape = json.loads((published / "config.json").read_text()) | {"num_hidden_layers": 2}
            model = DebertaV2ForSequenceClassification(DebertaV2Config(**shape, num_labels=labels))
        case "bert":
            tokenizer = make_bert_tokenizer()
            tokenizer.save_pretrained(folder)
            config = BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=CONTEXT,
                initializer_range=0.2,
                pad_token_id=tokenizer.pad_token_id,
                num_labels=labels,
            )
            model = BertForSequenceClassification(config)
        case "gpt2":
            tokenizer = make_tokenizer(chat_template=None)
            tokenizer.save_pretrained(folder)
            config = GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=32,
                n_layer=2,
                n_head=2,
                n_positions=CONTEXT,
                initializer_range=0.2,
                bos_token_id=None,
                eos_token_id=None,
                num_labels=labels,
            )
            model = GPT2ForSequenceClassification(config)
        case "llama":
            tokenizer = make_tokenizer(chat_template)
            tokenizer.save_pretrained(folder)
            config = llama_config(tokenizer)
            config.initializer_range = 0.2
            config.num_labels = labels
            model = LlamaForSequenceClassification(config)
        case _:
            raise ValueError(kind)
    model.save_pretrained(folder)
    return folder


def make_bert_tokenizer() -> PreTrainedTokenizerFast:
    """The facts' words in WordPiece; a pair's second text is of token type 1."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*FACTS, *FACTS.values()], trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
