"""The Wan family (2.1 and 2.2, text to video): which modules become which graphs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from torch import Tensor

from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Shapes
from sora_export.families import wan_parity as parity
from sora_export.families.wan_graphs import BucketRotary, TextEncoderGraph, TransformerGraph
from sora_export.families.wan_vae import (
    VaeChunk,
    VaeDecoderChunk,
    VaeEncoderChunk,
    cache_shapes,
    make_vae,
)
from sora_export.onnx_from_torch import TorchGraph
from sora_runtime.errors import BundleError

NAME = "wan"
PIPELINES = ("WanPipeline",)
_CLASSES = {
    "text_encoder": "UMT5EncoderModel",
    "transformer": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
}


def read_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads bundle.json's "facts"; what no config states are the defaults of the Wan release.

    Raises:
        BundleError: A component is missing, is of another class, or does not fit the others.
    """
    for folder, name in _CLASSES.items():
        if checkpoint.class_of(folder) != name:
            raise BundleError(
                f"{folder} of {checkpoint.root} is {checkpoint.class_of(folder)}, not {name}; "
                "give a text-to-video Wan checkpoint"
            )
    vae, transformer = _vae_config(checkpoint), _transformer_config(checkpoint, "transformer")
    text = checkpoint.json("text_encoder/config.json")
    scheduler = checkpoint.json("scheduler/scheduler_config.json")
    _check_fit(checkpoint, vae, transformer, text)
    expand_timesteps = bool(checkpoint.index.get("expand_timesteps", False))
    return {
        "latent_channels": vae["z_dim"],
        "spatial_stride": vae["scale_factor_spatial"],
        "temporal_stride": vae["scale_factor_temporal"],
        "patch_size": list(transformer["patch_size"]),
        "fps": 24.0 if expand_timesteps else 16.0,
        "latents_mean": vae["latents_mean"],
        "latents_std": vae["latents_std"],
        "max_sequence_length": 512,
        "text_dim": transformer["text_dim"],
        "pad_token_id": text.get("pad_token_id", 0),
        "boundary_ratio": checkpoint.index.get("boundary_ratio"),
        "expand_timesteps": expand_timesteps,
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "defaults": {"num_inference_steps": 50, "guidance_scale": 5.0, "negative_prompt": ""},
    }


