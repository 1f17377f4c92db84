"""Merged weights against diffusers' `load_lora_weights` and `fuse_lora`, for every family and type of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_adapters import (
    LINEARS,
    check_against_diffusers,
    fused_pipeline,
    fused_weights,
    merged_weights,
    random_lora,
    save_adapter,
    ulps,
    weights_of,
)
from tiny_checkpoint import save_tiny_checkpoint
from tiny_families import VARIANTS

from sora_export.adapter import Adapter

pytest.importorskip("peft")
BY_NAME = {variant.name: variant for variant in VARIANTS}
FAMILIES = ["Wan 2.1 T2V", "LTX-Video 0.9.5", "CogVideoX-5B", "HunyuanVideo"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_diffusers_names(name: str, scale: float, tmp_path: Path) -> None:
    checkpoint = BY_NAME[name].save(tmp_path / "checkpoint")
    adapter = random_lora(weights_of(checkpoint))
    got = check_against_diffusers(checkpoint, save_adapter(tmp_path / "lora/a.safetensors", adapter), scale)
    assert len(got) == len(adapter) // 2


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "checkpoint")


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 2, "use_rslora": True},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"blocks.0.attn1.to_q": 16, r"blocks\.1\.attn2\.to_.": 1}},
    ],
    ids=["alpha", "rslora", "alpha pattern"],
)
def test_the_files_own_config(wan: Path, tmp_path: Path, config: dict[str, object]) -> None:
    adapter = random_lora(weights_of(wan))
    targets = sorted({name.split(".lora_")[0] for name in adapter})
    full = {"target_modules": targets, **config}
    check_against_diffusers(wan, save_adapter(tmp_path / "lora/a.safetensors", adapter, config=full), 0.5)


def test_ranks_may_differ_and_convolutions_are_merged(wan: Path, tmp_path: Path) -> None:
    weights = weights_of(wan)
    adapter = random_lora(weights, r"attn1\.to_q$", rank=8) | random_lora(weights, r"attn2\.to_v$", rank=2)
    adapter |= random_lora(weights, r"^patch_embedding$", rank=3)
    # PEFT multiplies the factors of a convolution by another routine, in another order of its three products.
    got = check_against_diffusers(wan, save_adapter(tmp_path / "lora/a.safetensors", adapter), same_order=False)
    assert got["patch_embedding.weight"].ndim == 5 and len(got) == 5


def test_bias_of_lora_b(wan: Path, tmp_path: Path) -> None:
    adapter = random_lora(weights_of(wan), r"attn1\.to_[qk]$")
    for name in list(adapter):
        if name.endswith("lora_B.weight"):
            adapter[name.replace("weight", "bias")] = torch.randn(adapter[name].shape[0])
    targets = sorted({name.split(".lora_")[0] for name in adapter})
    config = {"r": 4, "lora_alpha": 8, "target_modules": targets, "lora_bias": True}
    got = check_against_diffusers(wan, save_adapter(tmp_path / "lora/a.safetensors", adapter, config=config), 0.5)
    assert sum(name.endswith("bias") for name in got) == 4


def test_several_adapters_are_added_in_their_order(wan: Path, tmp_path: Path) -> None:
    weights = weights_of(wan)
    files = [
        save_adapter(tmp_path / f"{seed}/a.safetensors", random_lora(weights, modules, seed=seed))
        for seed, modules in enumerate((LINEARS, r"attn1\.to_q$", r"ffn"))
    ]
    scales = (1.0, 0.3, -2.0)
    want = fused_weights(fused_pipeline(wan, *zip(files, scales, strict=True)))
    got = merged_weights(wan, *map(Adapter, files, scales))["transformer"]
    assert len(got) == 20 and all(torch.equal(got[name], want[name]) for name in got)


def test_the_second_transformer_has_its_own(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", two_experts=True)
    adapter = random_lora(weights_of(checkpoint, "transformer_2"))
    file = save_adapter(tmp_path / "lora/a.safetensors", adapter)
    pipeline = fused_pipeline(checkpoint, (file, 0.5), load_into_transformer_2=True)
    want = fused_weights(pipeline, "transformer_2")
    prefixed = save_adapter(tmp_path / "prefixed/a.safetensors", adapter, "transformer_2.")
    for given in (Adapter(file, 0.5, "transformer_2"), Adapter(prefixed, 0.5)):
        found = merged_weights(checkpoint, given)
        assert set(found) == {"transformer_2"} and len(found["transformer_2"]) == 20
        assert all(torch.equal(tensor, want[name]) for name, tensor in found["transformer_2"].items())
    both = merged_weights(checkpoint, Adapter(file), Adapter(file, 0.5, "transformer_2"))
    assert set(both) == {"transformer", "transformer_2"}
    assert all(torch.equal(tensor, want[name]) for name, tensor in both["transformer_2"].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_half_precision_rounds_once(tmp_path: Path, dtype: torch.dtype, adapter_dtype: torch.dtype) -> None:
    """Stored in half precision, in shards: as diffusers' merge in float32, rounded; its own in half rounds twice."""
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", dtype=dtype, max_shard_size="60KB")
    adapter = {name: tensor.to(adapter_dtype) for name, tensor in random_lora(weights_of(checkpoint)).items()}
    file = save_adapter(tmp_path / "lora/a.safetensors", adapter)
    exact = fused_weights(fused_pipeline(checkpoint, (file, 0.7)))
    halves = fused_weights(fused_pipeline(checkpoint, (file, 0.7), dtype=dtype))
    before = weights_of(checkpoint)
    got = merged_weights(checkpoint, Adapter(file, 0.7))["transformer"]
    assert len(got) == 20
    for name, tensor in got.items():
        assert tensor.dtype == dtype and ulps(tensor, exact[name].to(dtype)) <= 1, name
        change = exact[name] - before[name].float()
        # Theirs: the factors are rounded to the type, then the change, then the sum; ours: the sum.
        up, down = (adapter[name.replace("weight", f"lora_{side}.weight")].float().abs() for side in "BA")
        factors = 0.0 if adapter_dtype == torch.bfloat16 else 2 * 0.7 * (up @ down)
        step = torch.finfo(dtype).eps * (change.abs() + exact[name].abs() + factors)
        assert bool(((tensor.float() - halves[name].float()).abs() <= step).all()), name


def test_a_merge_is_named_by_what_it_was_made_of(wan: Path, tmp_path: Path) -> None:
    adapter = random_lora(weights_of(wan), r"attn1\.to_q$")
    file = save_adapter(tmp_path / "a.safetensors", adapter)

    def name_of(*adapters: Adapter) -> tuple[str, int]:
        merged_weights(wan, *adapters)
        newest = max((wan / "merged").iterdir(), key=lambda path: path.stat().st_ctime_ns)
        return newest.name, newest.stat().st_mtime_ns

    first = name_of(Adapter(file))
    assert first == name_of(Adapter(file))  # the same file again, as old as what it was made of
    assert name_of(Adapter(file, 0.5))[0] != first[0]
    save_file({name: tensor + 1 for name, tensor in adapter.items()}, file)
    assert name_of(Adapter(file))[0] != first[0]
