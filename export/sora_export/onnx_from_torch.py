"""Turns a torch module that may hold no weights into a small, clean ONNX graph."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer
from torch._subclasses.fake_tensor import FakeTensorMode

from sora_export.clean_graph import clean_graph

OPSET = 23
"""The first opset with `Attention` and `RMSNormalization` as single operators."""

FOLD_LIMIT = 1024
"""Elements of the largest constant folded into the file; larger ones stay as the nodes that make
them, which an engine folds when it loads the graph."""


@dataclass(frozen=True)
class TorchGraph:
    """What is to be exported: a module and the names and shapes at its edge.

    `make_module` is called under a `FakeTensorMode`, so that the parameters of the module have a
    shape and a dtype but no storage. Buffers whose values the graph needs (rope tables, means) must
    be real tensors, made before the call. `inputs` give shapes and dtypes and may be on the meta
    device: the caches of a VAE at 480p are 5 GB. The module must take the inputs in order, return a tensor
    or a tuple in the order of `output_names`, and hold the checkpoint's module as `self.model`.
    """

    make_module: Callable[[], torch.nn.Module]
    inputs: Mapping[str, torch.Tensor]
    output_names: Sequence[str]


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX model whose parameters have no data yet, and the names each of them goes by.

    `parameters` maps an initialiser to every name under which the module knows that tensor, the
    wrapper's `model.` removed: tied weights have several, of which a checkpoint keeps one.
    """

    model: ir.Model
    parameters: Mapping[str, Sequence[str]]


def onnx_from_torch(graph: TorchGraph) -> ExportedGraph:
    """Exports `graph` with static shapes at opset 23, float32, without reading a weight.

    A linear layer becomes `Gemm(transB=1)` on the weight as it is stored. Nothing made by tracing
    (source paths, scopes) is kept.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad(), quiet():
        module = graph.make_module().eval()
        inputs = tuple(torch.zeros(like.shape, dtype=like.dtype) for like in graph.inputs.values())
        exported = torch.export.export(module, inputs, strict=False)
        program = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=list(graph.inputs),
            output_names=list(graph.output_names),
        )
    assert program is not None
    model = program.model
    parameters = _parameter_names(module, model)
    for name in parameters:
        model.graph.initializers[name].const_value = None
    with quiet():
        optimizer.optimize_ir(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
        clean_graph(model)
        _finish(model, graph)
    used = {name: parameters[name] for name in parameters if name in model.graph.initializers}
    return ExportedGraph(model, used)


def _parameter_names(module: torch.nn.Module, model: ir.Model) -> dict[str, list[str]]:
    """Every checkpoint name of every parameter that is an initialiser of the graph."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    found = {}
    for names in names_of.values():
        for name in names:
            if name in model.graph.initializers:
                found[name] = [other.removeprefix("model.") for other in names]
    return found


def _finish(model: ir.Model, graph: TorchGraph) -> None:
    """Removes what tracing left behind and gives outputs and node names their final form."""
    for transform in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        transform(model)
    model.metadata_props.clear()
    model.graph.name = "main"
    names = [value.name for value in model.graph.outputs]
    assert names == list(graph.output_names), f"outputs are {names}, not {graph.output_names}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's remarks on missing torchvision operators and empty initialisers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
