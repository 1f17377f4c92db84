"""What one clip computed and the next needs again: pictures and prompts, through the public API."""

from pathlib import Path

import numpy as np
import pytest

import sora_runtime as sora
from prompts import PROMPT

PICTURE = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)


def test_a_picture_that_is_cached_never_opens_its_encoder(tmp_path: Path) -> None:
    first = sora.Runtime.load("wan-pocket", num_threads=2, embedding_cache_dir=tmp_path)
    cold = first.generate(PROMPT, image=PICTURE, num_inference_steps=1)
    warm = first.generate(PROMPT, image=PICTURE, num_inference_steps=1)
    second = sora.Runtime.load("wan-pocket", num_threads=2, embedding_cache_dir=tmp_path)
    from_disk = second.generate(PROMPT, image=PICTURE, num_inference_steps=1)
    (stages,) = second._stages.values()
    assert stages.conditioner is not None and not stages.conditioner.loaded
    counts = [(clip.receipt.image_cache.hits, clip.receipt.image_cache.misses) for clip in (cold, warm, from_disk)]
    assert counts == [(0, 1), (1, 0), (1, 0)]
    for clip in (warm, from_disk):
        assert np.array_equal(clip.frames, cold.frames)
        assert not any("vae_encoder" in graph for graph in clip.receipt.hashes.graphs)
        assert clip.receipt.hashes.image == cold.receipt.hashes.image
    assert any("vae_encoder" in graph for graph in cold.receipt.hashes.graphs)
    assert "image cache       1 hits, 0 misses" in str(warm.receipt)
    other = second.generate(PROMPT, image=PICTURE[:, ::-1].copy(), num_inference_steps=1)
    assert other.receipt.image_cache.misses == 1 and stages.conditioner.loaded


def test_opening_the_encoder_of_a_picture_is_no_part_of_the_bill(tmp_path: Path) -> None:
    runtime = sora.Runtime.load("wan-pocket", num_threads=2)
    seconds = runtime.generate(PROMPT, image=PICTURE, num_inference_steps=1).receipt.seconds
    parts = (seconds.tokenize, seconds.text_encode, seconds.image_encode, seconds.denoise, seconds.vae_decode)
    assert sum(parts) <= seconds.total
    assert runtime.load_seconds == seconds.load > 0


def test_a_damaged_encoding_on_disk_is_computed_again(tmp_path: Path) -> None:
    load = {"num_threads": 2, "embedding_cache_dir": tmp_path}
    wanted = sora.Runtime.load("wan-pocket", **load).generate(PROMPT, image=PICTURE, num_inference_steps=1)
    for file in tmp_path.glob("*.embed"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    again = sora.Runtime.load("wan-pocket", **load).generate(PROMPT, image=PICTURE, num_inference_steps=1)
    assert (again.receipt.embedding_cache.misses, again.receipt.image_cache.misses) == (2, 1)
    assert np.array_equal(again.frames, wanted.frames)
    healed = sora.Runtime.load("wan-pocket", **load).generate(PROMPT, image=PICTURE, num_inference_steps=1)
    assert (healed.receipt.embedding_cache.hits, healed.receipt.image_cache.hits) == (2, 1)


def test_a_cache_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sora.InvalidRequest, match="is a file; give a folder"):
        sora.Runtime.load("wan-pocket", embedding_cache_dir=tmp_path / "file")
