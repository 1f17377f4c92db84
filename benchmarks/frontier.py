"""What a search of settings finds beside a full grid: wan-pocket and its student, the same prompts and noise for all.

    python -m benchmarks.frontier [--part grid|replay|search|all] [--clips 20] [--runs 40] [--threads N]

`grid` measures every setting of a grid once (`results/frontier_grid.json`; begun anew it goes on). `replay` lets the
optimiser of `sora-bench frontier` choose among the grid's settings for several seeds and budgets: its answers are
looked up, so that luck can be told from skill. `search` is the command's own search, free to leave the grid
(`results/frontier.json`, `results/frontier.svg`). Costs are network calls: they are the same on every machine.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from sora_export.pocket.captions import held_out_prompts
from sora_export.pocket.score import wholly_right
from sora_runtime import StepReuse
from sora_runtime.bench.frontier import LOSSES, choose
from sora_runtime.bench.frontier_plot import Picture, draw
from sora_runtime.bench.frontier_record import (
    COSTS,
    Constraints,
    Outcome,
    Point,
    Setting,
    hypervolume,
    pareto,
    setting_key,
)
from sora_runtime.bench.frontier_search import Search, SearchOptions
from sora_runtime.bench.frontier_space import Trial
from sora_runtime.bench.frontier_task import Opened, Task, opened
from sora_runtime.output import write_text
from sora_runtime.reuse_calibration import ClipAsk

RESULTS = Path(__file__).parent / "results"
MODEL, STUDENT = "wan-pocket", "wan-pocket-4step"
STEPS, SOLVERS = (4, 6, 8, 12, 20), ("unipc", "euler", "dpm++2m")
GUIDANCE: dict[str, dict[str, Any]] = {
    "everywhere": {"guidance_scale": 3.0},
    "interval": {"guidance_scale": 3.0, "guidance_interval": [0.3, 0.95]},
    "none": {"guidance_scale": 1.0},
}
REUSE: dict[str, dict[str, Any]] = {
    "none": {},
    "easycache": {"step_reuse": asdict(StepReuse("easycache", threshold=0.1, order=1)), "force_step_reuse": True},
    "taylorseer": {"step_reuse": asdict(StepReuse("taylorseer", interval=2, order=1)), "force_step_reuse": True},
}
REUSED_FROM = 8  # steps; with fewer nothing is reused in the grid
STUDENT_STEPS = (2, 3, 4)  # its schedule ends at a level that one step cannot reach
COST = COSTS["evaluations"]
SEEDS, BUDGETS = range(10), (20, 30, 40)


def grid() -> Iterator[Setting]:
    """Every setting of the grid, the reference first."""
    for steps, solver, guidance in product(reversed(STEPS), SOLVERS, GUIDANCE):
        for reuse in REUSE if steps >= REUSED_FROM else ("none",):
            yield teacher(steps, solver, guidance, reuse)
    for steps, solver in product(STUDENT_STEPS, SOLVERS):
        yield Setting({"num_inference_steps": steps, "solver": solver}, STUDENT)


def teacher(steps: int, solver: str, guidance: str, reuse: str) -> Setting:
    """A setting of wan-pocket by its places on the axes."""
    own = {} if solver == "unipc" else {"solver": solver}
    return Setting({"num_inference_steps": steps, **own, **GUIDANCE[guidance], **REUSE[reuse]})


@dataclass(frozen=True)
class GridSpace:
    """The grid, as the optimiser asks for it."""

    def suggest(self, trial: Trial) -> Setting:
        """Ask for one axis after the other."""
        if trial.suggest_categorical("model", (MODEL, STUDENT)) == STUDENT:
            steps = trial.suggest_int("student.steps", STUDENT_STEPS[0], STUDENT_STEPS[-1])
            solver = trial.suggest_categorical("student.solver", SOLVERS)
            return Setting({"num_inference_steps": steps, "solver": solver}, STUDENT)
        steps = STEPS[trial.suggest_int("steps", 0, len(STEPS) - 1)]
        solver = trial.suggest_categorical("solver", SOLVERS)
        guidance = trial.suggest_categorical("guidance", tuple(GUIDANCE))
        reuse = trial.suggest_categorical("reuse", tuple(REUSE)) if steps >= REUSED_FROM else "none"
        return teacher(steps, solver, guidance, reuse)

    def first(self) -> list[dict[str, Any]]:
        """The reference, so that every search knows what it is compared with."""
        return [{"model": MODEL, "steps": len(STEPS) - 1, "solver": "unipc", "guidance": "everywhere", "reuse": "none"}]


@dataclass(frozen=True)
class Recorded:
    """A contest whose answers are in the grid's record."""

    outcomes: dict[str, Outcome]

    def identity(self, setting: Setting) -> str:
        """What the setting says: the grid's settings make clips of their own."""
        return setting_key(setting)

    def measure(self, setting: Setting) -> Outcome:
        """What was recorded."""
        return self.outcomes[setting_key(setting)]


def task(clips: int, threads: int | None, pairs: int) -> Task:
    """Both models on the first held-out prompts."""
    prompts = held_out_prompts(clips)
    return Task(
        MODEL,
        [ClipAsk(text) for text, _ in prompts],
        (STUDENT,),
        judge=lambda number, frames: wholly_right(frames, prompts[number][1]),
        num_threads=threads,
        pairs=pairs,
    )


