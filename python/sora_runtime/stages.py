"""The engines of one shape bucket: its denoisers and its decoder."""

from dataclasses import dataclass

from .bundle import Bundle, TransformerBucket
from .decode import ChunkDecoder
from .denoise import Denoiser
from .engines.onnxruntime import OnnxRuntimeEngine
from .errors import BundleError
from .geometry import Geometry


def open_engine(bundle: Bundle, graph: str, *, num_threads: int) -> OnnxRuntimeEngine:
    """The engine of a graph that the bundle vouches for."""
    return OnnxRuntimeEngine(bundle.path(graph), num_threads=num_threads)


@dataclass(frozen=True)
class Stages:
    """What turns noise into frames at one size and length."""

    denoiser: Denoiser
    decoder: ChunkDecoder
    graphs: list[str]  # of the bundle, for the receipt

    @classmethod
    def load(cls, bundle: Bundle, bucket: TransformerBucket, geometry: Geometry, *, num_threads: int) -> "Stages":
        """Open the engines of a bucket, whose latents must be those of `geometry`.

        Raises:
            BundleError: a component has no graph of this shape, or a graph is not what the facts say.
            EngineError: a graph cannot be loaded.
        """
        components = bundle.manifest.components
        graphs = [bucket.graph]
        if components.transformer_2 is not None:
            shape = (bucket.height, bucket.width, bucket.num_frames)
            experts = {(b.height, b.width, b.num_frames): b.graph for b in components.transformer_2.buckets}
            if shape not in experts:
                raise BundleError(_missing(bundle, bucket, "second transformer"))
            graphs.append(experts[shape])
        chunks = {(b.height, b.width): b for b in components.vae_decoder.buckets}
        chunk = chunks.get((bucket.height, bucket.width))
        if chunk is None:
            raise BundleError(_missing(bundle, bucket, "decoder"))
        engines = [open_engine(bundle, graph, num_threads=num_threads) for graph in graphs]
        decoder = ChunkDecoder(
            open_engine(bundle, chunk.first, num_threads=num_threads),
            open_engine(bundle, chunk.next, num_threads=num_threads),
        )
        denoiser = Denoiser(engines, num_threads=num_threads)
        if denoiser.latent_shape != geometry.latent_shape:
            raise BundleError(
                f"'{bucket.graph}' takes latents {list(denoiser.latent_shape)} and the facts of bundle.json say "
                f"{list(geometry.latent_shape)}; rebuild the bundle"
            )
        return cls(denoiser, decoder, [*graphs, chunk.first, chunk.next])

    def close(self) -> None:
        """Give back the engines."""
        self.denoiser.close()
        self.decoder.close()


def _missing(bundle: Bundle, bucket: TransformerBucket, what: str) -> str:
    size = f"{bucket.width}x{bucket.height} with {bucket.num_frames} frames"
    return f"'{bundle.name}' has no {what} for {size}; rebuild it with `sora-bench build`"
