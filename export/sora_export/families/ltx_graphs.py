"""The LTX-Video transformer and its T5 text encoder as modules that export to small graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.onnx.ops
from diffusers import LTXVideoTransformer3DModel
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from torch import Tensor, nn
from transformers import T5EncoderModel

from sora_export.families.common import MASKED_SCORE, AxisRotary, T5Graph, rotate_pairs

_AXES = 3


class BucketRotary(AxisRotary):
    """LTXVideoRotaryPosEmbed for one shape bucket: the angles of frames, rows and columns by themselves.

    LTX turns the pairs of channels of all heads together (RoFormer, arXiv:2104.09864, eq. 34): after
    `identity` pairs that stay, every three neighbouring pairs turn by an angle of the frame, of the row
    and of the column of a token. The angles reach 15,000 radians, where float32 is coarse, hence they
    are diffusers' own numbers, one axis at a time.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        latent_shape: tuple[int, int, int],
        scale: tuple[float, float, float],
    ) -> None:
        super().__init__(latent_shape)
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        self.identity = dim % (2 * _AXES) // 2
        full = LTXVideoRotaryPosEmbed(dim)
        for axis, length in enumerate(latent_shape):
            along = [length if axis == other else 1 for other in range(_AXES)]
            tables = full(torch.zeros(1), *along, rope_interpolation_scale=scale)
            first = 2 * (self.identity + axis)  # both channels of a pair hold the same angle
            for kind, table in zip(("cos", "sin"), tables, strict=True):
                angles = table[0, :, first :: 2 * _AXES].clone()
                self.register_buffer(f"{kind}_{axis}", angles, persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all tokens, each [tokens, pairs]."""
        return self._in_order("cos", 1.0), self._in_order("sin", 0.0)

    def _in_order(self, kind: str, unturned: float) -> Tensor:
        turned = torch.stack(self.by_axis(kind), dim=-1).flatten(3).flatten(0, 2)
        if not self.identity:
            return turned
        return nn.functional.pad(turned, (self.identity, 0), value=unturned)


class TransformerGraph(nn.Module):
    """The transformer on latents as the sampler holds them; what differs by frame is done by frame.

    Inputs: hidden_states [1,C,T,h,w], timestep [1], encoder_hidden_states [1,L,D],
    encoder_attention_mask [1,L] of ones and zeros and, for image to video, condition [1,C,1,h,w].
    Output: model_output [1,C,T,h,w].

    For image to video diffusers embeds one timestep for each token: zero on the first frame, the
    scheduler's elsewhere. Here both are embedded once and each frame has a modulation [T, 1, width]. In
    text to video all tokens share one, [1, width].
    """

    def __init__(self, config: Mapping[str, Any], rotary: BucketRotary, image: bool) -> None:
        super().__init__()
        self.model = LTXVideoTransformer3DModel.from_config(dict(config))
        self.rotary = rotary
        self.image = image
        for name, module in list(self.model.named_modules()):
            if isinstance(module, RMSNorm):
                self.model.set_submodule(name, OneOperatorNorm(module))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The model's prediction for every latent frame; that of a given first frame has no meaning."""
        model = self.model
        if condition is not None:
            hidden_states = torch.cat([condition, hidden_states[:, :, 1:]], dim=2)
        frames = hidden_states.shape[2]
        tokens = hidden_states.flatten(2).squeeze(0).transpose(0, 1)
        x = model.proj_in(tokens)
        modulation, embedded = self._embed(timestep, frames)
        text = model.caption_projection(encoder_hidden_states.squeeze(0))
        # ONNX Runtime takes a mask with a row for every query.
        bias = ((1.0 - encoder_attention_mask) * MASKED_SCORE).expand(len(tokens), -1)
        rotary = self.rotary()
        for block in model.transformer_blocks:
            x = _block(block, x, modulation, text, rotary, bias)
        shift, scale = (model.scale_shift_table + embedded).chunk(2, dim=-2)
        output: Tensor = model.proj_out(_modulate(model.norm_out(x), scale, shift))
        return output.transpose(0, 1).reshape(hidden_states.shape)

    def _embed(self, timestep: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """The six modulations of a block [6,width] and the embedding [1,width]; by frame if image to video."""
        if self.image:
            timestep = timestep * torch.tensor([0.0, 1.0])
        modulation, embedded = self.model.time_embed(timestep, hidden_dtype=timestep.dtype)
        modulation = modulation.reshape(-1, 6, modulation.shape[1] // 6)
        if not self.image:
            return modulation.squeeze(0), embedded
        by_frame = [torch.cat([x[:1], x[1:].expand(frames - 1, -1, -1)]) for x in (modulation, embedded.unsqueeze(1))]
        return by_frame[0], by_frame[1]


def _block(
    block: Any,
    x: Tensor,
    modulation: Tensor,
    text: Tensor,
    rotary: tuple[Tensor, Tensor],
    bias: Tensor,
) -> Tensor:
    """LTXVideoTransformerBlock on x [tokens, width]."""
    shift, scale, gate, shift_ff, scale_ff, gate_ff = (block.scale_shift_table + modulation).chunk(6, dim=-2)
    modulated = _modulate(block.norm1(x), scale, shift)
    x = x + _scale(_attend(block.attn1, modulated, modulated, rotary, None), gate)
    x = x + _attend(block.attn2, x, text, None, bias)
    return x + _scale(block.ff(_modulate(block.norm2(x), scale_ff, shift_ff)), gate_ff)


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scales and shifts x [tokens, width] by [1, width] or, frame by frame, by [T, 1, width]."""
    if scale.dim() == 2:
        return x * (1 + scale) + shift
    return (x.reshape(len(scale), -1, x.shape[1]) * (1 + scale) + shift).reshape(x.shape)


def _scale(x: Tensor, gate: Tensor) -> Tensor:
    """Scales alone, likewise."""
    if gate.dim() == 2:
        return x * gate
    return (x.reshape(len(gate), -1, x.shape[1]) * gate).reshape(x.shape)


def _attend(
    attn: Any,
    x: Tensor,
    context: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
) -> Tensor:
    """LTXAttention as one `Attention` operator."""
    query, key, value = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(context)), attn.to_v(context)
    if rotary is not None:
        query, key = rotate_pairs(query, *rotary), rotate_pairs(key, *rotary)
    query, key, value = (part.reshape(1, -1, attn.heads, attn.head_dim).transpose(1, 2) for part in (query, key, value))
    output = torch.onnx.ops.attention(query, key, value, attn_mask=bias)[0]
    attended: Tensor = attn.to_out[0](output.transpose(1, 2).reshape(x.shape))
    return attended


class OneOperatorNorm(nn.Module):
    """diffusers' RMSNorm as one operator, on its own weight where it has one and on ones where not."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.eps, self.weight = norm.eps, norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis of x, whatever width the module was made for."""
        weight = torch.ones(x.shape[-1]) if self.weight is None else self.weight
        return nn.functional.rms_norm(x, x.shape[-1:], weight, self.eps)


class TextEncoderGraph(T5Graph):
    """input_ids, attention_mask int64 [1,L] -> encoder_hidden_states [1,L,D] and the mask as float32 [1,L].

    The pipeline gives no mask to T5, so padding takes part in its attention; the transformer is told
    which tokens to leave out.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(T5EncoderModel, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """What LTXPipeline's `encode_prompt` returns."""
        return self.encode(input_ids, None), attention_mask.to(torch.float32)
