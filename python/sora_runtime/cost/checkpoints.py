"""A model card made from a bundle, a diffusers checkpoint folder or a transformer's config.json: configurations only.

What a configuration does not say (strides, default lengths, prompt tokens) is taken from `bundle.json` where there is
one, else from the catalogue's card whose transformer is of the same class and nearest in width and depth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from sora_runtime.errors import InvalidRequest


def card_of(path: Path) -> dict[str, Any]:
    """The card of a checkpoint.

    Args:
        path: a folder with `transformer/config.json`, or a config.json.

    Raises:
        InvalidRequest: no configuration of a known class is there.
        OSError, json.JSONDecodeError: a file cannot be read.
    """
    folder = path if path.is_dir() else path.parent.parent
    config = _json(path / "transformer/config.json" if path.is_dir() else path)
    name = config.get("_class_name")
    if name is None:
        raise InvalidRequest(f"{path} names no _class_name; give a diffusers folder, a bundle or its config.json")
    card = json.loads(json.dumps(_nearest(str(name), config), default=str))
    card |= {"name": folder.name or str(path), "title": folder.name, "aliases": [], "date": date.today().isoformat()}
    card |= {"source": str(path), "notes": "read from its configurations", "released": ""}
    card["transformer"]["config"] = config
    card["transformer"].pop("parameters_published", None)
    if path.is_dir():
        _read_folder(path, card)
    return dict(card)


def _nearest(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The catalogue's card with the same class whose width and depth are closest."""
    from sora_runtime.cost.models import cards, registry

    same = [card for card in cards().values() if card["transformer"]["class"] == name]
    if not same:
        known = ", ".join(sorted(registry("TRANSFORMERS")))
        raise InvalidRequest(f"the class {name!r} has no model in the catalogue to start from; known are {known}")
    return min(same, key=lambda card: _distance(card["transformer"].get("config", {}), config))


def _distance(card: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")
    return float(sum(abs(card.get(name, 0) - config.get(name, 0)) / max(card.get(name, 1), 1) for name in names))


def _read_folder(path: Path, card: dict[str, Any]) -> None:
    vae = path / "vae/config.json"
    if vae.is_file():
        config = _json(vae)
        card["vae"] = {"class": config.get("_class_name", "unknown"), "config": config}
    if (path / "transformer_2/config.json").is_file():
        card["transformer"]["experts"] = 2
    bundle = path / "bundle.json"
    if bundle.is_file():
        _read_bundle(_json(bundle), card)
    encoders = _encoders(path, card["transformer"]["text_tokens"])
    if encoders:
        card["encoders"] = encoders


def _encoders(path: Path, tokens: int) -> list[dict[str, Any]]:
    """The text encoders whose class is known; a second one keeps its own fixed length."""
    from sora_runtime.cost.models import registry

    found = []
    for folder in ("text_encoder", "text_encoder_2"):
        file = path / folder / "config.json"
        config = _json(file) if file.is_file() else {}
        name = (config.get("architectures") or [""])[0]
        if name in registry("ENCODERS"):
            length = 77 if name.startswith("CLIP") else tokens
            found.append({"class": name, "tokens": length, "of": "text", "config": config})
    return found


def _read_bundle(bundle: Mapping[str, Any], card: dict[str, Any]) -> None:
    facts = bundle["facts"]
    names = ("latent_channels", "spatial_stride", "temporal_stride", "patch_size", "pad_latent_frames")
    card["geometry"] = {name: facts[name] for name in names if name in facts}
    defaults = facts["defaults"]
    guided = facts.get("embedded_guidance") is None and defaults["guidance_scale"] > 1
    card["defaults"] = {
        "width": defaults["width"],
        "height": defaults["height"],
        "frames": defaults["num_frames"],
        "fps": facts["fps"],
        "steps": defaults["num_inference_steps"],
        "guidance": "cfg" if guided else "none",
        "guidance_scale": defaults["guidance_scale"],
    }
    card["tasks"] = bundle["tasks"]
    card["name"] = card["title"] = bundle["name"]
    card["transformer"]["text_tokens"] = bundle["components"]["text_encoder"]["max_sequence_length"]


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InvalidRequest(f"{path} holds no configuration; give a diffusers folder, a bundle or its config.json")
    return content
