"""A clip from a prompt, through the public API, on the shipped model."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import sora_runtime as sora
from prompts import PROMPT
from sora_runtime import _core
from sora_runtime.decode import ChunkDecoder
from sora_runtime.denoise import Denoiser


def test_clip_has_the_shape_the_model_promises(runtime: sora.Runtime, clip: sora.Clip) -> None:
    defaults = runtime.bundle.manifest.facts.defaults
    assert clip.frames.shape == (defaults.num_frames, defaults.height, defaults.width, 3)
    assert clip.frames.dtype == np.uint8
    assert np.isfinite(clip.latents).all()
    assert clip.frames.std() > 10  # a picture, not one grey


def test_receipt_adds_up(runtime: sora.Runtime, clip: sora.Clip) -> None:
    receipt, facts = clip.receipt, runtime.bundle.manifest.facts
    _, _, frames, rows, columns = clip.latents.shape
    tokens = frames * rows * columns // int(np.prod(facts.patch_size))
    assert receipt.tokens.latent_tokens == tokens
    assert receipt.evaluations.made == 2 * 4  # four guided steps
    assert receipt.tokens.tokens_processed == tokens * receipt.evaluations.made
    assert len(receipt.seconds.per_step) == 4
    stages = receipt.seconds
    parts = stages.tokenize + stages.text_encode + stages.denoise + stages.vae_decode
    assert 0 < parts <= stages.total
    assert 0 < receipt.engine_seconds <= stages.total
    assert receipt.cost.usd_per_clip == pytest.approx(stages.total * receipt.cost.usd_per_hour / 3600)
    assert receipt.video_seconds == pytest.approx(len(clip.frames) / clip.fps)
    assert receipt.seconds.encode_mp4 is None and "seconds.encode_mp4" in receipt.reasons
    again = sora.Receipt.model_validate_json(receipt.model_dump_json())
    assert again == receipt
    assert all(len(line) <= 80 for line in str(receipt).splitlines())


def test_every_null_of_a_receipt_has_a_reason(clip: sora.Clip) -> None:
    def nulls(record: object, prefix: str) -> list[str]:
        if not isinstance(record, dict):
            return []
        found = [prefix + name for name, value in record.items() if value is None]
        for name, value in record.items():
            found += nulls(value, f"{prefix}{name}.")
        return found

    assert set(nulls(clip.receipt.model_dump(), "")) <= set(clip.receipt.reasons)


def test_price_is_stated_or_default(runtime: sora.Runtime) -> None:
    clip = runtime.generate(PROMPT, num_inference_steps=1, price_per_hour=3600.0)
    assert clip.receipt.cost.usd_per_clip == pytest.approx(clip.receipt.seconds.total)
    assert not clip.receipt.cost.price_is_default


def test_save_writes_the_frames_and_completes_the_receipt(clip: sora.Clip, tmp_path: Path) -> None:
    saved = replace(clip, receipt=clip.receipt.model_copy(deep=True))
    total = saved.receipt.seconds.total
    for _ in range(2):  # a second file replaces the first in the bill
        saved.save(tmp_path / "clip.MP4")
        encode = saved.receipt.seconds.encode_mp4
        assert encode is not None and encode > 0
        assert saved.receipt.seconds.total == pytest.approx(total + encode)
    with av.open(str(tmp_path / "clip.MP4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    error = np.mean((np.stack(frames).astype(float) - clip.frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 25  # 4:2:0 chroma and crf 18 on hard edges
    saved.save(tmp_path / "clip.gif")
    assert (tmp_path / "clip.gif").read_bytes()[:3] == b"GIF"
    with pytest.raises(sora.InvalidRequest, match=r"\.mp4"):
        saved.save(tmp_path / "clip.avi")


def test_hashes_name_what_ran_for_this_clip() -> None:
    runtime = sora.Runtime.load("wan-pocket", num_threads=2)
    cold = runtime.generate(PROMPT, num_inference_steps=1).receipt.hashes
    hot = runtime.generate(PROMPT, num_inference_steps=1).receipt.hashes
    encoder = runtime.bundle.manifest.components.text_encoder.graph
    assert encoder in cold.graphs and encoder not in hot.graphs
    assert any("text_encoder" in name for name in cold.weights)
    assert not any("text_encoder" in name for name in hot.weights)
    assert any("transformer" in name for name in hot.weights) and any("vae" in name for name in hot.weights)
    assert cold.prompt_embeds == hot.prompt_embeds and set(hot.prompt_embeds) == {"prompt", "negative_prompt"}


def test_second_prompt_does_not_run_the_text_encoder() -> None:
    runtime = sora.Runtime.load("wan-pocket", num_threads=2)
    first = runtime.generate(PROMPT, num_inference_steps=1).receipt
    second = runtime.generate(PROMPT, num_inference_steps=1).receipt
    assert (first.embedding_cache.hits, first.embedding_cache.misses) == (0, 2)
    assert (second.embedding_cache.hits, second.embedding_cache.misses) == (2, 0)


def test_warm_cache_never_loads_the_text_encoder(tmp_path: Path) -> None:
    warm = sora.Runtime.load("wan-pocket", num_threads=2, embedding_cache_dir=tmp_path)
    expected = warm.generate(PROMPT, num_inference_steps=1)
    shared = sora.Runtime.load("wan-pocket", num_threads=2, embedding_cache=warm.embedding_cache)
    from_disk = sora.Runtime.load("wan-pocket", num_threads=2, embedding_cache_dir=tmp_path)
    for runtime in (shared, from_disk):
        clip = runtime.generate(PROMPT, num_inference_steps=1)
        assert not runtime.text_encoders.loaded
        assert clip.receipt.embedding_cache.hits == 2
        assert np.array_equal(clip.frames, expected.frames)
        assert not any("text_encoder" in name for name in clip.receipt.hashes.graphs)
    assert warm.text_encoders.loaded


def test_same_seed_same_frames(runtime: sora.Runtime, clip: sora.Clip) -> None:
    again = sora.Runtime.load("wan-pocket", num_threads=2).generate(PROMPT, seed=7, num_inference_steps=4)
    assert np.array_equal(again.frames, clip.frames)
    assert np.array_equal(again.latents, clip.latents)
    other = runtime.generate(PROMPT, seed=8, num_inference_steps=4)
    assert not np.array_equal(other.frames, clip.frames)


def test_frames_do_not_depend_on_the_samplers_threads(clip: sora.Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines keep their two threads: whether a library's sums depend on its threads is its affair."""
    original = Denoiser.__init__

    def with_one_thread(self: Denoiser, engines: object, *, num_threads: int) -> None:
        assert num_threads == 2
        original(self, engines, num_threads=1)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "__init__", with_one_thread)
    one = sora.Runtime.load("wan-pocket", num_threads=2).generate(PROMPT, seed=7, num_inference_steps=4)
    assert np.array_equal(one.frames, clip.frames)


