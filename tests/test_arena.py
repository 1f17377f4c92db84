"""The layout of an arena: nothing overlaps what is alive beside it, and moments share memory."""

import numpy as np
import pytest

from sora_runtime.arena import ALIGNMENT, Layout, Tensor, lay_out


def check(tensors: list[Tensor], layout: Layout) -> None:
    assert set(layout.offsets) == {tensor.name for tensor in tensors}
    for tensor in tensors:
        start = layout.offsets[tensor.name]
        assert start % ALIGNMENT == 0 and start + tensor.bytes <= layout.bytes
        for other in tensors:
            if other is not tensor and tensor.meets(other) and tensor.bytes and other.bytes:
                beginning = layout.offsets[other.name]
                assert start + tensor.bytes <= beginning or beginning + other.bytes <= start, (tensor, other)


def test_networks_that_never_run_together_share_their_scratch() -> None:
    tensors = [
        Tensor("text", 1000, 0, 0),
        Tensor("embeddings", 100, 0, 1),
        Tensor("transformer", 5000, 1, 1),
        Tensor("latents", 300, 1, 2),
        Tensor("decoder", 4000, 2, 2),
    ]
    layout = lay_out(tensors)
    check(tensors, layout)
    assert layout.bytes == layout.alive == 5120 + 256 + 512
    assert layout.offsets["text"] == layout.offsets["transformer"] == layout.offsets["decoder"] == 0


def test_any_tensors_are_laid_out_near_what_is_alive() -> None:
    rng = np.random.default_rng(0)
    worst = 1.0
    for _ in range(200):
        count = int(rng.integers(1, 30))
        first = rng.integers(0, 10, count)
        last = np.minimum(first + rng.integers(0, 10, count), 9)
        sizes = (10 ** rng.uniform(0, 6, count)).astype(int)
        tensors = [Tensor(f"{i}", int(sizes[i]), int(first[i]), int(last[i])) for i in range(count)]
        layout = lay_out(tensors)
        check(tensors, layout)
        assert layout.bytes >= layout.alive
        worst = max(worst, layout.bytes / layout.alive)
    assert worst < 1.5  # a bound of the method on such tensors, not of the problem


def test_nothing_needs_nothing() -> None:
    assert lay_out([]) == Layout({}, 0, 0)
    assert lay_out([Tensor("a", 0, 0, 3)]).bytes == 0


@pytest.mark.parametrize(
    "tensors",
    [
        [Tensor("a", 1, 0, 0), Tensor("a", 1, 1, 1)],
        [Tensor("a", 1, 2, 1)],
        [Tensor("a", -1, 0, 0)],
    ],
)
def test_what_is_no_lifetime_is_refused(tensors: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="of an arena"):
        lay_out(tensors)
