"""Q/DQ graphs for TensorRT and dynamic int8 for ONNX Runtime: which layers, how exact, and no weight copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import WanTransformer3DModel
from precision_graphs import FRAMES, SIZE, external, make_feeds, relative_l2, run
from safetensors.numpy import load_file

from sora_export import quantize_onnx
from sora_export.calibration import CalibrationResult, calibrate
from sora_export.decoder_feeds import decoder_feeds
from sora_export.engine_from_onnx import EngineOptions, engine_from_onnx
from sora_export.linears import Linear
from sora_export.precision import EngineName, Part, Precision
from sora_export.quantize_nvfp4 import NVFP4
from sora_export.quantize_onnx import to_precision
from sora_export.sensitivity import keep_sensitive, sensitivity
from sora_runtime.errors import EngineError, InvalidRequest

TRANSFORMER = f"transformer.{SIZE[0]}x{SIZE[1]}x{FRAMES}.onnx"
LINEARS = 2 * 10  # of two blocks: q, k, v and out of two attentions, two of the feed-forward
SELF_ATTENTIONS = 2


@pytest.fixture(scope="module")
def own_bundle(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, to which these tests add files."""
    return Path(shutil.copytree(plain_bundle, tmp_path_factory.mktemp("own") / "bundle"))


@pytest.fixture(scope="module")
def calibration(own_bundle: Path) -> CalibrationResult:
    graph = own_bundle / TRANSFORMER
    return calibrate(graph, (make_feeds(graph, seed) for seed in range(3)))


def converted(
    bundle: Path,
    precision: Precision,
    calibration: CalibrationResult | None,
    engine: EngineName = "tensorrt_rtx",
    graph: str = TRANSFORMER,
    part: Part = "transformer",
) -> ir.Model:
    return to_precision(
        ir.load(bundle / graph),
        precision,
        engine=engine,
        part=part,
        calibration=calibration,
        root=bundle,
        data_file=f"{precision}/{part}.safetensors",
    )


def quantised_weights(model: ir.Model) -> set[str]:
    """Names of the weights that some QuantizeLinear with a scale for each channel takes, perhaps through a Cast."""
    found = set()
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and "axis" in node.attributes:
            value = node.inputs[0]
            while value is not None and (producer := value.producer()) is not None:
                value = producer.inputs[0]
            assert value is not None and value.name is not None
            found.add(value.name.removeprefix("model."))
    return found


def test_calibration_sees_what_the_linears_of_torch_see(own_bundle: Path, calibration: CalibrationResult) -> None:
    model = WanTransformer3DModel.from_pretrained(own_bundle / "transformer").eval()
    seen: dict[str, np.ndarray[Any, Any]] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            largest = inputs[0].abs().flatten(0, -2).amax(0).numpy()
            seen[name] = np.maximum(seen.get(name, 0), largest)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(f"{name}.weight"))
    with torch.no_grad():
        for seed in range(3):
            feeds = {
                name: torch.from_numpy(array) for name, array in make_feeds(own_bundle / TRANSFORMER, seed).items()
            }
            model(feeds["hidden_states"], feeds["timestep"], feeds["encoder_hidden_states"])
    linears = {name: amax for name, amax in calibration.amax.items() if not name.endswith(".attention")}
    assert len(linears) == LINEARS
    assert calibration.evaluations == 3
    for name, amax in linears.items():
        np.testing.assert_allclose(amax, seen[name], rtol=1e-4, atol=1e-5)  # float32, another order of sums


def test_calibration_is_plain_data_and_adds_up(calibration: CalibrationResult) -> None:
    again = CalibrationResult.from_json(json.loads(json.dumps(calibration.to_json())))
    name = next(iter(calibration.amax))
    assert again.evaluations == 3
    np.testing.assert_array_equal(again.amax[name], calibration.amax[name])
    larger = CalibrationResult({name: calibration.amax[name] * 2}, 1, frozenset({"some.weight"}))
    both = calibration.merged(larger)
    np.testing.assert_array_equal(both.amax[name], larger.amax[name])
    assert (both.evaluations, both.keep, len(both.amax)) == (4, {"some.weight"}, len(calibration.amax))


