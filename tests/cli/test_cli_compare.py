"""`sora-bench compare` as a shell sees it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sora_runtime.cli.app import ReportingGroup
from sora_runtime.cli.compare import compare, parse_prices
from sora_runtime.cost.money import Assumptions
from sora_runtime.errors import InvalidRequest

WAN = "wan2.1-t2v-14b"
FAST = "fastwan2.2-ti2v-5b"
TWO = ("--gpu", "b200", "--gpu", "h100")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `sora-bench compare` at 80 columns, in an app of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer(cls=ReportingGroup)
    app.command()(compare)
    app.callback()(lambda: None)
    return lambda *words: CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False)


def words_of(text: str) -> str:
    """The text without what folding did to it."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    "words",
    [
        (WAN,),
        (WAN, "--volume", "123456789"),
        (FAST, "--volume", "5000"),
        ("mochi-1-preview", "--gpu", "t4", "--gpu", "h20", "--gpu", "h200"),
        ("wan2.2-i2v-a14b", "--task", "i2v", "--size", "832x480", "--match", "alibaba"),
        (WAN, "--gpu", "h100", "--assume", "capital_price=30000", "--price", "1.234567"),
    ],
)
def test_no_line_is_wider_than_80_columns(command: Callable[..., Any], words: tuple[str, ...]) -> None:
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_the_tables(command: Callable[..., Any]) -> None:
    result = command(WAN, *TWO, "--steps", "8", "--guidance-scale", "1")
    assert result.exit_code == 0, result.output
    text = words_of(result.stdout)
    for part in (
        "Wan2.1-T2V-14B: 1280x720, 81 frames at 16 fps (5.06 s), 8 steps, no guidance",
        "wan, this model's family",
        "answer rent: $",
        "on one b200, busy 60% of its time",
        "renting one b200 pays when it is busy over",
        "of all, one h100-sxm pays from the least volume: ",
        "another model is hosted for $",
        "left out prices of hosted models for t2v:",
        "rented GPU USD/month most s busy s/month busy* s/month*",
        "owned GPU USD/month s/month s/month* buy below buy below*",
        "against the cheapest: $0.0600 a second, RunPod public endpoint, Wan 2.1 T2V 720p",
        "730 hours; 8760 / 12",
        "owned, all included, by SemiAnalysis InferenceX (2026)",
        "data sheet",
    ):
        assert part in text, part
    for each in Assumptions().stated():
        assert words_of(f"{each.name} {each.value:g} {each.unit.partition(';')[0]}; {each.origin}") in text
    notes = re.findall(r"\[(\d+)\]$", result.stdout, re.MULTILINE)
    assert set(notes) == set(re.findall(r"^ \[(\d+)\]", result.stdout, re.MULTILINE)) != set()


def test_the_table_is_sorted(command: Callable[..., Any]) -> None:
    lines = command(WAN).stdout.splitlines()
    prices = [float(found[1]) for line in lines if (found := re.match(r" +([\d.]+) (?:GPU|same|other) ", line))]
    assert len(prices) > 60 and prices == sorted(prices)


def test_a_volume_decides_the_answer(command: Callable[..., Any]) -> None:
    """A GPU at 6 USD an hour is 4380 USD a month; RunPod asks 0.06 USD a second; files cost 0.00007 USD a second."""
    words = (WAN, "--steps", "8", "--guidance-scale", "1", "--price", "b200=6", "--gpu", "b200", "--match", "RunPod")
    few = words_of(command(*words, "--volume", "10000").stdout)
    assert "answer call: $600 for the cheapest calls against $4,381 for 1 x b200, for 10,000 generated seconds" in few
    many = words_of(command(*words, "--volume", "100000").stdout)
    assert "answer rent: $4,387 for 1 x b200 against $6,000 for the cheapest calls, for 100,000 generated" in many


def test_never_and_if_fast(command: Callable[..., Any]) -> None:
    text = command(WAN, *TWO).stdout
    assert "answer        call: $" in text and "does not pay even if it is always busy" in words_of(text)
    assert re.search(r"^ b200 .* never +- +never +-$", text, re.MULTILINE)
    text = command(WAN, "--gpu", "t4", "--steps", "8", "--guidance-scale", "1", "--assume", "utilisation=1").stdout
    assert re.search(r"^ t4 .* if fast +- ", text, re.MULTILINE)
    assert "the estimate's band holds the call's price" in words_of(text)


def test_what_cannot_be_used_is_listed_last(command: Callable[..., Any]) -> None:
    text = command("mochi-1-preview", "--gpu", "t4", "--gpu", "h20", "--gpu", "h200").stdout
    rows = [line.split() for line in text.splitlines() if re.match(r" +[\d.-]+ (GPU|same|other) ", line)]
    assert [row[2] for row in rows[-2:]] == ["t4", "h20"] and {row[0] for row in rows[-2:]} == {"-"}
    text = words_of(text)
    assert re.search(
        r" t4 needs [\d.]+ of 16 GB even with its weights streamed h20 the catalogue has no price of it", text
    )
    text = command("mochi-1-preview", "--gpu", "t4").stdout
    assert "no GPU here has both a price and the memory for this clip" in words_of(text)


