"""Bundles with merged adapters: whole clips equal diffusers' fused pipelines, only what changed is new, all is said."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler
from safetensors.torch import load_file
from tiny_adapters import fused_pipeline, fused_weights, random_lora, save_adapter, weights_of
from tiny_checkpoint import save_tiny_checkpoint
from tiny_families import VARIANTS

from sora_export import build_bundle
from sora_export.adapted import Adapted
from sora_export.adapter import Adapter
from sora_export.build import BuildRequest, build, plan
from sora_export.check import check_bundle
from sora_export.few_step import PRESETS
from sora_export.precision import Precision
from sora_runtime import Bundle, Runtime
from sora_runtime._core import NoiseGenerator

pytest.importorskip("peft")
PROMPT = "a red circle moves left"
SHAPE: dict[str, Any] = {"sizes": [(32, 48)], "num_frames": [9]}
# Four steps of two float32 implementations: 1e-6 is seen; the project promises 1e-3.
TOLERANCE = 1e-5
BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft and diffusers on each other's versions
        yield


def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lora_of(checkpoint: Path, folder: Path, seed: int = 0, component: str = "transformer") -> Path:
    adapter = random_lora(weights_of(checkpoint, component), seed=seed)
    return save_adapter(folder / f"lora{seed}/a.safetensors", adapter)


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def start_noise(runtime: Runtime) -> np.ndarray:
    facts, defaults = runtime.bundle.manifest.facts, runtime.bundle.manifest.facts.defaults
    frames = (defaults.num_frames - 1) // facts.temporal_stride + 1
    rows, columns = (size // facts.spatial_stride for size in (defaults.height, defaults.width))
    shape = (1, facts.latent_channels, frames, rows, columns)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@torch.no_grad()
def diffusers_latents(pipeline: DiffusionPipeline, runtime: Runtime, noise: np.ndarray, **settings: Any) -> np.ndarray:
    """The last latents of a pipeline from that noise, in the order of ours."""
    defaults, name = runtime.bundle.manifest.facts.defaults, type(pipeline).__name__
    latents = torch.from_numpy(noise.copy())
    if name.startswith("LTX"):
        latents = latents.flatten(2).transpose(1, 2)
    elif name.startswith("CogVideoX"):
        latents = latents.transpose(1, 2)
    seen: dict[str, torch.Tensor] = {}
    size = {"height": defaults.height, "width": defaults.width, "num_frames": defaults.num_frames}
    length = runtime.bundle.manifest.components.text_encoder.max_sequence_length
    pipeline(
        prompt=PROMPT,
        latents=latents,
        max_sequence_length=length,
        output_type="latent",
        callback_on_step_end=lambda _pipe, _i, _t, values: seen.update(values) or {},
        **size,
        **settings,
    )
    last = seen["latents"]
    if name.startswith("LTX"):
        last = last.transpose(1, 2).reshape(noise.shape)
    elif name.startswith("CogVideoX"):
        last = last.transpose(1, 2)
    return np.asarray(last.numpy())


@pytest.mark.parametrize("name", ["Wan 2.1 T2V", "LTX-Video 0.9.5", "CogVideoX-5B"])
def test_clips_equal_the_fused_pipelines(name: str, tmp_path: Path) -> None:
    variant = BY_NAME[name]
    checkpoint = variant.save(tmp_path / "checkpoint")
    file = lora_of(checkpoint, tmp_path)
    size, frames = [variant.size], [variant.num_frames]
    bundle = build_bundle(Adapted(checkpoint, [Adapter(file, 0.8)]), tmp_path / "bundle", size, frames, tasks=["t2v"])
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0}
    with Runtime.load(bundle, num_threads=1) as runtime:
        noise = start_noise(runtime)
        got = runtime.generate(PROMPT, latents=noise, **settings).latents
        want = diffusers_latents(fused_pipeline(checkpoint, (file, 0.8)), runtime, noise, **settings)
        base = diffusers_latents(
            DiffusionPipeline.from_pretrained(bundle, dtype=torch.float32), runtime, noise, **settings
        )
    assert relative_l2(got, want) < TOLERANCE
    assert relative_l2(base, want) > 0.01  # the adapter shows; diffusers loads the folder's base


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "checkpoint")


@pytest.fixture(scope="module")
def adapted(wan: Path) -> Path:
    """The checkpoint with two adapters, in a folder beside it."""
    adapters = [Adapter(lora_of(wan, wan.parent, 0)), Adapter(lora_of(wan, wan.parent, 1), 0.5)]
    return build_bundle(Adapted(wan, adapters), wan.parent / "adapted", SHAPE["sizes"], SHAPE["num_frames"])


def test_only_changed_tensors_are_new_and_graphs_point_at_them(wan: Path, adapted: Path) -> None:
    made = manifest(adapted)
    (merged,) = made["merged"].values()
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (adapted / weights).samefile(wan / weights)
    new = {path.relative_to(adapted).as_posix() for path in adapted.rglob("*.safetensors")}
    assert new - {path.relative_to(wan).as_posix() for path in wan.rglob("*.safetensors")} == {merged}
    assert made["files"][merged]["sha256"] == hashlib.sha256((adapted / merged).read_bytes()).hexdigest()
    changed = set(load_file(adapted / merged))
    assert len(changed) == 20 and changed < set(weights_of(wan))
    graph = "transformer.32x48x9.onnx"
    assert set(made["files"][graph]["data"]) == {merged, weights}
    for tensor in onnx.load(adapted / graph, load_external_data=False).graph.initializer:
        if tensor.external_data:
            place = next(entry.value for entry in tensor.external_data if entry.key == "location")
            assert (place == merged) == (tensor.name.removeprefix("model.") in changed), tensor.name
    assert all(entry["relative_l2"] < TOLERANCE for entry in made["parity"].values())
    assert not list(adapted.glob(".*")) and not list((adapted / "merged").glob(".*"))


def test_the_bundle_says_what_it_holds(wan: Path, adapted: Path) -> None:
    said = Bundle.load(adapted, verify="always").manifest.adapters
    digests = [hashlib.sha256((wan.parent / f"lora{n}/a.safetensors").read_bytes()).hexdigest() for n in (0, 1)]
    assert [(one.component, one.name, one.sha256, one.scale, one.modules) for one in said] == [
        ("transformer", "a.safetensors", digests[0], 1.0, 20),
        ("transformer", "a.safetensors", digests[1], 0.5, 20),
    ]


def test_a_built_bundle_in_its_own_folder_and_again_with_another_adapter(wan: Path, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    before = snapshot(folder)
    said: list[str] = []
    for seed in (0, 1):
        file = lora_of(folder, tmp_path, seed)
        request = BuildRequest(str(folder), folder, **SHAPE, adapters=[Adapter(file)], check_parity=False)
        build(request, said.append)
        want = fused_weights(fused_pipeline(folder, (file, 1.0)))
        (merged,) = manifest(folder)["merged"].values()
        assert all(torch.equal(tensor, want[name]) for name, tensor in load_file(folder / merged).items())
        Runtime.load(folder, verify="always").close()
    assert {name: data for name, data in snapshot(folder).items() if name in before} == before
    build(BuildRequest(str(folder), tmp_path / "plain", **SHAPE, check_parity=False), said.append)
    assert f"building without a.safetensors, which {folder} holds; give --lora again to merge it" in said
    assert manifest(tmp_path / "plain")["adapters"] == [] and not (tmp_path / "plain/merged").exists()


def test_two_transformers_in_bfloat16_shards(tmp_path: Path) -> None:
    """Wan 2.2: an adapter for each; the boundary lies within four steps."""
    checkpoint = save_tiny_checkpoint(
        tmp_path / "checkpoint", dtype=torch.bfloat16, max_shard_size="60KB", two_experts=True
    )
    adapters = [
        Adapter(lora_of(checkpoint, tmp_path, 0)),
        Adapter(lora_of(checkpoint, tmp_path, 1), 0.5, "transformer_2"),
    ]
    adapted = Adapted(checkpoint, adapters, PRESETS["wan2.2-4"])
    bundle = build_bundle(adapted, tmp_path / "bundle", SHAPE["sizes"], SHAPE["num_frames"])
    made = manifest(bundle)
    assert set(made["merged"]) == {"transformer", "transformer_2"}
    assert [entry["component"] for entry in made["adapters"]] == ["transformer", "transformer_2"]
    assert all(entry["relative_l2"] < TOLERANCE for entry in made["parity"].values())
    (name,) = {path.name for path in (bundle / "merged").glob("transformer_2.*")}
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(bundle / "merged" / name).values())
    with Runtime.load(bundle, num_threads=1) as runtime:
        assert runtime.generate(PROMPT).receipt.evaluations.made == 4  # no guidance


@pytest.mark.parametrize("preset", ["wan2.1-4", "fastwan-3"])
def test_a_few_step_clip_equals_diffusers_with_an_lcm_scheduler(
    wan: Path, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapter, levels and no guidance are the bundle's defaults: a prompt alone gives the distilled clip."""
    file, few = lora_of(wan, tmp_path), PRESETS[preset]
    adapted = Adapted(wan, [Adapter(file)], few)
    bundle = build_bundle(adapted, tmp_path / "bundle", SHAPE["sizes"], SHAPE["num_frames"], check_parity=False)
    facts = manifest(bundle)["facts"]
    assert facts["few_step"] == {**few, "sigmas": list(few["sigmas"])}
    assert (facts["defaults"]["num_inference_steps"], facts["defaults"]["guidance_scale"]) == (len(few["sigmas"]), 1.0)
    pipeline = fused_pipeline(wan, (file, 1.0))
    pipeline.scheduler = FlowMatchLCMScheduler(shift=few["shift"])
    steps = pipeline.scheduler.set_timesteps
    monkeypatch.setattr(
        pipeline.scheduler, "set_timesteps", lambda _count, device: steps(sigmas=list(few["sigmas"]), device=device)
    )
    with Runtime.load(bundle, num_threads=1) as runtime:
        noise = start_noise(runtime)
        fresh = NoiseGenerator(5, first_stream=1)

        def draw(shape: Any, **_: Any) -> torch.Tensor:
            return torch.from_numpy(fresh.normal(tuple(shape)))

        monkeypatch.setattr("diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor", draw)
        settings = {"num_inference_steps": len(few["sigmas"]), "guidance_scale": 1.0}
        want = diffusers_latents(pipeline, runtime, noise, **settings)
        clip = runtime.generate(PROMPT, seed=5, latents=noise)
    assert relative_l2(clip.latents, want) < TOLERANCE
    assert clip.receipt.evaluations.made == len(few["sigmas"])


