"""Where a machine's profile is kept and how a user names it: apart, so that who needs none imports nothing of it."""

from __future__ import annotations

import os
from pathlib import Path

GPU_ID = "this-machine"


def is_this_machine(gpu: str) -> bool:
    """Whether a user's word for a GPU means the machine at hand."""
    return gpu.strip().lower() in {GPU_ID, "cpu"}


def default_path() -> Path:
    """`$XDG_CACHE_HOME/sora-runtime/machine.json`, or the same under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sora-runtime" / "machine.json"
