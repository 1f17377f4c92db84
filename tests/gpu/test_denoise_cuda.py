"""A trajectory on a device: the CPU's latents bit by bit, and from the second clip on one launch."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.doubles import Gpu
from sora_runtime import Runtime, _core
from sora_runtime.engines import tensorrt
from sora_runtime.errors import Cancelled, EngineError
from sora_runtime.sampling import StepReuse

ASK: dict[str, Any] = {"prompt": "a red circle moving left", "num_inference_steps": 4, "seed": 4}
ANOTHER = ASK | {"prompt": "a blue star spinning on a black background", "seed": 9, "guidance_scale": 5.5}


def frames(runtime: Runtime, ask: dict[str, Any]) -> Any:
    return runtime.generate(**ask).frames


def test_the_second_clip_is_recorded_and_later_ones_are_one_launch(gpu: Gpu, bundle: Path) -> None:
    asks = [ASK, ASK, ANOTHER, ASK]
    with Runtime.load("wan-pocket") as runtime:
        expected = [frames(runtime, ask) for ask in asks]
    logs, steps = [], []
    with Runtime.load(bundle) as runtime:
        for ask, wanted in zip(asks, expected, strict=True):
            gpu.log.clear()
            rows: list[int] = []

            def note(stage: str, done: int, _total: int, rows: list[int] = rows) -> None:
                if stage == "denoise":
                    rows.append(done)

            clip = runtime.generate(**ask, on_progress=note)
            np.testing.assert_array_equal(clip.frames, wanted)
            assert clip.receipt.evaluations.made == 8 and clip.receipt.seconds.per_step == []
            logs.append(Counter(gpu.log))
            steps.append(rows[-1])
    assert steps == [4] * 4
    direct, recorded, *later = logs
    # Four rows of a timestep, two evaluations and a step each, and the decoder's engines beside them.
    decoder = later[0]["execute"]
    assert direct["execute"] - decoder >= 8 and direct["step"] == 4 and direct["launch graph"] == 0
    # What the host launches for the denoising: timesteps, engines, steps and two copies before, one graph after.
    assert sum(count for name, count in recorded.items() if name.startswith("record ")) == 4 * 4 + 2
    assert recorded["record execute"] == 8 and recorded["record step"] == 4 and recorded["launch graph"] == 1
    for log in later:
        assert log["launch graph"] == 1 and log["replay execute"] == 8 and log["replay step"] == 4
        assert log["step"] == log["record step"] == 0
        assert log["allocate device"] == log["allocate host"] == 0
        # One copy brings all that is new, one takes the latents away.
        assert log["replay copy host to device"] == log["replay copy device to host"] == 1


def test_fifty_guided_steps_are_one_launch_instead_of_202(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime:
        for _ in range(2):
            gpu.log.clear()
            runtime.generate(**ASK | {"num_inference_steps": 50})
    # 100 evaluations, 50 timesteps and steps, and the copies that bring a clip and take its latents away.
    assert sum(line.startswith("record ") for line in gpu.log) == 100 + 2 * 50 + 2
    assert gpu.log.count("launch graph") == 1


def test_noise_is_brought_along(gpu: Gpu, bundle: Path) -> None:
    asks = [ASK | {"solver": "lcm", "seed": seed} for seed in (1, 1, 2)]
    with Runtime.load("wan-pocket") as runtime:
        expected = [frames(runtime, ask) for ask in asks]
    with Runtime.load(bundle) as runtime:
        for ask, wanted in zip(asks, expected, strict=True):
            np.testing.assert_array_equal(frames(runtime, ask), wanted)
    assert Counter(gpu.log)["launch graph"] == 2 and not np.array_equal(expected[0], expected[2])


def test_each_structure_has_a_graph_of_its_own(gpu: Gpu, bundle: Path) -> None:
    plain, guided = ASK | {"guidance_scale": 1.0}, ASK
    with Runtime.load("wan-pocket") as runtime:
        expected = [frames(runtime, ask) for ask in (plain, guided)]
    with Runtime.load(bundle) as runtime:
        for _ in range(3):
            for ask, wanted in zip((plain, guided), expected, strict=True):
                np.testing.assert_array_equal(frames(runtime, ask), wanted)
    log = Counter(gpu.log)
    assert log["launch graph"] == 4 and log["record execute"] == 4 + 8


def test_a_graph_is_recorded_anew_when_the_room_has_moved(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime:
        wanted = frames(runtime, ASK)
        frames(runtime, ASK)
        tensorrt.current_device().room(1 << 24)  # an engine that needs more was opened
        gpu.log.clear()
        np.testing.assert_array_equal(frames(runtime, ASK), wanted)
        assert Counter(gpu.log)["record execute"] == 8


def test_clips_may_be_made_from_any_thread(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime, ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: frames(runtime, ASK), range(3)))
    for clip in made[1:]:
        np.testing.assert_array_equal(clip, made[0])


def test_an_engine_that_cannot_be_recorded_is_put_on_the_stream(
    gpu: Gpu, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.records_engines = False
    with Runtime.load("wan-pocket") as runtime:
        wanted = frames(runtime, ASK)
    with Runtime.load(bundle) as runtime, caplog.at_level(logging.INFO, "sora_runtime.denoise_cuda"):
        for _ in range(2):
            np.testing.assert_array_equal(frames(runtime, ASK), wanted)
    assert Counter(gpu.log)["launch graph"] == 0
    assert "not recorded as a graph: an engine cannot be recorded" in caplog.text


def test_a_module_without_kernels_is_named(gpu: Gpu, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_core, "cuda")
    with (
        Runtime.load(bundle) as runtime,
        pytest.raises(EngineError, match="built without CUDA kernels; install it where"),
    ):
        runtime.generate(**ASK)


def test_the_seconds_are_the_devices(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime:
        runtime.generate(**ASK)
        (stages,) = runtime._stages.values()
        assert stages.denoiser.spent() == (8, 6e-3)  # the double's events are a millisecond apart; four are rows'


def test_memory_is_given_back_when_the_runtime_closes(gpu: Gpu, bundle: Path) -> None:
    runtime = Runtime.load(bundle)
    runtime.generate(**ASK)
    (held,) = (buffer for buffer in gpu.buffers if not buffer.host and buffer.size > gpu.weight_bytes)
    runtime.close()
    assert held in gpu.closed and all(not stream.pending for stream in gpu.streams.values())


def test_a_cancelled_clip_does_not_begin(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime:
        runtime.generate(**ASK)
        token = _core.CancelToken()
        gpu.log.clear()

        def stop(stage: str, _done: int, _total: int) -> None:
            if stage == "denoise":
                token.cancel()

        with pytest.raises(Cancelled):
            runtime.generate(**ASK, cancel=token, on_progress=stop)
        assert "launch graph" not in gpu.log and "step" not in gpu.log


def test_a_recording_that_fails_leaves_the_clip_whole(
    gpu: Gpu, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu.driver, "cuGraphInstantiate", lambda graph, flags: (900,))
    with Runtime.load(bundle) as runtime, caplog.at_level(logging.INFO, "sora_runtime.denoise_cuda"):
        made = [frames(runtime, ASK) for _ in range(3)]
    for clip in made[1:]:
        np.testing.assert_array_equal(clip, made[0])
    assert caplog.text.count("not recorded as a graph") == 1 and "(900)" in caplog.text
    assert all(stream.recording is None for stream in gpu.streams.values())


def test_memory_of_structures_used_long_ago_is_given_back(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime:
        for steps in (1, 2, 3, 4, 5):
            frames(runtime, ASK | {"num_inference_steps": steps})
        (stages,) = runtime._stages.values()
        assert len(stages.denoiser._prepared) == 3  # type: ignore[union-attr]
        # Of each that was forgotten, what the host kept to copy from and to.
        assert len([buffer for buffer in gpu.closed if buffer.host]) == 4


def test_where_step_reuse_decides_each_evaluation_is_a_graph(
    gpu: Gpu, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reuse = StepReuse("easycache", threshold=0.2, warm_up=2)
    asks = [each | {"num_inference_steps": 8, "step_reuse": reuse, "force_step_reuse": True} for each in (ASK, ANOTHER)]
    with Runtime.load("wan-pocket") as runtime:
        expected = [runtime.generate(**ask) for ask in asks]
    assert expected[0].receipt.evaluations.skipped > 0
    with Runtime.load(bundle) as runtime, caplog.at_level(logging.INFO, "sora_runtime.denoise_cuda"):
        for turn in range(3):
            gpu.log.clear()
            clip, wanted = runtime.generate(**asks[turn % 2]), expected[turn % 2]
            np.testing.assert_array_equal(clip.frames, wanted.frames)
            made = clip.receipt.evaluations.made
            assert made == wanted.receipt.evaluations.made
            assert Counter(gpu.log)["launch graph"] == (made if turn else 0)
        (stages,) = runtime._stages.values()
        assert stages.denoiser.how() == (  # type: ignore[union-attr]
            "a graph for each evaluation: step reuse decides by what is measured"
        )
    assert "record step" not in gpu.log and "step reuse decides" in caplog.text
