"""`sora-bench plan` as a shell sees it, with made-up service times."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sora_runtime.cli.app import ReportingGroup
from sora_runtime.cli.plan import plan
from sora_runtime.cost import service as estimator
from sora_runtime.cost.fleet import ServiceTime
from sora_runtime.cost.plan_record import ClipSettings
from sora_runtime.cost.prices import NoPrice
from sora_runtime.errors import InvalidRequest

# Seconds of one GPU, USD on demand and on spot; the rest of the catalogue has no price here.
KINDS = {"h100-sxm": (180.0, 2.7, 0.8), "b200": (90.0, 5.0, None), "l40s": (500.0, 0.9, None)}


class Asked(list[tuple[str, str, int, ClipSettings]]):
    """What the command asked of the estimator."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A made-up estimator in the place of the real one."""
    calls = Asked()

    def service_time(model: str, gpu: str, count: int, settings: ClipSettings) -> ServiceTime:
        calls.append((model, gpu, count, settings))
        if model == "nothing":
            raise InvalidRequest("model = 'nothing' is not known; use wan2.1-t2v-14b")
        if gpu not in KINDS:
            raise NoPrice(f"the catalogue has no price of {gpu}; state one with --price")
        seconds, usd, spot = KINDS[gpu]
        seconds /= count**0.9
        origin = "made up, 2026-11-22; https://example.org/prices/of/a/rather/long/address/that/has/to/fold"
        fits = (gpu, count) != ("l40s", 1)
        reason = "" if fits else "needs 60 GB of 48"
        band = seconds * 0.8, seconds, seconds * 1.25
        return ServiceTime(gpu, count, *band, usd, spot, 700.0, 5.0, 90.0, fits, reason, origin, origin)

    monkeypatch.setattr(estimator, "service_time", service_time)
    return calls


