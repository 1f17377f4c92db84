"""Guidance: how strong at which step, and how the two branches make one output.

Scale, interval, decay and zero-init become numbers in the rows of a program; a ``GuidanceRule`` stands beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.schedules import FloatArray

GuidanceMethod = Literal["cfg", "cfg_zero_star", "apg"]
GUIDANCE_METHODS = ("cfg", "cfg_zero_star", "apg")


@dataclass(frozen=True)
class GuidanceRule:
    """How the conditional output c and the unconditional u of a guided row make its output.

    Attributes:
        method: ``cfg`` is ``u + s (c - u)`` (arXiv:2207.12598). ``cfg_zero_star`` scales u by <c, u> / <u, u> first
            (CFG-Zero*, arXiv:2503.18886). ``apg`` is ``c + (s - 1) (d_orthogonal + eta d_parallel)``, d the
            difference ``c - u`` split along c (adaptive projected guidance, arXiv:2410.02416; the paper splits
            the predictions of the data, this the network's outputs, as diffusers' guider does).
        eta: of apg: what the part along c counts; 1 is cfg.
        momentum: of apg: ``d = c - u + momentum * d of the row before``; the paper's are negative.
        norm_threshold: of apg: the greatest L2 length of d over the clip; 0 is no limit.
    """

    method: GuidanceMethod = "cfg"
    eta: float = 0.0
    momentum: float = 0.0
    norm_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in GUIDANCE_METHODS:
            raise InvalidRequest(f"guidance_method = '{self.method}' is unknown; use {', '.join(GUIDANCE_METHODS)}")
        if not (math.isfinite(self.eta) and math.isfinite(self.momentum) and abs(self.momentum) < 1.0):
            raise InvalidRequest(
                f"eta = {self.eta} and momentum = {self.momentum} of apg are no finite numbers with a momentum "
                "inside -1 to 1; use 0 and -0.5"
            )
        if not (math.isfinite(self.norm_threshold) and self.norm_threshold >= 0.0):
            raise InvalidRequest(f"norm_threshold = {self.norm_threshold} of apg is no length; use 0 for no limit")


def guidance_rule(method: str) -> GuidanceRule:
    """The rule of a name; apg with the momentum and the eta of its paper (table 2) and no limit of length.

    Raises:
        InvalidRequest: the name is unknown.
    """
    if method not in GUIDANCE_METHODS:
        raise InvalidRequest(f"guidance_method = '{method}' is unknown; use {', '.join(GUIDANCE_METHODS)}")
    if method == "apg":
        return GuidanceRule("apg", eta=0.0, momentum=-0.5)
    return GuidanceRule("cfg_zero_star") if method == "cfg_zero_star" else GuidanceRule()


@dataclass(frozen=True)
class Guidance:
    """Guidance of every row and, for two-stage models, which engine runs.

    Attributes:
        scale: 1 evaluates the conditional branch only.
        rescale: phi of arXiv:2305.08891 eq. 16, 0 to 1; 0 is off.
        boundary_ratio: engine 0 runs where ``timestep >= boundary_ratio * num_train_timesteps``,
            engine 1 below (Wan 2.2 A14B); None: one engine.
        scale_2: guidance scale of engine 1; None: ``scale``.
        interval: guidance between these sigmas of the schedule alone, the lower one first
            (arXiv:2404.07724); the other rows make one evaluation. None: everywhere.
        decay: how much of ``scale - 1`` is gone by the last row, 0 to 1, linearly in the rows (a weight
            schedule of arXiv:2404.13040, falling); where nothing is left, one evaluation is saved.
        zero_init_steps: the output of so many rows at the beginning is 0 and the network is not asked
            (zero-init of CFG-Zero*, arXiv:2503.18886).
        rule: how the branches make one output.
    """

    scale: float = 1.0
    rescale: float = 0.0
    boundary_ratio: float | None = None
    scale_2: float | None = None
    interval: tuple[float, float] | None = None
    decay: float = 0.0
    zero_init_steps: int = 0
    rule: GuidanceRule = GuidanceRule()

    def __post_init__(self) -> None:
        for name, value in (("guidance_scale", self.scale), ("guidance_scale_2", self.scale_2)):
            if value is not None and not math.isfinite(value):
                raise InvalidRequest(f"{name} = {value} is not finite; use 1 for no guidance")
        for name, value in (("guidance_rescale", self.rescale), ("guidance_decay", self.decay)):
            if not 0.0 <= value <= 1.0:
                raise InvalidRequest(f"{name} = {value} is outside 0 to 1; use 0 to turn it off")
        if self.boundary_ratio is None and self.scale_2 is not None:
            raise InvalidRequest(
                f"guidance_scale_2 = {self.scale_2} needs a model with two transformers; "
                "leave it out where boundary_ratio is not set"
            )
        if self.boundary_ratio is not None and not 0.0 <= self.boundary_ratio <= 1.0:
            raise InvalidRequest(
                f"boundary_ratio = {self.boundary_ratio} is outside 0 to 1; use the model's own, such as 0.875"
            )
        if self.interval is not None and not 0.0 <= self.interval[0] < self.interval[1] < math.inf:
            raise InvalidRequest(
                f"guidance_interval = {list(self.interval)} is no range of sigmas; use a lower and a higher one, "
                "such as [0.2, 0.8]"
            )
        if self.zero_init_steps < 0:
            raise InvalidRequest(f"zero_init_steps = {self.zero_init_steps} is negative; use 0 for none")

    @property
    def shaped(self) -> bool:
        """Whether anything but the scale says how the branches are joined."""
        return self.interval is not None or self.decay != 0.0 or self.rule != GuidanceRule()

    def engine_and_scale(self, timestep: float, num_train_timesteps: int) -> tuple[int, float]:
        """Return the engine that runs at ``timestep`` and its guidance scale."""
        if self.boundary_ratio is None or timestep >= self.boundary_ratio * num_train_timesteps:
            return 0, self.scale
        return 1, self.scale if self.scale_2 is None else self.scale_2

    def weakened(self, scale: float, sigma: float, progress: float) -> float:
        """What is left of a row's ``scale`` at ``sigma`` when ``progress`` of the rows, 0 to 1, lies behind."""
        if self.interval is not None and not self.interval[0] <= sigma <= self.interval[1]:
            return 1.0
        left = 1.0 - self.decay * progress
        return scale if self.decay == 0.0 else 1.0 + (scale - 1.0) * left


def guided_output(rule: GuidanceRule, row: Any, c: FloatArray, u: FloatArray, difference: FloatArray) -> FloatArray:
    """A row's output from both branches in float64, with its rescale.

    Args:
        rule: how.
        row: of the program.
        c: the conditional output.
        u: the unconditional one.
        difference: the running difference d of apg, this row's already.
    """
    scale, phi = row["guidance_scale"], row["guidance_rescale"]
    if rule.method == "apg":
        length = float(np.linalg.norm(difference))
        limited = difference * min(1.0, rule.norm_threshold / length) if rule.norm_threshold > 0.0 else difference
        parallel = c * (np.sum(limited * c) / np.sum(c * c))
        g = c + (scale - 1.0) * (limited - parallel + rule.eta * parallel)
    else:
        if rule.method == "cfg_zero_star":
            u = u * (np.sum(c * u) / np.sum(u * u))
        g = u + scale * (c - u)
    if phi > 0.0:
        g = g * (phi * np.std(c) / np.std(g) + 1.0 - phi)
    return np.asarray(g)
