"""`sora-bench inspect`: what a bundle looks like, its graphs, and what is said of a damaged one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import Command

from preset_bundles import preset, written

REPORT: dict[str, Any] = {
    "operators": {"Gemm": 26, "Attention": 4, "MatMulInteger": 2, "Shape": 1},
    "num_operators": 33,
    "flops": 18_887_108_198_400,
    "flops_by_operator": {"Attention": 13_393_805_967_360, "Gemm": 5_493_302_231_000, "MatMulInteger": 40},
    "parameters": 118_657_088,
    "parameter_bytes": {"bfloat16": 200_000_000, "float32": 37_314_176},
    "input_bytes": 16_775_172,
    "output_bytes": 8_386_560,
    "largest_activation": {"name": "gelu", "dims": [32760, 8960], "bytes": 1_174_118_400},
    "casts": 7,
    "quantizers": 2,
    "dequantizers": 3,
    "shape_arithmetic": {"Shape": 1},
}
TRANSFORMER = "transformer.480x832x25.onnx"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of empty graphs; two sizes, no VAE encoder, one parity value and one report missing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "bundle"
    (root / "transformer").mkdir(parents=True)
    graphs = [
        "text_encoder.onnx",
        *(f"transformer.{size}x25.onnx" for size in ("480x832", "720x1280")),
        *(f"vae_decoder.480x832.{part}.onnx" for part in ("first", "next")),
    ]
    files = [*graphs, "tokenizer.json", "scheduler.json", "transformer/model.safetensors"]
    for file in files:
        (root / file).write_bytes(file.encode() * 300)
    manifest = {
        "schema_version": 2,
        "name": "tiny",
        "family": "wan",
        "tasks": ["t2v", "i2v"],
        "precision": "fp32",
        "license": "Apache-2.0",
        "facts": {
            "latent_channels": 16,
            "spatial_stride": 8,
            "temporal_stride": 4,
            "patch_size": [1, 2, 2],
            "fps": 16.0,
            "boundary_ratio": 0.875,
            "defaults": {
                "num_inference_steps": 40,
                "guidance_scale": 3.5,
                "negative_prompt": "低质量, [blur]",
                "height": 480,
                "width": 832,
                "num_frames": 25,
            },
        },
        "scheduler": "scheduler.json",
        "components": components(graphs),
        "files": {
            file: {
                "sha256": hashlib.sha256((root / file).read_bytes()).hexdigest(),
                "size": (root / file).stat().st_size,
                "data": ["transformer/model.safetensors"] if file.startswith("transformer.") else [],
            }
            for file in files
        },
        "parity": {
            graphs[1]: {"relative_l2": 1.5e-6, "against": "torch"},
            graphs[2]: {"relative_l2": None, "reason": "not asked for"},
            "vae_decoder": {"relative_l2": 2e-7, "against": "torch"},
        },
        "reports": {
            TRANSFORMER: REPORT,
            graphs[3]: {**REPORT, "flops": None, "flops_by_operator": None, "flops_reason": "Conv 'a' has no shape"},
        },
        "made_by": {"torch": "2.13.0"},
    }
    write(root, manifest)
    return root


def components(graphs: list[str]) -> dict[str, Any]:
    buckets = [
        {"height": height, "width": width, "num_frames": 25, "graph": f"transformer.{height}x{width}x25.onnx"}
        for height, width in ((480, 832), (720, 1280))
    ]
    return {
        "text_encoder": {
            "graph": graphs[0],
            "fingerprint": "00" * 32,
            "tokenizer": "tokenizer.json",
            "max_sequence_length": 512,
            "inputs": ["input_ids", "attention_mask"],
            "outputs": {"encoder_hidden_states": [1, 512, 4096]},
        },
        "transformer": {"buckets": buckets},
        "vae_decoder": {
            "kind": "chunked",
            "buckets": [{"height": 480, "width": 832, "first": graphs[-2], "next": graphs[-1]}],
        },
    }


def read(root: Path) -> dict[str, Any]:
    return json.loads((root / "bundle.json").read_text(encoding="utf-8"))


def write(root: Path, manifest: dict[str, Any]) -> None:
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


def rows_of(text: str) -> list[str]:
    """The lines, each of at most 80 columns, with single spaces."""
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    return [" ".join(line.split()) for line in lines]


def test_inspect_shows_everything_within_80_columns(sora_bench: Command, bundle: Path) -> None:
    result = sora_bench("inspect", "bundle")
    assert result.exit_code == 0, result.stderr
    rows = rows_of(result.stdout)
    assert "name tiny (wan, fp32, onnxruntime)" in rows
    assert "makes clips from a prompt and from a picture and a prompt" in rows
    assert "defaults 832x480, 25 frames at 16 fps, 40 steps, guidance 3.5" in rows
    assert "negative 低质量, [blur]" in rows
    assert "text 512 tokens -> encoder_hidden_states 1x512x4096" in rows
    assert f"{TRANSFORMER} 832x480 25 7.9 KiB 1.5e-06" in rows
    assert "transformer.720x1280x25.onnx 1280x720 25 8.2 KiB not measured" in rows
    assert "vae_decoder.480x832.next.onnx 832x480 next 8.5 KiB 2.0e-07" in rows
    weights = next(row for row in rows if row.startswith("transformer/model.safetensors"))
    digest = hashlib.sha256((bundle / "transformer/model.safetensors").read_bytes()).hexdigest()
    assert weights.split()[1:] == ["8.5", "KiB", digest[:12]]
    assert "all 8 files match their sha256, hashed when first seen" in result.stdout
    again = " ".join(sora_bench("inspect", "bundle", "--verify", "always").stdout.split())
    assert again.endswith("all 8 files match their sha256, hashed now")


def test_what_each_graph_computes(sora_bench: Command, bundle: Path) -> None:
    rows = rows_of(sora_bench("inspect", "bundle").stdout)
    assert "graph operators FLOPs parameters weights" in rows
    assert f"{TRANSFORMER} 33 18.9 T 119 M 226.3 MiB" in rows
    assert "vae_decoder.480x832.first.onnx 33 unknown 119 M 226.3 MiB" in rows
    assert "text_encoder.onnx" in rows  # it has no report


def test_a_bundle_without_reports(sora_bench: Command, bundle: Path) -> None:
    write(bundle, {**read(bundle), "reports": {}})
    assert "operators" not in sora_bench("inspect", "bundle").stdout
    result = sora_bench("inspect", "bundle", "--graph", TRANSFORMER)
    assert rows_of(result.stdout) == [
        f"graph {TRANSFORMER}",
        "report none: the bundle was built without; rebuild it",
    ]


def test_the_operators_of_a_graph(sora_bench: Command, bundle: Path) -> None:
    result = sora_bench("inspect", "bundle", "--graph", TRANSFORMER)
    assert result.exit_code == 0, result.stderr
    rows = [row for row in rows_of(result.stdout) if row and "─" not in row]
    assert rows == [
        f"graph {TRANSFORMER}",
        "operators 33",
        "FLOPs 18.9 T",
        "parameters 119 M (190.7 MiB of bfloat16, 35.6 MiB of float32)",
        "inputs 16.0 MiB",
        "outputs 8.0 MiB",
        "largest 1.1 GiB: gelu 32760x8960",
        "casts 7",
        "quantised 2 QuantizeLinear, 3 DequantizeLinear",
        "leftovers 1 Shape",
        "operator count FLOPs",
        "Gemm 26 5.49 T",
        "Attention 4 13.4 T",
        "MatMulInteger 2 40",
        "Shape 1",
    ]


def test_the_operators_of_every_graph(sora_bench: Command, bundle: Path) -> None:
    rows = rows_of(sora_bench("inspect", "bundle", "--graphs").stdout)
    shown = [row.removeprefix("graph ") for row in rows if row.startswith("graph ")]
    assert shown == [name for name in read(bundle)["files"] if name.endswith(".onnx")]
    assert "FLOPs unknown (Conv 'a' has no shape)" in rows


def test_an_unknown_graph_is_refused(sora_bench: Command, bundle: Path) -> None:
    result = sora_bench("inspect", "bundle", "--graph", "transformer")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: 'tiny' has no graph 'transformer'; use one of text_encoder.onnx, ")
    assert result.stderr.count("\n") == 1


def test_a_damaged_report_is_one_sentence(sora_bench: Command, bundle: Path) -> None:
    write(bundle, {**read(bundle), "reports": {TRANSFORMER: {**REPORT, "operators": {"Gemm": "many"}}}})
    for words in ((), ("--graph", TRANSFORMER), ("--graphs",)):
        result = sora_bench("inspect", "bundle", *words)
        assert (result.exit_code, result.stderr) == (
            1,
            f"error: the report of '{TRANSFORMER}' in bundle.json is damaged at operators.Gemm; rebuild the bundle\n",
        )


def test_a_tiled_decoder_and_a_second_encoder(sora_bench: Command, bundle: Path) -> None:
    manifest = read(bundle)
    parts = manifest["components"]
    parts["text_encoder_2"] = {**parts["text_encoder"], "outputs": {"pooled_projections": [1, 768]}}
    parts["image_encoder"] = {"graph": "vae_decoder.480x832.next.onnx", "fingerprint": "00" * 32}
    tile = {"latent": [5, 32, 32], "stride": [4, 24, 24]}
    bucket = {"height": 480, "width": 832, "num_frames": 25, "graph": "vae_decoder.480x832.first.onnx", "tile": tile}
    parts["vae_decoder"] = {"kind": "tiled", "buckets": [bucket]}
    write(bundle, manifest)
    rows = rows_of(sora_bench("inspect", "bundle").stdout)
    assert "text 2 512 tokens -> pooled_projections 1x768" in rows
    assert "vae_decoder.480x832.first.onnx 832x480 tile 8.8 KiB 2.0e-07" in rows
    assert any(row.startswith("text_encoder_2: ") for row in rows)
    assert any(row.startswith("image_encoder: ") for row in rows)


def test_inspect_as_json(sora_bench: Command, bundle: Path) -> None:
    record = json.loads(sora_bench("inspect", "bundle", "--json", "--verify", "always").stdout)
    manifest = read(bundle)
    assert record["root"] == str(bundle)
    assert record["sha256"] == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert record["verified"] == "now"
    for key in ("name", "files", "parity", "reports"):
        assert record[key] == manifest[key]


def test_inspect_hashes_once_or_always(sora_bench: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_digest, hashed = hashlib.file_digest, []

    def counted(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for verify, times in (((), 8), (("--verify", "once"), 0), (("--verify", "always"), 8)):
        hashed.clear()
        assert sora_bench("inspect", "bundle", *verify).exit_code == 0
        assert len(set(hashed)) == len(hashed) == times, verify
    assert sora_bench("inspect", "bundle", "--verify", "never").exit_code == 2


def test_inspect_of_a_damaged_file(sora_bench: Command, bundle: Path) -> None:
    weights = bundle / "transformer" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    result = sora_bench("inspect", "bundle", "--verify", "always")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "model.safetensors" in result.stderr


def test_inspect_of_no_bundle(sora_bench: Command) -> None:
    result = sora_bench("inspect", "nothing")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no bundle 'nothing'")


def test_presets_are_shown_with_their_cost_and_quality(sora_bench: Command, tmp_path: Path) -> None:
    presets = {
        "draft": preset({"num_inference_steps": 4, "guidance_scale": 1.0}, adherence=0.9, bundle="few"),
        "best": preset(
            {"num_inference_steps": 20, "guidance_interval": [0.2, 0.9], "guidance_scale": 4.0},
            seconds=1.25,
            adherence=1.0,
            psnr_mean=None,
            machine="another",
        ),
    }
    result = sora_bench("inspect", str(written(tmp_path / "bundle", presets)))
    assert (result.exit_code, result.stderr) == (0, "")
    rows = rows_of(result.stdout)
    assert "draft few, 4 steps, no 1 0.0000100 0.900 30.0" in rows
    assert "best 20 steps, guidance 4 1.25 0.0000100 1.000 same" in rows
    assert any("25 frames (t2v), 8 prompts, on another at 0.0816 USD" in row for row in rows)
    heading = "preset settings s a clip USD a second adherence PSNR dB"
    assert heading in rows
    assert heading not in rows_of(sora_bench("inspect", str(written(tmp_path / "none", {}))).stdout)
