"""How clips are cut: few tiles, none larger than they must be, and always one graph."""

from __future__ import annotations

import pytest

from sora_export.families.tiling import DROPPED, tile_record

LARGEST, OVERLAP = (9, 16, 16), (1, 2, 2)


def test_a_clip_that_fits_is_one_tile() -> None:
    assert tile_record((9, 16, 5), LARGEST, OVERLAP) == {"latent": [9, 16, 5], "stride": [9, 16, 5]}


def test_tiles_are_no_larger_than_they_must_be() -> None:
    """512x704 of LTX-Video: two tiles of 12 columns, where tiles of 16 would decode 10 of 22 columns twice."""
    assert tile_record((21, 16, 22), LARGEST, OVERLAP) == {"latent": [9, 16, 12], "stride": [7, 16, 10]}


@pytest.mark.parametrize("length", range(1, 80))
@pytest.mark.parametrize("axis", [0, 1])
def test_every_length(axis: int, length: int) -> None:
    """As few tiles as the largest ones would be, which share what they must and reach the end."""
    clip = [1, 1, 1]
    clip[axis] = length
    record = tile_record(clip, LARGEST, OVERLAP)
    size, stride = record["latent"][axis], record["stride"][axis]
    if length <= LARGEST[axis]:
        assert size == stride == length
        return
    shared = OVERLAP[axis] + DROPPED[axis]
    assert shared < size <= LARGEST[axis] and stride == size - shared
    few = -(-(length - shared) // (LARGEST[axis] - shared))
    count = -(-(length - size) // stride) + 1
    assert count == few
    # One latent less in each tile would not reach the end.
    assert count * size - (count - 1) * shared - length in range(count)
