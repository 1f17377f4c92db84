"""What several families share: the edges of graphs, T5 encoders, rotations, and loading the references."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.onnx.ops
from diffusers import ModelMixin
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AttentionInterface, PreTrainedModel, T5EncoderModel, UMT5EncoderModel
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5Attention, UMT5LayerNorm
from transformers.utils import logging

from sora_export.checkpoint import Checkpoint
from sora_runtime.errors import BundleError

Float = NDArray[np.float32]

MASKED_SCORE = -3e4
"""What is added to the score of a masked key: its weight underflows to 0 in float32, and the number itself is
finite in float16, where the most negative float32 would be an infinity."""

BIASED_ATTENTION = "sora_export_biased_attention"
"""The name of `biased_attention` for the `_attn_implementation` of a transformers config."""

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which image processors are saved with."""


def like(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Stands for an input of that shape; takes no memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def with_defaults(model_class: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what a config saved by an older diffusers does not mention."""
    parameters = inspect.signature(model_class.__init__).parameters.values()  # type: ignore[misc]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**defaults, **config}


def statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel as float32 [1,C,1,1,1]."""
    shape = (1, -1, 1, 1, 1)
    return torch.tensor(mean, dtype=torch.float32).view(shape), torch.tensor(std, dtype=torch.float32).view(shape)


def normal(rng: np.random.Generator, shape: Sequence[int]) -> Float:
    """Seeded normal noise, float32."""
    return rng.standard_normal(tuple(shape)).astype(np.float32)


def loader(checkpoint: Checkpoint, model_class: type[ModelMixin], folder: str) -> Callable[[], nn.Module]:
    """A `Component.load_reference` for a diffusers model.

    Raises:
        BundleError: The folder has no safetensors weights.
    """
    return partial(load_diffusers, model_class, checkpoint.root / folder, checkpoint.weight_files(folder))


def load_diffusers(model_class: type[ModelMixin], folder: Path, files: Iterable[Path]) -> nn.Module:
    """A diffusers model in float32.

    Its own `from_pretrained` would need accelerate to keep some modules in float32; here all are.
    """
    model = model_class.from_config(model_class.load_config(folder))
    state = {key: value.float() for file in files for key, value in load_file(file).items()}
    model.load_state_dict(state, assign=True)
    return cast(nn.Module, model.eval())


def load_transformers(model_class: type[PreTrainedModel], folder: Path) -> nn.Module:
    """A transformers model in float32 with its own attention, from safetensors."""
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = model_class.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    finally:
        if bar:
            logging.enable_progress_bar()
    return cast(nn.Module, model.eval())


def read_pixel_input(checkpoint: Checkpoint, folder: str) -> dict[str, Any]:
    """What a CLIP-like image processor does to a picture: size, mean, std, resample, crop for bundle.json.

    Raises:
        BundleError: It does something else too, or leaves one of its steps out.
    """
    config = {"rescale_factor": 1 / 255, **checkpoint.json(f"{folder}/preprocessor_config.json")}
    size, crop = config.get("size"), config.get("crop_size")
    sides = size if isinstance(size, dict) else {"shortest_edge": size}
    centre = bool(config.get("do_center_crop", False))
    wanted = crop if centre else sides
    square = wanted if isinstance(wanted, dict) else {"height": wanted, "width": wanted}
    side = square.get("height")
    plain = all(config.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize"))
    fits = sides.get("shortest_edge") == side if centre else "shortest_edge" not in sides
    if not plain or not fits or side is None or square.get("width") != side or config.get("do_pad"):
        raise BundleError(
            f"{checkpoint.root / folder}/preprocessor_config.json resizes to {size} and crops to {crop}; only pictures "
            "resized, cut to a square and normalised can be built"
        )
    if abs(config["rescale_factor"] * 255 - 1) > 1e-6 or config.get("resample") not in _RESAMPLE:
        raise BundleError(
            f"{checkpoint.root / folder}/preprocessor_config.json has rescale_factor = {config['rescale_factor']} and "
            f"resample = {config.get('resample')}; use 1/255 and one of {list(_RESAMPLE)}"
        )
    return {
        "size": side,
        "mean": config["image_mean"],
        "std": config["image_std"],
        "resample": _RESAMPLE[config["resample"]],
        "crop": "center" if centre else None,
    }


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns neighbouring channels of x [..., heads, channels] by the angles of its token, as one operator.

    Args:
        x: Queries or keys; channels 2i and 2i+1 form a pair (RoFormer, arXiv:2104.09864, eq. 34).
        cos: Cosines [..., 1, channels / 2] for all heads alike, or one for every pair of x.
        sin: Sines of the same shape.
    """
    heads = 1 if cos.shape[:-1] == x.shape[:-1] else x.shape[-2]
    tokens = x.shape[:-1].numel() // heads
    table = (1, tokens, x.shape[-1] // 2)
    rows, cos, sin = x.reshape(1, tokens, -1), cos.reshape(table), sin.reshape(table)
    turned: Tensor = torch.onnx.ops.rotary_embedding(rows, cos, sin, num_heads=heads, interleaved=True)
    return turned.reshape(x.shape)


class AxisRotary(nn.Module):
    """The angles of one shape bucket, stored for each axis by itself: [frames], [rows], [columns].

    The table of all tokens, which at 480p is 33 MB, is put together in the graph. Those that derive register the
    buffers `cos_0` to `sin_2`, each [length of the axis, pairs of channels].
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.lengths = tuple(lengths)

    def by_axis(self, kind: str) -> list[Tensor]:
        """The "cos" or "sin" of all tokens, for each axis [frames, rows, columns, pairs]."""
        parts = []
        for axis, length in enumerate(self.lengths):
            view = [1, 1, 1, -1]
            view[axis] = length
            part: Tensor = getattr(self, f"{kind}_{axis}")
            parts.append(part.view(view).expand(*self.lengths, -1))
        return parts

    def all_tokens(self, kind: str) -> Tensor:
        """The "cos" or "sin" of all tokens [frames * rows * columns, pairs of all axes]."""
        return torch.cat(self.by_axis(kind), dim=-1).flatten(0, 2)


def biased_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """A transformers attention as one operator; relative positions and mask are added to the scores.

    The mask, if any, must be additive and float32; without `scaling` the operator's 1/sqrt(d) holds.
    """
    bias = position_bias
    if attention_mask is not None:
        bias = attention_mask if bias is None else bias + attention_mask
    output = torch.onnx.ops.attention(query, key, value, attn_mask=bias, scale=scaling)[0]
    return output.transpose(1, 2), None


AttentionInterface.register(BIASED_ATTENTION, biased_attention)


def masked_scores(attention_mask: Tensor) -> Tensor:
    """int64 or float32 mask [1,L] of ones and zeros -> additive float32 [1,1,1,L] for keys."""
    return (1.0 - attention_mask.to(torch.float32))[:, None, None, :] * MASKED_SCORE


class T5Graph(nn.Module):
    """input_ids int64 [1,L] and perhaps attention_mask int64 [1,L] -> last hidden state [1,L,D].

    Give the mask as a second graph input where the pipeline gives it to the encoder; with
    `zero_padding` the states of masked tokens become zero. For more outputs or another treatment of
    them, derive and call `encode`.
    """

    def __init__(
        self,
        model_class: type[T5EncoderModel] | type[UMT5EncoderModel],
        config: Mapping[str, Any],
        *,
        zero_padding: bool = False,
    ) -> None:
        super().__init__()
        settings = cast(Any, model_class.config_class).from_dict(dict(config))
        settings.dtype = torch.float32
        settings._attn_implementation = BIASED_ATTENTION
        self.model = model_class(settings)
        self.zero_padding = zero_padding
        for name, module in list(self.model.named_modules()):
            if isinstance(module, (T5Attention, UMT5Attention)) and module.has_relative_attention_bias:
                # Set past nn.Module: what is not of the checkpoint must not become a part of it.
                object.__setattr__(module, "compute_bias", _RelativeBias(module))
            elif isinstance(module, NewGELUActivation):
                self.model.set_submodule(name, nn.GELU(approximate="tanh"))
            elif isinstance(module, (T5LayerNorm, UMT5LayerNorm)):
                self.model.set_submodule(name, rms_norm(module.weight, module.variance_epsilon))

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The last hidden state; the mask keeps padding out of the attention."""
        scores = None if attention_mask is None else masked_scores(attention_mask)
        hidden: Tensor = self.model(input_ids, scores).last_hidden_state
        return hidden

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The last hidden state, zero at padding if so built."""
        hidden = self.encode(input_ids, attention_mask)
        if self.zero_padding:
            assert attention_mask is not None, "zero_padding needs the mask as a graph input"
            hidden = hidden * attention_mask.to(torch.float32).unsqueeze(-1)
        return hidden


class _RelativeBias:
    """T5's `compute_bias` with the buckets of all distances as a small table that torch made.

    transformers takes logarithms of an [L,L] table of distances; in the graph an engine that rounds
    one of them differently would put a distance into another bucket.
    """

    def __init__(self, attention: Any) -> None:
        self.reach = attention.relative_attention_max_distance
        with unset_fake_temporarily():
            distances = torch.arange(-self.reach, self.reach + 1)
            if isinstance(attention, UMT5Attention):
                buckets = attention._relative_position_bucket(distances)
            else:
                sizes = (attention.relative_attention_num_buckets, self.reach)
                buckets = attention._relative_position_bucket(distances, True, *sizes)
        attention.register_buffer("distance_buckets", buckets, persistent=False)
        # Not its weight: tracing puts another tensor in the place of that.
        self.attention = attention

    def __call__(self, query_length: int, key_length: int, **_: Any) -> Tensor:
        """The bias [1, heads, L, L] of key minus query position; beyond `reach` it stays the same."""
        length = query_length
        assert key_length == length
        far = max(length - self.reach, 0)
        near = length - far
        buckets: Tensor = self.attention.distance_buckets
        back, ahead = buckets[self.reach - near : self.reach], buckets[self.reach : self.reach + near]
        # By distance 0, 1 .. L-1, -L .. -1: row q of the matrix is this ring turned by q.
        ring = torch.cat((ahead, ahead[-1:].expand(far), back[:1].expand(far), back) if far else (ahead, back))
        turns = ring.expand(length, 2 * length).flatten()[: length * (2 * length - 1)]
        index = turns.view(length, 2 * length - 1)[:, :length].flatten()
        return torch.index_select(self.attention.relative_attention_bias.weight.t(), 1, index).view(
            1, -1, length, length
        )


def rms_norm(weight: nn.Parameter, eps: float) -> nn.RMSNorm:
    """An RMS norm over the last axis on that parameter, which exports to one operator."""
    (size,) = weight.shape
    norm = nn.RMSNorm(size, eps=eps)
    norm.weight = weight
    return norm
