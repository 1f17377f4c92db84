"""From pixels and frames to latents and tokens: exact integer arithmetic, no model names."""

from dataclasses import dataclass

from .errors import InvalidRequest


@dataclass(frozen=True)
class Strides:
    """How a model divides a clip: pixels and frames per latent cell, cells per token."""

    latent_channels: int
    spatial_stride: int
    temporal_stride: int
    patch_size: tuple[int, int, int]  # frames, rows, columns of latent cells in one token
    pad_latent_frames: bool = False  # fill latent frames up to whole patches


@dataclass(frozen=True)
class Geometry:
    """The shapes of one clip."""

    height: int  # pixels
    width: int
    num_frames: int
    latent_shape: tuple[int, int, int, int, int]  # [1, channels, frames, height, width]
    tokens: int  # sequence length of one transformer evaluation
    padding: int = 0  # latent frames in front that only fill up a patch and are not decoded
    dropped_frames: int = 0  # decoded frames in front that are not shown

    @property
    def shown_frames(self) -> int:
        """Frames of the clip that is given out."""
        return self.num_frames - self.dropped_frames

    @classmethod
    def of(cls, strides: Strides, *, height: int, width: int, num_frames: int) -> "Geometry":
        """Derive the shapes of a clip.

        Args:
            strides: the model's strides.
            height: pixels; a multiple of spatial stride times patch.
            width: likewise.
            num_frames: a causal VAE with temporal stride k takes k*n + 1 frames.

        Raises:
            InvalidRequest: a size the model cannot represent, with the nearest ones it can.
        """
        _, patch_rows, patch_columns = strides.patch_size
        for name, value, patch in (("height", height, patch_rows), ("width", width, patch_columns)):
            _check_multiple(name, value, strides.spatial_stride * patch)
        _check_frames(num_frames, strides.temporal_stride)
        frames = (num_frames - 1) // strides.temporal_stride + 1
        padding = -frames % strides.patch_size[0] if strides.pad_latent_frames else 0
        frames += padding
        if frames % strides.patch_size[0] != 0:
            raise InvalidRequest(
                f"num_frames = {num_frames} gives {frames} latent frames, which is not a multiple "
                f"of the patch of {strides.patch_size[0]}; use another length"
            )
        rows, columns = height // strides.spatial_stride, width // strides.spatial_stride
        tokens = (frames // strides.patch_size[0]) * (rows // patch_rows) * (columns // patch_columns)
        shape = (1, strides.latent_channels, frames, rows, columns)
        return cls(height, width, num_frames, shape, tokens, padding)


def _check_multiple(name: str, value: int, step: int) -> None:
    if value > 0 and value % step == 0:
        return
    below = value // step * step
    nearest = f"{below} or {below + step}" if below > 0 else f"{step}"
    raise InvalidRequest(f"{name} = {value} is not a positive multiple of {step}; use {nearest}")


def _check_frames(num_frames: int, stride: int) -> None:
    if num_frames >= 1 and (num_frames - 1) % stride == 0:
        return
    below = (num_frames - 1) // stride * stride + 1
    nearest = f"{below} or {below + stride}" if below > 0 else "1"
    raise InvalidRequest(f"num_frames = {num_frames} is not {stride}k+1; use {nearest}")
