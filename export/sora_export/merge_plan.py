"""Says which tensors of a checkpoint adapters change, from headers alone, and refuses what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sora_export.adapter import Adapter
from sora_export.adapter_modules import Renaming, modules_of
from sora_export.adapter_patches import Patch, read_patches
from sora_export.checkpoint import Checkpoint
from sora_export.external_data import FLOAT_TYPES, StoredTensor, read_weights
from sora_runtime.errors import InvalidRequest

_TRANSFORMERS = ("transformer", "transformer_2")


@dataclass(frozen=True)
class Change:
    """What one patch adds to one tensor."""

    patch: Patch
    role: str
    """ "weight" (up @ down), "up_bias", "diff" or "diff_bias"."""
    rows: slice
    """Of the patch's tensor: a part where the original model has one matrix for several of diffusers'."""


@dataclass(frozen=True)
class ComponentPlan:
    """The changes of a component."""

    component: str
    tensors: Mapping[str, StoredTensor]
    """The checkpoint's, of those that change."""
    changes: Mapping[str, Sequence[Change]]
    """By tensor, in the order in which the adapters were given."""

    @property
    def adapters(self) -> dict[Adapter, int]:
        """Which adapters change the component, and how many of their modules do."""
        patches = {id(change.patch): change.patch for changes in self.changes.values() for change in changes}
        modules: dict[Adapter, int] = {}
        for patch in patches.values():
            modules[patch.adapter] = modules.get(patch.adapter, 0) + 1
        return modules


def plan_merge(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], renamings: Sequence[Renaming]
) -> list[ComponentPlan]:
    """What is to be merged; no weight is read.

    Args:
        checkpoint: Without earlier merges.
        adapters: In the order in which their changes are added.
        renamings: Of the checkpoint's family.

    Raises:
        BundleError: A file is no safetensors file.
        InvalidRequest: An adapter is of another model: a module or shape that the checkpoint does not have.
    """
    for index, adapter in enumerate(adapters):
        if adapter in adapters[:index]:
            raise InvalidRequest(f"{adapter.file} is given twice; give it once, with the sum of the scales")
    patches = [patch for adapter in adapters for patch in read_patches(adapter)]
    plans = []
    for component in dict.fromkeys(patch.component for patch in patches):
        if component not in _TRANSFORMERS or checkpoint.class_of(component) is None:
            file = next(patch.adapter.file for patch in patches if patch.component == component)
            raise InvalidRequest(f"{file} is for {component}, which {checkpoint.root} does not have; use --lora for it")
        weights = read_weights(checkpoint.weight_files(component))
        changes: dict[str, list[Change]] = {}
        own = [patch for patch in patches if patch.component == component]
        for patch, modules in _matched(own, weights, renamings):
            for tensor, change in _changes(patch, modules, weights):
                changes.setdefault(tensor, []).append(change)
        plans.append(ComponentPlan(component, {name: weights[name] for name in changes}, changes))
    return plans


def _matched(
    patches: Sequence[Patch], weights: Mapping[str, StoredTensor], renamings: Sequence[Renaming]
) -> Iterator[tuple[Patch, Sequence[str]]]:
    known = modules_of(weights, renamings)
    unknown = [patch for patch in patches if patch.module not in known]
    if unknown:
        first, more = unknown[0], len(unknown) - 1
        raise InvalidRequest(
            f"{first.adapter.file} changes {first.module}{f' and {more} more' if more else ''}, which the "
            f"{first.component} of this checkpoint does not have; give an adapter that was made for this model"
        )
    for patch in patches:
        yield patch, known[patch.module]


def _changes(patch: Patch, modules: Sequence[str], weights: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Change]]:
    for role, ending in (("up", "weight"), ("diff", "weight"), ("up_bias", "bias"), ("diff_bias", "bias")):
        if role not in patch.tensors:
            continue
        names = [_tensor_of(patch, role, module, ending, weights) for module in modules]
        targets = [weights[name] for name in names]
        if role == "up":
            _check_factors(patch, names, targets)
        else:
            _check_shape(patch, role, names, (_rows(targets), *targets[0].shape[1:]))
        start = 0
        for name, target in zip(names, targets, strict=True):
            rows = slice(start, start + target.shape[0])
            start = rows.stop
            yield name, Change(patch, "weight" if role == "up" else role, rows)


def _tensor_of(patch: Patch, role: str, module: str, ending: str, weights: Mapping[str, StoredTensor]) -> str:
    names = [f"{module}.{ending}", *([module] if role == "diff" else [])]  # a bare parameter has no ending
    for name in names:
        if name in weights:
            if weights[name].dtype not in FLOAT_TYPES:
                raise InvalidRequest(
                    f"{name} of the checkpoint is stored as {weights[name].dtype}, which nothing can be merged into; "
                    "give the checkpoint before quantisation"
                )
            return name
    raise InvalidRequest(
        f"{patch.tensors[role][0]} of {patch.adapter.file} changes {names[0]}, which the checkpoint does not have; "
        "give an adapter that was made for this model"
    )


def _rows(targets: Sequence[StoredTensor]) -> int:
    return sum(target.shape[0] for target in targets)


def _check_factors(patch: Patch, names: Sequence[str], targets: Sequence[StoredTensor]) -> None:
    """`down` is [rank, in_features] or has a convolution's kernel; `up` is [out_features, rank] or 1x1."""
    (down_name, down), (up_name, up) = patch.tensors["down"], patch.tensors["up"]
    rest, what = targets[0].shape[1:], _said(names, (_rows(targets), *targets[0].shape[1:]))
    rank = down.shape[0] if down.shape else 0
    flat = len(down.shape) == 2 and down.shape[1] == math.prod(rest)
    if rank == 0 or not rest or not (flat or down.shape[1:] == rest):
        _refuse(patch, down_name, down, [rank or "rank", *rest], what)
    if up.shape[:2] != (_rows(targets), rank) or math.prod(up.shape[2:]) != 1:
        _refuse(patch, up_name, up, [_rows(targets), rank], what)
    if "alpha" in patch.tensors and math.prod(patch.tensors["alpha"][1].shape) != 1:
        _refuse(patch, *patch.tensors["alpha"], [], what)


def _check_shape(patch: Patch, role: str, names: Sequence[str], wanted: tuple[int, ...]) -> None:
    name, stored = patch.tensors[role]
    if stored.shape != wanted:
        _refuse(patch, name, stored, list(wanted), _said(names, wanted))


def _said(names: Sequence[str], shape: Sequence[int]) -> str:
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} of {list(shape)}"


def _refuse(patch: Patch, name: str, stored: StoredTensor, wanted: Sequence[object], what: str) -> None:
    expected = f"[{', '.join(map(str, wanted))}]"
    raise InvalidRequest(
        f"{name} of {patch.adapter.file} has the shape {list(stored.shape)}, but {what} needs {expected}; "
        "give an adapter that was made for this model"
    )
