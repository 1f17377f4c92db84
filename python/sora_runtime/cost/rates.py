"""The achieved rates: few named parameters with priors, their fitted values, and how sure they are.

Every parameter is the logarithm of a positive quantity, so errors are relative. A pair that no published row has
seen (an attention kernel on an architecture, a GPU) keeps its prior and its prior's width, which is what makes an
estimate there wide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Prior:
    """What is believed of a parameter before any clip was timed."""

    value: float  # in `unit`
    spread: float  # standard deviation of its natural logarithm
    unit: str
    about: str


_KERNELS = "beside matrix products; FlashAttention-2 (arXiv 2307.08691), -3 (2407.08608), SageAttention2 (2411.10958)"

# Families of parameters by prefix; a key's longest prefix decides.
PRIORS: dict[str, Prior] = {
    "matrix": Prior(0.90, 0.08, "of dense peak", "large bf16 products where power does not limit them"),
    "matrix.": Prior(1.0, 0.10, "of `matrix`", "an architecture's own deviation"),
    "power.ampere": Prior(1.42, 0.15, "pJ/FLOP at 700 W", "board power over FLOP rate where power limits it"),
    "power.turing": Prior(2.8, 0.25, "pJ/FLOP at 700 W", "as power.ampere"),
    "power.ada": Prior(1.83, 0.25, "pJ/FLOP at 700 W", "as power.ampere"),
    "power.hopper": Prior(0.97, 0.12, "pJ/FLOP at 700 W", "as power.ampere"),
    "power.blackwell": Prior(0.62, 0.15, "pJ/FLOP at 700 W", "as power.ampere"),
    "power.blackwell-rtx": Prior(1.46, 0.20, "pJ/FLOP at 700 W", "as power.ampere"),
    "power.": Prior(1.0, 0.40, "pJ/FLOP at 700 W", "as power.ampere"),
    "gpu.": Prior(1.0, 0.07, "factor on time", "a GPU's own deviation from its data sheet"),
    "engine.": Prior(1.0, 0.05, "factor on time", "an engine's own deviation in GPU work"),
    "attention.fa2": Prior(0.75, 0.15, "of matrix rate", _KERNELS),
    "attention.fa3": Prior(0.95, 0.12, "of matrix rate", _KERNELS),
    "attention.cudnn": Prior(0.90, 0.15, "of matrix rate", _KERNELS),
    "attention.head64": Prior(0.80, 0.12, "factor", "heads of 64 channels against 128: the same kernel papers"),
    "attention.masked": Prior(0.15, 0.50, "of matrix rate", "torch's kernels with an attention mask"),
    "attention.sage2": Prior(1.50, 0.25, "of matrix rate", _KERNELS),
    "attention.sage3": Prior(2.50, 0.40, "of matrix rate", _KERNELS),
    "attention.fp8": Prior(1.40, 0.20, "of matrix rate", _KERNELS),
    "attention.cpu": Prior(0.60, 0.30, "of matrix rate", "blockwise attention on a CPU"),
    "attention.pair.fa2.hopper": Prior(
        0.62, 0.20, "factor", "FlashAttention-2 leaves Hopper's units idle (2407.08608)"
    ),
    "attention.pair.fa2.blackwell": Prior(0.45, 0.35, "factor", "FlashAttention-2 leaves Blackwell's units idle"),
    "attention.pair.fa2.volta": Prior(0.45, 0.50, "factor", "FlashAttention-2 needs Ampere: older kernels run"),
    "attention.pair.fa2.turing": Prior(0.45, 0.50, "factor", "FlashAttention-2 needs Ampere: older kernels run"),
    "attention.pair.masked.blackwell": Prior(2.5, 0.5, "factor", "cuDNN takes masks, and is preferred on Blackwell"),
    "attention.pair.": Prior(1.0, 0.15, "factor", "a kernel on one architecture"),
    "convolution": Prior(0.50, 0.35, "of matrix rate", "3-D convolutions of a VAE"),
    "convolution.": Prior(1.0, 0.20, "factor", "an architecture's own deviation"),
    "memory": Prior(0.75, 0.15, "of bandwidth", "streaming kernels"),
    "fusion.eager": Prior(1.0, 0.20, "of unfused passes", "activation traffic that is left"),
    "fusion.compiled": Prior(0.35, 0.30, "of unfused passes", "activation traffic that is left"),
    "overhead.eager": Prior(0.5e-3, 0.60, "s", "host time of one layer of one evaluation"),
    "overhead.compiled": Prior(0.12e-3, 0.60, "s", "host time of one layer of one evaluation"),
    "clip": Prior(1.0, 0.70, "s", "what a clip takes beside its networks: text, files, mp4"),
    "clip.": Prior(1.0, 0.5, "factor", "an engine's own deviation in that"),
    "precision.fp8": Prior(0.75, 0.15, "of the peak ratio", "scaling and casting around 8-bit products"),
    "precision.int8": Prior(0.70, 0.15, "of the peak ratio", "scaling and casting around 8-bit products"),
    "precision.nvfp4": Prior(0.55, 0.25, "of the peak ratio", "scaling and casting around 4-bit products"),
    "precision.int8-weights": Prior(0.95, 0.10, "of bf16 rate", "weights are widened before each product"),
    "precision.fp6-weights": Prior(0.95, 0.10, "of bf16 rate", "weights are widened before each product"),
    "precision.int4-weights": Prior(0.08, 0.60, "of bf16 rate", "kernels made for one token at a time"),
    "precision.fp32": Prior(1.0, 0.20, "of the peak ratio", "single precision"),
    "quantise.eager": Prior(0.3, 0.40, "of compiled rate", "quantisation as separate kernels"),
    "reuse.teacache": Prior(0.58, 0.20, "steps evaluated", "arXiv 2411.19108, at a threshold of 0.15"),
    "reuse.slope": Prior(1.28, 0.20, "e^exponent", "how the share falls with the threshold"),
    "reuse.": Prior(0.58, 0.25, "steps evaluated", "a method's usual setting"),
    "sparse.": Prior(0.70, 0.30, "of dense kernel rate", "kernels that skip blocks"),
    "link.nvlink": Prior(0.60, 0.30, "of bandwidth", "collectives"),
    "link.": Prior(0.50, 0.50, "of bandwidth", "collectives"),
    "link.pcie": Prior(0.45, 0.30, "of bandwidth", "collectives"),
    "collective": Prior(60e-6, 0.70, "s", "start of one collective"),
    "split": Prior(1.05, 0.05, "factor per doubling", "smaller pieces and waiting, in GPU work"),
    "load": Prior(2.5, 0.60, "GB/s", "weights read from disk, where a time includes it"),
    "offload.model": Prior(3.0, 0.70, "GB/s", "weights brought to the GPU for each clip"),
    "offload.block": Prior(20.0, 0.50, "GB/s", "weights streamed in each evaluation, behind the work"),
}


def prior_of(name: str) -> Prior:
    """The prior of a parameter: its own, else its family's."""
    if name in PRIORS:
        return PRIORS[name]
    family = max((prefix for prefix in PRIORS if prefix.endswith(".") and name.startswith(prefix)), key=len)
    return PRIORS[family]


