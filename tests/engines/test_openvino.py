"""OpenVINO as an engine: the same numbers as ONNX Runtime on the shipped graphs, and refusals in one sentence."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prompts import PROMPT
from sora_runtime import Clip, EngineError, InvalidRequest, Runtime
from sora_runtime.bundle import find_bundle
from sora_runtime.engines.engine import Array, Engine
from sora_runtime.engines.openvino import OpenVinoEngine
from sora_runtime.engines.registry import ENGINES, engine_version, make_engine
from sora_runtime.reuse_calibration import psnr

pytest.importorskip("openvino")

GRAPHS = sorted(find_bundle("wan-pocket").glob("*.onnx"))


def random_inputs(engine: Engine) -> dict[str, Array]:
    """Like a sampler's: noise, a timestep in the middle, token ids of a short text."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for name, spec in engine.inputs.items():
        values = rng.integers(0, 2, spec.shape) if spec.dtype.kind == "i" else rng.standard_normal(spec.shape)
        arrays[name] = np.full(spec.shape, 500) if name == "timestep" else values
        arrays[name] = np.ascontiguousarray(arrays[name], spec.dtype)
    return arrays


def outputs_of(engine: Engine, inputs: dict[str, Array]) -> dict[str, Array]:
    outputs = {name: spec.empty() for name, spec in engine.outputs.items()}
    engine.bind({**inputs, **outputs}).run()
    return outputs


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda path: path.name)
def test_every_shipped_graph_gives_what_onnxruntime_gives(graph: Path) -> None:
    ours, theirs = (make_engine(name, graph, num_threads=2) for name in ("openvino", "onnxruntime"))
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
    inputs = random_inputs(ours)
    got, want = outputs_of(ours, inputs), outputs_of(theirs, inputs)
    for name, array in want.items():
        # Two float32 engines differ by the order of their sums: 1e-6 is what other engines differ by here.
        assert np.linalg.norm(got[name] - array) <= 1e-5 * np.linalg.norm(array), name


def test_a_binding_reads_its_arrays_anew_and_writes_in_place() -> None:
    engine = OpenVinoEngine(find_bundle("wan-pocket") / "transformer.64x64x25.onnx", num_threads=1)
    inputs = random_inputs(engine)
    first, second = ({name: spec.empty() for name, spec in engine.outputs.items()} for _ in range(2))
    one, other = engine.bind({**inputs, **first}), engine.bind({**inputs, **second})
    one.run()
    inputs["timestep"][:] = 100
    other.run()
    assert not np.array_equal(first["model_output"], second["model_output"])
    one.run()
    assert np.array_equal(first["model_output"], second["model_output"])
    engine.close()
    one.run()  # as the protocol says: bindings outlive the engine


def test_a_whole_clip_is_that_of_onnxruntime(clip: Clip) -> None:
    with Runtime.load("wan-pocket", num_threads=2, engine="openvino") as runtime:
        ours = runtime.generate(PROMPT, seed=7, num_inference_steps=4)
    # The bounds that the project promises against diffusers, which is one more float32 engine.
    assert np.linalg.norm(ours.latents - clip.latents) <= 1e-3 * np.linalg.norm(clip.latents)
    assert psnr(ours.frames, clip.frames) >= 50
    engine = ours.receipt.engine
    assert (engine.name, engine.version) == ("openvino", engine_version("openvino"))
    assert "another engine ran" in ours.receipt.reasons["predicted"]
    assert clip.receipt.engine.name == "onnxruntime"


def test_arrays_that_do_not_fit_are_refused() -> None:
    engine = OpenVinoEngine(find_bundle("wan-pocket") / "text_encoder.onnx", num_threads=1)
    with pytest.raises(EngineError, match=r"'text_encoder.onnx' cannot be bound: 'input_ids' is not bound"):
        engine.bind({})


def save_graph(path: Path, node: str, kind: int, shape: list[int | str]) -> Path:
    values = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node(node, ["x"], ["y"])], "main", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    return path


def test_what_openvino_cannot_load_is_said_in_one_sentence(tmp_path: Path) -> None:
    unknown = save_graph(tmp_path / "unknown.onnx", "NoSuchThing", onnx.TensorProto.FLOAT, [2])
    for graph, why in ((unknown, "NoSuchThing"), (tmp_path / "absent.onnx", "Could not open")):
        with pytest.raises(EngineError, match=f"cannot load '{graph}'.*{why}.*use the engine onnxruntime") as caught:
            OpenVinoEngine(graph, num_threads=1)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "shape"), [(onnx.TensorProto.FLOAT, ["n"]), (onnx.TensorProto.INT8, [2])])
def test_shapes_that_vary_and_other_dtypes_are_refused(tmp_path: Path, kind: int, shape: list[int | str]) -> None:
    engine = OpenVinoEngine(save_graph(tmp_path / "graph.onnx", "Identity", kind, shape), num_threads=1)
    with pytest.raises(EngineError, match="shapes must be static and dtypes among"):
        _ = engine.inputs


def test_without_the_library_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "openvino":
            raise ImportError("No module named 'openvino'")
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(EngineError, match=r"engine openvino cannot be imported.*; pip install openvino"):
        OpenVinoEngine(GRAPHS[0], num_threads=1)


def test_an_engine_by_another_name_is_refused() -> None:
    assert ENGINES == ("onnxruntime", "openvino")
    with pytest.raises(InvalidRequest, match="engine = 'tvm' is unknown; use onnxruntime, openvino, onnx"):
        Runtime.load("wan-pocket", engine="tvm")
