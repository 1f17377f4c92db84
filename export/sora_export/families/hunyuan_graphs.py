"""The HunyuanVideo transformer as a module that exports to one clean graph for each shape bucket.

The forward passes are written out on diffusers' submodules. Text and picture stay one sequence through the
single-stream blocks, where diffusers cuts and joins it several times a block, and every attention is one
operator with a mask on its keys: padding is masked for every query, so that the states of padded text, which
nothing reads, are all that differs from diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.onnx.ops
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from sora_export.families.common import AxisRotary, masked_scores, rms_norm, rotate_pairs

Angles = tuple[Tensor, Tensor]
"""Cosines and sines, each [1, tokens, 1, channels / 2]."""


class BucketRotary(AxisRotary):
    """HunyuanVideoRotaryPosEmbed for one shape bucket, with angles of zero for the text behind the picture.

    Version 1.5 turns the picture by the same angles (RoFormer, arXiv:2104.09864, eq. 34) and leaves out the text.

    Args:
        config: The transformer's; `rope_axes_dim` splits the channels of a head among the three axes.
        latent_shape: (frames, rows, columns) of the latents.
        text_tokens: How many tokens without a position follow.
    """

    def __init__(self, config: Mapping[str, Any], latent_shape: tuple[int, int, int], text_tokens: int = 0) -> None:
        steps = (config["patch_size_t"], config["patch_size"], config["patch_size"])
        super().__init__([size // step for size, step in zip(latent_shape, steps, strict=True)])
        self.steps = steps
        self.text_tokens = text_tokens
        for axis, dim in enumerate(config["rope_axes_dim"]):
            positions = torch.arange(self.lengths[axis], dtype=torch.float32)
            tables = get_1d_rotary_pos_embed(dim, positions, config["rope_theta"], use_real=True)
            for kind, table in zip(("cos", "sin"), tables, strict=True):
                # Both channels of a pair carry the same angle.
                self.register_buffer(f"{kind}_{axis}", table[:, ::2].clone(), persistent=False)

    def forward(self) -> Angles:
        """The angles of all tokens, the text's last."""
        return self._with_text("cos", 1.0), self._with_text("sin", 0.0)

    def _with_text(self, kind: str, of_text: float) -> Tensor:
        table = self.all_tokens(kind)
        if self.text_tokens:
            table = torch.cat((table, torch.full((self.text_tokens, table.shape[1]), of_text)))
        return table[None, :, None]


