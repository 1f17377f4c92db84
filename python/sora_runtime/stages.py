"""The engines of one shape bucket: its denoisers, its decoder and what encodes a picture for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .bundle import Bundle
from .condition import ChunkEncoder, ImageConditioner
from .decode import ChunkDecoder, Decoder
from .denoise import Denoiser
from .engines.engine import Engine
from .engines.registry import DEFAULT_ENGINE, make_engine
from .errors import BundleError, EngineError
from .geometry import Geometry
from .manifest import ChunkBucket, ChunkedVae, TransformerBucket
from .tiles import TiledDecoder


def open_engine(bundle: Bundle, graph: str, *, num_threads: int, engine: str = DEFAULT_ENGINE) -> Engine:
    """The engine of a graph that the bundle vouches for, on the library called `engine`.

    Raises:
        BundleError: the graph or its weights have changed.
        EngineError: the graph cannot be loaded, or is for an engine that is not at hand.
    """
    if bundle.manifest.engine != "onnxruntime":
        raise EngineError(
            f"'{bundle.name}' was built for {bundle.manifest.engine}, which this release cannot run; "
            "build it with --engine onnxruntime"
        )
    return make_engine(engine, bundle.path(graph), num_threads=num_threads)


@dataclass(frozen=True)
class Stages:
    """What turns noise into frames at one size, length and task."""

    denoiser: Denoiser
    decoder: Decoder
    conditioner: ImageConditioner | None
    graphs: list[str]  # of the bundle, for the receipt; the transformers' come first
    image_encoder: str | None  # its graph, where pictures are also seen by a vision encoder

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        bucket: TransformerBucket,
        geometry: Geometry,
        *,
        num_threads: int,
        engine: str = DEFAULT_ENGINE,
    ) -> "Stages":
        """Open the engines of a bucket, whose latents must be those of `geometry`, on the library called `engine`.

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
        conditioner = opener.conditioner() if bucket.task == "i2v" else None
        image = bundle.manifest.components.image_encoder
        return cls(denoiser, decoder, conditioner, opener.graphs, image.graph if conditioner and image else None)

    @property
    def vae_seconds(self) -> float:
        """Inside the engines of decoder and picture encoders, over all clips."""
        return self.decoder.seconds + (0.0 if self.conditioner is None else self.conditioner.seconds)

    def observe(self, observer: Callable[[str, Mapping[str, NDArray[Any]]], None]) -> None:
        """Hand `observer` the graph file and the inputs of every evaluation but the VAE's."""
        self.denoiser.observe = lambda engine, inputs: observer(self.graphs[engine], inputs)
        if self.conditioner is not None and self.image_encoder is not None:
            graph = self.image_encoder
            self.conditioner.observe = lambda inputs: observer(graph, inputs)

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

    def denoiser(self) -> Denoiser:
        engines = [self._open(self.bucket.graph)]
        second = self.bundle.manifest.components.transformer_2
        if second is not None:
            experts = {(b.height, b.width, b.num_frames, b.task): b.graph for b in second.buckets}
            bucket = self.bucket
            shape = (bucket.height, bucket.width, bucket.num_frames, bucket.task)
            if shape not in experts:
                raise BundleError(self._missing("second transformer"))
            engines.append(self._open(experts[shape]))
        return Denoiser(engines, num_threads=self.num_threads)

    def decoder(self) -> Decoder:
        vae, bucket = self.bundle.manifest.components.vae_decoder, self.bucket
        if isinstance(vae, ChunkedVae):
            chunk = self._chunk(vae, "decoder")
            first = self._open(chunk.first)
            return ChunkDecoder(first, None if chunk.next is None else self._open(chunk.next))
        shape = (bucket.height, bucket.width, bucket.num_frames)
        for tiled in vae.buckets:
            if (tiled.height, tiled.width, tiled.num_frames) == shape:
                return TiledDecoder(self._open(tiled.graph), tiled)
        raise BundleError(self._missing("decoder"))

    def conditioner(self) -> ImageConditioner:
        manifest = self.bundle.manifest
        components, facts = manifest.components, manifest.facts.image
        if facts is None or components.vae_encoder is None:
            raise BundleError(self._missing("VAE encoder"))
        chunk = self._chunk(components.vae_encoder, "VAE encoder")
        first = self._open(chunk.first)
        following = self._open(chunk.next) if chunk.next and facts.video == "encode_zeros" else None
        image = components.image_encoder
        return ImageConditioner(
            facts, ChunkEncoder(first, following), None if image is None else self._open(image.graph)
        )

    def _chunk(self, vae: ChunkedVae, what: str) -> ChunkBucket:
        bucket = self.bucket
        for chunk in vae.buckets:
            if (chunk.height, chunk.width) == (bucket.height, bucket.width) and chunk.num_frames in (
                None,
                bucket.num_frames,
            ):
                return chunk
        raise BundleError(self._missing(what))

    def _open(self, graph: str) -> Engine:
        engine = open_engine(self.bundle, graph, num_threads=self.num_threads, engine=self.engine)
        self.graphs.append(graph)
        return engine

    def _missing(self, what: str) -> str:
        bucket = self.bucket
        return (
            f"'{self.bundle.name}' has no {what} for {bucket.width}x{bucket.height} with "
            f"{bucket.num_frames} frames; rebuild the bundle"
        )
