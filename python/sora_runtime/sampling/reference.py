"""A sampler program in float64: the meaning of the table, and the oracle for the fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sora_runtime.sampling.guidance import guided_output
from sora_runtime.sampling.program import SamplerProgram
from sora_runtime.sampling.reuse import Evaluation, ReuseRule
from sora_runtime.sampling.schedules import FloatArray
from sora_runtime.sampling.solvers import HISTORY

Denoiser = Callable[[FloatArray, float], FloatArray]


def run_reference(
    program: SamplerProgram,
    denoisers: Denoiser | Sequence[Denoiser],
    latents: npt.ArrayLike,
    noise: Sequence[npt.ArrayLike] = (),
    unconditional: Denoiser | Sequence[Denoiser] | None = None,
) -> FloatArray:
    """Run a program in float64.

    Args:
        program: the table and its rule of reuse.
        denoisers: ``(engine input, timestep) -> model output``, one per engine; any shape of array,
            the shape of ``latents`` back.
        latents: the first latents, already multiplied by ``initial_scale``.
        noise: standard normal arrays in the order of the rows whose ``noise`` is not 0.
        unconditional: as ``denoisers``, for rows with guidance.

    Returns:
        The last latents, float64, the shape of ``latents``.
    """
    conditional = denoisers if isinstance(denoisers, Sequence) else [denoisers]
    single = unconditional if not isinstance(unconditional, Sequence) else None
    negative = unconditional if isinstance(unconditional, Sequence) else [single] * len(conditional)
    x = np.array(latents, np.float64)
    history: list[FloatArray] = []
    draws = iter(noise)
    reuse = _Reuse(program.reuse)
    difference, expert = np.zeros_like(x), -1
    scales = [*program.rows["input_scale"][1:], 1.0]
    for index, (row, next_scale) in enumerate(zip(program.rows, scales, strict=True)):
        engine = row["engine"]
        g, u = reuse.outputs(index, row, x, conditional[engine], negative[engine])
        if engine != expert:
            difference, expert = np.zeros_like(x), engine
        if u is not None:
            difference = g - u + program.guidance.momentum * difference
            g = guided_output(program.guidance, row, g, u, difference)
        before = row["input_scale"] * x
        stored = row["store_latents"] * x + row["store_output"] * g
        x = row["latents"] * x + row["output"] * g
        for coefficient, entry in zip(row["history"], history, strict=False):
            x = x + coefficient * entry
        if row["noise"] != 0.0:
            x = x + row["noise"] * np.asarray(next(draws), np.float64)
        if row["store_latents"] != 0.0 or row["store_output"] != 0.0:
            history = [stored, *history][:HISTORY]
        reuse.moved(before, next_scale * x)
    return x


@dataclass
class _Cached:
    """The last evaluated arrays and their rows, newest first."""

    depth: int
    entries: list[tuple[int, FloatArray]] = field(default_factory=list)

    def keep(self, index: int, value: FloatArray) -> None:
        self.entries = [(index, value), *self.entries][: self.depth]

    def estimate(self, index: int) -> FloatArray:
        (i, newest), *before = self.entries
        if not before:
            return newest
        k, (j, second), *rest = index - i, *before
        slope = (newest - second) / (i - j)
        value = newest + k * slope
        if rest:
            third, array = rest[0]
            value = value + k**2 / 2 * (slope - (second - array) / (j - third)) / (i - j)
        return value


class _Reuse:
    """Which rows reuse, and what: the float64 twin of csrc/sampler/step_reuse.h."""

    def __init__(self, rule: ReuseRule) -> None:
        self._rule = rule
        self._engine = -1
        self._output = self._change = self._travelled = 0.0
        self._forget()

    def _forget(self) -> None:
        """Another engine's outputs and rates say nothing of this one's."""
        self._conditional, self._difference = (_Cached(self._rule.order + 1) for _ in range(2))
        self._anchor: FloatArray = np.zeros(())
        self._error = self._path = 0.0
        self._rate: float | None = None
        self._in_a_row = 0

    def outputs(
        self, index: int, row: Any, x: FloatArray, denoiser: Denoiser, negative: Denoiser | None
    ) -> tuple[FloatArray, FloatArray | None]:
        """The conditional output of a row and, with guidance, the unconditional one."""
        kind = self._decide(index, row)
        if kind in (Evaluation.NO_OUTPUT, Evaluation.ZERO):
            return np.zeros_like(x), None
        sample, timestep = row["input_scale"] * x, float(row["timestep"])
        if kind == Evaluation.REUSE:
            c = self._conditional.estimate(index) + (sample - self._anchor if self._rule.residual else 0.0)
            self._in_a_row += 1
        else:
            c = denoiser(sample, timestep)
            self._evaluated(index, c, sample)
        self._output = float(np.sum(np.abs(c)))
        if row["guidance_scale"] == 1.0:
            return c, None
        if kind != Evaluation.EVALUATE:
            return c, c + self._difference.estimate(index)
        assert negative is not None, "a guided row needs the unconditional denoiser"
        u = negative(sample, timestep)
        self._difference.keep(index, u - c)
        return c, u

    def _decide(self, index: int, row: Any) -> Evaluation:
        if row["engine"] != self._engine:
            self._engine = row["engine"]
            self._forget()
        kind, rule = Evaluation(row["evaluate"]), self._rule
        if kind not in (Evaluation.EVALUATE, Evaluation.CONDITIONAL) or rule.criterion == "none":
            return kind
        self._error += self._error_of_next()
        known = rule.criterion == "input_change" or self._rate is not None
        at_hand = self._conditional.entries and (row["guidance_scale"] == 1.0 or self._difference.entries)
        within = rule.first <= index < rule.last and (not rule.most_in_a_row or self._in_a_row < rule.most_in_a_row)
        return Evaluation.REUSE if known and at_hand and within and self._error < rule.threshold else kind

    def _error_of_next(self) -> float:
        if self._rule.criterion == "output_change":
            return 0.0 if self._output == 0.0 else (self._rate or 0.0) * self._travelled / self._output
        return max(float(np.polynomial.Polynomial(self._rule.polynomial)(self._change)), 0.0)

    def _evaluated(self, index: int, c: FloatArray, sample: FloatArray) -> None:
        if self._path > 0.0:
            self._rate = float(np.sum(np.abs(c - self._conditional.entries[0][1]))) / self._path
        self._conditional.keep(index, c)
        self._anchor = sample
        self._error = self._path = 0.0
        self._in_a_row = 0

    def moved(self, before: FloatArray, after: FloatArray) -> None:
        """Notes how far the network's input moved over a row."""
        self._travelled = float(np.sum(np.abs(after - before)))
        size = float(np.sum(np.abs(before)))
        self._change = 0.0 if size == 0.0 else self._travelled / size
        if self._conditional.entries:
            self._path += self._travelled
