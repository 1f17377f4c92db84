"""The Wan transformer and its UMT5 text encoder as modules that export to small graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.onnx.ops
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn
from transformers import AttentionInterface, UMT5Config, UMT5EncoderModel
from transformers.activations import NewGELUActivation
from transformers.models.umt5.modeling_umt5 import UMT5LayerNorm


class BucketRotary(nn.Module):
    """WanRotaryPosEmbed for one shape bucket: cosines and sines, each [1, tokens, 1, pairs].

    Wan turns each pair of channels by an angle that belongs to the frame, the row or the column of
    a token (RoFormer, arXiv:2104.09864, eq. 34). Stored are the angles of each axis by itself,
    [frames], [rows], [columns]; the table of all tokens, which at 480p is 33 MB, is put together in
    the graph.
    """

    def __init__(self, config: Mapping[str, Any], latent_shape: tuple[int, int, int]) -> None:
        super().__init__()
        full = WanRotaryPosEmbed(config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"])
        self.lengths = [size // patch for size, patch in zip(latent_shape, config["patch_size"], strict=True)]
        dims = [full.t_dim, full.h_dim, full.w_dim]
        # Both channels of a pair carry the same angle; diffusers reads cosines at the even and
        # sines at the odd ones.
        for kind, table, start in (("cos", full.freqs_cos, 0), ("sin", full.freqs_sin, 1)):
            for axis, part in enumerate(table.split(dims, dim=1)):
                angles = part[: self.lengths[axis], start::2].clone()
                self.register_buffer(f"{kind}_{axis}", angles, persistent=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Ignores its argument: the shape is that of the bucket."""
        return self._all_tokens("cos"), self._all_tokens("sin")

    def _all_tokens(self, kind: str) -> Tensor:
        parts = []
        for axis in range(3):
            view = [1, 1, 1, -1]
            view[axis] = self.lengths[axis]
            part: Tensor = getattr(self, f"{kind}_{axis}")
            parts.append(part.view(view).expand(*self.lengths, -1))
        return torch.cat(parts, dim=-1).flatten(0, 2)[None, :, None]


class _PairwiseAttention:
    """WanAttnProcessor with the rotation as arithmetic on pairs and one `Attention` operator.

    diffusers writes the rotated channels into an empty tensor, which exports to ScatterND with an
    index for each element.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert attention_mask is None and attn.add_k_proj is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(context)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = rotate_pairs(query, *rotary_emb), rotate_pairs(key, *rotary_emb)
        output = torch.onnx.ops.attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))[0]
        attended: Tensor = attn.to_out[0](output.transpose(1, 2).flatten(2, 3))
        return attended


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns neighbouring channels of x [1, tokens, heads, channels] by the angles of its token."""
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    return torch.stack((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1).flatten(-2)


class TransformerGraph(nn.Module):
    """hidden_states [1,C,T,h,w], timestep [1], encoder_hidden_states [1,L,D] -> model_output."""

    def __init__(self, config: Mapping[str, Any], rotary: BucketRotary) -> None:
        super().__init__()
        self.model = WanTransformer3DModel.from_config(dict(config))
        self.model.rope = rotary
        for block in self.model.blocks:
            block.attn1.processor = block.attn2.processor = _PairwiseAttention()

    def forward(self, hidden_states: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """The model's prediction for one timestep that all tokens share."""
        output: Tensor = self.model(hidden_states, timestep, embeds, return_dict=False)[0]
        return output


def _biased_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """UMT5's attention as one operator: relative positions and mask are added to the scores."""
    bias = position_bias
    if attention_mask is not None:
        bias = attention_mask if bias is None else bias + attention_mask
    output = torch.onnx.ops.attention(query, key, value, attn_mask=bias, scale=scaling)[0]
    return output.transpose(1, 2), None


_BIASED_ATTENTION = "sora_export_biased_attention"
AttentionInterface.register(_BIASED_ATTENTION, _biased_attention)


class TextEncoderGraph(nn.Module):
    """input_ids, attention_mask int64 [1,L] -> prompt_embeds [1,L,D], zero where the mask is."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        umt5 = UMT5Config.from_dict(dict(config))
        umt5.dtype = torch.float32
        umt5._attn_implementation = _BIASED_ATTENTION
        self.model = UMT5EncoderModel(umt5)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, NewGELUActivation):
                self.model.set_submodule(name, nn.GELU(approximate="tanh"))
            elif isinstance(module, UMT5LayerNorm):
                self.model.set_submodule(name, _rms_norm(module))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The hidden states as WanPipeline passes them on: cut to the prompt, padded with zeros."""
        keep = attention_mask.to(torch.float32)
        # Added to the scores of every head and query: a key that is masked gets no weight.
        scores = (1.0 - keep)[:, None, None, :] * torch.finfo(torch.float32).min
        hidden: Tensor = self.model(input_ids, scores).last_hidden_state
        return hidden * keep.unsqueeze(-1)


def _rms_norm(norm: UMT5LayerNorm) -> nn.RMSNorm:
    """The same norm as one operator, on the same parameter."""
    (size,) = norm.weight.shape
    equal = nn.RMSNorm(size, eps=norm.variance_epsilon)
    equal.weight = norm.weight
    return equal
