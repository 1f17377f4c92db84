"""One forward pass of a two-layer Wan transformer on the CPU: this runtime's int8 against every other engine.

The width is that of Wan 2.1 1.3B (1536 channels, 12 heads, 8960 in the feed-forward), the tokens those of 17 frames
of 512x512; the weights are random, which costs what trained ones cost. All engines take turns in one process, so that
whatever else the machine does falls on all of them; ratios are medians over the rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime.engines import own_kernels
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.machine import available_cores, this_machine

Inputs = Mapping[str, NDArray[np.float32]]
Forward = Callable[[], NDArray[np.float32]]
ROUNDS = 7
# How a processor multiplies bytes, the fastest way first, by what Linux calls it.
BYTE_PRODUCTS = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx2": "AVX2"}
PAUSE = 0.05  # seconds in which the threads of the engine before stop spinning
BASELINE, OURS, THEIRS = "ONNX Runtime fp32", "this runtime, int8", "ONNX Runtime's own operators, int8"


@dataclass(frozen=True)
class Size:
    """Of the transformer and of one evaluation."""

    heads: int = 12
    head_channels: int = 128
    feed_forward: int = 8960
    layers: int = 2
    text_tokens: int = 512
    text_channels: int = 512
    latent_shape: tuple[int, int, int] = (5, 32, 32)  # frames, rows, columns; patches of 1x2x2

    @property
    def tokens(self) -> int:
        """Of the video."""
        frames, rows, columns = self.latent_shape
        return frames * (rows // 2) * (columns // 2)


SMALL = Size(2, 24, 96, 2, 16, 32, (2, 8, 8))


def make_model(size: Size) -> Any:
    """A random diffusers transformer, the same at every call."""
    import torch
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.head_channels,
        ffn_dim=size.feed_forward,
        num_layers=size.layers,
        text_dim=size.text_channels,
    ).eval()


def make_inputs(size: Size) -> Inputs:
    """Latents and text like a sampler's, in the middle of a trajectory."""
    rng = np.random.default_rng(0)
    return {
        "hidden_states": rng.standard_normal((1, 16, *size.latent_shape), np.float32),
        "timestep": np.array([500.0], np.float32),
        "encoder_hidden_states": rng.standard_normal((1, size.text_tokens, size.text_channels), np.float32),
    }


def export_graphs(model: Any, size: Size, inputs: Inputs, root: Path) -> dict[str, Path]:
    """The float32 graph and its int8 form, beside the checkpoint that they point into."""
    import onnx_ir as ir
    import torch

    from sora_export.external_data import attach_weights, read_weights
    from sora_export.families.wan_graphs import BucketRotary, TransformerGraph
    from sora_export.onnx_from_torch import TorchGraph, onnx_from_torch

    model.save_pretrained(root / "transformer")
    config = dict(model.config)
    rotary = BucketRotary(config, size.latent_shape)
    like = {name: torch.empty(array.shape, device="meta") for name, array in inputs.items()}
    graph = TorchGraph(lambda: TransformerGraph(config, rotary), like, ["model_output"])
    exported = onnx_from_torch(graph)
    weights = read_weights(sorted((root / "transformer").glob("*.safetensors")))
    attach_weights(exported.model, exported.parameters, weights, root)
    files = {BASELINE: root / "transformer.onnx", OURS: root / "transformer.int8.onnx"}
    ir.save(exported.model, files[BASELINE])
    make_graph_int8(files[BASELINE], root, files[OURS])
    return files


def make_graph_int8(graph: Path, root: Path, out: Path) -> None:
    """As `sora-bench build --precision int8` writes a transformer; its new weights lie in `root`/int8."""
    import onnx_ir as ir

    from sora_export.precision import Precision
    from sora_export.quantize_onnx import to_precision

    quantised = to_precision(
        ir.load(graph),
        Precision.INT8,
        engine="onnxruntime",
        part="transformer",
        calibration=None,
        root=root,
        data_file="int8/transformer.safetensors",
    )
    ir.save(quantised, out)


def onnxruntime_forward(graph: Path, inputs: Inputs, num_threads: int, own_operators: bool | None = None) -> Forward:
    engine = OnnxRuntimeEngine(graph, num_threads=num_threads, own_operators=own_operators)
    output = np.empty(engine.outputs["model_output"].shape, np.float32)
    binding = engine.bind({**{name: array.copy() for name, array in inputs.items()}, "model_output": output})

    def run() -> NDArray[np.float32]:
        binding.run()
        return output

    return run


def torch_forward(model: Any, inputs: Inputs, num_threads: int, *, compiled: bool) -> Forward:
    import torch

    torch.set_num_threads(num_threads)
    tensors = [torch.from_numpy(array.copy()) for array in inputs.values()]
    call = torch.compile(model) if compiled else model

    def run() -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = call(*tensors, return_dict=False)[0].numpy()
        return output

    return run


