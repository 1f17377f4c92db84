"""Makes random adapters for tiny transformers, in the namings they are found in, and merges them as diffusers does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_export.adapter import Adapter
from sora_export.checkpoint import Checkpoint
from sora_export.families import family_of
from sora_export.merge import write_merged
from sora_export.merge_plan import plan_merge
from sora_export.staging import Staging

State = dict[str, Tensor]
LINEARS = r"(to_[qkv]|to_out\.0|net\.0\.proj|net\.2|add_[kvq]_proj|to_add_out|proj_mlp)$"


def weights_of(checkpoint: Path, folder: str = "transformer") -> State:
    """Every tensor of a component, of all its shards."""
    found: State = {}
    for file in sorted((checkpoint / folder).glob("*.safetensors")):
        found |= load_file(file)
    return found


def random_lora(weights: Mapping[str, Tensor], modules: str = LINEARS, *, rank: int = 4, seed: int = 0) -> State:
    """`MODULE.lora_A.weight` and `.lora_B.weight` for every module whose name matches: about half as large as W."""
    generator = torch.Generator().manual_seed(seed)
    adapter: State = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module == name or not re.search(modules, module) or weight.ndim < 2:
            continue
        size = float(weight.float().std()) / 2
        adapter[f"{module}.lora_A.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator)
        ones = [1] * (weight.ndim - 2)
        adapter[f"{module}.lora_B.weight"] = (
            torch.randn(weight.shape[0], rank, *ones, generator=generator) * size / rank**0.5
        )
    assert adapter
    return adapter


def save_adapter(file: Path, adapter: State, prefix: str = "transformer.", config: Any = None) -> Path:
    """Writes it as diffusers' `save_lora_weights` does; `config` is a LoraConfig as a dict."""
    metadata = {"format": "pt"}
    if config is not None:
        prefixed = {f"{prefix}{key}": value for key, value in config.items()}
        metadata["lora_adapter_metadata"] = json.dumps(prefixed)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{prefix}{name}": tensor.clone() for name, tensor in adapter.items()}, file, metadata)
    return file


def renamed(adapter: State, rename: Callable[[str], str]) -> State:
    """The same tensors under other names."""
    return {rename(name): tensor for name, tensor in adapter.items()}


def fused_pipeline(
    checkpoint: Path, *adapters: tuple[Path, float], dtype: torch.dtype = torch.float32, **options: Any
) -> DiffusionPipeline:
    """The checkpoint's pipeline with each adapter loaded and fused into it by diffusers and PEFT, one after the other.

    `options` go to `load_lora_weights`, such as `load_into_transformer_2`.
    """
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    component = "transformer_2" if options.get("load_into_transformer_2") else "transformer"
    for file, scale in adapters:
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="it", **options)
        pipeline.fuse_lora(components=[component], lora_scale=scale)
        getattr(pipeline, component).unload_lora()
    return pipeline


def fused_weights(pipeline: DiffusionPipeline, component: str = "transformer") -> State:
    """The weights after fusing, under diffusers' names."""
    return {name: tensor.detach() for name, tensor in getattr(pipeline, component).state_dict().items()}


def ulps(got: Tensor, want: Tensor) -> float:
    """The largest difference in units of the last place of `want`'s type, in float64."""
    digits = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}[want.dtype]
    least = torch.tensor(2.0, dtype=torch.float64) ** (torch.frexp(want.double())[1].double() - digits)
    return float(((got.double() - want.double()).abs() / least).max())


def merged_weights(checkpoint: Path, *adapters: Adapter) -> dict[str, State]:
    """What our merge writes into the folder, by component."""
    source = Checkpoint(checkpoint)
    plans = plan_merge(source, adapters, family_of(source).RENAMINGS)
    with Staging(checkpoint) as staging:
        files = write_merged(source, plans, staging, lambda _: None)
        staging.finish(lambda: None)
    merged = Checkpoint(checkpoint, files)
    return {plan.component: load_file(merged.weight_files(plan.component)[-1]) for plan in plans}


def check_against_diffusers(
    checkpoint: Path, file: Path, scale: float = 1.0, *, same_order: bool = True
) -> dict[str, torch.Tensor]:
    """Our merge of a file equals diffusers' bit for bit, and nothing else has changed.

    Where diffusers multiplies in another order the products that nearly cancel keep their rounding: then in the
    relative L2 of each tensor, to the last place of float32.
    """
    want = fused_weights(fused_pipeline(checkpoint, (file, scale)))
    got = merged_weights(checkpoint, Adapter(file, scale))["transformer"]
    before = weights_of(checkpoint)
    for name, tensor in want.items():
        if name in got:
            assert not torch.equal(got[name], before[name]), name
            error = torch.linalg.vector_norm(got[name].double() - tensor) / torch.linalg.vector_norm(tensor.double())
            assert error <= (0.0 if same_order else torch.finfo(torch.float32).eps), name
        else:
            assert torch.equal(before[name], tensor), name
    return got
