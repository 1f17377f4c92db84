"""The engines of one shape bucket: its denoisers, its decoder and what encodes a picture for it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from . import _core
from .bundle import Bundle
from .condition import ChunkEncoder, ImageConditioner, OnDemand, PictureEncoder, start_latents
from .decode import ChunkDecoder, Decoder
from .denoise import VARYING, Denoiser, DenoiseResult, Embeddings
from .embedding_tiers import EmbeddingTiers, EncoderUse
from .engines.engine import Engine
from .engines.registry import DEFAULT_ENGINE, GPU_ENGINES, PLAN_ENGINES, make_engine
from .errors import BundleError, Cancelled
from .geometry import Geometry
from .manifest import ChunkBucket, ChunkedVae, TransformerBucket
from .request import ResolvedRequest
from .sampling import SamplerProgram
from .tiles import TiledDecoder
from .turns import stop_if_cancelled

if TYPE_CHECKING:
    from .denoise_cuda import CudaDenoiser
    from .engines.device_engine import DeviceEngine


def open_engine(
    bundle: Bundle,
    graph: str,
    *,
    num_threads: int,
    engine: str = DEFAULT_ENGINE,
    varying: Collection[str] = (),
    streams: int = 1,
    later: bool = False,
) -> Engine:
    """The engine of a graph that the bundle vouches for, on the library called `engine`, which runs such bundles.

    `varying` names the inputs that differ at every evaluation; see `make_engine`. `streams` is how many networks are
    still to be opened that run in turns, this one included; `later` leaves its weights off the device for now; see
    `open_tensorrt`.

    Raises:
        BundleError: the graph or its weights have changed.
        EngineError: the graph cannot be loaded, or is for an engine that is not at hand.
    """
    if engine in PLAN_ENGINES:
        from .engines.tensorrt import open_tensorrt

        return open_tensorrt(bundle.path(graph), bundle.fingerprint(graph), engine, streams=streams, later=later)
    if engine in GPU_ENGINES:
        from .engines.onnxruntime_cuda import open_onnxruntime_cuda

        return open_onnxruntime_cuda(engine, bundle.path(graph), bundle.fingerprint(graph))
    return make_engine(engine, bundle.path(graph), num_threads=num_threads, varying=varying)


Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stages:
    """What turns noise into frames at one size, length and task."""

    bundle: Bundle
    num_threads: int
    denoiser: "Denoiser | CudaDenoiser"
    decoder: Decoder
    conditioner: ImageConditioner | None
    graphs: list[str]  # of denoisers and decoder, for the receipt; the transformers' come first

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        bucket: TransformerBucket,
        geometry: Geometry,
        *,
        num_threads: int,
        tiers: EmbeddingTiers,
        engine: str = DEFAULT_ENGINE,
    ) -> "Stages":
        """Open the engines of a bucket, whose latents must be those of `geometry`.

        What encodes pictures is opened when one misses the cache.

        Args:
            bundle: whose.
            bucket: the transformer's.
            geometry: of the clips.
            num_threads: of engines and sampler.
            tiers: where encodings of pictures are kept.
            engine: the library that runs the networks.

        Raises:
            BundleError: a component has no graph of this shape, or a graph is not what the facts say.
            EngineError: a graph cannot be loaded.
        """
        opener = _Opener(bundle, bucket, num_threads, engine, [])
        denoiser = opener.denoiser()
        if denoiser.latent_shape != geometry.latent_shape:
            raise BundleError(
                f"'{bucket.graph}' takes latents {list(denoiser.latent_shape)} and the facts of bundle.json say "
                f"{list(geometry.latent_shape)}; rebuild the bundle"
            )
        decoder = opener.decoder()
        conditioner = opener.conditioner(tiers) if bucket.task == "i2v" else None
        return cls(bundle, num_threads, denoiser, decoder, conditioner, opener.graphs)

    def observe(self, observer: Callable[[str, Mapping[str, NDArray[Any]]], None]) -> None:
        """Hand `observer` the graph file and the inputs of every evaluation but the VAE's."""
        self.denoiser.observe = lambda engine, inputs: observer(self.graphs[engine], inputs)
        if self.conditioner is not None:
            self.conditioner.observe = observer

    def condition(
        self, embeddings: Embeddings, request: ResolvedRequest, report: Report, cancel: _core.CancelToken | None
    ) -> tuple[Embeddings, EncoderUse | None]:
        """Adds what both branches share: embedded guidance and the picture; and what the picture took, if any."""
        shared: dict[str, NDArray[np.float32]] = {}
        scale = self.bundle.manifest.facts.embedded_guidance
        if scale is not None:
            shared["guidance"] = np.array([request.guidance_scale * scale], np.float32)
        if request.image is None or self.conditioner is None:
            return replace(embeddings, shared=shared), None
        stop_if_cancelled(cancel, "before the image encoder")
        use = EncoderUse()
        report("image_encode", 0, 1)
        shared |= self.conditioner(request.image, request.geometry, use)
        report("image_encode", 1, 1)
        return replace(embeddings, shared=shared), use

    def denoise(
        self,
        program: SamplerProgram,
        embeddings: Embeddings,
        request: ResolvedRequest,
        report: Report,
        cancel: _core.CancelToken | None,
    ) -> DenoiseResult:
        """Clip latents, as the decoder takes them, of a request.

        Raises:
            Cancelled: stopped through `cancel`.
            EngineError: an engine failed, or the latents diverged.
        """
        latents = request.latents
        # Stream 0 is the start noise; a caller may have drawn theirs from it.
        first_stream = 0 if latents is None else 1
        noise = _core.NoiseGenerator(
            request.seed, rng=request.rng, first_stream=first_stream, num_threads=self.num_threads
        )
        if latents is None:
            latents = noise.normal(self.denoiser.latent_shape)
        facts = self.bundle.manifest.facts.image if request.image is not None else None
        if facts is not None:
            latents = start_latents(latents, embeddings.shared["condition"], facts)
        rows = len(program.rows)
        report("denoise", 0, rows)
        try:
            result = self.denoiser.run(
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
        return replace(result, latents=np.ascontiguousarray(latents[:, :, request.geometry.padding :]))

    def close(self) -> None:
        """Give back the engines."""
        self.denoiser.close()
        self.decoder.close()
        if self.conditioner is not None:
            self.conditioner.close()


@dataclass(frozen=True)
class _Opener:
    """Finds the graphs of a bucket in the manifest and opens them."""

    bundle: Bundle
    bucket: TransformerBucket
    num_threads: int
    engine: str
    graphs: list[str]  # opened so far

    def denoiser(self) -> "Denoiser | CudaDenoiser":
        second = self.bundle.manifest.components.transformer_2
        engines = [self._open(self.bucket.graph, VARYING, streams=1 if second is None else 2)]
        if second is not None:
            experts = {(b.height, b.width, b.num_frames, b.task): b.graph for b in second.buckets}
            bucket = self.bucket
            shape = (bucket.height, bucket.width, bucket.num_frames, bucket.task)
            if shape not in experts:
                raise BundleError(self._missing("second transformer"))
            engines.append(self._open(experts[shape], VARYING, later=True))
        if self.engine in GPU_ENGINES:
            from .denoise_cuda import CudaDenoiser

            return CudaDenoiser(cast("list[DeviceEngine]", engines))
        return Denoiser(engines, num_threads=self.num_threads)

    def decoder(self) -> Decoder:
        vae, bucket = self.bundle.manifest.components.vae_decoder, self.bucket
        if isinstance(vae, ChunkedVae):
            chunk = self._chunk(vae, "decoder")
            first = self._open(chunk.first)
            following = None if chunk.next is None else self._open(chunk.next)
            if self.engine in GPU_ENGINES:
                from .chunks_cuda import CudaChunkDecoder

                return CudaChunkDecoder(cast("DeviceEngine", first), cast("DeviceEngine | None", following))
            return ChunkDecoder(first, following)
        shape = (bucket.height, bucket.width, bucket.num_frames)
        for tiled in vae.buckets:
            if (tiled.height, tiled.width, tiled.num_frames) == shape:
                engine = self._open(tiled.graph)
                if self.engine in GPU_ENGINES:
                    from .tiles_cuda import CudaTiledDecoder

                    return CudaTiledDecoder(cast("DeviceEngine", engine), tiled)
                return TiledDecoder(engine, tiled)
        raise BundleError(self._missing("decoder"))

    def conditioner(self, tiers: EmbeddingTiers) -> ImageConditioner:
        components, facts = self.bundle.manifest.components, self.bundle.manifest.facts.image
        if facts is None or components.vae_encoder is None:
            raise BundleError(self._missing("VAE encoder"))
        chunk = self._chunk(components.vae_encoder, "VAE encoder")
        following = chunk.next if facts.video == "encode_zeros" else None
        graphs = (chunk.first,) if following is None else (chunk.first, following)

        def open_vae() -> PictureEncoder:
            engines = self._engine(chunk.first), None if following is None else self._engine(following)
            if self.engine in GPU_ENGINES:
                from .chunks_cuda import CudaChunkEncoder

                return CudaChunkEncoder(*cast("tuple[DeviceEngine, DeviceEngine | None]", engines))
            return ChunkEncoder(*engines)

        vae = OnDemand(open_vae, graphs=graphs, fingerprint=self._fingerprint(graphs))
        image = None if components.image_encoder is None else self._vision(components.image_encoder.graph)
        return ImageConditioner(facts, vae, image, tiers)

    def _vision(self, graph: str) -> OnDemand[Engine]:
        return OnDemand(lambda: self._engine(graph), graphs=(graph,), fingerprint=self._fingerprint((graph,)))

    def _fingerprint(self, graphs: tuple[str, ...]) -> str:
        library = () if self.engine == DEFAULT_ENGINE else (self.engine,)  # another one rounds otherwise
        return " ".join([*(self.bundle.fingerprint(graph) for graph in graphs), *library])

    def _chunk(self, vae: ChunkedVae, what: str) -> ChunkBucket:
        bucket = self.bucket
        for chunk in vae.buckets:
            if (chunk.height, chunk.width) == (bucket.height, bucket.width) and chunk.num_frames in (
                None,
                bucket.num_frames,
            ):
                return chunk
        raise BundleError(self._missing(what))

    def _open(self, graph: str, varying: Collection[str] = (), streams: int = 1, *, later: bool = False) -> Engine:
        engine = self._engine(graph, varying, streams, later=later)
        self.graphs.append(graph)
        return engine

    def _engine(self, graph: str, varying: Collection[str] = (), streams: int = 1, *, later: bool = False) -> Engine:
        return open_engine(
            self.bundle,
            graph,
            num_threads=self.num_threads,
            engine=self.engine,
            varying=varying,
            streams=streams,
            later=later,
        )

    def _missing(self, what: str) -> str:
        bucket = self.bucket
        return (
            f"'{self.bundle.name}' has no {what} for {bucket.width}x{bucket.height} with "
            f"{bucket.num_frames} frames; rebuild the bundle"
        )
