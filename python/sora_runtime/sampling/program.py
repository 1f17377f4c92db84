"""The sampler program: one row of coefficients per network call, compiled from schedule and solver.

The table is the whole interface between Python and the C++/CUDA sampler. At each row, with ``x``
the latents, ``c`` and ``u`` the network's conditional and unconditional outputs, ``H[j]`` the
history (0 is the newest entry) and ``z`` fresh N(0, 1) noise:

    engine input = input_scale * x
    g  = c                                    if guidance_scale == 1, u is not computed
    g  = u + guidance_scale * (c - u)         otherwise; if guidance_rescale = phi > 0:
    g *= phi * std(c) / std(g) + 1 - phi      (arXiv:2305.08891 eq. 14-16)
    next x  = latents * x + output * g + sum_j history[j] * H[j] + noise * z
    new H[0] = store_latents * x + store_output * g, if either coefficient is non-zero

Where ``evaluate`` says so, ``c`` and ``u`` are estimated from earlier rows; see ``sampling.reuse``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.guidance import Guidance, GuidanceRule
from sora_runtime.sampling.reuse import Evaluation, ReuseRule, calls_of, check_reuse
from sora_runtime.sampling.schedules import Schedule
from sora_runtime.sampling.solvers import HISTORY, Solver, Step

# Mirrored field by field by the C++ sampler; 112 bytes, no padding.
ROW_DTYPE = np.dtype(
    [
        ("engine", "<i4"),
        ("evaluate", "<i4"),
        ("timestep", "<f8"),
        ("input_scale", "<f8"),
        ("guidance_scale", "<f8"),
        ("guidance_rescale", "<f8"),
        ("latents", "<f8"),
        ("output", "<f8"),
        ("history", "<f8", (HISTORY,)),
        ("noise", "<f8"),
        ("store_latents", "<f8"),
        ("store_output", "<f8"),
    ]
)


class ScheduleSpecification(Protocol):
    """What builds the schedule: ``FlowSchedule`` or ``DiffusionSchedule``."""

    def build(self, num_inference_steps: int, image_seq_len: int | None = None) -> Schedule:
        """Return the schedule of ``num_inference_steps`` steps."""
        ...


@dataclass(frozen=True)
class SamplerProgram:
    """A compiled trajectory.

    Attributes:
        rows: [num_rows] of ``ROW_DTYPE``, read-only.
        initial_scale: the first latents are this times N(0, 1) noise.
        num_inference_steps: the steps the user asked for; Heun has two rows for most of them.
        solver: solver name, for receipts.
        schedule: schedule name, for receipts.
        reuse: which outputs are reused beside those the rows mark, and how.
        guidance: how the two branches of a guided row make its output g.

    Raises:
        InvalidRequest: the table breaks one of its rules (see ``_check_rows``).
    """

    rows: npt.NDArray[np.void]
    initial_scale: float
    num_inference_steps: int
    solver: str
    schedule: str
    reuse: ReuseRule = field(default_factory=ReuseRule)
    guidance: GuidanceRule = field(default_factory=GuidanceRule)

    def __post_init__(self) -> None:
        rows = np.array(self.rows)
        _check_rows(rows, f"{self.solver} on {self.schedule}")
        rows.setflags(write=False)
        object.__setattr__(self, "rows", rows)

    @property
    def evaluations(self) -> int:
        """Network calls; a guided row makes two. With a criterion of reuse: at most so many."""
        return int(np.sum(calls_of(self.rows)))

    @property
    def all_evaluations(self) -> int:
        """Network calls if no row reused anything."""
        return int(np.sum(np.where(self.rows["guidance_scale"] == 1.0, 1, 2)))

    @property
    def history_depth(self) -> int:
        """How many history entries a row may read."""
        used = np.flatnonzero(np.any(self.rows["history"] != 0.0, axis=0))
        return int(used[-1]) + 1 if len(used) else 0

    @property
    def sha256(self) -> str:
        """Hex digest of the table, the initial scale and, where they say anything, the rules beside the table."""
        digest = hashlib.sha256(repr(ROW_DTYPE.descr).encode())
        digest.update(np.float64(self.initial_scale).tobytes())
        digest.update(self.rows.tobytes())
        if self.reuse != ReuseRule():
            digest.update(repr(self.reuse).encode())
        if self.guidance != GuidanceRule():
            digest.update(repr(self.guidance).encode())
        return digest.hexdigest()


def _check_rows(rows: npt.NDArray[np.void], what: str) -> None:
    """A table is finite, reads only what was stored, and reuses without an output."""
    if rows.dtype != ROW_DTYPE or rows.ndim != 1 or len(rows) == 0:
        raise InvalidRequest(f"the program of {what} is not a non-empty table of ROW_DTYPE")
    stored = 0
    for i, row in enumerate(rows):
        values = [np.max(np.abs(row[name])) for name in ROW_DTYPE.names or ()]
        if not np.all(np.isfinite(values)):
            raise InvalidRequest(f"row {i} of {what} is not finite; use another number of steps or another solver")
        if row["evaluate"] not in tuple(Evaluation) or row["engine"] < 0:
            raise InvalidRequest(f"row {i} of {what} has an invalid engine or evaluate flag")
        if row["evaluate"] == Evaluation.NO_OUTPUT and (row["output"] != 0.0 or row["store_output"] != 0.0):
            raise InvalidRequest(
                f"row {i} of {what} uses a model output without evaluating; set output and store_output to 0"
            )
        if np.any(row["history"][stored:] != 0.0):
            raise InvalidRequest(f"row {i} of {what} reads history that no row before it stored")
        stored += int(row["store_latents"] != 0.0 or row["store_output"] != 0.0)
    check_reuse(rows, what)


def compile_program(
    solver: Solver,
    schedule: ScheduleSpecification | Schedule,
    num_inference_steps: int,
    guidance: Guidance | None = None,
    image_seq_len: int | None = None,
) -> SamplerProgram:
    """Compile a trajectory into its table of coefficients.

    Args:
        solver: how to step.
        schedule: which levels to visit; a built ``Schedule`` must have ``num_inference_steps``.
        num_inference_steps: solver steps, as the user counts them.
        guidance: None is no guidance and one engine.
        image_seq_len: latent tokens of the clip, for schedules with a dynamic shift.

    Raises:
        InvalidRequest: the steps, the schedule or the pair of solver and schedule.
    """
    guidance = guidance or Guidance()
    built = schedule
    if not isinstance(built, Schedule):
        built = built.build(num_inference_steps, image_seq_len)
    if len(built) != num_inference_steps:
        raise InvalidRequest(
            f"num_inference_steps = {num_inference_steps} does not match a schedule of "
            f"{len(built)} steps; use {len(built)}"
        )
    with np.errstate(all="ignore"):  # what is not finite is refused by name in SamplerProgram
        steps = solver.steps(built)
    rows = np.zeros(len(steps), ROW_DTYPE)
    for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
        _fill_row(row, step)
        _fill_guidance(row, guidance, built, i / max(len(steps) - 1, 1))
    rows["evaluate"][: guidance.zero_init_steps] = Evaluation.ZERO
    return SamplerProgram(
        rows=rows,
        initial_scale=built.initial_scale,
        num_inference_steps=num_inference_steps,
        solver=solver.name,
        schedule=built.name,
        guidance=guidance.rule,
    )


def _fill_row(row: Any, step: Step) -> None:
    row["evaluate"] = Evaluation.EVALUATE
    row["timestep"], row["input_scale"] = step.timestep, step.input_scale
    row["latents"], row["output"] = step.next_latents[:2]
    row["history"], row["noise"] = step.next_latents[2:-1], step.next_latents[-1]
    row["store_latents"], row["store_output"] = step.store[:2]
    assert not np.any(step.store[2:]), "a history entry is made of x and g only"


def _fill_guidance(row: Any, guidance: Guidance, schedule: Schedule, progress: float) -> None:
    timestep = float(row["timestep"])
    engine, scale = guidance.engine_and_scale(timestep, schedule.num_train_timesteps)
    sigma = schedule.sigmas[list(schedule.timesteps).index(timestep)] if guidance.interval is not None else 0.0
    row["engine"] = engine
    row["guidance_scale"] = guidance.weakened(scale, float(sigma), progress)
    row["guidance_rescale"] = guidance.rescale
