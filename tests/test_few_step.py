"""Few steps on given levels, through the public API: what the sampler runs and what a bundle's defaults do."""

from dataclasses import replace

import numpy as np
import pytest

import sora_runtime as sora
from prompts import PROMPT
from sora_runtime.bundle import Bundle
from sora_runtime.manifest import FewStep
from sora_runtime.programs import Programs
from sora_runtime.request import resolve
from sora_runtime.sampling import SamplerProgram

FOUR = (1.0, 0.75, 0.5, 0.25)


def few_step_bundle(**facts: object) -> Bundle:
    """The shipped model as if its makers had distilled it: 4 steps, guidance-free."""
    bundle = Bundle.load("wan-pocket")
    manifest = bundle.manifest
    few = FewStep.model_validate({"sigmas": FOUR, "shift": 5.0, "solver": "euler", **facts})
    defaults = manifest.facts.defaults.model_copy(
        update={"num_inference_steps": len(few.sigmas), "guidance_scale": 1.0}
    )
    known = manifest.facts.model_copy(update={"few_step": few, "defaults": defaults})
    return replace(bundle, manifest=manifest.model_copy(update={"facts": known}))


def program(bundle: Bundle, **fields: object) -> SamplerProgram:
    return Programs(bundle)(resolve(PROMPT, fields, bundle.manifest))[0]


def warped(shift: float) -> list[float]:
    return [1000 * shift * s / (1 + (shift - 1) * s) for s in FOUR]


def test_given_sigmas_are_what_is_run_and_billed(runtime: sora.Runtime) -> None:
    settings = {"solver": "euler", "guidance_scale": 1.0, "seed": 3}
    clip = runtime.generate(PROMPT, sigmas=FOUR, **settings)
    assert clip.receipt.evaluations.made == 4 and len(clip.receipt.seconds.per_step) == 4
    # The model's shift is 3, so the same levels may be said as timesteps only where both are shifted alike.
    shifted = runtime.generate(PROMPT, timesteps=warped(3.0), **settings)
    plain = runtime.generate(PROMPT, num_inference_steps=4, **settings)
    assert not np.allclose(clip.latents, shifted.latents, rtol=1e-3)
    assert not np.allclose(clip.latents, plain.latents, rtol=1e-3)
    again = runtime.generate(PROMPT, sigmas=np.array(FOUR, np.float32), num_inference_steps=4, **settings)
    np.testing.assert_array_equal(clip.latents, again.latents)


def test_the_models_shift_applies_to_a_requests_sigmas() -> None:
    bundle = Bundle.load("wan-pocket")
    rows = program(bundle, sigmas=FOUR, solver="euler", guidance_scale=1.0).rows
    np.testing.assert_allclose(rows["timestep"], warped(3.0), rtol=1e-6)


def test_a_bundles_own_levels_are_its_defaults() -> None:
    made = program(few_step_bundle())
    np.testing.assert_allclose(made.rows["timestep"], warped(5.0), rtol=1e-6)
    assert (made.solver, made.evaluations, made.num_inference_steps) == ("euler", 4, 4)
    assert made.schedule == "flow, 4 given sigmas, shift 5"


@pytest.mark.parametrize(
    ("fields", "timesteps", "solver"),
    [
        ({"num_inference_steps": 4}, warped(5.0), "euler"),
        ({"solver": "lcm"}, warped(5.0), "lcm"),
        ({"sigmas": [1.0, 0.5]}, [1000, 5000 / 6], "euler"),
        ({"timesteps": [1000, 500]}, [1000, 500], "euler"),
        ({"num_inference_steps": 1}, [1000], "euler"),
    ],
)
def test_a_request_may_say_otherwise(fields: dict[str, object], timesteps: list[float], solver: str) -> None:
    made = program(few_step_bundle(), **fields)
    np.testing.assert_allclose(made.rows["timestep"], timesteps, rtol=1e-6)
    assert made.solver == solver


def test_other_steps_of_a_few_step_bundle_lie_on_its_shift() -> None:
    made = program(few_step_bundle(), num_inference_steps=8)
    assert len(made.rows) == 8 and made.schedule == "flow, shift 5"


def test_without_a_shift_of_its_own_the_schedulers_stays() -> None:
    made = program(few_step_bundle(shift=None, solver=None))
    assert made.solver == "unipc"
    np.testing.assert_array_equal(made.rows["timestep"], [999, 900, 750, 500])  # truncated, as UniPC has it


def test_every_setting_has_a_program_of_its_own() -> None:
    programs, bundle = Programs(few_step_bundle()), few_step_bundle()
    settings = [{}, {"sigmas": [1.0]}, {"timesteps": [1000]}, {"num_inference_steps": 8}, {"solver": "unipc"}]
    digests = {programs(resolve(PROMPT, fields, bundle.manifest))[0].sha256 for fields in settings}
    assert len(digests) == 4  # one step from pure noise is the same either way
