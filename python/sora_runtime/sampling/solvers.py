"""Solvers: how each takes a Schedule and writes its steps as linear forms.

A form is a vector of coefficients over the basis (x, g, H[0..3], z) of the sampler program, so a
solver reads like its paper: ``X``, ``G``, ``H[j]``, ``Z`` are unit vectors, and
``(X - sigma * G) / alpha`` is the noise-prediction model's estimate of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.schedules import FloatArray, Level, Schedule

Form = FloatArray
PredictionType = Literal["flow_prediction", "epsilon", "v_prediction", "sample"]

HISTORY = 4
_BASIS = np.eye(3 + HISTORY)
X: Form = _BASIS[0]
G: Form = _BASIS[1]
H: tuple[Form, ...] = tuple(_BASIS[2 : 2 + HISTORY])
Z: Form = _BASIS[2 + HISTORY]
NOTHING: Form = np.zeros(3 + HISTORY)


@dataclass(frozen=True)
class Step:
    """One row: what the network is told, the next latents and the history entry to store."""

    timestep: float
    next_latents: Form
    store: Form = field(default_factory=NOTHING.copy)
    input_scale: float = 1.0


class Solver(Protocol):
    """What ``compile_program`` needs of a solver."""

    name: ClassVar[str]

    def steps(self, schedule: Schedule) -> list[Step]:
        """Return the rows, in order; an InvalidRequest says what does not fit the schedule."""
        ...


def denoised(prediction_type: PredictionType, level: Level, x: Form = X) -> Form:
    """Return the data estimate from the model output G at the network's sample ``x``.

    epsilon: arXiv:2006.11239 eq. 15; v: arXiv:2202.00512 appendix D; flow: ``x - sigma v``.
    """
    alpha, sigma = level
    if prediction_type == "sample":
        return G
    if prediction_type == "v_prediction":
        return alpha * x - sigma * G
    if prediction_type == "flow_prediction":
        return x - sigma * G
    if alpha == 0.0:
        raise InvalidRequest(
            "prediction_type = epsilon says nothing about the data at zero SNR; "
            "set rescale_betas_zero_snr to false or use a v_prediction model"
        )
    return (x - sigma * G) / alpha


def require_kind(schedule: Schedule, solver: str, *kinds: str) -> None:
    """Raise InvalidRequest unless the schedule's kind is one of ``kinds``."""
    if schedule.kind not in kinds:
        raise InvalidRequest(
            f"solver {solver} cannot run on a {schedule.kind} schedule ({schedule.name}); it takes {' or '.join(kinds)}"
        )


def _input_scale(schedule: Schedule, sigma: float) -> float:
    return schedule.level(sigma).alpha if schedule.kind == "ve" else 1.0


def _slope(schedule: Schedule, sigma: float, prediction_type: PredictionType) -> Form:
    """``dx/dsigma = (x - denoised) / sigma`` (EDM, arXiv:2206.00364 algorithm 1), true of flow too."""
    x = _input_scale(schedule, sigma) * X
    return (X - denoised(prediction_type, schedule.level(sigma), x)) / sigma


@dataclass(frozen=True)
class Euler:
    """First order in sigma: EDM (arXiv:2206.00364) algorithm 1, uncorrected; flow's plain step."""

    name: ClassVar[str] = "euler"
    prediction_type: PredictionType = "flow_prediction"

    def steps(self, schedule: Schedule) -> list[Step]:
        """``x' = x + (sigma' - sigma) dx/dsigma``."""
        require_kind(schedule, self.name, "flow", "ve")
        steps = []
        for i, timestep in enumerate(schedule.timesteps):
            sigma, sigma_next = schedule.sigmas[i : i + 2]
            form = X + (sigma_next - sigma) * _slope(schedule, sigma, self.prediction_type)
            steps.append(Step(timestep, form, input_scale=_input_scale(schedule, sigma)))
        return steps


