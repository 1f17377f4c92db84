"""Step reuse: rows whose output is estimated from earlier evaluations instead of asked of the network.

What a row does is in its column ``evaluate``; a plan that is known before the run is written there. A
``ReuseRule`` stands beside the table and decides the rest at run time. With ``v`` a branch's output and
``i > j > l`` the last rows that evaluated it, its estimate at row ``t`` is, ``k = t - i``:

    order 0:  v_i
    order 1:  v_i + k D                             D  = (v_i - v_j) / (i - j)
    order 2:  v_i + k D + k^2 / 2 (D - D') / (i - j)    D' = (v_j - v_l) / (j - l)

which is the Taylor series of TaylorSeer (arXiv:2503.06923) with finite differences for derivatives. With
``residual``, the network's input at ``t`` less that at ``i`` is added to the conditional branch: EasyCache's
transformation vector ``v - x`` is reused then (arXiv:2507.02860), not ``v``. Of the unconditional branch it
is always the difference to the conditional one that is estimated so, and added to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from sora_runtime.errors import InvalidRequest

Criterion = Literal["none", "output_change", "input_change"]


class Evaluation(IntEnum):
    """Where a row's output comes from; the values of the column ``evaluate``."""

    NO_OUTPUT = 0  # output and store_output are 0
    EVALUATE = 1  # a call of the network, two with guidance
    REUSE = 2  # no call: every branch is estimated
    CONDITIONAL = 3  # the conditional branch is evaluated, the unconditional one estimated
    ZERO = 4  # no call: the output is 0


@dataclass(frozen=True)
class ReuseRule:
    """What the sampler decides at run time, and how it estimates.

    Attributes:
        criterion: ``none`` leaves it to the table. ``output_change`` is EasyCache (arXiv:2507.02860): a row
            reuses while the sum of ``k_i |x_t - x_(t-1)| / |v_(t-1)|`` since the last evaluation ``i`` is below
            the threshold, ``k_i = |v_i - v_j| / |x_i - x_j|`` of the last two evaluations, L1 norms of the
            conditional branch, ``|x_i - x_j|`` taken along the path between them. ``input_change`` is
            TeaCache's rule (arXiv:2411.19108) on the network's input: the sum of
            ``P(|x_t - x_(t-1)| / |x_(t-1)|)``, P the polynomial.
        threshold: of that sum; 0 reuses nothing and measures.
        first: rows before this one are evaluated whatever the criterion says.
        last: so are this row and all later ones.
        most_in_a_row: rows reused between two evaluations at most; 0 is no limit.
        order: of the Taylor series, 0 to 2.
        residual: whether ``v - x`` is reused in the place of ``v``.
        polynomial: coefficients of P, the constant first.
    """

    criterion: Criterion = "none"
    threshold: float = 0.0
    first: int = 0
    last: int = 0
    most_in_a_row: int = 0
    order: int = 0
    residual: bool = False
    polynomial: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0.0):
            raise InvalidRequest(f"reuse_threshold = {self.threshold} is no number from 0 on; use 0 for no reuse")
        if self.order not in (0, 1, 2):
            raise InvalidRequest(f"order = {self.order} of step reuse is not supported; use 0, 1 or 2")


def check_reuse(rows: npt.NDArray[np.void], what: str) -> None:
    """Refuse a table with a row that reuses what no earlier row of the same engine has evaluated.

    Raises:
        InvalidRequest: such a row.
    """
    engine, conditional, difference = -1, False, False
    for i, row in enumerate(rows):
        if row["engine"] != engine:
            engine, conditional, difference = row["engine"], False, False
        kind, guided = row["evaluate"], row["guidance_scale"] != 1.0
        if kind == Evaluation.CONDITIONAL and not guided:
            raise InvalidRequest(
                f"row {i} of {what} has no guidance and so no unconditional branch to reuse; evaluate it"
            )
        reuses = kind == Evaluation.REUSE
        if (reuses and not conditional) or (guided and (reuses or kind == Evaluation.CONDITIONAL) and not difference):
            raise InvalidRequest(f"row {i} of {what} reuses an output that no row before it evaluated; evaluate it")
        conditional |= kind in (Evaluation.EVALUATE, Evaluation.CONDITIONAL)
        difference |= kind == Evaluation.EVALUATE and guided


def calls_of(rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Network calls of each row [num_rows] as the table plans them."""
    both = np.where(rows["guidance_scale"] == 1.0, 1, 2)
    kind = rows["evaluate"]
    return np.where(kind == Evaluation.EVALUATE, both, np.where(kind == Evaluation.CONDITIONAL, 1, 0))
