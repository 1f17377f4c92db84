"""Makes small random HunyuanVideo 1.5 checkpoints, saved by diffusers itself, for the export tests."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

MAX_SEQUENCE_LENGTH = 24
CROP = 108
"""Tokens of the pipeline's template before the prompt."""
LATENT_CHANNELS = 4
STRIDE = 8
"""Half of the release's: two changes of size in space and time, and one in space alone, are left."""
VAE: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (16, 16, 32, 32),
    "spatial_compression_ratio": STRIDE,
    "layers_per_block": 1,
    "scaling_factor": 0.8,
}
# Two heads of 24 channels, split 8/8/8 among frames, rows and columns.
TRANSFORMER: dict[str, Any] = {
    "in_channels": 2 * LATENT_CHANNELS + 1,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 2,
    "num_refiner_layers": 2,
    "text_embed_dim": 64,
    "text_embed_2_dim": 32,
    "image_embed_dim": 48,
    "rope_axes_dim": (8, 8, 8),
    "target_size": 32,
}
_TEMPLATE = (
    "{% for i in range(FILL) %}<|fill|>{% endfor %}{% for message in messages %}<|im_start|>{{ message['role'] }}"
    "{{ message['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fill|>"]


def tiny_chat_tokenizer(system_message: str) -> Qwen2Tokenizer:
    """A byte-level tokenizer with a chat template that puts CROP tokens before the prompt, as Qwen's does."""
    text = f"{system_message} system user assistant"
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    trained.train_from_iterator([text] * 4, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, additional_special_tokens=_SPECIAL[1:])
    missing = CROP - _tokens_before(tokenizer, system_message, fill=0)
    assert _tokens_before(tokenizer, system_message, fill=missing) == CROP
    return tokenizer


def _tokens_before(tokenizer: Qwen2Tokenizer, system_message: str, fill: int) -> int:
    """Sets the chat template with that many tokens in front and counts those before the prompt."""
    tokenizer.chat_template = _TEMPLATE.replace("FILL", str(fill))
    chat = [{"role": "system", "content": system_message}, {"role": "user", "content": "|prompt|"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text.partition("|prompt|")[0]).input_ids)


def tiny_chat_encoder() -> Qwen2_5_VLTextModel:
    """Five layers, of which the pipeline reads the third's result; two query heads share a key head."""
    config = Qwen2_5_VLTextConfig(
        vocab_size=700,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]},
    )
    return Qwen2_5_VLTextModel(config)


def tiny_image_encoder() -> SiglipVisionModel:
    """Nine patches."""
    config = SiglipVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=48, patch_size=16
    )
    return SiglipVisionModel(config)


def _stirred(model: nn.Module) -> nn.Module:
    """Moves every parameter, so that norms that start at one and biases that start at zero count."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def save_tiny_hunyuan15(
    folder: Path,
    *,
    task: str = "t2v",
    dtype: torch.dtype = torch.float32,
    guider: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
) -> Path:
    """Saves a random pipeline of a task with `save_pretrained` and returns its folder."""
    torch.manual_seed(0)
    pipeline_class: type[DiffusionPipeline] = HunyuanVideo15Pipeline
    parts: dict[str, Any] = {}
    if task == "i2v":
        pipeline_class = HunyuanVideo15ImageToVideoPipeline
        processor = SiglipImageProcessor(size={"height": 48, "width": 48}, image_std=(0.5, 0.4, 0.5))
        parts = {"image_encoder": _stirred(tiny_image_encoder()), "feature_extractor": processor}
    widths = {"vocab_size": 384, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    glyphs = T5Config(**widths, feed_forward_proj="gated-gelu")
    networks = {
        "text_encoder": tiny_chat_encoder(),
        "text_encoder_2": T5EncoderModel(glyphs),
        "transformer": HunyuanVideo15Transformer3DModel(**TRANSFORMER, **(transformer or {})),
        "vae": AutoencoderKLHunyuanVideo15(**VAE),
    }
    parts |= {name: _stirred(network).to(dtype) for name, network in networks.items()}
    pipeline = pipeline_class(
        tokenizer=tiny_chat_tokenizer(system_message()),
        tokenizer_2=ByT5Tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(**(guider or {"guidance_scale": 6.0})),
        **parts,
    )
    pipeline.save_pretrained(folder)
    defaults = {"max_sequence_length": MAX_SEQUENCE_LENGTH, "num_inference_steps": 3}
    (folder / "sora_defaults.json").write_text(json.dumps(defaults))
    return folder


def system_message() -> str:
    """What HunyuanVideo15Pipeline tells the text encoder before every prompt."""
    parameters = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    return str(parameters["system_message"].default)
