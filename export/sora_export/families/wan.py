"""The Wan family (2.1 and 2.2, from text and from a picture): which modules become which graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

from sora_export.checkpoint import Checkpoint
from sora_export.external_data import read_weights
from sora_export.families import Component, Shapes, original_names
from sora_export.families import wan_parity as parity
from sora_export.families.common import T5Graph, like, load_transformers, loader, statistics
from sora_export.families.components import Clip, text_encoder, token_inputs, transformer_buckets
from sora_export.families.wan_facts import (
    TEXT_LENGTH,
    read_facts,
    transformer_config,
    transformer_folders,
    vae_config,
    vision_config,
)
from sora_export.families.wan_graphs import (
    BucketRotary,
    ConcatGraph,
    FirstFrameGraph,
    ImageEncoderGraph,
    TransformerGraph,
)
from sora_export.families.wan_vae import VaeChunk, VaeDecoderChunk, VaeEncoderChunk, cache_shapes, make_vae
from sora_export.onnx_from_torch import TorchGraph
from sora_runtime.errors import BundleError, InvalidRequest

__all__ = ["NAME", "PIPELINES", "RENAMINGS", "components", "read_facts"]

NAME = "wan"
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
RENAMINGS = original_names.WAN


def components(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Iterator[Component]:
    """Describes the encoders of text and picture, one or two transformers, and what of the VAE is used."""
    yield _text_encoder(checkpoint, facts)
    image = facts["image"] if "i2v" in shapes.tasks else None
    if image is not None and image["image_encoder"] is not None:
        yield _image_encoder(checkpoint)
    for folder in transformer_folders(checkpoint):
        yield _transformer(checkpoint, folder, facts, shapes)
    yield _vae(checkpoint, "vae_decoder", facts, shapes)
    if image is not None:
        yield _vae(checkpoint, "vae_encoder", facts, shapes)


def _text_encoder(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Component:
    config = checkpoint.json("text_encoder/config.json")
    length = facts["max_sequence_length"]
    # The states of padding are zero, as WanPipeline passes them on.
    make = partial(T5Graph, UMT5EncoderModel, config, zero_padding=True)
    outputs = {"encoder_hidden_states": [1, length, config["d_model"]]}
    graph = TorchGraph(make, token_inputs(length), list(outputs))
    compare = partial(parity.compare_text_encoder, config["vocab_size"], length)
    return text_encoder(checkpoint, "text_encoder", UMT5EncoderModel, graph, outputs, compare, clean=True)


def _image_encoder(checkpoint: Checkpoint) -> Component:
    config = vision_config(checkpoint)
    size = config.image_size
    stored = read_weights(checkpoint.weight_files("image_encoder"))
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in stored) else ""
    graph = TorchGraph(
        partial(ImageEncoderGraph, config.to_dict(), prefix), {"pixel_values": like(1, 3, size, size)}, ["image_embeds"]
    )
    return Component(
        name="image_encoder",
        folder="image_encoder",
        graphs={"image_encoder.onnx": graph},
        entry={"graph": "image_encoder.onnx"},
        load_reference=partial(load_transformers, CLIPVisionModel, checkpoint.root / "image_encoder"),
        compare=partial(parity.compare_image_encoder, size),
        fingerprinted=True,
    )


def _transformer(checkpoint: Checkpoint, folder: str, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = transformer_config(checkpoint, folder)
    image_shape = _image_embeds_shape(checkpoint, config)

    def describe(task: str, clip: Clip) -> TorchGraph | None:
        shape = _latent_shape(config, facts, clip)
        if task == "t2v":
            return _text_graph(config, facts, shape)
        if facts["image"]["policy"] == "first_frame" and shape[0] == 1:
            return None  # the clip is the picture
        return _image_graph(config, facts, shape, image_shape)

    graphs, buckets = transformer_buckets(folder, shapes, describe)
    if not buckets:
        raise InvalidRequest("num_frames = 1 leaves nothing to make of a picture; use 5 or more")
    return Component(
        name=folder,
        folder=folder,
        graphs=graphs,
        entry={"buckets": buckets},
        load_reference=loader(checkpoint, WanTransformer3DModel, folder),
        compare=partial(parity.compare_transformer, graphs, facts),
    )


def _latent_shape(
    config: Mapping[str, Any], facts: Mapping[str, Any], clip: tuple[int, int, int]
) -> tuple[int, int, int]:
    frames = (clip[0] - 1) // facts["temporal_stride"] + 1
    height, width = (size // facts["spatial_stride"] for size in clip[1:])
    positions = max(size // patch for size, patch in zip((frames, height, width), config["patch_size"], strict=True))
    if positions > config["rope_max_seq_len"]:
        raise BundleError(
            f"a clip of {clip[1]}x{clip[2]} and {clip[0]} frames has {positions} positions on an "
            f"axis, but the transformer knows {config['rope_max_seq_len']}; build a smaller one"
        )
    return frames, height, width


def _inputs(config: Mapping[str, Any], facts: Mapping[str, Any], shape: tuple[int, int, int]) -> dict[str, Tensor]:
    return {
        "hidden_states": like(1, facts["latent_channels"], *shape),
        "timestep": like(1),
        "encoder_hidden_states": like(1, facts["max_sequence_length"], config["text_dim"]),
    }


def _text_graph(config: Mapping[str, Any], facts: Mapping[str, Any], shape: tuple[int, int, int]) -> TorchGraph:
    make = partial(TransformerGraph, config, BucketRotary(config, shape))
    return TorchGraph(make, _inputs(config, facts, shape), ["model_output"])


def _image_graph(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    shape: tuple[int, int, int],
    image_shape: tuple[int, int] | None,
) -> TorchGraph:
    inputs, rotary = _inputs(config, facts, shape), BucketRotary(config, shape)
    if facts["image"]["policy"] == "first_frame":
        inputs["condition"] = like(1, facts["latent_channels"], 1, *shape[1:])
        return TorchGraph(partial(FirstFrameGraph, config, rotary), inputs, ["model_output"])
    inputs["condition"] = like(1, config["in_channels"] - facts["latent_channels"], *shape)
    if image_shape is not None:
        inputs["image_embeds"] = like(1, *image_shape)
        if facts["max_sequence_length"] != TEXT_LENGTH:
            raise BundleError(
                f"max_sequence_length = {facts['max_sequence_length']}, but a Wan model with image embeddings takes "
                f"{TEXT_LENGTH} tokens; remove it from sora_defaults.json"
            )
    tokens = 0 if image_shape is None else image_shape[0]
    return TorchGraph(partial(ConcatGraph, config, rotary, tokens), inputs, ["model_output"])


def _image_embeds_shape(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(tokens, channels): the class token and one for each patch of the image encoder's square."""
    if config["image_dim"] is None:
        return None
    vision = vision_config(checkpoint)
    if vision.hidden_size != config["image_dim"]:
        raise BundleError(
            f"the transformer of {checkpoint.root} takes image embeddings of {config['image_dim']}, but its image "
            f"encoder gives {vision.hidden_size}; the folders do not belong together"
        )
    return (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size


def _vae(checkpoint: Checkpoint, name: str, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = vae_config(checkpoint)
    graphs: dict[str, TorchGraph] = {}
    buckets = []
    for height, width in shapes.sizes:
        parts = _vae_graphs(config, name, facts, (height, width))
        files = {part: f"{name}.{height}x{width}.{part}.onnx" for part in parts}
        graphs |= {files[part]: graph for part, graph in parts.items()}
        buckets.append({"height": height, "width": width, "num_frames": None, "next": None, **files})
    compare = parity.compare_decoder if name == "vae_decoder" else parity.compare_encoder
    return Component(
        name=name,
        folder="vae",
        graphs=graphs,
        entry={"kind": "chunked", "buckets": buckets},
        load_reference=loader(checkpoint, AutoencoderKLWan, "vae"),
        compare=partial(compare, facts, buckets),
    )


def _vae_graphs(
    config: Mapping[str, Any], name: str, facts: Mapping[str, Any], size: tuple[int, int]
) -> dict[str, TorchGraph]:
    """The graphs of the first and of every later chunk; the first alone where one picture is encoded."""
    if name == "vae_decoder":
        height, width = (pixels // facts["spatial_stride"] for pixels in size)
        first = later = like(1, config["z_dim"], 1, height, width)
        chunk: type[VaeChunk] = VaeDecoderChunk
        take, give = "latents", "frames"
    else:
        first = like(1, 3, 1, *size)
        later = like(1, 3, facts["temporal_stride"], *size)
        chunk, take, give = VaeEncoderChunk, "frames", "latents"
    means = statistics(config["latents_mean"], config["latents_std"])
    if name == "vae_encoder" and facts["image"]["video"] == "first_only":
        return {"first": TorchGraph(partial(_make_chunk, config, chunk, means, []), {take: first}, [give])}
    caches = cache_shapes(config, chunk, first, later)
    make = partial(_make_chunk, config, chunk, means, caches)
    outputs = [give, *(f"cache_out.{i}" for i in range(len(caches)))]
    inputs = {f"cache_in.{i}": like(*shape) for i, shape in enumerate(caches)}
    return {
        "first": TorchGraph(make, {take: first}, outputs),
        "next": TorchGraph(make, {take: later, **inputs}, outputs),
    }


def _make_chunk(
    config: Mapping[str, Any],
    chunk: type[VaeChunk],
    means: tuple[Tensor, Tensor],
    caches: list[tuple[int, ...]],
) -> VaeChunk:
    return chunk(make_vae(config), means, caches)