def openvino_forward(model: Any, inputs: Inputs, num_threads: int, *, int8: bool) -> Forward:
    """Float32, or 8-bit weights per channel with dynamically quantised activations in groups of 64."""
    import openvino as ov
    import torch

    tensors = tuple(torch.from_numpy(array.copy()) for array in inputs.values())
    with torch.no_grad():
        converted = ov.convert_model(with_int8_linears(model) if int8 else model, example_input=tensors)
    config: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    if int8:
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 64
    request = ov.Core().compile_model(converted, "CPU", config).create_infer_request()
    arrays = list(inputs.values())

    def run() -> NDArray[np.float32]:
        output: NDArray[np.float32] = request.infer(dict(enumerate(arrays)))[0]
        return output

    return run


def with_int8_linears(model: Any) -> Any:
    """A copy whose linears hold 8-bit weights."""
    import copy

    return make_linears_int8(copy.deepcopy(model))


def make_linears_int8(model: Any) -> Any:
    """Gives a transformer's blocks 8-bit linears, a scale per channel: the form OpenVINO knows as compressed."""
    import torch

    class Int8Linear(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
            self.register_buffer("scale", scale)
            self.register_buffer("weight", torch.round(linear.weight.detach() / scale).to(torch.int8))
            self.bias = linear.bias

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, self.weight.to(torch.float32) * self.scale, self.bias)

    for name, module in list(model.named_modules()):
        if name.startswith(("blocks.", "transformer_blocks.")) and isinstance(module, torch.nn.Linear):
            model.set_submodule(name, Int8Linear(module))
    return model


def processor() -> str:
    """The processor and its way to multiply bytes, on which the gain of int8 depends."""
    flags = Path("/proc/cpuinfo").read_text().split()
    ways = (way for flag, way in BYTE_PRODUCTS.items() if flag in flags)
    return f"{this_machine().cpu}, bytes multiplied by {next(ways, 'what it has')}"


def take_turns(engines: Mapping[str, Forward], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every engine in every round, and what each answers; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, run in engines.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            answer = run()
            if turn == 0:
                answers[name] = answer.copy()
            else:
                seconds[name].append(time.perf_counter() - start)
    return seconds, answers


def measure(size: Size | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """Every engine's seconds, error against torch and speed against ONNX Runtime's float32."""
    size, num_threads = size or Size(), available_cores()
    model, inputs = make_model(size), make_inputs(size)
    with tempfile.TemporaryDirectory() as folder:
        graphs = export_graphs(model, size, inputs, Path(folder))
        new_bytes = (Path(folder) / "int8/transformer.safetensors").stat().st_size
        engines: dict[str, Forward] = {
            "torch eager fp32": torch_forward(model, inputs, num_threads, compiled=False),
            "torch.compile fp32": torch_forward(model, inputs, num_threads, compiled=True),
            "OpenVINO fp32": openvino_forward(model, inputs, num_threads, int8=False),
            "OpenVINO int8": openvino_forward(model, inputs, num_threads, int8=True),
        }
        if own_kernels.wanted():  # elsewhere this runtime runs on them too
            engines[THEIRS] = onnxruntime_forward(graphs[OURS], inputs, num_threads, own_operators=False)
        engines |= {name: onnxruntime_forward(graph, inputs, num_threads) for name, graph in graphs.items()}
        seconds, answers = take_turns(engines, rounds)
    truth = answers["torch eager fp32"].astype(np.float64)
    rows = []
    for name, taken in seconds.items():
        ratios = [base / own for base, own in zip(seconds[BASELINE], taken, strict=True)]
        rows.append(
            {
                "engine": name,
                "seconds": statistics.median(taken),
                "times_fp32": statistics.median(ratios),
                "int8_times_faster": statistics.median(
                    own / ours for own, ours in zip(taken, seconds[OURS], strict=True)
                ),
                "relative_l2": float(np.linalg.norm(answers[name] - truth) / np.linalg.norm(truth)),
            }
        )
    return {
        "processor": processor(),
        "size": asdict(size) | {"tokens": size.tokens},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "int8_bytes": new_bytes,
        "num_threads": num_threads,
        "rounds": rounds,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"{result['processor']}; {result['num_threads']} threads:",
        "",
        "| engine | seconds | against ONNX Runtime fp32 | this runtime's int8 is faster | relative L2 error |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['engine']} | {row['seconds']:.3g} | {row['times_fp32']:.2f} times "
        f"| {row['int8_times_faster']:.2f} times | {row['relative_l2']:.1e} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny transformer: whether it works, not how fast")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    measured = measure(SMALL if options.small else None, options.rounds)
    print(table(measured))
    if options.out is not None:
        options.out.write_text(json.dumps(measured, indent=2) + "\n")
