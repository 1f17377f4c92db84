"""A runtime that makes up its frames, so that the command line can be tested in milliseconds."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import Result

from sora_runtime.errors import SoraError
from sora_runtime.receipt import (
    CacheRecord,
    EngineRecord,
    Evaluations,
    Hashes,
    MachineRecord,
    ModelRecord,
    Receipt,
    RequestRecord,
    Seconds,
    Tokens,
    cost_of,
)
from sora_runtime.runtime import Clip, Runtime

Command = Callable[..., Result]
TOTAL_SECONDS = 4.0


class FakeRuntime:
    """Takes what `Runtime` takes and remembers it in `loaded` and `requests`.

    Attributes:
        error: raised by `generate` once the first chunk of frames is out.
        sleep_seconds: how long `generate` sleeps at that moment.
    """

    def __init__(self, error: BaseException | None = None, sleep_seconds: float = 0.0) -> None:
        self.error = error
        self.sleep_seconds = sleep_seconds
        self.loaded: list[tuple[str, dict[str, Any]]] = []
        self.requests: list[dict[str, Any]] = []
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(facts=SimpleNamespace(fps=12.0)))

    def load(self, model: str, **loading: Any) -> FakeRuntime:
        self.loaded.append((model, loading))
        return self

    def generate_many(self, prompt: str, seeds: Sequence[int], **more: Any) -> Iterator[Clip]:
        for seed in seeds:
            yield self.generate(prompt, **more, seed=seed)

    def generate(self, prompt: str, *, on_progress: Any, on_frames: Any, keep_frames: bool, **request: Any) -> Clip:
        self.requests.append({"prompt": prompt, **request})
        for stage, total in (("tokenize", 1), ("text_encode", 2), ("denoise", 20)):
            for done in range(total + 1):
                on_progress(stage, done, total)
        frames = self.frames_of(request)
        for start, end in ((0, 1), (1, 5), (5, len(frames))):
            on_frames(frames[start:end])
            # In short naps, as the engines' calls are short: a signal that comes after Python's last look and before a
            # call that waits is noticed when that call is over.
            until = time.monotonic() + self.sleep_seconds
            while time.monotonic() < until:
                time.sleep(0.01)
            if self.error is not None:
                raise self.error
            on_progress("vae_decode", end, len(frames))
        fps = request["fps"] or 12.0
        latents = np.zeros((1, 8, 3, 8, 12), np.float32)
        num_frames = len(frames)
        if not keep_frames:
            frames = frames[:0]
        return Clip(frames, fps, latents, a_receipt(prompt, request, fps, num_frames))

    @staticmethod
    def frames_of(request: dict[str, Any]) -> np.ndarray:
        height, width = request["height"] or 32, request["width"] or 48
        frames = np.zeros((request["num_frames"] or 9, height, width, 3), np.uint8)
        frames += np.linspace(0, 200, width).astype(np.uint8)[:, None]
        return frames + np.uint8(request["seed"] % 50)


def a_receipt(prompt: str, request: dict[str, Any], fps: float, num_frames: int) -> Receipt:
    steps = request["num_inference_steps"] or 20
    return Receipt(
        created="2026-01-02T03:04:05+00:00",
        model=ModelRecord(name="fake", family="wan", bundle_sha256="ab" * 32),
        engine=EngineRecord(name="onnxruntime", version="1.2.3", precision="fp32", num_threads=2),
        machine=MachineRecord(cpu="A CPU of a Long Name @ 2.00GHz", cores=2, memory_bytes=1, os="Linux"),
        request=RequestRecord(
            task="t2v",
            prompt=prompt,
            negative_prompt=request["negative_prompt"] or "",
            seed=request["seed"],
            rng=request["rng"],
            solver=request["solver"] or "unipc",
            schedule="flow",
            num_inference_steps=steps,
            guidance_scale=request["guidance_scale"] or 5.0,
            guidance_scale_2=None,
            guidance_rescale=request["guidance_rescale"],
            height=request["height"] or 32,
            width=request["width"] or 48,
            num_frames=num_frames,
            fps=fps,
        ),
        tokens=Tokens(latent_tokens=1234, tokens_processed=49360),
        evaluations=Evaluations(made=2 * steps, skipped=0),
        embedding_cache=CacheRecord(hits=0, misses=2),
        seconds=Seconds(
            load=0.5,
            queued=0.0,
            tokenize=0.001,
            text_encode=0.02,
            image_encode=None,
            denoise=3.0,
            per_step=[3.0 / steps] * steps,
            vae_decode=0.9,
            encode_mp4=None,
            total=TOTAL_SECONDS,
        ),
        engine_seconds=3.5,
        peak_host_memory_bytes=300 << 20,
        video_seconds=num_frames / fps,
        cost=cost_of(
            TOTAL_SECONDS,
            num_frames / fps,
            usd_per_hour=request["price_per_hour"] or 0.09,
            price_source="a test",
            price_is_default=request["price_per_hour"] is None,
        ),
        hashes=Hashes(sampler_program="cd" * 32, graphs={}, weights={}, prompt_embeds={}, latents=None, image=None),
        reasons={"seconds.encode_mp4": "the clip was not written to a file"},
    )


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def num_frames_of(path: Path) -> int:
    """How many frames a video decodes to."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def install(fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """Puts `fake` in the place of the real runtime."""
    monkeypatch.setattr(Runtime, "load", fake.load)
    return fake


def main_that_sleeps(seconds: float) -> None:
    """`sora-bench` with a fake that sleeps once its first frames are out; for a process of its own."""
    from sora_runtime.cli.app import main

    install(FakeRuntime(SoraError("nobody stopped me"), seconds), pytest.MonkeyPatch())
    main()


def default_signals() -> None:
    """In the child: a test run in the background, or under nohup, hands on signals that are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
