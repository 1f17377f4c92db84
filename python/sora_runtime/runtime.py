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
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from . import _core
from .billing import Record, default_price, past_clip, write_receipt
from .budget import Option, options_of
from .bundle import Bundle, Verify
from .clip import Clip
from .decode import collect_frames
from .denoise import DenoiseResult
from .embedding_store import EmbeddingStore
from .embedding_tiers import EmbeddingTiers
from .encoders import Encoded, TextEncoders
from .engines.gpu_meter import Measurement
from .engines.registry import DEFAULT_ENGINE, GPU_ENGINES, engine_for
from .errors import EngineError, InvalidRequest
from .foresight import Foresight
from .machine import available_cores
from .open_stages import Observer, OpenStages
from .preset_use import open_preset
from .programs import Programs
from .request import RequestFields, ResolvedRequest, resolve
from .sampling import SamplerProgram
from .seeds import one_by_one, with_seeds
from .spending import Spending
from .stages import Stages
from .text import DEFAULT_CACHE_BYTES
from .turns import turns_of

OnProgress = Callable[[str, int, int], None]
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
        preset: str | None = None,
    ) -> None:
        self.engine = engine = engine_for(bundle.manifest.engine, engine, bundle.manifest.precision)
        cores = available_cores()
        most = max(64, 4 * cores)
        if num_threads is not None and not 1 <= num_threads <= most:
            raise InvalidRequest(f"num_threads = {num_threads} is out of range; use 1 to {most}")
        self.bundle = bundle
        self.num_threads = cores if num_threads is None else num_threads
        self.embedding_cache = embedding_cache or _core.EmbeddingCache(DEFAULT_CACHE_BYTES)
        self._tiers = EmbeddingTiers(self.embedding_cache, embedding_store)
        self.text_encoders = TextEncoders(bundle, num_threads=self.num_threads, tiers=self._tiers, engine=engine)
        self.preset = preset
        self._programs = Programs(bundle)
        self._foresight = Foresight(bundle, self.num_threads, engine)
        self._stages = OpenStages(bundle, self._tiers, num_threads=self.num_threads, engine=engine)
        self._turns = turns_of(engine)
        self._closed, self.load_seconds = False, 0.0

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
        preset: str | None = None,
    ) -> "Runtime":
        """Open a bundle.

        Args:
            model: the name of a shipped bundle, or a bundle folder.
            num_threads: of engines and sampler; None takes every core this process may use.
            verify: `once` hashes a file when first seen, `always` at every load.
            embedding_cache: share one between runtimes; None makes one of 64 MiB.
            embedding_cache_dir: a folder that keeps embeddings between processes; None keeps none.
            engine: what runs the networks: `onnxruntime`, or `openvino`, `onnxruntime_cuda` or `onnxruntime_tensorrt`
                where it is installed. A bundle that was built for TensorRT or TensorRT-RTX is run by that.
            preset: of the bundle, for every request that names no other one; where it is for another bundle,
                that one is opened.

        Raises:
            BundleError: the bundle is missing, damaged or does not match its hashes; or the preset's is.
            InvalidRequest: there is no such preset.
        """
        start = time.perf_counter()
        store = None if embedding_cache_dir is None else EmbeddingStore(Path(embedding_cache_dir))
        bundle = Bundle.load(model, verify=verify)
        runtime = cls(
            bundle if preset is None else open_preset(bundle, preset, verify),
            num_threads=num_threads,
            embedding_cache=embedding_cache,
            embedding_store=store,
            engine=engine,
            preset=preset,
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
        keep_frames: bool = True,
        **request: Unpack[RequestFields],
    ) -> Clip:
        """Make a clip.

        Args:
            prompt: what it should show.
            on_progress: called with (stage, done, total) for the stages tokenize, text_encode,
                image_encode (with a picture), denoise and vae_decode; a budget may begin denoise anew.
            on_frames: called with uint8 [n, height, width, 3] as chunks are decoded, so that they
                can be encoded or streamed meanwhile; its time is in no stage but in the total.
            cancel: stops the clip between two steps once `cancel.cancel()` is called.
            keep_frames: False leaves `clip.frames` empty: they pass through `on_frames` alone, and memory does not
                grow with the clip.
            **request: see `sora_runtime.request.RequestFields`.

        Raises:
            InvalidRequest: the request cannot be served, or no settings fit its budget; the message says what can.
            BundleError: a preset cannot be used as it lies in the bundle.
            BudgetExceeded: what is left of the budget no longer sufficed for any settings.
            Cancelled: stopped through `cancel`.
            EngineError: an engine failed.
        """
        start = time.perf_counter()
        self._turns.refuse_reentry()
        if self._closed:
            raise EngineError("the runtime was closed; load it again with Runtime.load")
        options = options_of(prompt, self._wanted(request), self.bundle.manifest, self._programs, self._foresight)
        if options[0].request.price_per_hour is None:
            default_price(self.engine, available_cores())  # refused before the work, not after it
        spending = Spending(options, start, self.bundle.name)
        spending.choose()
        report = on_progress or (lambda _stage, _done, _total: None)
        # On a GPU whatever runs waits for its turn; on a CPU prompts are encoded side by side.
        ahead = None if self.engine in GPU_ENGINES else self._encode(spending.option, report, cancel)
        asked = time.perf_counter()
        with self._turns.turn(cancel, None if spending.budget is None else spending.while_waiting):
            granted, loaded_before, gpu = time.perf_counter(), self.load_seconds, Measurement(self.engine)
            encoded = ahead or self._encode(spending.option, report, cancel)
            opening = time.perf_counter()
            stages = self._stages.of(spending.option.request)
            self.load_seconds += encoded.use.load_seconds + time.perf_counter() - opening
            spending.unbilled = self.load_seconds - loaded_before + granted - asked
            report = spending.watched(report, stages.denoiser.spent)
            denoised, denoise_seconds = spending.make(
                lambda: self._denoise(spending, stages, encoded, report, cancel), stages.denoiser.spent
            )
            decoder_before = stages.decoder.seconds
            option, chunks = spending.option, stages.decoder.rgb8_chunks(denoised.latents, num_threads=self.num_threads)
            geometry = option.request.geometry
            frames, decode_seconds = collect_frames(chunks, geometry, report, on_frames, cancel, keep=keep_frames)
            decoder_seconds = stages.decoder.seconds - decoder_before
        record = Record(
            bundle=self.bundle,
            engine=self.engine,
            num_threads=self.num_threads,
            request=option.request,
            program=option.program,
            reuse=option.reuse,
            embeddings=encoded.embeddings,
            text=encoded.use,
            denoised=denoised,
            graphs=stages.graphs,
            load=self.load_seconds,
            queued=granted - asked,
            denoise=denoise_seconds,
            picture=encoded.picture,
            vae_decode=decode_seconds,
            total=time.perf_counter() - start - spending.unbilled,
            decoder_engine_seconds=decoder_seconds,
            gpu=gpu,
            budget=spending.record(),
        )
        self._foresight.learn(option.request.bucket, past_clip(record))
        norms = denoised.statistics.norms if option.program.reuse.criterion != "none" else None
        return Clip(frames, option.request.fps, denoised.latents, write_receipt(record), norms)

    def generate_many(
        self,
        prompt: str,
        seeds: Iterable[int],
        *,
        on_progress: OnProgress | None = None,
        on_frames: OnFrames | None = None,
        cancel: _core.CancelToken | None = None,
        keep_frames: bool = True,
        **request: Unpack[RequestFields],
    ) -> Iterator[Clip]:
        """Make a clip of one prompt for each seed, one by one; texts and picture are encoded once.

        The seconds of what they share are billed in equal parts; each receipt says so under `batch`. Between two clips
        other threads may take their turn. All but the following is as of `generate`.

        Args:
            prompt: of all.
            seeds: in place of the request's `seed`; no two the same.
            on_progress: called for clip after clip.
            on_frames: likewise.
            cancel: stops the clip under way, and with it those that would follow.
            keep_frames: of each.
            **request: without seed and latents.

        Raises:
            InvalidRequest: at once; the other errors of `generate` as the clips are asked for.
        """
        requests = with_seeds(request, seeds)
        for each in requests:
            resolve(prompt, self._wanted(each), self.bundle.manifest)
        make = partial(self.generate, on_progress=on_progress, on_frames=on_frames, cancel=cancel)
        return one_by_one(partial(make, prompt, keep_frames=keep_frames), requests)

    def observe(self, observer: Observer) -> None:
        """Hand `observer` the graph file and the inputs of every evaluation from now on, to calibrate with.

        It must copy what it keeps: transformers read the same buffers again. VAEs are not observed.
        """
        for encoder in self.text_encoders.encoders.values():
            encoder.observe = observer
        self._stages.observe(observer)

    def program(self, request: ResolvedRequest) -> SamplerProgram:
        """The sampler program that serves a request."""
        return self._programs(request)[0]

    def close(self) -> None:
        """Give back all engines, once the clip under way is done; the embedding cache stays."""
        with self._turns.turn():
            self._closed = True
            self._stages.close()
            self.text_encoders.close()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wanted(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"preset": self.preset, **{name: value for name, value in request.items() if value is not None}}

    def _encode(self, option: Option, report: OnProgress, cancel: _core.CancelToken | None) -> Encoded:
        guided = bool(np.any(option.program.rows["guidance_scale"] != 1.0))
        return self.text_encoders.encode(option.request, report, cancel, guided=guided)

    def _denoise(
        self,
        spending: Spending,
        stages: Stages,
        encoded: Encoded,
        report: OnProgress,
        cancel: _core.CancelToken | None,
    ) -> tuple[DenoiseResult, float]:
        """Latents of the option that is made now, and the seconds of the denoising alone."""
        option = spending.option
        if encoded.request is not option.request:  # another one was given up, and its prompts are known
            encoded.take(self._encode(option, report, cancel))
        encoded.embeddings, picture = stages.condition(encoded.embeddings, option.request, report, cancel)
        if picture is not None and encoded.picture is None:  # once: what was given up has left it in the cache
            encoded.picture = picture
            self.load_seconds += picture.load_seconds
            spending.unbilled += picture.load_seconds
        begun = time.perf_counter()
        result = stages.denoise(option.program, encoded.embeddings, option.request, report, cancel)
        return result, time.perf_counter() - begun
