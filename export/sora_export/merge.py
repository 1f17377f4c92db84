"""Merges adapters into weights, one tensor at a time: only what changes is written, beside the untouched checkpoint.

W' = W + scale * alpha / rank * B A (LoRA, arXiv:2106.09685, eq. 3), added in float32 adapter by adapter in the order
they were given, as diffusers' `fuse_lora` does, and rounded once to the type that W is stored in.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from sora_export.checkpoint import Checkpoint
from sora_export.manifest import sha256_of
from sora_export.merge_plan import Change, ComponentPlan
from sora_export.safetensors_file import Entry, write_safetensors
from sora_export.staging import Staging
from sora_runtime.errors import InvalidRequest

_RECIPE = "lora 1"
"""Another name for another arithmetic: it is a part of the name of the file."""
_FOLDER = "merged"


def write_merged(
    checkpoint: Checkpoint, plans: Sequence[ComponentPlan], staging: Staging, progress: Callable[[str], None]
) -> dict[str, str]:
    """Writes the changed tensors of every component and returns their files, relative to the root.

    A file is named by what it was made of, so that the graphs of an older bundle in the same folder keep theirs.

    Args:
        checkpoint: The folder that is written to, without earlier merges.
        plans: Of `plan_merge`, for the same weights.
        staging: Takes the files away if the build fails.
        progress: Called with one sentence for each component.

    Raises:
        InvalidRequest: A merged weight is not finite.
        OutputError: A file cannot be written.
    """
    files = {}
    for plan in plans:
        name = f"{_FOLDER}/{plan.component}.{_digest(checkpoint, plan)[:12]}.safetensors"
        staging.will_create(name)
        progress(f"merging {_names(plan)} into {len(plan.changes)} tensors of {plan.component}")
        sizes = {name: stored.length // max(math.prod(stored.shape), 1) for name, stored in plan.tensors.items()}
        entries = [Entry(name, stored.dtype, sizes[name], stored.shape) for name, stored in plan.tensors.items()]
        file = checkpoint.root / name
        write_safetensors(file, {"recipe": _RECIPE}, entries, _merged_tensors(plan))
        # The age of what it was made of: weights that are quantised from it are found again after a rebuild.
        sources = [stored.file for stored in plan.tensors.values()] + [adapter.file for adapter in plan.adapters]
        newest = max(source.stat().st_mtime_ns for source in sources)
        os.utime(file, ns=(newest, newest))
        files[plan.component] = name
    return files


def merged(base: Tensor, changes: Sequence[Change], name: str) -> Tensor:
    """A weight with its changes, in its own type.

    Raises:
        InvalidRequest: The result is not finite.
    """
    total = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
    for change in changes:
        total += _delta(change).reshape(total.shape)
    ends = torch.stack(torch.aminmax(total)).to(base.dtype)  # NaN where there is one
    if not bool(torch.isfinite(ends).all()):
        patch = changes[-1].patch
        raise InvalidRequest(
            f"{name} with {patch.adapter.file} at scale {patch.adapter.scale:g} is not finite in {base.dtype}; "
            "give a smaller scale or another adapter"
        )
    return total.to(base.dtype)


def _merged_tensors(plan: ComponentPlan) -> Iterator[NDArray[Any]]:
    with torch.no_grad():
        for name, changes in plan.changes.items():
            with safe_open(plan.tensors[name].file, "pt") as file:
                base = file.get_tensor(name)
            yield merged(base, changes, name).contiguous().view(torch.uint8).numpy()


def _delta(change: Change) -> Tensor:
    """In float32; the product before the factor, as PEFT has it."""
    patch = change.patch
    if change.role == "weight":
        up, down = (_float32(patch.read(role)).flatten(1) for role in ("up", "down"))
        return (up[change.rows] @ down).mul_(patch.scaling)  # a second copy of a large product costs as much as it
    delta = _float32(patch.read(change.role))[change.rows]
    return delta * (patch.scaling if change.role == "up_bias" else patch.adapter.scale)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32)


def _digest(checkpoint: Checkpoint, plan: ComponentPlan) -> str:
    made_of = {
        "recipe": _RECIPE,
        "weights": [sha256_of(file) for file in checkpoint.weight_files(plan.component)],
        "adapters": [[sha256_of(adapter.file), adapter.scale] for adapter in plan.adapters],
    }
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _names(plan: ComponentPlan) -> str:
    return ", ".join(adapter.file.name for adapter in plan.adapters)
