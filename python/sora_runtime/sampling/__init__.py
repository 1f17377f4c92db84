"""Sampling: schedules and solvers compiled ahead of time into a table of coefficients."""

from sora_runtime.sampling.diffusers_config import (
    SamplerSpecification,
    read_scheduler_config,
    with_solver,
)
from sora_runtime.sampling.diffusers_schedulers import SOLVERS
from sora_runtime.sampling.few_step import Levels
from sora_runtime.sampling.grids import DiffusionSchedule, FlowSchedule
from sora_runtime.sampling.guidance import GUIDANCE_METHODS, Guidance, GuidanceRule, guidance_rule
from sora_runtime.sampling.program import (
    ROW_DTYPE,
    SamplerProgram,
    compile_program,
)
from sora_runtime.sampling.reference import run_reference
from sora_runtime.sampling.reuse import Evaluation, ReuseRule
from sora_runtime.sampling.reuse_policies import REUSE_POLICIES, StepReuse, apply_reuse, default_order
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
    "GUIDANCE_METHODS",
    "LCM",
    "REUSE_POLICIES",
    "ROW_DTYPE",
    "SOLVERS",
    "Betas",
    "DPMSolverPP",
    "DiffusionSchedule",
    "DynamicShift",
    "Euler",
    "Evaluation",
    "FlowSchedule",
    "Guidance",
    "GuidanceRule",
    "Heun",
    "Levels",
    "ReuseRule",
    "SamplerProgram",
    "SamplerSpecification",
    "Schedule",
    "Solver",
    "StepReuse",
    "StochasticDPMSolverPP",
    "UniPC",
    "apply_reuse",
    "compile_program",
    "default_order",
    "guidance_rule",
    "read_scheduler_config",
    "run_reference",
    "with_solver",
]
