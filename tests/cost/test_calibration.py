"""What a calibration runs: whole small transformers, and what they tell beside their operators."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from cost.machine_profile import made_up
from sora_runtime.bench.calibrate import in_network
from sora_runtime.bench.micro_graphs import product_blocks, products
from sora_runtime.bench.micro_networks import SMALL_TRANSFORMERS, SmallTransformer, elements
from sora_runtime.bench.pace import filled
from sora_runtime.cost.estimate import Ask, estimate_of
from sora_runtime.cost.machine_time import transformer_seconds
from sora_runtime.cost.profile import Table, load_profile, save_profile
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine

TINY = SmallTransformer((3, 4, 6), heads=2, head_channels=16, text_tokens=5, layers=2)


@pytest.mark.parametrize("int8", [False, True])
def test_a_small_transformer_runs(tmp_path: Path, int8: bool) -> None:
    (tmp_path / "graph.onnx").write_bytes(TINY.graph(int8=int8))
    engine = OnnxRuntimeEngine(tmp_path / "graph.onnx", num_threads=1)
    arrays = {name: filled(spec) for name, spec in {**engine.inputs, **engine.outputs}.items()}
    engine.bind(arrays).run()
    (output,) = (arrays[name] for name in engine.outputs)
    assert output.shape == (1, 16, 3, 4, 6) and np.isfinite(output).all() and output.std() > 0.1


@pytest.mark.parametrize("size", SMALL_TRANSFORMERS)
def test_a_small_transformer_has_the_weights_that_the_cost_model_counts(size: SmallTransformer) -> None:
    assert len(size.graph(int8=False)) == pytest.approx(4 * size.networks.transformer.parameters, rel=0.01)


def test_no_two_weights_are_equal() -> None:
    # ONNX Runtime keeps equal constants once: a chain of them would be read from a cache.
    graph = onnx.load_from_string(products(1, 80, int8=False)).graph
    weights = [tensor.raw_data for tensor in graph.initializer if len(tensor.dims) == 2]
    assert len(weights) == 3 * product_blocks(1, 80, int8=False) == len(set(weights)) > 100


def test_networks_are_held_against_their_operators() -> None:
    alone = made_up()
    seconds = {
        precision: tuple(
            factor * sum(transformer_seconds(size.networks, size.sizes, alone, precision).values())
            for size, factor in zip(SMALL_TRANSFORMERS, (1.5, 1.2, 1.1, 1.0), strict=True)
        )
        for precision in ("fp32", "int8")
    }
    tables = in_network(seconds, alone)
    assert tables["int8"].values == pytest.approx((1.5, 1.2, 1.1, 1.0))
    whole = replace(alone, in_network=tables)
    for precision, taken in seconds.items():
        for size, expected in zip(SMALL_TRANSFORMERS, taken, strict=True):
            found = transformer_seconds(size.networks, size.sizes, whole, precision)
            assert sum(found.values()) == pytest.approx(expected)
    assert list(tables["fp32"].axes["elements"]) == sorted(elements(size) for size in SMALL_TRANSFORMERS)


def test_an_estimate_takes_the_networks_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_profile(made_up())
    alone = estimate_of(Ask("wan-pocket", gpu="this-machine")).prediction.stages
    save_profile(made_up(in_network={"fp32": Table("times", {"elements": (1.0, 1e9)}, (1.5, 1.5))}))
    assert load_profile().in_network["fp32"].values == (1.5, 1.5)
    inside = estimate_of(Ask("wan-pocket", gpu="this-machine")).prediction.stages
    for name in ("linear", "attention", "elementwise"):
        assert inside["denoise"][name] == pytest.approx(1.5 * alone["denoise"][name])
    assert inside["vae_decode"] == alone["vae_decode"]
