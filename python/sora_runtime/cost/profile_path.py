"""Where a machine's profile is kept: apart, so that a clip without one imports nothing of the estimator."""

from __future__ import annotations

import os
from pathlib import Path


def default_path() -> Path:
    """`$XDG_CACHE_HOME/sora-runtime/machine.json`, or the same under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sora-runtime" / "machine.json"
