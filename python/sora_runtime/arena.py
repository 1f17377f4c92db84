"""One piece of memory for tensors whose lifetimes are known: where each of them lies, worked out ahead of time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIGNMENT = 256  # bytes, as cudaMalloc aligns


@dataclass(frozen=True)
class Tensor:
    """Something that needs memory from one moment to another.

    Attributes:
        name: unique within an arena.
        bytes: its size.
        first: the first moment at which it holds something.
        last: the last such moment; another tensor may take its place from the next one on.
    """

    name: str
    bytes: int
    first: int
    last: int

    def meets(self, other: "Tensor") -> bool:
        """Whether both hold something at the same moment."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Layout:
    """Where tensors lie.

    Attributes:
        offsets: of each tensor, in bytes from the start; multiples of `ALIGNMENT`.
        bytes: of the whole piece.
        alive: bytes of all tensors that hold something at the worst moment: no layout can do with less.
    """

    offsets: Mapping[str, int]
    bytes: int
    alive: int


def lay_out(tensors: Iterable[Tensor]) -> Layout:
    """Lay tensors out so that those of different moments share memory.

    Greedy by size (arXiv:2001.03288, section 5.2): the largest first, each in the smallest gap between tensors of the
    same moments that holds it, else behind them.

    Raises:
        ValueError: two tensors have one name, or a lifetime ends before it begins.
    """
    tensors = list(tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors of an arena have one name")
    if any(tensor.last < tensor.first or tensor.bytes < 0 for tensor in tensors):
        raise ValueError("a tensor of an arena ends before it begins, or has a negative size")
    placed: list[tuple[Tensor, int]] = []
    for tensor in sorted(tensors, key=lambda each: (-each.bytes, each.first, each.name)):
        placed.append((tensor, _place(tensor, placed)))
    moments = range(max((tensor.last for tensor in tensors), default=-1) + 1)
    alive = max(
        (sum(_rounded(t.bytes) for t in tensors if t.first <= moment <= t.last) for moment in moments), default=0
    )
    end = max((offset + _rounded(tensor.bytes) for tensor, offset in placed), default=0)
    return Layout({tensor.name: offset for tensor, offset in placed}, end, alive)


def _place(tensor: Tensor, placed: list[tuple[Tensor, int]]) -> int:
    """The offset of a tensor among those that hold something when it does."""
    size, gaps, end = _rounded(tensor.bytes), [], 0
    for other, offset in sorted(placed, key=lambda pair: pair[1]):
        if not tensor.meets(other):
            continue
        if offset - end >= size:
            gaps.append((offset - end, end))
        end = max(end, offset + _rounded(other.bytes))
    return min(gaps)[1] if gaps else end


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
