"""Fits the achieved rates to published rows: Gauss-Newton on logarithms with the priors as rows of their own.

Rows of one source are not independent: each source has an offset of its own, and one for each part of a clip that
installations count or run differently (`PART_SPREAD`). They are fitted with the rates and thrown away; their spreads
are part of every prediction's band. Outliers weigh less (Huber).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sora_runtime.cost.predict import PART_SPREAD, median_and_gradient, part_seconds
from sora_runtime.cost.rates import Fit, Rates, prior_of
from sora_runtime.cost.rows import Case

ROW_SPREAD = 0.10  # of one row about its source, before it is estimated
# Of whole sources; chosen so that four in five rows of a source left out lie in their band.
SOURCE_SPREAD = 0.13
_HUBER = 1.5  # spreads; beyond it a row pulls with constant force
_ROUNDS = 10
_CLOSE = 3e-3

_Offset = tuple[str, str]  # source and part; part "" is the whole clip


@dataclass
class _Problem:
    names: list[str]
    offsets: list[_Offset]
    jacobian: np.ndarray  # [rows, names + offsets]
    residuals: np.ndarray  # log(published / predicted with the offsets)


def fit(cases: Sequence[Case], start: Fit | None = None) -> Fit:
    """Fit all parameters that the cases touch.

    Args:
        cases: rows with published seconds.
        start: where to begin, to save rounds.

    Returns:
        The most probable parameters, their covariance, and the spreads that remain.
    """
    logs = dict(zip(start.names, start.logs, strict=True)) if start is not None else {}
    offsets: dict[_Offset, float] = {}
    row_spread = ROW_SPREAD
    problem = _linearise(cases, logs, offsets)
    covariance = np.zeros((0, 0))
    for _ in range(_ROUNDS):
        step, covariance = _solve(problem, logs, offsets, row_spread)
        count = len(problem.names)
        for name, change in zip(problem.names, step[:count], strict=True):
            logs[name] = logs.get(name, math.log(prior_of(name).value)) + float(change)
        for offset, change in zip(problem.offsets, step[count:], strict=True):
            offsets[offset] = offsets.get(offset, 0.0) + float(change)
        problem = _linearise(cases, logs, offsets)
        row_spread = max(1.4826 * float(np.median(np.abs(problem.residuals))), 0.02)
        if float(np.max(np.abs(step))) < _CLOSE:
            break
    count = len(problem.names)
    return Fit(
        tuple(problem.names),
        tuple(logs[name] for name in problem.names),
        tuple(tuple(map(float, row)) for row in covariance[:count, :count]),
        SOURCE_SPREAD,
        row_spread,
        {"rows": len(cases), "sources": len({case.source for case in cases})},
    )


def _linearise(cases: Sequence[Case], logs: Mapping[str, float], offsets: Mapping[_Offset, float]) -> _Problem:
    rates = Rates(logs)
    names: dict[str, int] = {}
    places: dict[_Offset, int] = {}
    slopes: list[tuple[dict[str, float], dict[_Offset, float]]] = []
    residuals = []
    for case in cases:
        factors = {part: math.exp(offsets.get((case.source, part), 0.0)) for part in PART_SPREAD}
        seconds, gradient, stages = median_and_gradient(case.clip, case.gpu, case.setting, rates, case.scope, factors)
        parts = part_seconds(stages, case.scope, case.clip.steps)
        shares = {(case.source, part): value * factors[part] / seconds for part, value in parts.items() if part}
        shares[case.source, ""] = 1.0
        assert case.seconds is not None
        residuals.append(math.log(case.seconds / seconds) - offsets.get((case.source, ""), 0.0))
        for name in gradient:
            names.setdefault(name, len(names))
        for place in shares:
            places.setdefault(place, len(places))
        slopes.append((gradient, shares))
    jacobian = np.zeros((len(cases), len(names) + len(places)))
    for row, (gradient, shares) in enumerate(slopes):
        for name, slope in gradient.items():
            jacobian[row, names[name]] = slope
        for place, slope in shares.items():
            jacobian[row, len(names) + places[place]] = slope
    return _Problem(list(names), list(places), jacobian, np.array(residuals))


def _solve(
    problem: _Problem,
    logs: Mapping[str, float],
    offsets: Mapping[_Offset, float],
    row_spread: float,
) -> tuple[np.ndarray, np.ndarray]:
    """One Gauss-Newton step of parameters and offsets, and the covariance there."""
    weights = np.minimum(1.0, _HUBER * row_spread / np.maximum(np.abs(problem.residuals), 1e-12)) / row_spread**2
    priors = [prior_of(name) for name in problem.names]
    widths = np.array(
        [prior.spread for prior in priors] + [PART_SPREAD.get(part, SOURCE_SPREAD) for _, part in problem.offsets]
    )
    away = np.array(
        [logs.get(n, math.log(p.value)) - math.log(p.value) for n, p in zip(problem.names, priors, strict=True)]
        + [offsets.get(offset, 0.0) for offset in problem.offsets]
    )
    precision = problem.jacobian.T @ (weights[:, None] * problem.jacobian) + np.diag(widths**-2)
    gradient = problem.jacobian.T @ (weights * problem.residuals) - away / widths**2
    covariance = np.linalg.inv(precision)
    return np.clip(covariance @ gradient, -0.5, 0.5), covariance  # not trusted further than e^0.5
