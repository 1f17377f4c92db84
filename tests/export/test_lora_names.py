"""Adapters in the namings that tools write: Wan's and HunyuanVideo's own, kohya's, lightx2v's, PEFT's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tiny_adapters import (
    LINEARS,
    State,
    check_against_diffusers,
    fused_pipeline,
    fused_weights,
    merged_weights,
    random_lora,
    renamed,
    save_adapter,
    weights_of,
)
from tiny_checkpoint import save_tiny_checkpoint, save_tiny_i2v_2_1
from tiny_hunyuan import save_tiny_hunyuan

from sora_export.adapter import Adapter, find_adapter

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "checkpoint")


def to_original(name: str) -> str:
    """diffusers' name of a Wan module to the one of Wan's own code, by this test's own table."""
    table = {
        r"attn1\.to_([qkv])\.": r"self_attn.\1.",
        r"attn1\.to_out\.0\.": "self_attn.o.",
        r"attn2\.to_([qkv])\.": r"cross_attn.\1.",
        r"attn2\.to_out\.0\.": "cross_attn.o.",
        r"attn2\.add_([kv])_proj\.": r"cross_attn.\1_img.",
        r"ffn\.net\.0\.proj\.": "ffn.0.",
        r"ffn\.net\.2\.": "ffn.2.",
        r"^condition_embedder\.time_proj\.": "time_projection.1.",
        r"^condition_embedder\.(time|text)_embedder\.linear_1\.": r"\1_embedding.0.",
        r"^condition_embedder\.(time|text)_embedder\.linear_2\.": r"\1_embedding.2.",
        r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.": "img_emb.proj.1.",
        r"^condition_embedder\.image_embedder\.ff\.net\.2\.": "img_emb.proj.3.",
        r"^proj_out\.": "head.head.",
    }
    for pattern, original in table.items():
        name = re.sub(pattern, original, name)
    return name


@pytest.mark.parametrize("alpha", [None, 2.0, 3.0])
def test_wans_own_names(wan: Path, tmp_path: Path, alpha: float | None) -> None:
    adapter = renamed(random_lora(weights_of(wan)), to_original)
    for name in list(adapter):
        if alpha is not None and name.endswith("lora_A.weight"):
            adapter[name.replace("lora_A.weight", "alpha")] = torch.tensor(alpha)
    file = save_adapter(tmp_path / "lora/a.safetensors", adapter, "diffusion_model.")
    # diffusers rounds alpha / rank times A, which is exact for a power of two.
    got = check_against_diffusers(wan, file, same_order=alpha != 3.0)
    assert len(got) == 20


def test_wans_own_names_beyond_the_blocks(tmp_path: Path) -> None:
    checkpoint = save_tiny_i2v_2_1(tmp_path / "checkpoint")
    outer = r"^(condition_embedder\.((time|text)_embedder\.linear_[12]|time_proj|image_embedder\.ff\.net.*)|proj_out)$"
    adapter = random_lora(weights_of(checkpoint), f"{LINEARS}|{outer}")
    file = save_adapter(tmp_path / "lora/a.safetensors", renamed(adapter, to_original), "diffusion_model.")
    got = check_against_diffusers(checkpoint, file)
    assert {"condition_embedder.image_embedder.ff.net.2.weight", "proj_out.weight"} <= set(got)
    assert sum("add_k_proj" in name for name in got) == 2


def test_kohyas_names(wan: Path, tmp_path: Path) -> None:
    adapter: State = {}
    for name, tensor in renamed(random_lora(weights_of(wan)), to_original).items():
        module, factor = name.split(".lora_")
        flat = module.replace(".", "_")
        adapter[f"{flat}.lora_{'down' if factor.startswith('A') else 'up'}.weight"] = tensor
        adapter[f"{flat}.alpha"] = torch.tensor(1.0)
    check_against_diffusers(wan, save_adapter(tmp_path / "lora/a.safetensors", adapter, "lora_unet_"))