@dataclass(frozen=True)
class Heun:
    """Second order, two evaluations a step: EDM (arXiv:2206.00364) algorithm 1."""

    name: ClassVar[str] = "heun"
    prediction_type: PredictionType = "flow_prediction"

    def steps(self, schedule: Schedule) -> list[Step]:
        """Write an Euler row and a trapezoid row a step; the last step is Euler alone."""
        require_kind(schedule, self.name, "flow", "ve")
        steps = []
        for i, timestep in enumerate(schedule.timesteps):
            sigma, sigma_next = schedule.sigmas[i : i + 2]
            h = sigma_next - sigma
            slope = _slope(schedule, sigma, self.prediction_type)
            scale = _input_scale(schedule, sigma)
            if i == len(schedule) - 1:
                steps.append(Step(timestep, X + h * slope, input_scale=scale))
                break
            steps.append(Step(timestep, X + h * slope, store=slope, input_scale=scale))
            # The second row sees x + h * slope; H[0] is that slope, so the step's start is:
            start = X - h * H[0]
            slope_next = _slope(schedule, sigma_next, self.prediction_type)
            form = start + h * (H[0] + slope_next) / 2
            scale = _input_scale(schedule, sigma_next)
            steps.append(Step(schedule.timesteps[i + 1], form, input_scale=scale))
        return steps


@dataclass(frozen=True)
class DDIM:
    """DDIM (arXiv:2010.02502) eq. 12, with ``eta`` of eq. 16: 0 is deterministic, 1 is DDPM."""

    name: ClassVar[str] = "ddim"
    prediction_type: PredictionType = "epsilon"
    eta: float = 0.0

    def steps(self, schedule: Schedule) -> list[Step]:
        """``x' = alpha' x0 + sqrt(sigma'^2 - std^2) epsilon + std z``."""
        require_kind(schedule, self.name, "vp")
        if not (math.isfinite(self.eta) and 0.0 <= self.eta <= 1.0):
            raise InvalidRequest(f"eta = {self.eta} is outside 0 to 1; use 0 for plain DDIM")
        steps = []
        for timestep, sigma, landing in zip(schedule.timesteps, schedule.sigmas, schedule.landing, strict=False):
            level, target = schedule.level(sigma), schedule.level(landing)
            x0 = denoised(self.prediction_type, level)
            ratio = 0.0 if target.alpha == 0.0 else level.alpha / target.alpha
            # 1 - ratio^2 is rounding noise where a step lands on its own level.
            std = self.eta * target.sigma / level.sigma * math.sqrt(max(0.0, 1.0 - ratio**2))
            towards = math.sqrt(max(0.0, target.sigma**2 - std**2))
            form = target.alpha * x0 + towards * _epsilon(level, x0) + std * Z
            steps.append(Step(timestep, form))
        return steps


def _epsilon(level: Level, x0: Form) -> Form:
    return (X - level.alpha * x0) / level.sigma


