"""The graphs that a calibration runs: the operators of exported networks, alone and in the order of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime.bench.onnx_bytes import GraphBytes

MICROSOFT = "com.microsoft"
SPREAD = 4  # of the feed-forward layer
SMALL_NETWORK = 4e6  # weights of a network of narrow layers
LARGE_NETWORK = 48e6  # bytes of weights that no cache holds
VECTORS = 6  # of a block's modulation: shift, scale and gate, twice
_STRIDE = 7919  # a prime: constants begin at other places of the same numbers
WIDE = 1000  # channels from which networks are large
MANY_ROWS = 1000  # with which a weight that was read serves 2,000 FLOPs: 0.4 GB/s for 200 GFLOP/s


@cache
def _normals() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(1 << 16, np.float32)


def filled(*shape: int) -> NDArray[np.float32]:
    """Normal numbers, over and over: their values do not matter, zeros might."""
    return np.resize(_normals(), shape)


def weight(graph: GraphBytes, *shape: int, scale: float = 1.0) -> str:
    """Of a layer that keeps the scale of what it is given, or multiplies it."""
    return graph.constant(_others(_normals(), graph, shape) * np.float32(scale * shape[-1] ** -0.5))


def _bytes(graph: GraphBytes, *shape: int) -> str:
    """7 bits, as sora_export.quantize_cpu writes them."""
    return graph.constant(_others(_normal_bytes(), graph, shape))


@cache
def _normal_bytes() -> NDArray[np.int8]:
    rounded: NDArray[np.int8] = np.clip(np.rint(_normals() * 20.0), -63, 63).astype(np.int8)
    return rounded


def _others(numbers: NDArray[Any], graph: GraphBytes, shape: Sequence[int]) -> NDArray[Any]:
    """Other numbers for each constant: ONNX Runtime keeps equal ones once, and a cache then holds them."""
    return np.resize(np.roll(numbers, graph.count * _STRIDE), shape)


def products(rows: int, width: int, *, int8: bool) -> bytes:
    """Matrix products in a chain, as in blocks: width -> width -> 4 x width -> width and again, each with a bias.

    The chain is so long that its weights are read from where a whole network's would be: beyond the caches of a core,
    and of wide networks, beyond the processor's.
    """
    graph = GraphBytes()
    x = graph.input("x", (rows, width))
    for _ in range(product_blocks(rows, width, int8=int8)):
        for inputs, outputs in product_shapes(width):
            x = linear(graph, x, inputs, outputs, int8=int8)
    graph.output(x, (rows, width))
    return graph.model()


def linear(graph: GraphBytes, x: str, inputs: int, outputs: int, *, int8: bool) -> str:
    """A product with a weight and a bias, as bundles of that precision have it."""
    bias = graph.constant(np.zeros(outputs, np.float32))
    if not int8:
        return graph.node("Gemm", x, weight(graph, outputs, inputs), bias, transB=1)
    scale = graph.constant(np.full(outputs, 0.05 * inputs**-0.5, np.float32))
    return graph.node("DynamicQuantizeMatMul", x, _bytes(graph, inputs, outputs), scale, "", bias, domain=MICROSOFT)


def product_blocks(rows: int, width: int, *, int8: bool) -> int:
    """How many triples of products a chain has."""
    weights = sum(inputs * outputs for inputs, outputs in product_shapes(width))
    if width < WIDE:
        return max(1, round(SMALL_NETWORK / weights))
    if rows >= MANY_ROWS:
        return 1
    return max(1, round(LARGE_NETWORK / (weights if int8 else 4 * weights)))


def product_shapes(width: int) -> list[tuple[int, int]]:
    """Inputs and outputs of each of `products`."""
    return [(width, width), (width, SPREAD * width), (SPREAD * width, width)]


@dataclass(frozen=True)
class AttentionSize:
    """Of one attention."""

    heads: int
    head_channels: int
    queries: int
    keys: int


def attention(size: AttentionSize, *, blockwise: bool) -> bytes:
    """One attention by itself."""
    graph = GraphBytes()
    width = size.heads * size.head_channels
    rows = {"q": size.queries, "k": size.keys, "v": size.keys}
    q, k, v = (graph.input(name, (1, count, width)) for name, count in rows.items())
    if blockwise:  # as in int8 graphs, whose attention runs on other kernels than a float32 one's: a linear of one row
        graph.output(linear(graph, graph.input("x", (1, 64)), 64, 64, int8=True), (1, 64))
    graph.output(attend(graph, q, k, v, size.heads, blockwise=blockwise), (1, size.queries, width))
    return graph.model()


def block_rest(tokens: int, width: int, head_channels: int) -> bytes:
    """All of a transformer's block but products and attentions, in the order of the exported graph."""
    graph = GraphBytes()
    stream, time = graph.input("stream", (tokens, width)), graph.input("time", (1, VECTORS, width))
    queries, keys, attended, crossed, answer, output = (
        graph.input(name, (tokens, width)) for name in ("queries", "keys", "attended", "crossed", "answer", "output")
    )
    hidden = graph.input("hidden", (tokens, SPREAD * width))
    angles = [graph.input(name, (1, tokens, head_channels // 2)) for name in ("cosines", "sines")]
    shift, scale, gate, shift_2, scale_2, gate_2 = modulation(graph, time, width)
    batch = graph.integers(1, tokens, width)

    def vector() -> str:
        return weight(graph, width)

    ends = [graph.node("LayerNormalization", stream, scale, shift, axis=-1)]
    for x in (queries, keys):
        heads = graph.node("Reshape", graph.node("RMSNormalization", x, vector(), axis=-1), batch)
        ends.append(graph.node("RotaryEmbedding", heads, *angles, interleaved=1, num_heads=width // head_channels))
    stream = graph.node("Add", stream, graph.node("Mul", attended, gate))
    ends.append(graph.node("LayerNormalization", stream, vector(), vector(), axis=-1))
    ends.append(graph.node("Reshape", graph.node("RMSNormalization", crossed, vector(), axis=-1), batch))
    stream = graph.node("Add", stream, answer)
    ends.append(graph.node("LayerNormalization", stream, scale_2, shift_2, axis=-1))
    ends.append(graph.node("Add", stream, graph.node("Mul", output, gate_2)))
    for index, x in enumerate(ends):
        shape = (1, tokens, width) if index in {1, 2, 4} else (tokens, width)
        graph.output(x, shape)
    graph.output(graph.node("Gelu", hidden, approximate="tanh"), (tokens, SPREAD * width))
    return graph.model()


def modulation(graph: GraphBytes, time: str, width: int, count: int = VECTORS) -> list[str]:
    """Vectors of a block: its table and the timestep's, shift before scale before gate; one plus each scale."""
    table = weight(graph, 1, count, width)
    flat = graph.node("Reshape", graph.node("Add", table, time), graph.integers(count * width))
    ends = [graph.integers(i * width) for i in range(count + 1)]
    vectors = [graph.node("Slice", flat, ends[i], ends[i + 1]) for i in range(count)]
    one = graph.constant(np.array(1.0, np.float32))
    for i in range(1, count, 3):
        vectors[i] = graph.node("Add", vectors[i], one)
    return vectors


def attend(graph: GraphBytes, q: str, k: str, v: str, heads: int, *, blockwise: bool) -> str:
    """An attention: ONNX's operator (float32 bundles) or ONNX Runtime's blockwise one (all others)."""
    if blockwise:
        return graph.node("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads)
    return graph.node("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)


@dataclass(frozen=True)
class Map:
    """A feature map of a decoder."""

    channels: int
    frames: int
    side: int

    @property
    def positions(self) -> int:
        """In all frames."""
        return self.frames * self.side * self.side


def convolution(size: Map) -> bytes:
    """A causal 3x3x3 convolution whose cached frames are in front already."""
    graph = GraphBytes()
    x = graph.input("x", (1, size.channels, size.frames + 2, size.side, size.side))
    kernel = weight(graph, size.channels, size.channels, 3, 3, 3, scale=0.1)
    bias = graph.constant(np.zeros(size.channels, np.float32))
    x = graph.node("Conv", x, kernel, bias, kernel_shape=(3, 3, 3), pads=(0, 1, 1, 0, 1, 1))
    graph.output(x, (1, size.channels, size.frames, size.side, size.side))
    return graph.model()


def convolution_rest(size: Map) -> bytes:
    """Norm, activation, cache and residual around one convolution of a causal decoder."""
    graph = GraphBytes()
    shape = (1, size.channels, size.frames, size.side, size.side)
    kept = (1, size.channels, 2, size.side, size.side)
    x, cache = graph.input("x", shape), graph.input("cache", kept)
    axis = graph.integers(1)
    length = graph.node(
        "Clip", graph.node("ReduceL2", x, axis, keepdims=1), graph.constant(np.array(1e-12, np.float32))
    )
    gamma = graph.constant(np.ones((size.channels, 1, 1, 1), np.float32))
    normed = graph.node("Mul", graph.node("Div", x, length), gamma)
    active = graph.node("Mul", normed, graph.node("Sigmoid", normed))
    joined = graph.node("Concat", cache, active, axis=2)
    ends = (graph.integers(size.frames), graph.integers(size.frames + 2), graph.integers(2))
    graph.output(graph.node("Slice", joined, *ends), kept)
    graph.output(joined, (1, size.channels, size.frames + 2, size.side, size.side))
    graph.output(graph.node("Add", x, active), shape)
    return graph.model()
