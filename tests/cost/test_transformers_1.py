"""The work of transformers with cross-attention and of packed mixtures is what PyTorch's own counter finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from sora_runtime.cost.architectures import cosmos, ltx, minimax, sana, wan
from sora_runtime.cost.architectures.common import Conditioning
from sora_runtime.cost.work import Sizes

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

TRANSFORMERS = wan.TRANSFORMERS | ltx.TRANSFORMERS | cosmos.TRANSFORMERS | sana.TRANSFORMERS | minimax.TRANSFORMERS
# Not in config.json: what the pipeline passes to the network.
OF_THE_PIPELINE = {"expand_timesteps", "timestep_per_frame", "frame_rate"}


def module(name: str, config: Mapping[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, name)(**{key: value for key, value in config.items() if key not in OF_THE_PIPELINE})


def counted(network: Any, inputs: dict[str, Any]) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the CPU's own fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(**inputs, return_dict=False)
    return float(counter.get_total_flops())


def zeros(*shape: int, dtype: Any = None) -> Any:
    return torch.zeros(shape, dtype=dtype)


@pytest.fixture(autouse=True)
def padding_mask_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosmos resizes its padding mask with torchvision, which does no arithmetic that is counted."""
    from diffusers.models.transformers import transformer_cosmos

    resize = SimpleNamespace(resize=lambda mask, size, interpolation: mask.new_zeros(*mask.shape[:2], *size))
    stand_in = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest"))
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)


Case = tuple[str, dict[str, Any], Conditioning, Sizes, dict[str, Any]]


def clip(frames: int, rows: int, columns: int, patch: tuple[int, int, int] = (1, 2, 2)) -> Sizes:
    tokens = (frames // patch[0]) * (rows // patch[1]) * (columns // patch[2])
    return Sizes(tokens=tokens, latent_area=rows * columns, latent_frames=frames)


def wan_case(
    shape: tuple[int, int, int], text: int, name: str = "WanTransformer3DModel", image: int = 0, **config: Any
) -> Case:
    config = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 96, "num_layers": 2, **config}
    config |= {"text_dim": 40, "freq_dim": 32}
    sizes = clip(*shape, config.get("patch_size", (1, 2, 2)))
    times = zeros(1, sizes.tokens) if config.get("expand_timesteps") else zeros(1)
    inputs = {
        "hidden_states": zeros(1, config.get("in_channels", 16), *shape),
        "timestep": times,
        "encoder_hidden_states": zeros(1, text, 40),
    }
    if image:
        inputs["encoder_hidden_states_image"] = zeros(1, image, config["image_dim"])
        if config.get("pos_embed_seq_len"):  # two images, joined by the network
            inputs["encoder_hidden_states_image"] = zeros(2, image // 2, config["image_dim"])
    if config.get("inject_sample_info"):
        inputs["fps"] = zeros(1, dtype=torch.long)
    return name, config, Conditioning(text, image), sizes, inputs


def ltx_case(shape: tuple[int, int, int], text: int, **config: Any) -> Case:
    config = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64, "num_layers": 2, **config}
    config |= {"caption_channels": 48}
    sizes = clip(*shape, (1, 1, 1))
    inputs = {
        "hidden_states": zeros(1, sizes.tokens, config.get("in_channels", 128)),
        "encoder_hidden_states": zeros(1, text, 48),
        "timestep": zeros(1),
        "encoder_attention_mask": zeros(1, text),
        "num_frames": shape[0],
        "height": shape[1],
        "width": shape[2],
    }
    return "LTXVideoTransformer3DModel", config, Conditioning(text), sizes, inputs


def ltx2_case(shape: tuple[int, int, int], text: int, **config: Any) -> Case:
    small = {"num_attention_heads": 4, "attention_head_dim": 32, "cross_attention_dim": 128, "num_layers": 2}
    small |= {"audio_num_attention_heads": 4, "audio_attention_head_dim": 16, "audio_cross_attention_dim": 64}
    config = {**small, "caption_channels": 48, **config}
    sizes = clip(*shape, (1, 1, 1))
    audio = round((8 * (shape[0] - 1) + 1) / 24 * 25)
    states = (48, 48) if config.get("use_prompt_embeddings", True) else (128, 64)
    inputs = {
        "hidden_states": zeros(1, sizes.tokens, 128),
        "audio_hidden_states": zeros(1, audio, 128),
        "encoder_hidden_states": zeros(1, text, states[0]),
        "audio_encoder_hidden_states": zeros(1, text, states[1]),
        "timestep": zeros(1),
        "sigma": zeros(1),
        "num_frames": shape[0],
        "height": shape[1],
        "width": shape[2],
        "audio_num_frames": audio,
    }
    return "LTX2VideoTransformer3DModel", config, Conditioning(text), sizes, inputs


