"""The embedding cache through its binding, and the folder behind it."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import sora_runtime as sora
from sora_runtime import EmbeddingCache
from sora_runtime.embedding_store import EmbeddingStore
from sora_runtime.embedding_tiers import EmbeddingTiers


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


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if place >= 0 else flipped(data, len(data) - 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda _: b"",
        lambda data: flipped(data, -1),
        lambda data: flipped(data, 0),
        lambda data: flipped(data, 20),
        lambda data: flipped(data, 44),
        lambda data: b"SORAEMB1" + data[8:],
    ],
    ids=["cut", "longer", "empty", "value", "magic", "hash", "shape", "older version"],
)
def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    (file,) = tmp_path.glob("*.embed")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert store.read(b"key", (1, 256)) is None
    tiers = EmbeddingTiers(EmbeddingCache(1 << 20), store)
    vector, found = tiers.get(b"key", (256,), lambda: array(1.0).ravel())
    assert not found and np.array_equal(vector, array(1.0).ravel())
    assert store.read(b"key", (256,)) is not None


def test_a_file_under_the_name_of_another_key_counts_as_absent(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    (file,) = tmp_path.glob("*.embed")
    file.rename(tmp_path / f"{b'other'.hex()}.embed")
    assert store.read(b"other", (1, 256)) is None


@pytest.mark.parametrize("shape", [(256,), (256, 1), (1, 255), (1, 257), (1, 1, 256), ()])
def test_another_shape_counts_as_absent(tmp_path: Path, shape: tuple[int, ...]) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    assert store.read(b"key", shape) is None
    assert store.read(b"key", (1, 256)) is not None


def test_a_shape_need_not_be_known(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    for shape in ((2, 3, 4), (), (0, 5)):
        value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        store.write(b"key", value)
        read = store.read(b"key")
        assert read is not None and read.shape == shape and np.array_equal(read, value)


@pytest.mark.parametrize("payload", [-4, 4])
def test_a_shape_that_does_not_fit_the_payload_counts_as_absent(tmp_path: Path, payload: int) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    (file,) = tmp_path.glob("*.embed")
    body = file.read_bytes()[40:]
    body = body[:payload] if payload < 0 else body + bytes(payload)
    keyed = (3).to_bytes(4, "little") + b"key"
    file.write_bytes(b"SORAEMB2" + hashlib.sha256(keyed + body).digest() + body)  # the hash is right
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

    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert EmbeddingStore(tmp_path).read(b"key", (1, 256)) is not None


def test_store_is_bounded(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, capacity_bytes=3000)
    for i in range(5):
        store.write(bytes([i]), array(float(i)))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3000
    assert store.read(bytes([4]), (1, 256)) is not None and store.read(bytes([0]), (1, 256)) is None


def test_what_was_read_last_stays_and_what_is_larger_than_all_is_not_written(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, capacity_bytes=3 * (1024 + 60))
    for i in range(3):
        store.write(bytes([i]), array(float(i)))
    assert store.read(bytes([0]), (1, 256)) is not None
    store.write(bytes([3]), array(3.0))
    assert [store.read(bytes([i]), (1, 256)) is not None for i in range(4)] == [True, False, True, True]
    store.write(b"large", array(1.0, 4 * 256))
    assert len(list(tmp_path.glob("*.embed"))) == 3


def test_an_entry_that_cannot_be_removed_does_not_end_the_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(tmp_path, capacity_bytes=2 * (1024 + 60))
    store.write(b"kept", array(0.0))
    kept, unlink = store._path(b"kept"), Path.unlink

    def sticky(path: Path, **how: bool) -> None:
        if path == kept:
            raise PermissionError
        unlink(path, **how)

    monkeypatch.setattr(Path, "unlink", sticky)
    for i in range(4):
        store.write(bytes([i]), array(1.0))
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, f"{bytes([3]).hex()}.embed"}


def test_an_entry_evicted_while_it_is_read_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"key", array(1.0))
    size_of = os.fstat

    def evicted(descriptor: int) -> os.stat_result:
        store._path(b"key").unlink(missing_ok=True)
        return size_of(descriptor)

    monkeypatch.setattr(os, "fstat", evicted)
    read = store.read(b"key", (1, 256))
    assert read is not None and np.array_equal(read, array(1.0))
    assert not store._path(b"key").exists(), "noting that it was used must not make it anew"


def test_a_full_disk_keeps_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(b"old", array(1.0))
    begun = []

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            begun.append(file.write(data[:100]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    vector, found = EmbeddingTiers(EmbeddingCache(0), store).get(b"new", (256,), lambda: array(2.0).ravel())
    assert begun == [100] and not found and np.array_equal(vector, array(2.0).ravel())
    assert [path.name for path in tmp_path.iterdir()] == [f"{b'old'.hex()}.embed"]
    assert store.read(b"old", (1, 256)) is not None


def test_a_folder_that_is_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sora.InvalidRequest, match="is a file; give a folder"):
        EmbeddingStore(tmp_path / "file")


def test_a_store_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = EmbeddingStore(tmp_path / "file" / "folder")
    store.write(b"key", array(1.0))
    assert store.read(b"key", (1, 256)) is None
