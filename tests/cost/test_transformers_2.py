"""Joint transformers: their work against the FLOPs and parameters of the torch modules."""

import math

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sora_runtime.cost.architectures import cogvideox, generic, hunyuan, kandinsky, mochi
from sora_runtime.cost.architectures.common import Conditioning
from sora_runtime.cost.work import Sizes
from sora_runtime.errors import InvalidRequest

FLOPS_TOLERANCE = 0.01
PARAMETERS_TOLERANCE = 0.005


def counted(module, arguments):
    """FLOPs of one evaluation and parameters of a module."""
    # The counter does not know the fused attention of the CPU; the composed one is matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**arguments)
    return counter.get_total_flops(), sum(weight.numel() for weight in module.parameters())


def compare(work, sizes, module, arguments):
    flops, parameters = counted(module, arguments)
    ours = work.flops(sizes)
    total = ours["linear"] + ours["attention"] + ours["convolution"]
    assert total == pytest.approx(flops, rel=FLOPS_TOLERANCE)
    assert work.parameters == pytest.approx(parameters, rel=PARAMETERS_TOLERANCE)
    assert ours["elementwise"] > 0
    assert work.peak_elements(sizes) > 0


def sizes_of(frames, rows, columns, patch):
    return Sizes(frames * rows * columns // math.prod(patch), rows * columns, frames)


def ones(*shape):
    return torch.ones(shape)


def hunyuan_arguments(shape, channels, text, config):
    width = config["attention_head_dim"] * config["num_attention_heads"]
    assert width == sum(config["rope_axes_dim"]) * config["num_attention_heads"]
    return {
        "hidden_states": torch.randn(1, channels, *shape),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, text, config["text_embed_dim"]),
        "encoder_attention_mask": ones(1, text),
    }


HUNYUAN = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "rope_axes_dim": [4, 4, 4],
    "num_layers": 2,
    "num_single_layers": 3,
    "num_refiner_layers": 1,
    "text_embed_dim": 40,
    "pooled_projection_dim": 24,
}


@pytest.mark.parametrize(
    ("changes", "shape", "text"),
    [
        ({}, (5, 8, 12), 19),
        ({"guidance_embeds": False, "in_channels": 33, "image_condition_type": "latent_concat"}, (3, 4, 6), 50),
        ({"image_condition_type": "token_replace", "mlp_ratio": 3.0, "num_refiner_layers": 2}, (3, 8, 6), 7),
    ],
)
def test_hunyuan_video(changes, shape, text):
    config = {**HUNYUAN, **changes}
    arguments = hunyuan_arguments(shape, config.get("in_channels", 16), text, config)
    arguments["pooled_projections"] = torch.randn(1, 24)
    arguments["guidance"] = torch.tensor([6.0])
    module = diffusers.HunyuanVideoTransformer3DModel(**config)
    work = hunyuan.hunyuan_video_transformer(config, Conditioning(text))
    compare(work, sizes_of(*shape, (1, 2, 2)), module, arguments)


@pytest.mark.parametrize(
    ("changes", "shape", "tokens"),
    [({}, (3, 6, 8), (17, 9, 5)), ({"num_layers": 3, "use_meanflow": True, "patch_size": 2}, (3, 4, 6), (30, 4, 11))],
)
def test_hunyuan_video_15(changes, shape, tokens):
    names = ("num_attention_heads", "attention_head_dim", "rope_axes_dim", "num_refiner_layers", "text_embed_dim")
    config = {name: HUNYUAN[name] for name in names}
    config |= {"num_layers": 2, "text_embed_2_dim": 16, "image_embed_dim": 20, "in_channels": 9, "out_channels": 4}
    config |= changes
    words, glyphs, image = tokens
    arguments = hunyuan_arguments(shape, 9, words, config)
    # the embedding of the timestep's own dtype
    arguments["timestep"] = torch.tensor([3.0])
    arguments["timestep_r"] = torch.tensor([2.0]) if config.get("use_meanflow") else None
    arguments["encoder_hidden_states_2"] = torch.randn(1, glyphs, 16)
    arguments["encoder_attention_mask_2"] = ones(1, glyphs)
    arguments["image_embeds"] = torch.randn(1, image, 20)
    module = diffusers.HunyuanVideo15Transformer3DModel(**config)
    work = hunyuan.hunyuan_video_15_transformer({**config, "text_tokens_2": glyphs}, Conditioning(words, image))
    patch = config.get("patch_size", 1)
    compare(work, sizes_of(*shape, (1, patch, patch)), module, arguments)