def components(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Iterator[Component]:
    """Describes the text encoder, one or two transformers, and the two halves of the VAE."""
    yield _text_encoder(checkpoint, facts)
    for folder in ("transformer", "transformer_2"):
        if checkpoint.class_of(folder) is not None:
            yield _transformer(checkpoint, folder, facts, shapes)
    for name in ("vae_decoder", "vae_encoder"):
        yield _vae(checkpoint, name, facts, shapes)


def _text_encoder(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Component:
    config = checkpoint.json("text_encoder/config.json")
    length = facts["max_sequence_length"]
    inputs = {
        "input_ids": torch.empty(1, length, dtype=torch.int64),
        "attention_mask": torch.empty(1, length, dtype=torch.int64),
    }
    graph = TorchGraph(partial(TextEncoderGraph, config), inputs, ["prompt_embeds"])
    return Component(
        name="text_encoder",
        folder="text_encoder",
        graphs={"text_encoder.onnx": graph},
        entry={"graph": "text_encoder.onnx"},
        load_reference=partial(parity.load_text_encoder, checkpoint.root),
        compare=partial(parity.compare_text_encoder, config["vocab_size"], length),
        fingerprinted=True,
    )


def _transformer(checkpoint: Checkpoint, folder: str, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = _transformer_config(checkpoint, folder)
    graphs, buckets = {}, []
    for height, width in shapes.sizes:
        for num_frames in shapes.num_frames:
            file = f"{folder}.{height}x{width}x{num_frames}.onnx"
            graphs[file] = _transformer_graph(config, facts, (num_frames, height, width))
            bucket = {"height": height, "width": width, "num_frames": num_frames, "graph": file}
            buckets.append(bucket)
    return Component(
        name=folder,
        folder=folder,
        graphs=graphs,
        entry={"buckets": buckets},
        load_reference=_loader(checkpoint, WanTransformer3DModel, folder),
        compare=partial(parity.compare_transformer, graphs),
    )


def _transformer_graph(config: Mapping[str, Any], facts: Mapping[str, Any], clip: tuple[int, int, int]) -> TorchGraph:
    frames = (clip[0] - 1) // facts["temporal_stride"] + 1
    height, width = (size // facts["spatial_stride"] for size in clip[1:])
    positions = max(size // patch for size, patch in zip((frames, height, width), config["patch_size"], strict=True))
    if positions > config["rope_max_seq_len"]:
        raise BundleError(
            f"a clip of {clip[1]}x{clip[2]} and {clip[0]} frames has {positions} positions on an "
            f"axis, but the transformer knows {config['rope_max_seq_len']}; build a smaller one"
        )
    inputs = {
        "hidden_states": _like(1, config["in_channels"], frames, height, width),
        "timestep": _like(1),
        "encoder_hidden_states": _like(1, facts["max_sequence_length"], config["text_dim"]),
    }
    rotary = BucketRotary(config, (frames, height, width))
    return TorchGraph(partial(TransformerGraph, config, rotary), inputs, ["model_output"])


def _vae(checkpoint: Checkpoint, name: str, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = _vae_config(checkpoint)
    graphs: dict[str, TorchGraph] = {}
    buckets = []
    for height, width in shapes.sizes:
        files = {part: f"{name}.{height}x{width}.{part}.onnx" for part in ("first", "next")}
        pair = _vae_graphs(config, name, facts, (height, width))
        graphs.update(zip(files.values(), pair, strict=True))
        buckets.append({"height": height, "width": width, **files})
    compare = parity.compare_decoder if name == "vae_decoder" else parity.compare_encoder
    return Component(
        name=name,
        folder="vae",
        graphs=graphs,
        entry={"buckets": buckets},
        load_reference=_loader(checkpoint, AutoencoderKLWan, "vae"),
        compare=partial(compare, facts, buckets),
    )


def _vae_graphs(
    config: Mapping[str, Any], name: str, facts: Mapping[str, Any], size: tuple[int, int]
) -> tuple[TorchGraph, TorchGraph]:
    """The graphs of the first and of every later chunk of the decoder or encoder."""
    if name == "vae_decoder":
        height, width = (pixels // facts["spatial_stride"] for pixels in size)
        first = later = _like(1, config["z_dim"], 1, height, width)
        chunk: type[VaeChunk] = VaeDecoderChunk
        input_name, output_name = "latents", "frames"
    else:
        first = _like(1, 3, 1, *size)
        later = _like(1, 3, facts["temporal_stride"], *size)
        chunk, input_name, output_name = VaeEncoderChunk, "frames", "latents"
    caches = cache_shapes(config, chunk, first, later)
    make = partial(_make_chunk, config, chunk, _statistics(config), caches)
    outputs = [output_name, *(f"cache_out.{i}" for i in range(len(caches)))]
    inputs = {f"cache_in.{i}": _like(*shape) for i, shape in enumerate(caches)}
    return (
        TorchGraph(make, {input_name: first}, outputs),
        TorchGraph(make, {input_name: later, **inputs}, outputs),
    )


def _make_chunk(
    config: Mapping[str, Any],
    chunk: type[VaeChunk],
    statistics: tuple[Tensor, Tensor],
    caches: list[tuple[int, ...]],
) -> VaeChunk:
    return chunk(make_vae(config), statistics, caches)


def _like(*shape: int) -> Tensor:
    """Stands for a float32 input of that shape; takes no memory."""
    return torch.empty(shape, device="meta")


def _statistics(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    shape = (1, config["z_dim"], 1, 1, 1)
    return (
        torch.tensor(config["latents_mean"]).view(shape),
        torch.tensor(config["latents_std"]).view(shape),
    )


def _loader(checkpoint: Checkpoint, model_class: type[ModelMixin], folder: str) -> Callable[[], torch.nn.Module]:
    files = checkpoint.weight_files(folder)
    return partial(parity.load_diffusers, model_class, checkpoint.root / folder, files)


def _vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return _with_defaults(AutoencoderKLWan, checkpoint.json("vae/config.json"))


def _transformer_config(checkpoint: Checkpoint, folder: str) -> dict[str, Any]:
    return _with_defaults(WanTransformer3DModel, checkpoint.json(f"{folder}/config.json"))


def _with_defaults(model: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what a config saved by an older diffusers does not mention."""
    parameters = inspect.signature(model.__init__).parameters.values()  # type: ignore[misc]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**defaults, **config}


def _check_fit(
    checkpoint: Checkpoint,
    vae: Mapping[str, Any],
    transformer: Mapping[str, Any],
    text: Mapping[str, Any],
) -> None:
    root = checkpoint.root
    strides = {
        "scale_factor_spatial": 2 ** (len(vae["dim_mult"]) - 1) * (vae["patch_size"] or 1),
        "scale_factor_temporal": 2 ** sum(vae["temperal_downsample"]),
    }
    for key, stride in strides.items():
        if vae[key] != stride:
            raise BundleError(
                f"{root}/vae/config.json says {key} = {vae[key]}, but its layers make it {stride}; correct the file"
            )
    if transformer["in_channels"] != vae["z_dim"] or transformer["image_dim"] is not None:
        raise BundleError(
            f"the transformer of {root} takes {transformer['in_channels']} channels and image "
            f"embeddings of {transformer['image_dim']}, but latents have {vae['z_dim']} channels; "
            "give a text-to-video checkpoint, not image-to-video"
        )
    if transformer["text_dim"] != text.get("d_model"):
        raise BundleError(
            f"the transformer of {root} takes prompt_embeds of {transformer['text_dim']}, but its "
            f"text encoder gives {text.get('d_model')}; the folders do not belong together"
        )
    if not math.prod(transformer["patch_size"]):
        raise BundleError(f"{root}/transformer/config.json has a patch_size of 0; correct the file")
