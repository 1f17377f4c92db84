"""Half-precision graphs: as exact as torch in that type, weights where they were, engines with fused attention."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from precision_graphs import FRAMES, SIZE, external, make_feeds, relative_l2, run

from sora_export.engine_from_onnx import EngineOptions, engine_from_onnx
from sora_export.half_precision import to_half
from sora_export.precision import MAX_FP16_KEYS

HALVES = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16]
TORCH = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
TRANSFORMER = f"transformer.{SIZE[0]}x{SIZE[1]}x{FRAMES}.onnx"
VAE = f"vae_decoder.{SIZE[0]}x{SIZE[1]}.first.onnx"


@pytest.fixture(scope="module")
def own_bundle(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, to which these tests add files."""
    return Path(shutil.copytree(plain_bundle, tmp_path_factory.mktemp("own") / "bundle"))


def as_half(graph: Path, dtype: ir.DataType) -> ir.Model:
    return to_half(ir.load(graph), dtype)


def torch_outputs(bundle: Path, graph: str, feeds: dict[str, Any], dtype: torch.dtype) -> np.ndarray[Any, Any]:
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    with torch.no_grad():
        if graph == TRANSFORMER:
            model = WanTransformer3DModel.from_pretrained(bundle / "transformer", torch_dtype=dtype)
            inputs = (
                tensors["hidden_states"].to(dtype),
                tensors["timestep"],
                tensors["encoder_hidden_states"].to(dtype),
            )
            return np.asarray(model(*inputs, return_dict=False)[0].float())
        vae = AutoencoderKLWan.from_pretrained(bundle / "vae", torch_dtype=dtype)
        mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
        latents = (tensors["latents"] * std + mean).to(dtype)
        return np.asarray(vae._decode(latents, return_dict=False)[0].float())


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("graph", [TRANSFORMER, VAE])
def test_the_error_is_at_most_twice_that_of_torch_in_the_same_type(
    own_bundle: Path, graph: str, dtype: ir.DataType
) -> None:
    feeds = make_feeds(own_bundle / graph)
    expected = torch_outputs(own_bundle, graph, feeds, torch.float32)
    budget = 2 * relative_l2(torch_outputs(own_bundle, graph, feeds, TORCH[dtype]), expected)
    found = run(as_half(own_bundle / graph, dtype), own_bundle, feeds)[0]
    error = relative_l2(np.clip(found, -1, 1) if graph == VAE else found, expected)
    assert 1e-5 < error <= budget  # the emulation rounds, so an error of zero is a test that does nothing


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
def test_a_text_encoder_keeps_its_padding_apart(own_bundle: Path, dtype: ir.DataType) -> None:
    """The mask is the lowest number of float32, which float16 does not have."""
    graph = own_bundle / "text_encoder.onnx"
    feeds = make_feeds(graph)
    expected = run(graph, own_bundle, feeds)[0]
    found = run(as_half(graph, dtype), own_bundle, feeds)[0]
    assert relative_l2(found, expected) < 0.02  # bfloat16 has 8 bits: 0.4% at each of the few roundings in a row


