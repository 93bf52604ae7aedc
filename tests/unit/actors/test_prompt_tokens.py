"""Text stays text in prompts, for tokenizers of every kind; what a tokenizer doesn't keep is told."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN
from tiny_models import CHAT_TEMPLATE, FACTS, make_bert_tokenizer, make_tokenizer, save_plain_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_python import PreTrainedTokenizer

from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.prompt_tokens import check_round_trip, control_tokens
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.tokens import load_tokenizer_backend
from llm_blender_ray.actors.weights import load_tokenizer

CHECKPOINTS = GOLDEN / "checkpoints"
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def byte_level() -> PreTrainedTokenizerFast:
    """As Qwen's: markup that isn't special, and a word and blanks that are pieces of text."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "<tool_call>", "apples", "    ", "<b>"])
    return tokenizer


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """As Llama's (BPE) and T5's (Unigram), whose vocabularies hold the special tokens as pieces."""
    special = ["<unk>", *SPECIAL]
    if kind == "BPE":
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        trainer: trainers.Trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
        backend.normalizer = normalizers.Replace(" ", "▁")
    else:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator([*FACTS, *FACTS.values(), *"<|>/abcdefghijklmnopqrstuvwxyz"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<|end|>",
        extra_special_tokens=SPECIAL,
        chat_template=CHAT_TEMPLATE,
    )


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, as those that come with a model's own code: a token a character."""

    def __init__(self, **options: object) -> None:
        super().__init__(eos_token="<|end|>", extra_special_tokens=SPECIAL, **options)

    @property
    def vocab_size(self) -> int:
        return 0x110000

    def get_vocab(self) -> dict[str, int]:
        return dict(self.added_tokens_encoder)

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    "byte-level": byte_level(),
    "BPE": sentencepiece("BPE"),
    "Unigram": sentencepiece("Unigram"),
    "Python": Slow(chat_template=CHAT_TEMPLATE),
}
CHATS = {name: ChatTokenizer(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.lists(st.sampled_from([*SPECIAL, "<unk>", "<|", "end", "|>", "<", ">", "a", " "]), max_size=10))
def test_text_spells_no_special_token(name: str, text: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    special = {*tokenizer.convert_tokens_to_ids(SPECIAL)}
    given = "".join(text)
    chat = [Message(role="system", content=given), *user(f"x{given}y")]
    ids = CHATS[name].encode(chat)
    written = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in special]
    assert written == ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
    if name in ("byte-level", "Python"):  # the others have no piece for some characters
        assert f"<|user|>x{given}y<|end|><|assistant|>" in tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(st.sampled_from([*FACTS, "apples  and <b>pears</b>", "\n    x"]), min_size=1, max_size=3))
def test_other_text_is_read_as_ever(name: str, texts: list[str]) -> None:
    tokenizer, chat = TOKENIZERS[name], user("".join(texts))
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert CHATS[name].encode(chat) == expected


@given(text=st.lists(st.sampled_from([*SPECIAL, "<|", "|>", "capital of France", " "]), max_size=6).map("".join))
def test_without_a_template_text_stays_text_too(text: str) -> None:
    tokenizer = make_tokenizer(chat_template=None)
    ids = ChatTokenizer(tokenizer).encode(user(text))
    assert tokenizer.decode(ids) == text
    assert not {*ids} & {*tokenizer.all_special_ids}


def test_what_a_tokenizer_adds_by_itself_is_added_without_a_template() -> None:
    tokenizer = make_bert_tokenizer()
    assert ChatTokenizer(tokenizer).encode(user("capital of France")) == tokenizer("capital of France")["input_ids"]
    ids = ChatTokenizer(tokenizer).encode(user("a [SEP] fox"))
    assert ids.count(tokenizer.sep_token_id) == 1


def test_control_tokens() -> None:
    tokenizer = byte_level()
    assert control_tokens(tokenizer) == {*SPECIAL, "<think>", "<tool_call>"}
    assert control_tokens(tokenizer, "{{ 'apples' }}") == {*SPECIAL, "<think>", "<tool_call>", "apples"}


def test_a_special_token_that_merges_need_stays_a_piece() -> None:
    """A word of the vocabulary as a special token, and one without markup (Dolly's "### End")."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["Paris", "### End"], special_tokens=True)
    text = "Paris, ### End Paris."
    ids = ChatTokenizer(tokenizer).encode(user(text))
    assert tokenizer.decode(ids) == f"<|user|>{text}<|end|><|assistant|>"
    assert tokenizer.convert_tokens_to_ids("### End") not in ids


def test_reasoning_in_front_of_an_earlier_answer_is_the_template_s() -> None:
    """Its tags are real, or the template couldn't cut it; nothing else in it is."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    end = tokenizer.eos_token_id
    answer = Message(role="assistant", content="<think>Hm <|end|></think>No </think> at all")
    ids = ChatTokenizer(tokenizer).encode([*user("a <think> fox"), answer, *user("Why?")])
    assert [i for i in ids if i in tags] == tags and ids.count(end) == 3
    cuts = CHAT_TEMPLATE.replace("message.content }}", "message.content.split('</think>')[-1] }}")
    chat = ChatTokenizer(tokenizer, cuts)
    assert chat.rendered([*user("Say </think>!"), answer, *user("Why?")]) == (
        "<|user|>Say </think>!<|end|><|assistant|>No </think> at all<|end|><|user|>Why?<|end|><|assistant|>"
    )


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "LlamaTokenizer", "T5TokenizerFast", "NoSuchTokenizer"])
def test_tokenizer_json_is_used_as_published(tmp_path: Path, named: str) -> None:
    """A byte-level vocabulary that its config gives to another class, as deepseek-r1-distill-llama's."""
    save_plain_model(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": named}))
    tokenizer, published = load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("hello world 123 apples", "a  b\n\tc", "é 你好 🦊"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert (
            ids
            == published.encode(text, add_special_tokens=False).ids
            == ChatTokenizer(tokenizer).encode(user(text))
        )
        assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    assert len(tokenizer) == published.get_vocab_size()
    check_round_trip(tokenizer, "here")


def test_a_lone_deberta_vocabulary_is_read_by_its_own_converter() -> None:
    """Transformers' own reading leaves out the normalizer."""
    folder = CHECKPOINTS / "backbone"
    assert not (folder / "tokenizer.json").exists()
    tokenizer, backend = load_tokenizer(folder), load_tokenizer_backend(folder)
    for text in ("hello  world", "ﬁne ½ Ａ"):
        assert tokenizer(text)["input_ids"] == backend.encode(text).ids
    assert (tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token) == ("[CLS]", "[SEP]", "[PAD]")


def test_a_tokenizer_that_loses_spaces_is_refused(tmp_path: Path) -> None:
    save_plain_model(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "LlamaTokenizerFast"})
    )
    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="'helloworld123apples'") as caught:
        check_round_trip(rebuilt, "here")
    assert "\n" not in str(caught.value)


def test_what_else_a_tokenizer_does_not_keep_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_round_trip(make_tokenizer(), "good")
        assert not caplog.records
        check_round_trip(sentencepiece("Unigram"), "poor")
    (record,) = caplog.records
    assert record.getMessage().startswith("poor: its tokenizer doesn't keep ") and "emoji" in record.getMessage()
