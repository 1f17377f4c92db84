"""Every family in every precision: as near to torch as its format allows, and compiled for two GPUs.

TensorRT-RTX builds with no GPU; how its engines answer is measured by running their graphs with every value rounded as
the engine rounds it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.families import TARGETS, measure_variant
from tiny_families import VARIANTS, Variant

from sora_export.check import FP32_BUDGET, HALF_BUDGET

# Random weights lose more to 8 bits than trained ones; a scale or an axis out of place loses everything.
QUANTISED_LIMIT = {"fp8": 0.15, "int8": 0.3}
# These have one head, for which there is no fused kernel, or none.
UNFUSED = ("vae_decoder", "vae_encoder")


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name.replace(" ", "-") for variant in VARIANTS])
def test_every_component_in_every_precision(variant: Variant, tmp_path: Path) -> None:
    graphs = measure_variant(variant, tmp_path)["graphs"]
    assert {"text_encoder", "transformer", "vae_decoder"} <= {graph["component"] for graph in graphs.values()}
    for name, graph in graphs.items():
        assert graph["fp32"]["relative_l2"] <= FP32_BUDGET, name
        assert graph["bf16"]["relative_l2"] <= HALF_BUDGET * graph["bf16"]["torch"], name
        for precision, limit in QUANTISED_LIMIT.items():
            assert graph[precision]["relative_l2"] <= limit, (name, precision)
        for precision in ("bf16", *QUANTISED_LIMIT):
            engines = graph[precision]["engines"]
            assert [engine["target"] for engine in engines] == list(TARGETS), (name, precision)
            for engine in engines:
                assert engine["size"] > 0
                if graph["component"] not in UNFUSED:
                    assert engine["fused_attention"] == engine["attention_ops"], (name, precision, engine)
                if graph[precision].get("torch") is None:
                    assert engine["quantised_ops"] == engine["quantised_run"] > 0, (name, precision, engine)
