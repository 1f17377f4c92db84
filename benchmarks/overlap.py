"""What doing two things at once gives on this machine: decoding beside the next clip's denoising, mp4 beside decoding.

Each pair is run one after the other, in turns, so that other programs disturb both alike; the ratio of a pair is what
counts. Both ways give the same frames and the same file, which is checked.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime import Runtime
from sora_runtime.background import Background
from sora_runtime.decode import collect_frames
from sora_runtime.denoise import Embeddings
from sora_runtime.request import ResolvedRequest, resolve
from sora_runtime.sampling import SamplerProgram
from sora_runtime.stages import Stages
from sora_runtime.video import VideoWriter

PROMPT = "a red circle moving left on a navy background"
CLIPS = 4
ROUNDS = 9

Frames = NDArray[np.uint8]


def ignore_progress(_stage: str, _done: int, _total: int) -> None:
    """Nobody looks."""


class Setting:
    """A runtime whose engines are open and whose prompt is encoded."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.runtime = Runtime.load("wan-pocket", num_threads=num_threads)
        self.runtime.generate(PROMPT, num_inference_steps=1)
        request = resolve(PROMPT, {}, self.runtime.bundle.manifest)
        self.requests: list[ResolvedRequest] = [replace(request, seed=seed) for seed in range(CLIPS)]
        self.program: SamplerProgram = self.runtime.program(request)
        self.stages: Stages
        (self.stages,) = self.runtime._stages.values()
        texts = [("prompt", request.prompt), ("negative_prompt", request.negative_prompt)]
        branches, _ = self.runtime.text_encoders.embed(texts, None, ignore_progress, None)
        self.embeddings = Embeddings(branches[0], branches[1])

    def denoise(self, request: ResolvedRequest) -> NDArray[np.float32]:
        """Clip latents."""
        return self.stages.denoise(self.program, self.embeddings, request, ignore_progress, None).latents

    def decode(self, latents: NDArray[np.float32], on_frames: Callable[[Frames], None] | None = None) -> Frames:
        """Frames of a clip."""
        chunks = self.stages.decoder.rgb8_chunks(latents, num_threads=self.runtime.num_threads)
        return collect_frames(chunks, self.requests[0].geometry, ignore_progress, on_frames, None)[0]


def one_after_the_other(setting: Setting) -> list[Frames]:
    """Denoise, decode, denoise, decode ..."""
    return [setting.decode(setting.denoise(request)) for request in setting.requests]


def decoding_beside_denoising(setting: Setting) -> list[Frames]:
    """A clip is decoded in a thread while the next is denoised."""
    made: list[Frames] = []
    decoding: threading.Thread | None = None
    for request in setting.requests:
        latents = setting.denoise(request)
        if decoding is not None:
            decoding.join()
        decoding = threading.Thread(target=lambda found=latents: made.append(setting.decode(found)))
        decoding.start()
    if decoding is not None:
        decoding.join()
    return made


def mp4_after_decoding(setting: Setting, latents: NDArray[np.float32], path: Path) -> bytes:
    """The file is encoded chunk by chunk between the decoder's runs."""
    geometry = setting.requests[0].geometry
    with VideoWriter(path, width=geometry.width, height=geometry.height, fps=12) as writer:
        setting.decode(latents, writer.write)
    return path.read_bytes()


def mp4_beside_decoding(setting: Setting, latents: NDArray[np.float32], path: Path) -> bytes:
    """The file is encoded in a thread."""
    geometry = setting.requests[0].geometry
    writer = VideoWriter(path, width=geometry.width, height=geometry.height, fps=12)
    with writer, Background(writer.write) as background:
        setting.decode(latents, background.put)
    return path.read_bytes()


def paired(first: Callable[[], Any], second: Callable[[], Any], same: Callable[[Any, Any], bool]) -> dict[str, Any]:
    """Seconds of both, and how many times faster the second is: median and quartiles of the rounds' ratios."""
    assert same(first(), second())
    seconds: list[tuple[float, float]] = []
    for turn in range(ROUNDS):
        taken = {}
        for run in (first, second) if turn % 2 else (second, first):
            start = time.perf_counter()
            run()
            taken[run] = time.perf_counter() - start
        seconds.append((taken[first], taken[second]))
    ratios = [a / b for a, b in seconds]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "apart_seconds": statistics.median(a for a, _ in seconds),
        "together_seconds": statistics.median(b for _, b in seconds),
        "faster": middle,
        "faster_quartiles": [low, high],
    }


def measure() -> dict[str, Any]:
    """Both pairs on the default clip of wan-pocket."""
    setting = Setting()
    latents = setting.denoise(setting.requests[0])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("apart.mp4", "together.mp4")]
        mp4 = paired(
            lambda: mp4_after_decoding(setting, latents, files[0]),
            lambda: mp4_beside_decoding(setting, latents, files[1]),
            lambda a, b: a == b,
        )
    decoding = paired(
        lambda: one_after_the_other(setting),
        lambda: decoding_beside_denoising(setting),
        lambda a, b: bool(np.array_equal(np.stack(a), np.stack(b))),
    )
    return {
        "num_threads": setting.runtime.num_threads,
        "clips": CLIPS,
        "rounds": ROUNDS,
        "decoding_beside_denoising": decoding,
        "mp4_beside_decoding": mp4,
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    names = {
        "decoding_beside_denoising": f"decoding beside the next clip's denoising, {result['clips']} clips",
        "mp4_beside_decoding": "mp4 beside decoding, one clip",
    }
    head = ["| at once | one after the other | at once | times faster (middle half of rounds) |", "|---|---|---|---|"]
    rows = []
    for key, name in names.items():
        row = result[key]
        low, high = row["faster_quartiles"]
        rows.append(
            f"| {name} | {row['apart_seconds']:.3f} s | {row['together_seconds']:.3f} s "
            f"| {row['faster']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join([*head, *rows])


if __name__ == "__main__":
    print(table(measure()))
