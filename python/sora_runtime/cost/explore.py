"""`sora-bench explore`: one page that prices a clip as this package does, from the same data, without a network.

Everything that decides a number is exported from the modules that `estimate` uses; the page's scripts hold only the
formulas, and a test runs both against each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib import resources
from typing import Any

from sora_runtime import __version__
from sora_runtime.cost import clips, memory, money, predict, prices, rates, roofline, settings
from sora_runtime.cost import estimate as estimates
from sora_runtime.cost.hardware import Gpu, gpus
from sora_runtime.cost.models import Model, load_model, model_names
from sora_runtime.cost.work import OPERATORS, ComponentWork, Sizes

SIZES = ("tokens", "latent_area", "latent_frames")
SCRIPTS = ("work.js", "roofline.js", "estimate.js", "plot.js", "tables.js", "controls.js", "page.js")
# What a hosted model's tier is in pixels of the shorter side; a price without a tier holds for every size.
TIERS = {"480p": 480, "540p": 540, "580p": 580, "720p": 720, "768p": 768, "1080p": 1080, "2k": 1440, "4k": 2160}
# Of a bought GPU; the page prices rented ones, whose rent includes the electricity.
OWNERS_ASSUMPTIONS = ("electricity_price", "capital_price", "lifetime_years", "upkeep_share")

Json = dict[str, Any]


def explore_page(today: str, own_models: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        today: ISO date; API prices withdrawn by then are left out.
        own_models: model cards, bundles or checkpoints to offer beside the catalogue.

    Raises:
        InvalidRequest: one of `own_models` is not a model.
    """
    # "<" written as an escape keeps any text of the data from ending the script element that holds it.
    data = json.dumps(explore_data(today, own_models), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = _template("explore.html").replace("/* STYLE */", _template("explore.css"))
    page = page.replace("/* SCRIPT */", "\n".join(_template(name) for name in SCRIPTS))
    return page.replace("/* DATA */", data)


def _template(name: str) -> str:
    return resources.files("sora_runtime.cost").joinpath(f"page/{name}").read_text(encoding="utf-8")


def explore_data(today: str, own_models: Sequence[str] = ()) -> Json:
    """All that the page's scripts read, as one JSON object."""
    pool = _WorkPool()
    models = [load_model(name) for name in (*model_names(), *own_models)]
    kernels: list[Json] = []  # tables of usual attention kernels; most models share one of a few
    return {
        "version": __version__,
        "today": today,
        "constants": _constants(),
        "limits": _limits(),
        "engines": {
            engine.name: {"compiled": engine.compiled, "current": engine.current} for engine in settings.ENGINES
        },
        "precisions": list(settings.PRECISIONS),
        "attentions": list(settings.ATTENTIONS),
        "models": {model.name: _model(model, pool, kernels) for model in models},
        "works": pool.works,
        "kernels": kernels,
        "gpus": {gpu.id: _gpu(gpu) for gpu in gpus().values()},
        "fit": _fit(),
        "assumptions": _assumptions(),
        "api_prices": _api_prices(today),
        "defaults": {each.name: each.default for each in fields(estimates.Ask) if each.name in _ASK_DEFAULTS},
    }


_ASK_DEFAULTS = ("gpu", "gpu_count", "precision", "engine")


def _constants() -> Json:
    """Numbers of the formulas, from the modules where they stand."""
    return {
        "operators": list(OPERATORS),
        "sizes": list(SIZES),
        "bf16_bytes": roofline.BF16_BYTES,
        "weight_bytes": {name: roofline.weight_bytes(name) for name in settings.PRECISIONS},
        "small_head": roofline._SMALL_HEAD,
        "reference_w": roofline._REFERENCE_W,
        "power_exponent": roofline._POWER_EXPONENT,
        "sharpness": roofline._SHARPNESS,
        "usable_memory": memory.USABLE,
        "z90": predict.Z90,
        "step": predict._STEP,
        "attention_spread": predict.ASSUMED_SPREAD["attention"],
        "part_spread": predict.PART_SPREAD,
        "split_spread": predict.SPLIT_SPREAD,
    }


def _limits() -> Json:
    return {
        "gpus": estimates.MOST_GPUS,
        "width": clips.MOST_PIXELS,
        "height": clips.MOST_PIXELS,
        "frames": clips.MOST_FRAMES,
        "steps": clips.MOST_STEPS,
    }


class _WorkPool:
    """Each network's work once, however many models share it."""

    def __init__(self) -> None:
        self.works: list[Json] = []
        self._index: dict[ComponentWork, int] = {}

    def index_of(self, work: ComponentWork | None) -> int | None:
        """Where the work stands in `works`; None for none."""
        if work is None:
            return None
        if work not in self._index:
            self._index[work] = len(self.works)
            self.works.append(_work(work))
        return self._index[work]


def _work(work: ComponentWork) -> Json:
    """A network: terms as [operator, flops, elements, sizes], operators and sizes by their place in the constants."""
    return {
        "parameters": work.parameters,
        "read": work.read,
        "layers": work.layers,
        "terms": [
            [OPERATORS.index(term.operator), term.flops, term.elements, [SIZES.index(name) for name in term.of]]
            for term in work.terms
        ],
        "peak": [[term.elements, [SIZES.index(name) for name in term.of]] for term in work.peak],
    }


def _model(model: Model, pool: _WorkPool, kernels: list[Json]) -> Json:
    strides, vae = model.strides, model.vae
    usual = _usual_kernels(model)
    if usual not in kernels:
        kernels.append(usual)
    probe = Sizes(tokens=1, latent_area=1, latent_frames=2)
    return {
        "title": model.title,
        "family": model.family,
        "tasks": model.tasks,
        "released": model.released,
        "source": model.source,
        "date": model.date,
        "notes": model.notes,
        "spatial_stride": strides.spatial_stride,
        "temporal_stride": strides.temporal_stride,
        "patch_size": strides.patch_size,
        "pad_latent_frames": strides.pad_latent_frames,
        "pad_size": model.pad_size,
        "chunk": model.chunk,
        "chunk_head": model.chunk_head,
        "defaults": asdict(model.defaults),
        "tiling": model.tiling,
        "width": model.width,
        "head": model.head,
        "attention_method": model.sparse,
        "attention_density": settings.SPARSE[model.sparse][1] if model.sparse else 1.0,
        "kernels": kernels.index(usual),
        "encodes_whole_clip": clips._encoded(model, probe).latent_frames == probe.latent_frames,
        "transformer": pool.index_of(model.transformer),
        "decoder": pool.index_of(vae.decoder if vae else None),
        "encoder": pool.index_of(vae.encoder if vae else None),
        "conditioners": [[encoder.of, pool.index_of(encoder.work)] for encoder in model.encoders],
    }


def _usual_kernels(model: Model) -> Json:
    """The attention kernel where nobody says, by engine and architecture."""
    architectures = sorted({gpu.architecture for gpu in gpus().values()})
    return {
        engine.name: {
            name: settings.default_attention(engine, name, model.released, masked=model.masked)
            for name in architectures
        }
        for engine in settings.ENGINES
    }


def _gpu(gpu: Gpu) -> Json:
    return {
        "title": gpu.aliases[0],
        "architecture": gpu.architecture,
        "rates": gpu.rates,
        "memory_bytes": gpu.memory_bytes,
        "bandwidth": gpu.bandwidth,
        "tdp_w": gpu.tdp_w,
        "link": gpu.link,
        "link_bandwidth": gpu.link_bandwidth,
        "source": gpu.source,
        "date": gpu.date,
        "verified": gpu.verified,
        "prices": _gpu_prices(gpu),
    }


def _gpu_prices(gpu: Gpu) -> Json:
    """What may be chosen, by commitment; the first is what an estimate takes if nobody says."""
    known = {price.commitment for price in prices.gpu_prices(gpu.id)}
    chosen = {name: prices.usd_per_hour(gpu, name) for name in prices.COMMITMENTS if name in known}
    return {
        name: {
            "usd_per_hour": price.usd_per_hour,
            "what": price.what,
            "describe": price.describe,
            "date": price.date,
            "sources": price.sources,
        }
        for name, price in chosen.items()
    }


def _fit() -> Json:
    fit = rates.fitted()
    lower = [value for i, row in enumerate(fit.covariance) for value in row[: i + 1]]
    return {
        "names": fit.names,
        "logs": fit.logs,
        "covariance_lower": lower,
        "source_spread": fit.source_spread,
        "row_spread": fit.row_spread,
        "about": dict(fit.about),
        "priors": {name: [prior.value, prior.spread] for name, prior in rates.PRIORS.items()},
    }


def _assumptions() -> list[Json]:
    return [
        {
            "name": each.name,
            "value": each.default,
            "unit": each.metadata["unit"],
            "origin": each.metadata["origin"],
            "low": each.metadata["low"],
            "high": each.metadata["high"] if each.metadata["high"] < float("inf") else None,
            "shown": each.name not in OWNERS_ASSUMPTIONS,
        }
        for each in fields(money.Assumptions)
    ]


def _api_prices(today: str) -> list[Json]:
    """List prices that are still offered."""
    return [
        {
            "provider": price.provider,
            "model": price.model,
            "task": price.task,
            "tier": price.tier,
            "pixels": TIERS.get(price.tier),
            "audio": price.audio,
            "usd_per_second": price.usd_per_second,
            "date": price.date,
            "source": price.source,
            "note": price.note,
        }
        for price in prices.api_prices()
        if price.kind == "list" and price.offered(today)
    ]
