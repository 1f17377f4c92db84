"""`sora-bench frontier`: searches the settings of a bundle that are cheapest at each quality, and names three."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_runtime.cli.parse import parse_size
from sora_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from sora_runtime.bench.frontier_clips import Judge
    from sora_runtime.bench.frontier_record import Constraints, Point
    from sora_runtime.bench.frontier_search import Search
    from sora_runtime.bench.frontier_task import Opened
    from sora_runtime.reuse_calibration import ClipAsk

CLIPS = 24


class CostAxis(StrEnum):
    """What is to be small."""

    usd = "usd"
    evaluations = "evaluations"


def _asked(text: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel="What is asked of a preset", **more)


def _search(text: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel="Search", **more)


def _clip(text: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel="Clips", **more)


def frontier(  # noqa: PLR0913, PLR0917  (each option of the command is a parameter)
    bundle: Annotated[str, typer.Argument(help="A bundle folder or a shipped bundle's name.", metavar="BUNDLE")],
    min_adherence: Annotated[float | None, _asked("Share of prompts that must be wholly right.", "X")] = None,
    min_psnr: Annotated[float | None, _asked("Likeness to the reference, the mean of clips.", "DB")] = None,
    max_usd_per_second: Annotated[float | None, _asked("Of generated video.", "X")] = None,
    save: Annotated[
        bool | None,
        _asked(
            "Write presets into bundle.json; default: unless it ships.", None, "--save/--no-save", show_default=False
        ),
    ] = None,
    runs: Annotated[int, _search("Settings to measure in all, each with every prompt.", "N", min=1)] = 40,
    with_: Annotated[
        list[str] | None, _search("Also try this bundle of the same model; may be repeated.", "BUNDLE", "--with")
    ] = None,
    cost: Annotated[CostAxis, _search("What is to be small: money, or network calls.")] = CostAxis.usd,
    work: Annotated[Path | None, _search("Remembers the search, to go on with; default: NAME-frontier.", "DIR")] = None,
    seed: Annotated[int, _search("Of the optimiser.", "N", min=0)] = 0,
    prompts: Annotated[
        Path | None, _clip("One prompt a line, behind a tab the picture; a pocket model has its own.", "FILE")
    ] = None,
    clips: Annotated[int, _clip("Prompts of each setting.", "N", min=1)] = CLIPS,
    reference_steps: Annotated[
        int | None, _clip("What all is compared with; default: the bundle's.", "N", min=1)
    ] = None,
    size: Annotated[str | None, _clip("In pixels.", "WIDTHxHEIGHT")] = None,
    num_frames: Annotated[int | None, _clip("Frames of a clip.", "N")] = None,
    pairs: Annotated[int, _clip("Clips timed beside the reference's, for each setting.", "N", min=1)] = 3,
    price_per_hour: Annotated[float | None, typer.Option(help="Of this machine, in USD.", metavar="X", min=0)] = None,
    threads: Annotated[int | None, typer.Option(help="Default: one for every core.", metavar="N")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Default: frontier.svg in the work folder.", metavar="FILE.svg|.png")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with all that was measured.", metavar="")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the way.", metavar="")] = False,
) -> None:
    """Search the settings of BUNDLE for the cheapest at each quality; keep three as presets draft, standard and best.

    An interrupted search goes on when the same command is given again.
    """
    from sora_runtime.bench.frontier_plot import check_plot
    from sora_runtime.bench.frontier_record import Constraints
    from sora_runtime.bench.frontier_search import Search, SearchOptions
    from sora_runtime.bench.frontier_task import Task, opened
    from sora_runtime.bundle import find_bundle, is_shipped
    from sora_runtime.output import check_file

    root = find_bundle(bundle)
    options = SearchOptions(runs, cost.value, Constraints(min_adherence, min_psnr, max_usd_per_second), seed)
    folder = Path(f"{root.name}-frontier") if work is None else work
    check_plot(folder / "frontier.svg" if plot is None else plot)
    saved = not is_shipped(root) if save is None else save
    if saved:
        check_file(root / "bundle.json")
    asks, judge = _asks(root, prompts, clips)
    if min_adherence is not None and judge is None:
        raise InvalidRequest(f"no detector knows what clips of '{root.name}' show; bound them with --min-psnr")
    width, height = parse_size(size) if size else (None, None)
    task = Task(
        bundle=bundle,
        clips=asks,
        others=with_ or (),
        size={"width": width, "height": height, "num_frames": num_frames},
        reference_steps=reference_steps,
        usd_per_hour=price_per_hour,
        num_threads=threads,
        judge=judge,
        pairs=pairs,
    )
    progress: Callable[[str], None] = (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))
    with opened(task, progress) as found:
        search = Search.open(folder, found.space, options, found.identity)
        try:
            _run(search, found, progress)
        finally:
            search.close()
        report = _Report(found, search.points, options.constraints, cost.value)
        report.finish(folder / "frontier.svg" if plot is None else plot, saved=saved, json=json, quiet=quiet)


def _asks(root: Path, prompts: Path | None, clips: int) -> tuple[Sequence[ClipAsk], Judge | None]:
    """The clips to make; of a pocket model's own prompts also who judges them."""
    from sora_export.pocket.captions import held_out_prompts
    from sora_export.pocket.score import is_pocket, wholly_right
    from sora_export.trajectories import read_prompts
    from sora_runtime.reuse_calibration import ClipAsk

    if prompts is not None:
        return [ClipAsk(each.text, each.image) for each in read_prompts(prompts)][:clips], None
    if not is_pocket(json_format.loads((root / "bundle.json").read_bytes())):
        raise InvalidRequest(f"nothing says what clips of '{root.name}' should show; give --prompts FILE, one a line")
    try:
        pairs = held_out_prompts(clips)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error

    return [ClipAsk(text) for text, _ in pairs], lambda number, frames: wholly_right(frames, pairs[number][1])


