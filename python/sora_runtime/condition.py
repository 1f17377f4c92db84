"""What an image-to-video transformer is shown of the picture: VAE latents, mask and the vision encoder's words."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .engines.engine import Engine
from .errors import BundleError
from .geometry import Geometry
from .manifest import ImageFacts
from .pixels import Picture

Arrays = dict[str, NDArray[np.float32]]


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
    """Makes the transformer's inputs `condition` and `image_embeds` of a picture.

    Args:
        facts: how the model takes its picture.
        vae_encoder: at the clip's size.
        image_encoder: engine pixel_values -> image_embeds, where the model has one.
    """

    def __init__(self, facts: ImageFacts, vae_encoder: ChunkEncoder, image_encoder: Engine | None) -> None:
        self._facts = facts
        self._vae_encoder = vae_encoder
        self._image_encoder = image_encoder
        self._image_seconds = 0.0
        self.observe: Callable[[Arrays], None] | None = None
        """Called with the vision encoder's inputs before it runs."""

    @property
    def seconds(self) -> float:
        """Inside the engines, over all clips."""
        return self._vae_encoder.seconds + self._image_seconds

    def __call__(self, picture: Picture, geometry: Geometry) -> Arrays:
        """`condition` float32 [1, n, frames or 1, rows, columns] and, with a vision encoder, `image_embeds`."""
        facts = self._facts
        zeros = geometry.num_frames - 1 if facts.video == "encode_zeros" else 0
        if facts.fit == "crop":
            picture = picture.covering(geometry.height, geometry.width)
        latents = self._vae_encoder.encode(picture.frame(geometry.height, geometry.width), zeros)
        arrays = {"condition": self._condition(latents, geometry)}
        if facts.image_encoder is not None and self._image_encoder is not None:
            arrays["image_embeds"] = self._embed(picture.pixel_values(facts.image_encoder))
        return arrays

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

    def _embed(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        engine = self._image_encoder
        assert engine is not None
        if self.observe is not None:
            self.observe({"pixel_values": pixel_values})
        embeds = engine.outputs["image_embeds"].empty()
        binding = engine.bind({"pixel_values": pixel_values, "image_embeds": embeds})
        start = time.perf_counter()
        binding.run()
        self._image_seconds += time.perf_counter() - start
        return embeds

    def close(self) -> None:
        """Give back the engines."""
        self._vae_encoder.close()
        if self._image_encoder is not None:
            self._image_encoder.close()
