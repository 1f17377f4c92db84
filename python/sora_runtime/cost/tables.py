"""Reads the catalogue's CSV tables."""

from __future__ import annotations

import csv
from importlib import resources


def rows(name: str) -> list[dict[str, str]]:
    """The rows of one table of the catalogue, by column."""
    text = resources.files("sora_runtime.cost").joinpath(f"catalogue/{name}").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
