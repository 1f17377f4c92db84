"""What a policy of step reuse learns from clips made without: a curve of magnitudes, a polynomial, a plan."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .sampling.reuse_policies import outputs_at_hand

Norms = Sequence[NDArray[np.void]]
"""For each clip [rows] of what the sampler measured; see `Clip.norms`."""


def curve_of(norms: Norms, *, residual: bool) -> tuple[float, ...]:
    """MagCache's ratios (arXiv:2506.09045): magnitude of each row's output, or of output less input, over the last's.

    The L1 norm over the clip stands for the mean of the tokens' L2 norms, which a network with nothing exposed and
    one pass of sums do not give.
    """
    name = "residual" if residual else "output"
    magnitude = np.stack([each[name] for each in norms])
    ratios = np.mean(magnitude[:, 1:] / magnitude[:, :-1], axis=0)
    return (1.0, *(float(ratio) for ratio in ratios))


def polynomial_of(norms: Norms, warm_up: int) -> tuple[float, float, float, float, float]:
    """TeaCache's fit (arXiv:2411.19108): relative change of the output over that of the input, of fourth degree.

    The paper's input is the one modulated by the timestep inside the network; here it is the network's own.
    """
    inputs = np.concatenate([each["input_change"][:-1] / each["input"][:-1] for each in norms])
    outputs = np.concatenate([each["output_change"][1:] / each["output"][:-1] for each in norms])
    late = np.concatenate([np.arange(1, len(each)) >= warm_up for each in norms])
    fitted = np.polynomial.Polynomial.fit(inputs[late], outputs[late], deg=4).convert().coef
    constant, *powers = np.pad(fitted, (0, 5 - len(fitted)))
    return (float(constant), float(powers[0]), float(powers[1]), float(powers[2]), float(powers[3]))


def plan_of(rows: NDArray[np.void], norms: Norms, warm_up: int, reused: int) -> tuple[int, ...] | None:
    """The `reused` rows whose reuse moves the latents least, by dynamic programming; None where there are too few.

    Reusing the output of row i at t errs by at most the sum of the output's changes from i to t, and moves the
    latents by that times the step in time from t.

    Args:
        rows: of the sampler program.
        norms: measured on clips without reuse.
        warm_up: rows at the beginning that are evaluated.
        reused: how many rows to choose.
    """
    count = len(rows)
    errors = _segment_errors(rows, np.mean([each["output_change"] for each in norms], axis=0))
    fixed = _fixed(rows, warm_up)
    # best[n, j]: the least error up to row j, which is evaluated, with n rows reused before it; came[n, j]: from where.
    best = np.full((reused + 1, count), np.inf)
    came = np.zeros((reused + 1, count), np.int64)
    best[0, 0] = 0.0
    for j in range(1, count):
        for i in range(j - 1, -1, -1):
            gap = j - i - 1
            if gap <= reused:
                through = best[: reused + 1 - gap, i] + errors[i, j]
                better = through < best[gap:, j]
                best[gap:, j][better] = through[better]
                came[gap:, j][better] = i
            if fixed[i]:
                break  # no segment passes over a row that must be evaluated
    if not np.isfinite(best[reused, count - 1]):
        return None
    chosen: list[int] = []
    n, j = reused, count - 1
    while j > 0:
        i = int(came[n, j])
        chosen += range(i + 1, j)
        n, j = n - (j - i - 1), i
    return tuple(sorted(chosen))


def _segment_errors(rows: NDArray[np.void], change: NDArray[np.float64]) -> NDArray[np.float64]:
    """[i, j]: what reusing row i's output in all rows between i and j moves the latents by."""
    times = rows["timestep"]
    below = np.array([next((t for t in times[i:] if t < times[i]), 0.0) for i in range(len(rows))])
    step = times - below
    errors = np.zeros((len(rows), len(rows)))
    for i in range(len(rows)):
        drift = np.cumsum(change[i + 1 :])
        errors[i, i + 2 :] = np.cumsum(drift * step[i + 1 :])[:-1]
    return errors


def _fixed(rows: NDArray[np.void], warm_up: int) -> NDArray[np.bool_]:
    """Rows that must be evaluated: the warm-up, the last, and those with nothing at hand to reuse."""
    fixed = np.array([not at_hand for at_hand in outputs_at_hand(rows)])
    fixed[:warm_up] = fixed[-1] = True
    return fixed
