"""Which settings a search may try: each bundle's steps, solvers, guidance and step reuse, as an optimiser asks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sora_runtime.bench.frontier_record import Setting
from sora_runtime.errors import InvalidRequest
from sora_runtime.request import resolve
from sora_runtime.runtime import Runtime
from sora_runtime.sampling import SOLVERS, StepReuse, read_scheduler_config

OWN = "own"  # the solver that the bundle would take
NO_REUSE = "none"
FEWEST_TO_REUSE = 6  # steps under which the rows that are always evaluated leave nothing to reuse
THRESHOLDS = (0.01, 0.5)  # of easycache: below nothing is reused, above all that may be
LATEST_START, EARLIEST_END = 0.4, 0.3  # shares of the reference's steps between which guidance may begin and end


class Trial(Protocol):
    """The part of `optuna.trial.Trial` by which a value is asked for."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number, both ends included."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number, both ends included."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...


class Space(Protocol):
    """What a search draws its settings from."""

    def suggest(self, trial: Trial) -> Setting:
        """The setting of a trial."""
        ...

    def first(self) -> list[dict[str, Any]]:
        """Values of trials that are measured before any is searched for; the reference's are the first."""
        ...


@dataclass(frozen=True)
class Variant:
    """What one bundle can be asked for.

    Attributes:
        bundle: its name in a preset; None: the bundle that is searched.
        default_steps: what it makes unasked; the reference's for the bundle that is searched.
        most_steps: to try.
        solvers: `OWN` and all others that its schedule takes.
        guidance_scale: its default; None where there is no second branch to leave out, or no guidance by default.
        sigmas: the reference's levels, descending: where guidance may begin and end.
        policies: of step reuse that need no calibration.
        calibrated: (policy, steps, guided) of each calibration of the bundle for this kind of clip.
    """

    bundle: str | None
    default_steps: int
    most_steps: int
    solvers: tuple[str, ...]
    guidance_scale: float | None
    sigmas: tuple[float, ...]
    policies: tuple[str, ...]
    calibrated: tuple[tuple[str, int, bool], ...] = ()

    @property
    def reuses(self) -> tuple[str, ...]:
        """The choices of step reuse."""
        return (NO_REUSE, *self.policies, *dict.fromkeys(f"calibrated {policy}" for policy, _, _ in self.calibrated))

    def sigma(self, share: float) -> float:
        """The level at a share of the reference's steps, rounded up so that the first step lies within."""
        return math.ceil(self.sigmas[round(share * (len(self.sigmas) - 1))] * 1e3) / 1e3


