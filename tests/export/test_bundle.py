"""What a finished bundle consists of: small graphs, weights in place, a true bundle.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from tokenizers import Tokenizer


def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())


def external(initializer: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in initializer.external_data}


def graphs(bundle: Path) -> dict[str, onnx.ModelProto]:
    found = sorted(bundle.glob("*.onnx"))
    return {path.name: onnx.load(path, load_external_data=False) for path in found}


def test_manifest_lists_every_file_with_its_hash(bundle: Path) -> None:
    files = manifest(bundle)["files"]
    for name, record in files.items():
        data = (bundle / name).read_bytes()
        assert (record["sha256"], record["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
        assert ("data" in record) == name.endswith(".onnx")
    on_disk = {path.name for path in bundle.glob("*.onnx")}
    assert on_disk == {name for name in files if name.endswith(".onnx")}
    assert {"tokenizer.json", "scheduler/scheduler_config.json", "model_index.json"} <= set(files)
    for name, model in graphs(bundle).items():
        used = {external(i)["location"] for i in model.graph.initializer if i.external_data}
        assert used and used <= set(files)
        assert set(files[name]["data"]) == used


def test_manifest_states_the_facts_of_the_configs(plain_bundle: Path) -> None:
    facts = manifest(plain_bundle)["facts"]
    assert facts["latent_channels"] == 4
    assert (facts["spatial_stride"], facts["temporal_stride"]) == (4, 4)
    assert facts["patch_size"] == [1, 2, 2]
    assert facts["latents_std"] == [1.5, 0.7, 2.0, 1.0]
    text = manifest(plain_bundle)["components"]["text_encoder"]
    assert text["max_sequence_length"] == 16 and text["outputs"] == {"encoder_hidden_states": [1, 16, 32]}
    assert (text["tokenizer"], text["pad_token_id"], text["clean"]) == ("tokenizer.json", 0, True)
    assert manifest(plain_bundle)["tasks"] == ["t2v"] and facts["image"] is None
    assert facts["fps"] == 16.0 and facts["boundary_ratio"] is None
    assert facts["defaults"] == {
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "negative_prompt": "",
        "height": 32,
        "width": 48,
        "num_frames": 9,
    }


def test_manifest_of_the_wan_2_2_variants(residual_bundle: Path, half_bundle: Path) -> None:
    residual, half = manifest(residual_bundle), manifest(half_bundle)
    assert residual["facts"]["expand_timesteps"] is True and residual["facts"]["fps"] == 24.0
    assert residual["facts"]["spatial_stride"] == 16
    assert half["facts"]["boundary_ratio"] == 0.875
    assert "transformer_2" in half["components"] and "transformer_2" not in residual["components"]
    assert half["components"]["transformer_2"] != half["components"]["transformer"]


def test_parity_was_measured_for_every_graph(bundle: Path) -> None:
    parity = manifest(bundle)["parity"]
    assert set(parity) == set(graphs(bundle))
    # 1e-6 is seen; the build itself refuses 1e-3.
    assert all(0 < entry["relative_l2"] < 1e-5 for entry in parity.values())
    assert all("torch" in entry["against"] for entry in parity.values())


def test_names_at_the_edge_of_the_graphs(plain_bundle: Path, i2v_a14b_bundle: Path) -> None:
    edge = {
        name: ([v.name for v in model.graph.input], [v.name for v in model.graph.output])
        for bundle in (i2v_a14b_bundle, plain_bundle)
        for name, model in graphs(bundle).items()
    }
    assert edge["text_encoder.onnx"] == (["input_ids", "attention_mask"], ["encoder_hidden_states"])
    for part, take, give in (("decoder", "latents", "frames"), ("encoder", "frames", "latents")):
        inputs, outputs = edge[f"vae_{part}.32x48.next.onnx"]
        count = len(outputs) - 1
        assert count > 5
        assert inputs == [take, *(f"cache_in.{i}" for i in range(count))]
        assert outputs == [give, *(f"cache_out.{i}" for i in range(count))]
        assert edge[f"vae_{part}.32x48.first.onnx"] == ([take], outputs)


def test_shapes_are_static_and_caches_keep_theirs(bundle: Path) -> None:
    for model in graphs(bundle).values():
        shapes = {}
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            assert all(dim.HasField("dim_value") for dim in dims)
            shapes[value.name] = [dim.dim_value for dim in dims]
        for name, shape in shapes.items():
            if name.startswith("cache_in."):
                assert shapes[name.replace("in", "out")] == shape


def test_no_weight_is_in_a_graph(bundle: Path) -> None:
    total = 0
    for name, model in graphs(bundle).items():
        size = (bundle / name).stat().st_size
        assert size < 250_000, f"{name} has {size} bytes"
        total += size
        for initializer in model.graph.initializer:
            if not initializer.external_data:
                # Small tables and shapes; the smallest matrix of these models has 1,024 elements
                # and the rope tables of this many tokens up to 3,500.
                assert np.prod(initializer.dims) < 4_000, initializer.name
                assert not initializer.name.startswith("model."), initializer.name
    assert total < 2_000_000


def test_initialisers_are_the_bytes_of_the_checkpoint(bundle: Path) -> None:
    folders = {"text": "text_encoder", "vae_": "vae"}
    checked = 0
    for name, model in graphs(bundle).items():
        folder = folders.get(name[:4], name.split(".", maxsplit=1)[0])
        stored = {}
        for file in (bundle / folder).glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                stored |= {key: (file, tensors.get_tensor(key)) for key in tensors.keys()}  # noqa: SIM118
        for initializer in model.graph.initializer:
            if not initializer.external_data:
                continue
            key = initializer.name.removeprefix("model.")
            key = "shared.weight" if key == "encoder.embed_tokens.weight" else key
            file, tensor = stored[key]
            where = external(initializer)
            assert where["location"] == file.relative_to(bundle).as_posix()
            with file.open("rb") as stream:
                stream.seek(int(where["offset"]))
                data = stream.read(int(where["length"]))
            assert data == tensor.contiguous().view(torch.uint8).numpy().tobytes()
            assert list(initializer.dims) == list(tensor.shape)
            checked += 1
    assert checked > 150


def test_linear_weights_are_used_as_stored(bundle: Path) -> None:
    for name in ("text_encoder.onnx", "transformer.32x48x9.onnx", "transformer.64x96x9.onnx"):
        if (bundle / name).exists():
            nodes = onnx.load(bundle / name, load_external_data=False).graph.node
            count = {kind: sum(node.op_type == kind for node in nodes) for kind in ("Gemm", "MatMul")}
            assert count["Gemm"] >= 14 and count["MatMul"] == 0
            assert any(node.op_type == "Attention" for node in nodes)
            assert any(node.op_type == "RMSNormalization" for node in nodes)


def test_nothing_of_the_machine_is_in_a_graph(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        data = path.read_bytes()
        assert str(bundle.parent).encode() not in data
        assert b"site-packages" not in data and b".py" not in data


def test_checkpoint_is_linked_and_left_as_it_was(plain: Path, plain_bundle: Path) -> None:
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (plain / weights).samefile(plain_bundle / weights)
    assert not list(plain.rglob("*.onnx")) and not (plain / "bundle.json").exists()
    assert not (plain / "tokenizer.json").exists()
    assert not list(plain_bundle.glob(".*"))


@torch.no_grad()
def test_diffusers_still_loads_the_folder(bundle: Path) -> None:
    pipeline = WanPipeline.from_pretrained(bundle, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}
    frames = pipeline("a red circle", max_sequence_length=16, output_type="np", **size).frames
    assert frames.shape == (1, 5, 32, 32, 3) and np.isfinite(frames).all()


def test_tokenizer_is_the_checkpoints(plain: Path, plain_bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(plain_bundle / "tokenizer.json"))
    original = Tokenizer.from_file(str(plain / "tokenizer/tokenizer.json"))
    ids = tokenizer.encode("a red square falls").ids
    assert ids == original.encode("a red square falls").ids and ids[-1] == 1


def test_text_encoder_fingerprints_differ_by_weights(plain_bundle: Path, half_bundle: Path) -> None:
    prints = {manifest(bundle)["components"]["text_encoder"]["fingerprint"] for bundle in (plain_bundle, half_bundle)}
    assert len(prints) == 2 and all(len(fingerprint) == 64 for fingerprint in prints)


def test_reader_accepts_the_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("sora_runtime.bundle")
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle.parent / "cache"))
    assert reader.Bundle.load(bundle, verify="always").manifest.family == "wan"
