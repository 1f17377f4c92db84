"""Cards of joint transformers: sizes as published, parameters as in diffusers, FLOPs by hand."""

import tomllib
from importlib import resources

import diffusers
import pytest
import torch

from sora_runtime.cost.architectures import cogvideox, generic, hunyuan, kandinsky, mochi
from sora_runtime.cost.architectures.common import Conditioning
from sora_runtime.cost.architectures.encoders import ENCODERS
from sora_runtime.cost.work import Sizes

TRANSFORMERS = {
    **hunyuan.TRANSFORMERS,
    **cogvideox.TRANSFORMERS,
    **mochi.TRANSFORMERS,
    **kandinsky.TRANSFORMERS,
    **generic.TRANSFORMERS,
}
CARDS = [
    "allegro",
    "cogvideox-2b",
    "cogvideox-5b",
    "cogvideox1.5-5b",
    "cogvideox1.5-5b-i2v",
    "consisid",
    "hunyuanvideo",
    "hunyuanvideo-1.5",
    "hunyuanvideo-i2v",
    "kandinsky-5.0-t2v-lite-distill-10s",
    "kandinsky-5.0-t2v-lite-distill-5s",
    "kandinsky-5.0-t2v-lite-nocfg-10s",
    "kandinsky-5.0-t2v-lite-nocfg-5s",
    "kandinsky-5.0-t2v-lite-sft-10s",
    "kandinsky-5.0-t2v-lite-sft-5s",
    "longcat-video",
    "magi-1-24b",
    "magi-1-4.5b",
    "mochi-1-preview",
    "open-sora-2.0",
    "step-video-t2v",
]


def card_of(name):
    path = resources.files("sora_runtime.cost").joinpath(f"catalogue/models/{name}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def work_of(card):
    network = card["transformer"]
    conditioning = Conditioning(network["text_tokens"], network["image_tokens"])
    return TRANSFORMERS[network["class"]](network["config"], conditioning)


def as_published(parameters, published):
    """Within 5 %, or the figure of the name when rounded or cut off to its last digit."""
    digit = 1e9 if published % 1e9 == 0 else 1e8
    return (
        parameters == pytest.approx(published, rel=0.05)
        or round(parameters / digit) == published / digit
        or parameters // digit == published / digit
    )


@pytest.mark.parametrize("name", CARDS)
def test_card_has_its_published_size(name):
    card = card_of(name)
    assert card["name"] == name
    assert card["source"].startswith("https://")
    parameters = work_of(card).parameters
    published = card["transformer"].get("parameters_published")
    assert published is None or as_published(parameters, published)
    for encoder in card.get("encoders", ()):
        assert ENCODERS[encoder["class"]](encoder["config"], encoder["tokens"]).parameters > 1e8


@pytest.mark.parametrize(
    "name", [name for name in CARDS if not name.startswith(("kandinsky", "longcat", "magi", "open", "step"))]
)
def test_card_has_the_parameters_of_the_torch_module(name):
    network = card_of(name)["transformer"]
    extra = {"text_tokens_2"}  # lengths, which the class has no key for
    config = {key: value for key, value in network["config"].items() if key not in extra}
    with torch.device("meta"):
        module = getattr(diffusers, network["class"])(**config)
    parameters = sum(weight.numel() for weight in module.parameters())
    assert work_of(card_of(name)).parameters == pytest.approx(parameters, rel=1e-4)


def test_hunyuan_video_by_the_joint_formula():
    # S = 118,800 + 256 tokens: 60 x [2 S (4 d^2 + 2 d f) + 4 S^2 d]
    sequence, width, inner = 118_800 + 256, 3072, 12_288
    expected = 60 * (2 * sequence * (4 * width**2 + 2 * width * inner) + 4 * sequence**2 * width)
    sizes = Sizes(tokens=33 * 45 * 80, latent_area=90 * 160, latent_frames=33)
    assert sizes.tokens == 118_800
    assert sum(work_of(card_of("hunyuanvideo")).flops(sizes).values()) == pytest.approx(expected, rel=0.03)


def test_mochi_by_hand():
    geometry = card_of("mochi-1-preview")["geometry"]
    frames = (163 - 1) // geometry["temporal_stride"] + 1
    rows, columns = (size // geometry["spatial_stride"] for size in (480, 848))
    sizes = Sizes(frames * rows * columns // 4, rows * columns, frames)
    assert sizes.tokens == 44_520
    # video: 4 d^2 and a gated layer of 8192; the caption's stream of 1536 is small beside it
    sequence, width = 44_520 + 256, 3072
    expected = 48 * (2 * 44_520 * (4 * width**2 + 3 * width * 8192) + 4 * sequence**2 * width)
    assert sum(work_of(card_of("mochi-1-preview")).flops(sizes).values()) == pytest.approx(expected, rel=0.02)


def test_step_video_by_the_self_and_cross_formula():
    # 204 frames are 12 chunks of 17, each 3 latent frames
    tokens, text, width, inner = 36 * 34 * 62, 397, 6144, 24_576
    layer = 2 * tokens * (6 * width**2 + 2 * width * inner) + 4 * tokens**2 * width + 4 * tokens * text * width
    sizes = Sizes(tokens, 34 * 62, 36)
    assert sum(work_of(card_of("step-video-t2v")).flops(sizes).values()) == pytest.approx(48 * layer, rel=0.02)
