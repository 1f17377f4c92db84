"""Predictions against published measurements, each source predicted by rates that never saw it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sora_runtime.cost.predict import Prediction, predict
from sora_runtime.cost.rates import Fit, fitted
from sora_runtime.cost.rows import Case, case_of, published
from sora_runtime.errors import InvalidRequest

# What a row must state for its error to count; the rest has a default that the model's pipeline fixes.
COMPLETE = ("width", "height", "frames", "steps", "gpu")
KINDS = ("dense bf16", "quantised", "reuse or sparse", "multi-gpu")


@dataclass(frozen=True)
class Compared:
    """One row and what was predicted for it."""

    case: Case
    prediction: Prediction

    @property
    def error(self) -> float:
        """Relative to the measurement; above 0: predicted too long."""
        assert self.case.seconds is not None
        return self.prediction.p50 / self.case.seconds - 1.0

    @property
    def inside(self) -> bool:
        """Whether the measurement lies between the tenth and ninetieth percentile."""
        assert self.case.seconds is not None
        return self.prediction.p10 <= self.case.seconds <= self.prediction.p90


@dataclass(frozen=True)
class Summary:
    """The errors of one group of rows."""

    name: str
    rows: int
    median: float  # of the absolute relative error
    p90: float
    bias: float  # median of the signed error
    inside: float  # share of rows in their band


def is_complete(row: Mapping[str, str]) -> bool:
    """Whether a row states everything, has a time, and is not marked doubtful."""
    return all(row.get(name) for name in (*COMPLETE, "seconds")) and row.get("doubtful") != "yes"


def complete_cases(rows: Iterable[Mapping[str, str]] | None = None) -> list[Case]:
    """The rows that errors are counted on."""
    found = []
    for row in published() if rows is None else rows:
        if not is_complete(row):
            continue
        try:
            found.append(case_of(row))
        except InvalidRequest:
            continue  # a model or GPU that the catalogue lacks; `validate` lists these apart
    return found


def predicted(case: Case, fit: Fit) -> Compared:
    """One row against one fit."""
    return Compared(case, predict(case.clip, case.gpu, case.setting, fit, scope=case.scope, assumed=case.assumed))


def held_out(cases: Sequence[Case], progress: Callable[[str], None] | None = None) -> list[Compared]:
    """Every row predicted by a fit to the other sources: one fit for each source."""
    from sora_runtime.cost.fitting import fit

    start = fitted()
    found = []
    for source in dict.fromkeys(case.source for case in cases):
        if progress is not None:
            progress(source)
        others = fit([case for case in cases if case.source != source], start=start)
        found += [predicted(case, others) for case in cases if case.source == source]
    return found


def summarise(compared: Sequence[Compared], key: Callable[[Compared], str]) -> list[Summary]:
    """Errors by group, the largest group first."""
    groups: dict[str, list[Compared]] = {}
    for each in compared:
        groups.setdefault(key(each), []).append(each)
    found = [summary(name, members) for name, members in groups.items()]
    return sorted(found, key=lambda group: -group.rows)


def summary(name: str, compared: Sequence[Compared]) -> Summary:
    """The errors of rows together."""
    absolute = sorted(abs(each.error) for each in compared)
    signed = sorted(each.error for each in compared)
    return Summary(
        name,
        len(compared),
        quantile(absolute, 0.5),
        quantile(absolute, 0.9),
        quantile(signed, 0.5),
        sum(each.inside for each in compared) / len(compared),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """By linear interpolation between the ordered values."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def likely_reason(each: Compared) -> str:
    """Why a row may be far off, from what it is."""
    case, parts = each.case, each.prediction.stages
    total = sum(sum(stage.values()) for stage in parts.values())
    fixed = sum(parts["clip"].values()) + sum(parts["vae_decode"].values())
    if case.scope == "end_to_end" and fixed > 0.25 * total:
        return "short denoising: decode, files and loading decide"
    if case.setting.offload:
        return "offload: how weights move is not stated"
    if case.gpu_count > 1:
        return "how the GPUs share the clip is not fully stated"
    if case.setting.precision not in {"bf16", "fp16"}:
        return "quantised kernels differ by engine and release"
    if "attention" in case.assumed or case.setting.attention == "masked":
        return "the attention kernel is not stated"
    return "a timing unlike others of this GPU and engine" if abs(each.error) > 0.4 else ""
