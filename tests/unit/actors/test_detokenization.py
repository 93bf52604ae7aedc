"""Text while its tokens come, against the text of all tokens at once: random tokens, four kinds of tokenizers."""

import json
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN
from tiny_models import FACTS, make_bert_tokenizer, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_blender_ray.actors.detokenization import Detokenizer, Transcript
from llm_blender_ray.actors.tokens import load_tokenizer_backend

GEN_FUSER = GOLDEN / "checkpoints" / "gen_fuser"
HALF = "\N{REPLACEMENT CHARACTER}"


def byte_fallback() -> Tokenizer:
    """In Llama 2's form: pieces with a mark for the space, and bytes for what the vocabulary doesn't have."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "</s>"], show_progress=False)
    bpe.train_from_iterator([text for text in (*FACTS, *FACTS.values()) if text.isascii()], trainer)
    spec = json.loads(bpe.to_str())
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    spec["model"] |= {"byte_fallback": True, "unk_token": "<unk>"}
    return Tokenizer.from_str(json.dumps(spec))


TOKENIZERS = {
    "byte-level BPE": make_tokenizer().backend_tokenizer,
    "WordPiece": make_bert_tokenizer().backend_tokenizer,
    "SentencePiece": load_tokenizer_backend(GEN_FUSER),
    "byte fallback": byte_fallback(),
}


def detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    return Detokenizer(partial(tokenizer.decode, skip_special_tokens=True), tokenizer.get_vocab())


def token_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any tokens, and real text cut anywhere."""
    anything = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40)
    texts = st.lists(st.sampled_from(["🦊", "café", "こんにちは", " ", "one two", "\n"]), max_size=8).map("".join)
    written = st.builds(lambda text, end: tokenizer.encode(text).ids[:end], texts, st.integers(0, 40))
    return st.lists(anything | written, max_size=3).map(lambda parts: [i for part in parts for i in part])


def fewest(
    text_of: Callable[[Sequence[int]], str], ids: list[int], stop: Sequence[str], min_tokens: int
) -> int | None:
    """The fewest tokens whose text holds a stop string that the first ones don't complete, one after the other."""
    free = len(text_of(ids[:min_tokens]))

    def holds(text: str) -> bool:
        return any(text[:at].endswith(end) for end in stop for at in range(free + 1, len(text) + 1))

    return next((n for n in range(len(ids) + 1) if holds(text_of(ids[:n]))), None)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_pieces_are_the_text_up_to_the_first_stop_string(kind: str, data: st.DataObject) -> None:
    text_of = detokenizer(TOKENIZERS[kind])
    ids = [*data.draw(token_ids(TOKENIZERS[kind])), *TOKENIZERS[kind].encode("e").ids[-1:]]  # settles what is open
    whole = text_of.text(ids)
    cuts = st.tuples(st.integers(0, len(whole)), st.integers(1, 6)).map(lambda cut: whole[cut[0] :][: cut[1]])
    stop = data.draw(st.lists((cuts | st.text("ae on", max_size=3)).filter(bool), max_size=3))

    min_tokens = data.draw(st.integers(0, 6))
    transcript = Transcript(text_of, stop, min_tokens)
    pieces: list[str] = []
    for id in ids:
        pieces.append(transcript.push(id))
        if transcript.stopped:
            break
    text, tokens = text_of.until(ids, stop, min_tokens)
    assert text.startswith("".join(pieces))
    if kind != "byte fallback":  # there a character can be undone, and a stop string be seen later than it came
        assert tokens == fewest(text_of.text, ids, stop, min_tokens)
        assert transcript.stopped == (tokens is not None)
        assert not transcript.stopped or len(pieces) == tokens
    if not stop:
        assert text == "".join(pieces)


def test_a_byte_that_undoes_the_characters_before_it() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    text_of = detokenizer(tokenizer)
    first, second, e = (tokenizer.token_to_id(piece) for piece in ("<0xC3>", "<0xA9>", "e"))
    assert text_of.text([e, first, second]) == "eé"
    assert text_of.text([e, first, second, first, e]) == f"e{HALF * 3}e"
    transcript = Transcript(text_of)
    pieces = [transcript.push(id) for id in (e, first, second, first, e)]
    assert pieces == ["e", "", "", "", f"{HALF * 3}e"]


def test_text_is_given_as_soon_as_no_token_can_change_it() -> None:
    """Every token of plain text gives its own, half a character nothing, a stop string's beginning is held back."""
    tokenizer = TOKENIZERS["byte-level BPE"]
    text_of = detokenizer(tokenizer)
    ids = tokenizer.encode(FACTS["numbers"]).ids
    transcript = Transcript(text_of)
    assert [transcript.push(id) for id in ids] == [tokenizer.decode([id]) for id in ids]

    fox = [tokenizer.token_to_id(tokenizer.pre_tokenizer.pre_tokenize_str(c)[0][0]) for c in "ab"]
    bytes_of_fox = [tokenizer.token_to_id(c) for c in tokenizer.pre_tokenizer.pre_tokenize_str("🦊")[0][0]]
    transcript = Transcript(text_of)
    assert [transcript.push(id) for id in (*fox, *bytes_of_fox)] == ["a", "b", "", "", "", "🦊"]

    transcript = Transcript(text_of, stop=["abc", "bb"])
    assert [transcript.push(fox[c == "b"]) for c in "aab"] == ["", "a", ""]
    assert transcript.push(fox[0]) == "ab"
    assert transcript.push(fox[1]) == "" and not transcript.stopped
    assert transcript.push(fox[1]) == "" and transcript.stopped


def test_a_long_answer_takes_no_more_for_each_token() -> None:
    tokenizer = TOKENIZERS["byte-level BPE"]
    decoded = 0

    def decode(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return tokenizer.decode(ids)

    ids = tokenizer.encode(" ".join(FACTS.values()) * 30).ids
    transcript = Transcript(Detokenizer(decode, tokenizer.get_vocab()), stop=["zzz"])
    assert "".join(map(transcript.push, ids)) == tokenizer.decode(ids)
    assert decoded < 10 * len(ids)