def _run(search: Search, found: Opened, progress: Callable[[str], None]) -> None:
    """Measure what is left; the reference's time of the first session is that of all."""
    if search.points:
        progress(f"going on after {len(search.points)} settings")
    found.contest.reference_seconds = search.notes.get("reference_seconds")

    def on_point(count: int) -> None:
        search.note(reference_seconds=found.contest.reference_seconds)
        progress(f"{count} of {search.options.runs} settings")

    search.run(found.contest, on_point)


class _Report:
    """What a search found, as a table, a plot, JSON and presets."""

    def __init__(self, found: Opened, points: Sequence[Point], constraints: Constraints, cost: str) -> None:
        from sora_runtime.bench.frontier_record import COSTS, pareto

        self._found, self._points, self._constraints, self._cost = found, points, constraints, cost
        self._front = pareto(points, COSTS[cost])
        self._chosen: dict[str, Point] = {}

    def finish(self, plot: Path, *, saved: bool, json: bool, quiet: bool) -> None:
        """Choose, draw, write and print; what was measured is shown even if nothing can be chosen."""
        from sora_runtime.bench.frontier import choose, store_presets
        from sora_runtime.bench.frontier_plot import Picture, draw
        from sora_runtime.bench.frontier_record import COSTS

        refused: InvalidRequest | None = None
        try:
            self._chosen = choose(self._points, self._points[0].outcome, self._constraints, COSTS[self._cost])
        except InvalidRequest as error:
            refused = error
        presets = {name: self._found.measured.preset(point) for name, point in self._chosen.items()}
        if saved and presets:
            store_presets(self._found.bundle, presets)
        title = f"{self._found.bundle.name}: {len(self._points)} settings, {self._points[0].outcome.prompts} prompts"
        draw(Picture(title, self._points, self._chosen, self._cost), plot)
        if json:
            stored = str(self._found.bundle.root) if saved and presets else None
            typer.echo(json_format.dumps(self._record(presets, stored), indent=2))
        elif not quiet:
            self._print(plot, saved=saved)
        if refused is not None:
            raise refused

    def _record(self, presets: dict[str, Any], stored: str | None) -> dict[str, Any]:
        return {
            "bundle": self._found.bundle.name,
            "cost": self._cost,
            "reference": self._points[0].record(),
            "points": [point.record() for point in self._points],
            "frontier": [point.record() for point in self._front],
            "presets": {name: preset.model_dump(mode="json") for name, preset in presets.items()},
            "stored_in": stored,
        }

    def _print(self, plot: Path, *, saved: bool) -> None:
        from sora_runtime.cli.tables import columns, facts, print_all

        measured, first = self._found.measured, self._points[0].outcome
        height, width, num_frames = measured.size
        heading = [
            ("searched", f"{len(self._points)} settings of {self._found.bundle.name}, {first.prompts} prompts each"),
            ("clip", f"{width}x{height}, {num_frames} frames, {self._found.contest.video_seconds:.2f} s"),
            ("reference", f"{self._points[0].setting}: {first.seconds_per_clip:.2f} s a clip"),
            ("price", f"{measured.usd_per_hour:.4f} USD an hour"),
        ]
        names = ("preset", "settings", "USD a second", "calls", "adherence", "PSNR dB")
        rows = [self._row(point) for point in self._front]
        where = f"{self._found.bundle.root / 'bundle.json'}"
        kept = f"presets written into {where}" if saved else "presets not written; give --save to write them"
        ends = [("plot", str(plot)), *([("presets", kept)] if self._chosen else [])]
        print_all([facts(heading), columns(names, rows, numbers=set(names[2:])), facts(ends)])

    def _row(self, point: Point) -> tuple[str, ...]:
        from sora_runtime.cli.tables import amount

        outcome = point.outcome
        return (
            " ".join(name for name, chosen in self._chosen.items() if chosen == point),
            str(point.setting),
            amount(outcome.usd_per_second),
            f"{outcome.evaluations:.1f}",
            "" if outcome.adherence is None else f"{outcome.adherence:.3f}",
            "same" if outcome.psnr_mean is None else f"{outcome.psnr_mean:.1f}",
        )
