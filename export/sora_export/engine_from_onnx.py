"""Builds TensorRT and TensorRT-RTX engines from ONNX graphs; TensorRT-RTX needs no GPU for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sora_export.builder_errors import explain, one_line
from sora_export.fusion_report import FusionReport, fusion_report
from sora_export.shared_weights import SharedWeight, weights_as_inputs
from sora_export.tensorrt_library import (
    BuildProgress,
    Library,
    Progress,
    check_capabilities,
    import_library,
    logged,
)
from sora_runtime.engines.store import EngineKey, EnginePlan, EngineStore, sha256_of
from sora_runtime.errors import EngineError, InvalidRequest
from sora_runtime.output import explain_os_errors, partial_file, write_text

Weights = Literal["embedded", "streamed", "inputs", "stripped"]


@dataclass(frozen=True)
class EngineOptions:
    """How to build an engine.

    Weights:
        embedded: in the plan.
        streamed: in the plan; the runtime may keep a part of them in host memory (weight streaming).
        inputs: not in the plan: every weight that lies in another file than the graph is an input of the engine, so
            that the engines of all shapes share one copy. TensorRT cannot merge or repack them.
        stripped: not in the plan, to be refitted from the graph. For one device, and only on a machine with a GPU.
    """

    library: Library = "tensorrt_rtx"
    compute_capabilities: tuple[str, ...] = ()
    """Targets of one plan, ``8.9``; empty for `tensorrt`. A plan holds one compiled form that suits all of them and so
    lacks what one of them lacks: for FP8 a plan for 8.9 and 12.0 has twice the layers of one for 8.9 alone."""
    weights: Weights = "embedded"
    unfused_attention: bool = False
    """Whether an Attention without a fused kernel (one head, float32) may become products and a softmax, which writes
    all scores to memory: right for a VAE's one small attention, never for a transformer. Others stay fused."""
    workspace_bytes: int | None = None
    """Most scratch memory a kernel may use; None: the library's default."""
    timing_cache: Path | None = None
    """Where `tensorrt` keeps kernel timings between builds. TensorRT-RTX times nothing while it builds."""

    @property
    def user_allocation(self) -> bool:
        """Whether all memory is the caller's, as TensorRT-RTX wants it for graphs; not with streamed weights."""
        return self.library == "tensorrt_rtx" and self.weights != "streamed"

    def flags(self) -> tuple[tuple[str, str], ...]:
        """What of this changes the plan, for `EngineKey`."""
        workspace = "default" if self.workspace_bytes is None else str(self.workspace_bytes)
        unfused = str(self.unfused_attention).lower()
        return (
            ("allocation", "user" if self.user_allocation else "default"),
            ("unfused_attention", unfused),
            ("weights", self.weights),
            ("workspace_bytes", workspace),
        )


@dataclass(frozen=True)
class BuildResult:
    """An engine that was built."""

    plan: Path
    size: int
    seconds: float
    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    log: Path
    report: FusionReport
    weights: Weights
    shared_weights: tuple[SharedWeight, ...]
    """What to bind besides the graph's own inputs; empty unless the weights are inputs."""
    caches: Mapping[str, str]
    """What became of the timing cache and of the runtime cache."""

    def manifest(self, what: str) -> dict[str, Any]:
        """What an `EngineStore` keeps of it."""
        report = {
            "fusion": asdict(self.report),
            "weights": self.weights,
            "shared_weights": [asdict(weight) for weight in self.shared_weights],
            "caches": dict(self.caches),
        }
        return {"what": what, "build_seconds": self.seconds, "report": report}


