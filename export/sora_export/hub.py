"""Fetches a checkpoint by its id on the Hugging Face hub, without the files that can run code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import sora_runtime
from sora_runtime.errors import BundleError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Configs, tokenizers, weights and words about them: never a pickle, never Python.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.md", "LICENSE*", "NOTICE*"]


def local_checkpoint(name: str, progress: Callable[[str], None]) -> Path:
    """The folder of a checkpoint: `name` itself, a shipped model's, or a download of the hub's repository of that id.

    A download lies in the hub's own cache and is not repeated. Where the files are those of many variants
    (`fp16`), all are fetched: a checkpoint is built as its authors published it.

    Raises:
        BundleError: `name` is neither a folder nor an id that the hub gives.
    """
    folder = Path(name)
    if not folder.exists() and (shipped := Path(sora_runtime.__file__).parent / "models" / name).is_dir():
        return shipped
    if folder.exists() or not _HUB_ID.fullmatch(name):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    progress(f"fetching {name} from the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(
            f"checkpoint {name} is no folder here and the hub does not give it ({reason}); check the name and, for a "
            "gated model, HF_TOKEN"
        ) from error
