"""`sora-bench inspect --memory`: what lies in a GPU's memory while a clip is made, and which GPUs that fits."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.cost.device_memory import DevicePlan

_STEP_GPUS = ("h100-sxm", "rtx-4090")
_SHORT = {"all": "yes", "one network": "1 net", "blocks": "blocks", None: "no"}


def show(model: str | None, size: str | None, frames: int | None, *, json: bool) -> None:
    """Prints the plan of one model's clip in every precision, or with no model the summary of the known ones."""
    from sora_runtime.cli.parse import parse_size
    from sora_runtime.cli.tables import print_all
    from sora_runtime.cost.device_memory import PRECISIONS, all_plans, default_shape, device_plan
    from sora_runtime.cost.models import load_model
    from sora_runtime.errors import InvalidRequest

    if model is None:
        if size is not None or frames is not None:
            raise InvalidRequest("--size and --frames are of one model; name it before --memory")
        found = all_plans()
    else:
        known = load_model(model)
        width, height = parse_size(size) if size is not None else (None, None)
        shape = default_shape(known, width, height, frames)
        found = [device_plan(known, shape, precision) for precision in PRECISIONS]
    if json:
        typer.echo(json_format.dumps([_record(plan) for plan in found], indent=2))
    elif model is None:
        print_all(_summary(found))
    else:
        print_all(_details(model, found))


def _record(plan: DevicePlan) -> dict[str, Any]:
    from sora_runtime.cost.device_memory import CAPACITIES, STAGES

    return {
        "model": plan.model,
        "width": plan.shape.width,
        "height": plan.shape.height,
        "num_frames": plan.shape.frames,
        "precision": plan.precision,
        "weight_bytes": {name: round(size) for name, size in plan.weights.items()},
        "arena_bytes": plan.layout.bytes,
        "tensors": [
            {
                "name": tensor.name,
                "bytes": tensor.bytes,
                "offset": plan.layout.offsets[tensor.name],
                "from": STAGES[tensor.first],
                "to": STAGES[tensor.last],
                "estimated": _estimated(tensor.name),
            }
            for tensor in plan.tensors
        ],
        "fits": {f"{capacity} GB": plan.fits(capacity) for capacity in CAPACITIES},
    }


def _estimated(tensor: str) -> bool:
    return tensor.endswith("scratch")


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _summary(found: Sequence[DevicePlan]) -> Iterator[RenderableType]:
    from sora_runtime.cli.listing import listing
    from sora_runtime.cli.tables import facts
    from sora_runtime.cost.device_memory import CAPACITIES

    fits = [str(capacity) for capacity in CAPACITIES]
    names = ("model", "clip", "in", "weights", "arena", *fits)
    rows, before = [], None
    for plan in found:
        clip = f"{plan.shape.width}x{plan.shape.height}x{plan.shape.frames}"
        head = (plan.model, clip) if (plan.model, clip) != before else ("", "")
        before = (plan.model, clip)
        sizes = (_giga(sum(plan.weights.values())), _giga(plan.layout.bytes))
        rows.append((*head, plan.precision, *sizes, *(_SHORT[plan.fits(capacity)] for capacity in CAPACITIES)))
    yield listing(names, rows, whole=("clip", "in"), numbers=("weights", "arena", *fits), gap=1)
    yield facts(_legend())


def _details(model: str, found: Sequence[DevicePlan]) -> Iterator[RenderableType]:
    from sora_runtime.cli.listing import listing
    from sora_runtime.cli.tables import facts
    from sora_runtime.cost.device_memory import CAPACITIES, STAGES, step_traffic

    plan = found[0]
    rows = [
        (
            tensor.name,
            f"{tensor.bytes / 1e6:,.1f}",
            f"{plan.layout.offsets[tensor.name] / 1e6:,.1f}",
            STAGES[tensor.first] if tensor.first == tensor.last else f"{STAGES[tensor.first]} to {STAGES[tensor.last]}",
            "estimated" if _estimated(tensor.name) else "exact",
        )
        for tensor in plan.tensors
    ]
    yield listing(("in the arena", "MB", "at", "while", ""), rows, whole=("in the arena",), numbers=("MB", "at"))
    fits = [f"{capacity} GB" for capacity in CAPACITIES]
    weights = [
        (
            each.precision,
            *(_giga(size) for size in each.weights.values()),
            _giga(each.needed("all")),
            *(_SHORT[each.fits(capacity)] for capacity in CAPACITIES),
        )
        for each in found
    ]
    names = ("weights in", "text", "transformer", "decoder", "in all", *fits)
    yield listing(names, weights, whole=("weights in",), numbers=names[1:], gap=1)
    shape = plan.shape
    steps = []
    for gpu in _STEP_GPUS:
        step = step_traffic(model, shape, gpu)
        steps.append((gpu, f"{step.bytes / 1e6:,.1f} MB", f"{step.seconds * 1e6:,.0f} us", f"{step.share:.4%}"))
    names = ("fused step on", "moves", "at the bandwidth", "of a step's evaluations")
    yield listing(names, steps, whole=names[:1], numbers=names[1:])
    yield facts(
        [
            ("model", f"{plan.model}, {shape.width}x{shape.height}, {shape.frames} frames"),
            ("arena", f"{_giga(plan.layout.bytes)} GB; at least {_giga(plan.layout.alive)} GB are alive at a time"),
            *_legend(),
        ]
    )


def _legend() -> Iterator[tuple[str, str]]:
    from sora_runtime.cost.memory import USABLE

    yield "sizes", f"GB (1e9 bytes); {USABLE:.0%} of a GPU's memory count as usable"
    yield "yes", "all weights lie on the GPU"
    yield "1 net", "one network's weights at a time; of two experts, one"
    yield "blocks", "two blocks of the transformer at a time, the others come from the host in every step"
    yield "scratch", "counted by the cost model, not read from an engine; all else is exact"
