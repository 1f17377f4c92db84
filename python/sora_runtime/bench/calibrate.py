"""Measures a machine in under a minute: small graphs on the engine that the runtime uses, at its number of threads.

No network is run whose time is to be predicted. Each graph holds the operators of exported networks at sizes on a
grid; their rates become the tables of a profile. Small transformers tell how much longer they take in a network.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np

from sora_runtime import __version__
from sora_runtime.bench import micro_graphs as graphs
from sora_runtime.bench import micro_networks as networks
from sora_runtime.bench.pace import Pace, filled
from sora_runtime.bench.samples import Load, Samples
from sora_runtime.cost.architectures.common import Conditioning
from sora_runtime.cost.architectures.vae_common import SCALED_RMS_NORM, AutoencoderBuilder
from sora_runtime.cost.architectures.wan import wan_transformer
from sora_runtime.cost.machine_time import transformer_seconds
from sora_runtime.cost.profile import TABLES, Profile, Table
from sora_runtime.cost.work import Sizes
from sora_runtime.engines import onnxruntime
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.machine import available_cores, this_machine

BUDGET = 50.0  # seconds; graphs that are left when they are over are not measured again
PASSES = 8  # over all graphs: whatever else the machine does for a while does not fall on a graph alone
SHARE, LEAST, MOST = 0.02, 2, 12  # seconds and repeats of one graph in one pass
ALL_PASSES = 4  # in which every graph is measured
ENOUGH = 8  # undisturbed repeats, after which a graph is left out of later passes
# Of repeats and paces alike. Not the median: what slows a machine for a while may fall on half of the eight repeats of
# the largest graphs, and the pace, whose products are small, need not show it.
QUARTER = 0.25

Axes = dict[str, tuple[float, ...]]
Point = dict[str, float]

# Off the sizes of the models that the benchmark predicts (192 and 1536 wide).
_PRODUCTS: Axes = {"rows": (1, 16, 64, 256, 1024, 2304), "width": (80, 240, 640, 1280)}
_ATTENTION: Axes = {"head_channels": (32, 64, 128), "queries": (64, 384, 2048), "keys": (64, 384, 2048)}
_MAPS: Axes = {"channels": (16, 32, 64, 160), "positions": (64, 512, 4096, 16384)}
_FRAMES = {64: (1, 8), 512: (2, 16), 4096: (4, 32), 16384: (4, 64)}  # positions -> frames and side
_BLOCKS = ((1, 64), (32, 160), (128, 160), (128, 480), (256, 960), (1024, 960), (2048, 1280))  # rows and width
_HEADS = 8


@dataclass(frozen=True)
class Shape:
    """One graph and what its time tells."""

    table: str
    point: Point
    amount: float  # FLOPs, or elements as the architectures count them; of a whole network, nothing
    graph: Callable[[], bytes]
    network: bool = False  # run as the runtime runs one: its threads sleep between evaluations


def shapes() -> Iterator[Shape]:
    """All that is measured."""
    for precision in ("fp32", "int8"):
        yield from _product_shapes(precision)
        yield from _attention_shapes(precision)
        yield from _network_shapes(precision)
    yield from _block_shapes()
    yield from _map_shapes()


def _points(axes: Axes) -> Iterator[Point]:
    return (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def _product_shapes(precision: str) -> Iterator[Shape]:
    for point in _points(_PRODUCTS):
        rows, width = int(point["rows"]), int(point["width"])
        flops = sum(2.0 * rows * inputs * outputs for inputs, outputs in graphs.product_shapes(width))
        flops *= graphs.product_blocks(rows, width, int8=precision == "int8")
        yield Shape(
            f"product.{precision}",
            point,
            flops,
            lambda rows=rows, width=width: graphs.products(rows, width, int8=precision == "int8"),  # type: ignore[misc]
        )


def _attention_shapes(precision: str) -> Iterator[Shape]:
    for point in _points(_ATTENTION):
        size = graphs.AttentionSize(_HEADS, *(int(value) for value in point.values()))
        flops = 4.0 * size.heads * size.head_channels * size.queries * size.keys
        yield Shape(
            f"attention.{precision}",
            point,
            flops,
            lambda size=size: graphs.attention(size, blockwise=precision != "fp32"),  # type: ignore[misc]
        )


def _network_shapes(precision: str) -> Iterator[Shape]:
    for size in networks.SMALL_TRANSFORMERS:
        yield Shape(
            f"network.{precision}",
            {"elements": networks.elements(size)},
            0.0,
            lambda size=size: size.graph(int8=precision == "int8"),  # type: ignore[misc]
            network=True,
        )


def _block_shapes() -> Iterator[Shape]:
    for rows, width in _BLOCKS:
        elements = block_elements(rows, width)
        yield Shape(
            "rest.transformer",
            {"elements": elements},
            elements,
            lambda rows=rows, width=width: graphs.block_rest(rows, width, 32),  # type: ignore[misc]
        )


def block_elements(rows: int, width: int) -> float:
    """What `wan_transformer` counts for the elementwise operators of one more block."""
    config = {"num_attention_heads": width // 32, "attention_head_dim": 32, "ffn_dim": graphs.SPREAD * width}
    one, two = (wan_transformer({**config, "num_layers": layers}, Conditioning(1)) for layers in (1, 2))
    sizes = Sizes(rows, rows, 1)
    return two.elements(sizes)["elementwise"] - one.elements(sizes)["elementwise"]


def _map_shapes() -> Iterator[Shape]:
    for point in _points(_MAPS):
        channels, positions = int(point["channels"]), int(point["positions"])
        size = graphs.Map(channels, *_FRAMES[positions])
        flops = 2.0 * 27.0 * channels**2 * positions
        yield Shape("convolution.fp32", point, flops, lambda size=size: graphs.convolution(size))  # type: ignore[misc]
        elements = map_elements(channels, positions)
        yield Shape("rest.convolution", point, elements, lambda size=size: graphs.convolution_rest(size))  # type: ignore[misc]


def map_elements(channels: int, positions: int) -> float:
    """What `vae_common` counts beside one convolution of a residual block, which has two."""
    builder = AutoencoderBuilder(channels=channels, norm=SCALED_RMS_NORM)
    builder.resnet(channels)
    return builder.build().elements(Sizes(1, positions, 1))["elementwise"] / 2.0


class _Timer:
    """Runs graphs on the engine until the time is over."""

    def __init__(self, num_threads: int, deadline: float) -> None:
        self._num_threads = num_threads
        self._deadline = deadline
        self._folder = tempfile.TemporaryDirectory()
        self._pace = Pace(num_threads)
        self.paces = [self._pace.seconds()]  # before the first graph and after each

    @property
    def pace(self) -> float:
        """The machine's own: what it reached in a quarter of the readings."""
        return float(np.quantile(self.paces, QUARTER))

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.perf_counter() > self._deadline

    def measure(self, shape: Shape, samples: Samples) -> None:
        """Adds some repeats of one graph, and the pace meanwhile."""
        self._repeat(shape, samples)  # when it returns the engine and its busily waiting threads are gone
        self.paces.append(self._pace.seconds())
        samples.settle((self.paces[-2] + self.paces[-1]) / 2.0)

    def _repeat(self, shape: Shape, samples: Samples) -> None:
        file = Path(self._folder.name) / "graph.onnx"
        file.write_bytes(shape.graph())
        engine = OnnxRuntimeEngine(file, num_threads=self._num_threads, stay_awake=not shape.network)
        try:
            specs = {**engine.inputs, **engine.outputs}
            run = engine.bind({name: filled(spec) for name, spec in specs.items()}).run
            run()
            end, count = time.perf_counter() + SHARE, 0
            while count < LEAST or (count < MOST and time.perf_counter() < end):
                samples.add(run)
                count += 1
        finally:
            engine.close()

    def close(self) -> None:
        """Removes what was written."""
        self._pace.close()
        self._folder.cleanup()


