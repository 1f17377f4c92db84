"""Every family that can be built, as a small random checkpoint: what the tests and the families' table go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tiny_checkpoint import save_tiny_checkpoint, save_tiny_i2v_2_1, save_tiny_i2v_a14b, save_tiny_ti2v
from tiny_cogvideox import save_tiny_cogvideox
from tiny_hunyuan import save_tiny_hunyuan
from tiny_hunyuan15 import save_tiny_hunyuan15
from tiny_ltx import save_tiny_ltx


@dataclass(frozen=True)
class Variant:
    """A model as its authors released it, made small: same classes, same switches, random weights."""

    name: str
    save: Callable[[Path], Path]
    size: tuple[int, int]  # height, width
    num_frames: int


VARIANTS = [
    Variant("Wan 2.1 T2V", save_tiny_checkpoint, (32, 48), 9),
    Variant("Wan 2.1 I2V", save_tiny_i2v_2_1, (32, 48), 9),
    Variant("Wan 2.2 T2V-A14B", partial(save_tiny_checkpoint, two_experts=True), (32, 48), 9),
    Variant("Wan 2.2 I2V-A14B", save_tiny_i2v_a14b, (32, 48), 9),
    Variant("Wan 2.2 TI2V-5B", save_tiny_ti2v, (64, 96), 9),
    Variant("LTX-Video 0.9", partial(save_tiny_ltx, variant="0.9"), (32, 96), 17),
    Variant("LTX-Video 0.9.5", partial(save_tiny_ltx, variant="0.9.5"), (32, 96), 17),
    Variant("CogVideoX-2B", partial(save_tiny_cogvideox, variant="2b"), (32, 48), 17),
    Variant("CogVideoX-5B", partial(save_tiny_cogvideox, variant="5b"), (48, 40), 17),
    Variant("CogVideoX-5B-I2V", partial(save_tiny_cogvideox, variant="5b_i2v"), (40, 56), 17),
    Variant("CogVideoX1.5-5B", partial(save_tiny_cogvideox, variant="1_5"), (32, 48), 17),
    Variant("CogVideoX1.5-5B-I2V", partial(save_tiny_cogvideox, variant="1_5_i2v"), (40, 48), 17),
    Variant("HunyuanVideo", save_tiny_hunyuan, (48, 80), 13),
    Variant("HunyuanVideo-I2V", partial(save_tiny_hunyuan, kind="token_replace"), (48, 80), 13),
    Variant("HunyuanVideo-1.5 T2V", partial(save_tiny_hunyuan15, task="t2v"), (24, 40), 13),
    Variant("HunyuanVideo-1.5 I2V", partial(save_tiny_hunyuan15, task="i2v"), (24, 32), 13),
]
