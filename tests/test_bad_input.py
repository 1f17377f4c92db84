"""What a user can get wrong: one sentence each, with the value and the remedy."""

from typing import Any

import numpy as np
import pytest

import sora_runtime as sora
from prompts import PROMPT
from sora_runtime.geometry import Geometry, Strides

NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "   "}, "the prompt is empty"),
        ({"prompt": "&nbsp;"}, "the prompt is empty"),
        ({"prompt": None}, "prompt is a NoneType; pass a string"),
        ({"prompt": "a \udc80 circle"}, "no Unicode text"),
        ({"negative_prompt": 3}, "negative_prompt is a int; pass a string"),
        ({"prompt": "red " * 600}, "tokens and the model takes"),
        ({"negative_prompt": "blue " * 600}, "the negative_prompt has .* tokens and the model takes"),
        ({"height": 1080, "width": 1920}, "1920x1080 with .* has no graph in 'wan-pocket'; use one of: "),
        ({"num_frames": 24}, "24 frames has no graph"),
        ({"num_inference_steps": 0}, "num_inference_steps = 0 is out of range"),
        ({"num_inference_steps": -3}, "num_inference_steps = -3"),
        ({"sigmas": [0.25, 0.5]}, r"custom sigmas \[0.25, 0.5\] do not descend within \(0, 1\]"),
        ({"sigmas": [1.0, 1.0]}, "do not descend"),
        ({"sigmas": [1.0, 0.0]}, "without the final 0"),
        ({"sigmas": [1.5, 0.5]}, r"sigmas\[0\] = 1.5 is out of range; use 0 to 1"),
        ({"sigmas": [1.0, NAN]}, r"sigmas\[1\] = nan"),
        ({"sigmas": []}, "sigmas has 0 levels; give one for each of 1 to 1000 steps"),
        ({"sigmas": list(np.linspace(1, 0.1, 1001))}, "sigmas has 1001 levels"),
        ({"sigmas": "1.0"}, "sigmas = '1.0' is no list"),
        ({"sigmas": {1.0: 0.5}}, "is no list; give a number for each step"),
        ({"sigmas": [1.0, "0.5"]}, r"sigmas\[1\] = '0.5' is no number"),
        ({"timesteps": [1200]}, r"timesteps\[0\] = 1200 is out of range; use 0 to 1000"),
        ({"timesteps": [500, 700]}, r"custom timesteps \[500.0, 700.0\] do not descend"),
        ({"sigmas": [1.0], "timesteps": [1000]}, "sigmas and timesteps are both given; give one of them"),
        ({"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "num_inference_steps = 3 and 2 sigmas do not agree"),
        ({"timesteps": [1000], "num_inference_steps": 3}, "num_inference_steps = 3 and 1 timesteps do not agree"),
        ({"guidance_scale": NAN}, "guidance_scale = nan is out of range"),
        ({"guidance_scale": 1e300}, r"guidance_scale = 1e\+300 is out of range"),
        ({"guidance_scale": "5"}, "guidance_scale = '5' is no number"),
        ({"guidance_scale_2": 3.0}, "needs a model with two transformers"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf"),
        ({"guidance_rescale": 2.0}, "guidance_rescale = 2 is out of range; use 0 to 1"),
        ({"guidance_rescale": NAN}, "guidance_rescale = nan"),
        ({"fps": 0.0}, "fps = 0 is out of range; use 1 to 240"),
        ({"fps": 0.5}, "fps = 0.5 is out of range"),
        ({"seed": -1}, "seed = -1 is out of range"),
        ({"seed": 1.5}, "seed = 1.5 is no whole number"),
        ({"rng": "dice"}, "rng = 'dice' is unknown; use philox or torch"),
        ({"solver": "magic"}, "solver 'magic' is unknown; use one of"),
        ({"solver": "ddim"}, "use euler"),
        ({"price_per_hour": -1.0}, "price_per_hour = -1 is out of range"),
        ({"latents": "abc"}, "latents are no array of numbers"),
        ({"latents": np.zeros((1, 2, 3), np.float32)}, r"latents have the shape \[1, 2, 3\]; use \[1, "),
        ({"steps": 5}, "'steps' is no field of a request; use .*num_inference_steps"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(runtime: sora.Runtime, fields: dict[str, Any], message: str) -> None:
    prompt = fields.pop("prompt", PROMPT)
    with pytest.raises(sora.InvalidRequest, match=message) as caught:
        runtime.generate(prompt, **fields)
    assert "\n" not in str(caught.value)


def test_latents_that_are_not_finite_are_refused(runtime: sora.Runtime, clip: sora.Clip) -> None:
    latents = clip.latents.copy()
    latents[0, 0, 0, 0, 0] = NAN
    with pytest.raises(sora.InvalidRequest, match="NaN or infinity"):
        runtime.generate(PROMPT, latents=latents)


def test_latents_that_overflow_are_an_engine_error(runtime: sora.Runtime, clip: sora.Clip) -> None:
    huge = np.full_like(clip.latents, 3e38)
    with pytest.raises(sora.EngineError, match="hold NaN or infinity; lower guidance_scale"):
        runtime.generate(PROMPT, latents=huge, num_inference_steps=2, guidance_scale=7.0)


@pytest.mark.parametrize("num_threads", [0, -2, 100_000])
def test_threads_out_of_range_are_refused(num_threads: int) -> None:
    with pytest.raises(sora.InvalidRequest, match=f"num_threads = {num_threads} is out of range"):
        sora.Runtime.load("wan-pocket", num_threads=num_threads)


def test_numbers_of_numpy_are_numbers(runtime: sora.Runtime) -> None:
    clip = runtime.generate(PROMPT, num_inference_steps=np.int64(1), guidance_scale=np.float32(2), seed=np.uint8(3))
    assert clip.receipt.request.num_inference_steps == 1 and clip.receipt.request.guidance_scale == 2.0


WAN = Strides(latent_channels=16, spatial_stride=8, temporal_stride=4, patch_size=(1, 2, 2))


def test_geometry_of_a_five_second_720p_wan_clip() -> None:
    geometry = Geometry.of(WAN, height=720, width=1280, num_frames=81)
    assert geometry.latent_shape == (1, 16, 21, 90, 160)
    assert geometry.tokens == 75_600


@pytest.mark.parametrize(
    ("height", "width", "frames", "message"),
    [
        (100, 96, 25, "height = 100 is not a positive multiple of 16; use 96 or 112"),
        (96, 8, 25, "width = 8 is not a positive multiple of 16; use 16"),
        (96, -16, 25, "width = -16"),
        (96, 96, 80, r"num_frames = 80 is not 4k\+1; use 77 or 81"),
        (96, 96, 0, r"num_frames = 0 is not 4k\+1; use 1"),
    ],
)
def test_geometry_names_the_nearest_sizes(height: int, width: int, frames: int, message: str) -> None:
    with pytest.raises(sora.InvalidRequest, match=message):
        Geometry.of(WAN, height=height, width=width, num_frames=frames)