def test_int8_for_onnxruntime_quantises_the_merged_weights(wan: Path, tmp_path: Path) -> None:
    file = lora_of(wan, tmp_path)
    request = BuildRequest(
        str(wan), tmp_path / "int8", **SHAPE, precision=Precision.INT8, adapters=[Adapter(file)], check_parity=False,
        few_step=PRESETS["wan2.2-4"],
    )  # fmt: skip
    bundle = build(request)
    assert {path.name for path in tmp_path.iterdir()} == {"int8", "lora0"}  # the float32 one is gone
    assert manifest(bundle)["adapters"][0]["modules"] == 20
    again = build(request)
    assert [path.name for path in (again / "int8").iterdir() if path.name.startswith("transformer")] == [
        "transformer.safetensors"
    ]
    # Against torch with the merged weights, and clips against a float32 bundle with them: without, both are far off.
    result = check_bundle(bundle, prompts=[PROMPT])
    (clip,) = result.frames.values()
    assert result.broken() == [] and clip["psnr"].value >= 30
    assert 1e-4 < result.parts["transformer.32x48x9.onnx"].value < 0.1


def test_bfloat16_for_tensorrt_takes_the_merged_weights(wan: Path, tmp_path: Path) -> None:
    request = BuildRequest(
        str(wan), tmp_path / "bf16", **SHAPE, precision=Precision.BF16, engine="tensorrt_rtx",
        adapters=[Adapter(lora_of(wan, tmp_path))], check_parity=False,
    )  # fmt: skip
    bundle = build(request)
    result = check_bundle(bundle, prompts=[PROMPT], num_inference_steps=2)
    assert result.broken() == []
    (merged,) = manifest(bundle)["merged"].values()
    assert merged in manifest(bundle)["files"]["transformer.32x48x9.onnx"]["data"]


def test_the_plan_counts_the_merge(wan: Path, tmp_path: Path) -> None:
    file = lora_of(wan, tmp_path)
    plain = plan(BuildRequest(str(wan), tmp_path / "b", **SHAPE))
    merging = plan(BuildRequest(str(wan), tmp_path / "b", **SHAPE, adapters=[Adapter(file)]))
    assert [phase.name for phase in merging.phases] == ["merge", "export"]
    weights = weights_of(wan)
    changed = [name for name in weights if name.endswith("weight") and name[:-7] in _modules(file)]
    assert merging.phases[0].disk_bytes.value == sum(weights[name].nbytes for name in changed)
    assert merging.disk_bytes.value > plain.disk_bytes.value and not (tmp_path / "b").exists()


def _modules(file: Path) -> set[str]:
    return {name.removeprefix("transformer.").split(".lora_")[0] for name in load_file(file)}
