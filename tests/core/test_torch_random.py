"""TorchGenerator against torch itself, bit for bit; its pinned values are in tests/cpp/core."""

import random

import numpy as np
import pytest

from sora_runtime import _core

torch = pytest.importorskip("torch")

# torch fills tensors of 16 or more elements with AVX2 code where it can; TorchGenerator reproduces
# that code. On other CPUs torch itself returns other last bits.
LARGEST_PORTABLE = 15
HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
SEEDS = [0, 1, 42, 1234567, 5, 2**32 + 5, 2**63 - 1, 2**64 - 1, -1, -7, -(2**63)]


def both(seed: int) -> tuple[_core.TorchGenerator, "torch.Generator"]:
    """The two generators; a negative seed is its two's complement, as in torch."""
    return _core.TorchGenerator(seed % 2**64), torch.Generator("cpu").manual_seed(seed)


def assert_same_bits(ours: np.ndarray, theirs: "torch.Tensor") -> None:
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.numpy().reshape(-1).view(np.uint32))


def lengths() -> list[int]:
    small = list(range(1, LARGEST_PORTABLE + 1))
    return [*small, *range(16, 41), 100, 1000, 4097] if HAS_AVX2 else small


@pytest.mark.parametrize("seed", SEEDS)
def test_one_call(seed: int) -> None:
    for n in lengths():
        ours, theirs = both(seed)
        assert_same_bits(ours.randn(n), torch.randn(n, generator=theirs))


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_calls_continue_the_state(seed: int) -> None:
    ours, theirs = both(seed)
    choose = random.Random(seed)
    for _ in range(200):
        n = choose.choice(lengths())
        assert_same_bits(ours.randn(n), torch.randn(n, generator=theirs))


@pytest.mark.skipif(not HAS_AVX2, reason="torch takes another path on this CPU")
def test_large_tensor_is_filled_in_order() -> None:
    """A million numbers, as a 5-D latent: torch does not split the fill among its threads."""
    ours, theirs = both(42)
    assert_same_bits(ours.randn(10**6), torch.randn(1, 16, 25, 50, 50, generator=theirs))


def test_empty_call_changes_nothing() -> None:
    ours, theirs = both(3)
    assert ours.randn(0).size == 0
    assert_same_bits(ours.randn(3), torch.randn(3, generator=theirs))


def test_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\bn\b"):
        _core.TorchGenerator(0).randn(-1)