@pytest.mark.parametrize("graph", [TRANSFORMER, VAE, "text_encoder.onnx"])
def test_no_value_is_cast_to_and_fro_and_no_weight_moves(own_bundle: Path, graph: str) -> None:
    before = external(ir.load(own_bundle / graph))
    model = as_half(own_bundle / graph, ir.DataType.BFLOAT16)
    after = external(model)
    assert after == {name: before[name] for name in after} and len(after) == len(before)
    for node in model.graph:
        source = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        assert source is None or source.op_type != "Cast", f"{node.name} casts what {source.name} cast"
    casts = [(id(node.inputs[0]), node.outputs[0].dtype) for node in model.graph if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def test_a_transformer_casts_activations_at_its_edges_only(own_bundle: Path) -> None:
    """Latents, text, two uses of the time embedding, rope's two tables, two shifts of the last norm; the output."""
    model = as_half(own_bundle / TRANSFORMER, ir.DataType.BFLOAT16)
    casts = [node for node in model.graph if node.op_type == "Cast" and not node.inputs[0].is_initializer()]  # type: ignore[union-attr]
    assert len(casts) <= 9, [node.name for node in casts]
    edges = [*model.graph.inputs, *model.graph.outputs]
    assert {value.dtype for value in edges} == {ir.DataType.FLOAT}


def test_what_is_sensitive_stays_float32(own_bundle: Path) -> None:
    model = as_half(own_bundle / TRANSFORMER, ir.DataType.FLOAT16)
    types = {"half": set[str](), "float": set[str]()}
    for node in model.graph:
        half = node.outputs[0].dtype == ir.DataType.FLOAT16
        types["half" if half else "float"].add(node.op_type)
        if node.op_type == "Gemm" and "time_embedder" in (node.inputs[1].name or ""):  # type: ignore[union-attr]
            assert not half, "diffusers keeps time_embedder in float32"
    assert {"Sin", "Cos"} <= types["float"] and not {"Sin", "Cos"} & types["half"]
    assert {"Attention", "RMSNormalization", "Conv"} <= types["half"] - types["float"]


def test_a_weight_stored_in_the_wanted_type_needs_no_cast(half_bundle: Path) -> None:
    model = as_half(half_bundle / TRANSFORMER, ir.DataType.BFLOAT16)
    cast = [
        node.inputs[0].name
        for node in model.graph
        if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    ]
    kept_by_diffusers = ("time_embedder", "scale_shift_table")
    assert all(any(part in (name or "") for part in kept_by_diffusers) for name in cast), cast


def test_caches_of_a_vae_are_half_at_the_edge(own_bundle: Path) -> None:
    model = as_half(own_bundle / VAE.replace("first", "next"), ir.DataType.FLOAT16)
    types = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    caches = {dtype for name, dtype in types.items() if name is not None and name.startswith("cache_")}
    assert caches == {ir.DataType.FLOAT16}
    assert types["latents"] == types["frames"] == ir.DataType.FLOAT


@pytest.mark.parametrize(("keys", "expected"), [(MAX_FP16_KEYS, "FLOAT16"), (MAX_FP16_KEYS + 1, "BFLOAT16")])
def test_long_attention_is_bfloat16_in_a_float16_graph(keys: int, expected: str) -> None:
    float32 = ir.TensorType(ir.DataType.FLOAT)
    rows = [
        ir.Value(name=name, shape=ir.Shape([1, tokens, 64]), type=float32)
        for name, tokens in (("q", 16), ("k", keys), ("v", keys))
    ]
    node = ir.node("Attention", rows, {"q_num_heads": 2, "kv_num_heads": 2})
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "out", ir.Shape([1, 16, 64]), float32
    graph = ir.Graph(rows, node.outputs, nodes=[node], opset_imports={"": 23}, name="main")
    to_half(ir.Model(graph, ir_version=10), ir.DataType.FLOAT16)
    assert node.outputs[0].dtype is not None and node.outputs[0].dtype.name == expected
    assert [value.name for value in graph.outputs] == ["out"]


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("graph", [TRANSFORMER, VAE, VAE.replace("first", "next"), "text_encoder.onnx"])
def test_tensorrt_rtx_builds_it(own_bundle: Path, graph: str, dtype: ir.DataType, tmp_path: Path) -> None:
    file = own_bundle / f".half.{dtype.name}.{graph}"
    ir.save(as_half(own_bundle / graph, dtype), file)
    for capability in ("8.9", "12.0"):
        built = engine_from_onnx(file, tmp_path / "plan", EngineOptions(compute_capabilities=(capability,)))
        if graph == TRANSFORMER:
            assert built.report.attention_ops == 4
            assert built.report.fused_attention == 4
            assert built.report.cast_layers is not None and built.report.cast_layers <= 3