def cosmos_case(shape: tuple[int, int, int], text: int, image: int = 0, **config: Any) -> Case:
    config = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "adaln_lora_dim": 16, **config}
    config |= {"text_embed_dim": 32, "max_size": (16, 32, 48)}
    states: Any = zeros(1, text, config["crossattn_proj_in_channels"] if "use_crossattn_projection" in config else 32)
    if image:
        states = (states, zeros(1, image, config["img_context_dim_in"]))
    per_frame = config.get("timestep_per_frame")
    inputs = {
        "hidden_states": zeros(1, config.get("in_channels", 16), *shape),
        "timestep": zeros(1, 1, shape[0], 1, 1) if per_frame else zeros(1),
        "encoder_hidden_states": states,
        "padding_mask": zeros(1, 1, 8 * shape[1], 8 * shape[2]),
        "fps": 24,
    }
    if image:
        inputs["attention_mask"] = None
    return "CosmosTransformer3DModel", config, Conditioning(text, image), clip(*shape), inputs


def omni_case(shape: tuple[int, int, int], text: int, **config: Any) -> Case:
    small = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {**small, "head_dim": 32, "num_hidden_layers": 2, "vocab_size": 100, "rope_axes_dim": (6, 5, 5), **config}
    config |= {"latent_channel": 4, "patch_latent_dim": 16}
    sizes = clip(*shape)
    video = torch.arange(text, text + sizes.tokens)
    inputs = {
        "input_ids": zeros(text, dtype=torch.long),
        "text_indexes": torch.arange(text),
        "position_ids": zeros(3, text + sizes.tokens),
        "und_len": text,
        "sequence_length": text + sizes.tokens,
        "vision_tokens": [zeros(1, 4, *shape)],
        "vision_token_shapes": [(shape[0], shape[1] // 2, shape[2] // 2)],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": zeros(sizes.tokens),
        "vision_noisy_frame_indexes": [torch.arange(shape[0])],
    }
    return "Cosmos3OmniTransformer", config, Conditioning(text), sizes, inputs


def sana_case(shape: tuple[int, int, int], text: int, **config: Any) -> Case:
    small = {"num_attention_heads": 2, "attention_head_dim": 24, "num_cross_attention_heads": 2}
    small |= {"cross_attention_head_dim": 24, "cross_attention_dim": 48, "caption_channels": 40}
    config = {**small, "num_layers": 2, **config}
    inputs = {
        "hidden_states": zeros(1, config.get("in_channels", 16), *shape),
        "encoder_hidden_states": zeros(1, text, 40),
        "timestep": zeros(1),
        "encoder_attention_mask": zeros(1, text),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = zeros(1)
    sizes = clip(*shape, config.get("patch_size", (1, 2, 2)))
    return "SanaVideoTransformer3DModel", config, Conditioning(text), sizes, inputs


def minimax_case(shape: tuple[int, int, int], text: int, image: int = 0, **config: Any) -> Case:
    small = {"num_attention_heads": 3, "attention_head_dim": 32, "hidden_size": 64, "ffn_dim": 160, "num_layers": 2}
    small |= {"rope_freq_dim": 4, "text_dim": 40, "time_embed_hidden_dim": 48, "time_embed_dim": 24, "freq_dim": 32}
    config = {**small, **config}
    sizes = clip(*shape)
    frames = (shape[0] - 2) // 5 * 17 + 5
    audio, video = 2 * round(frames / 24 * 40), sizes.tokens + image
    rows = text + audio + video
    places = torch.arange(rows)
    inputs = {
        "hidden_states": zeros(1, video, 96),
        "audio_hidden_states": zeros(1, audio, 32),
        "encoder_hidden_states": zeros(1, text, 40),
        "timestep": zeros(2),
        "timestep_indices": zeros(rows, dtype=torch.long),
        "token_tags": zeros(rows, dtype=torch.long),
        "position_ids": zeros(rows, 3),
        "text_indices": places[:text],
        "audio_indices": places[text : text + audio],
        "video_indices": places[text + audio :],
    }
    return "MiniMaxH3Transformer3DModel", config, Conditioning(text, image), sizes, inputs


IMAGE = {"image_dim": 20, "added_kv_proj_dim": 48}
CASES: dict[str, Callable[[], Case]] = {
    "wan": lambda: wan_case((3, 8, 12), 17),
    "wan-wide": lambda: wan_case((2, 6, 4), 77, num_attention_heads=3, ffn_dim=200, num_layers=3, out_channels=8),
    "wan-image": lambda: wan_case((2, 8, 8), 512, image=21, in_channels=36, **IMAGE),
    "wan-first-and-last-image": lambda: wan_case((1, 8, 8), 512, image=14, pos_embed_seq_len=14, **IMAGE),
    "wan-timestep-per-token": lambda: wan_case((4, 8, 8), 40, in_channels=48, out_channels=48, expand_timesteps=True),
    "wan-no-cross-norm": lambda: wan_case((4, 4, 8), 9, cross_attn_norm=False, patch_size=(2, 2, 2)),
    "skyreels": lambda: wan_case((3, 8, 6), 30, "SkyReelsV2Transformer3DModel"),
    "skyreels-fps": lambda: wan_case((3, 6, 6), 30, "SkyReelsV2Transformer3DModel", inject_sample_info=True),
    "ltx": lambda: ltx_case((4, 6, 7), 33),
    "ltx-biasless": lambda: ltx_case(
        (3, 5, 8),
        64,
        attention_bias=False,
        attention_out_bias=False,
        norm_elementwise_affine=True,
        num_layers=3,
        in_channels=16,
        out_channels=24,
    ),
    "ltx2": lambda: ltx2_case((7, 12, 16), 50),
    "ltx2.3": lambda: ltx2_case(
        (4, 16, 20),
        31,
        gated_attn=True,
        cross_attn_mod=True,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        use_prompt_embeddings=False,
        perturbed_attn=True,
        rope_type="split",
    ),
    "ltx2.5": lambda: ltx2_case(
        (5, 12, 20),
        31,
        cross_attn_mod=True,
        audio_cross_attn_mod=True,
        use_prompt_adaln_single=False,
        ff_bias=False,
        use_keyframes_abs_pos_embedding=True,
        norm_elementwise_affine=True,
    ),
    "cosmos-1": lambda: cosmos_case((3, 8, 12), 24),
    "cosmos-2": lambda: cosmos_case((5, 8, 8), 13, in_channels=18, extra_pos_embed_type=None, timestep_per_frame=True),
    "cosmos-2.5": lambda: cosmos_case(
        (4, 8, 10),
        20,
        extra_pos_embed_type=None,
        timestep_per_frame=True,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=70,
        encoder_hidden_states_channels=32,
    ),
    "cosmos-image": lambda: cosmos_case(
        (2, 8, 8), 20, image=9, img_context_dim_in=15, img_context_dim_out=48, concat_padding_mask=False
    ),
    "cosmos-3": lambda: omni_case((3, 8, 10), 19),
    "cosmos-3-squared": lambda: omni_case(
        (2, 8, 8), 60, hidden_act="relu2", qk_norm_for_text=False, use_und_k_norm_for_gen=True, attention_bias=True
    ),
    "cosmos-3-omni": lambda: omni_case((3, 6, 8), 30, sound_gen=True, sound_dim=12, action_gen=True, action_dim=7),
    "sana": lambda: sana_case((3, 8, 12), 25),
    "sana-guided": lambda: sana_case((5, 6, 6), 40, guidance_embeds=True, mlp_ratio=3.0, attention_bias=True),
    "sana-unpatched": lambda: sana_case((2, 7, 9), 11, patch_size=(1, 1, 1), in_channels=32, out_channels=None),
    "minimax": lambda: minimax_case((7, 24, 40), 20),
    "minimax-image": lambda: minimax_case((12, 20, 20), 33, image=50, num_refiner_layers=1, num_layers=3),
}


@pytest.mark.parametrize("case", CASES)
def test_work_is_what_pytorch_counts(case: str) -> None:
    name, config, conditioning, sizes, inputs = CASES[case]()
    network = module(name, config)
    work = TRANSFORMERS[name](config, conditioning)
    flops = work.flops(sizes)
    assert flops["linear"] + flops["attention"] + flops["convolution"] == pytest.approx(
        counted(network, inputs), rel=0.01
    )
    assert work.parameters == pytest.approx(sum(weight.numel() for weight in network.parameters()), rel=0.005)
    assert 0 < work.read <= work.parameters
    assert all(value >= 0 for value in work.elements(sizes).values())
    assert work.peak_elements(sizes) > sizes.tokens
