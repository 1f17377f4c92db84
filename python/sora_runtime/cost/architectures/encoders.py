"""Text and image encoders: T5, CLIP, SigLIP, BERT and causal language models read for their hidden states.

Keys of a configuration are those of the class's config.json in transformers 5. An encoder runs over its padded
tokens. The attention is counted whole even where it is causal, as eager PyTorch computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sora_runtime.cost.architectures.common import constant
from sora_runtime.cost.architectures.generic import (
    ACTIVATION,
    CONCATENATE,
    GATED_ACTIVATION,
    NORM,
    ONE,
    RESIDUAL,
    RMS_NORM,
    ROTARY,
    elements,
    required,
)
from sora_runtime.cost.work import ComponentWork, Rows, Term, WorkBuilder

Configuration = Mapping[str, Any]


def _peak(tokens: int, width: int, inner: float, heads: int) -> tuple[Term, ...]:
    """Residual, normed copy, both sides of the activation; or the scores of an attention that is not fused."""
    return elements(constant(tokens), max(2 * width + 2 * inner, 6 * width + 2 * heads * tokens))


def _table(work: WorkBuilder, rows: int, width: int) -> None:
    """An embedding table: weights of which an evaluation reads one row a token."""
    work.parameters += rows * width


def t5_encoder(config: Configuration, tokens: int) -> ComponentWork:
    """T5EncoderModel (its ByT5 and v1.1 kinds too) and UMT5EncoderModel, by `relative_bias_layers`."""
    kind = "a T5 encoder"
    width, inner = required(config, "d_model", kind), required(config, "d_ff", kind)
    heads, layers = required(config, "num_heads", kind), required(config, "num_layers", kind)
    channels = heads * config.get("d_kv", 64)
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    rows = constant(tokens)
    work = WorkBuilder(layers=layers)
    _table(work, config.get("vocab_size", 32128), width)
    _table(work, config.get("relative_attention_num_buckets", 32) * config.get("relative_bias_layers", 1), heads)
    work.linear(rows, width, channels, count=3 * layers, bias=False)
    work.linear(rows, channels, width, count=layers, bias=False)
    work.attention(rows, rows, channels, count=layers)
    work.linear(rows, width, inner, count=layers * (2 if gated else 1), bias=False)
    work.linear(rows, inner, width, count=layers, bias=False)
    work.elementwise(rows, layers * inner, passes=GATED_ACTIVATION if gated else ACTIVATION)
    norms = 2 * layers + 1
    work.elementwise(rows, norms * width, passes=RMS_NORM + RESIDUAL, parameters=norms * width)
    # Scores gain a bias, are cast to float32, normalised and cast back.
    work.elementwise(rows, layers * heads * tokens, passes=8.0)
    read = work.parameters - (config.get("vocab_size", 32128) - tokens) * width
    return work.build(peak=_peak(tokens, width, inner * (1.5 if gated else 1.0), heads), read=read)


def umt5_encoder(config: Configuration, tokens: int) -> ComponentWork:
    """UMT5EncoderModel: a gated T5 whose every layer has a relative bias of its own."""
    options = {"feed_forward_proj": "gated-gelu", "vocab_size": 250112, **config}
    return t5_encoder({**options, "relative_bias_layers": required(config, "num_layers", "a UMT5 encoder")}, tokens)


@dataclass(frozen=True)
class _Layers:
    """Layers of a plain encoder: LayerNorms, biases, a feed-forward that is not gated."""

    count: int
    width: int
    inner: int
    heads: int

    @classmethod
    def of(cls, config: Configuration, kind: str) -> _Layers:
        keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        return cls(*(required(config, key, kind) for key in keys))

    def add(self, work: WorkBuilder, tokens: int) -> None:
        rows = constant(tokens)
        work.linear(rows, self.width, self.width, count=4 * self.count)
        work.attention(rows, rows, self.width, count=self.count)
        work.linear(rows, self.width, self.inner, count=self.count)
        work.linear(rows, self.inner, self.width, count=self.count)
        work.elementwise(rows, self.count * self.inner, passes=ACTIVATION)
        norms = 2 * self.count
        work.elementwise(rows, norms * self.width, passes=NORM + RESIDUAL, parameters=2 * norms * self.width)

    def peak(self, tokens: int) -> tuple[Term, ...]:
        return _peak(tokens, self.width, self.inner, self.heads)


def clip_text(config: Configuration, tokens: int, *, projected: bool = False) -> ComponentWork:
    """CLIPTextModel, with the projection of its pooled token where `projected`."""
    layers = _Layers.of(config, "a CLIP text encoder")
    words = config.get("vocab_size", 49408)
    work = WorkBuilder(layers=layers.count)
    _table(work, words + config.get("max_position_embeddings", 77), layers.width)
    layers.add(work, tokens)
    work.elementwise(constant(tokens), layers.width, passes=NORM, parameters=2 * layers.width)
    if projected:
        work.linear(ONE, layers.width, config.get("projection_dim", 512), bias=False)
    return work.build(peak=layers.peak(tokens), read=work.parameters - (words - tokens) * layers.width)


def bert(config: Configuration, tokens: int) -> ComponentWork:
    """BertModel with its pooler."""
    layers = _Layers.of(config, "a BERT encoder")
    words = config.get("vocab_size", 30522)
    work = WorkBuilder(layers=layers.count)
    _table(work, words + config.get("max_position_embeddings", 512) + config.get("type_vocab_size", 2), layers.width)
    work.elementwise(constant(tokens), layers.width, passes=NORM + 2 * RESIDUAL, parameters=2 * layers.width)
    layers.add(work, tokens)
    work.linear(ONE, layers.width, layers.width)
    return work.build(peak=layers.peak(tokens), read=work.parameters - (words - tokens) * layers.width)


def _patches(work: WorkBuilder, config: Configuration, width: int, patches: int, *, bias: bool) -> None:
    kernel = config.get("patch_size", 14) ** 2
    work.convolution(constant(patches), config.get("num_channels", 3), width, kernel, bias=bias)


def _grid(config: Configuration) -> int:
    return int((required(config, "image_size", "an image encoder") // config.get("patch_size", 14)) ** 2)


def _clip_vision(work: WorkBuilder, config: Configuration) -> _Layers:
    """A CLIP vision tower: patches, a class token, a norm before the layers and one after, of the class token."""
    layers, patches = _Layers.of(config, "a CLIP image encoder"), _grid(config)
    _patches(work, config, layers.width, patches, bias=False)
    _table(work, patches + 2, layers.width)
    rows: Rows = constant(patches + 1)
    work.elementwise(rows, layers.width, passes=NORM + RESIDUAL + CONCATENATE, parameters=4 * layers.width)
    layers.add(work, patches + 1)
    return layers


def clip_vision(config: Configuration, tokens: int, *, projected: bool = False) -> ComponentWork:
    """CLIPVisionModel; its length follows from `image_size` and `patch_size`, `tokens` only sizes the peak."""
    work = WorkBuilder(layers=required(config, "num_hidden_layers", "a CLIP image encoder"))
    layers = _clip_vision(work, config)
    if projected:
        work.linear(ONE, layers.width, config.get("projection_dim", 512), bias=False)
    return work.build(peak=layers.peak(max(tokens, _grid(config) + 1)))


def siglip_vision(config: Configuration, tokens: int) -> ComponentWork:
    """SiglipVisionModel with the attention that pools its patches."""
    layers, patches = _Layers.of(config, "a SigLIP image encoder"), _grid(config)
    width, rows = layers.width, constant(patches)
    work = WorkBuilder(layers=layers.count)
    _patches(work, config, width, patches, bias=True)
    _table(work, patches, width)
    layers.add(work, patches)
    work.elementwise(rows, width, passes=NORM, parameters=2 * width)
    if config.get("vision_use_head", True):
        work.linear(ONE, width, width, count=2)
        work.linear(rows, width, width, count=2)
        work.attention(ONE, rows, width)
        work.linear(ONE, width, layers.inner)
        work.linear(ONE, layers.inner, width)
        work.parameters += 3 * width  # the query and a norm
    return work.build(peak=layers.peak(max(tokens, patches)))


@dataclass(frozen=True)
class _Decoder:
    """How the layers of one family of causal language models differ from Llama's."""

    query_bias: bool = False
    query_norm: bool = False
    norms: int = 2  # in each layer
    head_dim: int = 0  # where the configuration does not say; 0 means hidden_size / heads
    head: bool = False  # a matrix to the vocabulary, which its forward runs too


