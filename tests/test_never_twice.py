"""What one clip computed and the next needs again: pictures and prompts, through the public API."""

import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import sora_runtime as sora
from prompts import PROMPT
from sora_runtime.seeds import SharedBill

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


SEEDS = (7, 2, 9)


def test_several_seeds_are_the_clips_of_each_with_one_encoding(runtime: sora.Runtime) -> None:
    fresh = sora.Runtime.load("wan-pocket", num_threads=2)
    stages: list[tuple[str, int, int]] = []
    clips = list(
        fresh.generate_many(
            PROMPT, SEEDS, image=PICTURE, num_inference_steps=2, on_progress=lambda *event: stages.append(event)
        )
    )
    for seed, clip in zip(SEEDS, clips, strict=True):
        alone = runtime.generate(PROMPT, seed=seed, image=PICTURE, num_inference_steps=2)
        assert np.array_equal(clip.frames, alone.frames) and np.array_equal(clip.latents, alone.latents)
        assert clip.receipt.request == alone.receipt.request
    one = ["tokenize", "text_encode", "image_encode", "denoise", "vae_decode"]
    assert [stage for stage, done, total in stages if done == total] == 3 * one
    assert not np.array_equal(clips[0].frames, clips[1].frames)


def test_what_several_clips_share_is_billed_in_equal_parts(runtime: sora.Runtime) -> None:
    """The cache keeps nothing, and all the same the encoders run once."""
    fresh = sora.Runtime.load("wan-pocket", num_threads=2, embedding_cache=sora.EmbeddingCache(0))
    start = time.perf_counter()
    receipts = [clip.receipt for clip in fresh.generate_many(PROMPT, SEEDS, image=PICTURE, num_inference_steps=2)]
    wall = time.perf_counter() - start
    seconds = [receipt.seconds for receipt in receipts]
    (shared,) = {receipt.batch.shared_seconds for receipt in receipts}
    assert [(receipt.batch.clips, receipt.batch.index) for receipt in receipts] == [(3, 0), (3, 1), (3, 2)]
    encoded = [each.tokenize + each.text_encode + each.image_encode for each in seconds]
    assert encoded[0] == pytest.approx(shared / 3)
    assert all(shared / 3 <= each for each in encoded[1:]), "their part, and what it took to find it"
    for receipt, each in zip(receipts, seconds, strict=True):
        assert shared / 3 + each.denoise + each.vae_decode <= each.total
        assert receipt.cost.usd_per_clip == pytest.approx(each.total * receipt.cost.usd_per_hour / 3600)
        assert f"1/3 of {shared * 1e3:.1f} ms (clip {receipt.batch.index + 1} of 3)" in str(receipt)
        assert all(len(line) <= 80 for line in str(receipt).splitlines())
        assert sora.Receipt.model_validate_json(receipt.model_dump_json()) == receipt
    assert sum(each.total for each in seconds) <= wall
    assert [receipt.embedding_cache.misses for receipt in receipts] == [2, 0, 0]
    assert [receipt.embedding_cache.hits for receipt in receipts] == [0, 2, 2]
    assert [receipt.image_cache.misses for receipt in receipts] == [1, 0, 0]
    alone = runtime.generate(PROMPT, num_inference_steps=1).receipt
    assert alone.batch is None and "batch" in alone.reasons


def test_bills_in_parts_add_up_to_what_passed(clip: sora.Clip) -> None:
    receipts = [clip.receipt.model_copy(deep=True) for _ in range(4)]
    receipts[0].seconds.text_encode, receipts[0].seconds.image_encode = 6.0, None
    receipts[0].seconds.total += 6.0
    before = sum(receipt.seconds.total for receipt in receipts)
    bill = SharedBill(4)
    for receipt in receipts:
        bill.enter(receipt)
    assert sum(receipt.seconds.total for receipt in receipts) == pytest.approx(before)
    assert receipts[0].seconds.text_encode == pytest.approx(1.5)
    assert receipts[3].seconds.text_encode == pytest.approx(1.5 + clip.receipt.seconds.text_encode)
    assert receipts[3].seconds.image_encode is None
    assert receipts[0].cost.usd_per_clip == pytest.approx(
        receipts[0].seconds.total * receipts[0].cost.usd_per_hour / 3600
    )


@pytest.mark.parametrize(
    ("seeds", "more", "message"),
    [
        ([], {}, "seeds is empty"),
        (3, {}, "seeds = 3 is no list"),
        ("12", {}, "seeds = '12' is no list"),
        ([1, -1], {}, "seed = -1 is out of range"),
        ([1, 2.5], {}, "seed = 2.5 is no whole number"),
        ([4, 5, 4], {}, "seeds has 4 more than once"),
        ([1, 2], {"seed": 1}, "seed starts one clip"),
        ([1, 2], {"latents": np.zeros((1, 8, 7, 16, 16), np.float32)}, "latents"),
        ([1, 2], {"width": 63}, "63x64"),
    ],
)
def test_seeds_are_refused_at_once(runtime: sora.Runtime, seeds: object, more: dict[str, object], message: str) -> None:
    with pytest.raises(sora.InvalidRequest, match=message):
        runtime.generate_many(PROMPT, seeds, **more)


def test_other_threads_take_turns_and_a_clip_may_be_left_out(runtime: sora.Runtime) -> None:
    clips = runtime.generate_many(PROMPT, SEEDS, num_inference_steps=1)
    first = next(clips)
    between = runtime.generate(PROMPT, seed=SEEDS[1], num_inference_steps=1)
    assert np.array_equal(next(clips).frames, between.frames)
    clips.close()
    assert np.array_equal(runtime.generate(PROMPT, seed=SEEDS[0], num_inference_steps=1).frames, first.frames)


def test_cancelling_ends_the_clips_that_would_follow(runtime: sora.Runtime) -> None:
    token = sora.CancelToken()
    clips = runtime.generate_many(PROMPT, SEEDS, num_inference_steps=2, cancel=token)
    assert next(clips).frames.any()
    token.cancel()
    with pytest.raises(sora.Cancelled):
        next(clips)
    with pytest.raises(StopIteration):
        next(clips)


def test_closing_between_two_clips_ends_them_in_a_sentence() -> None:
    runtime = sora.Runtime.load("wan-pocket", num_threads=2)
    clips = runtime.generate_many(PROMPT, SEEDS, num_inference_steps=1)
    next(clips)
    runtime.close()
    with pytest.raises(sora.EngineError, match="was closed"):
        next(clips)


def test_frames_that_are_not_kept_pass_through_and_go(runtime: sora.Runtime, tmp_path: Path) -> None:
    """No more than the chunk that is handed over and the one before it are ever alive."""
    kept = runtime.generate(PROMPT, seed=3, num_inference_steps=1)
    chunks: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []
    contents: list[bytes] = []

    def on_frames(rgb8: np.ndarray) -> None:
        chunks.append(weakref.ref(rgb8))
        contents.append(rgb8.tobytes())
        alive.append(sum(chunk() is not None for chunk in chunks))

    clip = runtime.generate(PROMPT, seed=3, num_inference_steps=1, on_frames=on_frames, keep_frames=False)
    assert b"".join(contents) == kept.frames.tobytes()
    assert len(chunks) > 4 and max(alive) <= 2
    assert clip.frames.shape == (0, 64, 64, 3) and clip.receipt.video_seconds == kept.receipt.video_seconds
    with pytest.raises(sora.InvalidRequest, match="keep_frames=False"):
        clip.save(tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())
