"""Which engines run a bundle here, by name; each library is imported when an engine of it is first made."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path

from ..errors import InvalidRequest
from .engine import Engine

DEFAULT_ENGINE = "onnxruntime"
_CLASSES = {"onnxruntime": "OnnxRuntimeEngine", "openvino": "OpenVinoEngine"}
ENGINES = tuple(_CLASSES)
"""Names of the engines that run float32 and int8 graphs on the CPU; the first is what runs unless told."""
PLAN_ENGINES = ("tensorrt", "tensorrt_rtx")
"""Those that run what was built for them; see `engines.tensorrt`."""
ONNXRUNTIME_GPU = ("onnxruntime_cuda", "onnxruntime_tensorrt")
"""Those that run graphs on a GPU as they are; see `engines.onnxruntime_cuda`."""
GPU_ENGINES = (*PLAN_ENGINES, *ONNXRUNTIME_GPU)
_PLAIN = ("fp32", "fp16", "bf16")
CHOICES = (*ENGINES, *ONNXRUNTIME_GPU)
"""Names that a caller may ask for."""


def check_engine(name: str) -> str:
    """The name itself; raises `InvalidRequest` for one that is no engine."""
    if name not in CHOICES:
        raise InvalidRequest(f"engine = {name!r} is unknown; use {', '.join(CHOICES)}")
    return name


def engine_for(built_for: str, wanted: str, precision: str) -> str:
    """The engine that runs a bundle.

    Args:
        built_for: what its graphs were built for.
        wanted: what the caller asked for, `DEFAULT_ENGINE` where nothing was said.
        precision: of its transformer.

    Raises:
        InvalidRequest: there is no such engine, or it does not run such a bundle.
    """
    check_engine(wanted)
    if wanted in ONNXRUNTIME_GPU and precision not in _PLAIN:
        raise InvalidRequest(
            f"engine = {wanted!r} runs bundles in {', '.join(_PLAIN)} and this one is in {precision}; leave it out, or "
            "build the bundle in one of these"
        )
    if built_for not in PLAN_ENGINES or wanted in ONNXRUNTIME_GPU:
        return wanted
    if wanted != DEFAULT_ENGINE:
        raise InvalidRequest(f"engine = {wanted!r} does not run a bundle that was built for {built_for}; leave it out")
    return built_for


def make_engine(name: str, graph: Path, *, num_threads: int, varying: Collection[str] = ()) -> Engine:
    """An engine of a graph.

    Args:
        name: one of `ENGINES`.
        graph: an .onnx file with its external data beside it.
        num_threads: threads of one evaluation.
        varying: inputs that differ at every evaluation; ONNX Runtime computes what does not follow from them when the
            others change, OpenVINO all of it every time.

    Raises:
        EngineError: the library is not installed, or cannot load the graph.
    """
    module = importlib.import_module(f".{name}", __package__)
    more = {"varying": varying} if name == DEFAULT_ENGINE else {}
    engine: Engine = getattr(module, _CLASSES[name])(graph, num_threads=num_threads, **more)
    return engine


def engine_version(name: str) -> str:
    """The release of the library that an engine was made with."""
    # The module of each is called as the engine is.
    library = importlib.import_module(DEFAULT_ENGINE if name in ONNXRUNTIME_GPU else name)
    return str(library.__version__).partition("-")[0]
