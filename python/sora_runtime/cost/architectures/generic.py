"""The layers that the joint transformers share, and two classes for models that diffusers has no class for.

A card of such a model gives explicit keys, so that one more model is one more TOML file. Keys of both classes:

    num_layers, width, heads, in_channels   required; `out_channels` defaults to `in_channels`
    patch = [1, 2, 2]                       latent frames, rows and columns of one token
    head_dim = width / heads
    feed_forward = 4 width, gated = false   a gated one has three matrices
    bias = true                             of the blocks' projections
    query_norm = true                       queries and keys are normalised by head
    text_width = 4096, text_layers = 1      the caption's projection: its input and its number of matrices
    text_width_2 = 0, text_tokens_2 = 0     a second caption, projected by one matrix and appended to the first
    pooled_width = 0                        one vector added to the timestep's embedding, two matrices
    guidance_embedding = false              the guidance scale is embedded as the timestep is
    condition_channels = 0                  of a second input that each token gets besides its own latents

"SelfCrossTransformer": self-attention over the video, cross-attention to the caption, feed-forward.

    key_value_heads = heads, cross_key_value_heads = heads
    time_width = width                      of the timestep's embedding
    modulation = "shared" | "block"         one matrix for all blocks plus a table in each, or one in each block
    modulation_parts = 6                    vectors of `width` that a block gets from it
    cross_norm = false                      an affine LayerNorm before the cross-attention
    attention_frames = 0                    latent frames that one query sees, on average; 0 means all

"JointTransformer": caption and video in one sequence (as FLUX and HunyuanVideo have it).

    num_layers                              blocks with weights of their own for the caption
    single_layers = 0                       blocks with the same weights for both
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant, joint
from sora_runtime.cost.work import ComponentWork, Rows, Term, WorkBuilder
from sora_runtime.errors import InvalidRequest

# Reads and writes of [rows, width] that eager PyTorch makes, one kernel for each arithmetic operator.
NORM = 2.0  # LayerNorm: one kernel
RMS_NORM = 8.0  # diffusers' RMSNorm: to float32, square, mean, scale, weight
MODULATE = 4.0  # x * (1 + scale) + shift
GATED_RESIDUAL = 5.0  # x + gate * y
RESIDUAL = 3.0
ACTIVATION = 2.0
GATED_ACTIVATION = 5.0  # activation, then the product of both halves
ROTARY = 12.0  # of queries or keys: pairs swapped, two products, their sum, two casts
CONCATENATE = 2.0

ONE = constant(1)


def required(config: Mapping[str, Any], key: str, kind: str) -> Any:
    """The value of a key that has no default."""
    if key not in config:
        raise InvalidRequest(f"the configuration of {kind} has no {key}; add {key} to it")
    return config[key]


def two_layers(work: WorkBuilder, rows: Rows, inputs: int, width: int, hidden: int = 0) -> None:
    """An embedding by two matrices with an activation between them."""
    hidden = hidden or width
    work.linear(rows, inputs, hidden)
    work.elementwise(rows, hidden, passes=ACTIVATION)
    work.linear(rows, hidden, width)


def feed_forward(work: WorkBuilder, rows: Rows, width: int, inner: int, *, count: float = 1, **kind: bool) -> None:
    """`count` feed-forward layers with the norm, modulation and gated residual around each.

    Args:
        work: gets the terms.
        rows: positions.
        width: of the block.
        inner: of the hidden layer.
        count: how many.
        kind: `gated` (default false) and `bias` (default true).
    """
    gated, bias = kind.get("gated", False), kind.get("bias", True)
    work.linear(rows, width, inner, count=count * (2 if gated else 1), bias=bias)
    work.linear(rows, inner, width, count=count, bias=bias)
    work.elementwise(rows, count * inner, passes=GATED_ACTIVATION if gated else ACTIVATION)
    work.elementwise(rows, count * width, passes=NORM + MODULATE + GATED_RESIDUAL)


def elements(rows: Rows, width: float) -> tuple[Term, ...]:
    """[rows, width] activations, for a peak."""
    return tuple(Term("elementwise", elements=width * count, of=of) for of, count in rows.items())


def block_peak(rows: Rows, width: int, inner: int, *, joined: bool = False) -> tuple[Term, ...]:
    """What one block keeps alive at its worst moment.

    In the feed-forward: the residual, its normed copy, the hidden layer before and after its activation. In the
    attention: the residual, its normed copy, queries, keys and values, two copies by the rotary embedding, the output;
    three more where two sequences are `joined`.
    """
    return elements(rows, max(2 * width + 2 * inner, (11 if joined else 8) * width))


def _generic(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The configuration with every default filled in."""
    width, heads = required(config, "width", kind), required(config, "heads", kind)
    defaults = {
        "num_layers": required(config, "num_layers", kind),
        "out_channels": required(config, "in_channels", kind),
        "patch": [1, 2, 2],
        "head_dim": width // heads,
        "feed_forward": 4 * width,
        "gated": False,
        "bias": True,
        "query_norm": True,
        "text_width": 4096,
        "text_layers": 1,
        "text_width_2": 0,
        "text_tokens_2": 0,
        "pooled_width": 0,
        "guidance_embedding": False,
        "condition_channels": 0,
        "key_value_heads": heads,
        "cross_key_value_heads": heads,
        "time_width": width,
        "modulation": "shared",
        "modulation_parts": 6,
        "cross_norm": False,
        "attention_frames": 0,
        "single_layers": 0,
    }
    unknown = set(config) - set(defaults) - {"width", "heads", "in_channels"}
    if unknown:
        raise InvalidRequest(
            f"{kind} has no key {sorted(unknown)[0]}; use those that architectures/generic.py explains"
        )
    return {**defaults, **config}


