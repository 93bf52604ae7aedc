"""Arguments of `Blender`'s methods, read into rows, and results of rows, stacked into arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.actors.tournaments import strategies
from llm_blender_ray.configs.strategies import Reference, ToReference

Rows = list[tuple[Prompt, list[str]]]  # every input with its candidates
Arrays = NDArray[Any] | list[NDArray[Any]]  # [rows, n]; a list where rows differ in n
Candidates = Sequence[Sequence[str]] | Arrays  # of every input
Conversation = Sequence[Mapping[str, str]]

REFERENCES: dict[str, Reference] = {  # the original's names for them
    "longest": "longest",
    "shortest": "shortest",
    "median_length": "median",
    "first": "first",
    "last": "last",
}
CONVERSATION = (  # as in PairRM's training data, misspelling included
    "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
)


def texts(name: str, values: Sequence[str], count: int | None = None) -> list[str]:
    """Check a list of texts.

    Args:
        name: Name of the argument, for messages.
        values: The texts.
        count: Expected number; None: any.

    Returns:
        The texts as Python's `str`.

    Raises:
        ValueError: A value is no text, or the number differs.
    """
    if isinstance(values, str):
        raise ValueError(f"{name}: expected a list of texts, got one text")
    if count is not None and len(values) != count:
        raise ValueError(f"{name}: there are {len(values)}, for {count} inputs")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{name}[{i}]: expected text, got {type(value).__name__}")
    return [str(value) for value in values]  # numpy's texts too


def prompts(inputs: Sequence[str], instructions: Sequence[str] | None) -> list[Prompt]:
    """Prompts of instruction and input, as the fuser reads them."""
    read = texts("inputs", inputs)
    given = [""] * len(read) if instructions is None else texts("instructions", instructions, len(read))
    return [Prompt("", instruction, text) for instruction, text in zip(given, read, strict=True)]


def sources(inputs: Sequence[str], instructions: Sequence[str] | None) -> list[Prompt]:
    """Prompts as rankers read them: instruction and input concatenated."""
    return [Prompt("", "".join(prompt.texts())) for prompt in prompts(inputs, instructions)]


def rows(prompts: Sequence[Prompt], candidates: Candidates) -> Rows:
    """Pair every prompt with its candidates, at least one.

    Raises:
        ValueError: A prompt has no candidates, or one is no text.
    """
    if len(candidates) != len(prompts):
        raise ValueError(f"candidates: there are {len(candidates)} lists of them, for {len(prompts)} inputs")
    read = [texts(f"candidates[{i}]", values) for i, values in enumerate(candidates)]
    for i, row in enumerate(read):
        if not row:
            raise ValueError(f"candidates[{i}]: there are none")
    return list(zip(prompts, read, strict=True))


def reference(candidates: Sequence[str], ref_mode: str) -> str:
    """Candidate that the others are compared with.

    Args:
        candidates: The candidates of a row.
        ref_mode: One of `REFERENCES`. Lengths are characters; of equal lengths the first counts.

    Raises:
        ValueError: `ref_mode` is unknown.
    """
    if ref_mode not in REFERENCES:
        raise ValueError(f"ref_mode {ref_mode!r}: expected one of {', '.join(REFERENCES)}")
    wanted = ToReference(reference=REFERENCES[ref_mode])
    return candidates[strategies.reference_index(wanted, candidates, by_place=True)]


def turns(name: str, conversation: Conversation) -> tuple[list[str], list[str]]:
    """Split a conversation into the user's turns and the assistant's.

    Raises:
        ValueError: The roles do not alternate.
    """
    roles = [turn["role"] for turn in conversation]
    if len(roles) % 2 or roles != ["USER", "ASSISTANT"] * (len(roles) // 2):
        raise ValueError(f"{name}: expected turns of USER and ASSISTANT in alternation, got {', '.join(roles)}")
    contents = texts(name, [turn["content"] for turn in conversation])
    return contents[::2], contents[1::2]


def stacked(arrays: Sequence[NDArray[Any]], dtype: DTypeLike) -> Arrays:
    """One array if all have the same length, of shape [0, 0] for none; else a list of arrays."""
    if not arrays:
        return np.empty((0, 0), dtype)
    if len({len(array) for array in arrays}) > 1:
        return [array.astype(dtype) for array in arrays]
    return np.stack(arrays).astype(dtype)


def ranks(scores: NDArray[Any]) -> NDArray[np.int32]:
    """Ranks of one row's scores: 1 is the best, equal scores share the better rank."""
    return 1 + (scores[None, :] > scores[:, None]).sum(axis=1, dtype=np.int32)


def get_topk_candidates_from_ranks(
    ranks: Sequence[Sequence[int]] | Arrays, candidates: Candidates, top_k: int | None
) -> Arrays:
    """Select the best candidates of every row, best first; of equal ranks the first comes first.

    Args:
        ranks: Each row's ranks; 1 is the best.
        candidates: Each row's candidates.
        top_k: How many; None: all.

    Returns:
        Arrays of Python strings: numpy's own would take the longest's memory for each, and lose a trailing NUL.

    Raises:
        ValueError: Ranks and candidates differ in number.
    """
    if len(ranks) != len(candidates):
        raise ValueError(f"ranks: there are {len(ranks)}, for {len(candidates)} lists of candidates")
    best: list[NDArray[Any]] = []
    for i, (row, given) in enumerate(zip(ranks, candidates, strict=True)):
        if len(row) != len(given):
            raise ValueError(f"ranks[{i}]: there are {len(row)}, for {len(given)} candidates")
        texts = list(given)  # by place: a pandas Series would look an index up
        order = np.argsort(row, kind="stable")[:top_k]
        best.append(np.array([texts[at] for at in order], dtype=object))
    return stacked(best, object)
