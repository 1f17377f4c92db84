"""Runs diffusers' schedulers in float64 on a nonlinear model, for programs to be compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from scheduler_configs import Config

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

IMAGE_SEQ_LEN = 2816
SHAPE = (1, 2, 3, 4, 5)
# diffusers keeps sigmas and alphas_cumprod in float32, and several schedulers round the latents to
# float32 in every step. 1e-5 is some hundred units of float32 rounding: what 50 steps accumulate.
TOLERANCE = 1e-5


def model(x: np.ndarray, timestep: float) -> np.ndarray:
    """A smooth nonlinear function of both arguments, so that a wrong history entry shows."""
    t = timestep / 1000
    return np.tanh(0.7 * x + 0.4 * np.sin(5 * t)) + 0.3 * x * np.cos(3 * t) - 0.2 * np.roll(x, 1, -1)


def scheduler_of(config: Config, steps: int | None = None, **levels: Any) -> Any:
    """With the steps of its own grid, or with given ``sigmas`` or ``timesteps``."""
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    mu: dict[str, float] = {}
    if config.get("use_dynamic_shifting"):
        base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        mu["mu"] = base + (IMAGE_SEQ_LEN - low) * (top - base) / (high - low)
    scheduler.set_timesteps(steps, **mu, **levels)
    return scheduler


def initial_noise() -> np.ndarray:
    return np.random.default_rng(7).standard_normal(SHAPE)


def step_noise(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(8).standard_normal((count, *SHAPE)))


def run_diffusers(scheduler: Any, **step_options: Any) -> np.ndarray:
    x = torch.from_numpy(initial_noise()) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    two_inputs = "CogVideoXDPM" in type(scheduler).__name__
    denoised, before = None, None
    for timestep in scheduler.timesteps:
        output = torch.from_numpy(model(scale(x, timestep).numpy(), float(timestep)))
        if two_inputs:
            x, denoised = scheduler.step(output, denoised, timestep, before, x, return_dict=False)
            before = timestep
        else:
            x = scheduler.step(output, timestep, x, return_dict=False, **step_options)[0]
    return np.asarray(x.double().numpy())


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@contextmanager
def given_noise(scheduler: Any, noise: Sequence[np.ndarray]) -> Iterator[None]:
    """One noise array a step, however often a scheduler draws within it."""
    step, current = scheduler.step, iter(noise)
    draw: list[Any] = []

    def step_with_new_noise(*args: Any, **kwargs: Any) -> Any:
        draw[:] = [torch.from_numpy(next(current))]
        return step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "step", step_with_new_noise)
        module = import_module(type(scheduler).__module__)
        patch.setattr(module, "randn_tensor", lambda *_, **__: draw[0])
        yield
