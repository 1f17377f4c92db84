"""Puts a checkpoint's tokenizer into one `tokenizer.json`."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import T5TokenizerFast

from sora_export.checkpoint import Checkpoint
from sora_runtime.errors import BundleError


def write_tokenizer(checkpoint: Checkpoint, target: Path) -> None:
    """Copies tokenizer/tokenizer.json, or converts tokenizer/spiece.model, to `target`.

    Raises:
        BundleError: The checkpoint has neither, or its sentencepiece model cannot be converted.
    """
    folder = checkpoint.root / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        shutil.copyfile(folder / "tokenizer.json", target)
        return
    if not (folder / "spiece.model").is_file():
        raise BundleError(f"{folder} has neither tokenizer.json nor spiece.model; download the checkpoint again")
    try:
        tokenizer = T5TokenizerFast.from_pretrained(folder)
        tokenizer.backend_tokenizer.save(str(target))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"{folder / 'spiece.model'} cannot be converted to tokenizer.json ({reason}); add a "
            "tokenizer.json saved by transformers"
        ) from error
