"""Where the tensors of a trajectory lie in a device's memory, and which programs put the same work on it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arena import ALIGNMENT
from .denoise import SHARED_CONDITIONS, VARYING, Embeddings, fill
from .engines.cuda import PinnedArray
from .engines.cuda_graph import CudaGraph
from .engines.device_engine import DeviceEngine, DeviceMemory
from .engines.engine import TensorSpec
from .sampling.program import SamplerProgram

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class TransformerTensors:
    """What a transformer's engine reads and writes.

    Attributes:
        latents: its input, as the sampler leaves it.
        timestep: its input.
        shared: conditions that both branches of guidance share.
        texts: conditions that each branch has its own of.
        output: the model's.
    """

    latents: TensorSpec
    timestep: TensorSpec
    shared: Mapping[str, TensorSpec]
    texts: Mapping[str, TensorSpec]
    output: TensorSpec

    @classmethod
    def of(cls, engine: DeviceEngine) -> "TransformerTensors":
        """Of an engine."""
        inputs = engine.inputs
        conditions = {name: spec for name, spec in inputs.items() if name not in VARYING}
        return cls(
            inputs["hidden_states"],
            inputs["timestep"],
            {name: spec for name, spec in conditions.items() if name in SHARED_CONDITIONS},
            {name: spec for name, spec in conditions.items() if name not in SHARED_CONDITIONS},
            engine.outputs["model_output"],
        )

    def lay_out(self, program: SamplerProgram) -> DeviceMemory:
        """First what is copied for each clip, up to the tables at the head of the workspace; then the rest."""
        rows, layout = program.rows, DeviceMemory()
        unit = TensorSpec(self.latents.shape, FLOAT)
        layout.place("latents", unit)
        for name, spec in self.shared.items():
            layout.place(name, spec)
        for branch in range(2):
            for name, spec in self.texts.items():
                layout.place(f"{name} {branch}", spec)
        layout.place("timesteps", TensorSpec((len(rows), stride_of(self.timestep)), np.dtype(np.uint8)))
        for slot in range(noise_rows(rows)):
            layout.place(f"noise {slot}", unit)
        needed = _core.cuda.workspace_bytes(rows, n=count_of(self.latents), **rules_of(program))
        layout.place("workspace", TensorSpec((needed,), np.dtype(np.uint8)))
        layout.place("timestep", self.timestep)  # of the row that is evaluated: contexts read all rows' here
        for branch in range(2):
            layout.place(f"output {branch}", self.output)
        if self.latents.dtype != FLOAT or np.any(rows["input_scale"] != 1.0):
            layout.place("input", self.latents)
        return layout

    def addresses(self, layout: DeviceMemory, start: int, branch: int) -> dict[str, int]:
        """Of the engine's tensors for a branch of guidance, in a layout that begins at `start`."""
        names = {"hidden_states": "input" if "input" in layout.pieces else "latents", "timestep": "timestep"}
        names |= {name: name for name in self.shared} | {name: f"{name} {branch}" for name in self.texts}
        names["model_output"] = f"output {branch}"
        at = layout.addresses(start)
        return {name: at[place] for name, place in names.items()}

    def stage(
        self,
        layout: DeviceMemory,
        staged: NDArray[np.uint8],
        program: SamplerProgram,
        embeddings: Embeddings,
        start: NDArray[np.float32],
        noise: _core.NoiseGenerator | None,
    ) -> None:
        """Write what a clip brings, but the sampler's tables, into memory that is laid out as the room is."""
        pieces = layout.pieces
        np.multiply(start, np.float32(program.initial_scale), out=pieces["latents"].of(staged))
        fill({name: pieces[name].of(staged) for name in self.shared}, embeddings.shared)
        for branch, conditions in enumerate((embeddings.conditional, embeddings.unconditional)):
            if conditions is not None:
                fill({name: pieces[f"{name} {branch}"].of(staged) for name in self.texts}, conditions)
        count = count_of(self.timestep) * self.timestep.dtype.itemsize
        for row, timestep in zip(pieces["timesteps"].of(staged), program.rows["timestep"], strict=True):
            row[:count].view(self.timestep.dtype)[:] = timestep
        for slot in range(noise_rows(program.rows)):
            assert noise is not None
            pieces[f"noise {slot}"].of(staged)[...] = noise.normal(self.latents.shape)

    def sampler(self, layout: DeviceMemory, start: int, program: SamplerProgram, stream: int) -> Any:
        """What puts the program's steps on a stream, over a layout that begins at `start`."""
        at = layout.addresses(start)
        buffers = _core.cuda.Buffers(
            n=count_of(self.latents),
            latents=at["latents"],
            conditional=at["output 0"],
            unconditional=at["output 1"],
            model_input=at.get("input", 0),
            input_dtype=self.latents.dtype.name,
            output_dtype=self.output.dtype.name,
        )
        return _core.cuda.Sampler(
            program.rows,
            buffers,
            workspace=at["workspace"],
            workspace_bytes=layout.pieces["workspace"].size,
            stream=stream,
            **rules_of(program),
        )


@dataclass
class Prepared:
    """What all clips of one structure share; graphs once they were recorded."""

    layout: DeviceMemory
    copied: int  # bytes at the head of the room that each clip brings
    staged: PinnedArray
    result: PinnedArray
    contexts: list[list[Any]]  # [engine][unconditional]
    engines: list[int]  # of each row
    sampler: Any = None
    used: list[tuple[int, bool]] = field(default_factory=list)  # engine and branch of contexts that have run
    warm: bool = False  # contexts have run since weights were brought last
    start: int = 0  # address of the room
    moves: int = -1  # of the device's room when tensors were placed there
    unloads: int = 0  # of the device's weights, likewise
    graph: CudaGraph | None = None
    evaluations: dict[tuple[int, bool], CudaGraph] = field(default_factory=dict)
    together: bool = True  # the weights of all its networks are on the device
    why_not: str | None = None  # why there will be no graph of the whole
    statistics: _core.RunStatistics | None = None
    row: int = -1  # whose timestep was put on the stream last
    drawn: int = 0  # noise slots used in the run that is put on the stream

    def close(self) -> None:
        """Give back the host's memory."""
        self.staged.close()
        self.result.close()


def count_of(spec: TensorSpec) -> int:
    """Elements."""
    return int(np.prod(spec.shape))


def stride_of(spec: TensorSpec) -> int:
    """Bytes from one row's timestep to the next: engines take aligned addresses only."""
    return -(-count_of(spec) * spec.dtype.itemsize // ALIGNMENT) * ALIGNMENT


def rules_of(program: SamplerProgram) -> dict[str, Any]:
    """What the sampler is told beside its rows."""
    return {
        "reuse": _core.StepReuse(**asdict(program.reuse)),
        "guidance": _core.GuidanceRule(**asdict(program.guidance)),
    }


def noise_rows(rows: NDArray[np.void]) -> int:
    """How many rows draw noise."""
    return int(np.count_nonzero(rows["noise"]))


def structure_of(program: SamplerProgram) -> object:
    """What decides which work is put on the stream and with which arguments; all else is read from memory there."""
    rows = program.rows
    used = [rows[name] != 0.0 for name in ("noise", "store_latents", "store_output", "history", "guidance_rescale")]
    fixed = [rows[name] for name in ("engine", "evaluate", "input_scale")]
    guided = rows["guidance_scale"] != 1.0
    arrays = tuple(array.tobytes() for array in (*used, *fixed, guided))
    guidance = program.guidance
    return arrays, program.reuse, guidance.method, guidance.momentum != 0.0
