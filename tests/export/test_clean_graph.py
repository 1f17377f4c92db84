"""Each rewrite of a graph on a small module: which operators are left, and that they compute the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torch.onnx.ops
from clean_graphs import assert_clean
from torch import Tensor, nn

from sora_export.clean_graph import clean_graph
from sora_export.families.common import rotate_pairs
from sora_export.onnx_from_torch import TorchGraph, onnx_from_torch

ROWS, WIDTH = 6, 16
# Float32 of a few operators in another order of sums.
TOLERANCE = 1e-6


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = nn.Identity()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*inputs)


def operators(function: Callable[..., Tensor | tuple[Tensor, ...]], *shapes: tuple[int, ...]) -> Counter[str]:
    """Exports, checks that the graph is clean and computes what torch does, and counts its operators."""
    given = [torch.from_numpy(np.random.default_rng(i).standard_normal(s).astype("f")) for i, s in enumerate(shapes)]
    results = function(*given)
    want = results if isinstance(results, tuple) else (results,)
    inputs = {f"input_{i}": value for i, value in enumerate(given)}
    names = [f"output_{i}" for i in range(len(want))]
    model = onnx_from_torch(TorchGraph(lambda: Function(function), inputs, names)).model
    assert_clean(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}
    got = session.run(names, {name: value.numpy() for name, value in inputs.items() if name in used})
    for mine, theirs in zip(got, want, strict=True):
        assert mine.shape == theirs.shape
        assert np.linalg.norm(mine - theirs.numpy()) <= TOLERANCE * max(float(theirs.norm()), 1.0)
    return Counter(node.op_type for node in model.graph)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (2, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    output = torch.onnx.ops.attention(heads(query), heads(key), heads(value))[0]
    return output.transpose(1, 2).flatten(2)


TOKENS = (1, ROWS, WIDTH)


def test_attention_splits_the_heads_itself() -> None:
    assert operators(attend, TOKENS, (1, 4, WIDTH), (1, 4, WIDTH)) == {"Attention": 1}


def test_attention_of_one_head() -> None:
    def single(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1)

    assert operators(single, TOKENS, TOKENS, TOKENS) == {"Attention": 1}


def test_attention_with_a_bias_and_a_scale() -> None:
    def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        output = torch.onnx.ops.attention(heads(q), heads(k), heads(v), attn_mask=bias, scale=1.0)[0]
        return output.transpose(1, 2).flatten(2)

    assert operators(biased, TOKENS, TOKENS, TOKENS, (1, 2, ROWS, ROWS)) == {"Attention": 1}


def test_rotation_is_one_operator() -> None:
    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate_pairs(x.unflatten(2, (2, -1)), cos, sin).flatten(2)

    table = (1, ROWS, 1, WIDTH // 4)
    assert operators(rotated, TOKENS, table, table) == {"RotaryEmbedding": 1, "Reshape": 2}


@pytest.mark.parametrize("shared", [True, False])
def test_rotation_turns_pairs(shared: bool) -> None:
    """Against complex numbers; angles of the token, or one for each pair of all heads."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, ROWS, 2, WIDTH)).astype("f"))
    angles = torch.from_numpy(np.random.default_rng(1).standard_normal((1, ROWS, 1 if shared else 2, 8)).astype("f"))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    got = rotate_pairs(x, angles.cos(), angles.sin())
    assert torch.allclose(got, torch.view_as_real(turned).flatten(-2), atol=1e-6)


class Layer(nn.Module):
    """Norm, modulation, two linears, gate and residual between linears, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList(nn.Linear(*sizes) for sizes in ((8, WIDTH), (WIDTH, 32), (32, WIDTH), (WIDTH, 8)))

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        into, first, second, out = self.model
        shift, scale, gate = vectors.chunk(3, dim=1)
        x = into(x)
        hidden = F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift
        return out(x + second(F.gelu(first(hidden))) * gate)


def test_a_layer_is_rows_from_end_to_end() -> None:
    """No weights are needed to see that: the parity of whole models is test_graphs.py's."""
    inputs = {"x": torch.empty(1, ROWS, 8), "vectors": torch.empty(1, 3, WIDTH)}
    model = onnx_from_torch(TorchGraph(Layer, inputs, ["output"])).model
    assert_clean(model)
    found = Counter(node.op_type for node in model.graph)
    norm = {"LayerNormalization": 1, "Split": 1, "Add": 2, "Mul": 1}  # 1 + scale, the residual; the gate
    views = {"Reshape": 3}  # x, the vectors, the result
    assert found == {**norm, **views, "Gemm": 4, "Gelu": 1}


