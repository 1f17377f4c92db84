"""The layers that several transformers are built of: attention with its projections, feed-forward, embedders."""

from __future__ import annotations

from dataclasses import dataclass

from sora_runtime.cost.architectures.common import constant
from sora_runtime.cost.work import Rows, WorkBuilder

# Reads plus writes of the whole tensor by eager PyTorch, one kernel an operator.
NORM_PASSES = 2  # torch's own LayerNorm and RMSNorm: one kernel on a GPU
COMPOSED_NORM_PASSES = 10  # an RMSNorm written out: cast, square, mean, scale, cast back, weight
MODULATION_PASSES = 4  # x * (1 + scale) + shift
GATED_RESIDUAL_PASSES = 5  # x + gate * y
RESIDUAL_PASSES = 3
CAST_PASSES = 2
SINUSOID = 256  # channels of a timestep before its network


@dataclass(frozen=True)
class AttentionShape:
    """Widths of an attention with its projections.

    Args:
        width: of what enters and leaves.
        inner: heads x head size; 0 means `width`.
        context: of what is attended to; 0 means `width`.
        bias: of the projections of queries, keys and values.
        out_bias: of the last projection.
    """

    width: int
    inner: int = 0
    context: int = 0
    bias: bool = True
    out_bias: bool = True


def attention_layer(work: WorkBuilder, queries: Rows, keys: Rows, shape: AttentionShape, *, count: int) -> None:
    """`count` attentions with their four projections."""
    inner = shape.inner or shape.width
    work.linear(queries, shape.width, inner, count=count, bias=shape.bias)
    work.linear(keys, shape.context or shape.width, inner, count=2 * count, bias=shape.bias)
    work.attention(queries, keys, inner, count=count)
    work.linear(queries, inner, shape.width, count=count, bias=shape.out_bias)


def feed_forward(
    work: WorkBuilder, rows: Rows, width: int, inner: int, *, count: int, bias: bool = True, gated: bool = False
) -> None:
    """`count` two-layer perceptrons; a gated one multiplies two halves of its hidden layer."""
    work.linear(rows, width, inner, count=2 * count if gated else count, bias=bias)
    work.elementwise(rows, inner, passes=count * (5.0 if gated else 2.0))
    work.linear(rows, inner, width, count=count, bias=bias)


def caption_projection(work: WorkBuilder, rows: Rows, inputs: int, width: int) -> None:
    """Two layers that bring a text encoder's states to the transformer's width."""
    work.linear(rows, inputs, width)
    work.elementwise(rows, width, passes=2.0)
    work.linear(rows, width, width)


def timestep_network(work: WorkBuilder, rows: Rows, width: int, *, inputs: int = SINUSOID, outputs: int = 0) -> None:
    """Two layers over the sinusoids of a timestep."""
    work.linear(rows, inputs, width)
    work.elementwise(rows, width, passes=2.0)
    work.linear(rows, width, outputs or width)


def timestep_modulation(work: WorkBuilder, width: int, vectors: int, rows: Rows | None = None) -> None:
    """A timestep's network and the layer that makes `vectors` modulation vectors of it (adaLN-single)."""
    rows = rows or constant(1)
    timestep_network(work, rows, width)
    work.elementwise(rows, width, passes=2.0)
    work.linear(rows, width, vectors * width)
