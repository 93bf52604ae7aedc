"""Whether a model's weights are there, without loading anything: needs neither torch nor transformers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.model_files import check_folder, check_gguf, is_gguf

HUB_REQUEST_S = 10.0


def check_weights(model: str, revision: str | None = None) -> None:
    """Check that a local folder's weights are there and whole, or that the hub has the model.

    Of a model on the hub only config.json is fetched, so it is quick at any size.

    Args:
        model: Local folder or hub id.
        revision: Of the hub's repository.

    Raises:
        ModelLoadError: When it isn't there, or a file is missing or broken.
    """
    folder = Path(model).expanduser()
    if is_gguf(folder):
        check_gguf(folder)
        return
    if folder.is_dir():
        check_folder(folder)
        return
    with hub_errors(model, revision):
        huggingface_hub.hf_hub_download(model, "config.json", revision=revision)


def check_on_hub(model: str, revision: str | None = None, config: str = "config.json") -> None:
    """Check that the hub or its cache on this machine has a model: one request, without a download's retries.

    Args:
        model: Its id, or an adapter's.
        revision: Of its repository.
        config: Name of the file that describes it.

    Raises:
        ModelLoadError: It isn't there, or can't be asked for.
    """
    with hub_errors(model, revision):
        if not isinstance(huggingface_hub.try_to_load_from_cache(model, config, revision=revision), str):
            huggingface_hub.model_info(model, revision=revision, timeout=HUB_REQUEST_S)


@contextlib.contextmanager
def hub_errors(model: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub in the block into a ModelLoadError of one line.

    Args:
        model: Hub id.
        revision: Of the hub's repository.
    """
    try:
        yield
    except HFValidationError as error:  # not of the form "owner/name": a path was meant
        raise ModelLoadError(f"{model}: no such folder") from error
    except GatedRepoError as error:
        raise ModelLoadError(f"{model}: request access on its hub page, and set HF_TOKEN to your token") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{model}: neither a local folder nor on the hub (for a private one, set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{model}: the hub has no revision {revision!r} of it") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise ModelLoadError(
            f"{model}: no such local folder, not in the hub's cache, and the hub can't be reached; "
            "give a local folder, or check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelLoadError(f"{model}: the download failed: {one_line(error)}") from error
