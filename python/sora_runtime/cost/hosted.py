"""Which prices of hosted models are near a clip: of its task, still offered, and of its resolution class."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sora_runtime.cost.estimate import Estimate
from sora_runtime.cost.explore import TIERS
from sora_runtime.cost.prices import ApiPrice, api_prices

# A tier is of the clip's class if its shorter side is within this factor: 720p and 768p are one class, 580p is none.
SAME_CLASS = 1.2
_ROUNDING = 1e-9  # of the logarithms: 768 over 640 is in


@dataclass(frozen=True)
class Wanted:
    """Which prices count."""

    task: str  # t2v or i2v
    match: str  # what a row of the catalogue must hold
    on: str  # YYYY-MM-DD: what was withdrawn by then does not count


@dataclass(frozen=True)
class Hosted:
    """Prices near a clip, and how many others of the task there are."""

    prices: tuple[ApiPrice, ...]  # those of the model's family first
    of_family: int  # how many are
    left_out: Mapping[str, int]  # by reason


def hosted_near(found: Estimate, wanted: Wanted) -> Hosted:
    """Each offer's list price at the tier nearest to the clip's shorter side, if it is of the clip's class."""
    side = min(found.shape.width, found.shape.height)
    left_out: dict[str, int] = {}
    nearest: dict[tuple[str, str, bool | None], ApiPrice] = {}
    for price in api_prices():
        if price.task != wanted.task or not _matches(price, wanted.match):
            continue
        reason = "withdrawn" if not price.offered(wanted.on) else "" if price.kind == "list" else "no list price"
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        key = (price.provider, price.model, price.audio)
        if key not in nearest or _distance(price, side) < _distance(nearest[key], side):
            nearest[key] = price
    near = [price for price in nearest.values() if _distance(price, side) <= math.log(SAME_CLASS) + _ROUNDING]
    if len(near) < len(nearest):
        left_out["of another size"] = len(nearest) - len(near)
    family = [price for price in near if of_family(found.model.family, price.model)]
    others = [price for price in near if not of_family(found.model.family, price.model)]
    return Hosted((*family, *others), len(family), left_out)


def _matches(price: ApiPrice, text: str) -> bool:
    words = (price.provider, price.model, price.tier, price.note, price.source)
    return text.lower() in " ".join(words).lower()


def _distance(price: ApiPrice, side: int) -> float:
    """How far a tier is from the clip; a price without one holds for every size."""
    pixels = TIERS.get(price.tier)
    return 0.0 if pixels is None else abs(math.log(pixels / side))


def of_family(family: str, api_model: str) -> bool:
    """Whether a hosted model's name holds the family's as a word: "wan2.7-t2v" is of wan, "swan" is not."""
    word = rf"(?<![a-z]){re.escape(family.lower())}(?![a-z])"
    return bool(family) and re.search(word, api_model.lower()) is not None
