"""Engines of TensorRT-RTX built here, without a GPU: what they hold, what is refused, and what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_graphs import BFLOAT16, FLOAT8, save_attention, save_blocks, save_node

from sora_export.engine_from_onnx import BuildResult, EngineOptions, cached_engine, engine_from_onnx, engine_key
from sora_export.fusion_report import fusion_report
from sora_runtime.engines.store import EngineStore
from sora_runtime.errors import EngineError, InvalidRequest, OutputError

pytest.importorskip("tensorrt_rtx")

ADA = EngineOptions(compute_capabilities=("8.9",))
BLACKWELL = EngineOptions(compute_capabilities=("12.0",))
FINGERPRINT = "f" * 64


def build(graph: Path, options: EngineOptions = ADA) -> BuildResult:
    return engine_from_onnx(graph, graph.with_suffix(".plan"), options)


@pytest.mark.parametrize("options", [ADA, BLACKWELL], ids=["SM89", "SM120"])
@pytest.mark.parametrize(
    ("dtype", "quantised", "name"),
    [
        (np.float16, None, "Half"),
        (BFLOAT16, None, "BFloat16"),
        (np.float16, np.int8, "Half"),
        (BFLOAT16, FLOAT8, "BFloat16"),
    ],
    ids=["fp16", "bf16", "int8", "fp8"],
)
def test_attention_is_fused_and_linears_run_quantised(
    tmp_path: Path, dtype: Any, quantised: Any, name: str, options: EngineOptions
) -> None:
    result = build(save_blocks(tmp_path / "blocks.onnx", dtype, quantised=quantised), options)
    report = result.report
    assert (report.attention_ops, report.fused_attention, report.unfused_attention) == (2, 2, ())
    assert report.attention_types == {name: 2}
    assert report.quantised_ops == report.quantised_run == (8 if quantised else 0)
    assert report.cast_layers == 0 and report.layers and report.reason is None
    assert result.plan.stat().st_size == result.size > 0
    assert "Engine generation completed" in result.log.read_text()


@pytest.mark.parametrize("kind", [{"dtype": np.float32}, {"heads": 1}], ids=["float32", "one head"])
def test_a_build_that_succeeds_may_hold_no_fused_attention_and_the_report_tells(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    report = build(save_blocks(tmp_path / "blocks.onnx", **kind)).report
    assert report.fused_attention == 0
    assert report.unfused_attention == ("blocks.0.attention", "blocks.1.attention")


def test_a_linear_that_runs_in_half_precision_between_its_q_dq_is_left_over(tmp_path: Path) -> None:
    graph = save_blocks(tmp_path / "blocks.onnx", quantised=np.int8, layers=1)
    text = build(graph).log.read_text()
    layers = text[text.index("Layers:") :].splitlines()
    slow = [line.replace("Int8", "Half") if "blocks.0.to_out.gemm" in line[:40] else line for line in layers]
    assert slow != layers
    report = fusion_report(graph, "\n".join(slow))
    assert (report.left_over_quantised, report.quantised_run) == (("blocks.0.to_out.gemm",), 3)


def test_without_a_list_of_layers_nothing_is_claimed(tmp_path: Path) -> None:
    report = fusion_report(save_blocks(tmp_path / "blocks.onnx"), None)
    assert report.attention_ops == 2
    assert report.fused_attention is report.layers is report.cast_layers is report.quantised_run is None
    assert report.reason


def test_weights_as_inputs_leave_the_plan_and_can_be_found(tmp_path: Path) -> None:
    graph = save_blocks(tmp_path / "blocks.onnx", width=512, heads=8)
    stored = (tmp_path / "blocks.onnx.data").stat().st_size
    full = build(graph)
    shared = engine_from_onnx(graph, tmp_path / "shared.plan", replace(ADA, weights="inputs"))
    assert full.size > stored, "embedded weights are in the plan"
    assert shared.size < full.size - 0.9 * stored
    assert shared.report.fused_attention == 2
    assert full.shared_weights == ()
    weight = next(weight for weight in shared.shared_weights if weight.name == "blocks.0.to_q")
    assert (weight.dtype, weight.shape, weight.length) == ("FLOAT16", (512, 512), 512 * 512 * 2)
    values = np.fromfile(tmp_path / weight.file, np.float16, 512 * 512, offset=weight.offset)
    want = (np.random.default_rng(0).standard_normal((512, 512)) * 0.05).astype(np.float16)
    np.testing.assert_array_equal(values.reshape(512, 512), want)


def test_scales_stay_constants_when_quantised_weights_are_inputs(tmp_path: Path) -> None:
    graph = save_blocks(tmp_path / "blocks.onnx", quantised=np.int8, width=512, heads=8)
    result = build(graph, replace(ADA, weights="inputs"))
    assert {weight.dtype for weight in result.shared_weights} == {"INT8", "FLOAT16"}
    assert not any("scale" in weight.name or "zero" in weight.name for weight in result.shared_weights)
    assert result.report.quantised_run == 8


def test_streamed_weights_build(tmp_path: Path) -> None:
    assert build(save_blocks(tmp_path / "blocks.onnx"), replace(ADA, weights="streamed")).report.fused_attention == 2


REFUSED = [
    ({"compute_capabilities": ("9.0",)}, InvalidRequest, r"9\.0; it builds for 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"),
    ({"compute_capabilities": ()}, InvalidRequest, "no compute capability is given"),
    ({"library": "tensorflow"}, InvalidRequest, "'tensorflow'; use tensorrt or tensorrt_rtx"),
    ({"weights": "none"}, InvalidRequest, "'none' is unknown; use embedded"),
    ({"weights": "stripped", "compute_capabilities": ("8.9", "12.0")}, InvalidRequest, "give one compute capability"),
    ({"workspace_bytes": 1}, EngineError, "workspace_bytes = 1; raise it"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_cannot_be_built_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    graph = save_blocks(tmp_path / "blocks.onnx")
    with pytest.raises(error, match=message) as raised:
        build(graph, replace(ADA, **change))
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks.onnx", "blocks.onnx.data"]


def test_stripped_weights_need_a_gpu_and_say_so(tmp_path: Path) -> None:
    from sora_runtime.engines.libraries import cuda_status

    if cuda_status().reason is None:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match="'stripped' without a GPU; build on a machine with a GPU, or give weights"):
        build(save_blocks(tmp_path / "blocks.onnx"), replace(ADA, weights="stripped"))


def test_float32_attention_is_refused_with_its_node(tmp_path: Path) -> None:
    graph = save_attention(tmp_path / "attention.onnx")
    with pytest.raises(EngineError, match=r"float32 \[1, 2, 64, 64\] \(nodes: 1, first 'the_attention'\)") as raised:
        build(graph)
    assert "float16 and bfloat16" in str(raised.value)
    assert build(save_attention(tmp_path / "half.onnx", np.float16)).report.fused_attention == 1


def test_unfused_attention_is_built_where_it_is_allowed_and_fused_where_it_can_be(tmp_path: Path) -> None:
    allowed = replace(ADA, unfused_attention=True)
    one_head = save_attention(tmp_path / "one.onnx", np.float16, (1, 1, 64, 64))
    with pytest.raises(EngineError, match=r"float16 \[1, 1, 64, 64\].* or allow unfused_attention"):
        build(one_head)
    assert build(one_head, allowed).report.unfused_attention == ("the_attention",)
    two_heads = save_attention(tmp_path / "two.onnx", np.float16, (1, 2, 64, 64))
    assert build(two_heads, allowed).report.fused_attention == 1
    assert engine_key(one_head, FINGERPRINT, ADA) != engine_key(one_head, FINGERPRINT, allowed)


def test_a_device_without_fp8_is_named(tmp_path: Path) -> None:
    graph = save_blocks(tmp_path / "blocks.onnx", quantised=FLOAT8)
    with pytest.raises(EngineError, match="sm80 has no fp8_e4m3; choose another precision"):
        build(graph, EngineOptions(compute_capabilities=("8.0", "8.9")))


def test_the_parser_names_the_node(tmp_path: Path) -> None:
    graph = save_node(tmp_path / "odd.onnx", "NoSuchOperator", [2, 2], domain="made.up")
    with pytest.raises(EngineError, match=r"at node 'the_node' \(NoSuchOperator\)"):
        build(graph)


def test_free_dimensions_are_refused(tmp_path: Path) -> None:
    graph = save_node(tmp_path / "free.onnx", "Relu", ["batch", 2])
    with pytest.raises(EngineError, match=r"input 'x' of free.onnx has the shape \[-1, 2\]; export it with static"):
        build(graph)


def test_files_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no graph"):
        build(tmp_path / "none.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(EngineError, match=r"cannot read junk\.onnx"):
        build(tmp_path / "junk.onnx")


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    graph = save_blocks(tmp_path / "blocks.onnx")
    (tmp_path / "blocks.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"cannot read blocks\.onnx"):
        build(graph)


def test_progress_is_reported_and_what_it_raises_stops_the_build(tmp_path: Path) -> None:
    graph = save_blocks(tmp_path / "blocks.onnx")
    seen: list[tuple[str, int, int]] = []
    engine_from_onnx(graph, tmp_path / "a.plan", ADA, progress=lambda *step: seen.append(step))
    assert len({phase for phase, _, _ in seen}) > 1
    assert all(0 <= done <= total for _, done, total in seen)

    def stop(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(graph, tmp_path / "b.plan", ADA, progress=stop)
    assert not list(tmp_path.glob("*b.*"))


def test_threads_build_one_after_the_other_each_with_its_own_log(tmp_path: Path) -> None:
    graphs = [save_blocks(tmp_path / f"{layers}.onnx", layers=layers) for layers in (1, 2, 3)]
    results: dict[int, BuildResult] = {}

    def work(index: int) -> None:
        results[index] = build(graphs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[index].report.fused_attention for index in range(3)] == [1, 2, 3]


def test_a_store_builds_an_engine_once_and_again_when_its_plan_was_altered(tmp_path: Path) -> None:
    graph, store = save_blocks(tmp_path / "blocks.onnx"), EngineStore(tmp_path / "store")
    with cached_engine(store, graph, FINGERPRINT, ADA) as plan:
        assert plan.built
        assert plan.manifest.what == "blocks.onnx"
        assert plan.manifest.report["fusion"]["fused_attention"] == 2
        assert plan.manifest.files["engine.log"].size > 0
    with cached_engine(store, graph, FINGERPRINT, ADA) as plan:
        assert not plan.built
        path = plan.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with cached_engine(store, graph, FINGERPRINT, ADA) as plan:
        assert plan.built
    assert engine_key(graph, FINGERPRINT, ADA) != engine_key(graph, FINGERPRINT, BLACKWELL)
    assert engine_key(graph, FINGERPRINT, ADA) != engine_key(graph, FINGERPRINT, replace(ADA, weights="inputs"))


def test_a_full_disk_leaves_no_engine(tmp_path: Path) -> None:
    graph, folder = save_blocks(tmp_path / "blocks.onnx"), tmp_path / "store"
    code = (
        "import resource, sys; from pathlib import Path; from sora_export.engine_from_onnx import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "options = EngineOptions(compute_capabilities=('8.9',))\n"
        "try: cached_engine(EngineStore(Path(sys.argv[2])), Path(sys.argv[1]), 'f' * 64, options)\n"
        "except OutputError as error: print(error)\n"
    )
    code = "from sora_runtime.errors import OutputError\n" + code
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, str(graph), str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert "file too large" in done.stdout and done.stdout.count("\n") == 1
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == []


def test_a_folder_that_is_missing_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        engine_from_onnx(save_blocks(tmp_path / "blocks.onnx"), tmp_path / "none" / "a.plan", ADA)
