"""The engine store: whole or absent, made once, refused when altered, bounded in size."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sora_runtime.engines.store import MANIFEST, PLAN, EngineKey, EngineStore, default_root
from sora_runtime.errors import EngineError, OutputError

HERE = Path(__file__).parent


def key(name: str = "a") -> EngineKey:
    return EngineKey(
        graph=name * 64,
        weights="b" * 64,
        library="tensorrt_rtx",
        version="1.7.1",
        compute_capabilities=("8.9",),
        flags=(("weights", "embedded"),),
    )


def plan_of(content: bytes, calls: list[Path] | None = None) -> Callable[[Path], Mapping[str, Any]]:
    def build(path: Path) -> Mapping[str, Any]:
        if calls is not None:
            calls.append(path)
        path.write_bytes(content)
        path.with_suffix(".log").write_text("the builder's log")
        return {"what": "transformer.onnx", "report": {"layers": 3}}

    return build


def never(path: Path) -> Mapping[str, Any]:
    raise AssertionError(f"built again at {path}")


def names(root: Path) -> list[str]:
    """All that lies in the store but the locks."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock") if root.exists() else []


def test_an_engine_is_built_once_and_then_found(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    assert store.find(key()) is None
    with store.get_or_build(key(), plan_of(b"plan")) as plan:
        assert plan.built and plan.path.read_bytes() == b"plan"
        assert (plan.folder / "engine.log").read_text() == "the builder's log"
    with store.get_or_build(key(), never) as plan:
        assert not plan.built
        assert plan.manifest.what == "transformer.onnx" and plan.manifest.report == {"layers": 3}
        assert plan.manifest.build_seconds is not None and plan.manifest.build_seconds >= 0
    assert [manifest.key for _, manifest in store.entries()] == [key()]


@pytest.mark.parametrize(
    "field", ["graph", "weights", "library", "version", "compute_capabilities", "flags"]
)  # fmt: skip
def test_any_part_of_the_key_makes_another_engine(field: str) -> None:
    changed: dict[str, Any] = {"compute_capabilities": ("12.0",), "flags": ()}
    other = EngineKey(**{**vars(key()), field: changed.get(field, "other")})
    assert other.digest != key().digest
    assert EngineKey(**vars(key())).digest == key().digest


def test_the_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == EngineStore().root == tmp_path / "sora-runtime" / "engines"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_in_place(path: Path) -> None:
    """Same size, same modification time: only the hash, or the change time, can tell."""
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped byte": lambda folder: flip(folder / PLAN),
    "a flipped byte, times restored": lambda folder: flip_in_place(folder / PLAN),
    "a truncated plan": lambda folder: os.truncate(folder / PLAN, 100),
    "no plan": lambda folder: (folder / PLAN).unlink(),
    "a truncated manifest": lambda folder: os.truncate(folder / MANIFEST, 10),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a flipped byte in the log": lambda folder: flip(folder / "engine.log"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_engine_is_removed_and_built_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    store = EngineStore(tmp_path)
    with store.get_or_build(key(), plan_of(b"good" * 100)) as plan:
        folder = plan.folder
    with store.get_or_build(key(), never):  # its hash is remembered from here on
        pass
    damage(folder)
    assert store.find(key()) is None
    assert names(tmp_path) == []
    with store.get_or_build(key(), plan_of(b"good" * 100)) as plan:
        assert plan.built and plan.path.read_bytes() == b"good" * 100


def test_a_manifest_of_another_key_is_no_engine_of_this_one(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    store.get_or_build(key("a"), plan_of(b"a")).close()
    (tmp_path / key("a").digest).rename(tmp_path / key("b").digest)
    assert store.find(key("b")) is None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(path: Path) -> Mapping[str, Any]:
        path.write_bytes(b"half")
        raise EngineError("no")

    def forgets(path: Path) -> Mapping[str, Any]:
        return {}

    for build in (fails, forgets):
        with pytest.raises(EngineError):
            EngineStore(tmp_path).get_or_build(key(), build)
        assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    def build(path: Path) -> Mapping[str, Any]:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"no space left on device; free some space") as error:
        EngineStore(tmp_path).get_or_build(key(), build)
    assert str(tmp_path) in str(error.value)
    assert names(tmp_path) == []


FILE_SIZE_LIMIT = """
import resource, sys
from pathlib import Path
from test_store import key, plan_of
from sora_runtime.engines.store import EngineStore
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
EngineStore(Path(sys.argv[1])).get_or_build(key(), plan_of(b"x" * 200_000))
"""


def run(code: str, *words: object) -> subprocess.Popen[str]:
    paths = [str(HERE), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_real_limit_on_the_size_of_files_ends_the_same_way(tmp_path: Path) -> None:
    process = run(FILE_SIZE_LIMIT, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OutputError" in errors.splitlines()[-1] and "file too large" in errors.splitlines()[-1]
    assert names(tmp_path) == []


HANGS = """
import sys, time
from pathlib import Path
from test_store import key
from sora_runtime.engines.store import EngineStore
def build(path):
    path.write_bytes(b"half")
    print("building", flush=True)
    time.sleep(60)
EngineStore(Path(sys.argv[1])).get_or_build(key(), build)
"""


def test_a_build_that_is_killed_leaves_nothing_to_load_and_is_swept(tmp_path: Path) -> None:
    process = run(HANGS, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "building\n"
    store = EngineStore(tmp_path)
    store.clean()
    assert len(names(tmp_path)) == 1, "a build that is under way is not swept"
    assert store.find(key()) is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(names(tmp_path)) == 1 and store.find(key()) is None
    # Another engine's build sweeps it as well.
    store.get_or_build(key("c"), plan_of(b"c")).close()
    assert names(tmp_path) == [key("c").digest]
    with store.get_or_build(key(), plan_of(b"whole")) as plan:
        assert plan.built and plan.path.read_bytes() == b"whole"


def count_and_build(root: Path, start: Any, built: Any) -> None:
    def build(path: Path) -> Mapping[str, Any]:
        time.sleep(0.3)
        return plan_of(b"plan")(path)

    start.wait()
    with EngineStore(root).get_or_build(key(), build) as plan:
        built.put((plan.built, plan.path.read_bytes()))


def test_two_processes_build_one_engine_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, built = context.Event(), context.Queue()
    workers = [context.Process(target=count_and_build, args=(tmp_path, start, built)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    results = sorted(built.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert results == [(False, b"plan"), (False, b"plan"), (True, b"plan")]


def test_a_thread_that_waits_says_so(tmp_path: Path) -> None:
    started, go_on, waits = threading.Event(), threading.Event(), threading.Event()

    def build(path: Path) -> Mapping[str, Any]:
        started.set()
        assert go_on.wait(60)
        return plan_of(b"plan")(path)

    store = EngineStore(tmp_path)
    first = threading.Thread(target=lambda: store.get_or_build(key(), build).close())
    second = threading.Thread(target=lambda: store.get_or_build(key(), never, on_wait=waits.set).close())
    first.start()
    assert started.wait(60)
    second.start()
    assert waits.wait(60)
    go_on.set()
    for thread in (first, second):
        thread.join(60)
    assert store.find(key()) is not None


def test_the_engine_used_longest_ago_goes_first(tmp_path: Path) -> None:
    store = EngineStore(tmp_path, max_bytes=40_000)
    for name in "abc":
        store.get_or_build(key(name), plan_of(b"x" * 10_000)).close()
    store.get_or_build(key("a"), never).close()  # used again: now b is the oldest
    store.get_or_build(key("d"), plan_of(b"x" * 10_000)).close()
    assert names(tmp_path) == sorted(key(name).digest for name in "acd")
    assert not (tmp_path / f".{key('b').digest}.lock").exists()


def test_an_engine_in_use_and_the_one_just_built_stay(tmp_path: Path) -> None:
    store = EngineStore(tmp_path, max_bytes=1)
    held = store.get_or_build(key("a"), plan_of(b"x" * 1000))
    store.get_or_build(key("b"), plan_of(b"x" * 1000)).close()
    assert names(tmp_path) == sorted([key("a").digest, key("b").digest])
    held.close()
    store.clean()
    assert names(tmp_path) == []


def test_a_manifest_says_what_the_engine_is(tmp_path: Path) -> None:
    with EngineStore(tmp_path).get_or_build(key(), plan_of(b"plan")) as plan:
        record = json.loads((plan.folder / MANIFEST).read_text())
    assert record["schema_version"] == 1 and record["key"]["compute_capabilities"] == ["8.9"]
    assert set(record["files"]) == {PLAN, "engine.log"}
    assert record["files"][PLAN]["size"] == 4


def test_importing_the_store_imports_no_engine_library() -> None:
    code = "import sys, sora_runtime.engines.store; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"tensorrt", "tensorrt_rtx", "onnxruntime", "numpy", "torch"}.isdisjoint(done.stdout.split())
