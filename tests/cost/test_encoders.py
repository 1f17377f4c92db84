"""Text and image encoders: their work against the FLOPs and parameters of transformers' modules."""

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sora_runtime.cost.architectures.encoders import ENCODERS
from sora_runtime.cost.work import Sizes
from sora_runtime.errors import InvalidRequest

SIZES = Sizes(tokens=7, latent_area=11, latent_frames=3)  # of no effect: an encoder's work is constant

T5 = {"d_model": 48, "d_kv": 16, "d_ff": 100, "num_layers": 3, "num_heads": 4, "vocab_size": 300}
PLAIN = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4}
CLIP = {**PLAIN, "vocab_size": 300, "projection_dim": 20, "eos_token_id": 2}
VISION = {**PLAIN, "image_size": 30, "patch_size": 5, "projection_dim": 20}
DECODER = {**PLAIN, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "pad_token_id": 0}

TEXT_CASES = [
    ("T5EncoderModel", transformers.T5Config, {**T5, "feed_forward_proj": "gated-gelu"}, 21),
    ("T5EncoderModel", transformers.T5Config, {**T5, "num_layers": 2}, 50),
    ("UMT5EncoderModel", transformers.UMT5Config, T5, 33),
    ("CLIPTextModel", transformers.CLIPTextConfig, CLIP, 20),
    ("CLIPTextModelWithProjection", transformers.CLIPTextConfig, CLIP, 77),
    ("BertModel", transformers.BertConfig, {**PLAIN, "vocab_size": 300}, 40),
    ("LlamaModel", transformers.LlamaConfig, DECODER, 40),
    ("LlamaForCausalLM", transformers.LlamaConfig, DECODER, 25),
    ("MistralModel", transformers.MistralConfig, DECODER, 25),
    ("Qwen2Model", transformers.Qwen2Config, {**DECODER, "head_dim": 12}, 25),
    ("Qwen3Model", transformers.Qwen3Config, {**DECODER, "head_dim": 24}, 40),
    ("Gemma2Model", transformers.Gemma2Config, DECODER, 31),
    ("Gemma3TextModel", transformers.Gemma3TextConfig, DECODER, 31),
]


def counted(module, arguments):
    # The counter does not know the fused attention of the CPU; the composed one is matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**arguments)
    return counter.get_total_flops(), sum(weight.numel() for weight in module.parameters())


def compare(work, module, arguments):
    flops, parameters = counted(module.eval(), arguments)
    ours = work.flops(SIZES)
    assert ours["linear"] + ours["attention"] + ours["convolution"] == pytest.approx(flops, rel=0.01)
    assert work.parameters == pytest.approx(parameters, rel=0.005)
    assert 0 < work.read <= work.parameters
    assert work.peak_elements(SIZES) > 0
    assert ours["elementwise"] > 0


@pytest.mark.parametrize(("name", "configuration", "config", "tokens"), TEXT_CASES)
def test_text_encoder(name, configuration, config, tokens):
    module = getattr(transformers, name)(configuration(**config))
    compare(ENCODERS[name](config, tokens), module, {"input_ids": torch.ones(1, tokens, dtype=torch.long)})


@pytest.mark.parametrize(
    ("name", "configuration", "changes"),
    [
        ("CLIPVisionModel", transformers.CLIPVisionConfig, {}),
        ("CLIPVisionModelWithProjection", transformers.CLIPVisionConfig, {"image_size": 40}),
        ("SiglipVisionModel", transformers.SiglipVisionConfig, {}),
        ("SiglipVisionModel", transformers.SiglipVisionConfig, {"vision_use_head": False, "num_hidden_layers": 2}),
    ],
)
def test_image_encoder(name, configuration, changes):
    config = {**VISION, **changes}
    module = getattr(transformers, name)(configuration(**config))
    size = config["image_size"]
    compare(ENCODERS[name](config, 36), module, {"pixel_values": torch.randn(1, 3, size, size)})


def test_qwen_runs_its_language_model_and_head_but_not_its_vision_tower():
    text = {**DECODER, "head_dim": 12, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]}}
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 50, "num_heads": 2, "out_hidden_size": 48}
    config = {"text_config": text, "vision_config": {**vision, "patch_size": 4}, "tie_word_embeddings": False}
    module = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**config))
    work = ENCODERS["Qwen2_5_VLForConditionalGeneration"](config, 30)
    compare(work, module, {"input_ids": torch.ones(1, 30, dtype=torch.long)})
    assert work.parameters - work.read > sum(weight.numel() for weight in module.model.visual.parameters())


def test_llava_runs_its_image_tower():
    patches = 36
    text = {**DECODER, "num_key_value_heads": 4}
    llama = transformers.LlamaConfig(**text)
    clip = transformers.CLIPVisionConfig(**VISION)
    configuration = transformers.LlavaConfig(
        vision_config=clip,
        text_config=llama,
        image_token_index=9,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    module = transformers.LlavaForConditionalGeneration(configuration)
    tokens = torch.tensor([[9] * patches + [1] * 25])
    arguments = {"input_ids": tokens, "pixel_values": torch.randn(1, 3, 30, 30)}
    work = ENCODERS["LlavaForConditionalGeneration"]({"text_config": text, "vision_config": VISION}, patches + 25)
    compare(work, module, arguments)


def test_llama_3_8b_has_its_published_size():
    config = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config |= {"num_key_value_heads": 8, "vocab_size": 128256}
    assert ENCODERS["LlamaForCausalLM"](config, 256).parameters == pytest.approx(8.03e9, rel=1e-3)


def test_a_missing_key_is_named():
    with pytest.raises(InvalidRequest, match="num_hidden_layers"):
        ENCODERS["DecoderModel"]({"hidden_size": 8}, 4)
