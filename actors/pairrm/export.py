"""Export of a PairRanker in a published layout, checked by loading it again.

- `pairrm` (`llm-blender/PairRM`): the original's RankerConfig, whose `model_name` is the backbone.
- `pairrm-hf` (`llm-blender/PairRM-hf`): the config of a DeBERTa-v2 with the markers' ids, and the tokenizer.

Both hold encoders with the paper's four markers. A ranker on a causal LM reads another sequence, which neither has
a field for; it stays in the layout that `blend train ranker` writes.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.actors.merged_adapters import is_adapter
from llm_blender_ray.actors.model_files import read_json
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm, save_pairrm, save_tokenizer, save_weights
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.tokenization import PairTokenization, PairTokenizer
from llm_blender_ray.actors.weights import load_tensors, locate, quiet
from llm_blender_ray.configs.rankers import RankerLayout

_BACKBONE_FOLDER = "backbone"
# `model_type` of RankerConfig by that of the backbone: the kinds that llm-blender builds from encoders
_ORIGINAL_TYPES = {"deberta-v2": "deberta", "roberta": "roberta", "xlm-roberta": "xlm-roberta", "bert": "bert"}
_CARD = "README.md"
_SAMPLES = ("What is it? 1) naïve 2) 42", "<|candidate1|> a [SEP] b", "日本語 and\n\ttabs")  # texts of the check


@quiet()
def export_pairrm(
    model: str,
    layout: RankerLayout,
    output: str | Path,
    *,
    backbone: str | None = None,
    revision: str | None = None,
) -> None:
    """Write a ranker in a published layout, with its weights in the type that they are stored in.

    Args:
        model: Folder or hub id of a PairRanker in any layout.
        layout: The layout to write.
        output: Folder that does not exist, or is empty.
        backbone: Of `pairrm`: hub id or folder that `model_name` names. None: the hub id that the given ranker
            names, else `backbone/` within the output, with a config and the tokenizer but no weights.
        revision: Of the hub's repository.

    Raises:
        BlendError: The layout cannot hold the ranker, or the output is not empty.
        ModelLoadError: A model can't be used, or the backbone has another shape or tokenizer than the ranker.
    """
    target = Path(output).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BlendError(f"{target}: exists and is not an empty folder; choose another")
    if backbone is not None and layout != "pairrm":
        raise BlendError(f"backbone is of layout pairrm: {layout} holds the backbone's config and tokenizer itself")
    source = locate(model, revision)
    network, tokenizer = load_pairrm(str(source))
    _check_layout(model, layout, network, tokenizer)
    dtype = _stored_dtype(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as made:
        folder = Path(made) / target.name
        if layout == "pairrm":
            _save_original(network, tokenizer, folder, dtype, read_json(source / "config.json"), backbone)
        else:
            save_pairrm(network, tokenizer, folder, dtype=dtype)
        if (source / _CARD).is_file():
            shutil.copyfile(source / _CARD, folder / _CARD)
        _check_same(network, tokenizer, folder, backbone)
        if target.exists():
            target.rmdir()
        folder.rename(target)


def _check_layout(model: str, layout: RankerLayout, network: PairRMNetwork, tokenizer: PairTokenization) -> None:
    kind = network.pretrained_model.config.model_type
    if not isinstance(tokenizer, PairTokenizer):
        raise BlendError(
            f"{model}: a ranker on a causal LM ({kind}), whose prompt of a pair no published layout can hold; "
            "the folder that `blend train ranker` wrote is its only layout"
        )
    if layout == "pairrm-hf" and kind != "deberta-v2":
        raise BlendError(f"{model}: {layout} holds DeBERTa-v2 and v3 alone, not {kind}")
    if kind not in _ORIGINAL_TYPES:
        raise BlendError(f"{model}: {layout} holds {', '.join(_ORIGINAL_TYPES)}, not {kind}")


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type of all stored weights; float32, which holds the values of all, if they differ or are merged."""
    if is_adapter(folder):
        return torch.float32
    found = {tensor.dtype for tensor in load_tensors(folder).values()}
    return found.pop() if len(found) == 1 else torch.float32


def _save_original(
    network: PairRMNetwork,
    tokenizer: PairTokenization,
    folder: Path,
    dtype: torch.dtype,
    given: dict[str, Any],
    backbone: str | None,
) -> None:
    """Write the original's layout.

    Args:
        network: The ranker.
        tokenizer: Its tokenizer.
        folder: Where to write it.
        dtype: Of the weights.
        given: config.json of the given ranker; the original's further fields are kept.
        backbone: See `export_pairrm`.
    """
    config = network.pretrained_model.config
    original = given if "ranker_type" in given else {}
    if backbone is None and _is_hub_id(original.get("model_name")):
        backbone = original["model_name"]
    folder.mkdir()
    fields = original | {
        "ranker_type": "pairranker",
        "model_type": _ORIGINAL_TYPES[config.model_type],
        "model_name": backbone or _BACKBONE_FOLDER,
        "source_maxlength": tokenizer.budget.source_max_length,
        "candidate_maxlength": tokenizer.budget.candidate_max_length,
        "n_tasks": network.n_tasks,
        "drop_out": network.dropout,
    }
    for of_a_machine in ("cache_dir", "load_checkpoint", "device"):
        fields.pop(of_a_machine, None)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    save_weights(network, folder, dtype)
    if backbone is None:
        inside = folder / _BACKBONE_FOLDER
        inside.mkdir()
        plain = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
        (inside / "config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
        save_tokenizer(tokenizer, inside)


def _is_hub_id(name: object) -> bool:
    """Whether a `model_name` is of the form owner/name, not a path (`../backbone`, `/models/deberta`)."""
    return isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _check_same(network: PairRMNetwork, tokenizer: PairTokenization, folder: Path, backbone: str | None) -> None:
    """Load the written ranker again and compare weights and tokens.

    Raises:
        ModelLoadError: It can't be loaded, or differs.
    """
    try:
        written, its_tokenizer = load_pairrm(str(folder))
    except ModelLoadError as error:
        if backbone is None:
            raise
        raise ModelLoadError(f"backbone {backbone} is not this ranker's: {error}") from error
    after = written.state_dict()
    weights = all(torch.equal(tensor, after[name]) for name, tensor in network.state_dict().items())
    if not weights or _tokens(tokenizer) != _tokens(its_tokenizer) or written.n_tasks != network.n_tasks:
        what = "tokens" if weights else "weights"
        raise ModelLoadError(
            f"{folder.name}: the exported ranker has other {what}"
            + (f"; {backbone} is not its backbone" if backbone else "")
        )


def _tokens(tokenizer: PairTokenization) -> list[list[int]]:
    """Sequences of pairs of the samples."""
    sources = [tokenizer.encode_source(text) for text in _SAMPLES]
    sides = [tokenizer.encode_candidate(text, len(sources[0])) for text in _SAMPLES]
    return [tokenizer.join(source, *sides[i - 1 : i + 1]) for source in sources for i in (1, 2)]
