"""What sources say in their own words, read into the few inputs of an estimate."""

import pytest

from sora_runtime.cost import settings
from sora_runtime.errors import InvalidRequest

DIFFUSERS = settings.ENGINE_BY_NAME["diffusers"]
SGLANG = settings.ENGINE_BY_NAME["sglang"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("diffusers + torchao", "diffusers"),
        ("xDiT + official repo", "xdit"),
        ("official repo (PyTorch)", "official"),
        ("vllm-omni", "vllm-omni"),
        ("trt-llm VisualGen", "tensorrt-llm"),
        ("LightX2V", "lightx2v"),
        ("something nobody heard of", "official"),
    ],
)
def test_engines_by_what_others_call_them(text: str, name: str) -> None:
    assert settings.find_engine(text).name == name


def test_a_users_engine_must_be_known() -> None:
    with pytest.raises(InvalidRequest, match="engine = 'sglan' is not known; use one of"):
        settings.parse_engine("sglan")


@pytest.mark.parametrize(
    ("text", "architecture", "kernel"),
    [
        ("FA3 on Hopper, FA2 elsewhere", "hopper", "fa3"),
        ("FA3 on Hopper, FA2 elsewhere", "ada", "fa2"),
        ("flashattn3 fp8", "hopper", "fp8"),
        ("flashattn3; CPU offload", "hopper", "fa3"),
        ("sageattention2; fp8 quant", "ada", "sage2"),
        ("torch.compile", "hopper", None),
    ],
)
def test_attention_kernels(text: str, architecture: str, kernel: str | None) -> None:
    assert settings.attention_in(text, architecture) == kernel


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("STA sliding tile attention (58% sparsity)", ("sta", 0.42)),
        ("SOL block-sparse attention (density 0.15)", ("block", 0.15)),
        ("SubBlock 0.75 sparse", ("block", 0.25)),
        ("VSA + DMD (distilled 3-step)", ("vsa", 0.15)),
        ("flash-attn", ("", 1.0)),
    ],
)
def test_sparse_attention(text: str, expected: tuple[str, float]) -> None:
    method, density = settings.sparse_in(text)
    assert (method, pytest.approx(density)) == expected


def test_step_reuse() -> None:
    assert settings.reuse_in("teacache 0.15") == ("teacache", 0.15, None)
    assert settings.reuse_in("EasyCache (~14/40 steps reused)") == ("easycache", 0.0, 14 / 40)
    assert settings.reuse_in("lossless kernel fusion + EasyCache (~47% of steps reused)") == ("easycache", 0.0, 0.47)
    assert settings.reuse_in("none") == ("", 0.0, None)


@pytest.mark.parametrize(
    ("text", "gpus", "expected"),
    [
        ("ulysses2 cfg2", 4, settings.Parallelism(cfg=2, ulysses=2)),
        ("ulysses1 ring1 cfg1", 1, settings.Parallelism()),
        ("ring3 cfg2", 6, settings.Parallelism(cfg=2, ring=3)),
        ("cfg-parallel 2", 2, settings.Parallelism(cfg=2)),
        ("tensor parallel", 8, settings.Parallelism(cfg=2, tensor=4)),
        ("Ulysses-2 x TP-2; VAE parallel", 4, settings.Parallelism(ulysses=2, tensor=2, vae=True)),
        ("", 4, settings.Parallelism(ulysses=4)),
    ],
)
def test_parallelism(text: str, gpus: int, expected: settings.Parallelism) -> None:
    found = settings.parallelism_in(text, gpus, guided=True, engine=DIFFUSERS)
    assert found == expected
    assert found.gpus == gpus


def test_a_current_engine_splits_guidance_first() -> None:
    assert settings.parallelism_in("", 8, guided=True, engine=SGLANG) == settings.Parallelism(cfg=2, ulysses=4)
    assert settings.parallelism_in("", 8, guided=False, engine=SGLANG) == settings.Parallelism(ulysses=8)


def test_precisions() -> None:
    assert settings.precision_in("int8", "quant=int8wo; torch.compile=True") == "int8-weights"
    assert settings.precision_in("int8", "quant=int8dq; torch.compile=True") == "int8"
    assert settings.precision_in("fp8", "fp8-scaled weights dequantised to bf16") == "int8-weights"
    assert settings.precision_in("fp8", "") == "fp8"
    assert settings.precision_in("", "") == "bf16"


def test_the_kernel_where_nobody_says() -> None:
    assert settings.default_attention(DIFFUSERS, "hopper", "2024-12") == "fa2"
    assert settings.default_attention(DIFFUSERS, "hopper", "2025-11") == "fa3"
    assert settings.default_attention(SGLANG, "hopper", "2024-12") == "fa3"
    assert settings.default_attention(SGLANG, "blackwell", "") == "cudnn"
    assert settings.default_attention(DIFFUSERS, "hopper", "2025-11", masked=True) == "masked"
