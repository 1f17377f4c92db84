"""A clip from a prompt: the page to read first.

    runtime = Runtime.load("wan-pocket")
    clip = runtime.generate("a red circle moving left on a navy background", seed=7)
    clip.save("clip.mp4")
    print(clip.receipt)

prompt -> token ids -> text embeddings (cached) ; seed -> noise ; request -> sampler program
picture, if any -> VAE encoder, vision encoder -> condition
noise -> denoiser and fused step, once a row -> latents -> decoder, chunk by chunk -> rgb8 frames
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from . import _core
from .billing import Record, write_receipt
from .bundle import Bundle, Verify
from .clip import Clip
from .condition import start_latents
from .decode import collect_frames
from .denoise import DenoiseResult, Embeddings
from .embedding_store import EmbeddingStore
from .encoders import TextEncoders
from .engines.registry import DEFAULT_ENGINE, check_engine
from .errors import Cancelled, EngineError, InvalidRequest
from .machine import available_cores
from .manifest import TransformerBucket
from .programs import Programs
from .request import RequestFields, ResolvedRequest, resolve
from .sampling import SamplerProgram
from .stages import Stages
from .text import DEFAULT_CACHE_BYTES, TextUse
from .turns import Turns, stop_if_cancelled

OnProgress = Callable[[str, int, int], None]
Observer = Callable[[str, Mapping[str, NDArray[Any]]], None]
OnFrames = Callable[[NDArray[np.uint8]], None]


class Runtime:
    """A loaded bundle that makes clips.

    Threads may share one: prompts are encoded side by side, and from the denoiser on one clip is made at a
    time. Use it as a context manager, or call `close`, to give the engines back.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        num_threads: int | None = None,
        embedding_cache: _core.EmbeddingCache | None = None,
        embedding_store: EmbeddingStore | None = None,
        engine: str = DEFAULT_ENGINE,
    ) -> None:
        self.engine = check_engine(engine)
        cores = available_cores()
        most = max(64, 4 * cores)
        if num_threads is not None and not 1 <= num_threads <= most:
            raise InvalidRequest(f"num_threads = {num_threads} is out of range; use 1 to {most}")
        self.bundle = bundle
        self.num_threads = cores if num_threads is None else num_threads
        self.embedding_cache = embedding_cache or _core.EmbeddingCache(DEFAULT_CACHE_BYTES)
        self.text_encoders = TextEncoders(
            bundle, num_threads=self.num_threads, cache=self.embedding_cache, store=embedding_store, engine=engine
        )
        self._programs = Programs(bundle)
        self._stages: dict[TransformerBucket, Stages] = {}
        self._turns = Turns()
        self._observer: Observer | None = None
        self._closed = False
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
        engine: str = DEFAULT_ENGINE,
    ) -> "Runtime":
        """Open a bundle.

        Args:
            model: the name of a shipped bundle, or a bundle folder.
            num_threads: of engines and sampler; None takes every core this process may use.
            verify: `once` hashes a file when first seen, `always` at every load.
            embedding_cache: share one between runtimes; None makes one of 64 MiB.
            embedding_cache_dir: a folder that keeps embeddings between processes; None keeps none.
            engine: what runs the networks: `onnxruntime`, or `openvino` where it is installed.

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
            engine=engine,
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
        **request: Unpack[RequestFields],
    ) -> Clip:
        """Make a clip.

        Args:
            prompt: what it should show.
            on_progress: called with (stage, done, total) for the stages tokenize, text_encode,
                image_encode (with a picture), denoise and vae_decode.
            on_frames: called with uint8 [n, height, width, 3] as chunks are decoded, so that they
                can be encoded or streamed meanwhile; its time is in no stage but in the total.
            cancel: stops the clip between two steps once `cancel.cancel()` is called.
            **request: see `sora_runtime.request.RequestFields`.

        Raises:
            InvalidRequest: the request cannot be served; the message says what can.
            Cancelled: stopped through `cancel`.
            EngineError: an engine failed.
        """
        start = time.perf_counter()
        resolved = resolve(prompt, request, self.bundle.manifest)
        program, reuse = self._programs(resolved)
        report = on_progress or (lambda _stage, _done, _total: None)
        self._turns.refuse_reentry()
        if self._closed:
            raise EngineError("the runtime was closed; load it again with Runtime.load")
        embeddings, use = self._embed(resolved, program, report, cancel)
        asked = time.perf_counter()
        with self._turns.turn(cancel):
            granted = time.perf_counter()
            stages = self._stages_of(resolved)
            loading = use.load_seconds + time.perf_counter() - granted
            self.load_seconds += loading
            vae_before = stages.vae_seconds
            embeddings, image_seconds = self._condition(stages, resolved, embeddings, report, cancel)
            denoised, denoise_seconds = self._denoise(stages, resolved, program, embeddings, report, cancel)
            chunks = stages.decoder.rgb8_chunks(denoised.latents, num_threads=self.num_threads)
            frames, decode_seconds = collect_frames(chunks, resolved.geometry, report, on_frames, cancel)
            vae_engine_seconds = stages.vae_seconds - vae_before
        record = Record(
            bundle=self.bundle,
            engine=self.engine,
            num_threads=self.num_threads,
            request=resolved,
            program=program,
            reuse=reuse,
            embeddings=embeddings,
            text=use,
            denoised=denoised,
            graphs=stages.graphs,
            load=self.load_seconds,
            queued=granted - asked,
            denoise=denoise_seconds,
            image_encode=image_seconds,
            vae_decode=decode_seconds,
            total=time.perf_counter() - start - loading - (granted - asked),
            vae_engine_seconds=vae_engine_seconds,
        )
        norms = denoised.statistics.norms if program.reuse.criterion != "none" else None
        return Clip(frames, resolved.fps, denoised.latents, write_receipt(record), norms)

    def observe(self, observer: Observer) -> None:
        """Hand `observer` the graph file and the inputs of every evaluation from now on, to calibrate with.

        It must copy what it keeps: transformers read the same buffers again. VAEs are not observed.
        """
        self._observer = observer
        for encoder in self.text_encoders.encoders.values():
            encoder.observe = observer
        for stages in self._stages.values():
            stages.observe(observer)

    def program(self, request: ResolvedRequest) -> SamplerProgram:
        """The sampler program that serves a request."""
        return self._programs(request)[0]

    def close(self) -> None:
        """Give back all engines, once the clip under way is done; the embedding cache stays."""
        with self._turns.turn():
            self._closed = True
            for stages in self._stages.values():
                stages.close()
            self._stages.clear()
            self.text_encoders.close()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _embed(
        self,
        request: ResolvedRequest,
        program: SamplerProgram,
        report: OnProgress,
        cancel: _core.CancelToken | None,
    ) -> tuple[Embeddings, TextUse]:
        texts = [("prompt", request.prompt)]
        if bool(np.any(program.rows["guidance_scale"] != 1.0)):
            texts.append(("negative_prompt", request.negative_prompt))
        branches, use = self.text_encoders.embed(texts, request.image, report, cancel)
        return Embeddings(branches[0], branches[1] if len(branches) > 1 else None), use

    def _condition(
        self,
        stages: Stages,
        request: ResolvedRequest,
        embeddings: Embeddings,
        report: OnProgress,
        cancel: _core.CancelToken | None,
    ) -> tuple[Embeddings, float | None]:
        """Adds what both branches share: embedded guidance and the picture; and the seconds the picture took."""
        shared: dict[str, NDArray[np.float32]] = {}
        scale = self.bundle.manifest.facts.embedded_guidance
        if scale is not None:
            shared["guidance"] = np.array([request.guidance_scale * scale], np.float32)
        if request.image is None or stages.conditioner is None:
            return replace(embeddings, shared=shared), None
        stop_if_cancelled(cancel, "before the image encoder")
        start = time.perf_counter()
        report("image_encode", 0, 1)
        shared |= stages.conditioner(request.image, request.geometry)
        report("image_encode", 1, 1)
        return replace(embeddings, shared=shared), time.perf_counter() - start

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
        latents = request.latents
        # Stream 0 is the start noise; a caller may have drawn theirs from it.
        first_stream = 0 if latents is None else 1
        noise = _core.NoiseGenerator(
            request.seed, rng=request.rng, first_stream=first_stream, num_threads=self.num_threads
        )
        if latents is None:
            latents = noise.normal(stages.denoiser.latent_shape)
        facts = self.bundle.manifest.facts.image if request.image is not None else None
        if facts is not None:
            latents = start_latents(latents, embeddings.shared["condition"], facts)
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
        latents = result.latents
        if facts is not None and facts.policy == "first_frame":
            latents[:, :, :1] = embeddings.shared["condition"]
        # Frames that only filled up a patch are not decoded.
        result = replace(result, latents=np.ascontiguousarray(latents[:, :, request.geometry.padding :]))
        return result, time.perf_counter() - start

    def _stages_of(self, request: ResolvedRequest) -> Stages:
        if request.bucket not in self._stages:
            stages = Stages.load(
                self.bundle, request.bucket, request.geometry, num_threads=self.num_threads, engine=self.engine
            )
            if self._observer is not None:
                stages.observe(self._observer)
            self._stages[request.bucket] = stages
        return self._stages[request.bucket]
