"""Everything that is no clip, model, GPU or price is refused in a sentence, and nothing else ever comes out."""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Any

import pytest

from cost.whole_estimate import POCKET, WAN, assert_whole
from sora_runtime.cost.estimate import Ask, estimate_of
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.models import model_names
from sora_runtime.cost.settings import ATTENTIONS, ENGINE_BY_NAME, PRECISIONS
from sora_runtime.errors import InvalidRequest

HUGE = 10**5000

ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"num_frames": 0}, "frames = 0 is out of range; use 1 to 100000"),
    ({"num_frames": 80}, r"num_frames = 80 is not 4k\+1; use 77 or 81"),
    ({"num_frames": -81}, "frames = -81 is out of range"),
    ({"num_frames": 10**12}, "frames = 1000000000000 is out of range"),
    ({"num_frames": HUGE}, "num_frames has more than 30 digits"),
    ({"num_frames": "81"}, "num_frames = '81' is not a whole number"),
    ({"num_frames": 81.0}, "num_frames = 81.0 is not a whole number"),
    ({"num_frames": True}, "num_frames = True is not a whole number"),
    ({"num_frames": 81, "seconds": 5}, "frames and seconds were both given"),
    ({"width": 1281}, "width = 1281 is not a positive multiple of 16; use 1280 or 1296"),
    ({"height": 8}, "height = 8 is not a positive multiple of 16; use 16"),
    ({"width": math.nan}, "width = nan is not a whole number"),
    ({"height": 10**20}, "height = 100000000000000000000 is out of range"),
    ({"seconds": 0}, "seconds = 0 is out of range"),
    ({"seconds": -1}, "seconds = -1 is out of range"),
    ({"seconds": math.nan}, "seconds = nan is out of range"),
    ({"seconds": math.inf}, "seconds = inf is out of range"),
    ({"seconds": HUGE}, "seconds is beyond all numbers"),
    ({"seconds": 36_000, "fps": 1000}, "frames = 36000001 is out of range"),
    ({"fps": 0}, "fps = 0 is out of range"),
    ({"fps": math.nan}, "fps = nan is out of range"),
    ({"fps": 1e-300}, "fps = 1e-300 makes a clip of 8.1e.301 s"),
    ({"fps": "16"}, "fps = '16' is not a number"),
    ({"num_inference_steps": 0}, "steps = 0 is out of range"),
    ({"num_inference_steps": 10**9}, "steps = 1000000000 is out of range"),
    ({"guidance_scale": -1}, "guidance_scale = -1 is not 0 or more"),
    ({"guidance_scale": math.inf}, "guidance_scale = inf is not 0 or more"),
    ({"gpu_count": 0}, "gpu count = 0 is out of range; use 1 to 4096"),
    ({"gpu_count": 10**12}, "gpu count = 1000000000000 is out of range"),
    ({"gpu_count": None}, "gpu_count = None is not a whole number"),
    ({"gpu": "h10"}, "gpu = 'h10' is not in the catalogue; the nearest are h100-sxm"),
    ({"gpu": "Ⅷ-γπυ-🚀"}, "gpu = 'Ⅷ-γπυ-🚀' is not in the catalogue; the nearest are"),
    ({"gpu": ""}, "gpu is empty"),
    ({"gpu": "-"}, "gpu = '-' is not in the catalogue"),
    ({"gpu": None}, "gpu = None is not text"),
    ({"gpu": ["h100"]}, r"gpu = \['h100'\] is not text"),
    ({"gpu": "x" * 10_000}, "gpu = 'x+... is no name; give one of at most 4096 characters"),
    ({"model": "wan2.1-t2v-14"}, "model = 'wan2.1-t2v-14' is neither in the catalogue nor a path; use wan2.1-t2v-14b"),
    ({"model": ""}, "model is empty"),
    ({"model": "   "}, "model is empty"),
    ({"model": "a" * 1000}, "model = 'a+'... is no path"),
    ({"model": "a\0b"}, "is no name"),
    ({"model": "/dev/null"}, "model = '/dev/null' cannot be read"),
    ({"model": 14}, "model = 14 is not text"),
    ({"precision": "int3"}, "precision = 'int3' is not known; use one of bf16"),
    ({"engine": "torch"}, "engine = 'torch' is not known; use one of"),
    ({"attention": "fa9"}, "attention = 'fa9' is not known; use one of fa2"),
    ({"step_reuse": 1.0}, "step_reuse = 1 is out of range"),
    ({"step_reuse": -0.1}, "step_reuse = -0.1 is out of range"),
    ({"step_reuse": "nan"}, "step_reuse = nan is out of range"),
    ({"step_reuse": "coffee"}, "step_reuse = 'coffee' is neither a share nor a method"),
    ({"step_reuse": True}, "step_reuse = True is not a number"),
    ({"parallelism": "ulysses4"}, "parallelism = 'ulysses4' makes 4 GPUs of 1"),
    ({"parallelism": "banana", "gpu_count": 4}, "parallelism = 'banana' is not understood"),
    ({"parallelism": "vae", "gpu_count": 4}, "parallelism = 'vae' is not understood"),
    ({"parallelism": "cfg2 cfg2", "gpu_count": 4}, "names a way twice"),
    ({"parallelism": "cfg0", "gpu_count": 4}, "names a way twice or with 0 GPUs"),
    ({"parallelism": "cfg3", "gpu_count": 4}, "makes 3 GPUs of 4"),
    ({"price": 0}, "price = 0 is not above 0 USD an hour"),
    ({"price": -2.5}, "price = -2.5 is not above 0 USD an hour"),
    ({"price": math.nan}, "price = nan is not above 0"),
    ({"price": "inf"}, "price = inf is not above 0"),
    ({"price": 1e300}, r"price = 1e\+300 USD a GPU-hour is out of range"),
    ({"price": "1e-320"}, "price = .* USD a GPU-hour is out of range"),
    ({"price": "cheap"}, "price = 'cheap' is neither a number of USD an hour nor a price of h100-sxm"),
    ({"price": []}, r"price = \[\] is not a number"),
    ({"price": False}, "price = False is not a number"),
    ({"assumptions": {"pu": 1.2}}, "assumption 'pu' is unknown; the nearest are pue"),
    ({"assumptions": {"pue": math.nan}}, "pue = nan is out of range"),
    ({"assumptions": {"pue": "1.2"}}, "pue = '1.2' is not a number"),
    ({"assumptions": {"utilisation": 0}}, "utilisation = 0 is out of range"),
    ({"assumptions": {"cold_start_seconds": 1e308}}, "for a minute of video is no price"),
    ({"assumptions": {"clip_megabits": 1e308, "egress_price": 0.0}}, "for a minute of video is no price"),
    ({"assumptions": {"capital_price": 1e308}}, "USD a GPU-hour is out of range"),
    ({"image": None}, "image = None is neither True nor False"),
    ({"compiled": "no"}, "compiled = 'no' is neither True nor False"),
    ({"pace": 0.01}, "pace = 0.01 is of this machine; ask with gpu = 'this-machine', or leave it out"),
    ({"pace": 0, "gpu": "this-machine"}, "pace = 0.0 is out of range; use seconds"),
    ({"pace": math.nan, "gpu": "this-machine"}, "pace = nan is out of range"),
    ({"assumptions": 3}, "assumptions = 3 is no mapping"),
]


