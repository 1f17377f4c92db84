"""Policies of step reuse by name: what each marks in a table or leaves to the sampler's rule.

``plan``, ``magcache`` and ``taylorseer`` are known before the run and become marks in the table; ``easycache``
and ``teacache`` decide at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.program import SamplerProgram
from sora_runtime.sampling.reuse import Criterion, Evaluation, ReuseRule

REUSE_POLICIES = {
    "plan": "rows given or learnt",
    "easycache": "arXiv:2507.02860: the output's change, foretold from the input's",
    "magcache": "arXiv:2506.09045: a calibrated curve of magnitudes",
    "teacache": "arXiv:2411.19108: a calibrated polynomial of the input's change",
    "taylorseer": "arXiv:2503.06923: every n-th row, a Taylor series between",
    "unconditional": "the unconditional branch of every n-th row alone",
}
_CRITERIA: dict[str, Criterion] = {"easycache": "output_change", "teacache": "input_change"}


def default_order(policy: str) -> int:
    """The order of the Taylor series that a policy's paper uses."""
    return 1 if policy == "taylorseer" else 0


@dataclass(frozen=True)
class StepReuse:
    """A policy with its settings; the fields that a policy does not name are ignored by it.

    Attributes:
        policy: a key of ``REUSE_POLICIES``.
        threshold: easycache, teacache, magcache: the accumulated error below which a row reuses.
        warm_up: rows at the beginning that are always evaluated (at least one); the last row always is.
        most_in_a_row: rows reused between two evaluations at most, 0 for no limit.
        order: of the Taylor series that estimates an output, 0 to 2.
        residual: reuse ``v - x`` in the place of ``v``. The papers of EasyCache and MagCache do; a flow model's
            output is nearly constant along a straight path, so that ``v`` is the better choice there.
        interval: taylorseer: one row in so many is evaluated.
        polynomial: teacache: coefficients of the relative change of the output over that of the input, the
            constant first. The paper's own are over the input modulated by the timestep, which lies inside the
            network; this one is fitted to what a network with nothing exposed shows.
        ratios: magcache: of each row, the mean magnitude of what is reused over that of the row before.
        reused: plan: numbers of the rows that reuse.
        unconditional_every: of the rows evaluated after the warm-up, one in so many evaluates the
            unconditional branch too; the others reuse its difference to the conditional one.
    """

    policy: str
    threshold: float = 0.0
    warm_up: int = 3
    most_in_a_row: int = 0
    order: int = 0
    residual: bool = False
    interval: int = 2
    polynomial: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    ratios: tuple[float, ...] = ()
    reused: tuple[int, ...] = ()
    unconditional_every: int = 1

    def __post_init__(self) -> None:
        if self.policy not in REUSE_POLICIES:
            raise InvalidRequest(f"step_reuse = '{self.policy}' is unknown; use {', '.join(REUSE_POLICIES)}")
        for name, least in (("warm_up", 1), ("interval", 1), ("unconditional_every", 1), ("most_in_a_row", 0)):
            if getattr(self, name) < least:
                raise InvalidRequest(f"{name} = {getattr(self, name)} of step reuse is too small; use {least} or more")
        ReuseRule(threshold=self.threshold, order=self.order)


def apply_reuse(program: SamplerProgram, reuse: StepReuse) -> SamplerProgram:
    """The program with the policy's marks in its rows and the policy's rule beside them.

    Raises:
        InvalidRequest: the policy's settings do not fit the program.
    """
    count = len(program.rows)
    rule = ReuseRule(
        criterion=_CRITERIA.get(reuse.policy, "none"),
        threshold=reuse.threshold if reuse.policy in _CRITERIA else 0.0,
        first=reuse.warm_up,
        last=count - 1,
        most_in_a_row=reuse.most_in_a_row,
        order=reuse.order,
        residual=reuse.residual,
        polynomial=reuse.polynomial,
    )
    rows = program.rows.copy()
    _mark(rows, set(_reused(program, reuse)))
    _mark_unconditional(rows, reuse)
    return replace(program, rows=rows, reuse=rule)


def _reused(program: SamplerProgram, reuse: StepReuse) -> Iterator[int]:
    """The rows that a policy reuses and that are known before the run."""
    rows = program.rows
    last = len(rows) - 1
    if reuse.policy == "plan":
        outside = [row for row in reuse.reused if not 0 <= row <= last]
        if outside:
            raise InvalidRequest(f"row {outside[0]} of the plan is none of the program's; use 0 to {last}")
        yield from reuse.reused
    elif reuse.policy == "taylorseer":
        since = 0
        for i, at_hand in enumerate(outputs_at_hand(rows)):
            since = since + 1 if at_hand and reuse.warm_up <= i < last and since + 1 < reuse.interval else 0
            if since:
                yield i
    elif reuse.policy == "magcache":
        yield from _below_error(rows, reuse)


def _below_error(rows: npt.NDArray[np.void], reuse: StepReuse) -> Iterator[int]:
    """MagCache's rule (arXiv:2506.09045).

    Skipping from row i to t errs by |1 - prod of the ratios of i+1 .. t|; the sum of that over the skipped rows
    stays below the threshold.
    """
    if len(reuse.ratios) != len(rows):
        raise InvalidRequest(
            f"magcache has {len(reuse.ratios)} ratios for {len(rows)} rows; calibrate it for this number of steps"
        )
    ratio, error, skipped = 1.0, 0.0, 0
    for i, at_hand in enumerate(outputs_at_hand(rows)):
        ratio *= reuse.ratios[i]
        error += abs(1.0 - ratio)
        within = reuse.warm_up <= i < len(rows) - 1
        if (
            at_hand
            and within
            and error < reuse.threshold
            and (not reuse.most_in_a_row or skipped < reuse.most_in_a_row)
        ):
            skipped += 1
            yield i
        else:
            ratio, error, skipped = 1.0, 0.0, 0


def outputs_at_hand(rows: npt.NDArray[np.void]) -> Iterator[bool]:
    """Whether each row may reuse: an earlier row of its engine was evaluated, with both branches where it has two."""
    engine, conditional, guided = -1, False, False
    for row in rows:
        wants, evaluated = row["guidance_scale"] != 1.0, row["evaluate"] == Evaluation.EVALUATE
        if row["engine"] != engine:
            engine, conditional, guided = row["engine"], False, False
        yield bool(evaluated and conditional and (guided or not wants))
        conditional = conditional or evaluated
        guided = guided or (evaluated and wants)


def _mark(rows: npt.NDArray[np.void], reused: set[int]) -> None:
    for i in reused:
        if rows["evaluate"][i] == Evaluation.EVALUATE:
            rows["evaluate"][i] = Evaluation.REUSE


def _mark_unconditional(rows: npt.NDArray[np.void], reuse: StepReuse) -> None:
    """Of the rows left to evaluate after the warm-up, all but one in ``unconditional_every`` lose the second branch."""
    since = 0
    at_hand = list(outputs_at_hand(rows))
    for i, row in enumerate(rows):
        guided = row["evaluate"] == Evaluation.EVALUATE and row["guidance_scale"] != 1.0
        if not guided:
            continue
        if at_hand[i] and reuse.warm_up <= i < len(rows) - 1 and since + 1 < reuse.unconditional_every:
            row["evaluate"] = Evaluation.CONDITIONAL
            since += 1
        else:
            since = 0
