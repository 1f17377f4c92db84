"""Comparisons: the order of the rows, which prices are rows, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from sora_runtime.cost.compare import Comparison, Question, compare
from sora_runtime.cost.estimate import Ask, estimate_of
from sora_runtime.cost.explore import TIERS
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.hosted import SAME_CLASS, of_family
from sora_runtime.cost.prices import api_prices, usd_per_hour
from sora_runtime.errors import InvalidRequest

TODAY = "2026-11-28"
WAN = "wan2.1-t2v-14b"
FAST = "fastwan2.2-ti2v-5b"  # so cheap that every GPU beats calling


def question(model: str = WAN, gpus: tuple[str, ...] = ("h100-sxm", "b200"), **wanted: object) -> Question:
    asks = {name: wanted.pop(name) for name in list(wanted) if name in Ask.__dataclass_fields__}
    return Question(Ask(model, **asks), TODAY, gpus, **wanted)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def everything() -> Comparison:
    return compare(question(gpus=()))


def usd_of(row: object) -> float:
    usd = row.usd_per_second  # type: ignore[attr-defined]
    return math.inf if usd is None else getattr(usd, "p50", usd)


def test_rows_are_sorted_by_dollars_a_second(everything: Comparison) -> None:
    costs = [usd_of(row) for row in everything.rows]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    assert {type(row).__name__ for row in everything.rows} == {"GpuRow", "ApiRow"}


def test_every_gpu_is_a_row_or_named_as_without_price(everything: Comparison) -> None:
    shown = {row.gpu for row in everything.gpus}
    assert shown | set(everything.without_price) == set(gpus())
    assert not shown & set(everything.without_price)
    assert {"h100-sxm", "b200", "rtx-4090", "mi300x"} <= shown and "h20" not in shown


def test_a_gpu_costs_what_the_estimate_says(everything: Comparison) -> None:
    row = next(row for row in everything.gpus if row.gpu == "h100-sxm")
    found = estimate_of(Ask(WAN, gpu="h100-sxm"))
    assert row.usd_per_second.p50 == pytest.approx(found.money.usd_per_second, rel=1e-12)
    assert row.usd_per_second.p10 == pytest.approx(found.money_at(found.prediction.p10).usd_per_second, rel=1e-12)
    assert row.usd_per_second.p90 == pytest.approx(found.money_at(found.prediction.p90).usd_per_second, rel=1e-12)
    assert row.memory.fits and not row.memory.offload
    streamed = next(row for row in everything.gpus if row.gpu == "rtx-4090")
    assert streamed.memory.fits and streamed.memory.offload == "block"


def test_api_rows_are_list_prices_of_the_task_that_are_still_offered(everything: Comparison) -> None:
    for row in everything.apis:
        price = row.price
        assert price.kind == "list" and price.task == "t2v" and price.offered(TODAY)
        assert price.date and price.source
    withdrawn = [price for price in api_prices() if price.task == "t2v" and not price.offered(TODAY)]
    assert everything.left_out["withdrawn"] == len(withdrawn) > 0


def test_a_withdrawn_price_was_a_row_while_it_was_offered() -> None:
    for on, there in (("2026-09-23", True), ("2026-09-24", False)):
        found = compare(replace(question(), on=on))
        assert any((row.price.provider, row.price.model) == ("OpenAI", "sora-2") for row in found.apis) is there


@pytest.mark.parametrize(
    ("width", "height", "tiers"),
    [(1280, 720, {"720p", "768p", ""}), (832, 480, {"480p", "540p", ""}), (1920, 1088, {"1080p", ""})],
)
def test_tiers_are_of_the_clips_class(width: int, height: int, tiers: set[str]) -> None:
    found = compare(question(width=width, height=height))
    assert {row.price.tier for row in found.apis} == tiers
    for row in found.apis:
        assert not row.price.tier or abs(math.log(TIERS[row.price.tier] / height)) <= math.log(SAME_CLASS)
    assert found.left_out["of another size"] > 0


def test_an_offer_is_a_row_at_its_nearest_tier_alone() -> None:
    rows = [row.price for row in compare(question("wan2.2-i2v-a14b", width=832, height=480, match="Wan v2.2")).apis]
    assert [(price.tier, price.usd_per_second) for price in rows] == [("480p", 0.04)], "neither 580p nor 720p"


def test_a_picture_makes_it_another_task() -> None:
    found = compare(question("wan2.2-ti2v-5b", task="i2v"))
    assert found.task == "i2v" and found.estimate.shape.image
    assert {row.price.task for row in found.apis} == {"i2v"}
    assert compare(question("wan2.2-ti2v-5b", image=True)).apis == found.apis
    assert compare(question("wan2.2-ti2v-5b", task="t2v")).task == "t2v"


@pytest.mark.parametrize(
    ("family", "name", "same"),
    [
        ("wan", "Wan 2.1 T2V 720p", True),
        ("wan", "wan3.0-video-prime", True),
        ("wan", "swan-1", False),
        ("wan", "wanx", False),
        ("ltx", "LTX-2 fast", True),
        ("minimax", "minimax/h3/text-to-video", True),
        ("open-sora", "sora-2", False),
        ("Wan", "wan2.7-t2v", True),
        ("", "wan2.7-t2v", False),
    ],
)
def test_families_are_words(family: str, name: str, same: bool) -> None:
    assert of_family(family, name) is same


def test_targets_are_of_the_family_where_it_is_hosted(everything: Comparison) -> None:
    hosted = sorted(row.usd_per_second for row in everything.apis if "wan" in row.price.model.lower())
    cheapest, middle = everything.targets
    assert everything.same_family and cheapest.usd_per_second == hosted[0]
    half = len(hosted) // 2
    assert middle.usd_per_second == pytest.approx((hosted[half] + hosted[~half]) / 2)
    assert usd_of(everything.rows[0]) < hosted[0], "a cheaper price of another model is a row and no target"
    assert [row.comparable for row in everything.apis].count(True) == len(hosted)


def test_other_models_are_targets_where_the_family_is_not_hosted() -> None:
    found = compare(question("mochi-1-preview", width=848, height=480))
    assert not found.same_family and all(row.comparable for row in found.apis)
    assert found.targets[0].usd_per_second == found.apis[0].usd_per_second


def test_a_match_without_rows_has_no_targets() -> None:
    found = compare(question(match="nobody hosts this"))
    assert (found.apis, found.targets, len(found.gpus)) == ([], (), 2)
    assert all(row.rent.break_even == () and row.buy_below == () for row in found.gpus)


def test_bills_of_a_month() -> None:
    found = compare(question(FAST, volume=2000.0))
    rent = usd_per_hour("b200").usd_per_hour * 730
    row = next(row for row in found.gpus if row.gpu == "b200")
    assert row.rent.usd_at_volume == pytest.approx(rent + 2000 * 5 / 8000 * (0.023 + 0.09))
    assert all(row.usd_at_volume == pytest.approx(2000 * row.price.usd_per_second) for row in found.apis)


def test_clips_that_nobody_keeps_cost_the_caller_too() -> None:
    found = compare(question(assumptions={"discarded_share": 0.5}))
    assert all(row.usd_per_second == 2 * row.price.usd_per_second for row in found.apis)


def test_what_does_not_fit_comes_last_with_its_reason() -> None:
    found = compare(question("mochi-1-preview", gpus=("t4", "h100-sxm", "h200-sxm", "h20")))
    assert [row.gpu for row in found.rows[-3:]] == ["t4", "h100-sxm", "h20"]
    assert found.gpus[0].gpu == "h200-sxm" and not found.gpus[0].reason
    small = next(row for row in found.gpus if row.gpu == "t4")
    assert (small.usd_per_second, small.rent, small.own, small.seconds_per_month) == (None, None, None, None)
    assert small.reason == f"needs {small.memory.peak / 1e9:.1f} of 16 GB even with its weights streamed"
    assert small.memory.peak > 16e9


def test_a_named_gpu_without_a_price_comes_last() -> None:
    row = compare(question(gpus=("h20", "b200"))).rows[-1]
    assert row.gpu == "h20" and row.usd_per_second is None and "--price h20=X" in row.reason
    assert row.memory.fits and row.buy_below
    priced = next(row for row in compare(question(gpus=("h20",), prices={"H20": "1.5"})).gpus)
    assert priced.rent.price.usd_per_hour == 1.5


def test_a_price_of_one_gpu_adds_it() -> None:
    found = compare(question(gpus=("b200",), prices={"h20": "1.5"}))
    assert {row.gpu for row in found.gpus} == {"b200", "h20"}


def test_a_commitment_is_every_gpus() -> None:
    found = compare(question(gpus=("h100-sxm", "b200", "gh200"), price="spot"))
    rent = {row.gpu: row.rent for row in found.gpus}
    assert rent["h100-sxm"].price.usd_per_hour == usd_per_hour("h100-sxm", "spot").usd_per_hour
    assert rent["gh200"] is None and "that is spot" in found.rows[-1].reason


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"gpus": ("h100-sxn",)}, "gpu = 'h100-sxn' is not in the catalogue; the nearest are h100-sxm"),
        ({"price": "-1"}, "price = -1 is not above 0 USD an hour"),
        ({"price": "nan"}, "price = nan is not above 0 USD an hour"),
        ({"prices": {"b200": "-2"}}, "price = -2 is not above 0 USD an hour"),
        ({"prices": {"b200": "2", "B200": "3"}}, "prices of b200, B200 name one GPU twice"),
        ({"price": "2"}, "price = 2 would be that of 2 kinds of GPU; name one with --gpu"),
        ({"price": "cheapest"}, "price = 'cheapest' is neither a number"),
        ({"num_frames": 81, "seconds": 5.0}, "frames and seconds were both given"),
        ({"volume": 0.0}, "volume = 0 is out of range"),
        ({"volume": float("nan")}, "volume = nan is out of range"),
        ({"volume": 1e300}, "volume = 1e+300 is out of range"),
        ({"task": "v2v"}, "task = 'v2v' is not known; use t2v or i2v"),
        ({"task": "i2v"}, "task = 'i2v' is not what Wan2.1-T2V-14B is asked for; use t2v"),
        ({"assumptions": {"capital_price": 3e4}}, "capital_price = 30000 would be that of 2 kinds of GPU"),
        ({"assumptions": {"capital_price": 1e300}}, "capital_price = 1e+300 is out of range"),
        ({"assumptions": {"utilization": 0.5}}, "the nearest are utilisation"),
    ],
)
def test_bad_questions_are_answered_in_a_sentence(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        compare(question(**wanted))  # type: ignore[arg-type]
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_nothing_heavy_is_imported() -> None:
    """A comparison answers in about a second because of what it leaves out."""
    heavy = "('torch', 'numpy', 'onnxruntime', 'pydantic')"
    code = (
        "import sys; from sora_runtime.cost.compare import *; import sora_runtime.cli.compare_tables as tables; "
        f"tables.print_comparison(compare(Question(Ask('{WAN}'), '{TODAY}'))); "
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
