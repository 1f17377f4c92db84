"""The fit finds what made-up rows were made with, and its bands hold what they promise."""

import dataclasses
import math
import random

import pytest

from sora_runtime.cost import fitting, predict, rates, validate
from sora_runtime.cost.rows import Case

TRUE = {"attention.fa3": 0.80, "attention.fa2": 0.9, "power.hopper": 1.1, "clip": 2.0}


def made_up(noise: float, seed: int) -> list[Case]:
    """The published rows' settings with times from known rates."""
    draw = random.Random(seed)
    truth = rates.Rates({name: math.log(value) for name, value in TRUE.items()})
    found = []
    for case in validate.complete_cases():
        if case.gpu.architecture not in {"hopper", "ampere"} or case.gpu_count > 1 or case.setting.reuse:
            continue
        seconds, _, _ = predict.median_and_gradient(case.clip, case.gpu, case.setting, truth, case.scope)
        found.append(dataclasses.replace(case, seconds=seconds * math.exp(draw.gauss(0.0, noise))))
    return found


def test_known_rates_are_found_again() -> None:
    fit = fitting.fit(made_up(0.02, 1))
    found = fit.rates()
    for name, value in TRUE.items():
        index = fit.names.index(name)
        spread = math.sqrt(fit.covariance[index][index])
        assert abs(math.log(found[name] / value)) < 3 * spread + 0.02, name
    assert fit.row_spread < 0.05


def test_one_wild_row_does_not_move_the_fit() -> None:
    rows = made_up(0.02, 2)
    plain = fitting.fit(rows).rates()
    rows[10] = dataclasses.replace(rows[10], seconds=(rows[10].seconds or 0.0) * 8)
    wild = fitting.fit(rows).rates()
    assert wild["attention.fa3"] == pytest.approx(plain["attention.fa3"], rel=0.03)


def test_the_shipped_fit_is_the_fit_of_the_shipped_rows() -> None:
    """`python -m benchmarks.fit_rates` was run after the last change of rows, priors or model."""
    shipped = rates.fitted()
    cases = validate.complete_cases()
    again = fitting.fit(cases)
    assert shipped.about["rows"] == len(cases)
    assert set(shipped.names) == set(again.names)
    for case in cases[::25]:
        old = validate.predicted(case, shipped).prediction.p50
        new = validate.predicted(case, again).prediction.p50
        assert old == pytest.approx(new, rel=0.02), case.id


def test_a_source_left_out_lies_in_its_band_as_often_as_promised() -> None:
    """Rows of a made-up world with the spreads that the fit assumes: four in five inside, give or take."""
    cases = made_up(0.08, 3)
    sources = ("wan22", "lx2vguide", "torchao")
    compared = []
    for source in sources:
        others = fitting.fit([case for case in cases if case.source != source])
        compared += [validate.predicted(case, others) for case in cases if case.source == source]
    # The world has no offsets of sources or parts, so the promised 80% is a floor.
    assert validate.summary("all", compared).inside > 0.75