@pytest.fixture
def command(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `sora-bench plan` in an app of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer(cls=ReportingGroup)
    app.command()(plan)
    app.callback()(lambda: None)
    return lambda *words: CliRunner().invoke(app, ["plan", *map(str, words)], catch_exceptions=False)


def words_of(text: str) -> str:
    """The text without what folding did to it."""
    return " ".join(text.split())


def test_a_plan(command: Callable[..., Any], asked: Asked) -> None:
    result = command("wan2.1-t2v-14b", "--requests-per-hour", "100", "--peak-factor", "2", "--size", "1280x720")
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    text = words_of(result.stdout)
    for part in (
        "100 clips of wan2.1-t2v-14b an hour, 2 x that in the busiest hour",
        "x h100-sxm; ",
        "a month, $",
        "of 300 s allowed",
        "MW of GPUs",
        "fast (p10)",
        "slow (p90)",
        "elastic",
        "latency target / 2",
        "spot share 100%",
        "price low: $1.89/h",
        "2 x the mean; sized for it; --peak-factor",
        "made up, 2026-11-22",
        "needs 60 GB of 48: l40s x 1",
    ):
        assert part in text, part
    assert {gpu for _, gpu, *_ in asked} > {"h100-sxm", "b200", "l40s"}
    assert {settings for *_, settings in asked} == {ClipSettings(1280, 720)}


def test_options_reach_the_estimator(command: Callable[..., Any], asked: Asked) -> None:
    words = ["--gpu", "b200", "--gpu", "h100-sxm", "--seconds", "5", "--steps", "30", "--guidance-scale", "1"]
    words += ["--precision", "fp8", "--engine", "sglang", "--attention", "fa3", "--requests-per-hour", "9"]
    assert command("m", *words).exit_code == 0
    assert {(gpu, count) for _, gpu, count, _ in asked} == {(g, n) for g in ("b200", "h100-sxm") for n in (1, 2, 4, 8)}
    settings = ClipSettings(None, None, None, 5.0, 30, 1.0, "fp8", "sglang", "fa3")
    assert {each for *_, each in asked} == {settings}


def test_json(command: Callable[..., Any]) -> None:
    result = command("m", "--requests-per-hour", "50", "--gpu", "h100-sxm", "--spot-share", "1", "--json")
    record = json.loads(result.stdout)
    assert record["estimated"] is True
    assert record["model"] == "m"
    assert record["chosen"]["spot_gpus"] == record["chosen"]["gpus"] > 0
    assert {row["name"] for row in record["assumptions"]} >= {"on demand", "failed clips", "PUE"}
    assert len(record["sensitivity"]) == 10


def test_csv(command: Callable[..., Any]) -> None:
    result = command("m", "--requests-per-hour", "50", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    kinds = [row["row"] for row in rows]
    assert kinds[:3] == ["chosen", "service time p10", "service time p90"]
    assert kinds.count("runner-up") >= 2
    assert kinds.count("sensitivity") == 10
    assert float(rows[0]["usd_per_month"]) <= min(
        float(row["usd_per_month"]) for row in rows if row["row"] == "runner-up"
    )


def test_a_trace(command: Callable[..., Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_seconds,clips\n" + "".join(f"{600 * i},{1 + i % 3}\n" for i in range(200)))
    result = command("m", "--trace", trace, "--gpu", "h100-sxm")
    assert result.exit_code == 0
    assert "as in the trace; --trace" in words_of(result.stdout)
    trace.write_text("arrival_seconds\n1\nx\n")
    result = command("m", "--trace", trace)
    assert result.exit_code == 2
    assert "line 3: arrival 'x' is not a number of seconds" in result.stderr


def test_assumptions_can_be_overridden(command: Callable[..., Any]) -> None:
    result = command("m", "--requests-per-hour", "50", "--assume", "failed_share=0.04", "--assume", "pue=1.1")
    text = words_of(result.stdout)
    assert "4.0%, made again at once; given as failed_share" in text
    assert "1.1; given as pue" in text


def test_published(command: Callable[..., Any], asked: Asked) -> None:
    result = command("--published", "factorial-funds")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    lines = [line.split() for line in result.stdout.splitlines()]
    assert any(line[-4:-1] == ["89,200", "89,167", "176,262"] for line in lines)
    assert any(line[-4:-2] == ["720,000", "720,000"] for line in lines)
    assert any(line[-4:-2] == ["504", "504"] for line in lines)
    text = words_of(result.stdout)
    assert "8 x 90,000, from the rounded 90,000; 8 x 89,167 = 713,333" in text
    assert "10.7M / 120 = 89,167, published as 89,200" in text
    assert {(model, gpu) for model, gpu, *_ in asked} == {("wan2.1-t2v-14b", "h100-sxm")}


def test_published_as_data(command: Callable[..., Any]) -> None:
    record = json.loads(command("other", "--published", "factorial-funds", "--gpu", "b200", "--json").stdout)
    peak = next(step for step in record["steps"] if step["what"] == "GPUs at the peak")
    assert peak["stated"] == 720_000
    assert peak["ours"] == record["ours"]["plan"]["chosen"]["gpus"]
    rows = list(csv.DictReader(io.StringIO(command("--published", "factorial-funds", "--csv").stdout)))
    assert [row["computed"] for row in rows if row["what"] == "power of the GPUs"] == ["504.0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m"], "no demand was given"),
        (["--requests-per-hour", "5"], "no MODEL was given"),
        (["nothing", "--requests-per-hour", "5"], "model = 'nothing' is not known"),
        (["m", "--requests-per-hour", "0"], "requests per hour = 0 is not between"),
        (["m", "--requests-per-hour", "-3"], "requests per hour = -3 is not between"),
        (["m", "--requests-per-hour", "5", "--latency", "-1"], "latency = -1 s is not above 0"),
        (["m", "--requests-per-hour", "5", "--latency", "1"], "the fastest, b200 x 8, needs 13.85 s: allow 16 s"),
        (["m", "--requests-per-hour", "5", "--spot-share", "2"], "spot share = 2 is not between 0 and 1"),
        (["m", "--requests-per-hour", "5", "--peak-factor", "0"], "peak factor = 0 is not between 1 and 24"),
        (["m", "--requests-per-hour", "5", "--trace", "x.csv"], "--trace has its own rate"),
        (["m", "--trace", "absent.csv"], "--trace absent.csv cannot be read"),
        (["m", "--requests-per-hour", "5", "--size", "big"], "--size big is not WIDTHxHEIGHT"),
        (["m", "--requests-per-hour", "5", "--frames", "5", "--seconds", "1"], "--frames and --seconds"),
        (["m", "--requests-per-hour", "5", "--json", "--csv"], "--json and --csv"),
        (["m", "--requests-per-hour", "5", "--gpu", "t4"], "no price of t4"),
        (["m", "--requests-per-hour", "5", "--assume", "pue"], "--assume pue is not NAME=X"),
        (["m", "--requests-per-hour", "5", "--assume", "pu=2"], "nearest are pue"),
        (["--published", "x"], "--published x is not known"),
        (["--published", "factorial-funds", "--requests-per-hour", "5"], "has a demand of its own"),
    ],
)
def test_what_is_refused(command: Callable[..., Any], words: list[str], message: str) -> None:
    result = command(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