def test_whole_differences(wan: Path, tmp_path: Path) -> None:
    """As lightx2v's distilled adapters have them; diffusers leaves out differences of norms, which are zeros there."""
    weights = weights_of(wan)
    adapter = renamed(random_lora(weights), to_original)
    for name in [name for name in adapter if name.endswith("lora_B.weight")]:
        adapter[name.replace("lora_B.weight", "diff_b")] = torch.randn(adapter[name].shape[0])
    kept = dict(adapter)
    for name in ("norm_q", "norm_k"):
        adapter[f"blocks.0.self_attn.{name}.diff"] = torch.zeros(48)
    file = save_adapter(tmp_path / "lora/a.safetensors", adapter, "diffusion_model.")
    want = fused_weights(fused_pipeline(wan, (file, 0.25)))
    got = merged_weights(wan, Adapter(file, 0.25))["transformer"]
    assert len(got) == 40 + 2 and all(torch.equal(got[name], want[name]) for name in got)
    assert torch.equal(got["blocks.0.attn1.norm_q.weight"], weights["blocks.0.attn1.norm_q.weight"])
    # Where they are not zeros they are applied, to what diffusers calls otherwise too.
    more = {"blocks.1.norm3.diff": torch.ones(48), "blocks.1.norm3.diff_b": torch.full((48,), 2.0)}
    more |= {"blocks.1.modulation.diff": torch.ones(1, 6, 48), "head.head.diff": torch.ones(16, 48)}
    file = save_adapter(tmp_path / "more/a.safetensors", kept | more, "diffusion_model.")
    got = merged_weights(wan, Adapter(file, 0.5))["transformer"]
    assert torch.equal(got["blocks.1.norm2.weight"], weights["blocks.1.norm2.weight"] + 0.5)
    assert torch.equal(got["blocks.1.norm2.bias"], weights["blocks.1.norm2.bias"] + 1)
    assert torch.equal(got["blocks.1.scale_shift_table"], weights["blocks.1.scale_shift_table"] + 0.5)
    assert torch.equal(got["proj_out.weight"], weights["proj_out.weight"] + 0.5)


def fused_rows(adapter: State, modules: Sequence[str], original: str) -> State:
    """One pair of factors for a matrix that diffusers has split: the same A, B row under row."""
    shared = adapter[f"{modules[0]}.lora_A.weight"]
    for module in modules:
        adapter[f"{module}.lora_A.weight"] = shared
    rows = [adapter[f"{module}.lora_B.weight"] for module in modules]
    return {f"{original}.lora_A.weight": shared, f"{original}.lora_B.weight": torch.cat(rows)}


def test_hunyuans_own_names_and_its_joint_matrices(tmp_path: Path) -> None:
    """The same change in both namings: diffusers merges the one, we the other."""
    checkpoint = save_tiny_hunyuan(tmp_path / "checkpoint")
    adapter = random_lora(weights_of(checkpoint), r"^(single_)?transformer_blocks\.0\.(attn\.to_[qkv]|attn\.add_[qkv]_"
                          r"proj|attn\.to_out\.0|proj_mlp|proj_out|ff\.net\.2)$")  # fmt: skip
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    original: State = {}
    image, text = [f"{double}.attn.to_{x}" for x in "qkv"], [f"{double}.attn.add_{x}_proj" for x in "qkv"]
    original |= fused_rows(adapter, image, "double_blocks.0.img_attn_qkv")
    original |= fused_rows(adapter, text, "double_blocks.0.txt_attn_qkv")
    joint = [f"{single}.attn.to_{x}" for x in "qkv"] + [f"{single}.proj_mlp"]
    original |= fused_rows(adapter, joint, "single_blocks.0.linear1")
    plain = {"attn.to_out.0": "img_attn_proj", "ff.net.2": "img_mlp.fc2"}
    for module, name in plain.items():
        original |= fused_rows(adapter, [f"{double}.{module}"], f"double_blocks.0.{name}")
    original |= fused_rows(adapter, [f"{single}.proj_out"], "single_blocks.0.linear2")
    want = fused_weights(fused_pipeline(checkpoint, (save_adapter(tmp_path / "a/a.safetensors", adapter), 1.0)))
    file = save_adapter(tmp_path / "b/b.safetensors", original, "diffusion_model.")
    got = merged_weights(checkpoint, Adapter(file))["transformer"]
    assert set(got) == {name.replace("lora_A.", "") for name in adapter if "lora_A" in name} and len(got) == 13
    for name, tensor in got.items():
        assert torch.equal(tensor, want[name]), name


def test_pefts_own_folder(wan: Path, tmp_path: Path) -> None:
    """`get_peft_model(...).save_pretrained`: another prefix, the scaling in a file beside it."""
    adapter = random_lora(weights_of(wan))
    folder = tmp_path / "adapter"
    save_adapter(folder / "adapter_model.safetensors", adapter, "base_model.model.")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    doubled = {name: tensor * 2 if "lora_B" in name else tensor for name, tensor in adapter.items()}
    want = fused_weights(fused_pipeline(wan, (save_adapter(tmp_path / "lora/a.safetensors", doubled), 1.0)))
    got = merged_weights(wan, find_adapter(str(folder)))["transformer"]
    assert len(got) == 20 and all(torch.equal(tensor, want[name]) for name, tensor in got.items())


def test_names_of_adapters_inside_names(wan: Path, tmp_path: Path) -> None:
    """PEFT writes the adapter's name before `weight`, older diffusers `lora.down`."""
    adapter = random_lora(weights_of(wan), r"attn1\.to_q$")
    want = merged_weights(wan, Adapter(save_adapter(tmp_path / "a.safetensors", adapter)))["transformer"]
    spellings: list[Callable[[str], str]] = [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
        lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
    ]
    for number, spelling in enumerate(spellings):
        file = save_adapter(tmp_path / f"{number}.safetensors", renamed(adapter, spelling), "")
        got = merged_weights(wan, Adapter(file))["transformer"]
        assert set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)