def _decode(work: WorkBuilder, config: Configuration, kind: _Decoder, tokens: int) -> None:
    """A causal language model over `tokens`, with its embedding table."""
    name = "a language model"
    layers, width = required(config, "num_hidden_layers", name), required(config, "hidden_size", name)
    inner, heads = required(config, "intermediate_size", name), required(config, "num_attention_heads", name)
    head_dim = config.get("head_dim") or kind.head_dim or width // heads
    channels, key_channels = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    bias = bool(config.get("attention_bias", False))
    words, rows = required(config, "vocab_size", name), constant(tokens)
    work.layers += layers
    _table(work, words, width)
    work.linear(rows, width, channels, count=layers, bias=bias or kind.query_bias)
    work.linear(rows, width, key_channels, count=2 * layers, bias=bias or kind.query_bias)
    work.linear(rows, channels, width, count=layers, bias=bias)
    work.attention(rows, rows, channels, count=layers, key_width=key_channels)
    work.linear(rows, width, inner, count=2 * layers, bias=bool(config.get("mlp_bias", False)))
    work.linear(rows, inner, width, count=layers, bias=bool(config.get("mlp_bias", False)))
    work.elementwise(rows, layers * inner, passes=GATED_ACTIVATION)
    work.elementwise(
        rows,
        layers * (channels + key_channels),
        passes=ROTARY + (RMS_NORM if kind.query_norm else 0.0),
        parameters=2 * layers * head_dim if kind.query_norm else 0,
    )
    norms = kind.norms * layers + 1
    work.elementwise(rows, norms * width, passes=RMS_NORM, parameters=norms * width)
    work.elementwise(rows, 2 * layers * width, passes=RESIDUAL)
    if kind.head:
        work.linear(rows, width, words, bias=False)
        work.parameters -= width * words if config.get("tie_word_embeddings", False) else 0


