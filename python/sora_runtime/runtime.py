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
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from . import _core
from .billing import Record, write_receipt
from .bundle import Bundle, Verify
from .clip import Clip
from .decode import collect_frames
from .denoise import Embeddings
from .embedding_store import EmbeddingStore
from .embedding_tiers import EmbeddingTiers
from .encoders import TextEncoders
from .errors import EngineError, InvalidRequest
from .machine import available_cores
from .manifest import TransformerBucket
from .programs import Programs
from .request import RequestFields, ResolvedRequest, resolve
from .sampling import SamplerProgram
from .stages import Stages
from .text import DEFAULT_CACHE_BYTES, TextUse
from .turns import Turns

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
    ) -> None:
        cores = available_cores()
        most = max(64, 4 * cores)
        if num_threads is not None and not 1 <= num_threads <= most:
            raise InvalidRequest(f"num_threads = {num_threads} is out of range; use 1 to {most}")
        self.bundle = bundle
        self.num_threads = cores if num_threads is None else num_threads
        self.embedding_cache = embedding_cache or _core.EmbeddingCache(DEFAULT_CACHE_BYTES)
        self._tiers = EmbeddingTiers(self.embedding_cache, embedding_store)
        self.text_encoders = TextEncoders(bundle, num_threads=self.num_threads, tiers=self._tiers)
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
            embeddings, picture = stages.condition(embeddings, resolved, report, cancel)
            loading += 0.0 if picture is None else picture.load_seconds
            self.load_seconds += loading
            begun, decoder_before = time.perf_counter(), stages.decoder.seconds
            denoised = stages.denoise(program, embeddings, resolved, report, cancel)
            denoise_seconds = time.perf_counter() - begun
            chunks = stages.decoder.rgb8_chunks(denoised.latents, num_threads=self.num_threads)
            frames, decode_seconds = collect_frames(chunks, resolved.geometry, report, on_frames, cancel)
            decoder_seconds = stages.decoder.seconds - decoder_before
        record = Record(
            bundle=self.bundle,
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
            picture=picture,
            vae_decode=decode_seconds,
            total=time.perf_counter() - start - loading - (granted - asked),
            decoder_engine_seconds=decoder_seconds,
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

    def _stages_of(self, request: ResolvedRequest) -> Stages:
        if request.bucket not in self._stages:
            stages = Stages.load(
                self.bundle, request.bucket, request.geometry, num_threads=self.num_threads, tiers=self._tiers
            )
            if self._observer is not None:
                stages.observe(self._observer)
            self._stages[request.bucket] = stages
        return self._stages[request.bucket]
