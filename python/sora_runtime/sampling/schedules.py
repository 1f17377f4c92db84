"""Noise schedules: the noise levels a sampler visits, computed ahead of time in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sora_runtime.errors import InvalidRequest

FloatArray = npt.NDArray[np.float64]
SigmaSpacing = Literal["timesteps", "karras", "exponential"]


class Level(NamedTuple):
    """One noise level: the network's sample there is ``alpha * x0 + sigma * noise``."""

    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """``lambda = log(alpha / sigma)`` as in DPM-Solver (arXiv:2206.00927); may be inf."""
        if self.alpha == 0.0:
            return -math.inf
        return math.inf if self.sigma == 0.0 else math.log(self.alpha) - math.log(self.sigma)


@dataclass(frozen=True)
class Schedule:
    """The levels of one trajectory.

    Attributes:
        kind: ``flow``: latents are ``(1 - s) x0 + s noise``. ``vp``: latents are
            ``alpha x0 + s alpha noise`` with ``alpha = 1 / sqrt(1 + s^2)``. ``ve``: latents are
            ``x0 + s noise`` and the network sees them times ``alpha``.
        sigmas: float64 [n + 1], the ``s`` above, descending; may start at inf (``vp`` only).
        timesteps: float64 [n], what the network is told, in training timesteps.
        landing: float64 [n], the ``s`` each step ends on; ``sigmas[1:]`` but for DDIM.
        initial_scale: the standard deviation of the first latents.
        num_train_timesteps: the length of the training schedule.
        name: for receipts and tables.
    """

    kind: Literal["flow", "vp", "ve"]
    sigmas: FloatArray
    timesteps: FloatArray
    landing: FloatArray
    initial_scale: float
    num_train_timesteps: int
    name: str

    def __post_init__(self) -> None:
        n = len(self.timesteps)
        assert self.sigmas.shape == (n + 1,) and self.landing.shape == (n,)

    def __len__(self) -> int:
        return len(self.timesteps)

    def level(self, sigma: float) -> Level:
        """Return the network's (alpha, sigma) at the table's value ``sigma``."""
        if self.kind == "flow":
            return Level(1.0 - sigma, sigma)
        if math.isinf(sigma):
            return Level(0.0, 1.0)
        return Level(1.0 / math.hypot(1.0, sigma), sigma / math.hypot(1.0, sigma))

    def levels(self) -> list[Level]:
        """Return the n + 1 levels of ``sigmas``."""
        return [self.level(float(sigma)) for sigma in self.sigmas]


def as_float32(values: npt.ArrayLike) -> FloatArray:
    """Round to float32, keep as float64.

    Tables are rounded where diffusers stores float32, because near pure noise the rounding is
    visible: 1 - 1e-6 becomes 1 - 1.0133e-6, which moves UniPC's first log-SNR by a percent.
    """
    return np.asarray(values, np.float64).astype(np.float32).astype(np.float64)


def flow_shift(sigmas: FloatArray, shift: float) -> FloatArray:
    """Shift flow sigmas towards noise: ``s x / (1 + (s - 1) x)`` (SD3, arXiv:2403.03206 eq. 23)."""
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas))


def stretch_to_terminal(sigmas: FloatArray, terminal: float) -> FloatArray:
    """Stretch flow sigmas so that the last one is ``terminal`` (LTX-Video, arXiv:2501.00103)."""
    if len(sigmas) < 2:
        raise InvalidRequest("shift_terminal cannot stretch 1 step; use num_inference_steps >= 2")
    remaining = 1.0 - sigmas
    # In this order the last value, 0.1 say, is rounded as in diffusers: UniPC truncates 1000 times
    # it to an integer timestep, 99 or 100.
    return np.asarray(1.0 - remaining / (remaining[-1] / (1.0 - terminal)))


def karras_sigmas(sigma_max: float, sigma_min: float, n: int, rho: float = 7.0) -> FloatArray:
    """Return n sigmas evenly spaced in ``sigma^(1/rho)`` (EDM, arXiv:2206.00364 eq. 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.asarray((high + np.linspace(0, 1, n) * (low - high)) ** rho)


def exponential_sigmas(sigma_max: float, sigma_min: float, n: int) -> FloatArray:
    """Return n sigmas evenly spaced in ``log sigma`` (k-diffusion's exponential schedule)."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), n))


def respace(sigmas: FloatArray, n: int, spacing: SigmaSpacing) -> FloatArray:
    """Return n sigmas between the first and the last of ``sigmas``, or ``sigmas`` themselves."""
    if spacing == "karras":
        return karras_sigmas(float(sigmas[0]), float(sigmas[-1]), n)
    if spacing == "exponential":
        return exponential_sigmas(float(sigmas[0]), float(sigmas[-1]), n)
    return sigmas


@dataclass(frozen=True)
class DynamicShift:
    """A flow shift that grows with the number of tokens (FLUX; cf. SD3, arXiv:2403.03206).

    ``mu`` is linear in the token count; the shift is ``exp(mu)`` (exponential) or ``mu`` (linear).
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"

    def factor(self, image_seq_len: int) -> float:
        """Return the factor to shift by for ``image_seq_len`` latent tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = image_seq_len * slope + (self.base_shift - slope * self.base_image_seq_len)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu


@dataclass(frozen=True)
class Betas:
    """The forward process of a variance-preserving model (DDPM, arXiv:2006.11239 eq. 2).

    ``snr_shift_scale`` divides the SNR (CogVideoX, arXiv:2408.06072); ``zero_terminal_snr`` is
    arXiv:2305.08891 algorithm 1; ``squaredcos_cap_v2`` is arXiv:2102.09672 eq. 17.
    """

    num_train_timesteps: int = 1000
    start: float = 0.0001
    end: float = 0.02
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    zero_terminal_snr: bool = False
    snr_shift_scale: float = 1.0

    def alphas_cumprod(self) -> FloatArray:
        """Return ``alpha_t^2`` for every training timestep, float64 [num_train_timesteps]."""
        n = self.num_train_timesteps
        if self.schedule == "linear":
            betas = np.linspace(self.start, self.end, n)
        elif self.schedule == "scaled_linear":
            betas = as_float32(np.linspace(self.start**0.5, self.end**0.5, n)) ** 2
        else:
            bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        product = np.cumprod(as_float32(1.0 - as_float32(betas)))
        product = product / (self.snr_shift_scale + (1 - self.snr_shift_scale) * product)
        if self.zero_terminal_snr:
            root = np.sqrt(product)
            product = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return np.asarray(product)


def uniform_sigmas(n: int) -> FloatArray:
    """Return ``1, (n-1)/n, ... 1/n``, what LTX-Video's and HunyuanVideo's pipelines start from."""
    return np.linspace(1.0, 1.0 / n, n)