def test_nothing_to_calibrate_with_is_said(own_bundle: Path) -> None:
    with pytest.raises(InvalidRequest, match="at least one prompt"):
        calibrate(own_bundle / TRANSFORMER, [])


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_exactly_the_linears_of_the_blocks_are_quantised(
    own_bundle: Path, calibration: CalibrationResult, precision: Precision
) -> None:
    weights = quantised_weights(converted(own_bundle, precision, calibration))
    assert len(weights) == LINEARS
    assert all(name.startswith("blocks.") for name in weights)
    kept = CalibrationResult(calibration.amax, 3, frozenset({"blocks.1.ffn.net.2.weight"}))
    assert weights - quantised_weights(converted(own_bundle, precision, kept)) == kept.keep


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_weights_stay_in_the_checkpoint_and_scales_are_small(
    own_bundle: Path, calibration: CalibrationResult, precision: Precision
) -> None:
    before = external(ir.load(own_bundle / TRANSFORMER))
    model = converted(own_bundle, precision, calibration)
    assert external(model) == before
    new = [value for name, value in model.graph.initializers.items() if name not in before]
    scales = [value for value in new if value.name is not None and value.name.endswith(".scale")]
    channels = sum(int(np.prod(value.shape.numpy())) for value in scales if value.shape is not None)
    # 8 linears of 48 channels and 96 + 48 of the feed-forward in each block; one for each of the inputs, which
    # q, k and v share and both blocks' text; four for each self-attention.
    per_channel = 2 * (8 * 48 + 96 + 48)
    assert per_channel < channels <= per_channel + 2 * 7 + 4 * SELF_ATTENTIONS


# Of one forward pass, random weights: twice the 3.6% and 0.9% that NVIDIA ModelOpt measures on a larger one.
@pytest.mark.parametrize(("precision", "budget"), [(Precision.FP8, 0.072), (Precision.INT8, 0.018)])
def test_the_error_is_that_of_the_format(
    own_bundle: Path, calibration: CalibrationResult, precision: Precision, budget: float
) -> None:
    feeds = make_feeds(own_bundle / TRANSFORMER, seed=7)
    expected = run(own_bundle / TRANSFORMER, own_bundle, feeds)[0]
    half = relative_l2(run(converted(own_bundle, Precision.BF16, None), own_bundle, feeds)[0], expected)
    error = relative_l2(run(converted(own_bundle, precision, calibration), own_bundle, feeds)[0], expected)
    assert half < error < budget


