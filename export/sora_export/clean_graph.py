"""Makes an exported graph small: what is left is what an engine has to compute.

No pass reads or changes a weight; all rely on static shapes and a batch of one.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from sora_export.clean_linear import attention_on_rows, linear_to_gemm, modulated_norms
from sora_export.clean_rows import drop_batch_axis
from sora_export.clean_views import clean_views

_MAX_ROUNDS = 8


def clean_graph(model: ir.Model) -> None:
    """Rewrites the graph in place; inputs, outputs and parameters keep their names and shapes."""
    graph = model.graph
    linear_to_gemm(graph)
    _settle(model)
    for rewrite in (attention_on_rows, drop_batch_axis, modulated_norms):
        rewrite(graph)
        _settle(model)


def _settle(model: ir.Model) -> None:
    """Folds views and merges equal nodes and constants until nothing changes."""
    for _ in range(_MAX_ROUNDS):
        changed = clean_views(model.graph)
        model.graph.sort()
        for transform in (
            passes.RemoveUnusedNodesPass(),
            passes.DeduplicateInitializersPass(),
            passes.CommonSubexpressionEliminationPass(),
        ):
            changed |= transform(model).modified
        if not changed:
            return
