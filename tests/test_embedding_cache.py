"""The embedding cache through its binding, and the folder behind it."""

import hashlib
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from sora_runtime import EmbeddingCache
from sora_runtime.embedding_store import EmbeddingStore


def array(value: float, n: int = 256) -> np.ndarray:
    return np.full((1, n), value, np.float32)


def test_two_threads_compute_a_key_once() -> None:
    cache, computed, results = EmbeddingCache(1 << 20), [], []

    def compute() -> np.ndarray:
        computed.append(1)
        time.sleep(0.2)  # long enough for the other thread to ask
        return array(3.0)

    threads = [threading.Thread(target=lambda: results.append(cache.get_or_compute(b"key", compute))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert all(np.array_equal(result, array(3.0)) for result in results)
    assert (cache.stats.hits, cache.stats.misses) == (3, 1)


def test_an_exception_reaches_the_caller_and_nothing_is_kept() -> None:
    cache = EmbeddingCache(1 << 20)

    def fail() -> np.ndarray:
        raise RuntimeError("encoder")

    with pytest.raises(RuntimeError, match="encoder"):
        cache.get_or_compute(b"key", fail)
    assert not cache.contains(b"key")


def test_bytes_are_bounded_and_the_oldest_goes() -> None:
    cache = EmbeddingCache(3 * 1024)
    for name in (b"a", b"b", b"c"):
        cache.insert(name, array(1.0))
    cache.find(b"a")
    cache.insert(b"d", array(1.0))
    assert cache.contains(b"a") and not cache.contains(b"b")
    assert cache.stats.bytes == 3 * 1024 and cache.stats.evicted == 1


def test_what_is_handed_out_is_read_only_and_outlives_eviction() -> None:
    cache = EmbeddingCache(1024)
    kept = cache.insert(b"a", array(5.0))
    cache.insert(b"b", array(6.0))
    del cache
    assert np.array_equal(kept, array(5.0))
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1.0


def test_store_returns_what_was_kept(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "new" / "folder")
    value = np.random.default_rng(0).standard_normal((1, 7, 5)).astype(np.float32)
    assert store.read(b"key", value.shape) is None
    store.write(b"key", value)
    read = EmbeddingStore(tmp_path / "new" / "folder").read(b"key", value.shape)
    assert read is not None and np.array_equal(read, value)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"\x99", lambda _: b""])
def test_a_damaged_file_counts_as_absent(tmp_path: Path, damage: object) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    (file,) = tmp_path.glob("*.embed")
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert store.read(b"key", (1, 256)) is None


@pytest.mark.parametrize("shape", [(256,), (256, 1), (1, 255), (1, 257), (1, 1, 256), ()])
def test_another_shape_counts_as_absent(tmp_path: Path, shape: tuple[int, ...]) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    assert store.read(b"key", shape) is None
    assert store.read(b"key", (1, 256)) is not None


@pytest.mark.parametrize("payload", [-4, 4])
def test_a_shape_that_does_not_fit_the_payload_counts_as_absent(tmp_path: Path, payload: int) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    (file,) = tmp_path.glob("*.embed")
    body = file.read_bytes()[40:]
    body = body[:payload] if payload < 0 else body + bytes(payload)
    file.write_bytes(b"SORAEMB1" + hashlib.sha256(body).digest() + body)  # the hash is right
    assert store.read(b"key", (1, 256)) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    partial = []

    def interrupted(self: Path, _: Path) -> None:
        partial.append(self.exists())
        raise error

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else nullcontext():
        EmbeddingStore(tmp_path).write(b"key", array(1.0))
    assert partial == [True], "there must have been a file for this test to mean anything"
    assert list(tmp_path.iterdir()) == []


def test_files_of_killed_writers_go_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        store.write(b"old", array(1.0))
        (old,) = tmp_path.iterdir()
        store.write(b"new", array(1.0))
    (new,) = set(tmp_path.iterdir()) - {old}
    os.utime(old, (time.time() - 3700, time.time() - 3700))
    (tmp_path / "foreign").write_text("")
    os.utime(tmp_path / "foreign", (0, 0))
    store.write(b"key", array(1.0))
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "foreign", f"{b'key'.hex()}.embed"}


def test_a_store_whose_times_cannot_be_set_still_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EmbeddingStore(tmp_path).write(b"key", array(1.0))

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert EmbeddingStore(tmp_path).read(b"key", (1, 256)) is not None


def test_store_is_bounded(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, capacity_bytes=3000)
    for i in range(5):
        store.write(bytes([i]), array(float(i)))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3000
    assert store.read(bytes([4]), (1, 256)) is not None and store.read(bytes([0]), (1, 256)) is None


def test_a_store_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = EmbeddingStore(tmp_path / "file" / "folder")
    store.write(b"key", array(1.0))
    assert store.read(b"key", (1, 256)) is None
