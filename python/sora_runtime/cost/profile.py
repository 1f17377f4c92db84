"""What a calibration found out about a machine: tables of achieved rates, and where they are kept."""

from __future__ import annotations

import json
import math
import os
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from sora_runtime.cost.hardware import Gpu
from sora_runtime.cost.profile_path import GPU_ID, default_path
from sora_runtime.cost.rates import Fit
from sora_runtime.errors import InvalidRequest, OutputError
from sora_runtime.machine import Machine, this_machine

SCHEMA_VERSION = 3
# Relative errors of predictions from a profile. benchmarks/calibrated.py found 3% to 13% for wide networks and up to
# 40% for small clips on shared cores; they are to be narrowed by a record from a quiet machine.
ROW_SPREAD, SOURCE_SPREAD, PARAMETER_SPREAD = 0.18, 0.12, 0.03


@dataclass(frozen=True)
class Table:
    """A measured quantity over one or more sizes.

    Args:
        unit: of the values, such as "FLOP/s".
        axes: name of each size and where it was measured, ascending.
        values: in the order of `itertools.product` over the axes; positive.
    """

    unit: str
    axes: Mapping[str, tuple[float, ...]]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = [len(points) for points in self.axes.values()]
        if math.prod(sizes) != len(self.values) or not all(value > 0 for value in self.values):
            raise ValueError(f"a table of {sizes} has {len(self.values)} values")

    def at(self, **point: float) -> float:
        """Interpolated between neighbours in the logarithms of sizes and value; beyond the ends, the end's value."""
        corners = [_between(points, point[name]) for name, points in self.axes.items()]
        strides = [1]
        for points in reversed(list(self.axes.values())[1:]):
            strides.insert(0, strides[0] * len(points))
        total = 0.0
        for corner in product(*corners):
            index = sum(stride * i for stride, (i, _) in zip(strides, corner, strict=True))
            total += math.prod(weight for _, weight in corner) * math.log(self.values[index])
        return math.exp(total)


def _between(points: Sequence[float], x: float) -> tuple[tuple[int, float], ...]:
    """The neighbours of `x` and their weights."""
    if x <= points[0]:
        return ((0, 1.0),)
    if x >= points[-1]:
        return ((len(points) - 1, 1.0),)
    right = bisect_right(points, x)
    share = math.log(x / points[right - 1]) / math.log(points[right] / points[right - 1])
    return (right - 1, 1.0 - share), (right, share)


@dataclass(frozen=True)
class Profile:
    """A machine as it was measured."""

    machine: Machine
    num_threads: int  # of every engine
    versions: Mapping[str, str]  # of sora_runtime, onnxruntime, numpy
    created: str  # ISO 8601
    seconds: float  # that the calibration took
    others: float | None  # share of the processors that other programs had meanwhile; None: not known
    disturbed: int  # entries of the tables of which no repeat was free of other programs
    tables: Mapping[str, Table]
    constants: Mapping[str, float]  # seconds
    # By precision: the factor by which operators take longer in a transformer's midst, where each finds the caches full
    # of the others' data, than alone; by elements of the residual stream.
    in_network: Mapping[str, Table]

    def slower_in_network(self, precision: str, elements: float) -> float:
        """How many times longer operators take in a transformer than alone.

        Args:
            precision: fp32 or int8.
            elements: of the residual stream, rows times width.
        """
        table = self.in_network.get(precision)
        return 1.0 if table is None else table.at(elements=elements)

    @property
    def elsewhere(self) -> str | None:
        """One sentence where the profile is not this machine's, else None."""
        here = this_machine()
        if (here.cpu, here.cores) == (self.machine.cpu, self.machine.cores):
            return None
        return (
            f"the machine profile was made on {self.machine.cpu} with {self.machine.cores} cores and this is "
            f"{here.cpu} with {here.cores}; run `sora-bench calibrate` here for estimates of this machine"
        )

    def at(self, pace: float) -> Profile:
        """The same machine when the products of `bench.pace` take `pace` seconds: all is slower by one factor."""
        factor = pace / self.constants["pace"]
        tables = {
            name: replace(table, values=tuple(value / factor for value in table.values))
            for name, table in self.tables.items()
        }
        slower = {name: value * factor for name, value in self.constants.items() if name != "bandwidth"}
        constants = slower | {"bandwidth": self.constants["bandwidth"] / factor}
        return replace(self, tables=tables, constants=constants)

    @property
    def gpu(self) -> Gpu:
        """The machine as an entry of the hardware catalogue; rates are those of large products."""
        large = {name: self.tables[f"product.{name}"] for name in ("fp32", "int8")}
        rates = {name: max(table.values) for name, table in large.items()}
        return Gpu(
            id=GPU_ID,
            aliases=(self.machine.cpu,),
            architecture="cpu",
            # Narrow floats are widened before each product.
            rates={**rates, "bf16": rates["fp32"], "fp16": rates["fp32"]},
            memory_bytes=float(self.machine.memory_bytes or 0),
            bandwidth=self.constants["bandwidth"],
            tdp_w=None,
            link="none",
            link_bandwidth=0.0,
            source="sora-bench calibrate",
            date=self.created[:10],
            verified=True,
            note=f"{self.machine.cpu}, {self.num_threads} threads, measured",
        )

    @property
    def fit(self) -> Fit:
        """The rates that `roofline.clip_seconds` asks for, as this machine achieves them at a middling size."""
        peak, tables = self.gpu.rates["fp32"], self.tables
        typical = tables["product.fp32"].at(rows=512, width=512)
        attention = tables["attention.fp32"].at(head_channels=64, queries=1024, keys=1024)
        convolution = tables["convolution.fp32"].at(channels=96, positions=4096)
        rest = tables["rest.transformer"].at(elements=1e7)
        values = {
            "matrix": typical / peak,
            "matrix.cpu": 1.0,
            f"gpu.{GPU_ID}": 1.0,
            "memory": 1.0,
            "engine.onnxruntime": 1.0,
            "attention.cpu": attention / typical,
            "attention.pair.cpu.cpu": 1.0,
            "convolution": convolution / typical,
            "convolution.cpu": 1.0,
            "precision.fp32": 1.0,
            "precision.int8": 0.9,
            # The roofline counts two bytes an element; this rate is of elements.
            "fusion.compiled": self.constants["bandwidth"] / 2.0 / rest,
            "overhead.compiled": self.constants["layer"],
            "clip": self.constants["clip"],
        }
        names = tuple(values)
        covariance = tuple(tuple(PARAMETER_SPREAD**2 if a == b else 0.0 for b in names) for a in names)
        logs = tuple(math.log(value) for value in values.values())
        about = {"source": "sora-bench calibrate", "created": self.created, "cpu": self.machine.cpu}
        return Fit(names, logs, covariance, SOURCE_SPREAD, ROW_SPREAD, about)


