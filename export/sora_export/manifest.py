"""Writes bundle.json: hashes, versions, and the file itself in one step."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import onnx
import onnxruntime
import torch
import transformers

import sora_runtime


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal; one that has not changed since is not read again."""
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, *_identity: int) -> str:
    # A bundle's checkpoint is tens of gigabytes, and several of its parts ask for the same file.
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """What bundle.json keeps of a file, so that a changed one is refused.

    A graph also names the files its initialisers point into: what is checked again when it is opened.
    """
    record: dict[str, Any] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    if path.suffix == ".onnx":
        record["data"] = _external_files(path)
    return record


def _external_files(graph: Path) -> list[str]:
    model = onnx.load(graph, load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    return sorted({entry.value for entry in entries if entry.key == "location"})


def made_by() -> dict[str, str]:
    """The versions of everything that shapes a graph."""
    return {
        "sora_runtime": sora_runtime.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Writes bundle.json under a temporary name and renames it."""
    temporary = root / f".{os.getpid()}.bundle.json"
    try:
        text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(root / "bundle.json")
    finally:
        temporary.unlink(missing_ok=True)
