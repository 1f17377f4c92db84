"""`sora-bench inspect --memory`: the plan of a clip's memory, of known models and of one."""

from __future__ import annotations

import json

import pytest
from fake_runtime import Command


def test_known_models_are_summed_up_within_80_columns(sora_bench: Command) -> None:
    result = sora_bench("inspect", "--memory")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split()[0] for line in lines if " bf16 " in line]
    assert heads == [
        name
        for name in (
            "Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "Wan2.2-T2V-A14B", "Wan2.2-TI2V-5B", "LTX-Video-0.9.5",
            "CogVideoX-5B", "HunyuanVideo",
        )
        for _ in range(2)
    ]  # fmt: skip
    assert sum(" nvfp4 " in line for line in lines) == len(heads)
    assert any("1 net" in line and "yes" in line for line in lines)


def test_the_plan_of_one_model_names_every_tensor(sora_bench: Command) -> None:
    result = sora_bench("inspect", "wan2.1-t2v-14b", "--memory", "--size", "832x480", "--frames", "49")
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    latents = 16 * 13 * 60 * 104 * 4 / 1e6
    assert any(row.startswith(f"latents {latents:,.1f} ") and row.endswith("denoise to decode exact") for row in rows)
    assert any(row.startswith("transformer's scratch ") and row.endswith("denoise estimated") for row in rows)
    assert any(row.startswith("h100-sxm ") for row in rows) and any(row.startswith("rtx-4090 ") for row in rows)
    assert "model Wan2.1-T2V-14B, 832x480, 49 frames" in rows


def test_the_plan_as_json_adds_up(sora_bench: Command) -> None:
    result = sora_bench("inspect", "wan-pocket", "--memory", "--json")
    assert result.exit_code == 0, result.stderr
    plans = json.loads(result.stdout)
    assert [plan["precision"] for plan in plans] == ["bf16", "fp8", "int8", "nvfp4"]
    for plan in plans:
        ends = [tensor["offset"] + tensor["bytes"] for tensor in plan["tensors"]]
        assert max(ends) <= plan["arena_bytes"]
        assert plan["fits"]["16 GB"] == "all"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inspect", "--graphs"], "there is no BUNDLE; name one, or add --memory"),
        (["inspect", "wan-pocket", "--frames", "9"], "--size and --frames are of a plan of memory"),
        (["inspect", "--memory", "--size", "64x64"], "--size and --frames are of one model"),
        (["inspect", "wan2.1-t2v-14b", "--memory", "--size", "1281x720"], "use 1280 or 1296"),
        (["inspect", "wan3", "--memory"], "model = 'wan3' is neither in the catalogue nor a path"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(sora_bench: Command, words: list[str], sentence: str) -> None:
    result = sora_bench(*words)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split()) and result.stderr.count("\n") == 1
