"""Keeps a build that fails from leaving anything behind: temporary names, links, and their undoing."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from sora_export.checkpoint import Checkpoint, is_pickle
from sora_runtime.errors import BundleError, OutputError

_ROOT_FILES = ("*.json", "*.md", "*.txt", "LICENSE*", "NOTICE*")
_NOT_LINKED = ("bundle.json", "tokenizer.json", "tokenizer_2.json")


class Staging:
    """A folder being written. Leaving the `with` block before `finish` undoes everything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary: dict[str, Path] = {}
        self._created: list[Path] = []
        self._done = False

    def __enter__(self) -> Self:
        self._make_folder(self.root)
        for path in self.root.glob(".*"):  # of builds that were killed
            if path.is_file() and is_abandoned(path):
                path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for path in self._temporary.values():
            path.unlink(missing_ok=True)
        if self._done:
            return
        for path in reversed(self._created):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)

    def new_file(self, name: str) -> Path:
        """A temporary path for a file of the bundle's root; graphs in it can already be loaded."""
        path = self.root / f".{os.getpid()}.{name}"
        self._temporary[name] = path
        return path

    def will_create(self, name: str) -> None:
        """Announces a file that will be written under its own name, so that a build that fails takes it away."""
        path = self.root / name
        if not path.exists() and path not in self._created:
            self._make_folder(path.parent)
            self._created.append(path)

    def path_of(self, name: str) -> Path:
        """Where a new file lies at the moment."""
        return self._temporary[name]

    def new_files(self) -> Iterator[tuple[str, Path]]:
        """The final name and the present path of every new file."""
        yield from self._temporary.items()

    def finish(self, write_manifest: Callable[[], None]) -> None:
        """Gives every new file its name and then writes the manifest.

        An older bundle.json goes first: graphs without one are no bundle, while graphs with one of
        another build would be a damaged bundle.
        """
        (self.root / "bundle.json").unlink(missing_ok=True)
        for name, path in self._temporary.items():
            final = self.root / name
            if not final.exists():
                self._created.append(final)
            path.replace(final)
        write_manifest()
        self._done = True

    def link_checkpoint(self, source: Checkpoint, progress: Callable[[str], None]) -> None:
        """Hard-links the checkpoint's files into the folder; copies, and says so, where it must.

        Raises:
            BundleError: A file of the same name and other content is there already; or the folder
                is the checkpoint's own and its files are symbolic links to elsewhere.
        """
        if self.root.samefile(source.root):
            _refuse_links_out(source)
            return
        for file in _files_to_link(source):
            self._link(file, self.root / file.relative_to(source.root), progress)

    def _link(self, file: Path, target: Path, progress: Callable[[str], None]) -> None:
        # The files of a model hub's cache are symbolic links; a bundle holds the files themselves.
        file = file.resolve()
        if target.exists():
            if target.samefile(file) or filecmp.cmp(file, target, shallow=False):
                return
            raise BundleError(f"{target} exists and differs from the checkpoint's; give an empty folder as --out")
        self._make_folder(target.parent)
        self._created.append(target)
        try:
            os.link(file, target)
        except OSError:
            progress(f"copying {target.name}, because it cannot be hard-linked to {target.parent}")
            shutil.copyfile(file, target)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder.parent != folder:
            self._make_folder(folder.parent)
        try:
            folder.mkdir()
        except OSError as error:
            raise OutputError(f"cannot create {folder} ({error.strerror}); give another --out") from error
        self._created.append(folder)


def is_abandoned(path: Path) -> bool:
    """Whether the name is a temporary one, `.PID.NAME`, of a process that is no more."""
    owner = path.name.split(".")[1] if path.name.startswith(".") else ""
    if not owner.isdecimal():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _files_to_link(source: Checkpoint) -> Iterator[Path]:
    for pattern in _ROOT_FILES:
        for file in sorted(source.root.glob(pattern)):
            if file.is_file() and file.name not in _NOT_LINKED:
                yield file
    for folder in sorted(source.index):
        if source.class_of(folder) is None:
            continue
        for file in sorted((source.root / folder).rglob("*")):
            if file.is_file() and not is_pickle(file) and not file.name.startswith("."):
                yield file
    for name in source.merged.values():
        yield source.root / name


def _refuse_links_out(source: Checkpoint) -> None:
    """ONNX Runtime opens no weights through a symbolic link that leaves the bundle's folder."""
    for file in _files_to_link(source):
        if not file.resolve().is_relative_to(source.root.resolve()):
            raise BundleError(
                f"{file} is a symbolic link out of its folder, which ONNX Runtime refuses; give "
                "another folder as --out, into which it will be hard-linked"
            )
