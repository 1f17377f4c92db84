"""A clip from a prompt: the page to read first.

    runtime = Runtime.load("wan-pocket")
    clip = runtime.generate("a red circle moving left on a navy background", seed=7)
    clip.save("clip.mp4")
    print(clip.receipt)

prompt -> token ids -> prompt_embeds (cached) ; seed -> noise ; request -> sampler program
noise -> denoiser and fused step, once a row -> latents -> decoder, chunk by chunk -> rgb8 frames
"""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .billing import write_receipt
from .bundle import Bundle, TransformerBucket, Verify
from .denoise import DenoiseResult, Embeddings
from .embedding_store import EmbeddingStore
from .errors import BundleError, Cancelled, InvalidRequest
from .machine import available_cores
from .receipt import Receipt
from .request import ResolvedRequest, request_from, resolve
from .sampling import Guidance, SamplerProgram, compile_program, read_scheduler_config, with_solver
from .stages import Stages, open_engine
from .text import DEFAULT_CACHE_BYTES, PromptTokenizer, TextEncoder, TextUse

OnProgress = Callable[[str, int, int], None]
OnFrames = Callable[[NDArray[np.uint8]], None]


@dataclass
class Clip:
    """What a request gave.

    Attributes:
        frames: uint8 [num_frames, height, width, 3], RGB.
        fps: frames per second.
        latents: float32 [1, channels, frames, height, width], as the decoder took them.
        receipt: what it took; see `Receipt`.
    """

    frames: NDArray[np.uint8]
    fps: float
    latents: NDArray[np.float32]
    receipt: Receipt

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the clip as .mp4 or .gif, by the name's ending; enters the time in the receipt.

        Raises:
            InvalidRequest: another ending.
            OutputError: it cannot be written; nothing is left under `path`.
        """
        from .video import VideoWriter, write_gif

        target = Path(path)
        if target.suffix == ".gif":
            write_gif(target, self.frames, self.fps)
            return
        if target.suffix != ".mp4":
            raise InvalidRequest(f"'{target.name}' ends in neither .mp4 nor .gif; use one of them")
        height, width = self.frames.shape[1:3]
        with VideoWriter(target, width=width, height=height, fps=self.fps) as writer:
            writer.write(self.frames)
        self.receipt.record_encode(writer.seconds, within_total=False)


class Runtime:
    """A loaded bundle that makes clips. Threads may share one; they take turns at the engines."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        num_threads: int | None = None,
        embedding_cache: _core.EmbeddingCache | None = None,
        embedding_store: EmbeddingStore | None = None,
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise InvalidRequest(f"num_threads = {num_threads} is below 1; use 1 or more")
        self.bundle = bundle
        self.num_threads = available_cores() if num_threads is None else num_threads
        self.embedding_cache = embedding_cache or _core.EmbeddingCache(DEFAULT_CACHE_BYTES)
        manifest = bundle.manifest
        facts, encoder = manifest.facts, manifest.components.text_encoder
        self.text_encoder = TextEncoder(
            PromptTokenizer(
                bundle.path(manifest.tokenizer),
                max_sequence_length=facts.max_sequence_length,
                pad_token_id=facts.pad_token_id,
            ),
            lambda: open_engine(bundle, encoder.graph, num_threads=self.num_threads),
            encoder.fingerprint,
            self.embedding_cache,
            embedding_store,
        )
        self._scheduler_config = _read_json(bundle.path(manifest.scheduler))
        self._stages: dict[TransformerBucket, Stages] = {}
        self._lock = threading.Lock()
        self.load_seconds = 0.0

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "wan-pocket",
        *,
        num_threads: int | None = None,
        verify: Verify = "once",
        embedding_cache: _core.EmbeddingCache | None = None,
        embedding_cache_dir: str | os.PathLike[str] | None = None,
    ) -> "Runtime":
        """Open a bundle.

        Args:
            model: the name of a shipped bundle, or a bundle folder.
            num_threads: of engines and sampler; None takes every core this process may use.
            verify: `once` hashes a file when first seen, `always` at every load.
            embedding_cache: share one between runtimes; None makes one of 64 MiB.
            embedding_cache_dir: a folder that keeps embeddings between processes; None keeps none.

        Raises:
            BundleError: the bundle is missing, damaged or does not match its hashes.
        """
        start = time.perf_counter()
        store = None if embedding_cache_dir is None else EmbeddingStore(Path(embedding_cache_dir))
        runtime = cls(
            Bundle.load(model, verify=verify),
            num_threads=num_threads,
            embedding_cache=embedding_cache,
            embedding_store=store,
        )
        runtime.load_seconds = time.perf_counter() - start
        return runtime

    def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        on_frames: OnFrames | None = None,
        cancel: _core.CancelToken | None = None,
        **request: Any,
    ) -> Clip:
        """Make a clip.

        Args:
            prompt: what it should show.
            on_progress: called with (stage, done, total) for the stages tokenize, text_encode,
                denoise and vae_decode.
            on_frames: called with uint8 [n, height, width, 3] as chunks are decoded, so that they
                can be encoded or streamed meanwhile; its time is in no stage but in the total.
            cancel: stops the clip between two steps once `cancel.cancel()` is called.
            **request: the other fields of `Request`: negative_prompt, seed, rng ("philox" or
                "torch"), num_inference_steps, guidance_scale, guidance_rescale, height, width,
                num_frames, fps, solver, latents (unit noise, float32), price_per_hour (USD).

        Raises:
            InvalidRequest: the request cannot be served; the message says what can.
            Cancelled: stopped through `cancel`.
            EngineError: an engine failed.
        """
        resolved = resolve(request_from(prompt, request), self.bundle.manifest)
        program = self.program(resolved)
        report = on_progress or (lambda _stage, _done, _total: None)
        start = time.perf_counter()
        embeddings, use = self._embed(resolved, program, report)
        asked = time.perf_counter()
        with self._lock:
            granted = time.perf_counter()
            stages = self._stages_of(resolved.bucket)
            loading = use.load_seconds + time.perf_counter() - granted
            self.load_seconds += loading
            denoised, seconds = self._denoise(stages, resolved, program, embeddings, report, cancel)
            decode_before = stages.decoder.seconds
            frames, decode_seconds = self._decode(stages, denoised.latents, report, on_frames, cancel)
            decode_engine_seconds = stages.decoder.seconds - decode_before
        receipt = write_receipt(
            self,
            resolved,
            program,
            use,
            denoised,
            graphs=stages.graphs,
            seconds={
                "queued": granted - asked,
                "denoise": seconds,
                "vae_decode": decode_seconds,
                "total": time.perf_counter() - start - loading - (granted - asked),
            },
            engine_seconds=use.engine_seconds + denoised.engine_seconds + decode_engine_seconds,
        )
        return Clip(frames, resolved.fps, denoised.latents, receipt)

    def program(self, request: ResolvedRequest) -> SamplerProgram:
        """The sampler program that serves a request."""
        config = self._scheduler_config
        if request.solver is not None:
            config = with_solver(config, request.solver)
        specification = read_scheduler_config(config)
        guidance = Guidance(
            scale=request.guidance_scale,
            rescale=request.guidance_rescale,
            boundary_ratio=self.bundle.manifest.facts.boundary_ratio,
        )
        return compile_program(
            specification.solver,
            specification.schedule,
            request.num_inference_steps,
            guidance,
            image_seq_len=request.geometry.tokens,
        )

    def close(self) -> None:
        """Give back all engines. The embedding cache stays."""
        with self._lock:
            for stages in self._stages.values():
                stages.close()
            self._stages.clear()
            self.text_encoder.close()

    def _embed(
        self, request: ResolvedRequest, program: SamplerProgram, report: OnProgress
    ) -> tuple[Embeddings, TextUse]:
        guided = bool(np.any(program.rows["guidance_scale"] != 1.0))
        use = TextUse()
        report("tokenize", 0, 1)
        report("text_encode", 0, 1 + guided)
        conditional = self.text_encoder(request.prompt, use)
        report("tokenize", 1, 1)
        report("text_encode", 1, 1 + guided)
        unconditional = None
        if guided:
            unconditional = self.text_encoder(request.negative_prompt, use)
            report("text_encode", 2, 2)
        return Embeddings(conditional, unconditional), use

    def _denoise(
        self,
        stages: Stages,
        request: ResolvedRequest,
        program: SamplerProgram,
        embeddings: Embeddings,
        report: OnProgress,
        cancel: _core.CancelToken | None,
    ) -> tuple[DenoiseResult, float]:
        start = time.perf_counter()
        noise = _core.NoiseGenerator(request.seed, rng=request.rng, num_threads=self.num_threads)
        latents = request.latents
        if latents is None:
            latents = noise.normal(stages.denoiser.latent_shape)
        rows = len(program.rows)
        report("denoise", 0, rows)
        try:
            result = stages.denoiser.run(
                program,
                embeddings,
                latents,
                noise=noise,
                on_step=lambda done: report("denoise", done, rows),
                cancel=cancel,
            )
        except _core.CancelledError as error:
            raise Cancelled(str(error)) from error
        return result, time.perf_counter() - start

    def _decode(
        self,
        stages: Stages,
        latents: NDArray[np.float32],
        report: OnProgress,
        on_frames: OnFrames | None,
        cancel: _core.CancelToken | None,
    ) -> tuple[NDArray[np.uint8], float]:
        chunks: list[NDArray[np.uint8]] = []
        total, elsewhere = latents.shape[2], 0.0
        start = time.perf_counter()
        report("vae_decode", 0, total)
        for chunk in stages.decoder.rgb8_chunks(latents, num_threads=self.num_threads):
            if cancel is not None and cancel.cancelled:
                raise Cancelled(f"cancelled after {len(chunks)} of {total} decoded chunks")
            chunks.append(chunk)
            if on_frames is not None:
                handed = time.perf_counter()
                on_frames(chunk)
                elsewhere += time.perf_counter() - handed
            report("vae_decode", len(chunks), total)
        return np.concatenate(chunks), time.perf_counter() - start - elsewhere

    def _stages_of(self, bucket: TransformerBucket) -> Stages:
        if bucket not in self._stages:
            self._stages[bucket] = Stages.load(self.bundle, bucket, num_threads=self.num_threads)
        return self._stages[bucket]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"'{path}' cannot be read ({error}); rebuild the bundle") from error
    if not isinstance(data, dict):
        raise BundleError(f"'{path}' holds no JSON object; rebuild the bundle")
    return data
