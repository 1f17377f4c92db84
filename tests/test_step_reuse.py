"""Step reuse: the compiled loop against its float64 twin, over policies, solvers, guidance and two engines."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from sora_runtime import _core
from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling import (
    Evaluation,
    Guidance,
    SamplerProgram,
    StepReuse,
    apply_reuse,
    compile_program,
    read_scheduler_config,
    run_reference,
    with_solver,
)

WAN = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
}
EDM = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "linspace"}
SHAPE = (1, 4, 3, 10, 12)
STEPS = 16
ZEROS = np.zeros(SHAPE)
RATIOS = tuple(1.0 - 0.004 * i for i in range(2 * STEPS))

POLICIES = [
    StepReuse("plan", reused=(4, 5, 7, 9, 10, 12)),
    StepReuse("plan", reused=(5, 6, 9), order=2, residual=True),
    StepReuse("easycache", threshold=0.1),
    StepReuse("easycache", threshold=0.2, residual=True, most_in_a_row=2, unconditional_every=2),
    StepReuse("easycache", threshold=0.15, order=1),
    StepReuse("teacache", threshold=0.2, polynomial=(0.0, 1.2, -0.5, 0.0, 0.0)),
    StepReuse("taylorseer", interval=3, order=1),
    StepReuse("taylorseer", interval=4, order=2),
    StepReuse("unconditional", unconditional_every=3),
]


def nonlinear(x: np.ndarray, timestep: float) -> np.ndarray:
    return np.tanh(0.7 * x + 0.3) * (0.5 + timestep / 1500)


def other(x: np.ndarray, timestep: float) -> np.ndarray:
    return np.sin(x) * (0.4 + timestep / 2000)


class Counted:
    """Counts the calls of a model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls = 0

    def __call__(self, x: np.ndarray, timestep: float) -> np.ndarray:
        self.calls += 1
        return np.asarray(self.model(x, timestep))


def program_of(config: dict[str, Any], solver: str, guidance: Guidance, steps: int = STEPS) -> SamplerProgram:
    specification = read_scheduler_config(with_solver(config, solver))
    return compile_program(specification.solver, specification.schedule, steps, guidance)


def run_compiled(
    program: SamplerProgram, noise: np.ndarray, models: list[tuple[Any, Any]], num_threads: int = 2
) -> tuple[np.ndarray, Any]:
    """Latents and statistics; `models` holds a conditional and an unconditional one for each engine."""
    latents = (noise * program.initial_scale).astype(np.float32)
    model_input = np.empty_like(latents)
    outputs = [np.full_like(latents, np.nan) for _ in range(2)]

    def denoiser(_row: int, engine: int, timestep: float, unconditional: bool) -> None:
        outputs[unconditional][...] = models[engine][unconditional](model_input.astype(np.float64), timestep)

    sampler = _core.Sampler(
        program.rows,
        latents,
        model_input=model_input,
        conditional=outputs[0],
        unconditional=outputs[1],
        num_threads=num_threads,
        reuse=_core.StepReuse(**asdict(program.reuse)),
        guidance=_core.GuidanceRule(**asdict(program.guidance)),
    )
    statistics = sampler.run(denoiser, noise=_core.NoiseGenerator(5))
    return latents, statistics


def check_against_reference(program: SamplerProgram) -> Any:
    """The compiled latents and calls are those of the reference; returns the statistics."""
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    experts = [(nonlinear, other), (other, nonlinear)]
    compiled, statistics = run_compiled(program, noise, experts)
    conditional, unconditional = ([Counted(expert[branch]) for expert in experts] for branch in (0, 1))
    draws = [_core.NoiseGenerator(5).normal(SHAPE)] * int(np.count_nonzero(program.rows["noise"]))
    reference = run_reference(program, conditional, noise * program.initial_scale, draws, unconditional)
    # float32 keeps 6e-8 a rounding; a Taylor series of second order amplifies it by up to 20 a row.
    assert np.linalg.norm(compiled - reference) / np.linalg.norm(reference) <= 5e-5
    assert statistics.evaluations == sum(model.calls for model in (*conditional, *unconditional))
    assert statistics.evaluations + statistics.skipped == program.all_evaluations
    return statistics


