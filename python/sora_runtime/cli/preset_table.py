"""What `sora-bench inspect` shows of presets: their settings, and what those were found to cost and to lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.presets import Preset


def tables(presets: Mapping[str, Preset]) -> Iterator[RenderableType]:
    """A row for each preset, and on what clips and which machines they were measured."""
    from sora_runtime.bench.frontier_record import Setting
    from sora_runtime.cli.tables import amount, columns, facts

    names = ("preset", "settings", "s a clip", "USD a second", "adherence", "PSNR dB")
    rows = [
        (
            name,
            str(Setting(preset.settings, preset.bundle)),
            f"{preset.cost.seconds_per_clip:.3g}",
            amount(preset.cost.usd_per_second),
            "" if preset.quality.adherence is None else f"{preset.quality.adherence:.3f}",
            "same" if preset.quality.psnr_mean is None else f"{preset.quality.psnr_mean:.1f}",
        )
        for name, preset in presets.items()
    ]
    yield columns(names, rows, numbers=set(names[2:]))
    measured = {
        f"{preset.clip}, {preset.quality.prompts} prompts, on {preset.cost.machine} "
        f"at {preset.cost.price_per_hour:g} USD an hour"
        for preset in presets.values()
    }
    yield facts([("measured", each) for each in sorted(measured)])
