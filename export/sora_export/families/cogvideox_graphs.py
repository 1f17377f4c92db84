"""The CogVideoX transformer for one shape bucket, as a module that exports to a small graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.onnx.ops
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn
from torch.nn import functional as F

from sora_export.families.common import AxisRotary, rotate_pairs

_OFS = 2.0
"""What CogVideoXImageToVideoPipeline gives as `ofs`, the noise added to the picture, for every clip."""

Grid = tuple[int, int, int]
"""Frames, rows and columns of tokens."""


def grid_of(config: Mapping[str, Any], latent_shape: tuple[int, int, int]) -> Grid:
    """The tokens of latents of [frames, rows, columns]."""
    frames, rows, columns = latent_shape
    patch = config["patch_size"]
    return frames // (config["patch_size_t"] or 1), rows // patch, columns // patch


class BucketRotary(AxisRotary):
    """The rotary table of CogVideoXPipeline for one bucket: cosines and sines, each [1, text + video, 1, pairs].

    Each pair of channels belongs to the frame, the row or the column of a token (RoFormer, arXiv:2104.09864,
    eq. 34). Text tokens come first and are turned by 0, so that queries and keys need not be cut in two.
    """

    def __init__(self, config: Mapping[str, Any], grid: Grid, text_length: int) -> None:
        super().__init__(grid)
        self.text_length = text_length
        size = config["attention_head_dim"]
        bounds = [0, size // 4, size // 4 + size // 8 * 3, size]
        for kind, table in zip(("cos", "sin"), _rotary_tables(config, grid), strict=True):
            for axis in range(3):
                one_axis = table.movedim(axis, 0)[:, 0, 0]
                # Both channels of a pair carry the same angle.
                angles = one_axis[:, bounds[axis] : bounds[axis + 1] : 2].clone()
                self.register_buffer(f"{kind}_{axis}", angles, persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all tokens."""
        return self._with_text("cos", 1.0), self._with_text("sin", 0.0)

    def _with_text(self, kind: str, of_text: float) -> Tensor:
        video = self.all_tokens(kind)
        text = torch.full((self.text_length, video.shape[1]), of_text)
        return torch.cat((text, video))[None, :, None]


def _rotary_tables(config: Mapping[str, Any], grid: Grid) -> list[Tensor]:
    """Cosines and sines as diffusers makes them, each [frames, rows, columns, channels]."""
    frames, *rows_columns = grid
    base = config["sample_height"] // config["patch_size"], config["sample_width"] // config["patch_size"]
    how: dict[str, Any] = {"grid_type": "slice", "max_size": base, "crops_coords": None}
    if config["patch_size_t"] is None:
        # Positions of another size are stretched to those of the size the model was trained on.
        how = {"crops_coords": get_resize_crop_region_for_grid(tuple(rows_columns), base[1], base[0])}
    tables = get_3d_rotary_pos_embed(
        config["attention_head_dim"], grid_size=tuple(rows_columns), temporal_size=frames, **how
    )
    return [table.view(*grid, -1) for table in tables]