def test_smoothing_saves_int8_from_a_channel_that_sticks_out(
    own_bundle: Path, calibration: CalibrationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel of the calibrated inputs is 100 times the others: without smoothing they get 7 bits fewer."""
    wide = {name: amax.copy() for name, amax in calibration.amax.items()}
    for amax in wide.values():
        amax[0] = 100 * amax.max()
    statistics = CalibrationResult(wide, 3)
    feeds = make_feeds(own_bundle / TRANSFORMER, seed=7)
    expected = run(own_bundle / TRANSFORMER, own_bundle, feeds)[0]
    smoothed = relative_l2(run(converted(own_bundle, Precision.INT8, statistics), own_bundle, feeds)[0], expected)
    monkeypatch.setattr(quantize_onnx, "_smoothing", lambda amax, linears: np.ones_like(amax))
    plain = relative_l2(run(converted(own_bundle, Precision.INT8, statistics), own_bundle, feeds)[0], expected)
    assert smoothed < plain / 3


def test_scales_need_calibration(own_bundle: Path) -> None:
    with pytest.raises(InvalidRequest, match="--calibration"):
        converted(own_bundle, Precision.FP8, None)


@pytest.mark.parametrize("capability", ["8.9", "12.0"])
@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_tensorrt_rtx_multiplies_in_eight_bits(
    own_bundle: Path, calibration: CalibrationResult, precision: Precision, capability: str, tmp_path: Path
) -> None:
    file = own_bundle / f".{precision}.{TRANSFORMER}"
    ir.save(converted(own_bundle, precision, calibration), file)
    report = engine_from_onnx(file, tmp_path / "plan", EngineOptions(compute_capabilities=(capability,))).report
    in_attention = 2 * SELF_ATTENTIONS if precision is Precision.FP8 else 0
    assert report.quantised_ops == LINEARS + in_attention
    assert report.quantised_run == report.quantised_ops
    fp8 = SELF_ATTENTIONS if precision is Precision.FP8 else 0
    assert report.attention_types is not None
    assert report.attention_types.get("FP8", 0) == fp8
    assert report.attention_types["BFloat16"] == 2 * SELF_ATTENTIONS - fp8


def test_int8_for_the_processor_is_close_and_seven_bits(own_bundle: Path) -> None:
    before = external(ir.load(own_bundle / TRANSFORMER))
    model = converted(own_bundle, Precision.INT8, None, "onnxruntime")
    feeds = make_feeds(own_bundle / TRANSFORMER)
    expected = run(own_bundle / TRANSFORMER, own_bundle, feeds)[0]
    # Per layer 0.8% of the weights (63 steps) and 1.2% of a normal input (255 steps over 10 deviations); half of the
    # layers in a row, in quadrature, beside a residual stream that is exact.
    assert 1e-4 < relative_l2(run(model, own_bundle, feeds)[0], expected) < 0.03
    stored = load_file(own_bundle / "int8/transformer.safetensors")
    weights = {name: array for name, array in stored.items() if array.dtype == np.int8}
    assert len(weights) == LINEARS
    assert max(np.abs(array.astype(int)).max() for array in weights.values()) == 63
    floats = load_file(next((own_bundle / "transformer").glob("*.safetensors")))
    for name, array in weights.items():
        # With the eighth bit a weight is within half a step of 8 bits.
        finer = np.stack([stored[f"{name}.finer"] >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
        half_steps = 2 * array.astype(int) + finer.reshape(len(array), -1)[:, : array.shape[1]].astype(int) - 1
        exact = floats[name.removesuffix(".int8")].T / stored[name.replace(".int8", ".scale")]
        assert np.abs(half_steps / 2 - exact).max() < 0.2501
    after = external(model)
    assert {name for name in after if name in before} == {n for n in before if not quantised(n, weights)}
    assert all(after[name] == before[name] for name in after if name in before)


def quantised(name: str, weights: dict[str, Any]) -> bool:
    return f"{name.removeprefix('model.')}.int8" in weights


def test_buckets_share_the_quantised_weights_until_the_checkpoint_changes(own_bundle: Path) -> None:
    file = own_bundle / "int8/transformer.safetensors"
    first = external(converted(own_bundle, Precision.INT8, None, "onnxruntime"))
    bytes_before = file.read_bytes()
    assert external(converted(own_bundle, Precision.INT8, None, "onnxruntime")) == first
    assert [path.name for path in file.parent.glob("transformer*")] == [file.name]
    weights = next((own_bundle / "transformer").glob("*.safetensors"))
    weights.touch()
    again = external(converted(own_bundle, Precision.INT8, None, "onnxruntime"))
    new = {place for name, (place, _, _) in again.items() if name.endswith(".int8")}
    assert new == {"int8/transformer.2.safetensors"}
    assert file.read_bytes() == bytes_before  # the graph that was made first still points into it


def test_a_half_checkpoint_becomes_int8_too(half_bundle: Path) -> None:
    model = converted(half_bundle, Precision.INT8, None, "onnxruntime")
    feeds = make_feeds(half_bundle / TRANSFORMER)
    expected = run(half_bundle / TRANSFORMER, half_bundle, feeds)[0]
    assert relative_l2(run(model, half_bundle, feeds)[0], expected) < 0.03  # as above
    casts = {node.inputs[0].name for node in model.graph if node.op_type == "Cast" and node.inputs[0] is not None}
    assert not any("blocks.0.ffn" in (name or "") and "weight" in (name or "") for name in casts)


def test_the_text_encoder_is_quantised_as_well(own_bundle: Path) -> None:
    graph = own_bundle / "text_encoder.onnx"
    statistics = calibrate(graph, [make_feeds(graph, seed) for seed in range(3)])
    feeds = make_feeds(graph, seed=7)
    expected = run(graph, own_bundle, feeds)[0]
    for engine in ("tensorrt_rtx", "onnxruntime"):
        model = converted(own_bundle, Precision.INT8, statistics, engine, "text_encoder.onnx", "text_encoder")  # type: ignore[arg-type]
        assert relative_l2(run(model, own_bundle, feeds)[0], expected) < 0.05  # rare words have never been calibrated


def test_nvfp4_is_new_data_of_half_a_byte_and_builds_for_blackwell(
    own_bundle: Path, calibration: CalibrationResult, tmp_path: Path
) -> None:
    """Of the tiny model, with 48 channels, only the second linear of the feed-forward divides into pairs of blocks."""
    model = converted(own_bundle, Precision.NVFP4, calibration)
    feeds = make_feeds(own_bundle / TRANSFORMER, seed=7)
    expected = run(own_bundle / TRANSFORMER, own_bundle, feeds)[0]
    half = relative_l2(run(converted(own_bundle, Precision.BF16, None), own_bundle, feeds)[0], expected)
    assert half < relative_l2(run(model, own_bundle, feeds)[0], expected) < 0.1  # two linears, 10% of each in 4 bits
    stored = {name: array for name, array in external(model).items() if name.endswith((".nvfp4", ".block_scale"))}
    sizes = sorted(length or 0 for _, _, length in stored.values())
    assert sizes == [48 * 96 // 16] * 2 + [48 * 96 // 2] * 2
    file = own_bundle / f".nvfp4.{TRANSFORMER}"
    ir.save(model, file)
    built = engine_from_onnx(file, tmp_path / "plan", EngineOptions(compute_capabilities=("12.0",)))
    assert built.log.read_text().count("FP4E2M1") >= 2
    with pytest.raises(EngineError, match="has no fp4_e2m1"):
        engine_from_onnx(file, tmp_path / "plan", EngineOptions(compute_capabilities=("8.9",)))


def test_nvfp4_numbers_are_those_of_the_format() -> None:
    """Every block's largest number becomes +-6 steps; the rest the nearest of the sixteen numbers of E2M1."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((16, 64)) * 0.02).astype(np.float32)
    value = ir.Value(name="blocks.0.w.weight", shape=ir.Shape(weight.shape), const_value=ir.tensor(weight))
    linear = Linear(ir.node("Gemm", [value, value]), value, value, *weight.shape)
    unit, scales, packed = NVFP4.make(linear)
    bits = np.stack((packed & 15, packed >> 4), axis=-1).reshape(weight.shape)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    numbers = grid[bits & 7] * np.where(bits & 8, -1, 1)
    steps = np.repeat(scales.astype(np.float32) * unit, 16, axis=1)
    nearest = np.abs(np.abs(weight)[..., None] - grid * steps[..., None]).min(axis=-1)
    np.testing.assert_allclose(np.abs(numbers * steps - weight), nearest, atol=1e-7)  # ties and float32's last bit
    assert np.abs(numbers).reshape(16, 4, 16).max(axis=-1).min() == 6


def test_a_decoders_convolutions_become_int8_for_the_processor(own_bundle: Path) -> None:
    first, following = (own_bundle / f"vae_decoder.{SIZE[0]}x{SIZE[1]}.{chunk}.onnx" for chunk in ("first", "next"))
    rng = np.random.default_rng(0)
    fed: dict[Path, list[dict[str, Any]]] = {first: [], following: []}
    for graph, feeds in decoder_feeds(first, following, rng.standard_normal((1, 4, 3, 8, 12)).astype(np.float32)):
        fed[graph].append(feeds)
    assert [len(feeds) for feeds in fed.values()] == [1, 2]
    statistics = calibrate(first, fed[first]).merged(calibrate(following, fed[following]))
    for graph, feeds in decoder_feeds(first, following, rng.standard_normal((1, 4, 3, 8, 12)).astype(np.float32)):
        model = converted(own_bundle, Precision.INT8, statistics, "onnxruntime", graph.name, "vae_decoder")
        integer = [node for node in model.graph if node.op_type == "Conv" and is_dequantised(node)]
        assert len(integer) >= 8
        assert not any("conv_in" in (node.inputs[1].name or "") for node in integer)  # type: ignore[union-attr]
        expected = np.clip(run(graph, own_bundle, feeds)[0], -1, 1)
        found = np.clip(run(model, own_bundle, feeds)[0], -1, 1)
        assert 30 < 10 * np.log10(4 / np.mean(np.square(found - expected))) < 80  # the budget of a frame; not exact


def is_dequantised(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs[:2] if value is not None]
    return all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)


