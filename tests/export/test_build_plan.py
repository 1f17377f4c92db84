"""What a build is said to take beforehand, against what one takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from engine_graphs import save_blocks
from safetensors.torch import save_file

from sora_export.build_plan import COEFFICIENTS, ComponentSize, component_size, plan_build
from sora_runtime.errors import InvalidRequest

SIZE = ComponentSize("transformer", 1_000_000, 40, 4_000_000, 100_000, 2)

CHILD = """
import json, sys
from pathlib import Path
from sora_export.engine_from_onnx import EngineOptions, engine_from_onnx
from sora_runtime.machine import peak_host_memory_bytes
graph = Path(sys.argv[1])
options = EngineOptions(compute_capabilities=("8.9",), weights=sys.argv[2])
size = engine_from_onnx(graph, graph.with_suffix(".plan"), options).size
print(json.dumps([size, peak_host_memory_bytes()]))
"""


@pytest.mark.parametrize("weights", ["embedded", "inputs"])
def test_memory_and_disk_of_a_build_lie_within_the_band(tmp_path: Path, weights: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = save_blocks(tmp_path / "blocks.onnx", np.float16, layers=8, width=512, heads=4)
    stored = (tmp_path / "blocks.onnx.data").stat().st_size
    nodes = len(onnx.load(graph, load_external_data=False).graph.node)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", CHILD, str(graph), weights]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    size, peak = json.loads(done.stdout)
    tensors = round(nodes / COEFFICIENTS["nodes_per_tensor"].value)
    component = ComponentSize("transformer", stored // 2, tensors, stored, 512 * 512, 1)
    plan = plan_build([component], precision="fp16", plans_per_graph=1, weights_in_plan=weights == "embedded")
    engines = plan.phases[-1]
    assert engines.peak_memory_bytes.low <= peak <= engines.peak_memory_bytes.high
    logged = graph.with_suffix(".log").stat().st_size
    assert engines.disk_bytes.low <= size + logged <= engines.disk_bytes.high


def test_sizes_come_from_the_headers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    size = component_size("vae", [tmp_path / "w.safetensors"], 2)
    assert size == ComponentSize("vae", 22, 2, 3 * 5 * 4 + 7 * 2, 15, 2)


def test_every_number_is_marked_and_lies_in_its_band() -> None:
    plan = plan_build([SIZE], precision="fp8", plans_per_graph=2)
    assert [phase.name for phase in plan.phases] == ["export", "quantise", "engines"]
    for part in (*plan.phases, plan):
        for estimate in (part.seconds, part.peak_memory_bytes, part.disk_bytes):
            assert estimate.estimated and 0 < estimate.low <= estimate.value <= estimate.high
    assert plan.calibration_seconds is None and "calibration" in plan.reason
    record = json.loads(json.dumps(plan.record()))
    assert all(value["origin"] and value["band"] >= 1 for value in record["coefficients"].values())


def test_more_work_costs_more_and_no_engines_cost_nothing() -> None:
    one = plan_build([SIZE], precision="int8", plans_per_graph=1)
    two = plan_build([SIZE], precision="int8", plans_per_graph=2)
    both = plan_build([SIZE, SIZE], precision="int8", plans_per_graph=1)
    assert two.seconds.value > one.seconds.value and two.disk_bytes.value > one.disk_bytes.value
    assert both.seconds.value == pytest.approx(2 * one.seconds.value)
    assert both.peak_memory_bytes == one.peak_memory_bytes, "components are built one after the other"
    assert [phase.name for phase in plan_build([SIZE], precision="fp32").phases] == ["export"]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'fp3' is unknown; use fp32"):
        plan_build([SIZE], precision="fp3")
