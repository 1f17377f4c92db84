"""Where the tensors of a trajectory lie in a device's memory, and which programs put the same work on it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arena import ALIGNMENT
from .engines.engine import Array, TensorSpec
from .sampling.program import SamplerProgram


@dataclass(frozen=True)
class Piece:
    """A tensor in the arena."""

    offset: int
    spec: TensorSpec

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.spec.shape)) * self.spec.dtype.itemsize

    def of(self, staged: NDArray[np.uint8]) -> Array:
        """Its twin in the memory that is copied."""
        return staged[self.offset : self.offset + self.size].view(self.spec.dtype).reshape(self.spec.shape)


class ClipMemory:
    """Tensors one after the other in one piece of the device's memory, each at an address that engines take."""

    def __init__(self) -> None:
        self.end = 0
        self.pieces: dict[str, Piece] = {}

    def place(self, name: str, spec: TensorSpec) -> Piece:
        """Put a tensor behind the others."""
        piece = self.pieces[name] = Piece(self.end, spec)
        self.end += -(-max(piece.size, 1) // ALIGNMENT) * ALIGNMENT
        return piece


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