COGVIDEOX = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 4, "text_embed_dim": 40}
COGVIDEOX |= {"time_embed_dim": 20, "in_channels": 8, "out_channels": 4}


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"sample_height": 6, "sample_width": 8, "sample_frames": 9}, (3, 6, 8)),
        ({"patch_size_t": 2, "patch_bias": False, "ofs_embed_dim": 20, "attention_bias": False}, (4, 4, 8)),
    ],
)
def test_cogvideox(changes, shape):
    config = {**COGVIDEOX, **changes, "max_text_seq_length": 13}
    config["use_rotary_positional_embeddings"] = "patch_size_t" in changes
    frames, rows, columns = shape
    module = diffusers.CogVideoXTransformer3DModel(**config)
    arguments = {
        "hidden_states": torch.randn(1, frames, 8, rows, columns),
        "encoder_hidden_states": torch.randn(1, 13, 40),
        "timestep": torch.tensor([3]),
        "ofs": torch.tensor([2.0]) if "ofs_embed_dim" in changes else None,
    }
    work = cogvideox.cogvideox_transformer(config, Conditioning(13))
    compare(work, sizes_of(*shape, (config.get("patch_size_t") or 1, 2, 2)), module, arguments)


def test_consisid():
    config = {**COGVIDEOX, "sample_height": 6, "sample_width": 8, "sample_frames": 9, "max_text_seq_length": 13}
    config |= {"is_train_face": True, "cross_attn_dim_head": 8, "cross_attn_num_heads": 3, "LFE_id_dim": 18}
    config |= {"LFE_vit_dim": 24, "LFE_depth": 4, "LFE_num_scale": 2, "LFE_dim_head": 8, "LFE_num_heads": 2}
    config |= {"LFE_num_id_token": 2, "LFE_num_querie": 6, "LFE_output_dim": 32, "LFE_ff_mult": 3}
    module = diffusers.ConsisIDTransformer3DModel(**config)
    arguments = {
        "hidden_states": torch.randn(1, 3, 8, 6, 8),
        "encoder_hidden_states": torch.randn(1, 13, 40),
        "timestep": torch.tensor([3]),
        "id_cond": torch.randn(1, 18),
        "id_vit_hidden": [torch.randn(1, 11, 24)] * 2,
    }
    work = cogvideox.consisid_transformer({**config, "face_tokens": 11}, Conditioning(13))
    compare(work, sizes_of(3, 6, 8, (1, 2, 2)), module, arguments)


@pytest.mark.parametrize(("layers", "narrow", "shape", "text"), [(2, 24, (3, 6, 8), 17), (3, 60, (5, 4, 4), 40)])
def test_mochi(layers, narrow, shape, text):
    config = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": layers, "in_channels": 6}
    config |= {"pooled_projection_dim": narrow, "text_embed_dim": 32, "time_embed_dim": 12}
    module = diffusers.MochiTransformer3DModel(**config)
    arguments = {
        "hidden_states": torch.randn(1, 6, *shape),
        "encoder_hidden_states": torch.randn(1, text, 32),
        "timestep": torch.tensor([3]),
        "encoder_attention_mask": ones(1, text).bool(),
    }
    work = mochi.mochi_transformer(config, Conditioning(text))
    compare(work, sizes_of(*shape, (1, 2, 2)), module, arguments)


ALLEGRO = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 3, "cross_attention_dim": 48}
ALLEGRO |= {"caption_channels": 40, "sample_height": 6, "sample_width": 8}


def allegro_arguments(shape, text):
    return {
        "hidden_states": torch.randn(1, 4, *shape),
        "encoder_hidden_states": torch.randn(1, text, 40),
        "timestep": torch.tensor([3]),
        "encoder_attention_mask": ones(1, text),
    }


@pytest.mark.parametrize(
    ("changes", "text"), [({}, 21), ({"attention_bias": False, "norm_elementwise_affine": True}, 9)]
)
def test_allegro(changes, text):
    config = {**ALLEGRO, **changes}
    module = diffusers.AllegroTransformer3DModel(**config)
    work = mochi.allegro_transformer(config, Conditioning(text))
    compare(work, sizes_of(3, 6, 8, (1, 2, 2)), module, allegro_arguments((3, 6, 8), text))


def kandinsky_module(config):
    return diffusers.Kandinsky5Transformer3DModel(**config)


