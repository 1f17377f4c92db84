"""Which engines run a bundle here, by name; each library is imported when an engine of it is first made."""

from __future__ import annotations

import importlib
from pathlib import Path

from ..errors import InvalidRequest
from .engine import Engine

DEFAULT_ENGINE = "onnxruntime"
_CLASSES = {"onnxruntime": "OnnxRuntimeEngine", "openvino": "OpenVinoEngine"}
ENGINES = tuple(_CLASSES)
"""Names of the engines that run float32 and int8 graphs on the CPU; the first is what runs unless told."""


def check_engine(name: str) -> str:
    """The name itself; raises `InvalidRequest` for one that is no engine."""
    if name not in _CLASSES:
        raise InvalidRequest(f"engine = {name!r} is unknown; use {' or '.join(ENGINES)}")
    return name


def make_engine(name: str, graph: Path, *, num_threads: int) -> Engine:
    """An engine of a graph.

    Args:
        name: one of `ENGINES`.
        graph: an .onnx file with its external data beside it.
        num_threads: threads of one evaluation.

    Raises:
        EngineError: the library is not installed, or cannot load the graph.
    """
    module = importlib.import_module(f".{check_engine(name)}", __package__)
    engine: Engine = getattr(module, _CLASSES[name])(graph, num_threads=num_threads)
    return engine


def engine_version(name: str) -> str:
    """The release of the library that an engine was made with."""
    library = importlib.import_module(check_engine(name))  # the module of each is called as the engine is
    return str(library.__version__).partition("-")[0]
