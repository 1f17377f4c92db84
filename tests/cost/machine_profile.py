"""A made-up profile of the machine at hand: every operator class at one rate, so that times follow by hand."""

from dataclasses import replace

from sora_runtime.cost.profile import CONSTANTS, TABLES, Profile, Table
from sora_runtime.machine import available_cores, this_machine

RATE = 1e11  # FLOP/s and elements/s of everything
AXES = {
    "product": ("rows", "width"),
    "attention": ("head_channels", "queries", "keys"),
    "convolution": ("channels", "positions"),
    "rest.transformer": ("elements",),
    "rest.convolution": ("channels", "positions"),
}


def axes_of(name: str) -> dict[str, tuple[float, ...]]:
    names = next(axes for prefix, axes in AXES.items() if name.startswith(prefix))
    return dict.fromkeys(names, (1.0, 1000.0))


def made_up(**changes: object) -> Profile:
    tables = {}
    for name in TABLES:
        axes = axes_of(name)
        rate = 2 * RATE if name == "product.int8" else RATE
        tables[name] = Table("FLOP/s", axes, (rate,) * 2 ** len(axes))
    profile = Profile(
        machine=this_machine(),
        num_threads=available_cores(),
        versions={},
        created="2026-11-28T00:00:00+00:00",
        seconds=40.0,
        others=0.0,
        disturbed=0,
        tables=tables,
        constants=dict.fromkeys(CONSTANTS, 0.001) | {"bandwidth": 2e10, "step.element": 0.0},
        in_network={},
    )
    return replace(profile, **changes)  # type: ignore[arg-type]
