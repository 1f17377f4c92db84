"""A search whose answers are known beforehand: it finds the frontier, survives interruptions and keeps its bounds."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from sora_runtime import InvalidRequest
from sora_runtime.bench.frontier import choose
from sora_runtime.bench.frontier_record import COSTS, Constraints, Outcome, Point, Setting, hypervolume, pareto
from sora_runtime.bench.frontier_search import FILE, Search, SearchOptions
from sora_runtime.bench.frontier_space import OWN, SettingsSpace, Variant
from sora_runtime.errors import SoraError

USD = COSTS["usd"]
SOLVERS = (OWN, "euler", "heun")
SPACE = SettingsSpace([Variant(None, 20, 20, SOLVERS, None, tuple(1 - i / 20 for i in range(20)), ())])
# What each solver takes a step, and the steps at which it loses half.
COSTS_A_STEP = {OWN: 1.0, "euler": 1.0, "heun": 2.0}
HALVES_AT = {OWN: 3.0, "euler": 8.0, "heun": 6.0}


def outcome_of(steps: int, solver: str) -> Outcome:
    """A made-up model: more steps are better, less and less; `OWN` beats the others at every cost."""
    cost = steps * COSTS_A_STEP[solver]
    quality = 1.0 / (1.0 + (HALVES_AT[solver] / steps) ** 2)
    return an_outcome(cost, quality)


def an_outcome(cost: float, quality: float) -> Outcome:
    return Outcome(
        prompts=10,
        adherence=quality,
        psnr_mean=30.0,
        fidelity=30.0,
        ssim_mean=0.9,
        flicker=1.0,
        evaluations=cost,
        ratio=cost / 20,
        seconds_per_clip=cost,
        usd_per_second=cost * 1e-6,
    )


ALL = [
    Point(Setting({"num_inference_steps": steps} | ({} if name == OWN else {"solver": name})), outcome_of(steps, name))
    for steps, name in itertools.product(range(1, 21), SOLVERS)
]
FRONT = pareto(ALL, USD)


class Interrupted(Exception):
    """What a key press does to a measurement."""


@dataclass
class Known:
    """A contest that knows every answer.

    Attributes:
        stop_at: of the measurements, the one that is interrupted.
        unservable: solvers that are refused.
    """

    stop_at: int | None = None
    unservable: tuple[str, ...] = ()
    asked: list[Setting] = field(default_factory=list)

    def identity(self, setting: Setting) -> str | None:
        return None if setting.fields.get("solver") in self.unservable else str(setting)

    def measure(self, setting: Setting) -> Outcome:
        self.asked.append(setting)
        if len(self.asked) == self.stop_at:
            raise Interrupted
        return outcome_of(setting.fields["num_inference_steps"], setting.fields.get("solver", OWN))


def search_in(folder: Path, contest: Known, **options: Any) -> list[Point]:
    search = Search.open(folder, SPACE, SearchOptions(**options), {"bundle": "a"})
    try:
        return list(search.run(contest))
    finally:
        search.close()


def test_a_frontier_is_what_no_point_beats() -> None:
    dominated = [p for p in ALL if p not in FRONT]
    assert len(FRONT) == 20
    for point in dominated:
        assert any(
            USD(other.outcome) <= USD(point.outcome) and other.outcome.quality >= point.outcome.quality
            for other in FRONT
        )
    for a, b in itertools.pairwise(FRONT):
        assert USD(a.outcome) < USD(b.outcome) and a.outcome.quality < b.outcome.quality
    # Of two equally good ones the cheaper stays, of two as dear the better.
    tied = [Point(Setting({"n": n}), an_outcome(*pair)) for n, pair in enumerate([(2, 0.5), (1, 0.5), (1, 0.4)])]
    assert [point.setting.fields["n"] for point in pareto(tied, USD)] == [1]


def test_the_hypervolume_is_the_area_under_the_steps() -> None:
    points = [Point(Setting({}), an_outcome(*pair)) for pair in [(5e6, 0.5), (1e7, 0.8), (2e7, 0.9), (3e7, 1.0)]]
    # Corner at 20 USD and quality 0: 0.5 from 5 on, 0.3 more from 10 on; the last two are not inside.
    assert hypervolume(points, USD, (20.0, 0.0)) == pytest.approx((0.5 * 15 + 0.3 * 10) / 20)
    assert hypervolume(points, USD, (20.0, 0.6)) == pytest.approx(0.2 * 10 / 20)


def test_a_search_finds_the_frontier_within_its_budget(tmp_path: Path) -> None:
    contest = Known()
    points = search_in(tmp_path, contest, runs=24)
    assert len(points) == len(contest.asked) == len({str(point.setting) for point in points}) == 24
    assert points[0].setting == Setting({"num_inference_steps": 20})  # what all is compared with
    corner = (USD(points[0].outcome), 0.0)
    whole = hypervolume(FRONT, USD, corner)
    assert hypervolume(pareto(points, USD), USD, corner) > 0.97 * whole
    chosen = choose(points, points[0].outcome, Constraints(min_adherence=0.8), USD)
    wanted = choose(ALL, points[0].outcome, Constraints(min_adherence=0.8), USD)
    assert USD(chosen["draft"].outcome) == USD(wanted["draft"].outcome) == pytest.approx(6e-6)


def test_a_search_beats_as_many_random_settings(tmp_path: Path) -> None:
    """The mean of some seeds against the mean of many draws: an optimiser of no use would come out level."""

    def area(points: list[Point]) -> float:
        return hypervolume(pareto(points, USD), USD, (20e-6, 0.0))

    rng = random.Random(0)
    drawn = [area([ALL[-len(SOLVERS)], *rng.sample(ALL, 15)]) for _ in range(400)]
    found = [area(search_in(tmp_path / str(seed), Known(), runs=16, seed=seed)) for seed in range(4)]
    assert fmean(found) > fmean(drawn)


@pytest.mark.parametrize("stop_at", [1, 2, 5, 13])
def test_an_interrupted_search_goes_on_as_if_nothing_had_been(tmp_path: Path, stop_at: int) -> None:
    whole = search_in(tmp_path / "whole", Known(), runs=16)
    with pytest.raises(Interrupted):
        search_in(tmp_path / "parts", Known(stop_at=stop_at), runs=16)
    contest = Known()
    parts = search_in(tmp_path / "parts", contest, runs=16)
    assert len(contest.asked) == 16 - (stop_at - 1)  # nothing is measured again
    assert parts == whole


def test_a_process_that_was_killed_leaves_a_search_that_goes_on(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from pathlib import Path\n"
        "import test_frontier as t\n"
        "class Dies(t.Known):\n"
        "    def measure(self, setting):\n"
        "        if len(self.asked) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().measure(setting)\n"
        f"t.search_in(Path({str(tmp_path / 'killed')!r}), Dies(), runs=12)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    contest = Known()
    assert search_in(tmp_path / "killed", contest, runs=12) == search_in(tmp_path / "whole", Known(), runs=12)
    assert len(contest.asked) == 7


def test_more_runs_go_on_and_fewer_ask_nothing(tmp_path: Path) -> None:
    first = search_in(tmp_path, Known(), runs=6)
    contest = Known()
    assert search_in(tmp_path, contest, runs=6) == first and not contest.asked
    assert search_in(tmp_path, contest, runs=9)[:6] == first and len(contest.asked) == 3


def test_what_cannot_be_served_costs_no_run_and_an_exhausted_space_ends(tmp_path: Path) -> None:
    contest = Known(unservable=("euler", "heun"))
    points = search_in(tmp_path, contest, runs=100)
    assert sorted(point.setting.fields["num_inference_steps"] for point in points) == list(range(1, 21))
    assert all("solver" not in point.setting.fields for point in points)


def test_another_task_and_another_process_are_refused(tmp_path: Path) -> None:
    search_in(tmp_path, Known(), runs=1)
    with pytest.raises(InvalidRequest, match="holds a search with another bundle; go on with that, or choose"):
        Search.open(tmp_path, SPACE, SearchOptions(1), {"bundle": "b"})
    with pytest.raises(InvalidRequest, match="holds a search with another cost"):
        Search.open(tmp_path, SPACE, SearchOptions(1, "evaluations"), {"bundle": "a"})
    held = Search.open(tmp_path, SPACE, SearchOptions(1), {"bundle": "a"})
    with pytest.raises(InvalidRequest, match=r"another search is at work in '.*'; wait for it or choose another"):
        Search.open(tmp_path, SPACE, SearchOptions(1), {"bundle": "a"})
    held.close()
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    with pytest.raises(SoraError, match="is damaged; remove it, and the search begins anew"):
        Search.open(tmp_path, SPACE, SearchOptions(1), {"bundle": "a"})


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_adherence": 1.5}, "min_adherence = 1.5 is no share of the prompts; use one above 0 and at most 1"),
        ({"min_psnr": float("nan")}, "min_psnr = nan is no bound; use a number above 0"),
        ({"max_usd_per_second": 0.0}, "max_usd_per_second = 0 is no bound; use a number above 0"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Constraints(**bounds)
    assert str(refused.value) == message


def test_presets_keep_the_constraints() -> None:
    reference = outcome_of(20, OWN)
    for bounds in (Constraints(0.9), Constraints(0.5, None, 8e-6), Constraints(None, None, 5e-6)):
        for point in choose(ALL, reference, bounds, USD).values():
            assert bounds.kept(point.outcome)
    free = choose(ALL, reference, Constraints(), USD)
    assert free["best"].outcome == reference
    # Two points of adherence below the reference, and ten.
    lost = {name: reference.quality - point.outcome.quality for name, point in free.items()}
    assert lost["best"] == 0 and 0 < lost["standard"] <= 0.02 < lost["draft"] <= 0.1
    for name, bound in (("standard", 0.02), ("draft", 0.1)):
        cheaper = [p for p in ALL if USD(p.outcome) < USD(free[name].outcome)]
        assert all(reference.quality - p.outcome.quality > bound for p in cheaper)
    tight = choose(ALL, reference, Constraints(None, None, 5e-6), USD)
    assert tight["draft"] == tight["standard"] == tight["best"]  # the best that so little buys
    assert tight["best"].outcome.quality == max(p.outcome.quality for p in ALL if USD(p.outcome) <= 5e-6)


def test_without_a_detector_likeness_decides() -> None:
    levels = {4: 18.0, 8: 24.0, 12: 31.0, 20: 60.0}
    points = [
        Point(Setting({"n": cost}), replace(an_outcome(cost, 0.0), adherence=None, fidelity=level))
        for cost, level in levels.items()
    ]
    chosen = choose(points, points[-1].outcome, Constraints(), USD)
    assert {name: point.setting.fields["n"] for name, point in chosen.items()} == {
        "draft": 8,
        "standard": 12,
        "best": 20,
    }


def test_bounds_that_nothing_keeps_are_refused_in_one_sentence() -> None:
    with pytest.raises(InvalidRequest) as refused:
        choose(ALL, outcome_of(20, OWN), Constraints(0.95, None, 3e-6), USD)
    assert str(refused.value) == (
        "none of 60 settings keeps adherence 0.95 or more and 3e-06 USD a second or less: the best has adherence 0.978 "
        "at 2e-05 USD a second, the cheapest takes 1e-06; ask for less, or let more be measured with --runs"
    )


def test_a_point_is_what_it_was_after_json() -> None:
    for point in FRONT:
        assert Point.read(json.loads(json.dumps(point.record()))) == point
