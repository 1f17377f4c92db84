"""The text encoders of HunyuanVideo as modules that export to small graphs: LLaMA, alone or with eyes, and CLIP.

All three are causal and padding stands behind the prompt, so that no valid token ever sees it: causal attention
without a mask is exact there. The states of padding are made zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.onnx.ops
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
)
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from sora_export.families.common import BIASED_ATTENTION, rms_norm

SKIPPED_LAYERS = 2
"""The pipelines take the hidden state before the last two layers, without the final norm."""

_CAUSAL_ATTENTION = "sora_export_causal_attention_hunyuan"


def _causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention to earlier tokens as one operator; keys and values may have fewer heads than queries."""
    assert attention_mask is None
    output = torch.onnx.ops.attention(query, key, value, is_causal=True, scale=scaling)[0]
    return output.transpose(1, 2), None


AttentionInterface.register(_CAUSAL_ATTENTION, _causal_attention)


@dataclass(frozen=True)
class ImageTemplate:
    """What of an image-to-video prompt goes where; positions in the prompt's tokens, before the picture's come in.

    Args:
        image_start: Position of the one `<image>` token, in whose place the picture's tokens stand.
        crop_start: The first token of the prompt's own.
        end_header_id: The token after which the assistant's answer begins; it and the `header` - 1 tokens before its
            last occurrence are left out.
        interleave: Every how many of the picture's tokens are kept.
    """

    image_start: int
    crop_start: int
    end_header_id: int
    interleave: int
    header: int = 4