def test_torch_rng_starts_where_a_diffusers_user_does(runtime: sora.Runtime, clip: sora.Clip) -> None:
    noise = torch.randn(clip.latents.shape, generator=torch.Generator("cpu").manual_seed(7))
    given = runtime.generate(PROMPT, latents=noise.numpy(), num_inference_steps=3)
    seeded = runtime.generate(PROMPT, seed=7, rng="torch", num_inference_steps=3)
    assert np.array_equal(given.frames, seeded.frames)
    assert given.receipt.request.seed is None and "request.seed" in given.receipt.reasons


@pytest.mark.parametrize("solver", ["euler", "heun", "unipc", "dpm++2m", "lcm"])
def test_every_solver_of_a_flow_model_makes_a_clip(runtime: sora.Runtime, solver: str) -> None:
    clip = runtime.generate(PROMPT, solver=solver, num_inference_steps=4, seed=1)
    assert np.isfinite(clip.latents).all() and clip.frames.std() > 5


def test_guidance_one_evaluates_one_branch(runtime: sora.Runtime) -> None:
    clip = runtime.generate(PROMPT, guidance_scale=1.0, num_inference_steps=3)
    assert clip.receipt.evaluations.made == 3


def test_progress_names_the_stages_in_order(runtime: sora.Runtime) -> None:
    seen: list[tuple[str, int, int]] = []
    chunks: list[int] = []
    runtime.generate(
        PROMPT,
        num_inference_steps=2,
        on_progress=lambda *event: seen.append(event),
        on_frames=lambda rgb8: chunks.append(len(rgb8)),
    )
    for stage in ("tokenize", "text_encode", "denoise", "vae_decode"):
        last = [event for event in seen if event[0] == stage][-1]
        assert last[1] == last[2] > 0
    assert chunks[0] == 1 and set(chunks[1:]) == {runtime.bundle.manifest.facts.temporal_stride}
    assert sum(chunks) == runtime.bundle.manifest.facts.defaults.num_frames


def test_cancel_stops_within_a_step(runtime: sora.Runtime) -> None:
    token = sora.CancelToken()

    def after_two(stage: str, done: int, _total: int) -> None:
        if stage == "denoise" and done == 2:
            token.cancel()

    with pytest.raises(sora.Cancelled, match="2 of 9"):
        runtime.generate(PROMPT, num_inference_steps=9, on_progress=after_two, cancel=token)
    assert runtime.generate(PROMPT, num_inference_steps=1).frames.any()  # the runtime is still good


