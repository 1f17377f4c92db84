"""From a checkpoint to a bundle in a precision for an engine: what is asked for is what is built and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from tiny_hunyuan15 import save_tiny_hunyuan15

from sora_export import check
from sora_export.build import BuildRequest, Calibration, build, plan
from sora_export.check import check_bundle
from sora_export.engine_from_onnx import EngineOptions
from sora_export.hub import local_checkpoint
from sora_export.precision import Precision
from sora_export.trajectories import Prompt, read_prompts, record_trajectories
from sora_runtime import Runtime
from sora_runtime.engines.store import EngineStore
from sora_runtime.errors import BundleError, EngineError, InvalidRequest, OutputError

SHAPE: dict[str, Any] = {"sizes": [(32, 48)], "num_frames": [9]}
CALIBRATION = Calibration([Prompt("a red circle moves left")], 2)


def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())


def safetensors(bundle: Path) -> set[str]:
    return {path.relative_to(bundle).as_posix() for path in bundle.rglob("*.safetensors")}


def test_fp8_engines_are_built_once_and_recorded(plain: Path, tmp_path: Path) -> None:
    request = BuildRequest(
        str(plain),
        tmp_path / "fp8",
        **SHAPE,
        precision=Precision.FP8,
        engine="tensorrt_rtx",
        calibration=CALIBRATION,
        check_parity=False,
        engine_options=EngineOptions("tensorrt_rtx", ("8.9",)),
        engine_cache=tmp_path / "engines",
    )
    said: list[str] = []
    bundle = build(request, said.append)
    made = manifest(bundle)
    assert (made["precision"], made["engine"]) == ("fp8", "tensorrt_rtx")
    # No weights are new: casts, scales and Q/DQ stand between the checkpoint's and the products.
    assert safetensors(bundle) == safetensors(plain)
    stored = {folder.name: record for folder, record in EngineStore(tmp_path / "engines").entries()}
    graphs = {name for name in made["files"] if name.endswith(".onnx")}
    assert {engine["graph"] for engine in made["engines"]} == graphs
    for engine in made["engines"]:
        assert engine["digest"] in stored and engine["compute_capabilities"] == ["8.9"]
        if engine["component"] in ("transformer", "text_encoder"):
            assert engine["report"]["fusion"]["quantised_run"] > 0
    with pytest.raises(EngineError, match=r"CUDA device 0 cannot be used \(.*\); install an NVIDIA driver"):
        Runtime.load(bundle).generate("a red circle moves left")
    again = build(BuildRequest(**{**vars(request), "out": tmp_path / "again"}), said.append)
    assert [engine["digest"] for engine in manifest(again)["engines"]] == [e["digest"] for e in made["engines"]]
    assert len(list(EngineStore(tmp_path / "engines").entries())) == len(stored)


def test_int8_for_onnxruntime_runs_and_is_checked(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build(BuildRequest(str(plain), tmp_path / "int8", **SHAPE, precision=Precision.INT8, check_parity=False))
    new = safetensors(bundle) - safetensors(plain)
    assert new == {"int8/text_encoder.safetensors", "int8/transformer.safetensors"}
    assert new <= set(manifest(bundle)["files"])
    result = check_bundle(bundle, prompts=["a red circle moves left"], num_inference_steps=2)
    (clip,) = result.frames.values()
    assert result.broken() == [] and clip["psnr"].value >= 30 and 0.9 < clip["ssim"].value <= 1
    # int8 must show: a bundle that equals float32 to 1e-5 was not quantised.
    assert 1e-4 < result.parts["transformer.32x48x9.onnx"].value < 0.1
    assert result.parts["vae_decoder.32x48.next.onnx"].value < 1e-4
    assert result.adherence == {}
    written = manifest(bundle)
    assert written["check"]["parts"].keys() == result.parts.keys() and written["parity"]
    with Runtime.load(bundle, verify="always") as runtime:
        assert runtime.generate("a red circle moves left", num_inference_steps=1).receipt.engine.precision == "int8"
    monkeypatch.setattr(check, "PSNR_BUDGET", 90.0)
    (over,) = check_bundle(bundle, prompts=["a blue square falls"], num_inference_steps=2).broken()
    assert over.startswith("psnr of 'a blue square falls': ")


def test_a_half_bundle_is_held_to_torchs_own_error(plain: Path, tmp_path: Path) -> None:
    request = BuildRequest(
        str(plain), tmp_path / "bf16", **SHAPE, precision=Precision.BF16, engine="tensorrt_rtx", check_parity=False
    )
    result = check_bundle(build(request), prompts=["a red circle moves left"], num_inference_steps=2)
    assert result.broken() == []
    for name, part in result.parts.items():
        assert part.budget is not None and 1e-4 < part.value <= part.budget < 0.1, name
    (clip,) = result.frames.values()
    assert clip["psnr"].budget is None and clip["psnr"].value > 30


def test_a_check_that_has_no_room_is_one_sentence(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=r"cannot write beside .* \(Permission denied\); check a copy of the bundle"):
        check_bundle(plain_bundle)


def test_a_check_leaves_nothing_and_takes_away_what_a_killed_one_left(plain_bundle: Path) -> None:
    folder = plain_bundle.parent
    left = folder / f".99999999.{plain_bundle.name}.check"  # more than any process's number
    (left / "float32").mkdir(parents=True)
    of_another = folder / f".99999999.{plain_bundle.name}-2.check"
    of_another.mkdir()
    before = (plain_bundle / "bundle.json").read_bytes()
    check_bundle(plain_bundle, record=False)
    assert not list(folder.glob(f".*.{plain_bundle.name}.check")) and of_another.is_dir()
    assert (plain_bundle / "bundle.json").read_bytes() == before
    of_another.rmdir()


def test_scales_are_not_guessed(plain: Path, tmp_path: Path) -> None:
    request = BuildRequest(str(plain), tmp_path / "b", **SHAPE, precision=Precision.FP8, engine="tensorrt_rtx")
    with pytest.raises(InvalidRequest, match="takes its scales from real clips; give prompts with --calibration"):
        build(request)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("precision", "engine", "targets", "message"),
    [
        (Precision.FP32, "tensorrt_rtx", ("8.9",), "fp32 is not to be had with tensorrt_rtx"),
        (Precision.BF16, "onnxruntime", (), "bf16 is not to be had with onnxruntime"),
        (Precision.FP8, "tensorrt_rtx", ("8.9", "8.0"), "fp8 is not to be had on compute capability 8.0"),
    ],
)
def test_a_format_that_cannot_be_had_is_refused_before_anything_is_read(
    tmp_path: Path, precision: Precision, engine: Any, targets: tuple[str, ...], message: str
) -> None:
    options = EngineOptions(engine, targets) if targets else None
    request = BuildRequest(
        "absent", tmp_path / "b", **SHAPE, precision=precision, engine=engine, calibration=CALIBRATION,
        engine_options=options,
    )  # fmt: skip
    for action in (build, plan):
        with pytest.raises(InvalidRequest, match=message):
            action(request)


def test_what_no_prompt_evaluated_stays_in_half_precision(tmp_path: Path) -> None:
    """The glyph encoder of HunyuanVideo 1.5 runs for quoted words only."""
    checkpoint = save_tiny_hunyuan15(tmp_path / "checkpoint", task="t2v")
    request = BuildRequest(
        str(checkpoint),
        tmp_path / "fp8",
        [(24, 40)],
        [13],
        precision=Precision.FP8,
        engine="tensorrt_rtx",
        calibration=Calibration([Prompt("a shop without a sign")], 1),
        check_parity=False,
    )
    said: list[str] = []
    reports = manifest(build(request, said.append))["reports"]
    assert "no prompt evaluated text_encoder_2, which stays in bf16" in said
    precisions = {graph: report["precision"] for graph, report in reports.items()}
    assert precisions["text_encoder_2.onnx"] == "bf16" and precisions["text_encoder.onnx"] == "fp8"
    assert precisions["transformer.24x40x13.onnx"] == "fp8"


def test_trajectories_hold_every_evaluation(plain_bundle: Path) -> None:
    recorded = record_trajectories(plain_bundle, [Prompt("a red circle"), Prompt("a square")], num_inference_steps=3)
    steps = recorded.feeds["transformer.32x48x9.onnx"]
    assert len(steps) == 2 * 3 * 2  # prompts, steps, branches of guidance
    timesteps = [float(feed["timestep"][0]) for feed in steps[:6]]
    assert timesteps == sorted(timesteps, reverse=True) and len(set(timesteps)) == 3
    assert not np.array_equal(steps[0]["hidden_states"], steps[2]["hidden_states"])
    assert not np.array_equal(steps[0]["encoder_hidden_states"], steps[1]["encoder_hidden_states"])
    assert len(recorded.feeds["text_encoder.onnx"]) == 2 + 1  # the negative prompt is encoded once
    assert [latents.shape for latents in recorded.latents] == [(1, 4, 3, 8, 12)] * 2


def test_prompts_files(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# a comment\n\n a red circle \nmove it\tstart.png\n")
    assert read_prompts(file) == [Prompt("a red circle"), Prompt("move it", tmp_path / "start.png")]
    file.write_text("# nothing\n")
    with pytest.raises(InvalidRequest, match="holds no prompt"):
        read_prompts(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="it is no UTF-8 text"):
        read_prompts(file)


def test_a_plan_grows_with_the_work(plain: Path, tmp_path: Path) -> None:
    one = plan(BuildRequest(str(plain), tmp_path / "b", **SHAPE))
    request = BuildRequest(
        str(plain), tmp_path / "b", [(32, 48), (48, 32)], [9], precision=Precision.BF16, engine="tensorrt_rtx",
        engine_options=EngineOptions("tensorrt_rtx", ("8.9", "12.0")),
    )  # fmt: skip
    two = plan(request)
    assert [phase.name for phase in one.phases] == ["export"] and len(two.phases) == 2
    assert two.seconds.value > one.seconds.value and two.disk_bytes.value > one.disk_bytes.value
    with pytest.raises(InvalidRequest, match="height = 33"):
        plan(BuildRequest(str(plain), tmp_path / "b", [(33, 48)], [9]))
    assert not (tmp_path / "b").exists()


def test_a_hub_id_is_fetched_without_what_can_run_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "nobody/nothing":
            raise RepositoryNotFoundError("404 Client Error", response=FakeResponse())  # type: ignore[arg-type]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert local_checkpoint("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", said.append) == tmp_path
    assert said == ["fetching Wan-AI/Wan2.1-T2V-1.3B-Diffusers from the hub"]
    patterns = asked[0][1]
    assert not any(pattern.endswith((".bin", ".pt", ".pth", ".py", ".ckpt")) or pattern == "*" for pattern in patterns)
    with pytest.raises(BundleError, match="nobody/nothing is no folder here and the hub does not give it"):
        local_checkpoint("nobody/nothing", said.append)
    # A folder is taken as it is, a path that is none is left to what reads it, and a shipped model has a short name.
    (tmp_path / "mine/model").mkdir(parents=True)
    assert local_checkpoint("mine/model", said.append) == Path("mine/model")
    assert local_checkpoint("./a/b/c", said.append) == Path("./a/b/c")
    assert local_checkpoint("wan-pocket", said.append).name == "wan-pocket"
    assert len(asked) == 2


class FakeResponse:
    """As much of a response as the hub's error reads."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.status_code = 404
        self.request = None
