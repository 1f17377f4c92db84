"""The sampler programs of a bundle's requests, compiled once for each setting, and the step reuse they ask for."""

from dataclasses import dataclass, replace
from functools import lru_cache

from .bundle import Bundle
from .errors import InvalidRequest
from .preset_use import damaged
from .request import ResolvedRequest
from .reuse_record import ReuseKey, ReuseSettings
from .sampling import (
    FlowSchedule,
    Guidance,
    Levels,
    SamplerProgram,
    StepReuse,
    apply_reuse,
    compile_program,
    default_order,
    read_scheduler_config,
    with_solver,
)

# Policies that decide by a threshold; the others by their rows or their interval.
_THRESHOLDS = ("easycache", "magcache", "teacache")


@dataclass(frozen=True)
class ChosenReuse:
    """The step reuse of one clip, and whether its loss in quality is known."""

    settings: StepReuse
    calibrated: bool


class Programs:
    """Compiles what a bundle's scheduler and a request ask for.

    Args:
        bundle: whose scheduler config and facts apply.

    Raises:
        BundleError: the scheduler's config cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._facts = bundle.manifest.facts
        self._scheduler_config = bundle.read_json(bundle.manifest.scheduler)
        # A server's requests repeat their settings, and a program takes milliseconds to compile.
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def __call__(self, request: ResolvedRequest) -> tuple[SamplerProgram, ChosenReuse | None]:
        """The sampler program that serves a request, and the step reuse in it.

        Raises:
            InvalidRequest: the solver is unknown or does not fit the model, or step reuse was not calibrated.
            BundleError: one of these is a preset's doing.
        """
        try:
            return self._serve(request)
        except InvalidRequest as error:
            if request.preset is None or request.preset.changed:
                raise
            raise damaged(request.preset.name, self._bundle.manifest, error) from error

    def _serve(self, request: ResolvedRequest) -> tuple[SamplerProgram, ChosenReuse | None]:
        embedded = self._facts.embedded_guidance is not None
        guidance = Guidance(
            scale=1.0 if embedded else request.guidance_scale,
            rescale=request.guidance_rescale,
            boundary_ratio=self._facts.boundary_ratio,
            scale_2=None if embedded else request.guidance_scale_2,
            interval=request.guidance_interval,
            decay=request.guidance_decay,
            zero_init_steps=request.zero_init_steps,
            rule=request.guidance_rule,
        )
        if embedded and guidance.shaped:
            raise InvalidRequest(
                f"'{self._bundle.name}' takes guidance as an input and has no second branch to shape; "
                "leave guidance_method, guidance_interval and guidance_decay out"
            )
        steps, few = request.num_inference_steps, self._facts.few_step
        solver, levels = request.solver, Levels.given(request.sigmas, request.timesteps)
        if few is not None:
            solver = solver or few.solver
            plain = levels == Levels() and steps == len(few.sigmas)
            levels = replace(levels, sigmas=few.sigmas if plain else levels.sigmas, shift=few.shift)
        program = self._compiled((solver, levels), steps, guidance, request.geometry.tokens)
        if request.step_reuse is None:
            return program, None
        chosen = self._choose(request, program)
        return apply_reuse(program, chosen.settings), chosen

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

    def _choose(self, request: ResolvedRequest, program: SamplerProgram) -> ChosenReuse:
        """The settings that a request asks for, if their loss is known or the request insists."""
        asked, threshold, forced = request.step_reuse, request.reuse_threshold, request.force_step_reuse
        policy = asked.policy if isinstance(asked, StepReuse) else str(asked)
        key = reuse_key(request, program)
        own = request.sigmas is not None or request.timesteps is not None  # levels that no calibration has seen
        known = None if own else self._calibrated(policy, key, program)
        if known is None and not forced:
            raise InvalidRequest(
                f"step_reuse = '{policy}' is not calibrated in '{self._bundle.name}' for {key}; "
                "run `sora-bench calibrate-reuse` for it, or force it"
            )
        settings = asked if isinstance(asked, StepReuse) else known
        if settings is None:
            if threshold is None and policy in _THRESHOLDS:
                raise InvalidRequest(f"step_reuse = '{policy}' has no calibrated threshold; give reuse_threshold too")
            settings = StepReuse(policy, order=default_order(policy), polynomial=(0.0, 1.0, 0.0, 0.0, 0.0))
        if threshold is not None:
            settings = replace(settings, threshold=threshold)
        # A lower threshold reuses less than what was measured.
        within = known is not None and settings == replace(known, threshold=min(settings.threshold, known.threshold))
        if known is not None and not within and not forced:
            raise InvalidRequest(
                f"step_reuse = '{policy}' is calibrated up to the threshold {known.threshold:.4g} and with other "
                "settings than asked for; keep to them, or force it"
            )
        return ChosenReuse(settings, within)

    def _calibrated(self, policy: str, key: ReuseKey, program: SamplerProgram) -> StepReuse | None:
        for entry in self._bundle.manifest.step_reuse:
            same = entry.key == key and entry.quality.all_evaluations == program.all_evaluations
            if same and entry.settings.policy == policy:
                return StepReuse(**{name: getattr(entry.settings, name) for name in ReuseSettings.model_fields})
        return None


def reuse_key(request: ResolvedRequest, program: SamplerProgram) -> ReuseKey:
    """What a calibration of step reuse for this request and program holds for."""
    geometry = request.geometry
    return ReuseKey(
        task=request.bucket.task,
        height=geometry.height,
        width=geometry.width,
        num_frames=geometry.num_frames,
        solver=program.solver,
        schedule=program.schedule,
        num_inference_steps=program.num_inference_steps,
        guided=program.all_evaluations > len(program.rows),
        guidance_method=program.guidance.method,
    )