class LlamaPositions(nn.Module):
    """Cosines and sines of LLaMA's rotary embedding for `length` tokens, [1, length, channels].

    Both halves of the channels carry the same angles, of which one is stored.
    """

    def __init__(self, config: Mapping[str, Any], length: int) -> None:
        super().__init__()
        tables = LlamaRotaryEmbedding(_llama_config(config))(torch.empty(0), torch.arange(length)[None])
        for kind, table in zip(("cos", "sin"), tables, strict=True):
            self.register_buffer(kind, table[..., : table.shape[-1] // 2].clone(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """(cosines, sines)."""
        cos, sin = cast(Tensor, self.cos), cast(Tensor, self.sin)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


class LlamaGraph(nn.Module):
    """input_ids, attention_mask int64 [1,crop+L] -> encoder_hidden_states [1,L,D], encoder_attention_mask [1,L].

    The states are those before the last `SKIPPED_LAYERS` layers, without the template's first `crop` tokens.
    """

    def __init__(self, config: Mapping[str, Any], positions: LlamaPositions, crop: int) -> None:
        super().__init__()
        self.llama = [_llama(config)]
        self.model = _named({"model": self.llama[0], "": self.llama[0]})
        self.positions = positions
        self.crop = crop

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The prompt's hidden states, zero at padding, and which of them are valid, 0 or 1."""
        llama = self.llama[0]
        hidden = _run_layers(llama, llama.embed_tokens(input_ids), self.positions())
        valid = attention_mask[:, self.crop :].to(torch.float32)
        return hidden[:, self.crop :] * valid.unsqueeze(-1), valid


class LlavaGraph(nn.Module):
    """input_ids, attention_mask int64 [1,n], pixel_values [1,3,S,S] -> encoder_hidden_states, encoder_attention_mask.

    The picture's tokens stand in the place of `<image>`; the states [1,L,D] are some of them, then those of the
    prompt without the template's beginning and without the assistant's header, whose place depends on the prompt.
    """

    def __init__(self, config: Mapping[str, Any], positions: LlamaPositions, template: ImageTemplate) -> None:
        super().__init__()
        settings = llava_config(config)
        vision_config = settings.vision_config
        vision_config._attn_implementation = BIASED_ATTENTION
        layers = vision_config.num_hidden_layers
        # The layers behind the one whose states are taken are not built.
        vision_config.num_hidden_layers = (settings.vision_feature_layer + layers + 1) % (layers + 1)
        self.keeps_class_token = settings.vision_feature_select_strategy != "default"
        vision, llama = CLIPVisionModel(vision_config), _llama(settings.text_config.to_dict())
        projector = LlavaMultiModalProjector(settings)
        self.parts = [vision, projector, llama]
        self.model = _named(
            {
                "language_model.model": llama,
                "vision_tower": vision,
                "vision_tower.vision_model": vision,
                "multi_modal_projector": projector,
            }
        )
        self.positions = positions
        self.template = template

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states, zero at padding, and which of them are valid, 0 or 1."""
        start, (vision, projector, llama) = self.template.image_start, self.parts
        picture = projector(self._see(vision, pixel_values))
        words = llama.embed_tokens(input_ids)
        joined = torch.cat((words[:, :start], picture, words[:, start + 1 :]), dim=1)
        hidden = _run_layers(llama, joined, self.positions())
        seen = hidden[:, start : start + picture.shape[1] : self.template.interleave]
        kept = self._kept(input_ids)
        valid = attention_mask[0].index_select(0, kept)[None].to(torch.float32)
        read = hidden.index_select(1, kept + (picture.shape[1] - 1)) * valid.unsqueeze(-1)
        return torch.cat((seen, read), dim=1), torch.cat((torch.ones(1, seen.shape[1]), valid), dim=1)

    def _see(self, vision: Any, pixel_values: Tensor) -> Tensor:
        """The vision tower's hidden state that LLaVA takes, [1,patches,D]."""
        embeddings = vision.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat((embeddings.class_embedding[None, None], patches), dim=1)
        hidden = vision.pre_layrnorm(tokens + embeddings.position_embedding.weight)
        states: Tensor = vision.encoder(inputs_embeds=hidden).last_hidden_state
        return states if self.keeps_class_token else states[:, 1:]

    def _kept(self, input_ids: Tensor) -> Tensor:
        """Positions of the prompt's tokens behind the template's beginning, the assistant's header left out."""
        template, length = self.template, input_ids.shape[1]
        is_end = (input_ids[0] == template.end_header_id).to(torch.int64)
        header = (is_end * torch.arange(length)).amax(dim=0) + 1 - template.header
        kept = torch.arange(template.crop_start, length - template.header)
        return kept + (kept >= header).to(torch.int64) * template.header


class ClipGraph(nn.Module):
    """input_ids int64 [1,L] -> pooled_projections [1,D], the state of the end token."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        settings = CLIPTextConfig.from_dict(dict(config))
        settings.dtype = torch.float32
        settings._attn_implementation = _CAUSAL_ATTENTION
        self.clip = [CLIPTextModel(settings)]
        # transformers 4 saved the same weights under this prefix.
        self.model = _named({"text_model": self.clip[0], "": self.clip[0]})
        self.end = settings.eos_token_id

    def forward(self, input_ids: Tensor) -> Tensor:
        """The state at the first end token after the final norm."""
        clip, length = self.clip[0], input_ids.shape[1]
        embeddings = clip.embeddings
        hidden = embeddings.token_embedding(input_ids) + embeddings.position_embedding.weight[:length]
        hidden = clip.final_layer_norm(clip.encoder(inputs_embeds=hidden).last_hidden_state)
        # Configs of old checkpoints say 2, whatever the end token is; it has the highest number.
        is_end = input_ids[0] == (input_ids.amax(dim=1) if self.end == 2 else self.end)
        position = (torch.arange(length) + (1 - is_end.to(torch.int64)) * length).amin(dim=0)
        pooled: Tensor = hidden.index_select(1, position[None])[:, 0]
        return pooled


def llava_config(config: Mapping[str, Any]) -> LlavaConfig:
    """The config of a LlavaForConditionalGeneration, complete."""
    return LlavaConfig.from_dict(dict(config))


def _llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    settings = LlamaConfig.from_dict(dict(config))
    settings.dtype = torch.float32
    settings._attn_implementation = _CAUSAL_ATTENTION
    return settings


def _llama(config: Mapping[str, Any]) -> LlamaModel:
    """The model without the layers that are not used; norms export as one operator."""
    settings = _llama_config(config)
    settings.num_hidden_layers -= SKIPPED_LAYERS
    model = LlamaModel(settings)
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            model.set_submodule(name, rms_norm(module.weight, module.variance_epsilon))
    return model


def _run_layers(llama: Any, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    for layer in llama.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=angles)
    return hidden


def _named(modules: Mapping[str, nn.Module]) -> nn.Module:
    """A module without a forward that holds the children of others under given paths.

    So a parameter goes by each of the names under which releases of transformers have saved it.
    """
    root = nn.Module()
    for path, module in modules.items():
        place = root
        for part in path.split(".") if path else ():
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        for name, child in module.named_children():
            place.add_module(name, child)
    return root
