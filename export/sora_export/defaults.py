"""Reads `sora_defaults.json`, a checkpoint's own word on what no diffusers config states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from sora_export.checkpoint import Checkpoint
from sora_export.families import Shapes
from sora_runtime.errors import BundleError

_FILE = "sora_defaults.json"
_FACTS = {"fps": float, "max_sequence_length": int}
_REQUEST = {"num_inference_steps": int, "guidance_scale": float, "negative_prompt": str}
_SHAPE = {"height": int, "width": int, "num_frames": int}
_KNOWN: Mapping[str, type] = {**_FACTS, **_REQUEST, **_SHAPE, "license": str, "few_step": str}


def read_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """The values of sora_defaults.json, checked; the licence may come from the model card.

    Raises:
        BundleError: A key is unknown or a value is of the wrong type or not positive.
    """
    values: dict[str, Any] = {}
    if (checkpoint.root / _FILE).is_file():
        values = checkpoint.json(_FILE)
    for key, value in values.items():
        values[key] = _checked(checkpoint, key, value)
    if "license" not in values:
        values |= _license_of_model_card(checkpoint)
    return values


def with_defaults(facts: Mapping[str, Any], user: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The family's facts with the checkpoint's values over them and a default shape.

    The shape is the one of sora_defaults.json if it is being built, else the first that is.
    """
    (height, width), num_frames = shapes.sizes[0], shapes.num_frames[0]
    if (user.get("height"), user.get("width")) in shapes.sizes:
        height, width = user["height"], user["width"]
    if user.get("num_frames") in shapes.num_frames:
        num_frames = user["num_frames"]
    request = {key: user[key] for key in _REQUEST if key in user}
    shape = {"height": height, "width": width, "num_frames": num_frames}
    return {
        **facts,
        **{key: user[key] for key in _FACTS if key in user},
        "defaults": {**facts["defaults"], **request, **shape},
    }


def _checked(checkpoint: Checkpoint, key: str, value: Any) -> Any:
    where = checkpoint.root / _FILE
    if key not in _KNOWN:
        raise BundleError(f"{where} has the unknown key {key}; known are {', '.join(_KNOWN)}")
    kind = _KNOWN[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{where} gives {key} = {value!r}; use a {kind.__name__}")
    if kind is not str and not cast(float, value) > 0:
        raise BundleError(f"{where} gives {key} = {value!r}; use a positive number")
    return value


def _license_of_model_card(checkpoint: Checkpoint) -> dict[str, str]:
    """The `license:` line of the front matter of README.md, which model hubs define."""
    card = checkpoint.root / "README.md"
    if not card.is_file():
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front.group(1), re.MULTILINE) if front else None
    return {"license": found.group(1)} if found else {}
