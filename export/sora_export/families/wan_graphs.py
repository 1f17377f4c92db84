"""The Wan transformer, for text and for pictures, and its CLIP image encoder as modules that export to small graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.onnx.ops
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import CLIPVisionConfig, CLIPVisionModel

from sora_export.families.common import BIASED_ATTENTION, AxisRotary, rotate_pairs


class BucketRotary(AxisRotary):
    """WanRotaryPosEmbed for one shape bucket: cosines and sines, each [1, tokens, 1, pairs].

    Wan turns each pair of channels by an angle that belongs to the frame, the row or the column of
    a token (RoFormer, arXiv:2104.09864, eq. 34).
    """

    def __init__(self, config: Mapping[str, Any], latent_shape: tuple[int, int, int]) -> None:
        super().__init__([size // patch for size, patch in zip(latent_shape, config["patch_size"], strict=True)])
        full = WanRotaryPosEmbed(config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"])
        dims = [full.t_dim, full.h_dim, full.w_dim]
        # Both channels of a pair carry the same angle; diffusers reads cosines at the even and
        # sines at the odd ones.
        for kind, table, start in (("cos", full.freqs_cos, 0), ("sin", full.freqs_sin, 1)):
            for axis, part in enumerate(table.split(dims, dim=1)):
                angles = part[: self.lengths[axis], start::2].clone()
                self.register_buffer(f"{kind}_{axis}", angles, persistent=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Ignores its argument: the shape is that of the bucket."""
        return self.all_tokens("cos")[None, :, None], self.all_tokens("sin")[None, :, None]


class _PairwiseAttention:
    """WanAttnProcessor with the rotation as arithmetic on pairs and one `Attention` operator each.

    diffusers writes the rotated channels into an empty tensor, which exports to ScatterND with an
    index for each element. Frames may come as a batch; they attend to each other all the same.

    `image_tokens` is how many embeddings of a picture stand in front of those of the prompt; a
    block with keys and values of their own attends to them apart and adds what it finds.
    """

    def __init__(self, image_tokens: int) -> None:
        self.image_tokens = image_tokens

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert attention_mask is None
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(1, -1, shape[-1])
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        image = None
        if attn.add_k_proj is not None:
            image, context = context[:, : self.image_tokens], context[:, self.image_tokens :]
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(context))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(context)))
        if rotary_emb is not None:
            query, key = rotate_pairs(query, *rotary_emb), rotate_pairs(key, *rotary_emb)
        output = _attend(query, key, value)
        if image is not None:
            key, value = attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image)
            key, value = (x.unflatten(2, (attn.heads, -1)) for x in (key, value))
            # TensorRT-RTX 1.7.1 crashes while it builds two bfloat16 attentions on one query. Half the query, which
            # is exact in every format, at twice the scale is the same attention on another one.
            output = output + _attend(query * 0.5, key, value, scale=2.0 * query.shape[-1] ** -0.5)
        attended: Tensor = attn.to_out[0](output)
        return attended.reshape(shape)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """[1, tokens, heads, channels] each -> [1, tokens, heads x channels]; the scale is 1/sqrt(channels) if None."""
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    output: Tensor = torch.onnx.ops.attention(*heads_first, scale=scale)[0]
    return output.transpose(1, 2).flatten(2, 3)


class TransformerGraph(nn.Module):
    """hidden_states [1,C,T,h,w], timestep [1], encoder_hidden_states [1,L,D] -> model_output [1,C,T,h,w]."""

    def __init__(self, config: Mapping[str, Any], rotary: BucketRotary, image_tokens: int = 0) -> None:
        super().__init__()
        self.model = WanTransformer3DModel.from_config(dict(config))
        self.model.rope = rotary
        for block in self.model.blocks:
            block.attn1.processor = block.attn2.processor = _PairwiseAttention(image_tokens)

    def forward(self, hidden_states: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """The model's prediction for one timestep that all tokens share."""
        output: Tensor = self.model(hidden_states, timestep, embeds, return_dict=False)[0]
        return output


class ConcatGraph(TransformerGraph):
    """TransformerGraph with condition [1,n,T,h,w] beside the latents and perhaps image_embeds [1,n,D]."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        embeds: Tensor,
        condition: Tensor,
        image_embeds: Tensor | None = None,
    ) -> Tensor:
        """The model's prediction for latents whose picture and mask are more channels."""
        both = torch.cat((hidden_states, condition), dim=1)
        output: Tensor = self.model(both, timestep, embeds, image_embeds, return_dict=False)[0]
        return output


class FirstFrameGraph(TransformerGraph):
    """TransformerGraph with condition [1,C,1,h,w] in the place of the first latent frame, at timestep 0.

    WanImageToVideoPipeline gives each token a timestep of its own, and the model then makes six
    modulations of full width for each: 2 GB at 720p. But there are two timesteps, and tokens of one
    frame share theirs, so the model is handed the frames as a batch, where they meet in the
    attention alone.
    """

    timestep_of_frame: Tensor

    def __init__(self, config: Mapping[str, Any], rotary: BucketRotary) -> None:
        super().__init__(config, rotary)
        with unset_fake_temporarily():
            timestep_of_frame = torch.tensor([0] + [1] * (rotary.lengths[0] - 1))
        self.register_buffer("timestep_of_frame", timestep_of_frame, persistent=False)
        embedder = self.model.condition_embedder
        embedder.forward = partial(self._embed_frames, embedder.forward)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, timestep: Tensor, embeds: Tensor, condition: Tensor
    ) -> Tensor:
        """The model's prediction; what it says of the first frame is of no use."""
        frames = torch.cat((condition, hidden_states[:, :, 1:]), dim=2).transpose(0, 2)
        timesteps = torch.cat((torch.zeros_like(timestep), timestep))[:, None]
        output: Tensor = self.model(frames, timesteps, embeds, return_dict=False)[0]
        return output.transpose(0, 2)

    def _embed_frames(self, embed: Callable[..., tuple[Any, ...]], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """WanTimeTextImageEmbedding of two timesteps, [2,1,n] each, handed to the frames, [T,1,n]."""
        times, modulations, *rest = embed(*args, **kwargs)
        return (*(torch.index_select(x, 0, self.timestep_of_frame) for x in (times, modulations)), *rest)


class ImageEncoderGraph(nn.Module):
    """pixel_values [1,3,S,S], normalised -> image_embeds [1,n,D]: what goes into CLIP's last layer.

    That is `hidden_states[-2]`, so the last layer is not built. `prefix` is what stands before the
    names of the weights in the file; releases of transformers differ in it.
    """

    def __init__(self, config: Mapping[str, Any], prefix: str) -> None:
        super().__init__()
        settings = CLIPVisionConfig.from_dict(dict(config))
        settings.dtype = torch.float32
        settings._attn_implementation = BIASED_ATTENTION
        settings.num_hidden_layers -= 1
        self.clip = [CLIPVisionModel(settings)]
        model = self.clip[0]
        model.embeddings.position_embedding = _EveryPosition(model.embeddings.position_embedding.weight)
        self.model = model
        if prefix:
            self.model = nn.Module()
            self.model.add_module(prefix.removesuffix("."), model)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The hidden states of the class token and of all patches."""
        output: Tensor = self.clip[0](pixel_values).last_hidden_state
        return output


class _EveryPosition(nn.Module):
    """The embedding of all positions in their order: the weight itself."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, position_ids: Tensor) -> Tensor:
        """[1, n, D]; the ids are 0 to n-1."""
        return self.weight[None]
