"""The exact denoiser of a Gaussian: a model with no weights whose every clip has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
AlphaSigma = Callable[[float], tuple[float, float]]


def flow_alpha_sigma(num_train_timesteps: int = 1000) -> AlphaSigma:
    """Return ``timestep -> (1 - s, s)`` with ``s = timestep / num_train_timesteps``."""
    return lambda timestep: (1 - timestep / num_train_timesteps, timestep / num_train_timesteps)


def variance_preserving_alpha_sigma(alphas_cumprod: npt.ArrayLike) -> AlphaSigma:
    """Return ``timestep -> (alpha, sigma)`` of a discrete model, linear in sigma/alpha between.

    Args:
        alphas_cumprod: ``alpha_t^2`` of every training timestep, [num_train_timesteps].
    """
    product = np.asarray(alphas_cumprod, np.float64)
    table = np.sqrt((1.0 - product) / product)

    def alpha_sigma(timestep: float) -> tuple[float, float]:
        sigma = float(np.interp(timestep, np.arange(len(table)), table))
        return 1.0 / float(np.hypot(1.0, sigma)), sigma / float(np.hypot(1.0, sigma))

    return alpha_sigma


@dataclass(frozen=True)
class GaussianDenoiser:
    """The optimal model for data N(mean, std^2), each element on its own.

    With ``x = alpha x0 + sigma noise`` and ``d = alpha^2 std^2 + sigma^2``:
    ``E[noise | x] = sigma (x - alpha mean) / d`` and
    ``E[x0 | x] = mean + alpha std^2 (x - alpha mean) / d``.

    Attributes:
        mean: data mean, a number or an array that broadcasts to the latents (an image, say).
        std: data standard deviation, likewise; 0 makes every trajectory end at ``mean``.
        prediction_type: what to return, in the names of diffusers: the flow velocity
            ``noise - x0``, ``epsilon``, ``v_prediction`` ``alpha noise - sigma x0``, or ``sample``.
        alpha_sigma: the level at a timestep.
    """

    mean: npt.ArrayLike
    std: npt.ArrayLike
    prediction_type: Literal["flow_prediction", "epsilon", "v_prediction", "sample"] = "flow_prediction"
    alpha_sigma: AlphaSigma = field(default_factory=flow_alpha_sigma)

    def __call__(self, latents: npt.ArrayLike, timestep: float) -> FloatArray:
        """Return the model output at ``latents``, float64, the shape of ``latents``."""
        alpha, sigma = self.alpha_sigma(timestep)
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        x = np.asarray(latents, np.float64)
        standardised = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        noise = sigma * standardised
        x0 = mean + alpha * std**2 * standardised
        outputs = {
            "flow_prediction": noise - x0,
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * x0,
            "sample": x0,
        }
        return np.asarray(outputs[self.prediction_type] + np.zeros_like(x))

    def solve(
        self,
        latents: npt.ArrayLike,
        start: tuple[float, float],
        end: tuple[float, float] = (1.0, 0.0),
    ) -> FloatArray:
        """Return the exact end of the probability-flow ODE (arXiv:2011.13456 eq. 13).

        The marginals are N(alpha mean, alpha^2 std^2 + sigma^2) and the flow between Gaussians
        keeps ``(x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)``.

        Args:
            latents: the sample at ``start``.
            start: (alpha, sigma) of ``latents``.
            end: (alpha, sigma) to go to; (1, 0) is the data.
        """
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        x = np.asarray(latents, np.float64)
        (alpha, sigma), (alpha_end, sigma_end) = start, end
        growth = np.sqrt((alpha_end**2 * std**2 + sigma_end**2) / (alpha**2 * std**2 + sigma**2))
        return np.asarray(alpha_end * mean + growth * (x - alpha * mean))
