"""A cache of built engines on disk: one folder for each, whole or absent, made once by whoever asks first."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..output import explain_os_errors
from ..verify import FileRecord, sha256_of
from .entry import (
    MANIFEST,
    PLAN,
    EngineKey,
    EngineManifest,
    EnginePlan,
    last_use,
    read_manifest,
    read_whole,
    size_of,
    touch,
)
from .locks import FileLock

__all__ = [
    "MANIFEST",
    "PLAN",
    "EngineKey",
    "EngineManifest",
    "EnginePlan",
    "EngineStore",
    "default_root",
    "sha256_of",
]

DEFAULT_MAX_BYTES = 64 << 30
_PARTIAL = ".partial-"
_ATTEMPTS = 3

Build = Callable[[Path], Mapping[str, Any]]
"""Writes the plan to the path it gets, other files of the entry (a log) beside it, and returns what the manifest
is to say besides: any of ``what``, ``build_seconds``, ``parity``, ``report``."""


class EngineStore:
    """Engines in a folder, shared by all processes of a machine.

    An entry is written under another name in the same folder and renamed when it is complete, its manifest last,
    so that a build that is killed or meets a full disk leaves nothing that could be loaded; what it leaves is
    removed by the next build. An entry whose files do not match their sha256 is never returned.

    Args:
        root: The folder; None: ``$XDG_CACHE_HOME/sora-runtime/engines``.
        max_bytes: Size above which the engines used longest ago are removed. An engine that is open anywhere, and
            the one just built, stay, whatever their size.
    """

    def __init__(self, root: Path | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.root = default_root() if root is None else root
        self.max_bytes = max_bytes

    def find(self, key: EngineKey) -> EnginePlan | None:
        """The engine of `key`, or None; one that is damaged is removed and counts as absent.

        Raises:
            OutputError: The folder cannot be used.
        """
        folder = self.root / key.digest
        if not folder.is_dir():
            return None
        with explain_os_errors(self.root):
            lock = FileLock.acquire(self._lock_path(key.digest), shared=True)
        try:
            manifest = read_whole(folder, key)
        except BaseException:
            lock.release()
            raise
        if manifest is not None:
            touch(folder)
            return EnginePlan(folder, manifest, False, lock)
        lock.release()
        self._remove_damaged(key)
        return None

    def get_or_build(self, key: EngineKey, build: Build, *, on_wait: Callable[[], None] = lambda: None) -> EnginePlan:
        """The engine of `key`, built if there is none.

        Of several processes or threads that ask at once one builds and the others wait; `on_wait` is called before
        this one waits.

        Raises:
            OutputError: The folder cannot be written to, or the disk is full; nothing is left behind.
            EngineError: `build` wrote no plan, or the engine is removed by others as fast as it is built.
            Exception: Whatever `build` raises.
        """
        built = False
        for _ in range(_ATTEMPTS):
            plan = self.find(key)
            if plan is not None:
                return replace(plan, built=built)
            with self._alone(key.digest, on_wait):
                if read_whole(self.root / key.digest, key) is None:
                    self._build(key, build)
                    built = True
                # Still locked while others are evicted, so that none of them takes this one.
                self._evict(keep=key.digest)
        raise EngineError(f"engine {key.digest} vanishes from {self.root} whenever it is built; raise max_bytes")

    def entries(self) -> Iterator[tuple[Path, EngineManifest]]:
        """The folder and manifest of every whole entry, the last used first; hashes nothing."""
        for folder in sorted(self._folders(), key=last_use, reverse=True):
            manifest = read_manifest(folder)
            if manifest is not None:
                yield folder, manifest

    def clean(self) -> None:
        """Remove what killed builds have left, and entries above the bound.

        Raises:
            OutputError: The folder cannot be written to.
        """
        with explain_os_errors(self.root):
            self._evict(keep=None)

    def _alone(self, digest: str, on_wait: Callable[[], None]) -> FileLock:
        with explain_os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock.try_acquire(self._lock_path(digest))
            if lock is None:
                on_wait()
                lock = FileLock.acquire(self._lock_path(digest), shared=False)
            return lock

    def _lock_path(self, digest: str) -> Path:
        return self.root / f".{digest}.lock"

    def _folders(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return [path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def _build(self, key: EngineKey, build: Build) -> None:
        """Builds under the entry's exclusive lock."""
        folder = self.root / key.digest
        partial = self.root / f".{key.digest}{_PARTIAL}{os.getpid()}-{secrets.token_hex(3)}"
        try:
            with explain_os_errors(self.root):
                self._sweep(key.digest)
                shutil.rmtree(folder, ignore_errors=True)
                partial.mkdir()
                started = time.monotonic()
                facts = dict(build(partial / PLAN))
                facts.setdefault("build_seconds", time.monotonic() - started)
                if not (partial / PLAN).is_file():
                    raise EngineError(f"the build of {facts.get('what', 'an engine')} wrote no plan; this is a bug")
                self._seal(partial, key, facts)
                partial.rename(folder)
                _flush(self.root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _seal(self, partial: Path, key: EngineKey, facts: Mapping[str, Any]) -> None:
        """Brings the files to the disk and writes the manifest over them."""
        files = {}
        for path in sorted(partial.iterdir()):
            _flush(path)
            files[path.name] = FileRecord(sha256=sha256_of(path), size=path.stat().st_size)
        rest = {"what": "engine", **facts}
        manifest = EngineManifest(key=key, files=files, built_at=time.time(), **rest)
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _flush(partial / MANIFEST)
        _flush(partial)

    def _remove_damaged(self, key: EngineKey) -> None:
        """Removes an entry unless someone else is busy with it: they find out by themselves."""
        with explain_os_errors(self.root):
            lock = FileLock.try_acquire(self._lock_path(key.digest))
            if lock is None:
                return
            with lock:
                if read_whole(self.root / key.digest, key) is None:
                    shutil.rmtree(self.root / key.digest)
                lock.remove()

    def _evict(self, keep: str | None) -> None:
        """Removes leftovers, then the entries used longest ago until the rest fits."""
        for digest in {path.name[1:33] for path in self.root.glob(f".*{_PARTIAL}*")} - {keep}:
            self._sweep_if_free(digest)
        folders = sorted(self._folders(), key=last_use)
        sizes = {folder: size_of(folder) for folder in folders}
        total = sum(sizes.values())
        for folder in folders:
            if total <= self.max_bytes:
                break
            if folder.name != keep and self._sweep_if_free(folder.name, entry=folder):
                total -= sizes[folder]

    def _sweep_if_free(self, digest: str, entry: Path | None = None) -> bool:
        """Removes the leftovers of an entry, and the entry itself if given; False if it is in use."""
        lock = FileLock.try_acquire(self._lock_path(digest))
        if lock is None:
            return False
        with lock:
            self._sweep(digest)
            if entry is not None:
                # Without its manifest it is no entry, should this be the moment the machine stops.
                (entry / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(entry, ignore_errors=True)
            if not (self.root / digest).exists():
                lock.remove()
        return True

    def _sweep(self, digest: str) -> None:
        for path in self.root.glob(f".{digest}{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)


def default_root() -> Path:
    """``$XDG_CACHE_HOME/sora-runtime/engines``, or the same under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sora-runtime" / "engines"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
