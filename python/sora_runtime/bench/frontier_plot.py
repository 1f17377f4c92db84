"""Draws what a search measured: cost against quality, the frontier, and the points that became presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_runtime.bench.frontier_record import COSTS, Point, pareto
from sora_runtime.errors import InvalidRequest, SoraError
from sora_runtime.output import partial_file, suffix_of

SUFFIXES = (".svg", ".png", ".pdf")
_GREY, _BLUE, _RED = "#9aa0a6", "#1a5fb4", "#c01c28"
_AXES = {"usd": "USD a generated second", "evaluations": "evaluations a clip"}


@dataclass(frozen=True)
class Picture:
    """What to draw.

    Attributes:
        title: above the plot.
        points: all that were measured; the first is the reference.
        presets: those that have a name.
        cost: a key of `COSTS`.
        behind: points of another origin, such as a full grid, in grey behind the others, and what they are.
    """

    title: str
    points: Sequence[Point]
    presets: Mapping[str, Point]
    cost: str = "usd"
    behind: tuple[str, Sequence[Point]] | None = None


def check_plot(path: Path) -> None:
    """Refuses what no plot can be written to, before anything is measured.

    Raises:
        InvalidRequest: the name's ending.
        SoraError: Matplotlib is not installed.
    """
    if suffix_of(path) not in SUFFIXES:
        raise InvalidRequest(f"--plot {path} ends in none of {', '.join(SUFFIXES)}; use one of them")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise SoraError(
            "frontier draws with matplotlib, which is not installed; pip install 'sora-runtime[search]'"
        ) from error


def draw(picture: Picture, path: Path) -> None:
    """Write the plot to a file; its ending tells the format.

    Raises:
        OutputError: it cannot be written; nothing is left under its name.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    axes = figure.add_subplot()
    _draw_points(axes, picture)
    _label(axes, picture)
    suffix = suffix_of(path)
    # The same points make the same bytes: no date, and element names from a fixed salt.
    with mpl.rc_context({"svg.hashsalt": "sora-runtime"}), partial_file(path) as partial:
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
        figure.savefig(partial, format=suffix.removeprefix("."), dpi=160, metadata=metadata)


def _draw_points(axes: Any, picture: Picture) -> None:
    cost = COSTS[picture.cost]

    def scatter(points: Sequence[Point], **style: Any) -> None:
        axes.scatter([cost(p.outcome) for p in points], [p.outcome.quality for p in points], **style)

    if picture.behind is not None:
        name, points = picture.behind
        scatter(points, s=14, color=_GREY, alpha=0.5, label=name, linewidths=0)
    scatter(picture.points, s=22, color=_BLUE, alpha=0.55, label=f"{len(picture.points)} settings", linewidths=0)
    front = pareto(picture.points, cost)
    xs, ys = [cost(p.outcome) for p in front], [p.outcome.quality for p in front]
    axes.plot(xs, ys, drawstyle="steps-post", color=_BLUE, linewidth=1.6, label="frontier")
    scatter(picture.points[:1], s=60, facecolors="none", edgecolors=_RED, label="reference")
    named: dict[tuple[float, float], list[str]] = {}
    for name, point in picture.presets.items():
        named.setdefault((cost(point.outcome), point.outcome.quality), []).append(name)
    for place, names in named.items():
        axes.annotate(", ".join(names), place, (6, -12), textcoords="offset points", fontsize=9, weight="bold")


def _label(axes: Any, picture: Picture) -> None:
    scored = picture.points[0].outcome.adherence is not None
    axes.set_xscale("log")
    axes.set_xlabel(_AXES[picture.cost])
    axes.set_ylabel("prompts wholly right" if scored else "PSNR against the reference, dB")
    if scored:
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_title(picture.title, fontsize=11)
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
