"""`sora-bench build` and `inspect`: what reaches the builder, and what a bundle looks like."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_runtime import Command

from sora_runtime.errors import OutputError


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Takes the place of `sora_export.bundle_from_checkpoint`; holds the calls."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def build_bundle(*arguments: Any, progress: Any, **options: Any) -> Path:
        calls.append((arguments, options))
        progress("exporting a graph")
        if str(arguments[0]) == "full":
            raise OutputError("the disk is full; free some space")
        return Path("/bundles") / arguments[1]

    module = ModuleType("sora_export.bundle_from_checkpoint")
    module.build_bundle = build_bundle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sora_export", ModuleType("sora_export"))
    monkeypatch.setitem(sys.modules, "sora_export.bundle_from_checkpoint", module)
    return calls


SHAPES = ("--size", "832x480", "--size", "96x64", "--frames", "25", "--frames", "49")


def test_build_passes_height_before_width(sora_bench: Command, builder: list[Any]) -> None:
    result = sora_bench("build", "checkpoint", "--out", "bundle", *SHAPES, "--name", "mine")
    arguments = (Path("checkpoint"), Path("bundle"), [(480, 832), (64, 96)], [25, 49])
    assert builder == [(arguments, {"name": "mine", "check_parity": True})]
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "/bundles/bundle\n",
        "exporting a graph\n",
    )


def test_build_quietly_without_parity(sora_bench: Command, builder: list[Any]) -> None:
    result = sora_bench("build", "checkpoint", "--out", "b", *SHAPES, "--no-parity", "-q")
    assert builder[0][1] == {"name": None, "check_parity": False}
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("words", [("a" * 300, "--out", "b"), ("checkpoint", "--out", "a" * 300)])
def test_too_long_a_name_is_one_line(sora_bench: Command, builder: list[Any], words: tuple[str, ...]) -> None:
    result = sora_bench("build", *words, *SHAPES)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: {'a' * 300} cannot be opened (file name too long); check the path\n",
    )
    assert builder == []


def test_build_errors_are_one_line(sora_bench: Command, builder: list[Any]) -> None:
    result = sora_bench("build", "full", "--out", "b", *SHAPES, "-q")
    assert (result.exit_code, result.stderr) == (1, "error: the disk is full; free some space\n")
    result = sora_bench("build", "checkpoint", "--out", "b", "--size", "96", "--frames", "25")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --size 96 is not WIDTHxHEIGHT in pixels; use one such as 96x96\n",
    )
    assert len(builder) == 1


@pytest.mark.parametrize("package", ["torch", "diffusers.models"])
def test_build_says_what_to_install(sora_bench: Command, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    class Missing:
        """An importer that knows nothing, as on a machine without the export packages."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "sora_export.bundle_from_checkpoint":
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.delitem(sys.modules, "sora_export.bundle_from_checkpoint", raising=False)
    package_module = ModuleType("sora_export")
    package_module.__path__ = []
    monkeypatch.setitem(sys.modules, "sora_export", package_module)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    result = sora_bench("build", "checkpoint", "--out", "b", *SHAPES)
    needed = package.partition(".")[0]
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: build needs {needed}, which is not installed; pip install 'sora-runtime[export]'\n",
    )


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of empty graphs; two sizes, no encoder, one parity value missing."""
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
    buckets = [
        {"height": height, "width": width, "num_frames": 25, "graph": f"transformer.{height}x{width}x25.onnx"}
        for height, width in ((480, 832), (720, 1280))
    ]
    chunk = {"height": 480, "width": 832, "first": graphs[-2], "next": graphs[-1]}
    manifest = {
        "schema_version": 1,
        "name": "tiny",
        "family": "wan",
        "precision": "fp32",
        "license": "Apache-2.0",
        "facts": {
            "latent_channels": 16,
            "spatial_stride": 8,
            "temporal_stride": 4,
            "patch_size": [1, 2, 2],
            "fps": 16.0,
            "max_sequence_length": 512,
            "text_dim": 4096,
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
        "tokenizer": "tokenizer.json",
        "components": {
            "text_encoder": {"graph": graphs[0], "fingerprint": "00" * 32},
            "transformer": {"buckets": buckets},
            "vae_decoder": {"buckets": [chunk]},
        },
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
        "made_by": {"torch": "2.13.0"},
    }
    (root / "bundle.json").write_text(json.dumps(manifest))
    return root


def test_inspect_shows_everything_within_80_columns(sora_bench: Command, bundle: Path) -> None:
    result = sora_bench("inspect", "bundle")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    rows = [" ".join(line.split()) for line in lines]
    assert "name tiny (wan, fp32)" in rows
    assert "defaults 832x480, 25 frames at 16 fps, 40 steps, guidance 3.5" in rows
    assert "negative 低质量, [blur]" in rows
    assert "transformer.480x832x25.onnx 832x480 25 7.9 KiB 1.5e-06" in rows
    assert "transformer.720x1280x25.onnx 1280x720 25 8.2 KiB not measured" in rows
    assert "vae_decoder.480x832.next.onnx 832x480 next 8.5 KiB 2.0e-07" in rows
    weights = next(row for row in rows if row.startswith("transformer/model.safetensors"))
    digest = hashlib.sha256((bundle / "transformer/model.safetensors").read_bytes()).hexdigest()
    assert weights.split()[1:] == ["8.5", "KiB", digest[:12]]
    assert "all 8 files match their sha256, hashed when first seen" in result.stdout
    again = " ".join(sora_bench("inspect", "bundle", "--verify", "always").stdout.split())
    assert again.endswith("all 8 files match their sha256, hashed now")


def test_inspect_as_json(sora_bench: Command, bundle: Path) -> None:
    record = json.loads(sora_bench("inspect", "bundle", "--json", "--verify", "always").stdout)
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert record["root"] == str(bundle)
    assert record["sha256"] == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert record["verified"] == "now"
    for key in ("name", "files", "parity"):
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
