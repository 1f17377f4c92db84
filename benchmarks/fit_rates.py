"""Fits the achieved rates of `sora_runtime.cost` to the published latencies: `python -m benchmarks.fit_rates`.

Writes `catalogue/rates.json`: every parameter with its prior, the joint covariance, and the spreads that remain. Only
rows with complete settings that are not marked doubtful are used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from sora_runtime.cost import fitting, rates, validate
from sora_runtime.output import write_text

OUT = Path(rates.__file__).parent / "catalogue/rates.json"


def main() -> None:
    """Fit and write."""
    cases = validate.complete_cases()
    fit = fitting.fit(cases)
    write_text(OUT, json.dumps(record_of(fit), indent=1) + "\n")
    print(f"{OUT.name}: {len(fit.names)} parameters from {len(cases)} rows of {fit.about['sources']} sources")
    for name, log in zip(fit.names, fit.logs, strict=True):
        prior = rates.prior_of(name)
        away = (log - math.log(prior.value)) / prior.spread
        print(f"{name:<36}{math.exp(log):10.4g} {prior.unit:<24} prior {prior.value:.4g}, {away:+.1f} of its spread")


def record_of(fit: rates.Fit) -> dict[str, object]:
    """The file's content."""
    lower = [fit.covariance[i][j] for i in range(len(fit.names)) for j in range(i + 1)]
    parameters = {}
    for index, (name, log) in enumerate(zip(fit.names, fit.logs, strict=True)):
        prior = rates.prior_of(name)
        parameters[name] = {
            "log": round(log, 6),
            "value": float(f"{math.exp(log):.4g}"),
            "unit": prior.unit,
            "spread": float(f"{math.sqrt(fit.covariance[index][index]):.3g}"),
            "prior": prior.value,
            "prior_spread": prior.spread,
        }
    return {
        "about": fit.about,
        "source_spread": fit.source_spread,
        "row_spread": round(fit.row_spread, 5),
        "parameters": parameters,
        "covariance_lower": [float(f"{value:.5g}") for value in lower],
    }


if __name__ == "__main__":
    main()
