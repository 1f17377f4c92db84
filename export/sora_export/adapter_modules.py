"""Which modules of a checkpoint the names in an adapter mean: diffusers' own, the original model's, or flattened."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Renaming(NamedTuple):
    """How the original code of a model calls what diffusers calls otherwise.

    `part` is the place of a module among those that are one matrix there: 0, 1, 2 of queries, keys and values.
    """

    pattern: str
    """A regular expression on diffusers' name of a module."""
    original: str
    part: int = 0


Modules = Mapping[str, Sequence[str]]
"""What a module may be called -> diffusers' names of it; several where one matrix was split, in the order of rows."""


def modules_of(tensors: Iterable[str], renamings: Sequence[Renaming]) -> Modules:
    """The names that the modules of a component may have in an adapter.

    Diffusers' name wins where the original code calls another module the same.

    Args:
        tensors: The names of the component's weights.
        renamings: Of the family, applied one after the other.
    """
    own = dict.fromkeys(re.sub(r"\.(weight|bias)$", "", name) for name in tensors)
    originals: dict[str, list[tuple[int, str]]] = {}
    for module in own:
        name, part = _original(module, renamings)
        originals.setdefault(name, []).append((part, module))
    found: dict[str, Sequence[str]] = {module: [module] for module in own}
    for name, parts in originals.items():
        found.setdefault(name, [module for _, module in sorted(parts)])
    flat = {name.replace(".", "_"): modules for name, modules in found.items()}  # as kohya's tools write them
    return {**flat, **found}


def _original(module: str, renamings: Sequence[Renaming]) -> tuple[str, int]:
    part = 0
    for renaming in renamings:
        name = re.sub(renaming.pattern, renaming.original, module)
        if name != module:
            module, part = name, max(part, renaming.part)
    return module, part
