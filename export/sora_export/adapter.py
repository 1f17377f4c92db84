"""Finds an adapter (LoRA) on disk and reads what its file says of itself."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_export.checkpoint import is_pickle
from sora_export.external_data import read_safetensors_header
from sora_export.manifest import sha256_of
from sora_runtime.errors import InvalidRequest

_USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Those of diffusers' `save_lora_weights` and of PEFT's `save_pretrained`."""
_METADATA_KEY = "lora_adapter_metadata"
"""Under which diffusers puts PEFT's LoraConfig into the header of a file."""
_PEFT_ALPHA = 8
"""What LoraConfig takes where it is told no lora_alpha."""
_MAX_SCALE = 100.0


@dataclass(frozen=True)
class Adapter:
    """An adapter that is to be merged into a transformer."""

    file: Path
    """A safetensors file."""
    scale: float = 1.0
    """What its change of the weights is multiplied with, beside its own alpha / rank."""
    component: str = "transformer"
    """The component that is meant where the file's names do not say so themselves."""

    def record(self, modules: int, component: str) -> dict[str, Any]:
        """Its entry in bundle.json for the component, of which it changes so many modules."""
        return {
            "component": component,
            "name": self.file.name,
            "sha256": sha256_of(self.file),
            "scale": self.scale,
            "modules": modules,
        }


@dataclass(frozen=True)
class Scaling:
    """How PEFT scales the change of a module: alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""

    config: Mapping[str, Any]
    """A LoraConfig; empty where the file has none, whose changes are then taken as they are."""

    def of(self, module: str, rank: int) -> float:
        """The factor of a module by its name in the file."""
        if not self.config:
            return 1.0
        alpha = self.config.get("lora_alpha", _PEFT_ALPHA)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def find_adapter(text: str, component: str = "transformer") -> Adapter:
    """The adapter that `FILE_OR_FOLDER[=SCALE]` names.

    Raises:
        InvalidRequest: There is none, there are several, it is a pickle, or the scale is out of range.
    """
    place, scale = Path(text), 1.0
    before, equals, after = text.rpartition("=")
    if equals and not place.exists():
        place, scale = Path(before), _scale(text, after)
    if place.is_dir():
        place = _file_in(place)
    if not place.is_file():
        raise InvalidRequest(f"there is no adapter {place}; give a .safetensors file or the folder of one")
    if is_pickle(place):
        raise InvalidRequest(f"{place} is a pickle, which can run code when it is opened; give it as safetensors")
    return Adapter(place, scale, component)


def metadata_of(file: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file.

    Raises:
        BundleError: It is none.
    """
    read_safetensors_header(file)
    with file.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        metadata: dict[str, str] = json.loads(stream.read(length)).get("__metadata__") or {}
    return metadata


def scaling_of(adapter: Adapter) -> Scaling:
    """From the header of the file, or from PEFT's adapter_config.json beside an adapter_model.safetensors.

    Raises:
        InvalidRequest: What is written there is no LoraConfig, or one of an adapter that is no sum of matrices.
    """
    beside = adapter.file.parent / "adapter_config.json"
    text = metadata_of(adapter.file).get(_METADATA_KEY)
    if text is None and adapter.file.name == _USUAL_NAMES[1] and beside.is_file():
        text = beside.read_text(encoding="utf-8", errors="replace")
    if text is None:
        return Scaling({})
    try:
        config = dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the LoraConfig of {adapter.file} is not valid JSON; save the adapter again") from error
    config = {key.removeprefix("transformer."): value for key, value in config.items()}
    if config.get("use_dora") or config.get("fan_in_fan_out"):
        wrong = "use_dora" if config.get("use_dora") else "fan_in_fan_out"
        raise InvalidRequest(f"{adapter.file} has {wrong} = true, which cannot be merged; give a plain LoRA")
    return Scaling(config)


def _scale(text: str, value: str) -> float:
    try:
        scale = float(value)
    except ValueError:
        raise InvalidRequest(f"there is no adapter {text}; give a .safetensors file or the folder of one") from None
    if not abs(scale) <= _MAX_SCALE:
        raise InvalidRequest(f"the scale {scale:g} of {text} is out of range; use -{_MAX_SCALE:g} to {_MAX_SCALE:g}")
    return scale


def _file_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    usual = [file for file in found if file.name in _USUAL_NAMES]
    if len(usual or found) == 1:
        return (usual or found)[0]
    if not found:
        raise InvalidRequest(f"{folder} holds no .safetensors file; give the folder of an adapter")
    names = ", ".join(file.name for file in found[:4])
    raise InvalidRequest(f"{folder} holds {len(found)} .safetensors files ({names} ...); name one of them")
