"""A bundle: a diffusers checkpoint folder plus small graphs whose weights point into its safetensors.

`bundle.json` is read here and written by `sora_export.bundle_from_checkpoint`. Every file that a bundle
relies on is listed with its sha256 and is checked before anything is loaded from it.
"""

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import BundleError

SCHEMA_VERSION = 1
_MODELS = Path(__file__).parent / "models"

Verify = Literal["once", "always"]


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"'{name}' points out of the bundle")
    return name


RelativePath = Annotated[str, AfterValidator(_inside)]


class _Record(BaseModel):
    """A part of bundle.json; keys of later minor versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Defaults(_Record):
    """What a request gets that does not say otherwise."""

    num_inference_steps: int = Field(ge=1)
    guidance_scale: float
    negative_prompt: str = ""
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    num_frames: int = Field(gt=0)


class Facts(_Record):
    """What the runtime must know of a model; lengths in elements, strides in pixels and frames."""

    latent_channels: int = Field(gt=0)
    spatial_stride: int = Field(gt=0)
    temporal_stride: int = Field(gt=0)
    patch_size: tuple[int, int, int]
    fps: float = Field(gt=0)
    max_sequence_length: int = Field(gt=0)
    text_dim: int = Field(gt=0)
    pad_token_id: int = 0
    boundary_ratio: float | None = None
    num_train_timesteps: int = 1000
    defaults: Defaults


class GraphComponent(_Record):
    """A component with one graph; `fingerprint` names its weights and graph by content."""

    graph: RelativePath
    fingerprint: str


class TransformerBucket(_Record):
    """One static shape of the transformer, in pixels and frames."""

    height: int
    width: int
    num_frames: int
    graph: RelativePath


class ChunkBucket(_Record):
    """A stateful VAE at one size: the graph of the first latent frame and that of every later one."""

    height: int
    width: int
    first: RelativePath
    next: RelativePath


class Transformer(_Record):
    """A denoiser with a graph for each bucket."""

    buckets: list[TransformerBucket] = Field(min_length=1)


class ChunkedVae(_Record):
    """A VAE decoder or encoder with two graphs for each size."""

    buckets: list[ChunkBucket] = Field(min_length=1)


class Components(_Record):
    """The networks of a bundle."""

    text_encoder: GraphComponent
    transformer: Transformer
    transformer_2: Transformer | None = None
    vae_decoder: ChunkedVae
    vae_encoder: ChunkedVae | None = None


class FileRecord(_Record):
    """What a file must hash to, and its size in bytes."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(_Record):
    """The whole of bundle.json."""

    schema_version: int
    name: str
    family: str
    precision: str
    license: str | None = None
    facts: Facts
    scheduler: RelativePath
    tokenizer: RelativePath
    components: Components
    files: dict[RelativePath, FileRecord]
    parity: dict[str, dict[str, object]] = {}
    made_by: dict[str, str] = {}


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
        """The absolute path of a file of the bundle; refuses a file that the manifest does not vouch for."""
        if relative not in self.manifest.files:
            raise BundleError(
                f"bundle.json of '{self.name}' uses '{relative}' and lists no sha256 for it; rebuild the bundle"
            )
        return self.root / relative

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], *, verify: Verify = "once") -> "Bundle":
        """Find, read and verify a bundle.

        Args:
            name_or_path: a bundle folder, or the name of one that ships with the package.
            verify: `once` hashes a file when it is first seen and remembers it by size, inode and
                modification time; `always` hashes every file now.

        Raises:
            BundleError: not found, damaged, of another schema version, or a file that does not match.
        """
        root = find_bundle(name_or_path)
        try:
            text = (root / "bundle.json").read_bytes()
            data = json.loads(text)
        except (OSError, ValueError) as error:
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
        _verify_files(root, manifest.files, verify)
        return cls(root, manifest, hashlib.sha256(text).hexdigest())


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle given as a path or as the name of a shipped one."""
    path = Path(name_or_path)
    for candidate in (path, _MODELS / path.name if path.parent == Path() else path):
        if (candidate / "bundle.json").is_file():
            return candidate.resolve()
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
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _write_memory(memory: dict[str, list[object]]) -> None:
    # What cannot be remembered is hashed again next time: no reason to fail.
    path = _memory_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(memory, file)
        Path(file.name).replace(path)
    except OSError:
        return


def _verify_files(root: Path, files: dict[str, FileRecord], verify: Verify) -> None:
    """Check every file's size and sha256, remembering what was checked."""
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
        seen: list[object] = [stat.st_size, stat.st_ino, stat.st_mtime_ns, record.sha256]
        if verify == "always" or memory.get(str(path)) != seen:
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
