"""The fused step against the memory bandwidth of the machine, and against diffusers with torch.

The limit: every byte that a step must read or write, over the bandwidth of a large parallel copy measured
between the repetitions. The latents are those of a 5-second 720p Wan clip, 1x16x21x90x160 float32.
diffusers' side makes the same step: guidance, `scheduler.step`, cast to the transformer's dtype.
"""

import ctypes
import itertools
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime import _core
from sora_runtime.machine import available_cores
from sora_runtime.sampling import Guidance, SamplerProgram, compile_program, read_scheduler_config

SHAPE = (1, 16, 21, 90, 160)
GUIDANCE = 5.0
STEPS = 20
REPETITIONS = 7
COPY_BYTES = 256 << 20  # far beyond any cache
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "euler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0},
    "unipc": {"_class_name": "UniPCMultistepScheduler", "solver_order": 2, **FLOW},
}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    solver: str
    input_dtype: str  # what the transformer reads

    def program(self) -> SamplerProgram:
        """Its sampler program, guided."""
        specification = read_scheduler_config(CONFIGS[self.solver])
        return compile_program(specification.solver, specification.schedule, STEPS, Guidance(GUIDANCE))


def aligned(n: int, dtype: Any) -> NDArray[Any]:
    """An uninitialised array on a 64-byte boundary."""
    size = n * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(dtype)


def copy_bandwidth(source: NDArray[Any], target: NDArray[Any], num_threads: int) -> float:
    """Bytes read plus bytes written per second of one memcpy split over threads."""
    part = source.nbytes // num_threads
    copies = [
        threading.Thread(
            target=ctypes.memmove, args=(target.ctypes.data + i * part, source.ctypes.data + i * part, part)
        )
        for i in range(num_threads)
    ]
    start = time.perf_counter()
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.join()
    return 2 * source.nbytes / (time.perf_counter() - start)


def bytes_that_must_move(row: Any, program: SamplerProgram, n: int, input_bytes: int) -> int:
    """Each input read once, each output written once; float32 latents are the transformer's input itself."""
    floats = 2 + 2  # both model outputs; latents in and out
    floats += int(np.count_nonzero(row["history"])) + int(row["noise"] != 0)
    floats += int(program.history_depth > 0 and (row["store_latents"] != 0 or row["store_output"] != 0))
    return n * (4 * floats + input_bytes)


def run_ours(case: Case, num_threads: int) -> Callable[[], list[tuple[int, float]]]:
    """A function that runs all steps and gives (bytes, seconds) of each."""
    n = int(np.prod(SHAPE))
    program = case.program()
    rng = np.random.default_rng(0)
    latents, conditional, unconditional = (aligned(n, np.float32) for _ in range(3))
    for array in (latents, conditional, unconditional):
        array[:] = rng.standard_normal(n, np.float32)
    half = case.input_dtype != "float32"
    model_input = aligned(n, np.uint16) if half else None
    sampler = _core.Sampler(
        program.rows,
        latents,
        model_input=model_input,
        conditional=conditional,
        unconditional=unconditional,
        input_dtype=case.input_dtype,
        num_threads=num_threads,
    )
    sizes = [bytes_that_must_move(row, program, n, 2 if half else 0) for row in program.rows]

    def run() -> list[tuple[int, float]]:
        latents[:] = conditional  # the same magnitudes each time, no denormals
        seconds = sampler.run(lambda *_: None).row_seconds
        return list(zip(sizes, seconds, strict=True))

    return run


def run_diffusers(case: Case, num_threads: int) -> Callable[[], list[float]]:
    """A function that makes the same steps with torch and gives the seconds of each."""
    import diffusers
    import torch

    torch.set_num_threads(num_threads)
    config = CONFIGS[case.solver]
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    noise, conditional, unconditional = (torch.randn(SHAPE) for _ in range(3))
    dtype = getattr(torch, case.input_dtype)

    def run() -> list[float]:
        scheduler.set_timesteps(STEPS)
        latents, seconds = noise, []
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                start = time.perf_counter()
                guided = unconditional + GUIDANCE * (conditional - unconditional)
                latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
                latents.to(dtype)
                seconds.append(time.perf_counter() - start)
        return seconds

    return run


def measure() -> dict[str, Any]:
    """All cases, ours and diffusers' in turn, with the copy measured between them."""
    num_threads = available_cores()
    source, target = (np.ones(COPY_BYTES, np.uint8) for _ in range(2))
    rows = []
    for solver, input_dtype in itertools.product(CONFIGS, ("float32", "bfloat16")):
        case = Case(solver, input_dtype)
        ours, theirs = run_ours(case, num_threads), run_diffusers(case, num_threads)
        ours(), theirs(), copy_bandwidth(source, target, num_threads)
        ratios, of_limit, bandwidths, milliseconds = [], [], [], []
        for _ in range(REPETITIONS):
            before = copy_bandwidth(source, target, num_threads)
            steps = ours()
            after = copy_bandwidth(source, target, num_threads)
            bandwidth = (before + after) / 2
            # The first steps of a multistep solver have less history; the later ones are the rule.
            size, seconds = steps[-2][0], statistics.median(s for _, s in steps[STEPS // 2 : -1])
            of_limit.append(size / bandwidth / seconds)
            bandwidths.append(bandwidth)
            milliseconds.append(seconds * 1e3)
            ratios.append(statistics.median(theirs()[STEPS // 2 : -1]) / seconds)
        rows.append(
            {
                "solver": solver,
                "input_dtype": input_dtype,
                "bytes_per_step": steps[-2][0],
                "milliseconds": statistics.median(milliseconds),
                "copy_gb_per_s": statistics.median(bandwidths) / 1e9,
                "of_bandwidth_limit": statistics.median(of_limit),
                "times_faster_than_diffusers": statistics.median(ratios),
            }
        )
    return {"shape": list(SHAPE), "num_threads": num_threads, "isa": _core.instruction_set(), "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| solver | engine reads | MB to move | ms a step | of the bandwidth limit | against diffusers + torch |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['solver']} | {row['input_dtype']} | {row['bytes_per_step'] / 1e6:.1f} | {row['milliseconds']:.2f} "
        f"| {row['of_bandwidth_limit']:.0%} of {row['copy_gb_per_s']:.1f} GB/s "
        f"| {row['times_faster_than_diffusers']:.1f} times faster |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measure()))
