"""Tokenizers as they were published, read without transformers.

Transformers 5 rebuilds DeBERTa's and T5's tokenizers without the published normalizer (it drops the charsmap of
tokenizer.json), which gives other ids than the models were trained on; so the published tokenizer.json is loaded as
it is, and a lone SentencePiece model through transformers' own converter.
"""

from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import DebertaV2Converter

from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.model_files import read_json


def published(folder: Path) -> Tokenizer | None:
    """Read a folder's tokenizer.json, else its DeBERTa spm.model.

    Args:
        folder: A model folder.

    Returns:
        The tokenizer; None when the folder has other vocabulary files.

    Raises:
        ModelLoadError: The file can't be read.
    """
    file, sentencepiece = folder / "tokenizer.json", folder / "spm.model"
    if file.is_file():
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exception for everything
            raise ModelLoadError(f"{file}: can't be read: {one_line(error)}") from error
    if not sentencepiece.is_file():
        return None
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    slow = SimpleNamespace(  # what the converter reads of the slow tokenizer that transformers 5 dropped
        vocab_file=str(sentencepiece),
        do_lower_case=settings.get("do_lower_case", False),
        split_by_punct=settings.get("split_by_punct", False),
        convert_tokens_to_ids={"[CLS]": 1, "[SEP]": 2}.__getitem__,
    )
    backend = DebertaV2Converter(slow).converted()
    backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    return backend
