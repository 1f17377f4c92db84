"""Trajectories of a few given levels, as distilled models are made for: which levels, and on whose shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.grids import DiffusionSchedule, FlowSchedule


@dataclass(frozen=True)
class Levels:
    """What a request or a bundle says of a trajectory's noise levels; hashable, as programs are kept by it.

    Attributes:
        sigmas: flow sigmas before the shift, descending in (0, 1], without the final 0; as diffusers'
            ``set_timesteps(sigmas=...)``.
        timesteps: what the network is told, descending; as diffusers' ``set_timesteps(timesteps=...)``.
        shift: takes the place of everything that would move the model's sigmas (static and dynamic shift, terminal,
            Karras or exponential spacing); None leaves that as the model's scheduler has it.
    """

    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    shift: float | None = None

    def of(self, schedule: FlowSchedule | DiffusionSchedule) -> FlowSchedule | DiffusionSchedule:
        """The schedule with these levels in the place of its own.

        Raises:
            InvalidRequest: sigmas or a shift for a model that has none; both kinds of levels.
        """
        if isinstance(schedule, FlowSchedule):
            if self.shift is not None:
                plain = {"dynamic_shift": None, "shift_terminal": None, "spacing": "timesteps"}
                schedule = replace(schedule, shift=self.shift, **plain)  # type: ignore[arg-type]
            return replace(schedule, custom_sigmas=self.sigmas, custom_timesteps=self.timesteps)
        if self.sigmas is not None or self.shift is not None:
            given = f"sigmas = {list(self.sigmas)}" if self.sigmas is not None else f"shift = {self.shift:g}"
            raise InvalidRequest(
                f"{given} is for flow-matching models, and this one is trained on timesteps; give timesteps"
            )
        return replace(schedule, custom_timesteps=self.timesteps)

    @classmethod
    def given(cls, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None) -> Levels:
        """Those of a request."""
        return cls(
            None if sigmas is None else tuple(sigmas),
            None if timesteps is None else tuple(timesteps),
        )
