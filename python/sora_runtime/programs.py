"""The sampler programs of a bundle's requests, compiled once for each setting."""

from dataclasses import replace
from functools import lru_cache

from .bundle import Bundle
from .request import ResolvedRequest
from .sampling import (
    FlowSchedule,
    Guidance,
    Levels,
    SamplerProgram,
    compile_program,
    read_scheduler_config,
    with_solver,
)


class Programs:
    """Compiles what a bundle's scheduler and a request ask for.

    Args:
        bundle: whose scheduler config and facts apply.

    Raises:
        BundleError: the scheduler's config cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._facts = bundle.manifest.facts
        self._scheduler_config = bundle.read_json(bundle.manifest.scheduler)
        # A server's requests repeat their settings, and a program takes milliseconds to compile.
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def __call__(self, request: ResolvedRequest) -> SamplerProgram:
        """The sampler program that serves a request.

        Raises:
            InvalidRequest: the solver is unknown or does not fit the model.
        """
        embedded = self._facts.embedded_guidance is not None
        guidance = Guidance(
            scale=1.0 if embedded else request.guidance_scale,
            rescale=request.guidance_rescale,
            boundary_ratio=self._facts.boundary_ratio,
            scale_2=None if embedded else request.guidance_scale_2,
        )
        steps, few = request.num_inference_steps, self._facts.few_step
        solver, levels = request.solver, Levels.given(request.sigmas, request.timesteps)
        if few is not None:
            solver = solver or few.solver
            plain = levels == Levels() and steps == len(few.sigmas)
            levels = replace(levels, sigmas=few.sigmas if plain else levels.sigmas, shift=few.shift)
        return self._compiled((solver, levels), steps, guidance, request.geometry.tokens)

    def _compile(
        self, sampling: tuple[str | None, Levels], num_inference_steps: int, guidance: Guidance, tokens: int
    ) -> SamplerProgram:
        solver, levels = sampling
        config = self._scheduler_config if solver is None else with_solver(self._scheduler_config, solver)
        specification = read_scheduler_config(config)
        schedule, grid = specification.schedule, self._facts.sigma_grid
        if grid is not None and isinstance(schedule, FlowSchedule):
            schedule = replace(schedule, grid=grid)
        schedule = levels.of(schedule)
        return compile_program(specification.solver, schedule, num_inference_steps, guidance, image_seq_len=tokens)
