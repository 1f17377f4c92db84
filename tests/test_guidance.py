"""Guidance beyond a scale: the compiled loop against the papers' formulas in float64, and what a request says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prompts import PROMPT
from sora_runtime import GuidanceRule, InvalidRequest, Runtime
from sora_runtime.sampling import (
    Evaluation,
    FlowSchedule,
    Guidance,
    Heun,
    StepReuse,
    apply_reuse,
    compile_program,
    guidance_rule,
    run_reference,
)
from test_step_reuse import SHAPE, STEPS, WAN, check_against_reference, nonlinear, other, program_of, run_compiled

RULES = [
    GuidanceRule("cfg_zero_star"),
    GuidanceRule("apg", eta=0.0),
    GuidanceRule("apg", eta=0.3, momentum=-0.5),
    GuidanceRule("apg", eta=0.0, momentum=0.4, norm_threshold=6.0),
]


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method}-{rule.eta}-{rule.momentum}")
@pytest.mark.parametrize("solver", ["euler", "unipc", "heun"])
def test_compiled_equals_reference(solver: str, rule: GuidanceRule, rescale: float) -> None:
    check_against_reference(program_of(WAN, solver, Guidance(5.0, rescale=rescale, rule=rule)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method}-{rule.eta}-{rule.momentum}")
def test_with_two_engines_and_reuse(rule: GuidanceRule) -> None:
    """A running difference is of one engine; an estimated branch is guided as an evaluated one."""
    guidance = Guidance(4.0, boundary_ratio=0.75, scale_2=3.0, rule=rule, interval=(0.1, 0.95), decay=0.5)
    program = program_of(WAN, "unipc", guidance)
    check_against_reference(program)
    for reuse in (StepReuse("easycache", threshold=0.2), StepReuse("taylorseer", interval=3, order=1)):
        assert check_against_reference(apply_reuse(program, reuse)).skipped > 0


def test_apg_of_eta_1_is_plain_guidance() -> None:
    """Both parts of the difference count whole: c + (s - 1) (c - u) = u + s (c - u)."""
    noise = np.random.default_rng(2).standard_normal(SHAPE)
    plain = program_of(WAN, "euler", Guidance(5.0))
    projected = program_of(WAN, "euler", Guidance(5.0, rule=GuidanceRule("apg", eta=1.0)))
    a, b = (run_compiled(program, noise, [(nonlinear, other)])[0] for program in (plain, projected))
    assert np.linalg.norm(a - b) / np.linalg.norm(a) <= 2e-6
    assert plain.sha256 != projected.sha256


def test_apg_takes_out_what_lies_along_the_conditional_branch() -> None:
    """With c = w and u = -w all of the difference lies along c: at eta = 0 there is nothing left to guide with."""
    noise = np.random.default_rng(3).standard_normal(SHAPE)
    wave = np.sin(np.arange(noise.size)).reshape(SHAPE)
    models = [(lambda x, t: wave, lambda x, t: -wave)]
    unguided = program_of(WAN, "euler", Guidance(1.0))
    projected = program_of(WAN, "euler", Guidance(5.0, rule=GuidanceRule("apg")))
    a, b = (run_compiled(program, noise, models)[0] for program in (unguided, projected))
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_cfg_zero_star_scales_the_unconditional_branch_to_its_best_fit() -> None:
    """With u = 2 c the fit is exact, and any guidance gives c."""
    noise = np.random.default_rng(4).standard_normal(SHAPE)
    models = [(nonlinear, lambda x, t: 2 * nonlinear(x, t))]
    program = program_of(WAN, "euler", Guidance(7.0, rule=GuidanceRule("cfg_zero_star")))
    a, _ = run_compiled(program, noise, models)
    b, _ = run_compiled(program_of(WAN, "euler", Guidance(1.0)), noise, models)
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_threads_and_repeated_runs_change_no_bit() -> None:
    noise = np.random.default_rng(1).standard_normal((1, 16, 5, 60, 90))
    for rule in RULES:
        program = program_of(WAN, "unipc", Guidance(4.0, rescale=0.5, rule=rule), 6)
        one, many = (run_compiled(program, noise, [(nonlinear, other)], num_threads=n)[0] for n in (1, 7))
        assert np.array_equal(one, many)


@pytest.mark.parametrize("solver", ["euler", "unipc", "heun"])
def test_an_interval_guides_between_two_sigmas(solver: str) -> None:
    program = program_of(WAN, solver, Guidance(5.0, interval=(0.3, 0.8)))
    sigmas = program.rows["timestep"] / 1000  # to the rounding of a timestep
    inside = (sigmas >= 0.301) & (sigmas <= 0.799)
    outside = (sigmas < 0.299) | (sigmas > 0.801)
    assert inside.any() and outside.any()
    assert (program.rows["guidance_scale"][inside] == 5.0).all()
    assert (program.rows["guidance_scale"][outside] == 1.0).all()
    assert program.evaluations == len(program.rows) + int((program.rows["guidance_scale"] != 1.0).sum())
    check_against_reference(program)


def test_the_ends_of_an_interval_belong_to_it() -> None:
    schedule = FlowSchedule(custom_sigmas=(1.0, 0.75, 0.5, 0.25))
    program = compile_program(Heun(), schedule, 4, Guidance(5.0, interval=(0.5, 0.75)))
    expected = [1.0, 5.0, 5.0, 5.0, 5.0, 1.0, 1.0]  # Heun visits every sigma but the first twice
    assert program.rows["guidance_scale"].tolist() == expected


def test_decay_is_linear_and_ends_without_a_second_branch() -> None:
    rows = program_of(WAN, "euler", Guidance(5.0, decay=1.0)).rows
    np.testing.assert_allclose(rows["guidance_scale"], 1 + 4 * (1 - np.arange(STEPS) / (STEPS - 1)))
    half = program_of(WAN, "euler", Guidance(5.0, decay=0.5))
    assert half.rows["guidance_scale"][-1] == pytest.approx(3.0)
    assert half.evaluations == 2 * STEPS
    assert program_of(WAN, "euler", Guidance(5.0, decay=1.0)).evaluations == 2 * STEPS - 1


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++2m", "heun"])
def test_zero_init_asks_no_network(solver: str) -> None:
    program = program_of(WAN, solver, Guidance(5.0, zero_init_steps=2, rule=GuidanceRule("cfg_zero_star")))
    assert program.rows["evaluate"][:3].tolist() == [Evaluation.ZERO, Evaluation.ZERO, Evaluation.EVALUATE]
    assert program.evaluations == 2 * (len(program.rows) - 2)
    check_against_reference(program)
    noise = np.random.default_rng(5).standard_normal(SHAPE)
    zero = replace(program, rows=program.rows[:2])
    # A flow model that says 0 at first leaves an Euler solver where it is.
    if solver == "euler":
        np.testing.assert_array_equal(run_reference(zero, nonlinear, noise, unconditional=other), noise)
    # The first row with an output has nothing to reuse.
    for reuse in (StepReuse("taylorseer", interval=9, warm_up=1), StepReuse("unconditional", unconditional_every=9)):
        assert apply_reuse(program, reuse).rows["evaluate"][2] == Evaluation.EVALUATE
    # A rate of change takes two evaluations; the way before the first is none of it.
    done = check_against_reference(apply_reuse(program, StepReuse("easycache", threshold=9.0, warm_up=1))).done
    assert done[2:5] == [Evaluation.EVALUATE, Evaluation.EVALUATE, Evaluation.REUSE]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guidance(interval=(0.8, 0.2)), r"guidance_interval = \[0.8, 0.2\] is no range"),
        (lambda: Guidance(interval=(-0.1, 0.2)), "guidance_interval"),
        (lambda: Guidance(interval=(0.1, float("inf"))), "guidance_interval"),
        (lambda: Guidance(decay=1.5), "guidance_decay = 1.5 is outside 0 to 1"),
        (lambda: Guidance(zero_init_steps=-1), "zero_init_steps = -1"),
        (lambda: GuidanceRule("pag"), "guidance_method = 'pag' is unknown; use cfg, cfg_zero_star, apg"),
        (lambda: guidance_rule("pag"), "guidance_method = 'pag' is unknown"),
        (lambda: GuidanceRule("apg", momentum=1.0), "momentum = 1.0"),
        (lambda: GuidanceRule("apg", eta=float("nan")), "eta = nan"),
        (lambda: GuidanceRule("apg", norm_threshold=-1.0), "norm_threshold = -1.0"),
    ],
)
def test_what_means_nothing_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance_method": "pag"}, "guidance_method = 'pag' is unknown"),
        ({"guidance_method": 3}, "guidance_method is a int"),
        ({"guidance_interval": (0.2,)}, "is no pair of sigmas"),
        ({"guidance_interval": (0.2, float("nan"))}, "guidance_interval = nan is out of range"),
        ({"guidance_interval": "0.2,0.8"}, "is no pair of sigmas"),
        ({"guidance_decay": 2}, "guidance_decay = 2 is out of range"),
        ({"zero_init_steps": 1.5}, "zero_init_steps = 1.5 is no whole number"),
    ],
)
def test_bad_requests_are_refused(runtime: Runtime, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        runtime.generate(PROMPT, **fields)


def test_a_receipt_says_how_a_clip_was_guided(runtime: Runtime) -> None:
    plain = runtime.generate(PROMPT, seed=7, num_inference_steps=4)
    assert plain.receipt.request.guidance is None
    clip = runtime.generate(
        PROMPT, seed=7, num_inference_steps=4, guidance_method="apg", guidance_interval=[0.1, 0.9], guidance_decay=0.5
    )
    record = clip.receipt.request.guidance
    assert record is not None
    assert (record.method, record.interval, record.decay, record.momentum) == ("apg", (0.1, 0.9), 0.5, -0.5)
    assert clip.receipt.evaluations.made < 8
    star = runtime.generate(PROMPT, seed=7, num_inference_steps=4, guidance_method="cfg_zero_star")
    assert star.receipt.request.guidance is not None
    assert star.receipt.request.guidance.zero_init_steps == 1
    assert star.receipt.evaluations.made == 6
