"""Adapters that do not fit are refused in one sentence before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_adapters import State, random_lora, save_adapter, weights_of
from tiny_cogvideox import save_tiny_cogvideox

from sora_export.adapted import Adapted
from sora_export.adapter import Adapter, find_adapter
from sora_export.bundle_from_checkpoint import build_bundle
from sora_export.checkpoint import Checkpoint
from sora_export.defaults import read_defaults
from sora_export.few_step import PRESETS, SOLVERS, parse_few_step
from sora_runtime.errors import BundleError, InvalidRequest
from sora_runtime.sampling import SOLVERS as KNOWN_SOLVERS

TO_Q = "blocks.0.attn1.to_q"
DOWN, UP = f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"


def one_pair() -> State:
    return {DOWN: torch.randn(4, 48), UP: torch.randn(48, 4)}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Change = Callable[[State], Any]
WRONG: dict[str, tuple[Change, str]] = {
    "down": (
        lambda a: a.update({DOWN: torch.zeros(4, 40)}),
        rf"transformer.{DOWN} of .* has the shape \[4, 40\], but {TO_Q}.weight of \[48, 48\] needs \[4, 48\]; give",
    ),
    "up": (
        lambda a: a.update({UP: torch.zeros(96, 4)}),
        rf"transformer.{UP} of .* has the shape \[96, 4\], but {TO_Q}.weight of \[48, 48\] needs \[48, 4\]",
    ),
    "rank": (lambda a: a.update({UP: torch.zeros(48, 8)}), r"has the shape \[48, 8\], .* needs \[48, 4\]"),
    "no rank": (lambda a: a.update({DOWN: torch.zeros(0, 48)}), r"has the shape \[0, 48\]"),
    "bias": (
        lambda a: a.update({f"{TO_Q}.diff_b": torch.zeros(47)}),
        rf"has the shape \[47\], but {TO_Q}.bias of \[48\] needs \[48\]",
    ),
    "alpha": (lambda a: a.update({f"{TO_Q}.alpha": torch.ones(2)}), r"alpha of .* has the shape \[2\]"),
    "another layer": (
        lambda a: a.update({"blocks.7.attn1.to_q.lora_A.weight": a[DOWN], "blocks.7.attn1.to_q.lora_B.weight": a[UP]}),
        "changes blocks.7.attn1.to_q, which the transformer of this checkpoint does not have; give an adapter that",
    ),
    "half a pair": (lambda a: a.pop(UP), f"transformer.{DOWN} of .* has no lora_B beside it"),
    "a whole model": (lambda a: a.update({f"{TO_Q}.weight": torch.zeros(48, 48)}), "is no tensor of an adapter"),
    "DoRA": (
        lambda a: a.update({f"{TO_Q}.lora_magnitude_vector": torch.ones(48)}),
        "is no product of two matrices .lora_magnitude_vector.; give a LoRA",
    ),
    "integers": (lambda a: a.update({UP: torch.zeros(48, 4, dtype=torch.int8)}), "is stored as I8; use F64, F32"),
    "not finite": (lambda a: a.update({UP: torch.full((48, 4), float("inf"))}), "is not finite in torch.float32"),
    "nothing": (lambda a: a.clear(), "holds no tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_leaves_nothing(plain: Path, tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    adapter = one_pair()
    change(adapter)
    file = save_adapter(tmp_path / "lora/a.safetensors", adapter)
    before = snapshot(plain)
    with pytest.raises(InvalidRequest, match=message) as caught:
        build_bundle(Adapted(plain, [Adapter(file)]), tmp_path / "out", [(32, 48)], [9])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(InvalidRequest, match=message):  # in its own folder too
        build_bundle(Adapted(plain, [Adapter(file)]), plain, [(32, 48)], [9])
    assert snapshot(plain) == before and not (plain / "merged").exists()


def test_an_older_bundle_outlives_a_refused_adapter(plain_bundle: Path, tmp_path: Path) -> None:
    before = snapshot(plain_bundle)
    file = save_adapter(tmp_path / "a.safetensors", {DOWN: torch.zeros(4, 40), UP: torch.zeros(48, 4)})
    with pytest.raises(InvalidRequest, match="has the shape"):
        build_bundle(Adapted(plain_bundle, [Adapter(file)]), plain_bundle, [(32, 48)], [9])
    assert snapshot(plain_bundle) == before


def test_parts_that_are_not_there(plain: Path, tmp_path: Path) -> None:
    file = save_adapter(tmp_path / "a.safetensors", one_pair())
    second = Adapted(plain, [Adapter(file, component="transformer_2")])
    with pytest.raises(InvalidRequest, match=r"is for transformer_2, which .* does not have; use --lora for it"):
        build_bundle(second, tmp_path / "out", [(32, 48)], [9])
    with pytest.raises(InvalidRequest, match="is given twice; give it once, with the sum of the scales"):
        build_bundle(Adapted(plain, [Adapter(file), Adapter(file)]), tmp_path / "out", [(32, 48)], [9])
    text = save_adapter(tmp_path / "b.safetensors", one_pair(), "text_encoder.")
    with pytest.raises(InvalidRequest, match="changes another part than a transformer"):
        build_bundle(Adapted(plain, [Adapter(text)]), tmp_path / "out", [(32, 48)], [9])
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(plain: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 64)
    with pytest.raises(BundleError, match="is not a safetensors file"):
        build_bundle(Adapted(plain, [Adapter(damaged)]), tmp_path / "out", [(32, 48)], [9])
    config = {"lora_adapter_metadata": json.dumps({"use_dora": True})}
    save_file(
        {f"transformer.{name}": tensor for name, tensor in one_pair().items()}, tmp_path / "d.safetensors", config
    )
    with pytest.raises(InvalidRequest, match="use_dora = true, which cannot be merged"):
        build_bundle(Adapted(plain, [Adapter(tmp_path / "d.safetensors")]), tmp_path / "out", [(32, 48)], [9])


def test_how_an_adapter_is_named(tmp_path: Path) -> None:
    file = save_adapter(tmp_path / "a=1.safetensors", one_pair())
    assert find_adapter(str(file)) == Adapter(file)
    assert find_adapter(f"{file}=-0.5") == Adapter(file, -0.5)
    assert find_adapter(f"{tmp_path}=2", "transformer_2") == Adapter(file, 2.0, "transformer_2")
    usual = save_adapter(tmp_path / "pytorch_lora_weights.safetensors", one_pair())
    assert find_adapter(str(tmp_path)).file == usual
    usual.unlink()
    save_adapter(tmp_path / "b.safetensors", one_pair())
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.bin").write_bytes(b"")
    for text, message in (
        (str(tmp_path), "holds 2 .safetensors files .*; name one of them"),
        (str(tmp_path / "empty"), "holds no .safetensors file"),
        (str(tmp_path / "none.safetensors"), "there is no adapter"),
        (f"{tmp_path}/none=x", "there is no adapter"),
        (str(tmp_path / "old.bin"), "is a pickle, which can run code"),
        (f"{file}=nan", "scale nan of .* is out of range; use -100 to 100"),
        (f"{file}=1000", "scale 1000 of .* is out of range"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            find_adapter(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("turbo", "'turbo' is no preset and no list of sigmas; use wan2.1-4, "),
        ("magic:1.0", "few-step solver 'magic' is unknown; use one of euler, lcm"),
        ("0.5,1.0", r"few-step sigmas \[0.5, 1.0\] do not descend within \(0, 1\]"),
        ("1.0,0.0", "without the final 0"),
        ("1.5,0.5", "do not descend"),
        ("nan", "do not descend"),
    ],
)
def test_few_steps_that_mean_nothing(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_few_step(text)


def test_few_steps_that_mean_something(plain: Path, tmp_path: Path, copy_of_plain: Callable[[], Path]) -> None:
    assert parse_few_step("ltx-8") is PRESETS["ltx-8"]
    assert parse_few_step("lcm:1.0, 0.5") == {"sigmas": (1.0, 0.5), "shift": 1.0, "solver": "lcm"}
    assert set(SOLVERS) <= set(KNOWN_SOLVERS)
    # What was asked for, else what an adapter says of itself, else the checkpoint.
    save_file(
        {f"transformer.{k}": v for k, v in one_pair().items()}, tmp_path / "a.safetensors", {"few_step": "wan2.1-4"}
    )
    checkpoint, adapter = copy_of_plain(), Adapter(tmp_path / "a.safetensors")
    (checkpoint / "sora_defaults.json").write_text(json.dumps({"few_step": "fastwan-3"}))
    user = read_defaults(Checkpoint(checkpoint))
    assert Adapted(checkpoint).levels(user) == PRESETS["fastwan-3"]
    assert Adapted(checkpoint, [adapter]).levels(user) == PRESETS["wan2.1-4"]
    assert Adapted(checkpoint, [adapter], PRESETS["ltx-8"]).levels(user) == PRESETS["ltx-8"]
    assert Adapted(plain).levels({}) is None


def test_sigmas_are_for_flow_matching(tmp_path: Path) -> None:
    checkpoint = save_tiny_cogvideox(tmp_path / "checkpoint", "5b")
    message = re.escape("has a CogVideoXDDIMScheduler; give timesteps with each request instead")
    with pytest.raises(InvalidRequest, match=message):
        build_bundle(Adapted(checkpoint, few_step=PRESETS["ltx-8"]), tmp_path / "out", [(48, 40)], [17])
    assert not (tmp_path / "out").exists()


def test_the_weights_of_another_adapter_do_not_pass_for_ones_of_this_model(plain: Path, tmp_path: Path) -> None:
    """A LoRA of one model on another: the first module that is not there names it, with how many more."""
    adapter = random_lora(weights_of(save_tiny_cogvideox(tmp_path / "other", "5b")))
    file = save_adapter(tmp_path / "a.safetensors", adapter)
    with pytest.raises(InvalidRequest, match=r"changes transformer_blocks\.0.* and \d+ more, which the transformer of"):
        build_bundle(Adapted(plain, [Adapter(file)]), tmp_path / "out", [(32, 48)], [9])