def measure_grid(found: Opened, file: Path) -> None:
    """Measure what the record lacks; written after every setting."""
    record: dict[str, Any] = {"task": json.loads(json.dumps(found.identity)), "points": []}
    if file.exists():
        before = json.loads(file.read_text())
        if before["task"] != record["task"]:
            raise SystemExit(f"{file} was measured on another task; move it away")
        record = before
    known = {setting_key(Point.read(each).setting) for each in record["points"]}
    wanted = list(grid())
    for number, setting in enumerate(wanted):
        if setting_key(setting) not in known:
            record["points"].append(Point(setting, found.contest.measure(setting)).record())
            write_text(file, json.dumps(record, indent=1) + "\n")
        print(f"{number + 1} of {len(wanted)}", flush=True)


def read_points(file: Path) -> list[Point]:
    """The points of a record."""
    return [Point.read(each) for each in json.loads(file.read_text())["points"]]


def cheapest(points: list[Point], reference: Outcome) -> float:
    """The network calls of the cheapest point that loses no more adherence than the preset `standard` may."""
    return min(COST(p.outcome) for p in points if LOSSES["standard"].within(p.outcome, reference))


def area(points: list[Point], reference: Outcome) -> float:
    """The hypervolume of a set of points up to the reference's cost."""
    return hypervolume(pareto(points, COST), COST, (COST(reference), 0.0))


def replay(points: list[Point]) -> dict[str, Any]:
    """What the optimiser finds of the grid within a budget, for every seed."""
    reference, recorded = points[0].outcome, Recorded({setting_key(point.setting): point.outcome for point in points})
    whole, best = area(points, reference), cheapest(points, reference)
    found = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            search = Search.open(Path(folder), GridSpace(), SearchOptions(max(BUDGETS), "evaluations", seed=seed), {})
            measured = list(search.run(recorded))
            search.close()
        found.append([(area(measured[:n], reference), cheapest(measured[:n], reference)) for n in BUDGETS])
        print(f"seed {seed}: {[f'{hv / whole:.3f}' for hv, _ in found[-1]]}", flush=True)
    budgets = [
        {
            "runs": runs,
            "share_of_grid": runs / len(points),
            "hypervolume_of_grid": [round(seeds[place][0] / whole, 4) for seeds in found],
            "cheapest": [seeds[place][1] for seeds in found],
        }
        for place, runs in enumerate(BUDGETS)
    ]
    return {"grid": len(points), "grid_hypervolume": whole, "grid_cheapest": best, "budgets": budgets}


def search_freely(found: Opened, points: list[Point], runs: int, work: Path) -> dict[str, Any]:
    """The command's own search on the same clips, beside the grid."""
    search = Search.open(work, found.space, SearchOptions(runs, "evaluations"), found.identity)
    try:
        measured = search.run(found.contest, lambda count: print(f"{count} of {runs}", flush=True))
    finally:
        search.close()
    reference = points[0].outcome
    chosen = choose(measured, reference, Constraints(), COST)
    return {
        "runs": len(measured),
        "prompts": reference.prompts,
        "reference": points[0].record(),
        "hypervolume": area(measured, reference),
        "cheapest": cheapest(measured, reference),
        "presets": {name: point.record() for name, point in chosen.items()},
        "points": [point.record() for point in measured],
    }


def plot(result: dict[str, Any], points: list[Point], path: Path) -> None:
    """The search's points before the grid's."""
    search = result["search"]
    named = {name: Point.read(record) for name, record in search["presets"].items()}
    measured = [Point.read(record) for record in search["points"]]
    title = f"{MODEL} and its student, {search['prompts']} held-out prompts"
    draw(Picture(title, measured, named, "evaluations", (f"full grid, {len(points)} settings", points)), path)


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, with the plot below it."""
    replayed, search = result["replay"], result["search"]
    whole, best = replayed["grid_hypervolume"], replayed["grid_cheapest"]
    lines = [
        "| settings measured | hypervolume, of the grid's | calls of the cheapest as good as the reference |",
        "|---|---|---|",
        f"| the full grid, {replayed['grid']} | 100% | {best:g} |",
    ]
    for each in replayed["budgets"]:
        areas, calls = each["hypervolume_of_grid"], each["cheapest"]
        reached = sum(count <= best for count in calls)
        lines.append(
            f"| {each['runs']} of the grid's, {len(areas)} seeds | {median(areas):.1%}, worst {min(areas):.1%} "
            f"| {median(calls):g}, found by {reached} of {len(calls)} |"
        )
    lines.append(
        f"| {search['runs']}, free to leave the grid | {search['hypervolume'] / whole:.1%} | {search['cheapest']:g} |"
    )
    return "\n".join([*lines, "", "![frontier](benchmarks/results/frontier.svg)"])


def main() -> None:
    """Measure, record, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("grid", "replay", "search", "all"), default="all")
    parser.add_argument("--clips", type=int, default=20, help="held-out prompts of every setting")
    parser.add_argument("--runs", type=int, default=40, help="settings that the free search measures")
    parser.add_argument("--pairs", type=int, default=1, help="clips of a setting timed beside the reference's")
    parser.add_argument("--threads", type=int, help="of the engines; all cores unless told")
    parser.add_argument("--work", type=Path, default=Path("frontier-benchmark"), help="what the free search remembers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the records")
    options = parser.parse_args()
    grid_file, file = options.out / "frontier_grid.json", options.out / "frontier.json"
    with opened(task(options.clips, options.threads, options.pairs), lambda line: print(line, flush=True)) as found:
        if options.part in ("grid", "all"):
            measure_grid(found, grid_file)
        points = read_points(grid_file)
        result = json.loads(file.read_text()) if file.exists() else {}
        if options.part in ("replay", "all"):
            result["replay"] = replay(points)
        if options.part in ("search", "all"):
            result["search"] = search_freely(found, points, options.runs, options.work)
        write_text(file, json.dumps(result, indent=1) + "\n")
    if {"replay", "search"} <= set(result):
        plot(result, points, options.out / "frontier.svg")
        print(table(result))


if __name__ == "__main__":
    main()