def test_no_hosted_model(command: Callable[..., Any]) -> None:
    text = words_of(command(WAN, *TWO, "--match", "nobody").stdout)
    assert "none for t2v at about 720 lines and with 'nobody' has a list price on" in text
    assert "the cheapest GPU makes it for $" in text and "rented GPU" not in text


def test_json(command: Callable[..., Any]) -> None:
    result = command(WAN, *TWO, "--gpu", "h20", "--volume", "1000", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["estimated"] is True and record["model"]["name"] == WAN and record["task"] == "t2v"
    assert record["clip"]["frames"] == 81 and record["volume_seconds_per_month"] == 1000
    assert [target["name"] for target in record["against"]] == ["cheapest", "median"]
    apis = [row for row in record["rows"] if row["kind"] == "api"]
    boxes = {row["gpu"]: row for row in record["rows"] if row["kind"] == "gpu"}
    assert set(boxes) == {"b200", "h100-sxm", "h20"} and record["rows"][-1]["gpu"] == "h20"
    names = {"provider", "model", "task", "tier", "audio", "usd_per_second", "comparable", "date", "source", "note"}
    assert all(names <= row.keys() and row["date"] and row["source"] for row in apis) and len(apis) > 40
    b200 = boxes["b200"]
    assert b200["usd_per_second"]["p10"] < b200["usd_per_second"]["p50"] < b200["usd_per_second"]["p90"]
    assert b200["memory"]["fits"] and b200["rent"]["price"]["date"] and b200["rent"]["price"]["sources"]
    assert b200["own"]["price"]["sources"] and b200["data_sheet"]["date"]
    assert b200["rent"]["break_even"][0]["utilisation"] is None
    assert b200["rent"]["break_even"][0]["reason"] == "dearer than this price even when busy all the time"
    assert set(b200["buy_below_usd"]) == {"cheapest", "median"} and b200["reasons"] == {}
    assert boxes["h20"]["rent"] is None and "--price h20=X" in boxes["h20"]["reasons"]["rent"]
    assert "capital_price" in boxes["h100-sxm"]["reasons"]["own"]
    stated = {row["name"]: row for row in record["assumptions"]}
    assert {each.name for each in Assumptions().stated()} | {"month", "API prices", "software"} <= set(stated)
    assert all(row["value"] and row["origin"] for row in stated.values())


def test_csv(command: Callable[..., Any], tmp_path: Path) -> None:
    shown = command(FAST, *TWO, "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    costs = [float(row["usd_per_second"]) for row in rows]
    assert costs == sorted(costs) and {row["kind"] for row in rows} == {"gpu", "api"}
    assert all(row["date"] and row["source"] and "utilisation=0.6" in row["assumptions"] for row in rows)
    box = next(row for row in rows if row["name"] == "b200")
    assert 0 < float(box["rent_utilisation_cheapest"]) < 1 and box["own_seconds_per_month_median"]
    file = tmp_path / "rows.csv"
    written = command(FAST, *TWO, "--csv", file)
    assert (written.exit_code, written.stdout, file.read_text()) == (0, "", shown.stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((WAN, "--gpu", "h100-sxn"), "gpu = 'h100-sxn' is not in the catalogue; the nearest are h100-sxm"),
        ((WAN, "--price", "-1"), "price = -1 is not above 0 USD an hour; use one such as 2.5"),
        ((WAN, "--price", "h100=-1"), "price = -1 is not above 0 USD an hour; use one such as 2.5"),
        ((WAN, "--price", "2", "--price", "spot"), "--price spot is given beside 2"),
        ((WAN, "--frames", "81", "--seconds", "5"), "frames and seconds were both given; give one of them"),
        ((WAN, "--frames", "80"), "num_frames = 80 is not 4k+1; use 77 or 81"),
        ((WAN, "--size", "720p"), "--size 720p is not WIDTHxHEIGHT"),
        ((WAN, "--json", "--csv", "-"), "--json and --csv are both given; use one"),
        ((WAN, "--volume", "-5"), "volume = -5 is out of range"),
        ((WAN, "--assume", "pue"), "--assume pue is not NAME=X"),
        (("wan9",), "model = 'wan9' is neither in the catalogue nor a path"),
    ],
)
def test_bad_requests(command: Callable[..., Any], words: tuple[str, ...], message: str) -> None:
    result = command(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written_is_a_failure(command: Callable[..., Any], tmp_path: Path) -> None:
    result = command(WAN, *TWO, "--csv", tmp_path / "no" / "rows.csv")
    assert result.exit_code == 1 and result.stderr.startswith("error: folder ")


def test_prices_by_gpu() -> None:
    assert parse_prices([]) == (None, {})
    assert parse_prices(["spot", "h100=2.5", "b200=2.3 EUR"]) == ("spot", {"h100": "2.5", "b200": "2.3 EUR"})
    with pytest.raises(InvalidRequest, match="--price h100=3 is given beside 2"):
        parse_prices(["h100=2", "h100=3"])
