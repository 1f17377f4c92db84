"""Puts linear layers, norms and attention into the fewest operators an engine has kernels for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sora_export.graph_edit import GraphEditor, constant, dims_of, only_user

_SWAP_HEADS = (0, 2, 1, 3)


def linear_to_gemm(graph: ir.Graph) -> None:
    """Rewrites `Add(MatMul(x, Transpose(W)), b)` to `Gemm(x, W, b, transB=1)` on two-dimensional x.

    `W` is then used as the checkpoint stores it. With `Transpose` an engine would fold a transposed
    copy of every weight before it packs it, which costs the size of the model while loading.
    """
    editor = GraphEditor(graph)
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        x, weight_t = node.inputs
        transpose = weight_t.producer() if weight_t is not None else None
        if x is None or transpose is None or transpose.op_type != "Transpose":
            continue
        weight = transpose.inputs[0]
        shape = dims_of(weight)
        if weight is not None and weight.is_initializer() and shape is not None and len(shape) == 2 and dims_of(x):
            _replace_linear(editor, node, x, weight)


def _replace_linear(editor: GraphEditor, matmul: ir.Node, x: ir.Value, weight: ir.Value) -> None:
    shape, dims = dims_of(weight), dims_of(x)
    assert shape is not None and dims is not None
    rows, (out_features, in_features) = int(np.prod(dims[:-1], dtype=np.int64)), shape
    output = matmul.outputs[0]
    add = only_user(output)
    inputs = [editor.reshape(matmul, x, (rows, in_features)), weight]
    if add is not None and add.op_type == "Add":
        bias = add.inputs[1 if add.inputs[0] is output else 0]
        if bias is not None and bias.is_initializer() and dims_of(bias) == (out_features,):
            inputs.append(bias)
            output = add.outputs[0]
    gemm = editor.node(matmul, "Gemm", inputs, (rows, out_features), {"transB": 1})
    editor.replace(output, editor.reshape(matmul, gemm, (*dims[:-1], out_features)))


def attention_on_rows(graph: ir.Graph) -> None:
    """Gives `Attention` queries, keys and values as [1, tokens, heads x channels], as linears make them.

    The operator splits the heads itself, which spares four Transpose nodes around it, and TensorRT
    builds it for a single head and for heads of more than 256 channels, which it refuses otherwise.
    """
    editor = GraphEditor(graph)
    for node in list(graph):
        if node.op_type != "Attention" or len(node.outputs) != 1 or len(node.inputs) > 4:
            continue
        rows = [_rows_of(value) for value in node.inputs[:3]]
        query, value = dims_of(node.inputs[0]), dims_of(node.inputs[2])
        if query is None or value is None or any(row is None for row in rows):
            continue
        after = only_user(node.outputs[0])
        split = after is not None and after.op_type == "Transpose" and _perm(after) == _SWAP_HEADS
        if not split and query[1] != 1:
            continue
        attributes = {"q_num_heads": query[1], "kv_num_heads": value[1]}
        attributes |= {name: attribute.value for name, attribute in node.attributes.items()}
        flat = []
        for row, given in zip(rows, node.inputs, strict=False):
            dims = dims_of(given)
            assert row is not None and dims is not None
            flat.append(editor.reshape(node, row, (1, dims[2], dims[1] * dims[3])))
        dims = (1, query[2], query[1] * value[3])
        attended = editor.node(node, "Attention", [*flat, *node.inputs[3:]], dims, attributes)
        target = after.outputs[0] if split and after is not None else node.outputs[0]
        target_dims = dims_of(target)
        assert target_dims is not None
        editor.replace(target, editor.reshape(node, attended, target_dims))


def _rows_of(value: ir.Value | None) -> ir.Value | None:
    """What [1, heads, tokens, channels] was with tokens before heads, or as it is for a single head."""
    dims = dims_of(value)
    if value is None or dims is None or len(dims) != 4 or dims[0] != 1:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and _perm(producer) == _SWAP_HEADS:
        return producer.inputs[0]
    return value if dims[1] == 1 else None


def _perm(node: ir.Node) -> tuple[int, ...]:
    given = node.attributes.get("perm")
    return tuple(given.as_ints()) if given is not None else ()


def modulated_norms(graph: ir.Graph) -> None:
    """Rewrites `Norm(x) * scale + shift` to one norm with that scale and shift.

    A transformer scales and shifts a norm without weights by what the timestep says; the operators
    take that as they take weights, as long as all tokens share it.
    """
    editor = GraphEditor(graph)
    for node in list(graph):
        if node.op_type not in ("LayerNormalization", "RMSNormalization") or not _is_plain(node):
            continue
        output, inputs = node.outputs[0], [node.inputs[0]]
        for op_type in ("Mul", "Add") if node.op_type == "LayerNormalization" else ("Mul",):
            user, channels = only_user(output), (dims_of(output) or (0,))[-1]
            if user is None or user.op_type != op_type:
                break
            other = user.inputs[1 if user.inputs[0] is output else 0]
            dims = dims_of(other) or ()
            if other is None or other is output or dims[-1:] != (channels,) or np.prod(dims) != channels:
                break
            inputs.append(other if len(dims) <= 2 else editor.reshape(user, other, (channels,)))
            output = user.outputs[0]
        if len(inputs) > 1:
            last = output.producer()
            assert last is not None
            whole = dims_of(output)
            assert whole is not None
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            editor.replace(output, editor.node(last, node.op_type, inputs, whole, attributes))


def _is_plain(norm: ir.Node) -> bool:
    """Whether a norm over the last axis has a scale of ones and no shift, and one output."""
    axis, dims = norm.attributes.get("axis"), dims_of(norm.inputs[0])
    if dims is None or len(norm.outputs) > 1 or (axis.as_int() if axis else -1) % len(dims) != len(dims) - 1:
        return False
    return _all_are(norm.inputs[1], 1.0) and (len(norm.inputs) < 3 or _all_are(norm.inputs[2], 0.0))


def _all_are(value: ir.Value | None, number: float) -> bool:
    """Whether a value is a constant with that one number everywhere; a wide one is the Expand of a scalar."""
    expand = value.producer() if value is not None else None
    if expand is not None and expand.op_type == "Expand":
        value = expand.inputs[0]
    numbers = constant(value)
    return numbers is not None and bool((numbers == number).all())
