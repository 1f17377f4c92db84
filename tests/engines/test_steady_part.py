"""What follows from a prompt alone is computed once: the same bits, and anew when the prompt changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sora_runtime.bundle import find_bundle
from sora_runtime.denoise import VARYING
from sora_runtime.engines.engine import Array
from sora_runtime.engines.onnxruntime import OnnxRuntimeBinding, OnnxRuntimeEngine
from sora_runtime.engines.steady_part import split

GRAPH = find_bundle("wan-pocket") / "transformer.64x64x25.onnx"
TEXT = "encoder_hidden_states"


def random_inputs(engine: OnnxRuntimeEngine) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(spec.shape).astype(spec.dtype) for name, spec in engine.inputs.items()}


def bind(engine: OnnxRuntimeEngine, inputs: dict[str, Array]) -> tuple[OnnxRuntimeBinding, Array]:
    output = engine.outputs["model_output"].empty()
    return engine.bind({**inputs, "model_output": output}), output


def test_both_parts_are_models_and_share_the_nodes() -> None:
    parts = split(GRAPH.read_bytes(), VARYING)
    assert parts is not None
    whole, steady, rest = (onnx.load_from_string(model) for model in (GRAPH.read_bytes(), parts.steady, parts.rest))
    names = [{node.output[0] for node in model.graph.node} for model in (steady, rest)]
    assert names[0] | names[1] == {node.output[0] for node in whole.graph.node}
    constants = {value.name for value in whole.graph.initializer}
    for node in whole.graph.node:
        if node.output[0] in names[0] & names[1]:
            assert constants >= set(node.input)  # what follows from no input is in both
    assert [value.name for value in steady.graph.input] == [TEXT]
    between = {value.name for value in steady.graph.output}
    assert {value.name for value in rest.graph.input} == {*VARYING, *between}
    # A key and a value for each of the six blocks, and no weight of theirs in the part that runs at every step.
    assert len(between) == 12
    weights = [{value.name for value in model.graph.initializer} for model in (steady, rest)]
    products = {node.input[1] for node in steady.graph.node if node.op_type == "Gemm"}
    assert products <= weights[0]
    assert not products & weights[1]


def test_the_answer_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = OnnxRuntimeEngine(GRAPH, num_threads=2)
    parted = OnnxRuntimeEngine(GRAPH, num_threads=2, varying=VARYING)
    assert (parted.inputs, parted.outputs) == (whole.inputs, whole.outputs)
    inputs = random_inputs(whole)
    (one, want), (other, got) = bind(whole, inputs), bind(parted, inputs)
    runs: list[str] = []
    run = OnnxRuntimeBinding.run

    def counted(self: OnnxRuntimeBinding) -> None:
        runs.append("rest" if self is other else "whole" if self is one else "steady")
        run(self)

    monkeypatch.setattr(OnnxRuntimeBinding, "run", counted)
    rng = np.random.default_rng(1)
    for text in (None, None, rng.standard_normal(inputs[TEXT].shape), np.full(inputs[TEXT].shape, -0.0)):
        inputs["timestep"][:] -= 1
        if text is not None:
            inputs[TEXT][...] = text
        one.run()
        other.run()
        assert np.array_equal(got, want)
    assert runs.count("steady") == 3
    parted.close()
    other.run()  # bindings outlive the engine
    assert np.array_equal(got, want)


def test_bindings_keep_texts_of_their_own() -> None:
    engine = OnnxRuntimeEngine(GRAPH, num_threads=1, varying=VARYING)
    inputs = random_inputs(engine)
    first, got = bind(engine, inputs)
    first.run()
    before = got.copy()
    second, other = bind(engine, inputs | {TEXT: inputs[TEXT] + 1})
    second.run()
    assert not np.array_equal(other, before)
    first.run()
    assert np.array_equal(got, before)


def tiny(output_of: str, *, shapes: bool = True, mask: bool = False) -> bytes:
    """y = 2 x + W text; with `mask` x + W text + text. `output_of` k: the output follows from the text alone."""
    nodes: list[Any] = [
        helper.make_node("MatMul", ["text", "w"], ["k"]),
        helper.make_node("Add", ["x", "k"], ["sum"]),
        helper.make_node("Add", ["sum", "text" if mask else "x"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, [2, 2]), value("text", TensorProto.FLOAT, [2, 2])],
        [value(output_of, TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")],
        value_info=[value("k", TensorProto.FLOAT, [2, 2])] if shapes else [],
    )
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    return model


def test_a_steady_input_that_the_rest_reads_too_is_given_to_both() -> None:
    parts = split(tiny("y", mask=True), ["x"])
    assert parts is not None
    assert [value.name for value in onnx.load_from_string(parts.steady).graph.input] == ["text"]
    assert [value.name for value in onnx.load_from_string(parts.rest).graph.input] == ["x", "text", "k"]


def test_what_cannot_be_parted_stays_whole(tmp_path: Path) -> None:
    assert split(tiny("k"), ["x"]) is None  # an output follows from the steady input alone
    assert split(tiny("y", shapes=False), ["x"]) is None  # the value between has no shape
    assert split(tiny("y"), ["x", "text"]) is None  # nothing is steady
    assert split(tiny("y"), []) is None  # all is
    path = tmp_path / "graph.onnx"
    path.write_bytes(tiny("k"))
    engine = OnnxRuntimeEngine(path, num_threads=1, varying=["x"])
    assert set(engine.inputs) == {"x", "text"}