@dataclass(frozen=True)
class Measured:
    """What the graphs' times tell."""

    tables: dict[str, Table]
    networks: dict[str, tuple[float, ...]]  # seconds of `micro_networks.SMALL_TRANSFORMERS` by precision
    pace: float  # seconds, at which the rates in the tables hold
    disturbed: int  # graphs that other programs disturbed in every repeat


def measure(num_threads: int, on_progress: Callable[[int, int], None]) -> Measured:
    """Every table."""
    wanted = list(shapes())
    samples = [Samples() for _ in wanted]
    timer = _Timer(num_threads, time.perf_counter() + BUDGET)
    try:
        for turn in range(PASSES):
            for index, shape in enumerate(wanted):
                if turn and timer.late:
                    break
                if turn < ALL_PASSES or len(samples[index].clean(timer.pace)) < ENOUGH:
                    timer.measure(shape, samples[index])
                on_progress(turn * len(wanted) + index + 1, PASSES * len(wanted))
    finally:
        timer.close()
    seconds = [own.typical(timer.pace, QUARTER) for own in samples]
    tables = {name: _table(name, wanted, seconds) for name in TABLES}
    whole = {
        precision: tuple(
            taken for shape, taken in zip(wanted, seconds, strict=True) if shape.table == f"network.{precision}"
        )
        for precision in ("fp32", "int8")
    }
    return Measured(tables, whole, timer.pace, sum(not own.clean(timer.pace) for own in samples))