@dataclass(frozen=True)
class LCM:
    """Consistency sampling (arXiv:2303.01469 algorithm 1; LCM, arXiv:2310.04378): denoise, renoise.

    Attributes:
        prediction_type: what the model returns.
        timestep_scaling: of LCM's boundary condition, c_skip and c_out with ``sigma_data`` = 0.5;
            None: the model's data estimate is used as it is (flow).
    """

    name: ClassVar[str] = "lcm"
    prediction_type: PredictionType = "epsilon"
    timestep_scaling: float | None = 10.0

    def steps(self, schedule: Schedule) -> list[Step]:
        """``x' = alpha' f(x, t) + sigma' z`` with ``f = c_skip x + c_out x0``."""
        require_kind(schedule, self.name, "flow", "vp")
        levels = schedule.levels()
        steps = []
        for timestep, level, target in zip(schedule.timesteps, levels, levels[1:], strict=False):
            c_skip, c_out = self._boundary(timestep)
            consistent = c_skip * X + c_out * denoised(self.prediction_type, level)
            steps.append(Step(timestep, target.alpha * consistent + target.sigma * Z))
        return steps

    def _boundary(self, timestep: float) -> tuple[float, float]:
        if self.timestep_scaling is None:
            return 0.0, 1.0
        sigma_data, t = 0.5, timestep * self.timestep_scaling
        return sigma_data**2 / (t**2 + sigma_data**2), t / math.hypot(t, sigma_data)


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++ multistep of order 1 or 2 (arXiv:2211.01095 algorithm 2).

    Attributes:
        prediction_type: what the model returns.
        order: 1 or 2.
        solver_type: ``midpoint`` or ``heun``, two second-order forms of the same integral.
        lower_order_final: first order on the last of fewer than 15 steps.
        euler_at_final: first order on the last step; always so where the final sigma is 0.
    """

    name: ClassVar[str] = "dpm++2m"
    prediction_type: PredictionType = "flow_prediction"
    order: int = 2
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    def steps(self, schedule: Schedule) -> list[Step]:
        """Integrate the data estimate exactly in lambda, extrapolating it from two values."""
        require_kind(schedule, self.name, "flow", "vp")
        if self.order not in (1, 2):
            raise InvalidRequest(f"solver_order = {self.order} is not supported; use 1 or 2")
        levels, n = schedule.levels(), len(schedule)
        steps = []
        for i, timestep in enumerate(schedule.timesteps):
            x0 = denoised(self.prediction_type, levels[i])
            final = i == n - 1 and (
                self.euler_at_final or (self.lower_order_final and n < 15) or levels[n].sigma == 0.0
            )
            first_order = self.order == 1 or i == 0 or final
            form = self._update(levels[i + 1], levels[i], None if first_order else levels[i - 1])
            steps.append(Step(timestep, form(x0), store=x0))
        return steps

    def _update(self, target: Level, start: Level, before: Level | None) -> Callable[[Form], Form]:
        h = target.half_log_snr - start.half_log_snr
        decay = math.expm1(-h)
        keep, gain = target.sigma / start.sigma, -target.alpha * decay
        if before is None:
            return lambda x0: keep * X + gain * x0
        ratio = (start.half_log_snr - before.half_log_snr) / h
        midpoint = self.solver_type == "midpoint"
        slope_gain = gain / 2 if midpoint else target.alpha * (decay / h + 1.0)
        return lambda x0: keep * X + gain * x0 + slope_gain * (x0 - H[0]) / ratio


@dataclass(frozen=True)
class StochasticDPMSolverPP:
    """SDE-DPM-Solver++(2M) as CogVideoX uses it (arXiv:2211.01095; CogVideoXDPMScheduler).

    Noise is drawn at every step but the last.
    """

    name: ClassVar[str] = "sde-dpm++2m"
    prediction_type: PredictionType = "v_prediction"

    def steps(self, schedule: Schedule) -> list[Step]:
        """``x' = keep x + gain (x0 + (x0 - x0_before) / 2r) + std z``."""
        require_kind(schedule, self.name, "vp")
        levels = schedule.levels()
        steps = []
        for i, timestep in enumerate(schedule.timesteps):
            level, target = levels[i], schedule.level(schedule.landing[i])
            x0 = denoised(self.prediction_type, level)
            h = target.half_log_snr - level.half_log_snr
            keep = target.sigma / level.sigma * math.exp(-h)
            gain = -target.alpha * math.expm1(-2 * h)
            std = target.sigma * math.sqrt(-math.expm1(-2 * h))
            estimate = x0
            if i > 0 and target.sigma > 0.0:
                ratio = (level.half_log_snr - levels[i - 1].half_log_snr) / h
                estimate = x0 + (x0 - H[0]) / (2 * ratio)
            steps.append(Step(timestep, keep * X + gain * estimate + std * Z, store=x0))
        return steps
