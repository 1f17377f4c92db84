"""Pictures: read, resized and normalised as diffusers and transformers do, and made into conditions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from diffusers.video_processor import VideoProcessor
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

import sora_runtime as sora
from sora_runtime import EmbeddingCache
from sora_runtime.condition import ChunkEncoder, ImageConditioner, OnDemand
from sora_runtime.embedding_store import EmbeddingStore
from sora_runtime.embedding_tiers import EmbeddingTiers, EncoderUse
from sora_runtime.engines.engine import Array, TensorSpec
from sora_runtime.geometry import Geometry, Strides
from sora_runtime.manifest import ImageFacts, PixelInput
from sora_runtime.pixels import Picture, read_picture

FLOAT = np.dtype(np.float32)
GEOMETRY = Geometry.of(Strides(2, 8, 4, (1, 1, 1)), height=16, width=24, num_frames=9)


@pytest.fixture
def picture() -> Picture:
    rows, columns = np.mgrid[:50, :90]
    noise = np.random.default_rng(0).integers(0, 60, (50, 90, 3))
    return Picture((noise + np.stack([rows * 3, columns * 2, rows + columns], axis=-1)).astype(np.uint8))


def test_frame_is_what_diffusers_gives_its_vae(picture: Picture) -> None:
    processor = VideoProcessor(vae_scale_factor=8)
    wanted = processor.preprocess(Image.fromarray(picture.rgb8), height=32, width=48).numpy()
    frame = picture.frame(32, 48)
    assert frame.shape == (1, 3, 1, 32, 48)
    assert np.abs(frame[:, :, 0] - wanted).max() < 1e-6


def test_pixel_values_are_what_a_clip_processor_makes(picture: Picture) -> None:
    """transformers resizes tensors, Pillow 8-bit pictures: they differ by at most two levels of 255."""
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    wanted = processor(Image.fromarray(picture.rgb8), return_tensors="np")["pixel_values"]
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    got = picture.pixel_values(PixelInput(size=32, mean=mean, std=std, crop="center"))
    assert got.shape == wanted.shape == (1, 3, 32, 32)
    assert np.abs(got - wanted).max() <= 2.01 / 255 / min(std)


def test_pixel_values_are_what_a_siglip_processor_makes(picture: Picture) -> None:
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    wanted = processor(Image.fromarray(picture.rgb8), return_tensors="np")["pixel_values"]
    got = picture.pixel_values(PixelInput(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    assert np.abs(got - wanted).max() <= 2.01 / 255 / 0.5


def test_pictures_come_from_files_pillow_and_arrays(picture: Picture, tmp_path: Path) -> None:
    image = Image.fromarray(picture.rgb8)
    image.save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), image, picture.rgb8):
        read = read_picture(given)
        assert np.array_equal(read.rgb8, picture.rgb8) and read.sha256 == picture.sha256
    assert Picture(picture.rgb8.reshape(90, 50, 3)).sha256 != picture.sha256
    sideways = image.copy()
    sideways.getexif()[0x0112] = 6  # the camera was turned by 90 degrees
    sideways.save(tmp_path / "a.jpg", exif=sideways.getexif())
    assert read_picture(tmp_path / "a.jpg").rgb8.shape == (90, 50, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4)), r"image is float64\[4, 4\]; pass uint8"),
        (3, "image is a int; pass a path"),
        ("no/such.png", r"image 'no/such.png' cannot be opened \(No such file"),
        (__file__, "it is no picture that Pillow can read"),
    ],
)
def test_what_is_no_picture_is_refused(given: object, message: str) -> None:
    with pytest.raises(sora.InvalidRequest, match=message):
        read_picture(given)  # type: ignore[arg-type]


class Encoder:
    """latents[c] = mean of the chunk + c; the cache counts the chunks before."""

    def __init__(self, frames: int, cached: bool) -> None:
        cache = {"cache_in.0": TensorSpec((1,), FLOAT)} if cached else {}
        self.inputs: Mapping[str, TensorSpec] = {"frames": TensorSpec((1, 3, frames, 16, 24), FLOAT), **cache}
        self.outputs: Mapping[str, TensorSpec] = {
            "latents": TensorSpec((1, 2, 1, 2, 3), FLOAT),
            "cache_out.0": TensorSpec((1,), FLOAT),
        }

    def bind(self, arrays: Mapping[str, Array]) -> "Encoder.Bound":
        return self.Bound(arrays)

    def close(self) -> None:
        pass

    class Bound:
        def __init__(self, arrays: Mapping[str, Array]) -> None:
            self.arrays = arrays

        def run(self) -> None:
            before = self.arrays["cache_in.0"][0] if "cache_in.0" in self.arrays else 0.0
            self.arrays["cache_out.0"][0] = before + 1
            for channel in range(2):
                self.arrays["latents"][:, channel] = self.arrays["frames"].mean() + channel + 10 * before


def conditioner_of(tiers: EmbeddingTiers, fingerprint: str = "vae", **facts: object) -> ImageConditioner:
    vae = OnDemand(
        lambda: ChunkEncoder(Encoder(1, cached=False), Encoder(4, cached=True)),
        graphs=("first.onnx", "next.onnx"),
        fingerprint=fingerprint,
    )
    return ImageConditioner(ImageFacts.model_validate(facts), vae, None, tiers)


def condition(picture: Picture, **facts: object) -> np.ndarray:
    return conditioner_of(EmbeddingTiers(EmbeddingCache(1 << 20), None), **facts)(picture, GEOMETRY)["condition"]


def test_conditions_of_every_policy(picture: Picture) -> None:
    first = picture.frame(16, 24).mean()
    only = condition(picture, policy="first_frame", video="first_only")
    assert only.shape == (1, 2, 1, 2, 3) and np.allclose(only[0, :, 0, 0, 0], [first, first + 1])
    after = condition(picture, policy="concat", video="zeros_after", mask="after", mask_channels=1)
    assert after.shape == (1, 3, 3, 2, 3)
    assert np.array_equal(after[:, :2, :1], only) and not after[:, :2, 1:].any()
    assert (after[:, 2, 0] == 1).all() and not after[:, 2, 1:].any()
    encoded = condition(picture, policy="concat", video="encode_zeros", mask="before", mask_channels=4)
    assert encoded.shape == (1, 6, 3, 2, 3)
    assert (encoded[:, :4, 0] == 1).all() and not encoded[:, :4, 1:].any()
    # The second and third chunk are frames of zero, and each is handed the cache of the one before.
    assert np.allclose(encoded[0, 4, :, 0, 0], [first, 10, 20])
    bare = condition(picture, policy="concat", video="zeros_after")
    assert bare.shape == (1, 2, 3, 2, 3)


FIRST_FRAME = {"policy": "first_frame", "video": "first_only"}


def test_a_picture_is_encoded_once_and_its_encoder_opened_only_for_that(picture: Picture, tmp_path: Path) -> None:
    def clip(conditioner: ImageConditioner, given: Picture = picture) -> tuple[np.ndarray, EncoderUse]:
        use = EncoderUse()
        return conditioner(given, GEOMETRY, use)["condition"], use

    def new_process() -> ImageConditioner:
        return conditioner_of(EmbeddingTiers(EmbeddingCache(1 << 20), EmbeddingStore(tmp_path)), **FIRST_FRAME)

    first = new_process()
    wanted, use = clip(first)
    assert (use.hits, use.misses, use.ran) == (0, 1, ("first.onnx", "next.onnx"))
    assert 0 < use.engine_seconds < use.encode_seconds and use.load_seconds > 0
    warm, use = clip(first)
    assert (use.hits, use.misses, use.ran, use.engine_seconds, use.load_seconds) == (1, 0, (), 0.0, 0.0)
    second = new_process()
    from_disk, use = clip(second)
    assert use.hits == 1 and not second.loaded
    assert np.array_equal(warm, wanted) and np.array_equal(from_disk, wanted)
    larger = Picture(picture.rgb8.repeat(2, axis=0).repeat(2, axis=1))
    fitted = np.array_equal(larger.frame(16, 24), picture.frame(16, 24))
    assert clip(second, larger)[1].hits == fitted, "what counts are the pixels that the encoder sees"


def test_encodings_are_told_apart_by_picture_encoder_and_size(picture: Picture, tmp_path: Path) -> None:
    tiers = EmbeddingTiers(EmbeddingCache(1 << 20), EmbeddingStore(tmp_path))
    changed = picture.rgb8.copy()
    changed[20:30, 40:50] ^= 128
    asks = [
        (picture, "vae", GEOMETRY, FIRST_FRAME),
        (Picture(changed), "vae", GEOMETRY, FIRST_FRAME),
        (picture, "another", GEOMETRY, FIRST_FRAME),
        (picture, "vae", GEOMETRY, {"policy": "concat", "video": "encode_zeros"}),
    ]
    for misses in (1, 0):
        for given, fingerprint, geometry, facts in asks:
            use = EncoderUse()
            conditioner_of(tiers, fingerprint, **facts)(given, geometry, use)
            assert use.misses == misses, (fingerprint, facts)
