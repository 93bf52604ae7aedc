"""Numbers of tokens of texts."""

from collections.abc import Callable, Sequence

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.tokens import load_tokenizer_backend
from llm_blender_ray.actors.weights import locate, quiet


def token_lengths(model: str) -> Callable[[Sequence[str]], list[int]]:
    """A function that counts the tokens of texts, with those that the tokenizer adds to each.

    Args:
        model: Folder or hub id with the tokenizer.

    Raises:
        ModelLoadError: It can't be used.
    """
    try:
        with quiet():
            tokenizer = load_tokenizer_backend(locate(model, weights=False))
    except ModelLoadError as error:
        raise ModelLoadError(f"tokenizer: {error}") from error  # of the default the user knows no name
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(one.ids) for one in tokenizer.encode_batch_fast(list(texts))]
