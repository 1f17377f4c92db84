"""The check of the catalogue: what ships passes, and each kind of slip is found where it is."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest

from sora_runtime.cost.check_catalogue import CATALOGUE, TABLES, Finding, check_catalogue
from sora_runtime.cost.hardware import find_gpu
from sora_runtime.errors import InvalidRequest

TODAY = date(2026, 11, 22)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tables, without models."""
    for name in TABLES:
        shutil.copy(CATALOGUE / name, tmp_path)
    return tmp_path


def check(folder: Path, months: float = 12.0) -> list[Finding]:
    return check_catalogue(folder, months, TODAY)


def errors(folder: Path) -> list[str]:
    return [f"{finding.where} {finding.what}" for finding in check(folder) if finding.severity == "error"]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1))


def test_what_ships_has_no_errors() -> None:
    assert [finding for finding in check_catalogue(CATALOGUE, 12.0, TODAY) if finding.severity == "error"] == []


def test_old_prices_are_warned_of(folder: Path) -> None:
    old = [finding for finding in check(folder) if finding.severity == "warning"]
    assert any("2024-10" in finding.what and finding.where.startswith("gpu_prices.csv:") for finding in old)
    assert len(check(folder, 1.0)) > len(check(folder, 12.0)) > len(check(folder, 36.0)) == 0


@pytest.mark.parametrize(
    ("name", "row", "what"),
    [
        ("gpu_prices.csv", "X,h100-sxm,1,2.5,on-demand,2026-05,,", "no source"),
        ("gpu_prices.csv", "X,h100-sxm,1,2.5,on-demand,,https://x.org,", "no date"),
        ("gpu_prices.csv", "X,h100-sxm,1,2.5,on-demand,May 2026,https://x.org,", "date 'May 2026' is not YYYY"),
        ("gpu_prices.csv", "X,h100-sxm,1,2.5,on-demand,2026-13,https://x.org,", "date '2026-13' is not YYYY"),
        ("gpu_prices.csv", "X,h100-sxm,1,2.5,on-demand,2027-01,https://x.org,", "date 2027-01 is in the future"),
        ("gpu_prices.csv", "X,h100-sxm,1,0.01,on-demand,2026-05,https://x.org,", "0.01 is outside 0.05 to 50"),
        ("gpu_prices.csv", "X,h100-sxm,1,98.3,on-demand,2026-05,https://x.org,", "98.3 is outside 0.05 to 50"),
        ("gpu_prices.csv", "X,h100-sxm,1,nan,on-demand,2026-05,https://x.org,", "nan is outside 0.05 to 50"),
        ("gpu_prices.csv", "X,h100-sxm,1,cheap,on-demand,2026-05,https://x.org,", "'cheap' is not a number"),
        ("gpu_prices.csv", "X,h999,1,2.5,on-demand,2026-05,https://x.org,", "gpu 'h999' is not in gpus.csv"),
        ("gpu_prices.csv", "X,h100-sxm,1,2.5,on-demand,2026-05,https://x.org,a,b", "more fields than columns"),
        ("api_prices.csv", "X,y,t2v,720p,,0.1,list,,2026-05,,", "no source"),
        ("api_prices.csv", "X,y,t2v,720p,,60,list,,2026-05,https://x.org,", "60 is outside 0.001 to 10"),
        ("currencies.csv", "CNY,7.1,2026-10-30,https://x.org,yes", "repeats line"),
        ("claims.csv", "sora-length,2024-02,Sora,longest clip,60,s,,https://x.org,", "repeats line"),
    ],
)
def test_a_bad_row_is_found_where_it_is(folder: Path, name: str, row: str, what: str) -> None:
    path = folder / name
    path.write_text(path.read_text() + row + "\n")
    line = len(path.read_text().splitlines())
    (found,) = errors(folder)
    assert found.startswith(f"{name}:{line} ") and what in found


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("989.4,1978.9,1978.9,,80,3350", "989.4,889,1978.9,,80,3350", "fp8 889 is slower than bf16 989.4"),
        ("989.4,1978.9,1978.9,,80,3350", "989.4,1978.9,989,,80,3350", "int8 989 is neither once nor twice fp8"),
        ("312,,624,,40", "312,,312,,40", "int8 312 is neither once nor twice twice bf16"),
        ("989.4,1978.9,1978.9,,80,3350", "989.4,1978.9,1978.9,,80,33500", "bandwidth_gbs = 33500 is outside"),
        ("80,3350,700,nvlink", "80,3350,7,nvlink", "tdp_w = 7 is outside"),
        ("756,1513,1513,,80", "1200,2400,2400,,80", "bf16_tflops 989.4 of h100-sxm is below 1200 of h100-pcie"),
        ("4500,4500,9000", "4500,4500,4000", "fp4 4000 is slower than fp8 4500"),
        ("L4,ada", "L40S,ada", "has the name 'l40s', which l4 has too"),
        ("h100-pcie,H100 PCIe", "h100-sxm,H100 PCIe", "has the name 'h100sxm'"),
    ],
)
def test_specifications_that_contradict_each_other(folder: Path, old: str, new: str, what: str) -> None:
    change(folder / "gpus.csv", old, new)
    assert any(what in found for found in errors(folder)), errors(folder)


def test_blackwell_ultra_may_lack_int8(folder: Path) -> None:
    assert not [found for found in errors(folder) if "int8" in found]
    change(folder / "gpus.csv", "b300,B300", "b400,B400")
    assert any("int8 150" in found for found in errors(folder))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('name = "x"\ndate = "2026-01-01"\n', "no source"),
        ('name = "x"\nsource = "https://x.org"\n', "no date"),
        ("name = \n", "cannot be read"),
    ],
)
def test_models(folder: Path, text: str, what: str) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "x.toml").write_text(text)
    (found,) = errors(folder)
    assert found.startswith("models/x.toml ") and what in found


def test_a_folder_that_is_no_catalogue(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        check(tmp_path / "missing")
    (folder / "claims.csv").write_text("id,date\n")
    with pytest.raises(InvalidRequest, match="lacks the columns claim, inputs"):
        check(folder)
    (folder / "claims.csv").write_bytes(b"id,\xff\n")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        check(folder)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(name: str, gpu: str) -> None:
    assert find_gpu(name).id == gpu