@pytest.mark.parametrize("reuse", POLICIES, ids=lambda reuse: f"{reuse.policy}-{reuse.order}-{reuse.residual:d}")
@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(5.0), Guidance(6.0, rescale=0.7)], ids=["1", "5", "6r"])
@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++2m", "heun"])
def test_compiled_equals_reference(solver: str, guidance: Guidance, reuse: StepReuse) -> None:
    program = apply_reuse(program_of(WAN, solver, guidance), reuse)
    statistics = check_against_reference(program)
    if reuse.policy != "unconditional" or guidance.scale != 1.0:
        assert statistics.skipped > 0
    if program.reuse.criterion == "none":
        assert statistics.evaluations == program.evaluations
        assert statistics.done == program.rows["evaluate"].tolist()
    assert statistics.done[0] == statistics.done[-1] == Evaluation.EVALUATE


@pytest.mark.parametrize("reuse", POLICIES, ids=lambda reuse: f"{reuse.policy}-{reuse.order}-{reuse.residual:d}")
def test_a_scaled_input_is_what_counts(reuse: StepReuse) -> None:
    """Of a model in EDM's scaling the network reads the latents over sqrt(1 + sigma^2)."""
    check_against_reference(apply_reuse(program_of(EDM, "euler", Guidance(3.0)), reuse))


@pytest.mark.parametrize(
    "reuse",
    [
        StepReuse("easycache", threshold=10.0),
        StepReuse("taylorseer", interval=5, order=1),
        StepReuse("magcache", threshold=10.0, ratios=RATIOS[:STEPS]),
        StepReuse("unconditional", unconditional_every=5),
    ],
    ids=lambda reuse: reuse.policy,
)
def test_nothing_is_carried_over_a_change_of_engine(reuse: StepReuse) -> None:
    guidance = Guidance(4.0, boundary_ratio=0.75, scale_2=3.0)
    program = apply_reuse(program_of(WAN, "unipc", guidance), reuse)
    second = int(np.argmax(program.rows["engine"] == 1))
    assert 3 < second < STEPS - 3
    statistics = check_against_reference(program)
    assert statistics.done[second] == Evaluation.EVALUATE
    assert {int(Evaluation.REUSE), int(Evaluation.CONDITIONAL)} & set(statistics.done[second:])


def test_guidance_that_begins_late_evaluates_its_branch_first() -> None:
    program = program_of(WAN, "euler", Guidance(4.0, boundary_ratio=0.0))
    rows = program.rows.copy()
    rows["guidance_scale"][:8] = 1.0
    program = apply_reuse(replace(program, rows=rows), StepReuse("easycache", threshold=10.0, warm_up=2))
    statistics = check_against_reference(program)
    assert statistics.done[7:10] == [Evaluation.REUSE, Evaluation.EVALUATE, Evaluation.REUSE]


def test_magcache_sums_the_error_of_its_curve() -> None:
    """Ratios of 0.99: skipping one, two, three rows errs by 1, 1.99 and 2.9701 percent, 5.96 in all."""
    program = program_of(WAN, "euler", Guidance(1.0))
    for threshold, limit, skipped in ((0.0101, 0, 1), (0.03, 0, 2), (0.06, 0, 3), (0.06, 2, 2)):
        reuse = StepReuse("magcache", threshold=threshold, most_in_a_row=limit, ratios=(0.99,) * STEPS, warm_up=3)
        marked = apply_reuse(program, reuse).rows["evaluate"]
        expected = [3 <= i < STEPS - 1 and (i - 3) % (skipped + 1) < skipped for i in range(STEPS)]
        assert (marked == Evaluation.REUSE).tolist() == expected


