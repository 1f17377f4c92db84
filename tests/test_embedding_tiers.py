"""Two tiers of one cache: what stays in them, and several processes at one folder."""

import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

import sora_runtime
from prompts import PROMPT
from sora_runtime import EmbeddingCache
from sora_runtime.embedding_store import EmbeddingStore
from sora_runtime.embedding_tiers import EmbeddingTiers

SIZE = 256
FILE_BYTES = 40 + 4 + 8 + 4 * SIZE
ROUNDS = 60
SHIPPED = Path(sora_runtime.__file__).parent / "models/wan-pocket"


def vector(value: float) -> np.ndarray:
    return np.full(SIZE, value, np.float32)


def never() -> np.ndarray:
    raise AssertionError("it was there and must not be computed")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_vector_comes_from_the_fastest_tier_that_has_it(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    first = EmbeddingTiers(EmbeddingCache(1 << 20), store)
    assert not first.get(b"key", (SIZE,), lambda: vector(1.0))[1]
    assert first.get(b"key", (SIZE,), never)[1]
    from_disk, found = EmbeddingTiers(EmbeddingCache(1 << 20), store).get(b"key", (SIZE,), never)
    assert found and np.array_equal(from_disk, vector(1.0))
    assert files(tmp_path) == [f"{b'key'.hex()}.embed"], "the lock of the computation goes with it"


def test_a_resident_stays_in_both_tiers_however_many_others_pass(tmp_path: Path) -> None:
    """Memory holds one vector, the folder two; other prompts push everything else out."""
    tiers = EmbeddingTiers(EmbeddingCache(4 * SIZE), EmbeddingStore(tmp_path, capacity_bytes=2 * FILE_BYTES))
    tiers.get(b"negative", (SIZE,), lambda: vector(-1.0), resident="encoder")
    for i in range(5):
        tiers.get(bytes([i]), (SIZE,), lambda: vector(1.0))
    for i in range(5):
        tiers.get(bytes([i]), (SIZE,), lambda: vector(1.0))
        kept, found = tiers.get(b"negative", (SIZE,), never, resident="encoder")
        assert found and np.array_equal(kept, vector(-1.0))
    assert EmbeddingTiers(EmbeddingCache(0), EmbeddingStore(tmp_path)).get(b"negative", (SIZE,), never)[1]


def test_use_from_memory_counts_on_disk(tmp_path: Path) -> None:
    tiers = EmbeddingTiers(EmbeddingCache(1 << 20), EmbeddingStore(tmp_path, capacity_bytes=2 * FILE_BYTES))
    for key in (b"a", b"b"):
        tiers.get(key, (SIZE,), lambda: vector(1.0))
    tiers.get(b"a", (SIZE,), never)
    tiers.get(b"c", (SIZE,), lambda: vector(1.0))
    assert files(tmp_path) == [f"{key.hex()}.embed" for key in (b"a", b"c")]


def test_who_computes_meanwhile_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    """Two stores of one folder, each with its own descriptors: to the kernel's locks they are two processes."""
    patient, hasty = EmbeddingStore(tmp_path), EmbeddingStore(tmp_path, patience_seconds=0.05)
    holding, release, got = threading.Event(), threading.Event(), []

    def slow() -> np.ndarray:
        holding.set()
        assert release.wait(30)
        return vector(1.0)

    def ask(store: EmbeddingStore) -> None:
        got.append(EmbeddingTiers(EmbeddingCache(0), store).get(b"key", (SIZE,), never)[1])

    first = threading.Thread(target=EmbeddingTiers(EmbeddingCache(0), patient).get, args=(b"key", (SIZE,), slow))
    first.start()
    assert holding.wait(30)
    other, found = EmbeddingTiers(EmbeddingCache(0), hasty).get(b"key", (SIZE,), lambda: vector(1.0))
    assert not found and np.array_equal(other, vector(1.0))
    patient._path(b"key").unlink()
    second = threading.Thread(target=ask, args=(patient,))
    second.start()
    time.sleep(0.1)
    assert not got, "it waits"
    release.set()
    for thread in (first, second):
        thread.join(30)
    assert got == [True]


def work_at(folder: str, capacity_bytes: int, own: int, start: Barrier) -> None:
    """A process of the test below: writes and reads keys of its own and keys that both write."""
    store = EmbeddingStore(Path(folder), capacity_bytes=capacity_bytes)
    start.wait(60)
    for i in range(ROUNDS):
        for key, value in ((b"both" + bytes([i % 7]), float(i % 7)), (bytes([own, i]), 100.0 * own + i)):
            store.write(key, vector(value))
            read = store.read(key, (SIZE,))  # the other process may have pushed it out
            if read is not None and not np.array_equal(read, vector(value)):
                raise AssertionError(f"{key!r} holds {read[:3]}")


@pytest.mark.parametrize("capacity_files", [1000, 4])
def test_two_processes_write_the_same_and_other_keys_at_once(tmp_path: Path, capacity_files: int) -> None:
    context = multiprocessing.get_context("spawn")
    start, capacity = context.Barrier(2), capacity_files * FILE_BYTES
    processes = [context.Process(target=work_at, args=(str(tmp_path), capacity, own, start)) for own in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    left = files(tmp_path)
    assert all(name.endswith(".embed") for name in left)
    assert sum((tmp_path / name).stat().st_size for name in left) <= capacity
    assert len(left) == (7 + 2 * ROUNDS if capacity_files == 1000 else capacity_files)
    store = EmbeddingStore(tmp_path)
    assert all(store.read(bytes.fromhex(name.removesuffix(".embed")), (SIZE,)) is not None for name in left)


CLIP = """
import hashlib, os, sys, time
from pathlib import Path
import sora_runtime as sora
runtime = sora.Runtime.load(sys.argv[1], num_threads=1, embedding_cache_dir=sys.argv[2])
while len(sys.argv) > 4 and time.time() < float(sys.argv[4]):
    pass
if sys.argv[3] == "without the encoder":
    for path in (*Path(sys.argv[1]).glob("text_encoder*"), *Path(sys.argv[1]).glob("text_encoder/*")):
        if path.is_file():
            path.unlink()
try:
    clip = runtime.generate({prompt!r}, num_inference_steps=1)
except sora.BundleError as error:
    sys.exit(f"refused: {{error}}")
cache = clip.receipt.embedding_cache
print(cache.hits, cache.misses, hashlib.sha256(clip.frames.tobytes()).hexdigest())
"""


def clip_in_a_new_process(
    folder: Path, cache: Path, what: str = "", prompt: str = PROMPT, start: float | None = None
) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CLIP.format(prompt=prompt), str(folder), str(cache), what]
    words += [] if start is None else [str(start)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the shipped bundle that may lose its text encoder."""
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_prompt_on_disk_never_loads_the_text_encoder_of_a_new_process(tmp_path: Path, bundle: Path) -> None:
    """Its files are removed once the bundle is open, so that whoever asks for the encoder fails."""
    cache = tmp_path / "cache"
    out, error = (first := clip_in_a_new_process(bundle, cache)).communicate(timeout=120)
    assert first.returncode == 0 and out.startswith("0 2 "), error
    again, error = (warm := clip_in_a_new_process(bundle, cache, "without the encoder")).communicate(timeout=120)
    assert warm.returncode == 0, error
    assert again == out.replace("0 2 ", "2 0 ", 1), "the same frames"
    assert not list(bundle.glob("text_encoder/*.safetensors")), "or the test shows nothing"


def test_without_its_files_a_new_prompt_is_refused(tmp_path: Path, bundle: Path) -> None:
    """What gives the test above its meaning: the encoder's files are needed where a prompt is new."""
    new = clip_in_a_new_process(bundle, tmp_path / "cache", "without the encoder")
    _, error = new.communicate(timeout=120)
    assert new.returncode == 1 and "refused: " in error and "text_encoder" in error


def test_two_processes_that_start_at_once_encode_a_prompt_once(tmp_path: Path) -> None:
    start = time.time() + 4
    both = [clip_in_a_new_process(SHIPPED, tmp_path / "cache", start=start) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    counts = np.array([[int(word) for word in out.split()[:2]] for out, _ in said])
    assert counts.sum(axis=0).tolist() == [2, 2]
    assert len({out.split()[2] for out, _ in said}) == 1


def test_a_folder_that_cannot_be_made_costs_a_clip_nothing() -> None:
    """/proc takes no folders, not even of root."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc")
    tiers = EmbeddingTiers(EmbeddingCache(0), EmbeddingStore(Path("/proc/sora-cache")))
    for _ in range(2):
        assert not tiers.get(b"key", (SIZE,), lambda: vector(1.0), resident=None)[1]
