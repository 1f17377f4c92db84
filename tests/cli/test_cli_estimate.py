"""`sora-bench estimate` as a shell sees it."""

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

import sora_runtime as sora
from sora_runtime.cli.app import ReportingGroup
from sora_runtime.cli.estimate import estimate
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.models import model_names
from sora_runtime.cost.prices import gpu_prices
from sora_runtime.receipt import Receipt

WAN = "wan2.1-t2v-14b"
CLIP = (WAN, "--size", "1280x720", "--frames", "81")
POCKET = Path(sora.__file__).parent / "models/wan-pocket"
ROWS = """model,gpu,frames,engine,note
wan2.1-t2v-14b,h100-sxm,81,diffusers,a
wan2.1-t2v-14b,h10,81,diffusers,b
wan2.1-t2v-14b,h100-sxm,0,diffusers,c
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs `sora-bench estimate` in an app of its own and a folder of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(cls=ReportingGroup)
    app.command()(estimate)
    app.callback()(lambda: None)
    return lambda *words: CliRunner().invoke(app, ["estimate", *map(str, words)], catch_exceptions=False)


def words_of(text: str) -> str:
    """The text without what folding did to it."""
    return " ".join(text.split())


def test_the_answer_comes_first_and_everything_behind_it_follows(command: Callable[..., Any]) -> None:
    result = command(*CLIP)
    assert result.exit_code == 0, result.output
    text = words_of(result.stdout)
    order = (
        "USD per clip",
        "USD per generated second",
        "USD per minute of video",
        "Wan2.1-T2V-14B: 1280x720, 81 frames at 16 fps (5.06 s)",
        "50 steps, 2 evaluations each (guidance)",
        "1 x h100-sxm, diffusers, bf16, attention fa2",
        "75,600 in each evaluation, 7,560,000 in all steps",
        "6.523 PFLOP for one evaluation (linear, attention, convolution), 652.3 PFLOP for all steps",
        "denoise attention",
        "fits",
        "Wh a kept clip at the site's meter",
        "at the data sheet's peak; this estimate reaches",
        "compute",
        "kept clip",
        "around the median with 80% probability",
        "why so wide",
        "utilisation 0.6 busy share of paid hours",
        "storage_months 1 month;",
        "USD per GPU-hour: median of",
        "[1] https://",
    )
    place = 0
    for part in order:
        assert part in text[place:], part
        place = text.index(part, place) + len(part)


def test_the_tables_add_up(command: Callable[..., Any]) -> None:
    lines = command(*CLIP).stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(" stage"))
    block = [line.split() for line in lines[start + 2 : lines.index("", start)]]
    seconds = [float(row[-2].replace(",", "")) for row in block]
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.005 * len(seconds))
    assert sum(float(row[-1][:-1]) for row in block[:-1]) == pytest.approx(100, abs=0.05 * len(block))
    start = next(i for i, line in enumerate(lines) if line.startswith(" item"))
    dollars = [float(line.split()[-2]) for line in lines[start + 2 : lines.index("", start)]]
    assert sum(dollars[:-1]) == pytest.approx(dollars[-1], abs=0.00005 * len(dollars))
    answer = next(line.split() for line in lines if "USD per clip" in line)
    assert float(answer[-2]) == pytest.approx(dollars[-1], abs=0.005)


@pytest.mark.parametrize("name", [*model_names(), str(POCKET)])
def test_every_model_fits_80_columns_and_cuts_no_number(command: Callable[..., Any], name: str) -> None:
    gpu = list(gpus())[len(name) % len(gpus())]
    result = command(name, "--gpu", gpu)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "…" not in result.stdout
    assert not re.search(r"\de[+-]\d|\bnan\b|\binf\b", re.sub(r"https?:\S+", "", result.stdout))
    assert not re.search(r" 0(\.0+)? (GB|MB|Wh|s|PFLOP|GFLOP)\b", result.stdout)


@pytest.mark.parametrize("name", gpus())
def test_every_gpu_names_its_prices_with_date_and_source(command: Callable[..., Any], name: str) -> None:
    result = command(*CLIP, "--gpu", name)
    text = words_of(result.stdout)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    if not gpu_prices(name):
        assert f"the catalogue has no price of {name}; state one with --price" in text
        assert "USD per clip - - -" in text
        return
    notes = text[text.index("USD per GPU-hour") :]
    offers = int(re.search(r"median of (\d+)", notes)[1]) if "median of" in notes else 1
    sources = notes[notes.index("[1] http") :]
    assert len(re.findall(r" [\d.]+ \(20\d\d(?:-\d\d)*\)", sources)) == offers


def test_json_is_a_receipt(command: Callable[..., Any]) -> None:
    result = command(*CLIP, "--gpu", "h200", "--count", "2", "--guidance-scale", "1", "--price", "3", "--json")
    receipt = Receipt.model_validate_json(result.stdout)
    assert receipt.estimated
    assert (receipt.machine.gpu, receipt.machine.gpu_count) == ("h200-sxm", 2)
    assert (receipt.evaluations.made, receipt.request.guidance_scale) == (50, 1.0)
    assert (receipt.cost.usd_per_hour, receipt.cost.price_is_default) == (6.0, False)
    assert receipt.forecast.assumptions


def test_csv_is_one_row(command: Callable[..., Any], tmp_path: Path) -> None:
    (row,) = csv.DictReader(io.StringIO(command(*CLIP, "--csv", "-").stdout))
    assert (row["model"], row["tokens"], row["cfg"], row["steps"]) == (WAN, "75600", "1", "50")
    assert float(row["predicted_p10"]) < float(row["predicted_p50"]) < float(row["predicted_p90"])
    assert float(row["usd_per_minute"]) == pytest.approx(60 * float(row["usd_per_second"]))
    assert "2026" in row["price"]
    assert "https://" in row["price_sources"]
    assert "utilisation = 0.6 busy share of paid hours (assumed; no published figure)" in row["assumptions"]
    file = tmp_path / "clip.csv"
    result = command(*CLIP, "--csv", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert list(csv.DictReader(io.StringIO(file.read_text()))) == [row]
    unpriced = next(name for name in gpus() if not gpu_prices(name))
    (row,) = csv.DictReader(io.StringIO(command(*CLIP, "--gpu", unpriced, "--csv", "-").stdout))
    assert row["usd_per_clip_p50"] == row["price"] == ""


def test_options_reach_the_estimate(command: Callable[..., Any]) -> None:
    words = ["--seconds", "3", "--fps", "24", "--steps", "30", "--precision", "fp8", "--engine", "sglang", "--image"]
    words += ["--attention", "fa3", "--step-reuse", "teacache", "--count", "4", "--parallelism", "cfg2 ulysses2"]
    words += ["--assume", "utilisation=0.9", "--assume", "pue=1.1", "--price", "spot"]
    text = words_of(command(WAN, *words).stdout)
    for part in (
        "73 frames at 24 fps (3.04 s), from a picture",
        "30 steps, 2 evaluations each (guidance), reuse teacache",
        "4 x h100-sxm, sglang, fp8, attention fa3, compiled",
        "utilisation 0.9 busy share of paid hours; stated",
        "pue 1.1 site power over IT power; stated",
        "default width, height, guidance; the model's reference pipeline",
        "spot offer",
        "on each GPU",
        "if none is reused",
    ):
        assert part in text, part


def test_a_bought_gpu(command: Callable[..., Any]) -> None:
    text = words_of(command(*CLIP, "--assume", "capital_price=35000").stdout)
    assert "owned: 35,000 USD over 4 years, electricity on top" in text
    assert "capital_price 35000 USD per GPU with its share of a server; stated" in text
    assert "electricity" in text
    assert "capital_price" not in command(*CLIP).stdout


def test_without_a_model_the_help_is_shown(command: Callable[..., Any]) -> None:
    result = command()
    assert result.exit_code == 2
    assert "Usage:" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "0"], "frames = 0 is out of range; use 1 to 100000"),
        (["--frames", "80"], "num_frames = 80 is not 4k+1; use 77 or 81"),
        (["--size", "1281x720"], "width = 1281 is not a positive multiple of 16; use 1280 or 1296"),
        (["--size", "0x0"], "width = 0 is out of range"),
        (["--size", "big"], "--size big is not WIDTHxHEIGHT"),
        (["--gpu", "h10"], "gpu = 'h10' is not in the catalogue; the nearest are h100-sxm"),
        (["--gpu", "графика"], "is not in the catalogue; the nearest are"),
        (["--gpu", ""], "gpu is empty"),
        (["--count", "0"], "gpu count = 0 is out of range"),
        (["--seconds", "-3"], "seconds = -3 is out of range"),
        (["--seconds", "nan"], "seconds = nan is out of range"),
        (["--seconds", "5", "--frames", "81"], "frames and seconds were both given"),
        (["--steps", "0"], "steps = 0 is out of range"),
        (["--fps", "inf"], "fps = inf is out of range"),
        (["--guidance-scale", "-1"], "guidance_scale = -1 is not 0 or more"),
        (["--precision", "int3"], "precision = 'int3' is not known"),
        (["--engine", "x"], "engine = 'x' is not known"),
        (["--attention", "x"], "attention = 'x' is not known"),
        (["--step-reuse", "2"], "step_reuse = 2 is out of range"),
        (["--parallelism", "ulysses4"], "parallelism = 'ulysses4' makes 4 GPUs of 1"),
        (["--price", "-2"], "price = -2 is not above 0"),
        (["--price", "1e308"], "price = 1e+308 USD a GPU-hour is out of range"),
        (["--price", "nobody"], "price = 'nobody' is neither a number"),
        (["--assume", "pue"], "--assume pue is not NAME=X"),
        (["--assume", "pu=2"], "the nearest are pue"),
        (["--assume", "pue=nan"], "pue = nan is out of range"),
        (["--json", "--csv", "-"], "--json and --csv are both given"),
        (["--batch", "rows.csv"], "MODEL is given beside --batch"),
    ],
)
def test_what_is_refused(command: Callable[..., Any], words: list[str], message: str) -> None:
    result = command(WAN, *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_file_that_cannot_be_written(command: Callable[..., Any]) -> None:
    result = command(WAN, "--csv", "absent/clip.csv")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "absent does not exist" in result.stderr


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


def test_batch_adds_four_columns(command: Callable[..., Any], rows: Path, tmp_path: Path) -> None:
    result = command("--batch", rows)
    assert result.exit_code == 0
    assert result.stderr == "1 row answered, 2 refused (lines 3, 4); columns without a meaning here: note\n"
    found = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(found[0])[5:] == ["predicted_p10", "predicted_p50", "predicted_p90", "refused_because"]
    assert [row["note"] for row in found] == ["a", "b", "c"]
    assert float(found[0]["predicted_p10"]) < float(found[0]["predicted_p50"]) < float(found[0]["predicted_p90"])
    assert "the nearest are h100-sxm" in found[1]["refused_because"]
    assert found[2]["refused_because"] == "frames = 0 is out of range; give 1 or more"
    out = tmp_path / "out.csv"
    assert command("--batch", rows, "--csv", out).stdout == ""
    assert out.read_text() == result.stdout


def test_batch_as_json(command: Callable[..., Any], rows: Path) -> None:
    good, unknown, absurd = json.loads(command("--batch", rows, "--json").stdout)
    assert good["model"] == WAN
    assert good["refused_because"] is None
    assert 0 < good["predicted_p10"] < good["predicted_p50"] < good["predicted_p90"]
    assert unknown["predicted_p50"] is None
    assert absurd["refused_because"].startswith("frames = 0")


def test_batch_and_the_command_agree(command: Callable[..., Any], rows: Path) -> None:
    receipt = json.loads(command(*CLIP, "--json").stdout)
    good = json.loads(command("--batch", rows, "--json").stdout)[0]
    assert good["predicted_p50"] == receipt["forecast"]["seconds"]["p50"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.csv"], "does not exist; give a CSV file"),
        (["."], "cannot be read (Is a directory)"),
        (["rows.csv", "--steps", "4"], "--steps is given beside --batch"),
        (["rows.csv", "--gpu", "h100-sxm"], "--gpu is given beside --batch"),
        (["rows.csv", "--json", "--csv", "-"], "--json and --csv are both given"),
    ],
)
def test_what_batch_refuses(command: Callable[..., Any], rows: Path, words: list[str], message: str) -> None:
    result = command("--batch", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