def _embeddings(work: WorkBuilder, options: Mapping[str, Any], text_tokens: int, time_width: int) -> Rows:
    """Patches, caption, timestep and the output; returns the caption's rows."""
    width, patch = options["width"], math.prod(options["patch"])
    work.linear(TOKENS, options["in_channels"] * patch, width)
    if options["condition_channels"]:
        work.linear(TOKENS, options["condition_channels"], width)
    text = constant(text_tokens)
    if options["text_layers"] == 2:
        two_layers(work, text, options["text_width"], width)
    else:
        work.linear(text, options["text_width"], width)
    if options["text_tokens_2"]:
        work.linear(constant(options["text_tokens_2"]), options["text_width_2"], width)
        text = joint(text, constant(options["text_tokens_2"]))
    two_layers(work, ONE, 256, time_width)
    if options["guidance_embedding"]:
        two_layers(work, ONE, 256, time_width)
    if options["pooled_width"]:
        two_layers(work, ONE, options["pooled_width"], time_width)
    work.elementwise(TOKENS, width, passes=NORM + MODULATE)
    work.linear(TOKENS, width, options["out_channels"] * patch)
    return text


def self_cross_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Blocks of self-attention, cross-attention to the caption and a feed-forward layer."""
    options = _generic(config, "SelfCrossTransformer")
    layers, width, time_width = options["num_layers"], options["width"], options["time_width"]
    work = WorkBuilder(layers=layers)
    text = _embeddings(work, options, conditioning.text_tokens + conditioning.image_tokens, time_width)
    parts = options["modulation_parts"] * width
    if options["modulation"] == "shared":
        work.linear(ONE, time_width, parts)
        work.elementwise(ONE, 0, passes=0, parameters=layers * parts + 2 * width)
    else:
        work.linear(ONE, time_width, parts, count=layers)
        work.linear(ONE, time_width, 2 * width)
    _self_attention(work, options)
    _cross_attention(work, options, text)
    feed_forward(
        work, TOKENS, width, options["feed_forward"], count=layers, gated=options["gated"], bias=options["bias"]
    )
    inner = options["feed_forward"] * (1.5 if options["gated"] else 1)
    return work.build(peak=block_peak(TOKENS, width, int(inner)))


def _self_attention(work: WorkBuilder, options: Mapping[str, Any]) -> None:
    layers, width = options["num_layers"], options["width"]
    inner, key_width = options["heads"] * options["head_dim"], options["key_value_heads"] * options["head_dim"]
    work.linear(TOKENS, width, inner, count=layers, bias=options["bias"])
    work.linear(TOKENS, width, key_width, count=2 * layers, bias=options["bias"])
    work.linear(TOKENS, inner, width, count=layers, bias=options["bias"])
    keys = TOKENS
    if options["attention_frames"]:
        rows, columns = options["patch"][1:]
        keys = {("latent_area",): options["attention_frames"] / options["patch"][0] / (rows * columns)}
    work.attention(TOKENS, keys, inner, count=layers, key_width=key_width)
    norms = RMS_NORM if options["query_norm"] else 0.0
    affine = 2 * options["head_dim"] if options["query_norm"] else 0
    work.elementwise(TOKENS, layers * (inner + key_width), passes=norms + ROTARY, parameters=layers * affine)
    work.elementwise(TOKENS, layers * width, passes=NORM + MODULATE + GATED_RESIDUAL)


def _cross_attention(work: WorkBuilder, options: Mapping[str, Any], text: Rows) -> None:
    layers, width = options["num_layers"], options["width"]
    inner, key_width = options["heads"] * options["head_dim"], options["cross_key_value_heads"] * options["head_dim"]
    work.linear(TOKENS, width, inner, count=layers, bias=options["bias"])
    work.linear(text, width, key_width, count=2 * layers, bias=options["bias"])
    work.linear(TOKENS, inner, width, count=layers, bias=options["bias"])
    work.attention(TOKENS, text, inner, count=layers, key_width=key_width)
    affine = 2 * options["head_dim"] if options["query_norm"] else 0
    norm = 2 * width if options["cross_norm"] else 0
    work.elementwise(TOKENS, layers * inner, passes=RMS_NORM if affine else 0.0, parameters=layers * (affine + norm))
    work.elementwise(TOKENS, layers * width, passes=RESIDUAL + (NORM if norm else 0.0))


def joint_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Blocks of attention over caption and video together, first with weights for each, then with the same."""
    options = _generic(config, "JointTransformer")
    layers, single, width = options["num_layers"], options["single_layers"], options["width"]
    work = WorkBuilder(layers=layers + single)
    text = _embeddings(work, options, conditioning.text_tokens + conditioning.image_tokens, width)
    sequence = joint(TOKENS, text)
    work.linear(ONE, width, 6 * width, count=2 * layers)
    work.linear(ONE, width, 3 * width, count=single)
    work.linear(ONE, width, 2 * width)
    inner, bias = options["heads"] * options["head_dim"], options["bias"]
    for rows, count in ((TOKENS, layers), (text, layers), (sequence, single)):
        work.linear(rows, width, inner, count=3 * count, bias=bias)
        work.linear(rows, inner, width, count=count, bias=bias)
        feed_forward(work, rows, width, options["feed_forward"], count=count, gated=options["gated"], bias=bias)
        affine = 2 * options["head_dim"] if options["query_norm"] else 0
        work.elementwise(
            rows, 2 * count * inner, passes=(RMS_NORM if affine else 0.0) + ROTARY, parameters=count * affine
        )
        work.elementwise(rows, count * width, passes=NORM + MODULATE + GATED_RESIDUAL + 4 * CONCATENATE)
    # A single block has one output bias for attention and feed-forward, and one norm before both.
    work.parameters -= single * width if bias else 0
    work.attention(sequence, sequence, inner, count=layers + single)
    return work.build(peak=block_peak(sequence, width, options["feed_forward"], joined=True))


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "SelfCrossTransformer": self_cross_transformer,
    "JointTransformer": joint_transformer,
}
