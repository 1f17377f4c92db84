"""What a GPU's data sheet says: rates, memory, power and links, by the names people use."""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sora_runtime.errors import InvalidRequest


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU; rates are dense."""

    id: str
    aliases: tuple[str, ...]
    architecture: str
    rates: dict[str, float]  # precision -> FLOP/s (or integer operations/s)
    memory_bytes: float
    bandwidth: float  # bytes/s
    tdp_w: float | None
    link: str  # nvlink, pcie, ethernet, infinity-fabric
    link_bandwidth: float  # bytes/s in one direction
    source: str
    date: str
    verified: bool
    note: str

    def peak(self, precision: str) -> float:
        """Dense peak in FLOP/s; a format without units of its own runs at bf16's rate."""
        return self.rates.get(precision) or self.rates["bf16"]


def _table(name: str) -> list[dict[str, str]]:
    text = resources.files("sora_runtime.cost").joinpath(f"catalogue/{name}").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def gpus() -> dict[str, Gpu]:
    """The catalogue by id."""
    return {row["id"]: _gpu(row) for row in _table("gpus.csv")}


def _gpu(row: dict[str, str]) -> Gpu:
    columns = {"bf16": "bf16_tflops", "fp8": "fp8_tflops", "int8": "int8_tops", "nvfp4": "fp4_tflops"}
    rates = {name: float(row[column]) * 1e12 for name, column in columns.items() if row[column]}
    return Gpu(
        id=row["id"],
        aliases=tuple(row["aliases"].split("|")),
        architecture=row["architecture"],
        rates={**rates, "fp16": rates["bf16"]},
        memory_bytes=float(row["memory_gb"]) * 1e9,
        bandwidth=float(row["bandwidth_gbs"]) * 1e9,
        tdp_w=float(row["tdp_w"]) if row["tdp_w"] else None,
        link=row["link"],
        link_bandwidth=float(row["link_gbs"]) * 1e9,
        source=row["source"],
        date=row["date"],
        verified=row["verified"] == "yes",
        note=row["note"],
    )


_MAKERS = ("nvidia", "geforce", "tesla")  # a driver puts them in front of a GPU's name


def _plain(text: str) -> str:
    plain = "".join(character for character in text.lower() if character.isalnum())
    for maker in _MAKERS:
        plain = plain.removeprefix(maker)
    return plain.removesuffix("generation")


@cache
def _by_alias() -> dict[str, str]:
    return {_plain(alias): gpu.id for gpu in gpus().values() for alias in (gpu.id, *gpu.aliases)}


def find_gpu(text: str) -> Gpu:
    """A GPU by any of its names, whatever the case and punctuation.

    Raises:
        InvalidRequest: unknown; the nearest names are given.
    """
    found = _by_alias().get(_plain(text))
    if found is not None:
        return gpus()[found]
    nearest = difflib.get_close_matches(_plain(text), _by_alias(), n=3, cutoff=0.3)
    hint = ", ".join(dict.fromkeys(_by_alias()[alias] for alias in nearest)) or ", ".join(list(gpus())[:4])
    raise InvalidRequest(f"gpu = {text!r} is not in the catalogue; the nearest are {hint}")
