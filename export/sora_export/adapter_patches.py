"""Sorts the tensors of an adapter's file by the module that they change, whatever tool has named them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from safetensors import safe_open

from sora_export.adapter import Adapter, Scaling, scaling_of
from sora_export.external_data import FLOAT_TYPES, StoredTensor, read_safetensors_header
from sora_runtime.errors import InvalidRequest

_ROLES = (
    (r"\.(?:lora_A|lora_down|lora\.down)(?:\.[^.]+)?\.weight", "down"),
    (r"\.(?:lora_B|lora_up|lora\.up)(?:\.[^.]+)?\.weight", "up"),
    (r"\.lora_B(?:\.[^.]+)?\.bias", "up_bias"),
    (r"\.alpha", "alpha"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_bias"),
)
"""What a name ends with and what the tensor is: PEFT's and kohya's factors, and whole differences of weight or bias
as the distilled Wan adapters of lightx2v have them. PEFT may write the adapter's name before `weight`."""
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "lora_unet_", "lora_transformer_")
_COMPONENT = re.compile(r"(transformer(?:_2)?)\.")
_ELSEWHERE = re.compile(r"(text_encoder(?:_\d)?|vae|image_encoder|lora_te\d?|unet)[._]")
_OTHER_KINDS = re.compile(r"\.(dora_scale|lora_magnitude_vector|lokr_\w+|hada_\w+|oft_\w+|boft_\w+)\b")


@dataclass
class Patch:
    """What an adapter changes of one module: W + scale * scaling * up @ down, or W + scale * diff."""

    adapter: Adapter
    component: str
    module: str
    """Its name in the file, without the prefix that tells what it is a part of."""
    tensors: dict[str, tuple[str, StoredTensor]] = field(default_factory=dict)
    """By role: the name in the file and where the tensor lies."""
    config: Scaling = field(default_factory=lambda: Scaling({}))

    @cached_property
    def scaling(self) -> float:
        """What `up @ down` is multiplied with: alpha / rank of the file and the user's scale."""
        rank = self.tensors["down"][1].shape[0]
        if "alpha" in self.tensors:
            return self.adapter.scale * float(self.read("alpha").item()) / rank
        return self.adapter.scale * self.config.of(self.module, rank)

    def read(self, role: str) -> Any:
        """The tensor of a role, as torch has it."""
        name, stored = self.tensors[role]
        with safe_open(stored.file, "pt") as file:
            return file.get_tensor(name)


def read_patches(adapter: Adapter) -> list[Patch]:
    """Everything that an adapter changes, in the order of its file's names.

    Raises:
        BundleError: The file is no safetensors file.
        InvalidRequest: A tensor is of another kind of adapter, or for a part that cannot be changed, or lacks its pair.
    """
    config, patches = scaling_of(adapter), dict[tuple[str, str], Patch]()
    for name, stored in sorted(read_safetensors_header(adapter.file).items()):
        module, role = _split(adapter, name)
        component, module = _place(adapter, name, module)
        if stored.dtype not in FLOAT_TYPES:
            raise InvalidRequest(f"{name} of {adapter.file} is stored as {stored.dtype}; use {', '.join(FLOAT_TYPES)}")
        patch = patches.setdefault((component, module), Patch(adapter, component, module, config=config))
        patch.tensors[role] = (name, stored)
    if not patches:
        raise InvalidRequest(f"{adapter.file} holds no tensor; give an adapter")
    for patch in patches.values():
        _check_pair(patch)
    return list(patches.values())


def _split(adapter: Adapter, name: str) -> tuple[str, str]:
    """The module and the role of a tensor."""
    other = _OTHER_KINDS.search(name)
    if other:
        raise InvalidRequest(
            f"{name} of {adapter.file} is of an adapter that is no product of two matrices ({other[1]}); give a LoRA"
        )
    for pattern, role in _ROLES:
        found = re.fullmatch(rf"(.+){pattern}", name)
        if found:
            return found[1], role
    raise InvalidRequest(f"{name} of {adapter.file} is no tensor of an adapter; give a LoRA, not a whole model")


def _place(adapter: Adapter, name: str, module: str) -> tuple[str, str]:
    """The component that a module belongs to, and its name in there."""
    if _ELSEWHERE.match(module):
        raise InvalidRequest(f"{name} of {adapter.file} changes another part than a transformer; remove such tensors")
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    found = _COMPONENT.match(module)
    component = adapter.component
    if found:
        module = module[found.end() :]
        component = found[1] if found[1] != "transformer" else component
    return component, module


def _check_pair(patch: Patch) -> None:
    roles: Mapping[str, tuple[str, StoredTensor]] = patch.tensors
    for one, other in (("down", "up"), ("up", "down"), ("up_bias", "up"), ("alpha", "down")):
        if one in roles and other not in roles:
            kind = "lora_A" if other == "down" else "lora_B"
            raise InvalidRequest(
                f"{roles[one][0]} of {patch.adapter.file} has no {kind} beside it; the file is not complete"
            )