class Rates(Mapping[str, float]):
    """Parameter values by name; what was never fitted answers with its prior."""

    def __init__(self, logs: Mapping[str, float] | None = None) -> None:
        self._values = {name: math.exp(value) for name, value in (logs or {}).items()}

    def __getitem__(self, name: str) -> float:
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = prior_of(name).value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Recorder(Mapping[str, float]):
    """Rates that note which of them were asked for."""

    def __init__(self, rates: Mapping[str, float]) -> None:
        self.rates = rates
        self.asked: dict[str, None] = {}

    def __getitem__(self, name: str) -> float:
        self.asked[name] = None
        return self.rates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.asked)

    def __len__(self) -> int:
        return len(self.asked)


@dataclass(frozen=True)
class Fit:
    """Fitted parameters: logarithms, their joint covariance, and what no parameter explains."""

    names: tuple[str, ...]
    logs: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    source_spread: float  # relative, common to all rows of one source
    row_spread: float  # relative, of one row
    about: Mapping[str, Any]

    @cached_property
    def _rates(self) -> Rates:
        return Rates(dict(zip(self.names, self.logs, strict=True)))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def rates(self) -> Rates:
        """The values."""
        return self._rates

    def variance(self, gradient: Mapping[str, float]) -> float:
        """Of the logarithm of a time with this gradient; parameters outside the fit add their prior's."""
        index = self._index
        inside = [(index[name], slope) for name, slope in gradient.items() if name in index]
        total = 0.0
        for i, a in inside:
            row = self.covariance[i]
            for j, b in inside:
                total += a * b * row[j]
        outside = (slope * prior_of(name).spread for name, slope in gradient.items() if name not in index)
        return total + sum(value * value for value in outside)


@cache
def fitted() -> Fit:
    """The fit that ships with the package (`python -m benchmarks.fit_rates` writes it)."""
    text = resources.files("sora_runtime.cost").joinpath("catalogue/rates.json").read_text(encoding="utf-8")
    return fit_from(json.loads(text))


def fit_from(record: Mapping[str, Any]) -> Fit:
    """Read a fit as `rates.json` and a machine's profile hold it."""
    names = tuple(record["parameters"])
    lower = record["covariance_lower"]
    covariance = [[0.0] * len(names) for _ in names]
    position = 0
    for i in range(len(names)):
        for j in range(i + 1):
            covariance[i][j] = covariance[j][i] = lower[position]
            position += 1
    return Fit(
        names,
        tuple(record["parameters"][name]["log"] for name in names),
        tuple(tuple(row) for row in covariance),
        record["source_spread"],
        record["row_spread"],
        record["about"],
    )
