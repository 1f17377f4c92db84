"""Reads a diffusers checkpoint folder: its configs and where its weights lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sora_runtime.errors import BundleError

_WEIGHT_STEMS = ("diffusion_pytorch_model", "model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder. Every method raises BundleError when what it needs is absent."""

    root: Path
    merged: Mapping[str, str] = field(default_factory=dict)
    """Component -> a safetensors file, relative to the root, whose tensors stand in the place of the component's own of
    the same names: adapters that were merged into them (`sora_export.merge`)."""

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json."""
        if not self.root.is_dir():
            raise BundleError(f"checkpoint {self.root} is not a folder; give a diffusers folder")
        if not (self.root / "model_index.json").is_file():
            raise BundleError(
                f"checkpoint {self.root} has no model_index.json; give the folder that diffusers' "
                "save_pretrained writes"
            )
        return self.json("model_index.json")

    @property
    def pipeline(self) -> str:
        """The class named in model_index.json, such as WanPipeline."""
        return str(self.index.get("_class_name"))

    def class_of(self, folder: str) -> str | None:
        """The class of a component in model_index.json, or None if the model has no such part."""
        entry = self.index.get(folder)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 else None

    def json(self, path: str) -> dict[str, Any]:
        """Reads a JSON object at a path relative to the root."""
        try:
            value = json.loads((self.root / path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(f"checkpoint {self.root} has no {path}; download it again") from error
        except ValueError as error:
            raise BundleError(f"{self.root / path} is not valid JSON; download it again") from error
        if not isinstance(value, dict):
            raise BundleError(f"{self.root / path} is not a JSON object; download it again")
        return value

    def weight_folders(self) -> list[str]:
        """The components that have weights, in whatever format."""
        return [
            folder
            for folder in sorted(self.index)
            if self.class_of(folder) is not None
            and any(file.suffix == ".safetensors" or is_pickle(file) for file in (self.root / folder).glob("*"))
        ]

    def weight_files(self, folder: str) -> list[Path]:
        """The safetensors files of a component; of two tensors of one name the later counts.

        Pickles are refused, never read.
        """
        merged = [self.root / self.merged[folder]] if folder in self.merged else []
        return [*self._own_weight_files(folder), *merged]

    def _own_weight_files(self, folder: str) -> list[Path]:
        for stem in _WEIGHT_STEMS:
            index = f"{folder}/{stem}.safetensors.index.json"
            if (self.root / index).is_file():
                return self._shards(folder, index)
            single = self.root / folder / f"{stem}.safetensors"
            if single.is_file():
                return [single]
        pickles = [file for file in sorted(self.root.glob(f"{folder}/*")) if is_pickle(file)]
        if pickles:
            raise BundleError(
                f"{pickles[0]} is a pickle, which can run code when it is opened; convert {folder} to "
                "safetensors with diffusers' save_pretrained(safe_serialization=True)"
            )
        raise BundleError(
            f"{self.root / folder} has no {_WEIGHT_STEMS[0]}.safetensors or "
            f"{_WEIGHT_STEMS[1]}.safetensors; download the checkpoint again"
        )

    def _shards(self, folder: str, index: str) -> list[Path]:
        names = sorted(set(self.json(index).get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name:
                raise BundleError(f"{self.root / index} names {name!r} outside of its folder")
            if not (self.root / folder / name).is_file():
                raise BundleError(f"shard {folder}/{name} of {self.root} is missing; download it again")
        return [self.root / folder / name for name in names]


def is_pickle(file: Path) -> bool:
    """Whether the name is one under which torch saves pickles."""
    return file.suffix in _PICKLES