def _table(name: str, wanted: list[Shape], seconds: list[float]) -> Table:
    own = [(shape, taken) for shape, taken in zip(wanted, seconds, strict=True) if shape.table == name]
    own.sort(key=lambda pair: tuple(pair[0].point.values()))
    axes = {axis: tuple(sorted({shape.point[axis] for shape, _ in own})) for axis in own[0][0].point}
    unit = "FLOP/s" if not name.startswith("rest.") else "elements/s"
    return Table(unit, axes, tuple(shape.amount / taken for shape, taken in own))


def in_network(whole: dict[str, tuple[float, ...]], alone: Profile) -> dict[str, Table]:
    """How many times longer networks took than their operators alone, by precision.

    Args:
        whole: seconds of `micro_networks.SMALL_TRANSFORMERS`.
        alone: a profile with the operators' rates.
    """
    axes = {"elements": tuple(networks.elements(size) for size in networks.SMALL_TRANSFORMERS)}
    tables = {}
    for precision, seconds in whole.items():
        summed = [
            sum(transformer_seconds(size.networks, size.sizes, alone, precision).values())
            for size in networks.SMALL_TRANSFORMERS
        ]
        ratios = tuple(taken / parts for taken, parts in zip(seconds, summed, strict=True))
        tables[precision] = Table("times", axes, ratios)
    return tables


def sampler_seconds(num_threads: int) -> dict[str, float]:
    """A sampler step beside the network: a denoiser whose network does nothing, at two sizes of latents."""
    from sora_runtime.bench.idle_denoiser import step_seconds

    small, large = (4, 8, 8), (8, 48, 48)
    elements = [16.0 * math.prod(shape) for shape in (small, large)]
    taken = [step_seconds(shape, num_threads) for shape in (small, large)]
    slope = max(taken[1] - taken[0], 1e-9) / (elements[1] - elements[0])
    return {"step": max(taken[0] - slope * elements[0], 1e-7), "step.element": slope}


def clip_seconds(num_threads: int) -> float:
    """What a clip takes beside its stages: the shipped model's at one step, without its networks."""
    from sora_runtime.runtime import Runtime

    with Runtime.load(num_threads=num_threads) as runtime:
        rest = []
        for seed in range(3):
            seconds = runtime.generate(f"circle {seed}", seed=seed, num_inference_steps=1).receipt.seconds
            networks = (seconds.text_encode, seconds.denoise, seconds.vae_decode)
            rest.append((seconds.total or 0.0) - sum(value or 0.0 for value in networks))
    return max(float(np.median(rest)), 1e-6)


def calibrate(
    *, num_threads: int | None = None, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Profile:
    """Measure this machine, in at most a minute on a processor of 50 GFLOP/s or more.

    Args:
        num_threads: of the engine; None takes as many as `Runtime.load` would.
        on_progress: called with (graphs measured, graphs).
    """
    threads = available_cores() if num_threads is None else num_threads
    start, load = time.perf_counter(), Load()
    constants = sampler_seconds(threads) | {"clip": clip_seconds(threads)}
    measured = measure(threads, on_progress)
    tables = measured.tables
    blocks = tables["rest.transformer"]
    # A product of one row reads each weight, 4 bytes, for 2 FLOPs.
    constants["bandwidth"] = 2.0 * tables["product.fp32"].at(rows=1, width=math.inf)
    constants["pace"] = measured.pace
    constants["layer"] = blocks.axes["elements"][0] / blocks.values[0]
    profile = Profile(
        machine=this_machine(),
        num_threads=threads,
        versions={"sora_runtime": __version__, "onnxruntime": onnxruntime.VERSION, "numpy": np.__version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
        others=load.others(),
        disturbed=measured.disturbed,
        tables=tables,
        constants=constants,
        in_network={},
    )
    return replace(profile, in_network=in_network(measured.networks, profile))