class BucketPositions(nn.Module):
    """The sinusoidal positions that CogVideoX-2B adds to its tokens, [frames * rows * columns, channels].

    A quarter of the channels belongs to the frame, three eighths to the column and three eighths to the row
    (Vaswani et al., arXiv:1706.03762, section 3.5). Stored are the values of each axis by itself.
    """

    def __init__(self, config: Mapping[str, Any], grid: Grid) -> None:
        super().__init__()
        channels = config["num_attention_heads"] * config["attention_head_dim"]
        self.grid = grid
        self.channels = {0: channels // 4, 2: channels // 8 * 3, 1: channels // 8 * 3}
        scales = (
            config["temporal_interpolation_scale"],
            config["spatial_interpolation_scale"],
            config["spatial_interpolation_scale"],
        )
        for axis, (length, scale) in enumerate(zip(grid, scales, strict=True)):
            positions = torch.arange(length, dtype=torch.float32) / scale
            table = get_1d_sincos_pos_embed_from_grid(self.channels[axis], positions)
            self.register_buffer(f"axis_{axis}", table.float(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Adds the positions to tokens [1, n, channels].

        One axis after the other, each padded with zeros: their sum, a constant of 135 MB for a clip of 480p,
        never exists, not even in an engine that computes constants ahead.
        """
        grid: Tensor = tokens.unflatten(1, self.grid)  # type: ignore[no-untyped-call]
        before = 0
        for axis, size in self.channels.items():
            table: Tensor = getattr(self, f"axis_{axis}")
            view = [1, 1, 1, 1, -1]
            view[1 + axis] = self.grid[axis]
            grid = grid + F.pad(table, (before, tokens.shape[2] - before - size)).view(view)
            before += size
        return grid.flatten(1, 3)


class _JointAttention:
    """CogVideoXAttnProcessor2_0 with the rotation as arithmetic on pairs and one `Attention` operator.

    diffusers writes the rotated tokens into a slice, which exports to ScatterND.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert attention_mask is None
        tokens = torch.cat((encoder_hidden_states, hidden_states), dim=1)
        query = attn.norm_q(attn.to_q(tokens).unflatten(2, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(tokens).unflatten(2, (attn.heads, -1)))
        value = attn.to_v(tokens).unflatten(2, (attn.heads, -1))
        if image_rotary_emb is not None:
            query, key = rotate_pairs(query, *image_rotary_emb), rotate_pairs(key, *image_rotary_emb)
        output = torch.onnx.ops.attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))[0]
        attended = attn.to_out[0](output.transpose(1, 2).flatten(2, 3))
        text, video = attended.split((encoder_hidden_states.shape[1], hidden_states.shape[1]), dim=1)
        return video, text


class _LayerNormZero(nn.Module):
    """CogVideoXLayerNormZero whose six vectors stay [1,D], which spreads over the tokens as it is."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.linear, self.norm = norm.linear, norm.norm

    def forward(self, video: Tensor, text: Tensor, temb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Modulated video and text tokens and the gates of what is made of them."""
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(F.silu(temb)).chunk(6, dim=1)
        video = self.norm(video) * (1 + scale) + shift
        return video, self.norm(text) * (1 + text_scale) + text_shift, gate, text_gate


class TransformerGraph(nn.Module):
    """hidden_states [1,C,T,h,w], timestep [1], encoder_hidden_states [1,L,D] (, condition [1,C,T,h,w]) -> [1,C,T,h,w].

    Args:
        config: of CogVideoXTransformer3DModel.
        grid: the tokens of the bucket.
        rotary: for a model that turns queries and keys, else None.
        positions: for a model that adds sinusoidal positions, else None.
        learned: whether the positions of all tokens are a tensor of the checkpoint.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        grid: Grid,
        rotary: BucketRotary | None,
        positions: BucketPositions | None,
        learned: bool,
    ) -> None:
        super().__init__()
        self.model = CogVideoXTransformer3DModel.from_config(dict(config))
        self.grid, self.rotary, self.positions, self.learned = grid, rotary, positions, learned
        embed = self.model.patch_embed
        if hasattr(embed, "pos_embedding"):
            shape = embed.pos_embedding.shape
            del embed.pos_embedding
            if learned:
                # A buffer would be stored in the graph; a parameter points into the checkpoint.
                embed.pos_embedding = nn.Parameter(torch.empty(shape), requires_grad=False)
        for block in self.model.transformer_blocks:
            block.attn1.processor = _JointAttention()
            block.norm1, block.norm2 = _LayerNormZero(block.norm1), _LayerNormZero(block.norm2)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """The model's prediction of v."""
        model = self.model
        if condition is not None:
            hidden_states = torch.cat((hidden_states, condition), dim=1)
        temb = self._time(timestep)
        text, video = self._embed(encoder_hidden_states, hidden_states)
        rotary = None if self.rotary is None else self.rotary()
        for block in model.transformer_blocks:
            video, text = block(video, text, temb, rotary)
        return self._unpatchify(model.proj_out(model.norm_out(model.norm_final(video), temb=temb)))

    def _time(self, timestep: Tensor) -> Tensor:
        model = self.model
        temb: Tensor = model.time_embedding(model.time_proj(timestep))
        if model.ofs_embedding is not None:
            temb = temb + model.ofs_embedding(model.ofs_proj(torch.full((1,), _OFS)))
        return temb

    def _embed(self, text: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the text [1,L,D] and of the video [1,n,D]."""
        embed = self.model.patch_embed
        text, video = embed.text_proj(text), self._patchify(latents)
        if self.positions is not None:
            video = self.positions(video)
        if self.learned:
            tokens = torch.cat((text, video), dim=1) + embed.pos_embedding
            text, video = tokens.split((text.shape[1], video.shape[1]), dim=1)
        return text, video

    def _patchify(self, latents: Tensor) -> Tensor:
        embed, (frames, rows, columns) = self.model.patch_embed, self.grid
        if embed.patch_size_t is None:
            patches: Tensor = embed.proj(latents.squeeze(0).transpose(0, 1))
            return patches.flatten(2).transpose(1, 2).reshape(1, frames * rows * columns, -1)
        time, side = embed.patch_size_t, embed.patch_size
        cut = latents.reshape(-1, frames, time, rows, side, columns, side)
        # A patch's channels come before its frames, rows and columns.
        tokens: Tensor = embed.proj(cut.permute(1, 3, 5, 0, 2, 4, 6).reshape(1, frames * rows * columns, -1))
        return tokens

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        config, (frames, rows, columns) = self.model.config, self.grid
        time, side = config.patch_size_t or 1, config.patch_size
        channels = config.out_channels
        cut = tokens.reshape(frames, rows, columns, channels, time, side, side)
        whole = cut.permute(3, 0, 4, 1, 5, 2, 6)
        return whole.reshape(1, channels, frames * time, rows * side, columns * side)
