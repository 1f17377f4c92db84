"""The open models that can be priced: one readable file each in `catalogue/models`, or a user's own."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder, Conditioning
from sora_runtime.cost.work import ComponentWork, Sizes
from sora_runtime.errors import InvalidRequest
from sora_runtime.geometry import Geometry, Strides

# Modules of `architectures` by the table of work functions that they hold; those not needed are not imported.
_ARCHITECTURES = {
    "TRANSFORMERS": "wan ltx cosmos sana minimax hunyuan cogvideox mochi kandinsky generic",
    "AUTOENCODERS": "vae_wan vae_ltx vae_hunyuan vae_cogvideox vae_mochi vae_cosmos vae_allegro vae_dc vae_minimax",
    "ENCODERS": "encoders",
}


@dataclass(frozen=True)
class Defaults:
    """What the model's reference pipeline uses where a request says nothing."""

    width: int
    height: int
    frames: int
    fps: float
    steps: int
    guided: bool  # classifier-free guidance: more than one evaluation a step
    evaluations: int  # of a guided step: 2, or 3 where two guidances are added
    guidance_scale: float | None


@dataclass(frozen=True)
class Encoder:
    """A text or image encoder and how many tokens it runs over."""

    work: ComponentWork
    of: str  # text or image


@dataclass(frozen=True)
class Model:
    """One video model: its work by component, its geometry and its defaults."""

    name: str
    title: str
    family: str
    aliases: tuple[str, ...]
    tasks: tuple[str, ...]
    released: str  # year-month
    source: str
    date: str
    notes: str
    strides: Strides
    pad_size: bool  # rows and columns are filled up to whole patches
    defaults: Defaults
    transformer: ComponentWork
    width: int  # of the transformer's residual stream
    head: int  # channels of one attention head
    masked: bool  # its attention takes a mask
    sparse: str  # the sparse attention that its release runs with, if any
    text_tokens: int
    text_width: int  # of the embeddings that the transformer is given
    vae: Autoencoder | None  # None: a class whose work is not known
    tiling: tuple[float, float]  # work and peak of a tiled decode against a whole one; (1, 1): not tiled
    chunk: tuple[int, int] | None  # frames and latent frames of a chunk, where lengths are no k n + 1
    chunk_head: tuple[int, int]  # of what comes before the first chunk
    encoders: tuple[Encoder, ...]

    def geometry(self, width: int, height: int, frames: int) -> Geometry:
        """The shapes of a clip; a size that the reference pipeline fills up is filled up.

        Raises:
            InvalidRequest: a size the model cannot represent, with the nearest ones it can.
        """
        if self.pad_size:
            step = self.strides.spatial_stride
            width, height = (
                -(-value // (step * patch)) * step * patch
                for value, patch in ((width, self.strides.patch_size[2]), (height, self.strides.patch_size[1]))
            )
        if self.chunk is None:
            return Geometry.of(self.strides, height=height, width=width, num_frames=frames)
        head_frames, head_latents = self.chunk_head
        chunks = -(-max(frames - head_frames, 0) // self.chunk[0])
        latent_frames = head_latents + chunks * self.chunk[1]
        whole = (latent_frames - 1) * self.strides.temporal_stride + 1  # a length of which Geometry gives as many
        shapes = Geometry.of(self.strides, height=height, width=width, num_frames=whole)
        return replace(shapes, num_frames=frames)

    @staticmethod
    def sizes(geometry: Geometry) -> Sizes:
        """What the work's terms are multiplied with."""
        _, _, frames, rows, columns = geometry.latent_shape
        return Sizes(tokens=geometry.tokens, latent_area=rows * columns, latent_frames=frames)


def _folder() -> Any:
    return resources.files("sora_runtime.cost").joinpath("catalogue/models")


@cache
def _names() -> dict[str, None]:
    """The catalogue's names: those of its files (`check_catalogue` holds the cards to that)."""
    files = sorted(entry.name for entry in _folder().iterdir())
    return dict.fromkeys(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


@cache
def _card(name: str) -> Mapping[str, Any]:
    return tomllib.loads(_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8"))


@cache
def cards() -> dict[str, Mapping[str, Any]]:
    """Every card of the catalogue as it is written, by name."""
    return {name: _card(name) for name in _names()}


def model_names() -> list[str]:
    """The catalogue's names."""
    return list(_names())


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


@cache
def _by_alias() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, card in cards().items():
        for alias in (name, card["title"], *card.get("aliases", ())):
            found.setdefault(_plain(alias), name)
    return found


@cache
def load_model(text: str) -> Model:
    """A model by its name in the catalogue, another name of it, a shipped bundle's, or a card's or folder's path.

    Raises:
        InvalidRequest: no such model; the nearest names are given.
    """
    # One card is read where the name is as the catalogue has it, all of them where it may be another name.
    name = text if text in _names() else _by_alias().get(_plain(text))
    if name is not None:
        return model_from(_card(name), name)
    path = _shipped(text) or Path(text)
    if path.is_dir() or path.is_file():
        return _from_path(path)
    if path.exists():
        raise InvalidRequest(
            f"model = {text!r} cannot be read (neither a file nor a folder); give a model card or a checkpoint"
        )
    nearest = difflib.get_close_matches(_plain(text), _by_alias(), n=3, cutoff=0.4)
    hint = ", ".join(dict.fromkeys(_by_alias()[alias] for alias in nearest)) or ", ".join(model_names()[:5])
    raise InvalidRequest(
        f"model = {text!r} is neither in the catalogue nor a path; "
        f"use {hint}, or see `sora-bench catalogue list models`"
    )


def _shipped(text: str) -> Path | None:
    """The folder of the package's own bundle of that name."""
    folder = Path(__file__).parents[1] / "models" / Path(text).name
    return folder if Path(text).name == text and (folder / "bundle.json").is_file() else None


def _from_path(path: Path) -> Model:
    try:
        if path.suffix == ".toml":
            return model_from(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        from sora_runtime.cost.checkpoints import card_of

        return model_from(card_of(path), str(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise InvalidRequest(
            f"model = {str(path)!r} cannot be read ({error}); give a model card or a checkpoint"
        ) from None


def _functions(kind: str) -> Iterator[dict[str, Callable[..., Any]]]:
    """The work functions of a kind, module by module; what is not reached is not imported."""
    for name in _ARCHITECTURES[kind].split():
        yield getattr(import_module(f"sora_runtime.cost.architectures.{name}"), kind)


@cache
def registry(kind: str) -> dict[str, Callable[..., Any]]:
    """All work functions of a kind (TRANSFORMERS, AUTOENCODERS or ENCODERS) by class name."""
    return {name: function for functions in _functions(kind) for name, function in functions.items()}


def model_from(card: Mapping[str, Any], origin: str) -> Model:
    """Build a model from a card.

    Args:
        card: the parsed file, as `catalogue/models/*.toml`.
        origin: named in messages.

    Raises:
        InvalidRequest: a field is missing or a class has no work function.
    """
    try:
        return _model(card, origin)
    except InvalidRequest:  # a ValueError too, and a whole sentence already
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"model card {origin} has no usable field {error}; compare it with one of the catalogue"
        ) from None


def _model(card: Mapping[str, Any], origin: str) -> Model:
    geometry, defaults, network = card["geometry"], card["defaults"], card["transformer"]
    config = network.get("config", {})
    build = _known("TRANSFORMERS", network["class"], origin)
    transformer = build(config, Conditioning(network["text_tokens"], network.get("image_tokens", 0)))
    vae = card.get("vae", {"class": "unknown"})
    autoencoder = None
    if vae["class"] != "unknown":
        autoencoder = _known("AUTOENCODERS", vae["class"], origin)(vae.get("config", {}))
    return Model(
        name=card["name"],
        title=card["title"],
        family=card["family"],
        aliases=tuple(card.get("aliases", ())),
        tasks=tuple(card["tasks"]),
        released=card.get("released", ""),
        source=card["source"],
        date=str(card["date"]),
        notes=card.get("notes", ""),
        strides=Strides(
            geometry["latent_channels"],
            geometry["spatial_stride"],
            geometry["temporal_stride"],
            tuple(geometry["patch_size"]),
            geometry.get("pad_latent_frames", False),
        ),
        pad_size=geometry.get("pad_latent_size", False),
        defaults=_defaults(defaults),
        transformer=_experts(transformer, network.get("experts", 1)),
        width=_width(config),
        head=int(config.get("attention_head_dim", config.get("head_dim", 128))),
        sparse=network.get("sparse", ""),
        masked=network.get("masked", False),
        text_tokens=network["text_tokens"],
        text_width=_text_width(config),
        vae=autoencoder,
        tiling=(vae.get("tiled_work", 1.0), vae.get("tiled_peak", 1.0)),
        chunk=tuple(geometry["chunk"]) if "chunk" in geometry else None,
        chunk_head=tuple(geometry.get("chunk_head", (0, 0))),
        encoders=tuple(_encoder(encoder, origin) for encoder in card.get("encoders", ())),
    )


def _defaults(defaults: Mapping[str, Any]) -> Defaults:
    return Defaults(
        width=defaults["width"],
        height=defaults["height"],
        frames=defaults["frames"],
        fps=defaults["fps"],
        steps=defaults["steps"],
        guided=defaults["guidance"] == "cfg",
        evaluations=defaults.get("evaluations", 2),
        guidance_scale=defaults.get("guidance_scale"),
    )


def _encoder(card: Mapping[str, Any], origin: str) -> Encoder:
    build = _known("ENCODERS", card["class"], origin)
    return Encoder(build(card.get("config", {}), card["tokens"]), card.get("of", "text"))


def _experts(work: ComponentWork, experts: int) -> ComponentWork:
    if experts == 1:
        return work
    return ComponentWork(work.parameters * experts, work.layers, work.terms, work.peak, work.read)


def _width(config: Mapping[str, Any]) -> int:
    for name in ("inner_dim", "hidden_size", "width", "model_dim"):
        if name in config:
            return int(config[name])
    return int(config.get("num_attention_heads", 40)) * int(config.get("attention_head_dim", 128))


def _text_width(config: Mapping[str, Any]) -> int:
    for name in ("caption_channels", "text_dim", "text_embed_dim", "in_text_dim", "cross_attention_dim"):
        if config.get(name):
            return int(config[name])
    return _width(config)


def _known(kind: str, name: str, origin: str) -> Callable[..., Any]:
    for functions in _functions(kind):
        if name in functions:
            return functions[name]
    raise InvalidRequest(
        f"model card {origin} names the class {name!r}, whose work is not known; use one of "
        f"{', '.join(sorted(registry(kind)))}"
    )
