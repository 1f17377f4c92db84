"""Philox noise against a second implementation of its documented layout (csrc/core/noise.h)."""

import math

import numpy as np
import pytest

from sora_runtime import _core

MASK = 2**32 - 1


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 of Salmon et al., SC'11, in plain integers."""
    for _ in range(10):
        product0, product1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            product1 >> 32 ^ counter[1] ^ key[0],
            product1 & MASK,
            product0 >> 32 ^ counter[3] ^ key[1],
            product0 & MASK,
        ]
        key = [key[0] + 0x9E3779B9 & MASK, key[1] + 0xBB67AE85 & MASK]
    return counter


def sample(i: int, seed: int, stream: int) -> float:
    k, lane = divmod(i, 4)
    bits = philox4x32([k & MASK, k >> 32, stream & MASK, stream >> 32], [seed & MASK, seed >> 32])
    u, v = ((word + 0.5) / 2**32 for word in bits[lane // 2 * 2 :][:2])
    trigonometric = math.cos if lane % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(u)) * trigonometric(2 * math.pi * v)


@pytest.mark.parametrize("seed", [0, 42, 2**32, 2**64 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2**32 + 1, 2**64 - 1])
def test_equals_the_documented_layout(seed: int, stream: int) -> None:
    expected = np.array([sample(i, seed, stream) for i in range(203)], np.float32)
    noise = _core.philox_normal(203, seed=seed, stream=stream, num_threads=1)
    assert noise.dtype == np.float32
    # Two C libraries may round one double differently: one last bit of the float.
    np.testing.assert_array_max_ulp(noise, expected, maxulp=1)


def test_does_not_depend_on_threads_or_length() -> None:
    whole = _core.philox_normal(100_001, seed=7, stream=3, num_threads=1)
    for n, num_threads in [(100_001, 2), (100_001, 7), (50_000, 3), (5, 8)]:
        part = _core.philox_normal(n, seed=7, stream=3, num_threads=num_threads)
        np.testing.assert_array_equal(part, whole[:n])