def kandinsky_arguments(shape, text, channels):
    frames, rows, columns = shape
    return {
        "hidden_states": torch.randn(1, frames, rows, columns, channels),
        "encoder_hidden_states": torch.randn(1, text, 40),
        "timestep": torch.tensor([3.0]),
        "pooled_projections": torch.randn(1, 24),
        "visual_rope_pos": [torch.arange(frames), torch.arange(rows // 2), torch.arange(columns // 2)],
        "text_rope_pos": torch.arange(text),
    }


KANDINSKY = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 40, "in_text_dim2": 24, "time_dim": 20}
KANDINSKY |= {"model_dim": 48, "ff_dim": 100, "num_text_blocks": 1, "num_visual_blocks": 3, "axes_dims": (4, 6, 6)}


@pytest.mark.parametrize(
    ("changes", "shape", "text"), [({}, (3, 6, 8), 17), ({"visual_cond": True, "num_text_blocks": 2}, (5, 4, 4), 30)]
)
def test_kandinsky(changes, shape, text):
    config = {**KANDINSKY, **changes}
    channels = 9 if config.get("visual_cond") else 4
    work = kandinsky.kandinsky5_transformer(config, Conditioning(text))
    arguments = kandinsky_arguments(shape, text, channels)
    compare(work, sizes_of(*shape, (1, 2, 2)), kandinsky_module(config), arguments)


def test_joint_transformer_describes_flux():
    module = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=40,
        pooled_projection_dim=24,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    config = {"num_layers": 2, "single_layers": 3, "width": 64, "heads": 4, "in_channels": 16, "text_width": 40}
    config |= {"pooled_width": 24, "guidance_embedding": True}
    arguments = {
        "hidden_states": torch.randn(1, 90, 64),
        "encoder_hidden_states": torch.randn(1, 21, 40),
        "pooled_projections": torch.randn(1, 24),
        "timestep": torch.tensor([3.0]),
        "guidance": torch.tensor([3.0]),
        "img_ids": torch.zeros(90, 3),
        "txt_ids": torch.zeros(21, 3),
    }
    compare(generic.joint_transformer(config, Conditioning(21)), Sizes(90, 360, 1), module, arguments)


def test_self_cross_transformer_describes_allegro():
    config = {"num_layers": 3, "width": 48, "heads": 3, "in_channels": 4, "text_width": 40, "text_layers": 2}
    module = diffusers.AllegroTransformer3DModel(**ALLEGRO)
    work = generic.self_cross_transformer({**config, "query_norm": False}, Conditioning(21))
    compare(work, sizes_of(3, 6, 8, (1, 2, 2)), module, allegro_arguments((3, 6, 8), 21))


def test_grouped_heads_gates_and_a_window_by_hand():
    config = {"num_layers": 1, "width": 64, "heads": 8, "in_channels": 4, "text_width": 10, "bias": False}
    config |= {"key_value_heads": 2, "cross_key_value_heads": 4, "gated": True, "feed_forward": 96}
    config |= {"attention_frames": 6, "modulation": "block", "time_width": 16, "modulation_parts": 2}
    wide = generic.self_cross_transformer({**config, "key_value_heads": 8, "attention_frames": 0}, Conditioning(5))
    work = generic.self_cross_transformer(config, Conditioning(5))
    sizes = Sizes(tokens=20 * 6, latent_area=80, latent_frames=6)
    # keys and values of 2 heads of 8 channels instead of 8
    assert wide.parameters - work.parameters == 2 * 64 * (64 - 16)
    # six latent frames are all the clip has
    assert work.flops(sizes)["attention"] == pytest.approx(4 * 120 * (120 + 5) * 64)
    assert wide.flops(sizes)["attention"] == work.flops(sizes)["attention"]
    longer = Sizes(tokens=20 * 60, latent_area=80, latent_frames=60)
    assert work.flops(longer)["attention"] == pytest.approx(4 * 1200 * (120 + 5) * 64)


def test_a_misspelt_or_missing_key_is_named():
    with pytest.raises(InvalidRequest, match="hedas"):
        generic.joint_transformer(
            {"num_layers": 1, "width": 8, "heads": 2, "in_channels": 4, "hedas": 2}, Conditioning(1)
        )
    with pytest.raises(InvalidRequest, match="in_channels"):
        generic.joint_transformer({"num_layers": 1, "width": 8, "heads": 2}, Conditioning(1))
