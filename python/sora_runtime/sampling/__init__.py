"""Sampling: schedules and solvers compiled ahead of time into a table of coefficients."""

from sora_runtime.sampling.diffusers_config import (
    SamplerSpecification,
    read_scheduler_config,
    with_solver,
)
from sora_runtime.sampling.diffusers_schedulers import SOLVERS
from sora_runtime.sampling.few_step import Levels
from sora_runtime.sampling.grids import DiffusionSchedule, FlowSchedule
from sora_runtime.sampling.program import (
    ROW_DTYPE,
    Guidance,
    SamplerProgram,
    compile_program,
    run_reference,
)
from sora_runtime.sampling.schedules import Betas, DynamicShift, Schedule
from sora_runtime.sampling.solvers import (
    DDIM,
    LCM,
    DPMSolverPP,
    Euler,
    Heun,
    Solver,
    StochasticDPMSolverPP,
)
from sora_runtime.sampling.unipc import UniPC

__all__ = [
    "DDIM",
    "LCM",
    "ROW_DTYPE",
    "SOLVERS",
    "Betas",
    "DPMSolverPP",
    "DiffusionSchedule",
    "DynamicShift",
    "Euler",
    "FlowSchedule",
    "Guidance",
    "Heun",
    "Levels",
    "SamplerProgram",
    "SamplerSpecification",
    "Schedule",
    "Solver",
    "StochasticDPMSolverPP",
    "UniPC",
    "compile_program",
    "read_scheduler_config",
    "run_reference",
    "with_solver",
]
