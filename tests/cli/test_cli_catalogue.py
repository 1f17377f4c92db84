"""`sora-bench catalogue` and `sora-bench claims` as a shell sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sora_runtime.cli.catalogue import catalogue
from sora_runtime.cli.claims import claims
from sora_runtime.cost.check_catalogue import CATALOGUE

TABLES = ["models", "gpus", "prices", "api"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer()
    app.add_typer(catalogue, name="catalogue")
    app.command()(claims)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def words_of(text: str) -> str:
    """The text without what folding did to it."""
    return " ".join(text.split())


def test_what_ships_passes(command: Callable[..., Any]) -> None:
    result = command("catalogue", "check", "--max-age-months", 36)
    assert (result.exit_code, words_of(result.stdout)) == (0, "catalogue 0 errors, 0 warnings")


def test_a_bad_row_fails(command: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    shutil.copytree(CATALOGUE, folder, ignore=shutil.ignore_patterns("models"))
    prices = folder / "gpu_prices.csv"
    prices.write_text(prices.read_text() + "X,h100-sxm,1,2.5,on-demand,2026-05,,\n")
    result = command("catalogue", "check", "--folder", folder)
    assert result.exit_code == 1
    assert "no source" in words_of(result.stdout) and "1 errors" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    found = json.loads(command("catalogue", "check", "--folder", folder, "--json").stdout)
    assert found[0] == {
        "severity": "error",
        "where": f"gpu_prices.csv:{len(prices.read_text().splitlines())}",
        "what": "no source",
    }


@pytest.mark.parametrize("table", TABLES)
def test_lists_fit_80_columns_and_lose_nothing(command: Callable[..., Any], table: str) -> None:
    rows = json.loads(command("catalogue", "list", table, "--json").stdout)
    result = command("catalogue", "list", table)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    folded = "".join(result.stdout.split())
    for row in rows:
        for key in ("id", "name", "model", "source", "date"):
            # A model's name may fold beside other columns.
            if key in row and not (table == "api" and key == "model"):
                assert "".join(str(row[key]).split()) in folded, row[key]


def test_figures_are_whole(command: Callable[..., Any]) -> None:
    lines = [line.split() for line in command("catalogue", "list", "gpus").stdout.splitlines()]
    b200 = next(words for words in lines if words[:1] == ["b200"])
    assert b200[1:10] == ["2250", "4500", "4500", "9000", "180", "7700", "1000", "nvlink", "900"]
    recalled = next(words for words in lines if words[:1] == ["a100-80gb-pcie*"])
    assert recalled[1:6] == ["312", "-", "624", "-", "80"] and recalled[-1].startswith("[")


def test_a_list_can_be_narrowed(command: Callable[..., Any]) -> None:
    rows = json.loads(command("catalogue", "list", "prices", "--match", "H100-NVL", "--json").stdout)
    assert {row["gpu"] for row in rows} == {"h100-nvl"}
    assert command("catalogue", "list", "prices", "--match", "nothing at all").exit_code == 0
    assert command("catalogue", "list", "cars").exit_code == 2


def test_claims(command: Callable[..., Any]) -> None:
    result = command("claims")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 and line == line.rstrip() for line in lines)
    summary = [words_of(line) for line in lines]
    for line in (
        "sora-tokens-1min-usd 600 USD/min 28.8, 864 USD/min differs",
        "sora-inference-gpus 720,000 GPUs 713,333 GPUs follows",
        "sora-inference-power 504 MW 504 MW follows",
        "sora-length 60 s - cannot be checked",
    ):
        assert line in summary
    text = words_of(result.stdout)
    assert "89,167" in text and "8.2% of it" in text
    assert text.count(" verdict ") == 19 and text.count(" today ") == 18


def test_claims_name_their_sources(command: Callable[..., Any]) -> None:
    text = command("claims").stdout
    records = json.loads(command("claims", "--json").stdout)
    assert len(records) == 18
    folded = "".join(text.split())
    for record in records:
        assert record["verdict"] in text and record["source"] and record["today"]["text"]
        for origin in record["today"]["origins"]:
            assert "".join(origin["source"].split()) in folded and origin["date"]
