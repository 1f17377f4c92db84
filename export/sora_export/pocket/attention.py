"""Attention for training on short sequences: the arithmetic of diffusers' WanAttnProcessor as two matrix products.

For a hundred tokens the fused attention of PyTorch spends half of a CPU training step in its backward pass;
plain products are several times faster there. Inference keeps the processor that diffusers installs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor


class PlainAttention:
    """An attention processor for WanAttention without image conditioning; set it with `use_plain_attention`."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, D]; `rotary_emb` holds cosines and sines, each [1, N, 1, head_dim]."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query = F.rms_norm(query, attn.norm_q.normalized_shape, attn.norm_q.weight.to(query.dtype), attn.norm_q.eps)
        key = F.rms_norm(key, attn.norm_k.normalized_shape, attn.norm_k.weight.to(key.dtype), attn.norm_k.eps)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
        output = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[0](output)
        return projected


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


def use_plain_attention(transformer: WanTransformer3DModel) -> None:
    """Install PlainAttention in every block of `transformer`."""
    for block in transformer.blocks:
        block.attn1.set_processor(PlainAttention())
        block.attn2.set_processor(PlainAttention())
