"""What holds for every estimate, whatever was asked."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

import sora_runtime as sora
from sora_runtime.cost.estimate import Estimate
from sora_runtime.cost.record import receipt_of
from sora_runtime.receipt import Receipt

WAN = "wan2.1-t2v-14b"
NOW = datetime(2026, 11, 28, tzinfo=UTC)
POCKET = Path(sora.__file__).parent / "models/wan-pocket"


def total(found: Estimate) -> float:
    return sum(sum(stage.values()) for stage in found.prediction.stages.values())


def assert_whole(found: Estimate) -> Receipt:
    """Its sums, order and money hold, and its receipt survives JSON; returns the receipt."""
    at = found.prediction
    assert 0 < at.p10 < at.p50 < at.p90 < math.inf
    assert at.p50 == pytest.approx(total(found), rel=1e-12)
    assert all(value >= 0 for stage in at.stages.values() for value in stage.values())
    receipt = receipt_of(found, NOW)
    again = Receipt.model_validate_json(receipt.model_dump_json())
    assert again == receipt
    json.dumps(receipt.model_dump(mode="json"), allow_nan=False)
    assert all(receipt.reasons.values())
    if found.money is not None:
        assert sum(found.money.items.values()) == pytest.approx(found.money.usd_per_clip, rel=1e-12)
        low, high = found.money_at(at.p10), found.money_at(at.p90)
        assert low.usd_per_clip < found.money.usd_per_clip < high.usd_per_clip
    return receipt
