"""What an entry of the engine store is: its key, its manifest, and the plan that a caller holds."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import BundleError
from ..verify import FileRecord, verify_files
from .locks import FileLock

PLAN = "engine.plan"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on; two engines with one key are the same engine."""

    graph: str
    """sha256 of the .onnx file."""
    weights: str
    """`Bundle.fingerprint` of the graph: a sha256 over the files its weights lie in."""
    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    flags: tuple[tuple[str, str], ...] = ()
    """Name and value of every option that changes the plan, sorted."""

    @property
    def digest(self) -> str:
        """The name of the entry: 32 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class EngineManifest(BaseModel):
    """What an entry says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    what: str
    key: EngineKey
    files: dict[str, FileRecord]
    built_at: float = Field(description="Seconds since 1970, UTC.")
    build_seconds: float | None = None
    parity: dict[str, Any] | None = None
    report: dict[str, Any] = {}


@dataclass(frozen=True)
class EnginePlan:
    """An engine of the store. It stays on disk until `close`, or until this object goes."""

    folder: Path
    manifest: EngineManifest
    built: bool
    """Whether this call built it."""
    _lock: FileLock

    @property
    def path(self) -> Path:
        """The plan file; it matched its sha256 when this object was made."""
        return self.folder / PLAN

    @property
    def key(self) -> EngineKey:
        """What the store knows it by."""
        return self.manifest.key

    def close(self) -> None:
        """Let the store evict it."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_manifest(folder: Path) -> EngineManifest | None:
    """The manifest of an entry; None if there is none or it is damaged."""
    try:
        return EngineManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def read_whole(folder: Path, key: EngineKey) -> EngineManifest | None:
    """The manifest of a whole entry of this key whose files are what it says."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != key or PLAN not in manifest.files:
        return None
    try:
        verify_files(folder, manifest.files, insist=False)
    except BundleError:
        return None
    return manifest


def touch(folder: Path) -> None:
    """Note that the entry is used now."""
    with suppress(OSError):  # a cache that is shared read-only has no last use
        os.utime(folder / MANIFEST)


def last_use(folder: Path) -> int:
    """When the entry was used last, in nanoseconds since 1970; 0 if it has no manifest."""
    try:
        return (folder / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0


def size_of(folder: Path) -> int:
    """Bytes of the entry's files; what others remove meanwhile counts as nothing."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            total += path.stat().st_size
    return total
