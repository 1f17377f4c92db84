"""The HunyuanVideo 1.5 transformer as a module that exports to one clean graph for each bucket and task.

diffusers moves the valid text tokens in front of the padding before its blocks. No position belongs to a text
token there and all that follows treats tokens alike, so the order is free: here every token stays where it is
and padding is masked as a key. The states of padding, which nothing reads, are all that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.onnx.ops
from diffusers import HunyuanVideo15Transformer3DModel
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from sora_export.families.common import masked_scores, rms_norm, rotate_pairs
from sora_export.families.hunyuan_graphs import Angles, BucketRotary

_TEXT, _GLYPHS, _IMAGE = range(3)
"""Rows of `cond_type_embed`: what a token that is no latent stands for."""


class TransformerGraph(nn.Module):
    """hidden_states [1,C,T,h,w], timestep [1] and the inputs of `names` -> model_output [1,C,T,h,w].

    With `condition` [1,C+1,T,h,w] (the picture's latents and a mask) and `image_embeds` [1,n,D] a clip begins
    with a picture. Without them both are zero in diffusers, whose attention then masks the picture's tokens:
    here those tokens and the channels of the first layer that would meet zeros are left out.
    """

    def __init__(self, config: Mapping[str, Any], rotary: BucketRotary, names: Sequence[str]) -> None:
        super().__init__()
        self.model = HunyuanVideo15Transformer3DModel.from_config(dict(config))
        self.rotary = rotary
        self.names = list(names)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, RMSNorm):
                assert isinstance(module.weight, nn.Parameter)
                self.model.set_submodule(name, rms_norm(module.weight, module.eps))
        for block in self.model.transformer_blocks:
            block.attn.processor = _JointAttention()
        for block in self.model.context_embedder.token_refiner.refiner_blocks:
            block.attn.processor = _TextAttention()

    def forward(self, hidden_states: Tensor, timestep: Tensor, *rest: Tensor) -> Tensor:
        """The model's prediction; `rest` are the inputs of `names`, in order."""
        given = dict(zip(self.names, rest, strict=True))
        model = self.model
        x = self._patches(hidden_states, given.get("condition"))
        temb = model.time_embed(timestep)
        text, valid = self._context(given, timestep)
        every = torch.cat((torch.ones(1, x.shape[1]), valid), dim=1)
        scores = _for_queries(masked_scores(every))
        angles = self.rotary()
        for block in model.transformer_blocks:
            x, text = block(x, text, temb, scores, angles)
        return self._unpatch(model.proj_out(model.norm_out(x, temb)))

    def _patches(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """The tokens [1,N,D] of the latents."""
        layer = self.model.x_embedder.proj
        if condition is None:
            weight = layer.weight[:, : latents.shape[1]]
            x = nn.functional.conv3d(latents, weight, layer.bias, stride=layer.stride)
        else:
            x = layer(torch.cat((latents, condition), dim=1))
        return x.flatten(2).transpose(1, 2)

    def _context(self, given: Mapping[str, Tensor], timestep: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens that are no latents [1,L,D] and which of them count [1,L]."""
        model, kinds = self.model, self.model.cond_type_embed.weight
        mask, mask_2 = given["encoder_attention_mask"], given["encoder_attention_mask_2"]
        text = _refine(model.context_embedder, given["encoder_hidden_states"], timestep, mask)
        glyphs = model.context_embedder_2(given["encoder_hidden_states_2"])
        tokens, valid = [glyphs + kinds[_GLYPHS], text + kinds[_TEXT]], [mask_2, mask]
        if "image_embeds" in given:
            image = model.image_embedder(given["image_embeds"]) + kinds[_IMAGE]
            tokens, valid = [image, *tokens], [torch.ones(1, image.shape[1]), *valid]
        return torch.cat(tokens, dim=1), torch.cat(valid, dim=1)

    def _unpatch(self, tokens: Tensor) -> Tensor:
        rotary = self.rotary
        x = tokens.reshape(*rotary.lengths, -1, *rotary.steps).permute(3, 0, 4, 1, 5, 2, 6)
        sizes = [length * step for length, step in zip(rotary.lengths, rotary.steps, strict=True)]
        return x.reshape(1, -1, *sizes)


def _refine(refiner: Any, states: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
    """The token refiner: the text encoder's states [1,L,D] -> text tokens, by attention among themselves."""
    weights = mask.unsqueeze(-1)
    pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
    temb = refiner.time_text_embed(timestep, pooled)
    x: Tensor = refiner.proj_in(states)
    scores = _for_queries(masked_scores(mask))
    for block in refiner.token_refiner.refiner_blocks:
        x = block(x, temb, scores)
    return x


class _JointAttention:
    """HunyuanVideo15AttnProcessor2_0 as one `Attention` operator; `attention_mask` is added to the scores."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Angles,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _heads(attn, hidden_states, attn.to_q, attn.to_k, attn.to_v)
        q, k = (rotate_pairs(norm(part), *image_rotary_emb) for norm, part in ((attn.norm_q, q), (attn.norm_k, k)))
        text_q, text_k, text_v = _heads(attn, encoder_hidden_states, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        q, k, v = (torch.cat(pair, dim=1) for pair in ((q, text_q), (k, text_k), (v, text_v)))
        counts = [hidden_states.shape[1], encoder_hidden_states.shape[1]]
        output, text_output = torch.split(_attend(q, k, v, attention_mask), counts, dim=1)
        return attn.to_out[0](output), attn.to_add_out(text_output)


class _TextAttention:
    """Attention among text tokens as one operator; `attention_mask` is added to the scores."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is None and attention_mask is not None
        heads = _heads(attn, hidden_states, attn.to_q, attn.to_k, attn.to_v)
        output: Tensor = attn.to_out[0](_attend(*heads, attention_mask))
        return output


def _heads(attn: Any, x: Tensor, *projections: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [1, tokens, heads, channels]."""
    q, k, v = (projection(x).unflatten(2, (attn.heads, -1)) for projection in projections)
    return q, k, v


def _for_queries(scores: Tensor) -> Tensor:
    """[1,1,1,keys] -> [1,1,keys,keys]: ONNX Runtime takes no mask with one row for all queries.

    All blocks share this one `Expand`. TensorRT takes the row itself and is better given it: the result of
    the `Expand` is of keys^2 values.
    """
    return scores.expand(-1, -1, scores.shape[3], -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
    """One `Attention` operator; [1, tokens, heads, channels] each -> [1, tokens, heads * channels]."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    output = torch.onnx.ops.attention(query, key, value, attn_mask=scores)[0]
    return output.transpose(1, 2).flatten(2, 3)
