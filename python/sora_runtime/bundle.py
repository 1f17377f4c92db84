"""A bundle: a diffusers checkpoint folder plus small graphs whose weights point into its safetensors.

`bundle.json` is read here and written by `sora_export.bundle_from_checkpoint`. Every file that a bundle
relies on is listed with its sha256 and is checked before anything is loaded from it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from .errors import BundleError, InvalidRequest
from .manifest import SCHEMA_VERSION, Manifest
from .verify import FileRecord, verify_files

_MODELS = Path(__file__).parent / "models"

Verify = Literal["once", "always"]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    root: Path
    manifest: Manifest
    sha256: str  # of bundle.json itself, which names the hash of everything else

    @property
    def name(self) -> str:
        """The model's name, e.g. `wan-pocket`."""
        return self.manifest.name

    def path(self, relative: str) -> Path:
        """The absolute path of a file of the bundle, as verified.

        A graph's weights are checked with it: what changed since the bundle was loaded is hashed again.

        Raises:
            BundleError: the manifest does not vouch for the file, or it has changed.
        """
        record = self._record(relative)
        names = {name: self._record(name) for name in (relative, *record.data)}
        verify_files(self.root, names, insist=False)
        return self.root / relative

    def read_json(self, relative: str) -> dict[str, Any]:
        """The JSON object in a file of the bundle; raises `BundleError` as `path` does, or if it is none."""
        path = self.path(relative)
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"'{path}' cannot be read ({error}); rebuild the bundle") from error
        if not isinstance(data, dict):
            raise BundleError(f"'{path}' holds no JSON object; rebuild the bundle")
        return data

    def _record(self, relative: str) -> FileRecord:
        if relative not in self.manifest.files:
            raise BundleError(
                f"bundle.json of '{self.name}' uses '{relative}' and lists no sha256 for it; rebuild the bundle"
            )
        return self.manifest.files[relative]

    def fingerprint(self, graph: str) -> str:
        """sha256 over a graph and the files its weights lie in: names what an engine of it computes."""
        record = self._record(graph)
        hashes = [record.sha256, *(self._record(name).sha256 for name in record.data)]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], *, verify: Verify = "once") -> "Bundle":
        """Find, read and verify a bundle.

        Args:
            name_or_path: a bundle folder, or the name of one that ships with the package.
            verify: `once` hashes a file when it is first seen and remembers it by size, inode and
                modification time; `always` hashes every file now.

        Raises:
            BundleError: not found, damaged, of another schema version, or a file that does not match.
            InvalidRequest: an unknown `verify`.
        """
        if verify not in ("once", "always"):
            raise InvalidRequest(f"verify = {verify!r} is unknown; use once or always")
        root = find_bundle(name_or_path)
        try:
            text = (root / "bundle.json").read_bytes()
            data = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"'{root / 'bundle.json'}' cannot be read ({error}); rebuild the bundle") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"'{root}' has bundle schema {version}, this release reads {SCHEMA_VERSION}; "
                f"rebuild it with `sora-bench build`"
            )
        try:
            manifest = Manifest.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(
                f"'{root / 'bundle.json'}' is damaged at {where} ({first['msg']}); rebuild the bundle"
            ) from error
        verify_files(root, manifest.files, insist=verify == "always")
        return cls(root, manifest, hashlib.sha256(text).hexdigest())


def is_shipped(folder: Path) -> bool:
    """Whether a bundle is one of the package's own, whose files are nobody's to change."""
    return folder.resolve().is_relative_to(_MODELS.resolve())


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle: of a shipped one by its bare name, else of the one at a path."""
    path = Path(name_or_path)
    bare = os.fspath(name_or_path) == path.name
    for candidate in (_MODELS / path.name, path) if bare else (path,):
        try:
            if (candidate / "bundle.json").is_file():
                return candidate.resolve()
        except OSError as error:
            raise BundleError(f"'{name_or_path}' cannot be opened ({error.strerror}); check the path") from error
    shipped = sorted(folder.parent.name for folder in _MODELS.glob("*/bundle.json"))
    if path.is_dir():
        raise BundleError(
            f"'{path}' is no bundle (it has no bundle.json); make one of a checkpoint with "
            f"`sora-bench build {path} --out BUNDLE`"
        )
    raise BundleError(
        f"there is no bundle '{name_or_path}'; give the folder of one or a shipped name "
        f"({', '.join(shipped) or 'none is installed'})"
    )