def engine_from_onnx(
    graph: Path,
    out: Path,
    options: EngineOptions | None = None,
    *,
    progress: Progress = lambda phase, done, total: None,
) -> BuildResult:
    """Builds the engine of a graph and keeps the builder's log beside it (`out` with the ending ``.log``).

    The network is strongly typed: precision is what the graph says. Shapes are static, one graph for each bucket, so
    there is no optimisation profile to give: the library makes the one there can be.

    Args:
        graph: An .onnx file; external data is found beside it.
        out: The plan; appears under this name when it is complete.
        options: For which library and devices, and where the weights go.
        progress: Called with phase, steps done and steps in all. What it raises stops the build.

    Raises:
        InvalidRequest: The library cannot build for a compute capability, or an option is unknown.
        EngineError: The library is not installed, or refuses the graph: with its first error and the node.
        OutputError: The plan cannot be written; nothing is left.
    """
    options = options or EngineOptions()
    trt = import_library(options.library)
    targets = check_capabilities(trt, options.compute_capabilities)
    if options.weights not in get_args(Weights):
        raise InvalidRequest(f"weights = '{options.weights}' is unknown; use {', '.join(get_args(Weights))}")
    if options.weights == "stripped" and len(targets) > 1:
        raise InvalidRequest("a plan with stripped weights is for one device; give one compute capability")
    started = time.monotonic()
    with logged(trt) as (logger, log), partial_file(out) as partial:
        builder = trt.Builder(logger)
        network = builder.create_network(_strongly_typed(trt))
        shared = _parse(trt, network, logger, graph, inputs=options.weights == "inputs")
        if options.unfused_attention:
            _let_decompose(trt, network)
        config = builder.create_builder_config()
        caches = _configure(trt, config, options, targets)
        monitor = BuildProgress(trt, progress)
        config.progress_monitor = monitor.monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.error is not None:
            raise monitor.error
        if plan is None:
            raise EngineError(explain(trt, network, graph, options, log))
        with explain_os_errors(out), partial.open("wb") as stream:
            stream.write(memoryview(plan))
        size = plan.nbytes
        _save_timing_cache(config, options)
    write_text(out.with_suffix(".log"), log.text())
    return BuildResult(
        plan=out,
        size=size,
        seconds=time.monotonic() - started,
        library=options.library,
        version=trt.__version__,
        compute_capabilities=options.compute_capabilities,
        log=out.with_suffix(".log"),
        report=fusion_report(graph, log.last("Layers:")),
        weights=options.weights,
        shared_weights=tuple(shared),
        caches=caches,
    )


def engine_key(graph: Path, fingerprint: str, options: EngineOptions) -> EngineKey:
    """What a store knows the engine by; `fingerprint` is `Bundle.fingerprint` of the graph."""
    trt = import_library(options.library)
    check_capabilities(trt, options.compute_capabilities)
    return EngineKey(
        graph=sha256_of(graph),
        weights=fingerprint,
        library=options.library,
        version=trt.__version__,
        compute_capabilities=options.compute_capabilities,
        flags=options.flags(),
    )


def cached_engine(
    store: EngineStore,
    graph: Path,
    fingerprint: str,
    options: EngineOptions,
    *,
    progress: Progress = lambda phase, done, total: None,
) -> EnginePlan:
    """The engine of a graph from the store, built if need be; raises as `engine_from_onnx` does."""
    return store.get_or_build(
        engine_key(graph, fingerprint, options),
        lambda plan: engine_from_onnx(graph, plan, options, progress=progress).manifest(graph.name),
        on_wait=lambda: progress("waiting for another process that builds this engine", 0, 0),
    )


def _strongly_typed(trt: Any) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: Any, network: Any, logger: Any, graph: Path, *, inputs: bool) -> list[SharedWeight]:
    if not graph.is_file():
        raise EngineError(f"there is no graph {graph}; build the bundle first")
    parser = trt.OnnxParser(network, logger)
    shared: list[SharedWeight] = []
    if inputs:
        model, shared = weights_as_inputs(graph)
        parsed = parser.parse(model, str(graph))
    else:
        parsed = parser.parse_from_file(str(graph))
    if not parsed:
        raise EngineError(f"{trt.__name__} cannot read {graph.name}: {_parser_error(parser)}")
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if any(size < 0 for size in tensor.shape):
            raise EngineError(
                f"input '{tensor.name}' of {graph.name} has the shape {list(tensor.shape)}; export it with static ones"
            )
    return shared


def _let_decompose(trt: Any, network: Any) -> None:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to cast: get_layer returns the base class
            layer.attention.decomposable = True


def _parser_error(parser: Any) -> str:
    if parser.num_errors == 0:
        return "the parser gives no reason"
    error = parser.get_error(0)
    name, operator = error.node_name(), error.node_operator()
    return one_line(error.desc()) + (f" at node '{name}' ({operator})" if operator else "")


def _configure(trt: Any, config: Any, options: EngineOptions, targets: list[Any]) -> dict[str, str]:
    """Sets the options; returns what became of the caches."""
    # With details the builder's log lists every layer of the engine with its types and the nodes it was made of.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)
    if options.user_allocation:
        # Else an engine may allocate while it runs, and then cannot be recorded in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    flags = {"streamed": ["WEIGHT_STREAMING"], "stripped": ["STRIP_PLAN", "REFIT_IDENTICAL"]}
    for flag in flags.get(options.weights, []):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.library == "tensorrt_rtx":
        return {
            "timing": "none: TensorRT-RTX times no kernels when it builds",
            "runtime": "made on the device, when the engine is first loaded",
        }
    cache = options.timing_cache
    stored = cache.read_bytes() if cache is not None and cache.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(stored), False)
    return {"timing": str(cache) if cache else "none asked for", "runtime": "none: TensorRT compiles when it builds"}


def _save_timing_cache(config: Any, options: EngineOptions) -> None:
    if options.library == "tensorrt_rtx" or options.timing_cache is None:
        return
    with partial_file(options.timing_cache) as partial, explain_os_errors(options.timing_cache):
        partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
