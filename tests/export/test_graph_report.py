"""The report of a graph against torch's own count, and against what is known of small graphs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxscript
import pytest
import torch
from clean_graphs import assert_clean
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from onnxscript import opset23 as op
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5EncoderModel

from sora_export.graph_report import report
from sora_export.onnx_from_torch import TorchGraph, onnx_from_torch
from sora_runtime.errors import BundleError

# The same products are counted, so that only operators which one of the two engines does not run can differ.
TOLERANCE = 0.01


def torch_flops(run: Callable[[], Any]) -> int:
    # With the kernel for the CPU, attention is an operator that the counter does not know.
    with torch.no_grad(), nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        counter = FlopCounterMode(display=False)
        with counter:
            run()
    return counter.get_total_flops()


def reports(bundle: Path) -> dict[str, dict[str, Any]]:
    return json.loads((bundle / "bundle.json").read_text())["reports"]


def bucket(bundle: Path, component: str) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())["components"][component]["buckets"][0]


def test_every_graph_has_a_report(bundle: Path) -> None:
    stored = reports(bundle)
    assert set(stored) == {path.name for path in bundle.glob("*.onnx")}
    assert stored == {name: report(bundle / name) for name in stored}


def test_transformer_flops_are_torchs(plain_bundle: Path) -> None:
    model = WanTransformer3DModel.from_pretrained(plain_bundle / "transformer").eval()
    found = reports(plain_bundle)[bucket(plain_bundle, "transformer")["graph"]]
    latents, text = torch.zeros(1, 4, 3, 8, 12), torch.zeros(1, 16, 32)
    want = torch_flops(lambda: model(latents, torch.tensor([500.0]), text))
    assert found["flops"] == pytest.approx(want, rel=TOLERANCE)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["parameter_bytes"] == {"float32": 4 * found["parameters"]}
    assert found["input_bytes"] == 4 * (latents.numel() + 1 + text.numel())
    assert found["output_bytes"] == 4 * latents.numel()
    # 72 tokens times the width of the feed-forward layers: no table of scores, no copy of all tokens.
    assert found["largest_activation"]["dims"] == [72, 96]
    assert found["largest_activation"]["bytes"] == 72 * 96 * 4


def test_text_encoder_flops_are_torchs(plain_bundle: Path) -> None:
    model = UMT5EncoderModel.from_pretrained(plain_bundle / "text_encoder").eval()
    ids = torch.ones(1, 16, dtype=torch.int64)
    want = torch_flops(lambda: model(ids, ids))
    found = reports(plain_bundle)["text_encoder.onnx"]
    assert found["flops"] == pytest.approx(want, rel=TOLERANCE)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())


def test_vae_flops_are_torchs(plain_bundle: Path) -> None:
    model = AutoencoderKLWan.from_pretrained(plain_bundle / "vae").eval()
    latents, frames = torch.zeros(1, 4, 2, 8, 12), torch.zeros(1, 3, 5, 32, 48)
    stored = reports(plain_bundle)
    for component, run in (
        ("vae_decoder", lambda: model.decode(latents)),
        ("vae_encoder", lambda: model.encode(frames)),
    ):
        if component not in json.loads((plain_bundle / "bundle.json").read_text())["components"]:
            continue  # a model for text alone needs no encoder
        chunks = bucket(plain_bundle, component)
        found = sum(stored[chunks[part]]["flops"] for part in ("first", "next"))
        assert found == pytest.approx(torch_flops(run), rel=TOLERANCE)


def test_half_precision_weights_are_cast_once_each(half_bundle: Path) -> None:
    found = reports(half_bundle)[bucket(half_bundle, "transformer")["graph"]]
    assert found["parameter_bytes"] == {"bfloat16": 2 * found["parameters"]}
    weights = sum(
        1
        for value in ir.load(half_bundle / "transformer.32x48x9.onnx").graph.initializers.values()
        if value.dtype == ir.DataType.BFLOAT16
    )
    assert found["casts"] == weights
    assert found["quantizers"] == found["dequantizers"] == 0


def test_graphs_are_clean(bundle: Path) -> None:
    layers = {"text_encoder": 2, "transformer": 4, "vae": 1}
    for path in bundle.glob("*.onnx"):
        attentions = next(count for name, count in layers.items() if path.name.startswith(name))
        assert_clean(path, attentions=attentions)


def test_a_block_is_forty_operators(plain_bundle: Path) -> None:
    """A layer more costs what a layer is: nothing of it is done twice, nothing comes and goes."""
    graph = bucket(plain_bundle, "transformer")["graph"]
    block: Counter[str] = Counter()
    for node in ir.load(plain_bundle / graph).graph:
        block[node.op_type] += 1
    assert block["RotaryEmbedding"] == 4  # queries and keys of two layers
    assert block["RMSNormalization"] == 8
    assert block["LayerNormalization"] == 7
    assert block["Transpose"] == 2  # into tokens and back into patches
    assert block["Slice"] == block["Gather"] == 0
    assert block.total() <= 30 + 2 * 40


class OneOperator(nn.Module):
    """A layer under the name that the exporter expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(*inputs)