@dataclass(frozen=True)
class SettingsSpace:
    """All settings of some bundles; the first of them is the one that is searched."""

    variants: Sequence[Variant]

    def suggest(self, trial: Trial) -> Setting:
        """Ask for one value after the other; what a value rules out is not asked for."""
        number = 0
        if len(self.variants) > 1:
            number = int(trial.suggest_categorical("bundle", range(len(self.variants))))
        asked = _Asked(trial, self.variants[number], f"{number}.")
        steps = asked.steps()
        fields: dict[str, Any] = {"num_inference_steps": steps, **asked.solver(), **asked.guidance()}
        if steps >= FEWEST_TO_REUSE:
            fields |= asked.reuse(guided=fields.get("guidance_scale", 1.0) != 1.0)
        return Setting(fields, asked.variant.bundle)

    def first(self) -> list[dict[str, Any]]:
        """Every bundle as it is, with half its steps, and with each reuse it was calibrated for."""
        found: list[dict[str, Any]] = []
        for halved in (False, True):
            for number, variant in enumerate(self.variants):
                steps = max(1, variant.default_steps // 2) if halved else variant.default_steps
                found.append(self._plain(number, steps, guided=True))
        for number, variant in enumerate(self.variants):
            for policy, steps, guided in variant.calibrated:
                if FEWEST_TO_REUSE <= steps <= variant.most_steps:
                    found.append(
                        self._plain(number, steps, guided=guided) | {f"{number}.reuse": f"calibrated {policy}"}
                    )
        return found

    def _plain(self, number: int, steps: int, *, guided: bool) -> dict[str, Any]:
        variant = self.variants[number]
        values: dict[str, Any] = {f"{number}.steps": steps, f"{number}.solver": OWN}
        if len(self.variants) > 1:
            values["bundle"] = number
        if variant.guidance_scale is not None:
            values[f"{number}.guidance"] = "everywhere" if guided else "none"
            if guided:
                values[f"{number}.guidance_scale"] = variant.guidance_scale
        if steps >= FEWEST_TO_REUSE:
            values[f"{number}.reuse"] = NO_REUSE
        return values


@dataclass(frozen=True)
class _Asked:
    """One trial's questions about one bundle."""

    trial: Trial
    variant: Variant
    prefix: str

    def steps(self) -> int:
        return self.trial.suggest_int(self.prefix + "steps", 1, self.variant.most_steps, log=True)

    def solver(self) -> dict[str, Any]:
        name = self.trial.suggest_categorical(self.prefix + "solver", self.variant.solvers)
        return {} if name == OWN else {"solver": name}

    def guidance(self) -> dict[str, Any]:
        default = self.variant.guidance_scale
        if default is None:
            return {}
        kind = self.trial.suggest_categorical(self.prefix + "guidance", ("everywhere", "interval", "none"))
        if kind == "none":
            return {"guidance_scale": 1.0}
        # From half the default's strength to half as much again, the default among them.
        strength = default - 1.0
        scale = self.trial.suggest_float(
            self.prefix + "guidance_scale", 1.0 + 0.5 * strength, 1.0 + 1.5 * strength, step=strength / 8
        )
        if kind == "everywhere":
            return {"guidance_scale": scale}
        start = self.trial.suggest_float(self.prefix + "guidance_start", 0.0, LATEST_START, step=0.1)
        end = self.trial.suggest_float(self.prefix + "guidance_end", EARLIEST_END, 1.0, step=0.1)
        low, high = sorted((self.variant.sigma(start), self.variant.sigma(end)))
        return {"guidance_scale": scale, "guidance_interval": [low, high]} if low < high else {"guidance_scale": 1.0}

    def reuse(self, *, guided: bool) -> dict[str, Any]:
        choice = self.trial.suggest_categorical(self.prefix + "reuse", self.variant.reuses)
        if choice == NO_REUSE or (choice == "unconditional" and not guided):
            return {}
        if choice.startswith("calibrated "):
            return {"step_reuse": choice.removeprefix("calibrated ")}
        settings = json.loads(json.dumps(asdict(self._settings(choice))))  # lists, as a preset's JSON has them
        return {"step_reuse": settings, "force_step_reuse": True}

    def _settings(self, policy: str) -> StepReuse:
        ask, name = self.trial, self.prefix + policy
        if policy == "easycache":
            threshold = ask.suggest_float(f"{name}.threshold", *THRESHOLDS, log=True)
            order = ask.suggest_int(f"{name}.order", 0, 1)
            return StepReuse(policy, threshold=float(f"{threshold:.3g}"), order=order)
        if policy == "taylorseer":
            interval = ask.suggest_int(f"{name}.interval", 2, 4)
            return StepReuse(policy, interval=interval, order=ask.suggest_int(f"{name}.order", 0, 2))
        return StepReuse(policy, unconditional_every=ask.suggest_int(f"{name}.every", 2, 4))


def variant_of(runtime: Runtime, bundle: str | None, reference: Mapping[str, Any], most_steps: int) -> Variant:
    """What a loaded bundle can be asked for.

    Args:
        runtime: of the bundle.
        bundle: its name in a preset, None for the one that is searched.
        reference: fields of the reference's request: kind and size of the clips, and steps if they are not the default.
        most_steps: of the reference; no setting takes more.
    """
    manifest = runtime.bundle.manifest
    facts = manifest.facts
    own_steps = facts.defaults.num_inference_steps
    steps = most_steps if bundle is None else min(own_steps, most_steps)
    clip = {name: value for name, value in reference.items() if name in ("height", "width", "num_frames", "image")}
    request = resolve("a clip", clip, manifest)
    guided = facts.embedded_guidance is None and facts.defaults.guidance_scale != 1.0
    schedule = read_scheduler_config(runtime.bundle.read_json(manifest.scheduler)).schedule
    sigmas = schedule.build(steps, request.geometry.tokens).sigmas
    calibrated = [
        (each.settings.policy, each.key.num_inference_steps, each.key.guided)
        for each in manifest.step_reuse
        if (each.key.task, each.key.height, each.key.width, each.key.num_frames)
        == (request.bucket.task, request.geometry.height, request.geometry.width, request.geometry.num_frames)
    ]
    return Variant(
        bundle=bundle,
        default_steps=steps,
        # A distilled model gains little beyond twice the steps that it was made for.
        most_steps=most_steps if bundle is None else min(2 * own_steps, most_steps),
        solvers=(OWN, *_solvers(runtime, clip)),
        guidance_scale=facts.defaults.guidance_scale if guided else None,
        sigmas=tuple(float(sigma) for sigma in sigmas),
        policies=("easycache", "taylorseer", *(["unconditional"] if guided else [])),
        calibrated=tuple(calibrated),
    )


def _solvers(runtime: Runtime, clip: Mapping[str, Any]) -> list[str]:
    """The solvers that make another program than the bundle's own, and that its schedule takes."""
    programs = {runtime.program(resolve("a clip", clip, runtime.bundle.manifest)).sha256}
    found = []
    for name in SOLVERS:
        try:
            program = runtime.program(resolve("a clip", {**clip, "solver": name}, runtime.bundle.manifest))
        except InvalidRequest:
            continue
        if program.sha256 not in programs:
            programs.add(program.sha256)
            found.append(name)
    return found
