"""`sora-bench validate` and `calibrate`: their tables, their JSON, and what they refuse."""

import json
from pathlib import Path

import pytest
from fake_runtime import Command

from cost.machine_profile import made_up
from sora_runtime.bench import calibrate as bench
from sora_runtime.cost.profile import load_profile, save_profile


def test_the_rates_that_ship_against_their_own_rows(sora_bench: Command) -> None:
    result = sora_bench("validate", "--shipped", "--worst", 3)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "dense bf16" in result.stdout and "multi-gpu" in result.stdout and "in band" in result.stdout
    record = json.loads(sora_bench("validate", "--shipped", "--json").stdout)
    kinds = {group["name"]: group for group in record["kinds"]}
    assert sum(group["rows"] for group in kinds.values()) == record["all"]["rows"] == len(record["rows"]) > 600
    assert kinds["dense bf16"]["median"] < 0.15
    for row in record["rows"]:
        assert row["p10"] < row["p50"] < row["p90"]


def test_a_file_of_other_rows(sora_bench: Command) -> None:
    names = "id,model,width,height,frames,steps,cfg,gpu,engine,scope,seconds"
    row = "Wan2.1-T2V-14B,832,480,81,50,1,H100,diffusers,end_to_end"
    Path("rows.csv").write_text(f"{names}\na-1,{row},500\na-2,{row},\na-3,Nobody,{row.partition(',')[2]},10\n")
    record = json.loads(sora_bench("validate", "rows.csv", "--json").stdout)
    assert [row["id"] for row in record["rows"]] == ["a-1"] and record["rows_left_out"] == 2
    table = sora_bench("validate", "rows.csv").stdout
    assert "2 rows of the file" in table and "a-1" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.csv"], "absent.csv does not exist"),
        (["empty.csv"], "has no row that states size, frames, steps, GPU and seconds"),
        (["empty.csv", "--machine", "wan-pocket"], "--machine measures; leave FILE and --shipped out"),
        (["--machine", "wan-pocket"], "machine.json; run `sora-bench calibrate`"),
    ],
)
def test_what_validate_refuses(
    sora_bench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], message: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Path("empty.csv").write_text("model,gpu\n")
    result = sora_bench("validate", *words)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_clips_made_here_beside_their_predictions(
    sora_bench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_profile(made_up())
    rows = json.loads(sora_bench("validate", "--machine", "wan-pocket", "--json").stdout)
    assert len(rows) == 10 and all(0 < row["p10"] < row["p50"] and row["seconds"] > 0 for row in rows)
    assert rows[-1]["p50"] > rows[-2]["p50"]  # guidance takes more


def test_calibrate_writes_a_profile_and_shows_it(
    sora_bench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "BUDGET", 0.0)  # one pass over all shapes
    result = sora_bench("calibrate", "--out", "machine.json")
    assert result.exit_code == 0 and all(len(line) <= 80 for line in result.stdout.splitlines())
    profile = load_profile("machine.json")
    assert str(Path("machine.json")) in result.stdout
    products = profile.tables["product.fp32"]
    assert products.at(rows=1024, width=1280) > products.at(rows=1, width=80) > 1e6
    assert 0 < profile.constants["clip"] < 10
    assert profile.elsewhere is None
