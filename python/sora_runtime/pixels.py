"""Pictures that a request brings: read, resized and normalised as the models were trained to see them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidRequest
from .manifest import PixelInput

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """An RGB picture: uint8 [rows, columns, 3]."""

    rgb8: NDArray[np.uint8]

    @property
    def sha256(self) -> str:
        """Of shape and pixels, hexadecimal."""
        shape = np.asarray(self.rgb8.shape, "<i8").tobytes()
        return hashlib.sha256(shape + np.ascontiguousarray(self.rgb8).tobytes()).hexdigest()

    def covering(self, height: int, width: int) -> "Picture":
        """Its middle, scaled with Lanczos so that it just covers the size: diffusers' `resize_mode="crop"`."""
        rows, columns = self.rgb8.shape[:2]
        wide = width / height > columns / rows
        box = (width, rows * width // columns) if wide else (columns * height // rows, height)
        left, top = box[0] // 2 - width // 2, box[1] // 2 - height // 2
        return Picture(self._resized(box, "lanczos")[top : top + height, left : left + width])

    def frame(self, height: int, width: int) -> NDArray[np.float32]:
        """float32 [1, 3, 1, height, width], -1 to 1, stretched to the size with Lanczos as diffusers does."""
        resized = self._resized((width, height), "lanczos")
        scaled: NDArray[np.float32] = resized.astype(np.float32) / np.float32(255.0) * np.float32(2.0) - np.float32(1.0)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))[None, :, None]

    def pixel_values(self, wanted: PixelInput) -> NDArray[np.float32]:
        """float32 [1, 3, size, size], normalised: what a vision encoder's image processor makes of it."""
        size = wanted.size
        if wanted.crop == "center":
            rows, columns = self.rgb8.shape[:2]
            short = min(rows, columns)
            # The longer side is cut down, not rounded, as transformers does.
            box = (int(columns * size / short), int(rows * size / short))
            resized = self._resized(box, wanted.resample)
            top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
            resized = resized[top : top + size, left : left + size]
        else:
            resized = self._resized((size, size), wanted.resample)
        unit = resized.astype(np.float32) / np.float32(255.0)
        mean, std = np.asarray(wanted.mean, np.float32), np.asarray(wanted.std, np.float32)
        normal = np.asarray((unit - mean) / std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))[None]

    def _resized(self, box: tuple[int, int], resample: str) -> NDArray[np.uint8]:
        from PIL import Image

        how = getattr(Image.Resampling, resample.upper())
        return np.asarray(Image.fromarray(self.rgb8).resize(box, how))


def read_picture(given: "Image | str | os.PathLike[str] | NDArray[np.uint8]") -> Picture:
    """A picture from a file, from Pillow or from uint8 [rows, columns, 3].

    Raises:
        InvalidRequest: it cannot be read, or is an array of another kind.
    """
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
            raise InvalidRequest(f"image is {given.dtype}{list(given.shape)}; pass uint8 [rows, columns, 3]")
        return Picture(given)
    from PIL import Image, UnidentifiedImageError

    if isinstance(given, Image.Image):
        return Picture(_rgb8(given))
    if not isinstance(given, str | os.PathLike):
        raise InvalidRequest(f"image is a {type(given).__name__}; pass a path, a Pillow image or an array")
    path = Path(given)
    try:
        with Image.open(path) as image:
            return Picture(_rgb8(image))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture that Pillow can read"
        raise InvalidRequest(f"image '{path}' cannot be opened ({reason}); pass a PNG or JPEG") from error


def _rgb8(image: Any) -> NDArray[np.uint8]:
    from PIL import ImageOps

    # A phone's picture lies on its side and says so; what is transparent is taken as it is stored.
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