def test_an_exception_of_the_caller_passes_through(runtime: sora.Runtime) -> None:
    def interrupt(stage: str, done: int, _total: int) -> None:
        if stage == "denoise" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.generate(PROMPT, num_inference_steps=5, on_progress=interrupt)


def test_threads_share_a_runtime_and_pay_for_their_own_work(runtime: sora.Runtime, clip: sora.Clip) -> None:
    """Thread A holds the engines until told; B waits at least that long and is not billed for it."""
    clips: dict[int, sora.Clip] = {}
    holding, release = threading.Event(), threading.Event()

    def hold(stage: str, done: int, _total: int) -> None:
        if stage == "denoise" and done == 1:
            holding.set()
            release.wait(30)

    def make(seed: int, on_progress: Any = None) -> None:
        clips[seed] = runtime.generate(PROMPT, seed=seed, num_inference_steps=4, on_progress=on_progress)

    a = threading.Thread(target=make, args=(7, hold))
    a.start()
    assert holding.wait(30)
    b = threading.Thread(target=make, args=(8,))
    start = time.perf_counter()
    b.start()
    time.sleep(0.5)
    held = time.perf_counter() - start
    release.set()
    a.join()
    b.join()
    assert np.array_equal(clips[7].frames, clip.frames)
    assert not np.array_equal(clips[8].frames, clip.frames)
    seconds = clips[8].receipt.seconds
    assert seconds.queued >= 0.5 * held
    parts = seconds.tokenize + seconds.text_encode + seconds.denoise + seconds.vae_decode
    assert seconds.total - parts < 0.5 * seconds.queued


def test_a_cancelled_request_leaves_the_queue(runtime: sora.Runtime) -> None:
    token, raised = sora.CancelToken(), []

    def queued() -> None:
        try:
            runtime.generate(PROMPT, num_inference_steps=1, cancel=token)
        except sora.Cancelled as error:
            raised.append(str(error))

    thread = threading.Thread(target=queued)

    def hold(stage: str, done: int, _total: int) -> None:
        if stage == "denoise" and done == 1:
            thread.start()
            token.cancel()
            thread.join(30)
            assert raised, "it must leave while this clip still holds the engines"

    runtime.generate(PROMPT, num_inference_steps=1, on_progress=hold)
    assert raised and "cancelled" in raised[0]


def test_a_callback_that_calls_back_is_refused_not_deadlocked(runtime: sora.Runtime) -> None:
    def again(_rgb8: object) -> None:
        runtime.generate(PROMPT, num_inference_steps=1)

    with pytest.raises(sora.InvalidRequest, match="from a callback"):
        runtime.generate(PROMPT, num_inference_steps=1, on_frames=again)
    assert runtime.generate(PROMPT, num_inference_steps=1).frames.any()


def test_a_closed_runtime_says_so() -> None:
    with sora.Runtime.load("wan-pocket", num_threads=2) as runtime:
        runtime.generate(PROMPT, num_inference_steps=1)
    runtime.close()  # again
    with pytest.raises(sora.EngineError, match="was closed"):
        runtime.generate(PROMPT, num_inference_steps=1)


def test_given_noise_keeps_the_seed_where_steps_draw_noise(runtime: sora.Runtime, clip: sora.Clip) -> None:
    """Step noise comes from streams 1 and up, so noise that a caller drew from the seed is not met again."""
    noise = _core.NoiseGenerator(5).normal(clip.latents.shape)
    seeded = runtime.generate(PROMPT, seed=5, solver="lcm", num_inference_steps=3)
    given = runtime.generate(PROMPT, seed=5, solver="lcm", num_inference_steps=3, latents=noise)
    assert np.array_equal(seeded.frames, given.frames)
    assert given.receipt.request.seed == 5 and given.receipt.hashes.latents is not None
    other = runtime.generate(PROMPT, seed=6, solver="lcm", num_inference_steps=3, latents=noise)
    assert not np.array_equal(other.frames, given.frames)


def test_decoder_refuses_latents_of_another_shape(runtime: sora.Runtime, clip: sora.Clip) -> None:
    decoder: ChunkDecoder = next(iter(runtime._stages.values())).decoder
    with pytest.raises(sora.EngineError, match="latents are"):
        next(decoder.chunks(clip.latents[:, :, :, :-1]))


def test_runs_without_torch_installed() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "import sora_runtime\n"
        f"clip = sora_runtime.Runtime.load('wan-pocket').generate({PROMPT!r}, num_inference_steps=1)\n"
        "print(clip.frames.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_loads_nothing_heavy() -> None:
    code = "import sora_runtime, sys; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("numpy", "onnxruntime", "pydantic", "av", "PIL", "typer", "rich", "torch", "tokenizers"):
        assert f"'{name}'" not in loaded
