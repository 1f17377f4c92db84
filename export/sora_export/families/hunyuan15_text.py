"""The encoders of HunyuanVideo 1.5 as modules that export to small graphs: Qwen2.5-VL's text model, ByT5, SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.onnx.ops
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5EncoderModel,
)
from transformers.initialization import no_init_weights
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm, Qwen2_5_VLRotaryEmbedding

from sora_export.families.common import BIASED_ATTENTION, T5Graph, rms_norm
from sora_runtime.errors import BundleError

_PROBES = (" ", "a", " a  b\n", '"quoted" <|x|> & {braces}', "ünï 字")
"""Prompts that a chat template must leave as they are."""


class ChatPositions(nn.Module):
    """Cosines and sines of Qwen2.5-VL's rotary embedding for a text of `length` tokens, [1, length, channels / 2].

    Its three axes of position are equal for text, and both halves of the channels carry the same angles.
    """

    def __init__(self, config: Mapping[str, Any], length: int) -> None:
        super().__init__()
        rotary = Qwen2_5_VLRotaryEmbedding(_text_config(config))
        positions = torch.arange(length).view(1, 1, -1).expand(3, 1, -1)
        for kind, table in zip(("cos", "sin"), rotary(torch.empty(0), positions), strict=True):
            self.register_buffer(kind, table[..., : table.shape[-1] // 2].clone(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """(cosines, sines)."""
        return cast(Tensor, self.cos), cast(Tensor, self.sin)


class ChatEncoderGraph(nn.Module):
    """input_ids, attention_mask int64 [1,crop+L] -> encoder_hidden_states [1,L,D], encoder_attention_mask [1,L].

    The states are those before the last `skip` layers without the template's first `crop` tokens, zero at padding.
    Padding stands behind the prompt and attention is causal, so that no valid token sees it without a mask.
    """

    def __init__(self, config: Mapping[str, Any], positions: ChatPositions, crop: int, skip: int) -> None:
        super().__init__()
        self.model = Qwen2_5_VLTextModel(_text_config(config))
        self.positions = positions
        self.crop = crop
        self.used = len(self.model.layers) - skip
        for name, module in list(self.model.named_modules()):
            if isinstance(module, Qwen2_5_VLRMSNorm):
                self.model.set_submodule(name, rms_norm(module.weight, module.variance_epsilon))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The prompt's hidden states and which of them are valid, 0 or 1."""
        hidden = self.model.embed_tokens(input_ids)
        angles = self.positions()
        for layer in self.model.layers[: self.used]:
            hidden = hidden + _attend_back(layer.self_attn, layer.input_layernorm(hidden), angles)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        valid = attention_mask[:, self.crop :].to(torch.float32)
        return hidden[:, self.crop :] * valid.unsqueeze(-1), valid


def _attend_back(attn: Any, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Attention [1,L,D] to earlier tokens as one operator; several heads of queries share one of keys."""
    counts = (attn.num_heads, attn.num_key_value_heads)
    turned = [
        torch.onnx.ops.rotary_embedding(projection(x), *angles, num_heads=count)
        for projection, count in zip((attn.q_proj, attn.k_proj), counts, strict=True)
    ]
    q, k, v = (part.unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for part in (*turned, attn.v_proj(x)))
    output = torch.onnx.ops.attention(q, k, v, is_causal=True, scale=attn.scaling)[0]
    attended: Tensor = attn.o_proj(output.transpose(1, 2).flatten(2))
    return attended


class GlyphEncoderGraph(T5Graph):
    """input_ids, attention_mask int64 [1,L] -> encoder_hidden_states_2 [1,L,D], encoder_attention_mask_2 [1,L]."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(T5EncoderModel, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The hidden states, zero at padding, and which of them are valid, 0 or 1."""
        valid = attention_mask.to(torch.float32)
        return self.encode(input_ids, attention_mask) * valid.unsqueeze(-1), valid


class ImageEncoderGraph(nn.Module):
    """pixel_values [1,3,S,S] -> image_embeds [1,n,D], SigLIP's last hidden state."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        settings = SiglipVisionConfig.from_dict({**config, "vision_use_head": False})
        settings.dtype = torch.float32
        settings._attn_implementation = BIASED_ATTENTION
        with no_init_weights():  # which looks at values, and there are none
            self.model = SiglipVisionModel(settings)
        # transformers 4 saved the same weights under this prefix.
        self.vision_model = self.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The states of all patches after the final norm."""
        embeddings = self.model.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = self.model.encoder(inputs_embeds=patches + embeddings.position_embedding.weight).last_hidden_state
        output: Tensor = self.model.post_layernorm(hidden)
        return output


def chat_template(folder: Path, system_message: str) -> tuple[str, int]:
    """The text around a prompt, with {} in the prompt's place, and the id of the padding token.

    Args:
        folder: The tokenizer's, with its chat template.
        system_message: What the model is told before the prompt.

    Raises:
        BundleError: The tokenizer cannot be read, pads in front, or its template changes what it is given.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        before, after = _render(tokenizer, system_message, "{}").split("{}")
        faithful = all(_render(tokenizer, system_message, probe) == before + probe + after for probe in _PROBES)
    except Exception as error:  # whatever the template's own code raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(f"the chat template of {folder} cannot be used ({reason}); download it again") from error
    if not faithful:
        raise BundleError(f"the chat template of {folder} alters the prompt; give the one HunyuanVideo 1.5 came with")
    if tokenizer.padding_side != "right" or tokenizer.pad_token_id is None:
        raise BundleError(
            f"{folder} pads on the {tokenizer.padding_side} with the token {tokenizer.pad_token}; HunyuanVideo 1.5 "
            "counts its template's tokens from the left, so set padding_side to right and a pad_token"
        )
    return f"{before}{{}}{after}", int(tokenizer.pad_token_id)


def _render(tokenizer: Any, system_message: str, prompt: str) -> str:
    chat = [{"role": "system", "content": system_message}, {"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def _text_config(config: Mapping[str, Any]) -> Qwen2_5_VLTextConfig:
    settings = Qwen2_5_VLTextConfig.from_dict(dict(config))
    settings.dtype = torch.float32
    return settings
