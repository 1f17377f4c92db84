"""What an image-to-video transformer is shown of the picture: VAE latents, mask and the vision encoder's words."""

import hashlib
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .embedding_tiers import EmbeddingTiers, EncoderUse
from .engines.engine import Engine
from .errors import BundleError
from .geometry import Geometry
from .manifest import ImageFacts
from .pixels import Picture

Arrays = dict[str, NDArray[np.float32]]


class Closable(Protocol):
    """What holds an engine."""

    def close(self) -> None:
        """Give it back."""


Opened = TypeVar("Opened", bound=Closable)


class OnDemand(Generic[Opened]):
    """An encoder that is opened when a picture first misses the cache; with a warm one it never is.

    Args:
        open_encoder: opens its engines.
        graphs: of these.
        fingerprint: names graphs and weights by content.
    """

    def __init__(self, open_encoder: Callable[[], Opened], *, graphs: tuple[str, ...], fingerprint: str) -> None:
        self._open = open_encoder
        self._encoder: Opened | None = None
        self.graphs = graphs
        self.fingerprint = fingerprint

    @property
    def loaded(self) -> bool:
        """Whether it was opened."""
        return self._encoder is not None

    def get(self, use: EncoderUse) -> Opened:
        """The encoder; `use` gets the time that opening it takes."""
        if self._encoder is None:
            start = time.perf_counter()
            self._encoder = self._open()
            use.load_seconds += time.perf_counter() - start
        return self._encoder

    def close(self) -> None:
        """Give back the engines."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None


class PictureEncoder(Protocol):
    """A picture in, latents of a clip that begins with it out."""

    seconds: float
    """Inside the engines, over all clips."""

    def encode(self, picture: NDArray[np.float32], zero_frames: int) -> NDArray[np.float32]:
        """See `ChunkEncoder.encode`."""

    def close(self) -> None:
        """Give back the engines."""


class ChunkEncoder:
    """A causal VAE encoder: frames in, chunk by chunk, latents as the transformer takes them out.

    Args:
        first: engine of the first frame: frames -> latents, cache_out.*
        following: engine of every later chunk: frames, cache_in.* -> latents, cache_out.*; may be None where
            only the first is ever encoded.
    """

    def __init__(self, first: Engine, following: Engine | None) -> None:
        self._engines = (first, following)
        self.seconds = 0.0  # inside the engines, over all clips

    def encode(self, picture: NDArray[np.float32], zero_frames: int) -> NDArray[np.float32]:
        """Latents of a picture and of frames of zero behind it.

        Args:
            picture: float32 [1, 3, 1, height, width].
            zero_frames: how many follow; whole chunks.

        Returns:
            float32 [1, channels, latent frames, rows, columns].
        """
        first, following = self._engines
        outputs = self._run(first, {"frames": picture})
        parts = [outputs["latents"]]
        if zero_frames and following is None:
            raise BundleError("the bundle's VAE encoder takes one frame and the model wants a clip; rebuild the bundle")
        while zero_frames > 0 and following is not None:
            chunk = following.inputs["frames"].zeros()
            caches = {name.replace("_out.", "_in."): cache for name, cache in outputs.items() if name != "latents"}
            outputs = self._run(following, {"frames": chunk, **caches})
            parts.append(outputs["latents"])
            zero_frames -= chunk.shape[2]
        return np.concatenate(parts, axis=2)

    def _run(self, engine: Engine, given: Arrays) -> Arrays:
        inputs = {name: given[name].astype(spec.dtype, copy=False) for name, spec in engine.inputs.items()}
        outputs = {name: spec.empty() for name, spec in engine.outputs.items()}
        binding = engine.bind({**inputs, **outputs})
        start = time.perf_counter()
        binding.run()
        self.seconds += time.perf_counter() - start
        return outputs

    def close(self) -> None:
        """Give back the engines."""
        for engine in self._engines:
            if engine is not None:
                engine.close()


def start_latents(noise: NDArray[np.float32], condition: NDArray[np.float32], facts: ImageFacts) -> NDArray[np.float32]:
    """What a clip starts from: noise, and in every frame a share of the picture's latent if the model wants one.

    Args:
        noise: float32 [1, channels, frames, rows, columns].
        condition: the graph's input.
        facts: how the model takes its picture.
    """
    if facts.noise_share == 1:
        return noise
    first = facts.mask_channels if facts.mask == "before" else 0
    picture = condition[:, first : first + noise.shape[1], :1]
    share = np.float32(facts.noise_share)
    return noise * share + picture * (1 - share)


class ImageConditioner:
    """Makes the transformer's inputs `condition` and `image_embeds` of a picture, each encoded once.

    Args:
        facts: how the model takes its picture.
        vae_encoder: at the clip's size.
        image_encoder: engine pixel_values -> image_embeds, where the model has one.
        tiers: where encodings are kept, by the fitted picture's pixels.
    """

    def __init__(
        self,
        facts: ImageFacts,
        vae_encoder: OnDemand[PictureEncoder],
        image_encoder: OnDemand[Engine] | None,
        tiers: EmbeddingTiers,
    ) -> None:
        self._facts = facts
        self._vae_encoder = vae_encoder
        self._image_encoder = image_encoder
        self._tiers = tiers
        self.observe: Callable[[str, Arrays], None] | None = None
        """Called with the vision encoder's graph and inputs before it runs."""

    @property
    def loaded(self) -> bool:
        """Whether any encoder was opened."""
        return self._vae_encoder.loaded or (self._image_encoder is not None and self._image_encoder.loaded)

    def __call__(self, picture: Picture, geometry: Geometry, use: EncoderUse | None = None) -> Arrays:
        """`condition` float32 [1, n, frames or 1, rows, columns] and, with a vision encoder, `image_embeds`.

        Args:
            picture: as it was given.
            geometry: of the clip.
            use: gets the time it takes, and whether the encodings were there.
        """
        facts, use = self._facts, EncoderUse() if use is None else use
        start, loaded_before = time.perf_counter(), use.load_seconds
        zeros = geometry.num_frames - 1 if facts.video == "encode_zeros" else 0
        if facts.fit == "crop":
            picture = picture.covering(geometry.height, geometry.width)
        latents = self._latents(picture.frame(geometry.height, geometry.width), zeros, use)
        arrays = {"condition": self._condition(latents, geometry)}
        if facts.image_encoder is not None and self._image_encoder is not None:
            arrays["image_embeds"] = self._embeds(self._image_encoder, picture.pixel_values(facts.image_encoder), use)
        use.encode_seconds += time.perf_counter() - start - (use.load_seconds - loaded_before)
        return arrays

    def _latents(self, frame: NDArray[np.float32], zero_frames: int, use: EncoderUse) -> NDArray[np.float32]:
        def encode() -> NDArray[np.float32]:
            encoder = self._vae_encoder.get(use)
            before = encoder.seconds
            latents = encoder.encode(frame, zero_frames)
            use.engine_seconds += encoder.seconds - before
            return latents.astype(np.float32, copy=False)

        key = _key(self._vae_encoder.fingerprint, frame, f"{zero_frames} zeros")
        latents, found = self._tiers.get(key, None, encode)
        use.note(found, self._vae_encoder.graphs)
        return latents

    def _condition(self, latents: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
        facts = self._facts
        if facts.video == "first_only":
            return latents
        frames, rows, columns = geometry.latent_shape[2:]
        full = np.zeros((1, latents.shape[1], frames, rows, columns), np.float32)
        full[:, :, : latents.shape[2]] = latents
        if facts.mask is None:
            return full
        mask = np.zeros((1, facts.mask_channels, frames, rows, columns), np.float32)
        mask[:, :, 0] = 1.0
        return np.concatenate((mask, full) if facts.mask == "before" else (full, mask), axis=1)

    def _embeds(
        self, encoder: OnDemand[Engine], pixel_values: NDArray[np.float32], use: EncoderUse
    ) -> NDArray[np.float32]:
        def encode() -> NDArray[np.float32]:
            engine = encoder.get(use)
            if self.observe is not None:
                self.observe(encoder.graphs[0], {"pixel_values": pixel_values})
            embeds = engine.outputs["image_embeds"].empty()
            binding = engine.bind({"pixel_values": pixel_values, "image_embeds": embeds})
            start = time.perf_counter()
            binding.run()
            use.engine_seconds += time.perf_counter() - start
            return embeds.astype(np.float32, copy=False)

        embeds, found = self._tiers.get(_key(encoder.fingerprint, pixel_values, "pixel_values"), None, encode)
        use.note(found, encoder.graphs)
        return embeds

    def close(self) -> None:
        """Give back the engines."""
        self._vae_encoder.close()
        if self._image_encoder is not None:
            self._image_encoder.close()


def _key(fingerprint: str, shown: NDArray[np.float32], how: str) -> bytes:
    """Of the encoder's graphs and weights, the output's dtype, and the picture as the encoder is shown it."""
    content = hashlib.sha256(f"{fingerprint} float32 {how} {list(shown.shape)} ".encode())
    content.update(np.ascontiguousarray(shown).tobytes())
    return content.digest()
