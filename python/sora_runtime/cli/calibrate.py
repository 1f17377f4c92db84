"""`sora-bench calibrate`: measures this machine for a minute, so that estimates of it are its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.cost.profile import Profile


def calibrate(
    threads: Annotated[int | None, typer.Option(help="Threads of the engine; default: all.", metavar="N")] = None,
    out: Annotated[Path | None, typer.Option(help="The profile; default: the user's own.", metavar="FILE")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", metavar="")] = False,
) -> None:
    """Measure a few shapes on this machine in about a minute; --gpu this-machine estimates with them.

    Leave the machine alone meanwhile: what other programs take makes it look slower.
    """
    from sora_runtime.bench.calibrate import calibrate as measure
    from sora_runtime.cli.progress import StageProgress
    from sora_runtime.cli.tables import print_all
    from sora_runtime.cost.profile import save_profile

    with StageProgress(quiet=quiet) as progress:
        profile = measure(num_threads=threads, on_progress=lambda done, total: progress("calibrate", done, total))
    print_all(_tables(profile, save_profile(profile, out)))


def _tables(profile: Profile, file: Path) -> Iterator[RenderableType]:
    from sora_runtime.cli.listing import listing
    from sora_runtime.cli.tables import facts

    rows = []
    for name, table in profile.tables.items():
        low, high = min(table.values) / 1e9, max(table.values) / 1e9
        sizes = ", ".join(f"{axis.replace('_', ' ')} {p[0]:g} to {p[-1]:g}" for axis, p in table.axes.items())
        rows.append((name, f"{low:,.2f}", f"{high:,.1f}", f"G{table.unit}", sizes))
    yield listing(("table", "least", "most", "", "over"), rows, whole=("table", ""), numbers=("least", "most"))
    yield facts(_about(profile, file))


def _about(profile: Profile, file: Path) -> Iterator[tuple[str, str]]:
    yield "machine", f"{profile.machine.cpu}, {profile.machine.cores} cores, {profile.num_threads} threads"
    for precision, table in profile.in_network.items():
        narrow, wide = table.values[0], table.values[-1]
        yield f"in {precision} networks", f"operators take {narrow:.2f} (narrow) to {wide:.2f} (wide) times as long"
    yield "profile", f"{file} ({profile.seconds:.0f} s)"
    others = profile.others
    if others is not None and others > 0.05:
        yield "disturbed", f"other programs took {others:.0%} of the processors meanwhile; calibrate on a quiet machine"
    if profile.disturbed:
        yield "", f"{profile.disturbed} shapes had no repeat to themselves and may read too slow"
