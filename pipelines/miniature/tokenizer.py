"""The miniature's tokenizers: byte-level BPE over the world's words.

Every word of an answer is one token, so small models learn quickly; bytes cover any other text.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_blender_ray.pipelines.miniature.facts import SORTED_WORDS
from llm_blender_ray.pipelines.miniature.world import INSTRUCTIONS, SKILLS, TABLES, numbered


def world_words() -> list[str]:
    """Every word of a question or an answer."""
    words = {word for table in TABLES.values() for pair in table.items() for word in pair}
    return sorted(words.union(SORTED_WORDS))


def compact(folder: Path) -> None:
    """Rewrite a folder's tokenizer.json without indentation, which makes it three times as large."""
    file = folder / "tokenizer.json"
    file.write_text(Tokenizer.from_file(str(file)).to_str(), encoding="utf-8")


def build_tokenizer(special_tokens: Sequence[str], texts: Sequence[str] = ()) -> Tokenizer:
    """Train a tokenizer.

    The corpus is the world's vocabulary itself, and training continues until each of its words is one token.

    Args:
        special_tokens: The first ids.
        texts: Templates, whose words are learned as well.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = [
        *(f" {word}" for word in world_words()),
        *(f" {skill}" for skill in SKILLS),
        *INSTRUCTIONS,
        *texts,
        numbered([""] * 9),
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=8192,  # never reached: the corpus runs out of pairs to merge
        min_frequency=1,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend
