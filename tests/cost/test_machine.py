"""Estimates of the machine at hand: from its profile, refused without one, and beside what a clip then took."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cost.machine_profile import RATE, made_up
from sora_runtime import Runtime
from sora_runtime.bench.pace import pace_now
from sora_runtime.bench.samples import Samples
from sora_runtime.cost.estimate import Ask, estimate_of
from sora_runtime.cost.machine_time import usual_head_channels
from sora_runtime.cost.profile import Table, load_profile, save_profile
from sora_runtime.cost.profile_path import default_path
from sora_runtime.errors import InvalidRequest, OutputError
from sora_runtime.machine import Machine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_profile_is_read_as_it_was_written(cache: Path) -> None:
    path = save_profile(made_up())
    assert path == default_path() and path.is_relative_to(cache)
    assert load_profile() == made_up()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_table_is_interpolated_in_logarithms() -> None:
    table = Table("FLOP/s", {"rows": (1.0, 100.0), "width": (1.0, 4.0)}, (1.0, 10.0, 100.0, 1000.0))
    assert table.at(rows=10, width=1) == pytest.approx(10)
    assert table.at(rows=1, width=2) == pytest.approx(10**0.5)
    assert table.at(rows=1e9, width=0.1) == pytest.approx(100)  # beyond the ends: the end's
    with pytest.raises(ValueError, match="values"):
        Table("FLOP/s", {"rows": (1.0, 2.0)}, (1.0,))


def test_an_estimate_of_this_machine_adds_up() -> None:
    save_profile(made_up())
    found = estimate_of(Ask("wan-pocket", gpu="this-machine", num_inference_steps=10))
    denoise = found.prediction.stages["denoise"]
    flops = found.clip.transformer.flops
    # Keys and values of 48 tokens in six blocks of 192 channels, and two projections before: once for both branches.
    text = 2.0 * 48 * (6 * 2 + 2) * 192**2
    # 10 guided steps at one rate; conditioning products of a few rows are counted in the same class.
    assert denoise["linear"] + denoise["convolution"] == pytest.approx(
        (20 * (flops["linear"] + flops["convolution"]) - 18 * text) / RATE, rel=0.005
    )
    assert denoise["attention"] == pytest.approx(20 * flops["attention"] / RATE)
    assert denoise["overhead"] == pytest.approx(10 * 0.001)
    assert found.setting.precision == "fp32" and found.gpu.id == "this-machine"
    assert found.money is not None and found.money.price.usd_per_hour > 0
    total = sum(sum(stage.values()) for stage in found.prediction.stages.values())
    assert found.prediction.p50 == pytest.approx(total)
    assert found.prediction.p10 < found.prediction.p50 < found.prediction.p90


def test_a_slower_machine_takes_longer_by_one_factor() -> None:
    save_profile(made_up())
    ask = Ask("wan-pocket", gpu="this-machine")
    calibrated, now = estimate_of(ask), estimate_of(replace(ask, pace=0.0015))  # it was calibrated at 0.001
    assert now.prediction.p50 == pytest.approx(1.5 * calibrated.prediction.p50)
    assert ("pace", "1.50 x the calibration's times", "read on this machine now") in list(now.all_assumed())
    assert "pace" not in [name for name, _, _ in calibrated.all_assumed()]


def test_the_pace_is_read_where_the_profile_was_made() -> None:
    save_profile(made_up())
    assert 0 < (pace_now() or 0) < 10
    save_profile(made_up(machine=Machine("another", 2, None, "Linux")))
    assert pace_now() is None


def test_repeats_count_at_the_pace_of_the_whole() -> None:
    samples = Samples()
    for taken, waited, pace in ((1.0, 0.0, 0.010), (2.2, 0.0, 0.011), (9.0, 0.0, 0.020), (9.0, 0.5, 0.010)):
        samples.seconds.append(taken)
        samples.waits.append(waited)
        samples.settle(pace)
    assert samples.clean(0.010) == pytest.approx([1.0, 2.0])  # neither the slow one nor the one that waited
    assert samples.typical(0.010) == pytest.approx(1.5)
    assert samples.typical(0.010, 0.25) == pytest.approx(1.25)
    assert samples.typical(0.001) == 1.0  # none was so fast: the best there is


def test_int8_takes_its_own_table() -> None:
    save_profile(made_up())
    exact, quantised = (
        estimate_of(Ask("wan-pocket", gpu="this-machine", precision=precision)).prediction.stages["denoise"]["linear"]
        for precision in ("fp32", "int8")
    )
    assert 0.5 <= quantised / exact < 0.6  # twice the rate but for projections that stay in float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "precision = 'fp8' does not run on this machine; use fp32 or int8"),
        ({"gpu_count": 2}, "gpu count = 2 is out of range; use 1"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(changes: dict[str, object], message: str) -> None:
    save_profile(made_up())
    with pytest.raises(InvalidRequest, match=message):
        estimate_of(Ask("wan-pocket", gpu="this-machine", **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}', "\x00"])
def test_what_is_no_profile_is_refused_in_a_sentence(content: str) -> None:
    default_path().parent.mkdir(parents=True)
    default_path().write_text(content)
    with pytest.raises(InvalidRequest, match="run `sora-bench calibrate`"):
        estimate_of(Ask("wan-pocket", gpu="this-machine"))


def test_without_a_profile_the_remedy_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"there is no machine profile at .*; run `sora-bench calibrate`"):
        estimate_of(Ask("wan-pocket", gpu="this-machine"))


def test_a_profile_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="give another with --out"):
        save_profile(made_up(), tmp_path / "file" / "machine.json")


def test_another_machines_profile_says_so() -> None:
    save_profile(made_up(machine=Machine("another", 64, None, "")))
    found = estimate_of(Ask("wan-pocket", gpu="this-machine"))
    assert "was made on another with 64 cores" in found.reasons[0]


def test_a_receipt_has_the_prediction_beside_the_measurement() -> None:
    with Runtime.load("wan-pocket") as runtime:
        bare = runtime.generate("a red circle", num_inference_steps=2).receipt
        assert bare.predicted is None and "sora-bench calibrate" in bare.reasons["predicted"]
        save_profile(made_up())
        receipt = runtime.generate("a red circle", num_inference_steps=2).receipt
        save_profile(made_up(num_threads=999))
        assert runtime.generate("a red circle", num_inference_steps=2).receipt.predicted is None
    assert receipt.predicted is not None and "predicted" not in receipt.reasons
    band = receipt.predicted.seconds
    assert band.p10 < band.p50 < band.p90
    assert receipt.predicted.usd_per_clip == pytest.approx(band.p50 * receipt.cost.usd_per_hour / 3600)
    assert "predicted" in str(receipt)
    assert json.loads(receipt.model_dump_json())["predicted"]["origin"] == "sora-bench calibrate, 2026-11-28"


def test_heads_that_nobody_states_are_as_published_models_have_them() -> None:
    assert [usual_head_channels(width) for width in (192, 1024, 5120)] == [32, 64, 128]
