"""The UniPC solver (arXiv:2302.04867), predictor and corrector in one row a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.schedules import FloatArray, Level, Schedule
from sora_runtime.sampling.solvers import (
    NOTHING,
    Form,
    H,
    PredictionType,
    Step,
    X,
    denoised,
    require_kind,
)


@dataclass(frozen=True)
class UniPC:
    """UniPC-p (arXiv:2302.04867) in its data-prediction form.

    Attributes:
        prediction_type: what the model returns.
        order: 1 to 3.
        solver_type: the paper's B(h): ``bh1`` is h, ``bh2`` is e^h - 1.
        lower_order_final: lower the order towards the last step.
        disable_corrector: steps whose result is not corrected.
    """

    name: ClassVar[str] = "unipc"
    prediction_type: PredictionType = "flow_prediction"
    order: int = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()

    def steps(self, schedule: Schedule) -> list[Step]:
        """Correct the latents that the previous row predicted, then predict the next ones.

        Predictor and corrector of a step start from the same corrected latents ``c`` and share
        their term in ``c``; with P and C their terms in the data estimates, the row before gave
        ``X = a c + P``, so the corrected latents here are ``X + (C - P)`` and ``c`` is not stored.
        """
        require_kind(schedule, self.name, "flow", "vp")
        self._check(schedule)
        levels, n = schedule.levels(), len(schedule)
        steps: list[Step] = []
        order_before = 0
        for i, timestep in enumerate(schedule.timesteps):
            x0 = denoised(self.prediction_type, levels[i])
            corrected = X
            if i > 0 and i - 1 not in self.disable_corrector:
                path = levels[i::-1]
                predicted = self._integral(path, order_before, list(H), None)
                corrected = X + self._integral(path, order_before, list(H), x0) - predicted
            order = min(self.order, i + 1)
            if self.lower_order_final:
                order = min(order, n - i)
            integral = self._integral(levels[i + 1 :: -1], order, [x0, *H], None)
            keep = levels[i + 1].sigma / levels[i].sigma
            steps.append(Step(timestep, keep * corrected + integral, store=x0))
            order_before = order
        return steps

    def _check(self, schedule: Schedule) -> None:
        if self.order not in (1, 2, 3):
            raise InvalidRequest(f"solver_order = {self.order} is not supported; use 1, 2 or 3")
        if schedule.level(schedule.sigmas[0]).alpha == 0.0:
            raise InvalidRequest(
                "solver unipc cannot start from sigma = 1, whose log-SNR is not finite; set max_sigma below 1"
            )
        if self.order > 1 and not self.lower_order_final and schedule.sigmas[-1] == 0.0:
            raise InvalidRequest(
                "lower_order_final = false has no finite last step at final sigma 0; set lower_order_final to true"
            )

    def _integral(self, path: list[Level], order: int, estimates: list[Form], target_estimate: Form | None) -> Form:
        """Return the part of UniP-p (or UniC-p, given ``target_estimate``) in the data estimates.

        ``path`` is the target's level, the start's and those before it; ``estimates`` are the data
        estimates at the start and before it, ``differences`` the paper's D_m / r_m.
        """
        target, start, *before = path
        h = start.half_log_snr - target.half_log_snr  # data prediction integrates over -h
        growth = math.expm1(h)
        base = -target.alpha * growth * estimates[0]
        ratios = [(start.half_log_snr - level.half_log_snr) / h for level in before[: order - 1]]
        differences = [(m - estimates[0]) / r for m, r in zip(estimates[1:], ratios, strict=False)]
        if target_estimate is not None:
            ratios.append(1.0)
            differences.append(target_estimate - estimates[0])
        if not differences:
            return base
        weights = _weights(ratios, h, self.solver_type)
        scale = h if self.solver_type == "bh1" else growth
        combined = sum((w * d for w, d in zip(weights, differences, strict=True)), NOTHING)
        return base - target.alpha * scale * combined


def _weights(ratios: list[float], h: float, solver_type: str) -> FloatArray:
    """Return the paper's coefficients for the nodes ``ratios`` (arXiv:2302.04867 theorem 3.1)."""
    count = len(ratios)
    if count == 1:
        return np.array([0.5])  # the paper's choice where the order conditions leave it free
    scale = h if solver_type == "bh1" else math.expm1(h)
    phi = math.expm1(h) / h - 1.0
    targets, factorial = [], 1
    for k in range(1, count + 1):
        targets.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / h - 1.0 / factorial
    powers = np.vander(np.array(ratios), count, increasing=True).T
    return np.linalg.solve(powers, np.array(targets))