class Groups(nn.Module):
    """A layer whose vectors differ between groups of rows, as between the frames of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.table = nn.Parameter(torch.zeros(1, 3, WIDTH))

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        into, first, second = self.model
        x = F.silu(into(x))
        shift, scale, gate = (self.table.unsqueeze(0) + vectors.unflatten(2, (3, -1))).chunk(3, dim=2)
        hidden = F.layer_norm(x, (WIDTH,)) * (1 + scale.squeeze(2)) + shift.squeeze(2)
        return x + second(F.gelu(first(hidden))) * gate.squeeze(2)


def test_rows_of_several_groups() -> None:
    inputs = {"x": torch.empty(4, ROWS, WIDTH), "vectors": torch.empty(4, 1, 3 * WIDTH)}
    model = onnx_from_torch(TorchGraph(Groups, inputs, ["output"])).model
    assert_clean(model)
    found = Counter(node.op_type for node in model.graph)
    assert found["Gemm"] == 3
    assert found["Split"] == 1
    # Into rows twice and back twice, the vectors once; none around SiLU and GELU or after Split.
    assert found["Reshape"] == 5, found


def test_groups_compute_the_same() -> None:
    """Rows of groups are not mixed up with what is spread over them."""
    weight = torch.from_numpy(np.random.default_rng(9).standard_normal((WIDTH, WIDTH)).astype("f"))

    def groups(x: Tensor, by_group: Tensor, by_row: Tensor, both: Tensor) -> tuple[Tensor, ...]:
        y = F.silu((x.flatten(0, 1) @ weight).view(4, ROWS, WIDTH))
        first, second = (y + both).chunk(2, dim=2)
        joined = torch.cat([y, y + by_row], dim=1), torch.cat([first, second.sigmoid()], dim=2)
        return (y * by_group, y + by_row, *joined, F.layer_norm(y, (WIDTH,)))

    operators(groups, (4, ROWS, WIDTH), (4, 1, WIDTH), (ROWS, WIDTH), (4, ROWS, WIDTH))


def test_modulation_without_linears() -> None:
    found = operators(lambda x, s: F.layer_norm(x, (WIDTH,)) * s, TOKENS, (1, 1, WIDTH))
    assert found == {"LayerNormalization": 1, "Reshape": 1}


def test_modulation_of_single_tokens_is_kept() -> None:
    """A scale for each token is none that a norm could take."""
    found = operators(lambda x, s: F.layer_norm(x, (WIDTH,)) * s, TOKENS, TOKENS)
    assert found == {"LayerNormalization": 1, "Mul": 1}


def test_a_norm_with_weights_is_not_modulated() -> None:
    weight = torch.arange(1.0, WIDTH + 1)
    found = operators(lambda x, s: F.rms_norm(x, (WIDTH,), weight, 1e-6) * s, TOKENS, (WIDTH,))
    assert found == {"RMSNormalization": 1, "Mul": 1}


def test_a_norm_used_twice_is_modulated_once_by_neither() -> None:
    def twice(x: Tensor, scale: Tensor) -> Tensor:
        normed = F.layer_norm(x, (WIDTH,))
        return normed * scale + normed

    assert operators(twice, TOKENS, (WIDTH,)) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}


def test_a_wide_norm_is_modulated() -> None:
    """Its weight of ones is larger than what is folded into the file."""
    found = operators(lambda x, s: F.layer_norm(x, (2048,)) * s, (1, 3, 2048), (2048,))
    assert found == {"LayerNormalization": 1}


def test_views_of_views_are_one() -> None:
    def views(x: Tensor) -> Tensor:
        y = x.unsqueeze(1).transpose(1, 2).flatten(1, 2).unflatten(2, (4, 4)).flatten(2)
        return y.reshape(1, 3, 2, WIDTH).squeeze(0).permute(1, 0, 2).permute(2, 0, 1)

    assert operators(views, TOKENS) == {"Reshape": 1, "Transpose": 1}


def test_a_view_to_what_it_was_is_nothing() -> None:
    assert operators(lambda x: x.transpose(0, 1).unsqueeze(3).squeeze(3).transpose(0, 1) + 1, TOKENS) == {"Add": 1}


def test_halves_of_a_concatenation_swap() -> None:
    def flip(x: Tensor) -> Tensor:
        both = torch.cat([x.sin(), x.cos()], dim=-1)
        return torch.cat([both[:, WIDTH:], both[:, :WIDTH]], dim=-1)

    assert operators(flip, (1, WIDTH)) == {"Sin": 1, "Cos": 1, "Concat": 1}


def test_a_cache_moves_on_by_one_slice() -> None:
    def step(cache: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([cache[:, :, -1:], x], dim=2), torch.cat([cache, x], dim=2).sum(dim=2)

    found = operators(step, (1, 3, 2, 4, 4), (1, 3, 1, 4, 4))
    assert found == {"Concat": 1, "Slice": 1, "ReduceSum": 1}


def test_an_index_is_a_slice() -> None:
    found = operators(lambda x: x[:, :, -1].unsqueeze(2) + 1, (1, 3, 2, 4))
    assert found == {"Slice": 1, "Add": 1}


def test_unbound_and_stacked_is_a_transpose() -> None:
    def interleave(x: Tensor) -> Tensor:
        halves = x.reshape(1, 2, 3, 4, 5)
        return torch.stack((halves[:, 0], halves[:, 1]), dim=3).reshape(1, 3, 4 * 2, 5)

    assert operators(interleave, (1, 6, 4, 5)) == {"Reshape": 2, "Transpose": 1}


def test_an_output_that_is_an_input_or_another_output() -> None:
    found = operators(lambda x: (x.view(1, ROWS, WIDTH), x + 1, (x + 1).view(ROWS, WIDTH)), TOKENS)
    assert found == {"Identity": 1, "Add": 1, "Reshape": 1}


def test_casts_that_lose_something_stay() -> None:
    """float32 -> float16 -> float32 rounds; float16 -> float32 -> float16 does not."""
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT16))
    types = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT]
    nodes, value = [], x
    for index, dtype in enumerate(types):
        nodes.append(ir.node("Cast", [value], {"to": dtype}))
        value = nodes[-1].outputs[0]
        value.name, value.shape, value.type = f"value_{index}", ir.Shape([4]), ir.TensorType(dtype)
    model = ir.Model(ir.Graph([x], [value], nodes=nodes, opset_imports={"": 23}), ir_version=10)
    clean_graph(model)
    assert [node.attributes["to"].as_int() for node in model.graph] == [1, 16, 1]