def test_the_layer_that_loses_most_is_found_and_kept(own_bundle: Path) -> None:
    """By calibration one input channel of one linear is 100,000 times as large: eight bits have none for the others."""
    graph = own_bundle / TRANSFORMER
    feeds = [make_feeds(graph, seed) for seed in range(2)]
    statistics = calibrate(graph, feeds)
    bad = "blocks.1.ffn.net.0.proj.weight"
    largest = statistics.amax[bad].copy()
    largest[0] *= 1e5
    worse = CalibrationResult({**statistics.amax, bad: largest}, 2)
    errors = sensitivity(graph, feeds, worse, Precision.INT8, "transformer")
    assert max(errors, key=lambda kind: errors[kind]) == "blocks.*.ffn.net.0.proj.weight"
    rest = np.sqrt(sum(error**2 for kind, error in errors.items() if "proj" not in kind))
    kept = keep_sensitive(graph, feeds, worse, Precision.INT8, "transformer", max_error=float(rest) * 1.01)
    assert kept.keep == {"blocks.0.ffn.net.0.proj.weight", bad}
    unhurt = keep_sensitive(graph, feeds, statistics, Precision.INT8, "transformer")
    assert unhurt.keep == frozenset()


def test_the_processor_never_holds_all_scores(own_bundle: Path) -> None:
    """The float32 graph through `to_precision`: other operators, the same numbers."""
    model = converted(own_bundle, Precision.FP32, None, "onnxruntime")
    names = [node.op_type for node in model.graph if node.op_type.endswith("Attention")]
    assert names == ["MultiHeadAttention"] * 2 * SELF_ATTENTIONS
    feeds = make_feeds(own_bundle / TRANSFORMER)
    expected = run(own_bundle / TRANSFORMER, own_bundle, feeds)[0]
    assert relative_l2(run(model, own_bundle, feeds)[0], expected) < 1e-5  # float32, another order of sums


def test_masked_attention_keeps_the_standard_operator(own_bundle: Path) -> None:
    model = converted(own_bundle, Precision.FP32, None, "onnxruntime", "text_encoder.onnx", "text_encoder")
    assert {node.op_type for node in model.graph if node.op_type.endswith("Attention")} == {"Attention"}
