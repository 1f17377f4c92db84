"""The table itself: layout, meaning of each column, rules, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling import (
    DDIM,
    LCM,
    ROW_DTYPE,
    Betas,
    DiffusionSchedule,
    DPMSolverPP,
    DynamicShift,
    Euler,
    FlowSchedule,
    Guidance,
    Heun,
    SamplerProgram,
    UniPC,
    compile_program,
    run_reference,
)

LATENTS = np.random.default_rng(3).standard_normal((2, 3, 4))
UNIPC_FLOW = FlowSchedule(grid="unipc", max_sigma=1 - 1e-6, integer_timesteps=True)


def program_of(**columns: Any) -> SamplerProgram:
    """Rows given by column; a row that says nothing keeps the latents and calls engine 0."""
    count = max(len(values) for values in columns.values())
    rows = np.zeros(count, ROW_DTYPE)
    for name, value in {"evaluate": 1, "input_scale": 1.0, "guidance_scale": 1.0}.items():
        rows[name] = value
    rows["latents"] = 1.0
    for name, values in columns.items():
        rows[name] = values
    return SamplerProgram(rows, 1.0, count, "test", "test")


def test_row_layout_is_what_the_core_reads() -> None:
    assert ROW_DTYPE.itemsize == 112
    offsets = {name: ROW_DTYPE.fields[name][1] for name in ROW_DTYPE.names or ()}
    assert offsets == {
        "engine": 0,
        "evaluate": 4,
        "timestep": 8,
        "input_scale": 16,
        "guidance_scale": 24,
        "guidance_rescale": 32,
        "latents": 40,
        "output": 48,
        "history": 56,
        "noise": 88,
        "store_latents": 96,
        "store_output": 104,
    }


def test_reference_applies_every_column() -> None:
    history = np.zeros((3, 4))
    history[2] = [0.5, -2.0, 0.0, 0.0]
    program = program_of(
        timestep=[900.0, 500.0, 100.0],
        input_scale=[0.5, 1.0, 2.0],
        latents=[0.9, 0.8, 0.7],
        output=[0.1, -0.2, 0.3],
        history=history,
        noise=[0.0, 0.25, 0.0],
        store_latents=[1.0, 0.0, 0.0],
        store_output=[-0.5, 3.0, 0.0],
    )
    z = np.random.default_rng(4).standard_normal(LATENTS.shape)

    def model(x: np.ndarray, t: float) -> np.ndarray:
        return np.tanh(x) * t / 1000

    x0 = LATENTS
    g0 = model(0.5 * x0, 900.0)
    x1 = 0.9 * x0 + 0.1 * g0
    g1 = model(x1, 500.0)
    x2 = 0.8 * x1 - 0.2 * g1 + 0.25 * z
    g2 = model(2.0 * x2, 100.0)
    x3 = 0.7 * x2 + 0.3 * g2 + 0.5 * (3.0 * g1) - 2.0 * (x0 - 0.5 * g0)
    np.testing.assert_allclose(run_reference(program, model, x0, [z]), x3, rtol=1e-14)
    assert program.history_depth == 2


def test_guidance_and_rescale() -> None:
    program = program_of(latents=[0.0], output=[1.0], guidance_scale=[5.0], guidance_rescale=[0.7])
    c, u = np.sin(LATENTS), np.cos(LATENTS)
    guided = u + 5.0 * (c - u)
    expected = 0.7 * guided * (c.std() / guided.std()) + 0.3 * guided
    result = run_reference(program, lambda x, t: c, LATENTS, unconditional=lambda x, t: u)
    np.testing.assert_allclose(result, expected, rtol=1e-13)
    assert program.evaluations == 2


def test_row_without_evaluation_calls_no_network() -> None:
    calls: list[float] = []

    def model(x: np.ndarray, t: float) -> np.ndarray:
        calls.append(t)
        return x

    program = program_of(
        evaluate=[1, 0],
        output=[0.1, 0.0],
        store_output=[1.0, 0.0],
        history=[[0, 0, 0, 0], [0.1, 0, 0, 0]],
    )
    result = run_reference(program, model, LATENTS)
    np.testing.assert_allclose(result, 1.2 * LATENTS, rtol=1e-14)
    assert len(calls) == program.evaluations == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"evaluate": [0], "output": [1.0]}, "without evaluating"),
        ({"evaluate": [0], "store_output": [1.0]}, "without evaluating"),
        ({"history": [[1.0, 0, 0, 0]]}, "reads history"),
        ({"store_output": [1.0, 0], "history": [[0] * 4, [0, 1.0, 0, 0]]}, "reads history"),
        ({"output": [math.nan]}, "not finite"),
        ({"history": [[math.inf, 0, 0, 0]]}, "not finite"),
        ({"engine": [-1]}, "invalid engine"),
        ({"latents": []}, "non-empty"),
    ],
)
def test_table_that_breaks_a_rule_is_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        program_of(**columns)


def test_boundary_ratio_chooses_engine_and_guidance() -> None:
    guidance = Guidance(scale=4.0, boundary_ratio=0.875, scale_2=1.0)
    schedule = replace(UNIPC_FLOW, shift=3.0)
    program = compile_program(UniPC(), schedule, 20, guidance)
    high = program.rows["timestep"] >= 875
    assert 0 < high.sum() < 20
    np.testing.assert_array_equal(program.rows["engine"], np.where(high, 0, 1))
    np.testing.assert_array_equal(program.rows["guidance_scale"], np.where(high, 4.0, 1.0))
    assert program.evaluations == 20 + high.sum()
    called: list[str] = []

    def record(name: str) -> Any:
        return lambda x, t: called.append(name) or np.zeros_like(x)

    run_reference(
        program,
        [record("high"), record("low")],
        LATENTS,
        unconditional=[record("negative"), record("unused")],
    )
    assert called == ["high", "negative"] * high.sum() + ["low"] * (20 - high.sum())


def test_boundary_itself_belongs_to_the_first_engine() -> None:
    assert Guidance(boundary_ratio=0.9).engine_and_scale(900.0, 1000) == (0, 1.0)
    assert Guidance(boundary_ratio=0.9).engine_and_scale(899.0, 1000) == (1, 1.0)


@pytest.mark.parametrize(
    ("solver", "schedule", "depth", "rows", "noisy"),
    [
        (Euler(), FlowSchedule(), 0, 8, 0),
        (Heun(), FlowSchedule(), 1, 15, 0),
        (DPMSolverPP(), FlowSchedule(grid="dpm"), 1, 8, 0),
        (UniPC(order=1), UNIPC_FLOW, 1, 8, 0),
        (UniPC(order=2), UNIPC_FLOW, 2, 8, 0),
        (UniPC(order=3), UNIPC_FLOW, 3, 8, 0),
        (DDIM(), DiffusionSchedule(grid="ddim"), 0, 8, 0),
        (DDIM(eta=0.5), DiffusionSchedule(grid="ddim", timestep_spacing="trailing"), 0, 8, 7),
        (LCM(), DiffusionSchedule(grid="lcm"), 0, 8, 7),
    ],
)
def test_rows_history_and_noise(solver: Any, schedule: Any, depth: int, rows: int, noisy: int) -> None:
    program = compile_program(solver, schedule, 8)
    assert program.history_depth == depth
    assert len(program.rows) == rows == program.evaluations
    assert np.count_nonzero(program.rows["noise"]) == noisy
    assert program.num_inference_steps == 8
    assert program.solver == solver.name


def test_sha256_is_stable_and_sees_every_change() -> None:
    def digest(shift: float = 3.0, scale: float = 5.0, steps: int = 8) -> str:
        return compile_program(Euler(), FlowSchedule(shift=shift), steps, Guidance(scale)).sha256

    assert digest() == digest()
    assert len({digest(), digest(shift=5.0), digest(scale=4.0), digest(steps=9)}) == 4
    program = compile_program(Euler(), FlowSchedule(), 4)
    assert replace(program, initial_scale=2.0).sha256 != program.sha256


def test_program_cannot_be_changed() -> None:
    program = compile_program(Euler(), FlowSchedule(), 4)
    with pytest.raises(ValueError, match="read-only"):
        program.rows["output"] = 0.0


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True])
@pytest.mark.parametrize("schedule", [FlowSchedule(), DiffusionSchedule(grid="k_diffusion")])
def test_steps_out_of_range_are_refused(schedule: Any, steps: Any) -> None:
    with pytest.raises(InvalidRequest, match="num_inference_steps"):
        compile_program(Euler(), schedule, steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.nan}, "guidance_scale = nan is not finite"),
        ({"scale": math.inf}, "guidance_scale = inf"),
        ({"scale_2": math.nan, "boundary_ratio": 0.9}, "guidance_scale_2 = nan"),
        ({"scale_2": 3.0}, "two transformers"),
        ({"rescale": 1.5}, "guidance_rescale = 1.5"),
        ({"rescale": math.nan}, "guidance_rescale = nan"),
        ({"boundary_ratio": 875.0}, "boundary_ratio = 875.0"),
    ],
)
def test_guidance_that_means_nothing_is_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Guidance(**options)


@pytest.mark.parametrize("sigmas", [(0.5, 0.9), (0.9, 0.9), (1.2, 0.5), (0.9, 0.0), (0.9, math.nan), (math.inf, 0.5)])
def test_custom_sigmas_must_descend(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="custom sigmas"):
        FlowSchedule(custom_sigmas=sigmas).build(len(sigmas))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowSchedule(custom_sigmas=(0.9, 0.5)).build(3), "2 custom sigmas"),
        (lambda: FlowSchedule(dynamic_shift=DynamicShift()).build(4), "image_seq_len"),
        (lambda: FlowSchedule(shift=0.0), "shift = 0.0"),
        (lambda: FlowSchedule(shift=math.nan), "shift = nan"),
        (lambda: FlowSchedule(shift_terminal=0.1).build(1), "shift_terminal"),
        (lambda: DiffusionSchedule().build(1000), "twice"),
        (lambda: DiffusionSchedule(grid="lcm").build(51), "original_inference_steps"),
        (lambda: compile_program(Euler(), DiffusionSchedule(), 5), "solver euler"),
        (lambda: compile_program(DDIM(), FlowSchedule(), 5), "solver ddim"),
        (lambda: compile_program(DDIM(eta=-1), DiffusionSchedule(grid="ddim"), 5), "eta = -1"),
        (lambda: compile_program(UniPC(), FlowSchedule(), 5), "max_sigma"),
        (lambda: compile_program(UniPC(order=4), UNIPC_FLOW, 5), "solver_order = 4"),
        (lambda: compile_program(DPMSolverPP(order=3), FlowSchedule(), 5), "solver_order = 3"),
        (
            lambda: compile_program(UniPC(lower_order_final=False), UNIPC_FLOW, 5),
            "lower_order_final",
        ),
        (
            lambda: compile_program(
                DDIM("epsilon"),
                DiffusionSchedule(Betas(zero_terminal_snr=True), grid="ddim", timestep_spacing="trailing"),
                5,
            ),
            "epsilon says nothing",
        ),
        (lambda: compile_program(Euler(), FlowSchedule().build(4), 5), "does not match"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make()