def _decoder(kind: _Decoder) -> Callable[[Configuration, int], ComponentWork]:
    """The work function of one family."""

    def build(config: Configuration, tokens: int) -> ComponentWork:
        # Classes with a vision tower nest the language model's keys; the tower's weights lie in memory unread.
        text = {"tie_word_embeddings": config.get("tie_word_embeddings", False), **config.get("text_config", config)}
        work = WorkBuilder()
        _decode(work, text, kind, tokens)
        width = text["hidden_size"]
        tied = kind.head and text["tie_word_embeddings"]
        read = work.parameters - (0 if tied else (text["vocab_size"] - tokens) * width)
        work.parameters += _qwen_tower(config["vision_config"]) if "vision_config" in config else 0
        peak = _peak(tokens, width, 1.5 * text["intermediate_size"], text["num_attention_heads"])
        return work.build(peak=peak, read=read)

    return build


def _qwen_tower(config: Configuration) -> float:
    """Weights of Qwen2.5-VL's vision tower, which a text prompt does not run."""
    kind = "a vision tower"
    width, inner = required(config, "hidden_size", kind), required(config, "intermediate_size", kind)
    kernel = config.get("in_channels", 3) * config.get("temporal_patch_size", 2) * config.get("patch_size", 14) ** 2
    block = 2 * width + 4 * width * (width + 1) + 2 * inner * (width + 1) + width * (inner + 1)
    merged = width * config.get("spatial_merge_size", 2) ** 2
    merger = width + merged * (merged + 1) + required(config, "out_hidden_size", kind) * (merged + 1)
    return float(kernel * width + required(config, "depth", kind) * block + merger)


def llava(config: Configuration, tokens: int) -> ComponentWork:
    """LlavaForConditionalGeneration with one image: a CLIP tower, two matrices, a Llama over text and image tokens."""
    text, vision = required(config, "text_config", "LLaVA"), required(config, "vision_config", "LLaVA")
    work = WorkBuilder()
    layers = _clip_vision(work, vision)
    work.layers = layers.count
    patches, width = constant(_grid(vision)), required(text, "hidden_size", "LLaVA")
    work.linear(patches, layers.width, width)
    work.linear(patches, width, width)
    _decode(work, text, _Decoder(head=True), tokens)
    peak = _peak(tokens, width, 1.5 * text["intermediate_size"], text["num_attention_heads"])
    return work.build(peak=peak, read=work.parameters - (text["vocab_size"] - tokens) * width)


_QWEN2, _QWEN3 = _Decoder(query_bias=True), _Decoder(query_norm=True, head_dim=128)
_GEMMA2, _GEMMA3 = _Decoder(norms=4, head_dim=256), _Decoder(query_norm=True, norms=4, head_dim=256)

ENCODERS: dict[str, Callable[[Configuration, int], ComponentWork]] = {
    "T5EncoderModel": t5_encoder,
    "UMT5EncoderModel": umt5_encoder,
    "CLIPTextModel": clip_text,
    "CLIPTextModelWithProjection": lambda config, tokens: clip_text(config, tokens, projected=True),
    "CLIPVisionModel": clip_vision,
    "CLIPVisionModelWithProjection": lambda config, tokens: clip_vision(config, tokens, projected=True),
    "SiglipVisionModel": siglip_vision,
    "BertModel": bert,
    "LlavaForConditionalGeneration": llava,
    "DecoderModel": _decoder(_Decoder()),
    "LlamaModel": _decoder(_Decoder()),
    "LlamaForCausalLM": _decoder(_Decoder(head=True)),
    "MistralModel": _decoder(_Decoder()),
    "Qwen2Model": _decoder(_QWEN2),
    "Qwen2_5_VLTextModel": _decoder(_QWEN2),
    "Qwen2_5_VLForConditionalGeneration": _decoder(_Decoder(query_bias=True, head=True)),
    "Qwen3Model": _decoder(_QWEN3),
    "Qwen3VLTextModel": _decoder(_QWEN3),
    "Gemma2Model": _decoder(_GEMMA2),
    "Gemma3TextModel": _decoder(_GEMMA3),
}
