"""The T5 encoders that several families share, against transformers' own, at lengths around the bias' reach."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from sora_export.external_data import attach_weights, read_weights
from sora_export.families.common import T5Graph, like
from sora_export.onnx_from_torch import TorchGraph, onnx_from_torch

# Distances of 128 and more share a bucket: below, at the edge, and far beyond.
LENGTHS = [16, 129, 300]
TOLERANCE = 1e-5


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("model_class", "config_class"), [(T5EncoderModel, T5Config), (UMT5EncoderModel, UMT5Config)])
def test_graph_equals_transformers(
    tmp_path: Path, model_class: Any, config_class: Any, length: int, masked: bool
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    config = config_class(**sizes, feed_forward_proj="gated-gelu")
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:  # as strong as the scores, so that a wrong bucket shows
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    names = ["input_ids", "attention_mask"] if masked else ["input_ids"]
    inputs = {name: like(1, length, dtype=torch.int64) for name in names}
    make = partial(T5Graph, model_class, config.to_dict(), zero_padding=masked)
    exported = onnx_from_torch(TorchGraph(make, inputs, ["encoder_hidden_states"]))
    attach_weights(exported.model, exported.parameters, read_weights([tmp_path / "model.safetensors"]), tmp_path)
    ir.save(exported.model, tmp_path / "graph.onnx")
    operators = {node.op_type for node in exported.model.graph}
    assert {"Attention", "RMSNormalization"} <= operators and not operators & {"Log", "Where", "Softmax", "MatMul"}
    ids = np.random.default_rng(0).integers(1, 64, (1, length))
    mask = (np.arange(length)[None] < length * 2 // 3).astype(np.int64)
    feeds = dict(zip(names, (ids, mask), strict=False))
    (got,) = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx")).run(None, feeds)
    want = model(*(torch.from_numpy(array) for array in feeds.values())).last_hidden_state.numpy()
    want = want * mask[..., None] if masked else want
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < TOLERANCE
