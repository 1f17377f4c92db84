"""The peers by name: what a table calls each, and which adapter runs it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.peers.jobs import Adapter


@dataclass(frozen=True)
class Peer:
    """One row of a table."""

    label: str
    module: str  # of benchmarks.peers
    adapter: str
    arguments: dict[str, Any] = field(default_factory=dict)
    ours: bool = False
    clips: bool = True  # makes clips, and does not only evaluate transformers


PEERS = {
    "diffusers": Peer("diffusers eager, fp32", "torch_peers", "TorchPeer"),
    "compile": Peer("diffusers with torch.compile, fp32", "torch_peers", "TorchPeer", {"compiled": True}),
    "diffusers-bf16": Peer("diffusers eager, bf16", "torch_peers", "TorchPeer", {"bf16": True}, clips=False),
    "compile-bf16": Peer(
        "diffusers with torch.compile, bf16", "torch_peers", "TorchPeer", {"compiled": True, "bf16": True}, clips=False
    ),
    "openvino-torch": Peer("OpenVINO, converted from torch, fp32", "openvino_peers", "FromTorch"),
    "openvino-bf16": Peer(
        "OpenVINO, converted from torch, bf16", "openvino_peers", "FromTorch", {"bf16": True}, clips=False
    ),
    "openvino-int8": Peer("OpenVINO, converted from torch, int8", "openvino_peers", "FromTorch", {"int8": True}),
    "openvino-graph": Peer("OpenVINO, this project's graphs, fp32", "openvino_peers", "FromGraphs"),
    "onnxruntime": Peer("ONNX Runtime, plain export, fp32", "onnxruntime_peer", "PlainExport"),
    "ours": Peer("this runtime, fp32", "our_peers", "OurPeer", {}, True),
    "ours-openvino": Peer(
        "this runtime, --engine openvino, fp32", "our_peers", "OurPeer", {"engine": "openvino"}, True
    ),
    "ours-int8": Peer("this runtime, int8", "our_peers", "OurPeer", {"precision": "int8"}, True),
}


def adapter_of(name: str) -> Adapter:
    """The adapter of a peer; imports its module, which imports its library when it loads."""
    peer = PEERS[name]
    adapter: Adapter = getattr(importlib.import_module(f"benchmarks.peers.{peer.module}"), peer.adapter)(
        **peer.arguments
    )
    return adapter