class Attend(nn.Module):
    """Attention whose keys are fewer than its queries, as over a prompt."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: nn.Linear(24, 40), [(1, 7, 24)]),
        (lambda: nn.Linear(24, 40, bias=False), [(7, 24)]),
        (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), [(1, 4, 10, 12)]),
        (lambda: nn.Conv2d(8, 8, 3, groups=4), [(1, 8, 10, 12)]),
        (lambda: nn.Conv3d(4, 6, (3, 2, 1), stride=(1, 2, 1)), [(1, 4, 5, 6, 7)]),
        (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), [(1, 4, 5, 6)]),
        (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2), [(1, 4, 3, 5, 6)]),
        (Attend, [(1, 3, 20, 16), (1, 3, 9, 16), (1, 3, 9, 16)]),
        (Attend, [(1, 1, 20, 16), (1, 1, 9, 16), (1, 1, 9, 16)]),
    ],
)
def test_single_operators(make: Callable[[], nn.Module], shapes: list[tuple[int, ...]]) -> None:
    inputs = {f"input_{i}": torch.empty(shape, device="meta") for i, shape in enumerate(shapes)}
    found = report(onnx_from_torch(TorchGraph(lambda: OneOperator(make()), inputs, ["output"])).model)
    want = torch_flops(lambda: make()(*(torch.zeros(shape) for shape in shapes)))
    assert found["flops"] == want > 0
    assert found["parameters"] == sum(p.numel() for p in make().parameters())
    assert found["input_bytes"] == 4 * sum(torch.Size(shape).numel() for shape in shapes)


@onnxscript.script(ir_version=10)
def products(
    x: onnxscript.FLOAT[2, 5, 7], y: onnxscript.FLOAT[7, 3], q: onnxscript.INT8[4, 6], r: onnxscript.INT8[6, 8]
) -> tuple[onnxscript.FLOAT[2, 5, 3], onnxscript.INT32[4, 8], onnxscript.FLOAT[2, 3], onnxscript.INT64[3]]:
    """Products that no torch module of ours exports to."""
    matrix = op.MatMul(x, y)
    integers = op.MatMulInteger(q, r)
    contracted = op.Einsum(x, y, equation="bij,jk->bk")
    return matrix, integers, contracted, op.Shape(x)


def test_other_products_and_leftovers() -> None:
    # Nothing but the edges has a shape: the report infers the rest.
    model = ir.from_proto(products.to_model_proto())
    found = report(model)
    assert found["flops_by_operator"] == {
        "Einsum": 2 * 2 * 5 * 7 * 3,
        "MatMul": 2 * 2 * 5 * 7 * 3,
        "MatMulInteger": 2 * 4 * 6 * 8,
    }
    assert found["shape_arithmetic"] == {"Shape": 1}
    assert found["operators"] == {"Einsum": 1, "MatMul": 1, "MatMulInteger": 1, "Shape": 1}
    assert (found["parameters"], found["parameter_bytes"]) == (0, {})
    with pytest.raises(AssertionError, match="1 Shape"):
        assert_clean(model)


def test_flops_without_a_shape_are_not_counted(tmp_path: Path) -> None:
    model = ir.from_proto(products.to_model_proto())
    model.graph.inputs[0].shape = ir.Shape(["batch", 5, 7])
    model.graph.outputs[0].shape = model.graph.outputs[2].shape = None
    ir.save(model, tmp_path / "graph.onnx")
    found = report(tmp_path / "graph.onnx")
    assert found["flops"] is None
    assert found["flops_by_operator"] is None
    assert "no static shape" in found["flops_reason"]


def test_what_is_no_graph_is_refused(plain_bundle: Path, tmp_path: Path) -> None:
    shutil.copy(plain_bundle / "text_encoder.onnx", tmp_path / "cut.onnx")
    data = (tmp_path / "cut.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match="no ONNX graph"):
        report(tmp_path / "cut.onnx")
