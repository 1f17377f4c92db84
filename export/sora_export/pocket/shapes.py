"""Outlines of the six shapes as signed distances, written once for NumPy (detectors) and PyTorch (renderer)."""

from __future__ import annotations

import math
from typing import Any

_STAR_OUTER, _STAR_INNER = 1.15, 0.48


def signed_distance(shape: str, x: Any, y: Any, xp: Any) -> Any:
    """Distance from (x, y) to the outline of `shape`, negative inside, in units of the shape's radius.

    `x` points right and `y` down, both arrays of one shape; `xp` is the module `numpy` or `torch`.
    Distances are exact near straight edges, which is all that anti-aliasing needs.
    """
    return _OUTLINES[shape](x, y, xp)


def _circle(x: Any, y: Any, xp: Any) -> Any:
    return xp.sqrt(x * x + y * y + 1e-9) - 0.95


def _square(x: Any, y: Any, xp: Any) -> Any:
    return xp.maximum(xp.abs(x), xp.abs(y)) - 0.85


def _triangle(x: Any, y: Any, xp: Any) -> Any:
    half = math.sqrt(3) / 2
    sides = half * xp.abs(x) - 0.5 * y
    return xp.maximum(sides, y) - 0.6


def _star(x: Any, y: Any, xp: Any) -> Any:
    sector = 2 * math.pi / 5
    radius = xp.sqrt(x * x + y * y + 1e-9)
    angle = xp.remainder(xp.arctan2(x, -y) + sector / 2, sector) - sector / 2
    u, v = radius * xp.cos(angle), xp.abs(radius * xp.sin(angle))
    inner_u = _STAR_INNER * math.cos(sector / 2)
    inner_v = _STAR_INNER * math.sin(sector / 2)
    edge_u, edge_v = inner_u - _STAR_OUTER, inner_v
    length = math.hypot(edge_u, edge_v)
    return ((u - _STAR_OUTER) * edge_v - v * edge_u) / length


def _cross(x: Any, y: Any, xp: Any) -> Any:
    ax, ay = xp.abs(x), xp.abs(y)
    horizontal = xp.maximum(ax - 1.0, ay - 0.34)
    vertical = xp.maximum(ax - 0.34, ay - 1.0)
    return xp.minimum(horizontal, vertical)


def _ring(x: Any, y: Any, xp: Any) -> Any:
    return xp.abs(xp.sqrt(x * x + y * y + 1e-9) - 0.74) - 0.26


_OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
