"""Rows of published latencies, and of batches, as model, work, GPU and setting.

The columns are those of `catalogue/latency.csv`; what a row leaves out is filled from the model's defaults and named,
because every assumption widens the band.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sora_runtime.cost import settings
from sora_runtime.cost.clips import Shape, clip_of
from sora_runtime.cost.hardware import Gpu, find_gpu
from sora_runtime.cost.models import Model, load_model
from sora_runtime.cost.roofline import Clip
from sora_runtime.cost.settings import Setting
from sora_runtime.errors import InvalidRequest

SCOPES = ("end_to_end", "denoise_only", "per_step", "vae_decode", "text_encode")


@dataclass(frozen=True)
class Case:
    """One row, understood."""

    id: str
    model: Model
    clip: Clip
    gpu: Gpu
    gpu_count: int
    setting: Setting
    scope: str
    assumed: tuple[str, ...]  # inputs that the row did not state
    seconds: float | None  # as published

    @property
    def source(self) -> str:
        """Who published it: the prefix of its id."""
        return self.id.rsplit("-", 1)[0]

    @property
    def kind(self) -> str:
        """The class under which its error is reported."""
        if self.gpu_count > 1:
            return "multi-gpu"
        if self.setting.reuse or self.setting.attention_method:
            return "reuse or sparse"
        if self.setting.precision not in {"bf16", "fp16"} or self.setting.attention in {"sage2", "sage3", "fp8"}:
            return "quantised"
        return "dense bf16"


@cache
def published() -> tuple[dict[str, str], ...]:
    """The catalogue's latencies as they are written."""
    text = resources.files("sora_runtime.cost").joinpath("catalogue/latency.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def case_of(row: Mapping[str, str]) -> Case:
    """Understand a row.

    Raises:
        InvalidRequest: something that an estimate needs is missing or impossible, in one sentence.
    """
    model = load_model(_needed(row, "model"))
    gpu = find_gpu(_needed(row, "gpu"))
    text = row.get("optimisations") or ""
    defaults, assumed = model.defaults, []
    values = {}
    for name in ("width", "height", "frames", "steps"):
        value = _integer(row, name)
        if value is None:
            value = getattr(defaults, name)
            assumed.append(name)
        values[name] = value
    guided = _guided(row, model, text)
    count = _integer(row, "gpu_count") or 1
    shape = Shape(guided=guided, image=(row.get("task") or "") == "i2v", **values)
    _, clip = clip_of(model, shape)
    setting = _setting(row, model, gpu, count, guided=guided)
    scope = (row.get("scope") or "end_to_end").strip()
    if scope not in SCOPES:
        raise InvalidRequest(f"scope = {scope!r} is not known; use one of {', '.join(SCOPES)}")
    if not setting.attention_stated and gpu.architecture in {"hopper", "blackwell"}:
        assumed.append("attention")
    if not (row.get("precision") or "").strip():
        assumed.append("precision")
    return Case(row.get("id") or "", model, clip, gpu, count, setting, scope, tuple(assumed), _seconds(row))


def cases(rows: Iterable[Mapping[str, str]]) -> list[Case]:
    """Every row that can be understood; the others are left out."""
    found = []
    for row in rows:
        try:
            found.append(case_of(row))
        except InvalidRequest:
            continue
    return found


def _setting(row: Mapping[str, str], model: Model, gpu: Gpu, count: int, *, guided: bool) -> Setting:
    text = row.get("optimisations") or ""
    lower = text.lower()
    engine = settings.find_engine(row.get("engine") or "")
    stated = settings.attention_in(text, gpu.architecture)
    method, density = settings.sparse_in(text)
    if model.sparse and not method:
        method, density = model.sparse, settings.SPARSE[model.sparse][1]
    reuse, threshold, share = settings.reuse_in(text)
    compiled = engine.compiled or ("compile" in lower and "compile=false" not in lower) or "fusion" in lower
    offload = ""
    if "offload" in lower and count == 1:
        offload = "block" if "block" in lower else "model"
    return Setting(
        engine=engine,
        compiled=compiled or "cuda graph" in lower,
        attention=stated or settings.default_attention(engine, gpu.architecture, model.released, masked=model.masked),
        attention_stated=stated is not None,
        attention_density=density,
        attention_method=method,
        precision=settings.precision_in(row.get("precision") or "", text),
        reuse=reuse,
        reuse_threshold=threshold,
        reuse_share=share,
        parallelism=settings.parallelism_in(text, count, guided=guided, engine=engine),
        offload=offload,
        small_decoder="taehv" in lower or "tiny vae" in lower,
        loads="load included" in lower,
    )


def _guided(row: Mapping[str, str], model: Model, text: str) -> bool:
    value = (row.get("cfg") or "").strip()
    if value:
        return value not in {"0", "0.0"}
    if "distil" in text.lower() or "no cfg" in text.lower():
        return False
    return model.defaults.guided


def _needed(row: Mapping[str, str], name: str) -> str:
    value = (row.get(name) or "").strip()
    if not value:
        raise InvalidRequest(f"{name} is empty; an estimate needs it")
    return value


def _integer(row: Mapping[str, str], name: str) -> int | None:
    text = (row.get(name) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise InvalidRequest(f"{name} = {text!r} is not a number; give a whole number") from None
    if not math.isfinite(value) or value != int(value):
        raise InvalidRequest(f"{name} = {text!r} is not a whole number; give one")
    if value < 1:
        raise InvalidRequest(f"{name} = {text} is out of range; give 1 or more")
    return int(value)


def _seconds(row: Mapping[str, str]) -> float | None:
    text = (row.get("seconds") or "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"seconds = {text!r} is not a number; give seconds or nothing") from None
