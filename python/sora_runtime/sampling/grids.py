"""Which levels of a model's noise schedule a sampler visits: the records that build a Schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.schedules import (
    Betas,
    DynamicShift,
    FloatArray,
    Schedule,
    SigmaSpacing,
    as_float32,
    flow_shift,
    respace,
    stretch_to_terminal,
    uniform_sigmas,
)

TimestepSpacing = Literal["linspace", "leading", "trailing"]
# Half precision's smallest positive number; the first sigma of a zero-SNR model becomes 4096.
_SMALLEST_ALPHAS_CUMPROD = 2.0**-24


def _check_steps(num_inference_steps: int, most: int, what: str) -> None:
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise InvalidRequest(f"num_inference_steps = {num_inference_steps!r} is not an integer; use 1 to {most}")
    if not 1 <= num_inference_steps <= most:
        raise InvalidRequest(
            f"num_inference_steps = {num_inference_steps} is outside 1 to {most} ({what}); choose a value in that range"
        )


def _check_descending(schedule: Schedule) -> Schedule:
    visited = schedule.sigmas[:-1]
    if np.any(visited[1:] >= visited[:-1]) or schedule.sigmas[-1] > visited[-1]:
        raise InvalidRequest(
            f"num_inference_steps = {len(schedule)} visits a noise level of {schedule.name} twice; use fewer steps"
        )
    return schedule


def _checked_levels(what: str, values: tuple[float, ...], n: int, ends: tuple[float, float]) -> FloatArray:
    """The given levels of ``n`` steps: descending, above the first of ``ends`` and at most the second."""
    levels, (low, high) = np.array(values, np.float64), ends
    if len(levels) != n:
        raise InvalidRequest(
            f"{len(levels)} custom {what} do not make num_inference_steps = {n}; give {n}, without the final 0"
        )
    in_range = bool(np.all((levels > low) & (levels <= high)))  # False for NaN too
    if not in_range or np.any(levels[1:] >= levels[:-1]):
        raise InvalidRequest(
            f"custom {what} {levels.tolist()} do not descend within ({low:g}, {high:g}]; "
            "order them from noise to data, without the final 0"
        )
    return levels


@dataclass(frozen=True)
class FlowSchedule:
    """The levels of a flow-matching model (rectified flow, arXiv:2209.03003).

    Attributes:
        shift: static shift; ignored when ``dynamic_shift`` is set.
        dynamic_shift: shift from the number of latent tokens.
        shift_terminal: the last sigma the network sees, before the final 0.
        spacing: respace between the first and the last sigma.
        grid: the sigmas before the shift. ``flow_match``: 1 to the smallest trained one inclusive
            (FlowMatchEulerDiscreteScheduler, whose smallest is itself already shifted);
            ``uniform``: 1 to 1/n (LTX-Video's and HunyuanVideo's pipelines); ``unipc`` and ``dpm``:
            n + 1 points of which the smallest is replaced by 0 (those schedulers).
        custom_sigmas: replaces ``grid``; descending, in (0, 1], without the final 0; shifted too.
        custom_timesteps: replaces ``grid`` and what the network is told: it is told these numbers as they are,
            while the sigmas, ``timesteps / num_train_timesteps``, are shifted (as diffusers does; give shifted
            levels as ``custom_sigmas`` with a shift of 1 where the two are to agree).
        max_sigma: clamp of the first sigma; UniPC needs less than 1 for a finite log-SNR.
        integer_timesteps: truncate what the network is told (UniPC and DPM-Solver of diffusers).
        num_train_timesteps: scale from sigma to timestep.
    """

    shift: float = 1.0
    dynamic_shift: DynamicShift | None = None
    shift_terminal: float | None = None
    spacing: SigmaSpacing = "timesteps"
    grid: Literal["flow_match", "uniform", "unipc", "dpm"] = "flow_match"
    custom_sigmas: tuple[float, ...] | None = None
    custom_timesteps: tuple[float, ...] | None = None
    max_sigma: float = 1.0
    integer_timesteps: bool = False
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if not 0.0 < self.shift < math.inf:
            raise InvalidRequest(f"shift = {self.shift} is not positive; use 1 for no shift")
        if self.custom_sigmas is not None and self.custom_timesteps is not None:
            raise InvalidRequest("sigmas and timesteps are both given; give one of them")

    def build(self, num_inference_steps: int, image_seq_len: int | None = None) -> Schedule:
        """Return the schedule of ``num_inference_steps`` steps.

        Args:
            num_inference_steps: solver steps.
            image_seq_len: latent tokens of the clip; needed by ``dynamic_shift`` only.

        Raises:
            InvalidRequest: the steps, custom sigmas or a missing ``image_seq_len``.
        """
        n = num_inference_steps
        _check_steps(n, self.num_train_timesteps, "num_train_timesteps")
        shift, sigmas = self._shift(image_seq_len), self._unshifted(n)
        if self.dynamic_shift is None:
            sigmas = flow_shift(sigmas, shift)
        else:  # the same function, rounded as in diffusers for truncated timesteps
            sigmas = shift / (shift + (1.0 / sigmas - 1.0))
        if self.shift_terminal:
            sigmas = stretch_to_terminal(sigmas, self.shift_terminal)
        sigmas = respace(sigmas, n, self.spacing).copy()
        sigmas[0] = min(sigmas[0], self.max_sigma)
        timesteps = self._told(sigmas)
        sigmas = as_float32([*sigmas, 0.0])
        return _check_descending(
            Schedule(
                kind="flow",
                sigmas=sigmas,
                timesteps=timesteps,
                landing=sigmas[1:],
                initial_scale=1.0,
                num_train_timesteps=self.num_train_timesteps,
                name=f"flow, {self._grid_name(n)}shift {shift:g}",
            )
        )

    def _told(self, sigmas: FloatArray) -> FloatArray:
        """The timesteps at the shifted ``sigmas``."""
        given = self.custom_timesteps
        timesteps = sigmas * self.num_train_timesteps if given is None else np.array(given, np.float64)
        if self.integer_timesteps:
            return np.trunc(timesteps)
        return as_float32(timesteps if given is not None else as_float32(sigmas) * self.num_train_timesteps)

    def _grid_name(self, n: int) -> str:
        if self.custom_sigmas is None and self.custom_timesteps is None:
            return ""
        return f"{n} given {'timesteps' if self.custom_sigmas is None else 'sigmas'}, "

    def _shift(self, image_seq_len: int | None) -> float:
        if self.dynamic_shift is None:
            return self.shift
        if image_seq_len is None:
            raise InvalidRequest("use_dynamic_shifting needs the number of latent tokens; pass image_seq_len")
        return self.dynamic_shift.factor(image_seq_len)

    def _unshifted(self, n: int) -> FloatArray:
        if self.custom_sigmas is not None:
            return _checked_levels("sigmas", self.custom_sigmas, n, (0.0, 1.0))
        if self.custom_timesteps is not None:
            total = float(self.num_train_timesteps)
            return _checked_levels("timesteps", self.custom_timesteps, n, (0.0, total)) / total
        smallest = 1.0 / self.num_train_timesteps
        if self.grid == "uniform":
            return uniform_sigmas(n)
        if self.grid == "unipc":
            return np.linspace(1.0, smallest, n + 1)[:-1]
        if self.grid == "dpm":
            return (1.0 - np.linspace(1.0, smallest, n + 1))[:0:-1]
        if self.dynamic_shift is None:
            smallest = float(as_float32(flow_shift(np.array(smallest), self.shift)))
        return np.linspace(1.0, smallest, n)


@dataclass(frozen=True)
class DiffusionSchedule:
    """The levels of a variance-preserving diffusion model.

    Attributes:
        betas: the model's forward process.
        grid: how many timesteps are laid out and in whose coordinates the latents live.
            ``ddim``: n integer timesteps; a step lands ``num_train_timesteps // n`` below its start
            even where the next timestep is elsewhere, as in diffusers. ``k_diffusion``: n real
            timesteps, latents not scaled down by alpha (``ve``). ``multistep``: n + 1 integer
            timesteps, the last replaced by ``final_sigma``. ``lcm``: n of the
            ``original_inference_steps`` timesteps that the model was distilled on.
        timestep_spacing: arXiv:2305.08891 table 2.
        steps_offset: added to ``leading`` timesteps.
        spacing: respace the sigmas; timesteps follow by interpolation in log sigma.
        final_sigma: 0, or that of training timestep 0.
        original_inference_steps: for ``lcm``.
        custom_timesteps: replaces the spacing; descending, 0 to num_train_timesteps - 1. Not for ``ddim``, whose
            steps land a fixed distance below where they start.
    """

    betas: Betas = field(default_factory=Betas)
    grid: Literal["ddim", "k_diffusion", "multistep", "lcm"] = "multistep"
    timestep_spacing: TimestepSpacing = "linspace"
    steps_offset: int = 0
    spacing: SigmaSpacing = "timesteps"
    final_sigma: Literal["zero", "sigma_min"] = "zero"
    original_inference_steps: int = 50
    custom_timesteps: tuple[float, ...] | None = None

    @property
    def num_train_timesteps(self) -> int:
        """Length of the training schedule."""
        return self.betas.num_train_timesteps

    def build(self, num_inference_steps: int, image_seq_len: int | None = None) -> Schedule:
        """Return the schedule of ``num_inference_steps`` steps; ``image_seq_len`` is not used.

        Raises:
            InvalidRequest: more steps than the training (or distillation) schedule has.
        """
        n, total = num_inference_steps, self.num_train_timesteps
        if self.grid == "lcm":
            _check_steps(n, self.original_inference_steps, "original_inference_steps")
        _check_steps(n, total, "num_train_timesteps")
        table = self._sigma_table()
        timesteps = self._timesteps(n)
        sigmas = self._interpolate(table, timesteps)
        if self.spacing != "timesteps":
            sigmas = respace(table[::-1] if self.grid == "multistep" else sigmas, n, self.spacing)
            timesteps = np.interp(np.log(sigmas), as_float32(np.log(table)), np.arange(total))
            if self.grid == "multistep":
                timesteps = np.round(timesteps) if self.spacing == "karras" else np.trunc(timesteps)
        final = 0.0 if self.final_sigma == "zero" else table[0]
        sigmas = as_float32([*sigmas, final])
        landing = sigmas[1:]
        if self.grid == "ddim":
            previous = timesteps.astype(np.int64) - total // n
            landing = as_float32([table[t] if t >= 0 else final for t in previous])
        return _check_descending(
            Schedule(
                kind="ve" if self.grid == "k_diffusion" else "vp",
                sigmas=sigmas,
                timesteps=as_float32(timesteps),
                landing=landing,
                initial_scale=self._initial_scale(float(sigmas[0])),
                num_train_timesteps=total,
                name=f"{self.betas.schedule}, "
                + (self.timestep_spacing if self.custom_timesteps is None else f"{n} given timesteps"),
            )
        )

    def _sigma_table(self) -> FloatArray:
        product = as_float32(self.betas.alphas_cumprod())
        if self.betas.zero_terminal_snr and self.grid in ("multistep", "k_diffusion"):
            product = np.maximum(product, _SMALLEST_ALPHAS_CUMPROD)
        with np.errstate(divide="ignore"):
            return as_float32(np.sqrt((1.0 - product) / product))

    def _interpolate(self, table: FloatArray, timesteps: FloatArray) -> FloatArray:
        if self.grid == "k_diffusion":
            return np.interp(timesteps, np.arange(len(table)), table)
        indices = np.minimum(timesteps.astype(np.int64), len(table) - 1)
        return np.asarray(table[indices])

    def _given_timesteps(self, given: tuple[float, ...], n: int) -> FloatArray:
        if self.grid == "ddim" or self.spacing != "timesteps":
            why = "ddim" if self.grid == "ddim" else f"{self.spacing} sigmas"
            raise InvalidRequest(f"timesteps cannot be given to {why}; use solver lcm, or num_inference_steps instead")
        # Timestep 0 is a level here, unlike in flow matching.
        levels = _checked_levels("timesteps", given, n, (-1.0, self.num_train_timesteps - 1.0))
        if self.grid != "k_diffusion" and np.any(levels != np.trunc(levels)):
            raise InvalidRequest(f"timesteps {levels.tolist()} are not whole numbers; this model knows whole ones only")
        return levels

    def _timesteps(self, n: int) -> FloatArray:
        total = self.num_train_timesteps
        if self.custom_timesteps is not None:
            return self._given_timesteps(self.custom_timesteps, n)
        if self.grid == "lcm":
            original = self.original_inference_steps
            trained = np.arange(1, original + 1) * (total // original) - 1
            chosen = np.floor(np.linspace(0, original, n, endpoint=False)).astype(np.int64)
            return np.asarray(trained[::-1][chosen], np.float64)
        if self.timestep_spacing == "trailing":
            # np.arange may add a point past the end (61 of 1000), which is not a step.
            return np.asarray(np.round(np.arange(total, 0, -total / n))[:n] - 1.0)
        points = n + 1 if self.grid == "multistep" else n
        if self.timestep_spacing == "leading":
            timesteps = np.arange(points) * float(total // points) + self.steps_offset
        else:
            exact = np.linspace(0, total - 1, points)
            timesteps = as_float32(exact) if self.grid == "k_diffusion" else np.round(exact)
        return np.asarray(timesteps[::-1][:n])

    def _initial_scale(self, sigma_max: float) -> float:
        if self.grid != "k_diffusion":
            return 1.0
        return math.hypot(1.0, sigma_max) if self.timestep_spacing == "leading" else sigma_max
