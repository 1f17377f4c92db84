"""Files against their sha256: hashed when first seen, remembered by identity until they change."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .errors import BundleError


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"'{name}' points out of the bundle")
    return name


RelativePath = Annotated[str, AfterValidator(_inside)]


class FileRecord(BaseModel):
    """What a file must hash to, its size in bytes, and for a graph the files its weights lie in."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    data: list[RelativePath] = []


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sora-runtime" / "verified.json"


def _read_memory() -> dict[str, list[object]]:
    try:
        data = json.loads(_memory_path().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return data if isinstance(data, dict) else {}


def _write_memory(memory: dict[str, list[object]]) -> None:
    # What cannot be remembered is hashed again next time: no reason to fail. Two processes that write at
    # once lose one's entries, which costs a hashing and nothing else.
    temporary = None
    try:
        path = _memory_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            json.dump({name: seen for name, seen in memory.items() if Path(name).exists()}, file)
        temporary.replace(path)
    except (OSError, RuntimeError):
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def verify_files(root: Path, files: Mapping[str, FileRecord], *, insist: bool) -> None:
    """Check every file's size and sha256, remembering what was checked; `insist` hashes all the same.

    Raises:
        BundleError: a file is missing, or is not what its record says.
    """
    memory = _read_memory()
    to_hash: list[tuple[str, Path, list[object]]] = []
    for relative, record in files.items():
        path = root / relative
        try:
            stat = path.stat()
        except OSError as error:
            raise BundleError(f"'{path}' is missing from the bundle; restore it or rebuild the bundle") from error
        if stat.st_size != record.size:
            raise BundleError(
                f"'{path}' has {stat.st_size} bytes instead of {record.size}; restore it or rebuild the bundle"
            )
        # The change time cannot be set by hand, unlike the modification time.
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        seen: list[object] = [*identity, record.sha256]
        if insist or memory.get(str(path)) != seen:
            to_hash.append((relative, path, seen))
    if not to_hash:
        return
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        digests = list(pool.map(lambda item: sha256_of(item[1]), to_hash))
    for (relative, path, seen), digest in zip(to_hash, digests, strict=True):
        if digest != files[relative].sha256:
            raise BundleError(f"'{path}' does not match its sha256 in bundle.json; restore it or rebuild the bundle")
        memory[str(path)] = seen
    _write_memory(memory)