def load_profile(path: str | os.PathLike[str] | None = None) -> Profile:
    """Read a profile; None reads the user's.

    Raises:
        InvalidRequest: there is none, or the file is not one.
    """
    file = default_path() if path is None else Path(path)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidRequest(f"there is no machine profile at {file}; run `sora-bench calibrate`") from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} cannot be read ({error}); run `sora-bench calibrate`") from None
    try:
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {record['schema_version']}")
        return _profile(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(
            f"{file} is no machine profile of this release ({error}); run `sora-bench calibrate`"
        ) from None


def _profile(record: Mapping[str, Any]) -> Profile:
    tables, in_network = (
        {
            name: Table(
                table["unit"], {axis: tuple(points) for axis, points in table["axes"].items()}, tuple(table["values"])
            )
            for name, table in record[kind].items()
        }
        for kind in ("tables", "in_network")
    )
    missing = sorted(set(TABLES) - set(tables)) + sorted(set(CONSTANTS) - set(record["constants"]))
    if missing:
        raise ValueError(f"without {missing[0]}")
    return Profile(
        machine=Machine(**record["machine"]),
        num_threads=record["num_threads"],
        versions=record["versions"],
        created=record["created"],
        seconds=record["seconds"],
        others=record["others"],
        disturbed=record["disturbed"],
        tables=tables,
        constants=record["constants"],
        in_network=in_network,
    )


def save_profile(profile: Profile, path: str | os.PathLike[str] | None = None) -> Path:
    """Write a profile whole or not at all; None writes the user's. Returns where.

    Raises:
        OutputError: the file cannot be written.
    """
    file = default_path() if path is None else Path(path)
    record = {"schema_version": SCHEMA_VERSION, **asdict(profile)}
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror or error}); give another with --out") from error
    return file


TABLES = {
    "product.fp32": "FLOP/s of float32 matrix products by rows and harmonic mean of their inputs and outputs",
    "product.int8": "the same with int8 weights and activations quantised on the way",
    "attention.fp32": "FLOP/s of ONNX's attention, which keeps all scores (float32 bundles)",
    "attention.int8": "FLOP/s of the blockwise attention of int8 bundles",
    "convolution.fp32": "FLOP/s of causal 3x3x3 convolutions by channels and positions",
    "rest.transformer": "counted elements/s of all else in a transformer's block, by elements of one block",
    "rest.convolution": "counted elements/s of all else around one convolution, by channels and positions",
}
CONSTANTS = {
    "bandwidth": "bytes/s at which weights are read that no cache holds",
    "layer": "seconds of one block of almost no work",
    "step": "seconds of one sampler step and its calls beside the network",
    "step.element": "seconds for each element of the latents in one step",
    "pace": "seconds of the products of bench.pace when all these rates hold",
    "clip": "seconds of a clip beside its stages: request, program, receipt",
}
