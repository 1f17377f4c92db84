"""This project's operators inside ONNX Runtime: what is pointed to them, and that they give what its own give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sora_runtime import EngineError
from sora_runtime.bundle import find_bundle
from sora_runtime.engines.engine import Array
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.engines.own_kernels import DOMAIN, with_own_operators

MICROSOFT = "com.microsoft"
ROWS, WIDTH, HEADS = 50, 96, 3


def linear(number: int, x: str, *, zero_points: bool = False, bias: bool = True) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(number)
    arrays: dict[str, Array] = {
        f"weight.{number}": rng.integers(-63, 64, (WIDTH, WIDTH)).astype(np.int8),
        f"scale.{number}": (0.002 + 0.001 * rng.random(WIDTH)).astype(np.float32),
        f"bias.{number}": rng.standard_normal(WIDTH, np.float32),
    }
    if zero_points:
        arrays[f"zero.{number}"] = np.zeros(WIDTH, np.int8)
    inputs = [x, f"weight.{number}", f"scale.{number}", f"zero.{number}" if zero_points else ""]
    inputs += [f"bias.{number}"] * bias
    node = helper.make_node("DynamicQuantizeMatMul", inputs, [f"y.{number}"], domain=MICROSOFT, name=f"linear.{number}")
    return node, [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in inputs]


def attention(number: int, q: str, k: str, v: str, *more: str) -> Any:
    inputs = [q, k, v, *more]
    return helper.make_node("MultiHeadAttention", inputs, [f"a.{number}"], domain=MICROSOFT, num_heads=HEADS)


def save(
    path: Path, nodes: list[Any], weights: list[Any], output: str, *, rows: int = ROWS, width: int = WIDTH
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, ROWS, width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, ROWS, width])],
        weights,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    return path


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """Three linears, attention between their outputs, a linear without a bias."""
    parts = [linear(0, "x"), linear(1, "x"), linear(2, "x"), linear(3, "a.0", bias=False)]
    nodes = [*(node for node, _ in parts[:3]), attention(0, "y.0", "y.1", "y.2"), parts[3][0]]
    return save(tmp_path / "block.onnx", nodes, [weight for _, weights in parts for weight in weights], "y.3")


def run(path: Path, x: Array, *, own: bool, threads: int = 2) -> Array:
    engine = OnnxRuntimeEngine(path, num_threads=threads, own_operators=own)
    (output,) = engine.outputs
    y = engine.outputs[output].empty()
    engine.bind({"x": x, output: y}).run()
    return y


def domains(model: bytes) -> dict[str, str]:
    return {node.output[0]: node.domain for node in onnx.load_from_string(model).graph.node}


def test_they_give_what_onnxruntime_gives(block: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, ROWS, WIDTH), np.float32)
    ours, theirs = run(block, x, own=True), run(block, x, own=False)
    # Both quantise activations to 8 bits, ours row by row: they differ by their errors, and are not the same kernels.
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert 0 < error < 0.02
    assert np.array_equal(ours, run(block, x, own=True, threads=1))


def test_only_the_domain_of_nodes_changes(block: Path) -> None:
    model = block.read_bytes()
    changed = with_own_operators(model)
    assert changed is not None
    assert set(domains(changed).values()) == {DOMAIN}
    back = onnx.load_from_string(changed)
    for node in back.graph.node:
        node.domain = MICROSOFT
    assert back.opset_import.pop().domain == DOMAIN
    assert back == onnx.load_from_string(model)


def test_what_they_cannot_do_stays(tmp_path: Path) -> None:
    mask = numpy_helper.from_array(np.zeros((1, HEADS, ROWS, ROWS), np.float32), "mask")
    parts = [linear(0, "x"), linear(1, "y.0", zero_points=True)]
    nodes = [parts[0][0], parts[1][0], attention(0, "y.1", "y.1", "y.1", "", "", "mask")]
    path = save(tmp_path / "graph.onnx", nodes, [mask, *parts[0][1], *parts[1][1]], "a.0")
    changed = with_own_operators(path.read_bytes())
    assert changed is not None
    assert domains(changed) == {"y.0": DOMAIN, "y.1": MICROSOFT, "a.0": MICROSOFT}


def test_the_eighth_bit_of_a_weight_is_read(tmp_path: Path) -> None:
    node, weights = linear(0, "x")
    rng = np.random.default_rng(1)
    finer = rng.integers(-1, 2, (WIDTH, WIDTH))
    packed = ((finer + 1).reshape(WIDTH, -1, 4) << np.array([0, 2, 4, 6])).sum(axis=2).astype(np.uint8)
    weights.append(numpy_helper.from_array(packed, "weight.0.finer"))
    path = save(tmp_path / "graph.onnx", [node], weights, "y.0")
    x = rng.standard_normal((1, ROWS, WIDTH), np.float32)
    whole, scale, bias = (numpy_helper.to_array(weight).astype(np.float64) for weight in weights[:3])
    for own, want in ((True, whole + finer / 2), (False, whole)):
        truth = x @ (want * scale) + bias
        assert np.linalg.norm(run(path, x, own=own) - truth) < 0.012 * np.linalg.norm(truth)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_joins_the_linear_that_it_alone_reads(tmp_path: Path, approximate: str) -> None:
    nodes, weights = zip(*(linear(i, x) for i, x in enumerate(["x", "g.0", "g.1"])), strict=True)
    gelus = [helper.make_node("Gelu", [f"y.{i}"], [f"g.{i}"], approximate=approximate) for i in range(2)]
    again = helper.make_node("Add", ["y.1", "y.2"], ["end"])  # reads what the second linear gave before its GELU
    order = [nodes[0], gelus[0], nodes[1], gelus[1], nodes[2], again]
    path = save(tmp_path / "graph.onnx", order, [each for parts in weights for each in parts], "end")
    changed = with_own_operators(path.read_bytes())
    assert changed is not None
    kept = [node.op_type for node in onnx.load_from_string(changed).graph.node]
    assert kept.count("Gelu") == (1 if approximate == "tanh" else 2)
    x = 2 * np.random.default_rng(0).standard_normal((1, ROWS, WIDTH), np.float32)
    ours, theirs = run(path, x, own=True), run(path, x, own=False)
    assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)


def test_a_float32_graph_stays_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "graph.onnx", [attention(0, "x", "x", "x")], [], "a.0")
    assert with_own_operators(path.read_bytes()) is None
    for shipped in find_bundle("wan-pocket").glob("*.onnx"):
        assert with_own_operators(shipped.read_bytes()) is None


def test_what_a_kernel_refuses_arrives_in_a_sentence(tmp_path: Path) -> None:
    node, weights = linear(0, "x")
    path = save(tmp_path / "graph.onnx", [node], weights, "y.0", width=WIDTH + 1)
    with pytest.raises(EngineError, match="last dimension of x is not that of its weights"):
        run(path, np.zeros((1, ROWS, WIDTH + 1), np.float32), own=True)


def test_one_session_serves_several_threads(block: Path) -> None:
    engine = OnnxRuntimeEngine(block, num_threads=2, own_operators=True)
    inputs = [np.random.default_rng(i).standard_normal((1, ROWS, WIDTH), np.float32) for i in range(4)]

    def evaluate(x: Array) -> Array:
        y = engine.outputs["y.3"].empty()
        bound = engine.bind({"x": x, "y.3": y})
        for _ in range(20):
            bound.run()
        return y

    alone = [evaluate(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(evaluate, inputs))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def convolution(number: int, x: str, shape: tuple[int, ...], **attributes: Any) -> tuple[list[Any], list[Any]]:
    """A convolution of int8 weights between the quantisation of its input and of its output."""
    rng = np.random.default_rng(number)
    weights = {
        f"w.{number}": rng.integers(-127, 128, shape).astype(np.int8),
        f"s.{number}": (0.001 + 0.001 * rng.random(shape[0])).astype(np.float32),
        f"b.{number}": rng.standard_normal(shape[0], np.float32),
        f"step.{number}": np.array(0.04, np.float32),
        f"zero.{number}": np.array(128, np.uint8),
        f"end.{number}": np.array(0.1, np.float32),
    }
    spatial = [size // 2 for size in shape[-2:]]
    usual = {"kernel_shape": shape[2:], "pads": [*[0] * (len(shape) - 4), *spatial] * 2}

    def node(operator: str, *names: str, **more: Any) -> Any:
        return helper.make_node(operator, [f"{name}.{number}" if "." not in name else name for name in names[:-1]],
                                [f"{names[-1]}.{number}"], **more)  # fmt: skip

    nodes = [
        helper.make_node("QuantizeLinear", [x, f"step.{number}", f"zero.{number}"], [f"q.{number}"]),
        node("DequantizeLinear", "q", "step", "zero", "d"),
        node("DequantizeLinear", "w", "s", "wide", axis=0),
        node("Conv", "d", "wide", "b", "conv", **(usual | attributes)),
        node("QuantizeLinear", "conv", "end", "zero", "p"),
        node("DequantizeLinear", "p", "end", "zero", "c"),
    ]
    return nodes, [numpy_helper.from_array(array, name) for name, array in weights.items()]


def save_convolutions(path: Path, parts: list[tuple[list[Any], list[Any]]], x: list[int], output: str) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node for nodes, _ in parts for node in nodes],
        "graph",
        [value("x", TensorProto.FLOAT, x)],
        [value(output, TensorProto.FLOAT, None)],
        [weight for _, weights in parts for weight in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_a_quantised_convolution_is_one_node_and_nearer_to_the_truth(tmp_path: Path) -> None:
    parts = [convolution(0, "x", (40, 24, 3, 3, 3)), convolution(1, "c.0", (12, 40, 3, 1, 1))]
    path = save_convolutions(tmp_path / "graph.onnx", parts, [1, 24, 6, 9, 13], "c.1")
    changed = with_own_operators(path.read_bytes())
    assert changed is not None
    kept = [(node.op_type, node.domain) for node in onnx.load_from_string(changed).graph.node]
    assert kept == [("Conv", DOMAIN)] * 2
    onnx.save(onnx.load_from_string(changed), tmp_path / "own.onnx")
    x = np.random.default_rng(0).standard_normal((1, 24, 6, 9, 13)).astype(np.float32)
    answers = [session(path, own).run(None, {"x": x})[0] for own in (True, False)]
    want = x.astype(np.float64)
    for _, weights in parts:
        w, s, b = (numpy_helper.to_array(weight).astype(np.float64) for weight in weights[:3])
        want = convolved(want, w * s[:, None, None, None, None], b)
    errors = [np.linalg.norm(answer - want) / np.linalg.norm(want) for answer in answers]
    assert errors[0] < 0.004 < errors[1]


def convolved(x: Array, weights: Array, bias: Array) -> Array:
    """[1, in, T, H, W] in float64, rows and columns with borders of zeros."""
    borders = [(0, 0), (0, 0), (0, 0), *((size // 2, size // 2) for size in weights.shape[3:])]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, borders), weights.shape[2:], axis=(2, 3, 4))
    return np.einsum("bcthwxyz,ocxyz->bothw", windows, weights) + bias[:, None, None, None]


def session(path: Path, own: bool) -> Any:
    engine = OnnxRuntimeEngine(path, num_threads=2, own_operators=own)
    return engine._session


@pytest.mark.parametrize(
    "attributes", [{"strides": [1, 2, 2]}, {"pads": [0] * 6}, {"dilations": [1, 2, 2]}, {"pads": [1, 1, 1, 1, 1, 1]}]
)
def test_other_convolutions_stay(tmp_path: Path, attributes: dict[str, Any]) -> None:
    parts = [convolution(0, "x", (4, 3, 3, 3, 3), **attributes)]
    path = save_convolutions(tmp_path / "graph.onnx", parts, [1, 3, 6, 9, 13], "c.0")
    assert with_own_operators(path.read_bytes()) is None


def test_a_quantised_input_that_others_read_stays(tmp_path: Path) -> None:
    nodes, weights = convolution(0, "x", (3, 3, 1, 1, 1))
    nodes.append(helper.make_node("Add", ["c.0", "d.0"], ["sum"]))
    path = save_convolutions(tmp_path / "graph.onnx", [(nodes, weights)], [1, 3, 2, 4, 4], "sum")
    assert with_own_operators(path.read_bytes()) is None


def test_weights_scaled_by_another_axis_stay(tmp_path: Path) -> None:
    nodes, weights = convolution(0, "x", (3, 3, 1, 1, 1))
    nodes[2].attribute[0].i = 1
    path = save_convolutions(tmp_path / "graph.onnx", [(nodes, weights)], [1, 3, 2, 4, 4], "c.0")
    assert with_own_operators(path.read_bytes()) is None