class TransformerGraph(nn.Module):
    """hidden_states [1,C,T,h,w], timestep [1] and the inputs of `names` -> model_output [1,C,T,h,w].

    With `condition` the clip begins with a picture: as channels beside the latents (`latent_concat`), or in the
    place of the first latent frame, whose tokens are then those of timestep 0 (`token_replace`).
    """

    def __init__(self, config: Mapping[str, Any], rotary: BucketRotary, names: Sequence[str]) -> None:
        super().__init__()
        self.model = HunyuanVideoTransformer3DModel.from_config(dict(config))
        self.rotary = rotary
        self.names = list(names)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, RMSNorm):
                assert isinstance(module.weight, nn.Parameter)
                self.model.set_submodule(name, rms_norm(module.weight, module.eps))

    def forward(self, hidden_states: Tensor, timestep: Tensor, *rest: Tensor) -> Tensor:
        """The model's prediction; `rest` are the inputs of `names`, in order."""
        given = dict(zip(self.names, rest, strict=True))
        mask, model = given["encoder_attention_mask"], self.model
        latents = self._with_condition(hidden_states, given.get("condition"))
        angles = self.rotary()
        emb, emb_first = model.time_text_embed(timestep, given["pooled_projections"], given.get("guidance"))
        # Row 0 modulates all tokens, or all but those of the first frame, which row 1 modulates.
        embs = nn.functional.silu(emb if emb_first is None else torch.cat((emb, emb_first)))
        first = self.rotary.lengths[1] * self.rotary.lengths[2]
        x = model.x_embedder(latents)
        text = _refine(model.context_embedder, given["encoder_hidden_states"], timestep, mask)
        scores = _for_queries(torch.cat((torch.zeros(1, 1, 1, x.shape[1]), masked_scores(mask)), dim=-1))
        for block in model.transformer_blocks:
            x, text = _double_block(block, x, text, embs, first, angles, scores)
        joint = torch.cat((x, text), dim=1)
        for block in model.single_transformer_blocks:
            joint = _single_block(block, joint, embs, first, angles, scores)
        output = model.proj_out(model.norm_out(joint[:, : x.shape[1]], emb))
        return self._unpatch(output)

    def _with_condition(self, hidden_states: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            return hidden_states
        if self.model.config.image_condition_type == "token_replace":
            return torch.cat((condition, hidden_states[:, :, 1:]), dim=2)
        return torch.cat((hidden_states, condition), dim=1)

    def _unpatch(self, tokens: Tensor) -> Tensor:
        x = tokens.reshape(1, *self.rotary.lengths, -1, *self.rotary.steps).permute(0, 4, 1, 5, 2, 6, 3, 7)
        sizes = [length * step for length, step in zip(self.rotary.lengths, self.rotary.steps, strict=True)]
        return x.reshape(1, -1, *sizes)


def _refine(refiner: Any, states: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
    """The token refiner: the text encoder's states [1,L,D] -> text tokens, by attention among themselves."""
    weights = mask.unsqueeze(-1)
    pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
    emb = nn.functional.silu(refiner.time_text_embed(timestep, pooled))
    x: Tensor = refiner.proj_in(states)
    scores = _for_queries(masked_scores(mask))
    for block in refiner.token_refiner.refiner_blocks:
        gate_attn, gate_mlp = _rows(block.norm_out, emb, 2)
        normed = block.norm1(x)
        q, k, v = _heads(block.attn, normed, block.attn.to_q, block.attn.to_k, block.attn.to_v)
        x = x + block.attn.to_out[0](_attend(q, k, v, scores)) * gate_attn
        x = x + block.ff(block.norm2(x)) * gate_mlp
    return x


def _double_block(
    block: Any, x: Tensor, text: Tensor, embs: Tensor, first: int, angles: Angles, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """A block with weights of its own for picture tokens x [1,N,D] and text [1,L,D], which attend jointly."""
    attn = block.attn
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _rows(block.norm1, embs, 6)
    c_shift, c_scale, c_gate, c_shift_mlp, c_scale_mlp, c_gate_mlp = _rows(block.norm1_context, embs[:1], 6)
    normed = _modulate(block.norm1.norm(x), shift, scale, first)
    c_normed = _modulate(block.norm1_context.norm(text), c_shift, c_scale, first)
    picture = _normed(_heads(attn, normed, attn.to_q, attn.to_k, attn.to_v), attn.norm_q, attn.norm_k)
    words = _heads(attn, c_normed, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    words = _normed(words, attn.norm_added_q, attn.norm_added_k)
    q, k, v = (torch.cat(pair, dim=1) for pair in zip(picture, words, strict=True))
    attended = _attend(rotate_pairs(q, *angles), rotate_pairs(k, *angles), v, scores)
    count = x.shape[1]
    x = x + _gated(attn.to_out[0](attended[:, :count]), gate, first)
    text = text + _gated(attn.to_add_out(attended[:, count:]), c_gate, first)
    x = x + _gated(block.ff(_modulate(block.norm2(x), shift_mlp, scale_mlp, first)), gate_mlp, first)
    c_mlp = block.ff_context(_modulate(block.norm2_context(text), c_shift_mlp, c_scale_mlp, first))
    return x, text + _gated(c_mlp, c_gate_mlp, first)


def _single_block(block: Any, x: Tensor, embs: Tensor, first: int, angles: Angles, scores: Tensor) -> Tensor:
    """A block in which attention and feed-forward run side by side on picture and text together."""
    attn = block.attn
    shift, scale, gate = _rows(block.norm, embs, 3)
    normed = _modulate(block.norm.norm(x), shift, scale, first)
    q, k, v = _normed(_heads(attn, normed, attn.to_q, attn.to_k, attn.to_v), attn.norm_q, attn.norm_k)
    attended = _attend(rotate_pairs(q, *angles), rotate_pairs(k, *angles), v, scores)
    mlp = block.act_mlp(block.proj_mlp(normed))
    return x + _gated(block.proj_out(torch.cat((attended, mlp), dim=2)), gate, first)


def _heads(attn: Any, x: Tensor, *projections: nn.Module) -> tuple[Tensor, ...]:
    """Queries, keys and values, each [1, tokens, heads, channels]."""
    return tuple(projection(x).unflatten(2, (attn.heads, -1)) for projection in projections)


def _normed(heads: tuple[Tensor, ...], norm_q: nn.Module, norm_k: nn.Module) -> tuple[Tensor, ...]:
    return norm_q(heads[0]), norm_k(heads[1]), heads[2]


def _for_queries(scores: Tensor) -> Tensor:
    """[1,1,1,keys] -> [1,1,keys,keys]: ONNX Runtime takes no mask with one row for all queries.

    All blocks share this one `Expand`. TensorRT takes the row itself, so an engine should be built without
    the `Expand`, whose result takes keys^2 values there.
    """
    return scores.expand(-1, -1, scores.shape[3], -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
    """One `Attention` operator; `scores` [1,1,queries,keys] are added."""
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    output = torch.onnx.ops.attention(q, k, v, attn_mask=scores)[0]
    return output.transpose(1, 2).flatten(2, 3)


def _rows(norm: Any, embs: Tensor, count: int) -> tuple[Tensor, ...]:
    """The shifts, scales and gates of a block, each [rows,1,D], one row for each of `embs` [rows,D]."""
    return cast(Tensor, norm.linear(embs)).unsqueeze(1).chunk(count, dim=-1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, first: int) -> Tensor:
    """X * (1 + scale) + shift; the `first` tokens take row 1 of shift and scale where there is one."""
    if shift.shape[0] == 1:
        return x * (1 + scale) + shift
    return torch.cat((x[:, :first] * (1 + scale[1:]) + shift[1:], x[:, first:] * (1 + scale[:1]) + shift[:1]), dim=1)


def _gated(x: Tensor, gate: Tensor, first: int) -> Tensor:
    """X * gate, rows as in `_modulate`."""
    if gate.shape[0] == 1:
        return x * gate
    return torch.cat((x[:, :first] * gate[1:], x[:, first:] * gate[:1]), dim=1)
