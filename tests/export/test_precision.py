"""The rule table: which precision for which part on which target, and the sentence where it is not to be had."""

from __future__ import annotations

from typing import Any

import pytest

from sora_export.precision import CAPABILITIES, MAX_FP16_KEYS, Precision, choose
from sora_runtime.errors import InvalidRequest


@pytest.mark.parametrize(
    ("precision", "target", "says"),
    [
        ("fp8", {"engine": "tensorrt_rtx", "compute_capability": "8.6"}, "begin with compute capability 8.9; use int8"),
        ("fp8", {"engine": "tensorrt", "compute_capability": "8.0"}, "A100.*use int8"),
        ("int8", {"engine": "tensorrt", "compute_capability": "10.3"}, "B300.*use fp8"),
        ("bf16", {"engine": "tensorrt_rtx", "compute_capability": "7.5"}, "Turing.*use fp16"),
        ("nvfp4", {"engine": "tensorrt_rtx", "compute_capability": "8.9"}, "FP4 tensor cores.*use fp8"),
        ("fp8", {"engine": "tensorrt", "compute_capability": "1.2"}, "1.2 is not known"),
        ("fp32", {"engine": "tensorrt_rtx"}, "no fused float32 attention; use bf16 or fp16"),
        ("bf16", {"engine": "onnxruntime"}, "use int8 or fp32"),
        ("fp8", {"engine": "onnxruntime"}, "use int8 or fp32"),
    ],
)
def test_refusals_are_one_sentence_with_a_remedy(precision: str, target: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refusal:
        choose(Precision(precision), part="transformer", **target)
    assert "\n" not in str(refusal.value)


def test_every_device_has_every_format_or_says_why_not() -> None:
    for capability in CAPABILITIES.values():
        missing = {precision for precision, _ in capability.without}
        assert capability.linears | missing | {Precision.FP32} == set(Precision), capability.name
        assert not capability.linears & missing


def test_float16_attention_ends_at_65000_keys() -> None:
    short = choose(Precision.FP16, engine="tensorrt", part="transformer", keys=MAX_FP16_KEYS)
    long = choose(Precision.FP16, engine="tensorrt", part="transformer", keys=MAX_FP16_KEYS + 1)
    assert (short.attention, long.attention, long.linears) == (Precision.FP16, Precision.BF16, Precision.FP16)
    assert "65001 keys" in long.reason


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NVFP4])
def test_convolutions_and_the_vae_stay_half(precision: Precision) -> None:
    choice = choose(precision, engine="tensorrt", part="vae_decoder", compute_capability="12.0")
    assert {choice.linears, choice.attention, choice.convolutions} == {Precision.BF16}
    assert "3-D convolutions" in choice.reason


def test_only_fp8_and_nvfp4_quantise_attention() -> None:
    on_tensorrt = {p: choose(p, engine="tensorrt", part="transformer") for p in Precision if p is not Precision.FP32}
    quantised = {p for p, choice in on_tensorrt.items() if choice.attention.quantised}
    assert quantised == {Precision.FP8, Precision.NVFP4}
    assert on_tensorrt[Precision.NVFP4].attention is Precision.FP8
    assert choose(Precision.FP8, engine="tensorrt", part="text_encoder").attention is Precision.BF16


def test_a_text_encoder_is_never_float16() -> None:
    choice = choose(Precision.FP16, engine="tensorrt", part="text_encoder")
    assert choice.linears is Precision.BF16
    assert "overflows" in choice.reason


def test_int8_on_a_processor_is_for_linears_and_a_decoders_convolutions() -> None:
    choices = {
        part: choose(Precision.INT8, engine="onnxruntime", part=part).linears  # type: ignore[arg-type]
        for part in ("transformer", "text_encoder", "vae_decoder")
    }
    assert list(choices.values()) == [Precision.INT8, Precision.INT8, Precision.FP32]
    decoder = choose(Precision.INT8, engine="onnxruntime", part="vae_decoder")
    assert (decoder.convolutions, decoder.attention) == (Precision.INT8, Precision.FP32)
