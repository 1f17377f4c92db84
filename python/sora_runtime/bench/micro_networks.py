"""Small transformers, whole, as they are exported.

They tell what operators take in a network's midst, where each finds the caches full of the others' data, against what
they take alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from sora_runtime.bench.micro_graphs import SPREAD, VECTORS, attend, linear, modulation, weight
from sora_runtime.bench.onnx_bytes import GraphBytes
from sora_runtime.cost.architectures.common import Conditioning
from sora_runtime.cost.architectures.wan import wan_transformer
from sora_runtime.cost.machine_time import Networks
from sora_runtime.cost.work import Sizes

CHANNELS, FREQUENCIES, PATCH = 16, 256, (1, 2, 2)


@dataclass(frozen=True)
class SmallTransformer:
    """Wan's network at a small size.

    Attributes:
        latents: frames, rows and columns.
        heads, head_channels: of the attentions; their product is the width.
        text_tokens: rows of the text, as wide as the network.
        layers: blocks.
    """

    latents: tuple[int, int, int]
    heads: int
    head_channels: int
    text_tokens: int
    layers: int

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.heads * self.head_channels

    @property
    def sizes(self) -> Sizes:
        """As the cost model takes them."""
        frames, rows, columns = self.latents
        return Sizes(frames * (rows // 2) * (columns // 2), rows * columns, frames)

    @property
    def networks(self) -> Networks:
        """The work of one evaluation."""
        config = {
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_channels,
            "ffn_dim": SPREAD * self.width,
            "num_layers": self.layers,
            "text_dim": self.width,
            "freq_dim": FREQUENCIES,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
        }
        work = wan_transformer(config, Conditioning(self.text_tokens))
        return Networks(work, self.width, self.head_channels, self.text_tokens)

    def graph(self, *, int8: bool) -> bytes:
        """The whole network; int8 is the blocks' products and the blockwise attention, as in int8 bundles."""
        return _Writer(self, int8).graph()


class _Writer:
    """Writes one graph."""

    def __init__(self, size: SmallTransformer, int8: bool) -> None:
        self._size, self._int8 = size, int8
        self._g = GraphBytes()
        self._rows, self._width = size.sizes.tokens, size.width

    def graph(self) -> bytes:
        g, size, width = self._g, self._size, self._width
        shape = (1, CHANNELS, *size.latents)
        latents = g.input("latents", shape)
        time = self._time(g.input("timestep", (1, 1)))
        text = self._exact(g.input("text", (size.text_tokens, width)), width, width)
        text = self._exact(g.node("Gelu", text, approximate="tanh"), width, width)
        angles = [g.input(name, (1, self._rows, size.head_channels // 2)) for name in ("cosines", "sines")]
        patches = weight(g, width, CHANNELS, *PATCH)
        x = g.node("Conv", latents, patches, self._vector(), kernel_shape=PATCH, strides=PATCH)
        x = g.node("Transpose", g.node("Reshape", x, g.integers(width, self._rows)), perm=(1, 0))
        six = g.node("Reshape", self._exact(time, width, VECTORS * width), g.integers(1, VECTORS, width))
        for _ in range(size.layers):
            x = self._block(x, text, six, angles)
        g.output(self._latents(x, time), shape)
        return g.model()

    def _vector(self) -> str:
        return weight(self._g, self._width)

    def _exact(self, x: str, inputs: int, outputs: int) -> str:
        return linear(self._g, x, inputs, outputs, int8=False)

    def _linear(self, x: str, inputs: int | None = None, outputs: int | None = None) -> str:
        return linear(self._g, x, inputs or self._width, outputs or self._width, int8=self._int8)

    def _time(self, timestep: str) -> str:
        g = self._g
        angles = g.node("Mul", timestep, weight(g, 1, FREQUENCIES // 2))
        x = g.node("Concat", g.node("Cos", angles), g.node("Sin", angles), axis=-1)
        for inputs in (FREQUENCIES, self._width):
            x = self._exact(x, inputs, self._width)
            x = g.node("Mul", x, g.node("Sigmoid", x))
        return x

    def _three(self, x: str, rows: int) -> str:
        return self._g.node("Reshape", x, self._g.integers(1, rows, self._width))

    def _normed(self, x: str, rows: int) -> str:
        return self._three(self._g.node("RMSNormalization", self._linear(x), self._vector(), axis=-1), rows)

    def _attended(self, q: str, k: str, v: str) -> str:
        x = attend(self._g, q, k, v, self._size.heads, blockwise=self._int8)
        return self._linear(self._g.node("Reshape", x, self._g.integers(self._rows, self._width)))

    def _block(self, x: str, text: str, six: str, angles: list[str]) -> str:
        g, rows, width = self._g, self._rows, self._width
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation(g, six, width)
        n = g.node("LayerNormalization", x, scale, shift, axis=-1)
        q, k = (
            g.node("RotaryEmbedding", self._normed(n, rows), *angles, interleaved=1, num_heads=self._size.heads)
            for _ in range(2)
        )
        attended = self._attended(q, k, self._three(self._linear(n), rows))
        x = g.node("Add", x, g.node("Mul", attended, gate))
        n = g.node("LayerNormalization", x, self._vector(), self._vector(), axis=-1)
        keys = self._size.text_tokens
        q, k, v = self._normed(n, rows), self._normed(text, keys), self._three(self._linear(text), keys)
        x = g.node("Add", x, self._attended(q, k, v))
        n = g.node("LayerNormalization", x, scale_2, shift_2, axis=-1)
        hidden = g.node("Gelu", self._linear(n, width, SPREAD * width), approximate="tanh")
        return g.node("Add", x, g.node("Mul", self._linear(hidden, SPREAD * width, width), gate_2))

    def _latents(self, x: str, time: str) -> str:
        g, (frames, rows, columns) = self._g, self._size.latents
        shift, scale = modulation(g, g.node("Reshape", time, g.integers(1, 1, self._width)), self._width, 2)
        x = self._exact(g.node("LayerNormalization", x, scale, shift, axis=-1), self._width, CHANNELS * 4)
        x = g.node("Reshape", x, g.integers(1, frames, rows // 2, columns // 2, 1, 2, 2, CHANNELS))
        x = g.node("Transpose", x, perm=(0, 7, 1, 4, 2, 5, 3, 6))
        return g.node("Reshape", x, g.integers(1, CHANNELS, frames, rows, columns))


# Narrow to wide, off the sizes of the models that the benchmark predicts (192 and 1536 wide). Weights of each fill more
# than a core's caches.
SMALL_TRANSFORMERS = (
    SmallTransformer((1, 16, 16), heads=5, head_channels=32, text_tokens=64, layers=8),
    SmallTransformer((4, 16, 16), heads=4, head_channels=64, text_tokens=64, layers=4),
    SmallTransformer((7, 16, 16), heads=10, head_channels=64, text_tokens=128, layers=2),
    SmallTransformer((4, 32, 32), heads=15, head_channels=64, text_tokens=256, layers=1),
)


def elements(size: SmallTransformer) -> float:
    """Of the residual stream: how much data operators hand on to each other."""
    return float(size.sizes.tokens * size.width)