@pytest.mark.parametrize(("wanted", "sentence"), ABSURD, ids=[f"{i}" for i in range(len(ABSURD))])
def test_the_absurd_is_refused_in_a_sentence(wanted: dict[str, Any], sentence: str) -> None:
    asked = {"model": WAN} | wanted
    with pytest.raises(InvalidRequest, match=sentence) as refusal:
        estimate_of(Ask(**asked))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def odd(random_: random.Random, usual: list[Any]) -> Any:
    """Mostly something sensible, sometimes anything at all."""
    if random_.random() < 0.8:
        return random_.choice(usual)
    return random_.choice(
        [
            *(
                None,
                True,
                "",
                " ",
                "nan",
                "🚀",
                "\0",
                "a" * 300,
                "-1",
                b"x",
                [],
                {},
                object,
                math.nan,
                math.inf,
                -math.inf,
            ),
            *(0, -0.0, -1, 1e-320, 1e308, 10**12, 10**400, HUGE, 2.5, 80, random_.uniform(-1e6, 1e6), 'x,y\n"z'),
        ]
    )


def odd_ask(random_: random.Random) -> Ask:
    usual: dict[str, list[Any]] = {
        "model": [*model_names(), str(POCKET)],
        "gpu": [*gpus(), "H100"],
        "gpu_count": [1, 1, 2, 4, 7, 8],
        "width": [None, 832, 1280, 640],
        "height": [None, 480, 704, 352],
        "num_frames": [None, None, 1, 81, 49],
        "seconds": [None, None, 5, 0.3],
        "fps": [None, 24, 16.0],
        "num_inference_steps": [None, 4, 50],
        "guidance_scale": [None, 0, 1, 5.5],
        "image": [False, True],
        "precision": list(PRECISIONS),
        "engine": list(ENGINE_BY_NAME),
        "attention": [None, *ATTENTIONS],
        "compiled": [None, True, False],
        "step_reuse": [None, 0.3, "teacache", "0.5"],
        "parallelism": [None, None, "cfg2", "ulysses2 ring2", "tensor2"],
        "price": [None, 2.5, "spot", "2.3 EUR", "reserved"],
        "assumptions": [{}, {"utilisation": 0.5}, {"capital_price": 20_000.0}],
        "pace": [None],
    }
    assert usual.keys() == {each.name for each in fields(Ask)}
    chosen = {name: odd(random_, values) if random_.random() < 0.3 else values[0] for name, values in usual.items()}
    return Ask(**chosen | {"model": odd(random_, usual["model"])})


@pytest.mark.parametrize("seed", range(4))
def test_anything_is_answered_or_refused(seed: int) -> None:
    random_ = random.Random(seed)
    answered = 0
    for _ in range(250):
        ask = odd_ask(random_)
        try:
            found = estimate_of(ask)
        except InvalidRequest as refusal:
            assert str(refusal)
            continue
        assert_whole(found)
        answered += 1
    assert 25 < answered < 225  # both ways were taken