def test_a_taylor_series_has_its_remainder() -> None:
    """Outputs n and n^2 of row n, every second row reused; with Euler the latents sum what the outputs miss.

    Order 1 is exact for n. For n^2 with gaps of 2 it misses k (k + 2) = 3 a row, and the term of order 2 brings
    k^2 / 2 times the second difference 2, so 2 are left: of the papers' series, not of an interpolation.
    """
    program = program_of(WAN, "euler", Guidance(1.0))
    numbers = {float(row["timestep"]): i for i, row in enumerate(program.rows)}

    def error(order: int, power: int) -> float:
        def model(x: np.ndarray, timestep: float) -> np.ndarray:
            return np.full_like(x, float(numbers[timestep] ** power))

        # The warm-up ends where three evaluations lie two rows apart.
        reused = apply_reuse(program, StepReuse("plan", reused=(1, 3, 5, 7, 9, 11, 13), order=order))
        rows = reused.rows.copy()
        rows["output"][:5] = 0.0
        exact = run_reference(replace(program, rows=np.where(np.arange(STEPS) < 5, rows, program.rows)), model, ZEROS)
        found, _ = run_compiled(replace(reused, rows=rows), ZEROS, [(model, model)])
        return float(np.abs(found - exact).max())

    assert error(0, 1) > 0.01
    assert error(1, 1) <= 1e-6
    assert error(2, 2) == pytest.approx(error(1, 2) * 2 / 3, rel=1e-4)


def test_threads_and_repeated_runs_change_no_bit() -> None:
    noise = np.random.default_rng(1).standard_normal((1, 16, 5, 60, 90))
    for reuse in POLICIES:
        program = apply_reuse(program_of(WAN, "unipc", Guidance(4.0, rescale=0.5), 12), replace(reuse, reused=(5, 6)))
        one, first = run_compiled(program, noise, [(nonlinear, other)], num_threads=1)
        many, second = run_compiled(program, noise, [(nonlinear, other)], num_threads=7)
        assert np.array_equal(one, many)
        assert np.array_equal(first.norms, second.norms)


def test_measuring_alone_changes_no_bit() -> None:
    program = program_of(WAN, "unipc", Guidance(4.0))
    noise = np.random.default_rng(1).standard_normal(SHAPE)
    plain, _ = run_compiled(program, noise, [(nonlinear, other)])
    measured, statistics = run_compiled(apply_reuse(program, StepReuse("easycache")), noise, [(nonlinear, other)])
    assert np.array_equal(plain, measured)
    assert len(statistics.norms) == STEPS
    assert statistics.skipped == 0


def test_a_program_knows_its_plan_and_a_receipt_can_tell_it_apart() -> None:
    program = program_of(WAN, "euler", Guidance(4.0))
    planned = apply_reuse(program, StepReuse("plan", reused=(5, 6, 7)))
    assert planned.evaluations == program.evaluations - 6
    adaptive = apply_reuse(program, StepReuse("easycache", threshold=0.1))
    digests = {each.sha256 for each in (program, planned, adaptive, apply_reuse(program, StepReuse("easycache")))}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepReuse("blockcache"), "step_reuse = 'blockcache' is unknown; use plan, easycache"),
        (lambda: StepReuse("easycache", threshold=float("nan")), "reuse_threshold = nan"),
        (lambda: StepReuse("easycache", threshold=-1.0), "reuse_threshold = -1"),
        (lambda: StepReuse("easycache", order=3), "order = 3"),
        (lambda: StepReuse("easycache", warm_up=0), "warm_up = 0"),
        (lambda: StepReuse("taylorseer", interval=0), "interval = 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make()


@pytest.mark.parametrize(
    ("reuse", "message"),
    [
        (StepReuse("plan", reused=(0,)), "row 0 of euler on .* reuses an output that no row before it evaluated"),
        (StepReuse("plan", reused=(99,)), "row 99 of the plan is none of the program's; use 0 to 15"),
        (StepReuse("magcache", ratios=(1.0,) * 3), "magcache has 3 ratios for 16 rows"),
    ],
)
def test_policies_that_do_not_fit_the_program_are_refused(reuse: StepReuse, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        apply_reuse(program_of(WAN, "euler", Guidance(4.0)), reuse)
