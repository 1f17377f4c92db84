"""Presets: settings by name under whatever else a request says, refused where they were not measured."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sora_runtime as sora
from preset_bundles import preset, with_presets, written
from prompts import PROMPT
from sora_runtime.presets import PRESET_SETTINGS
from sora_runtime.programs import Programs
from sora_runtime.request import ResolvedRequest, resolve
from sora_runtime.sampling import GuidanceRule, SamplerProgram, StepReuse

ONE = {"num_inference_steps": 1, "guidance_scale": 1.0, "solver": "euler"}
LEVELS = {"sigmas": [1.0, 0.5], "guidance_scale": 1.0}
REUSE = {"step_reuse": "easycache", "reuse_threshold": 0.5, "force_step_reuse": True}
BUNDLE = with_presets({"draft": preset(ONE), "levels": preset(LEVELS), "reuse": preset(REUSE)})


def resolved(**fields: Any) -> ResolvedRequest:
    return resolve(PROMPT, fields, BUNDLE.manifest)


def served(settings: dict[str, Any], **fields: Any) -> tuple[SamplerProgram, object]:
    bundle = with_presets({"odd": preset(settings)})
    return Programs(bundle)(resolve(PROMPT, {"preset": "odd", **fields}, bundle.manifest))


def test_a_preset_is_the_clip_that_its_settings_give() -> None:
    runtime = sora.Runtime(BUNDLE, num_threads=2)
    clip = runtime.generate(PROMPT, seed=3, preset="draft")
    plain = runtime.generate(PROMPT, seed=3, **ONE)
    np.testing.assert_array_equal(clip.latents, plain.latents)
    assert clip.receipt.request.preset is not None and clip.receipt.request.preset.model_dump() == {
        "name": "draft",
        "changed": [],
    }
    assert plain.receipt.request.preset is None and "request.preset" in plain.receipt.reasons
    assert "draft" in str(clip.receipt) and "preset" not in str(plain.receipt)


def test_what_a_request_says_is_above_its_preset() -> None:
    found = resolved(preset="draft", solver="unipc", guidance_scale=1.0, negative_prompt="blur")
    assert (found.num_inference_steps, found.solver, found.negative_prompt) == (1, "unipc", "blur")
    assert found.preset is not None and found.preset.changed == ("negative_prompt", "solver")


@pytest.mark.parametrize(
    ("fields", "sigmas", "steps"),
    [
        ({}, (1.0, 0.5), 2),
        ({"num_inference_steps": 2}, (1.0, 0.5), 2),
        ({"num_inference_steps": 5}, None, 5),
        ({"timesteps": [1000, 700, 300]}, None, 3),
        ({"sigmas": [0.9]}, (0.9,), 1),
    ],
)
def test_a_request_that_says_its_steps_gets_no_levels(fields: dict[str, Any], sigmas: object, steps: int) -> None:
    found = resolved(preset="levels", **fields)
    assert (found.sigmas, found.num_inference_steps) == (sigmas, steps)


def test_a_request_with_another_policy_gets_nothing_of_the_presets() -> None:
    found = resolved(preset="reuse", step_reuse="taylorseer")
    assert (found.step_reuse, found.reuse_threshold, found.force_step_reuse) == ("taylorseer", None, False)
    assert resolved(preset="reuse", reuse_threshold=0.1).reuse_threshold == 0.1


def test_records_are_read_from_objects() -> None:
    settings = {
        "guidance_method": {"method": "apg", "momentum": -0.25},
        "step_reuse": {"policy": "plan", "reused": [4, 6]},
        "force_step_reuse": True,
        "guidance_interval": [0, 1],
    }
    bundle = with_presets({"odd": preset(settings)})
    found = resolve(PROMPT, {"preset": "odd"}, bundle.manifest)
    assert found.guidance_rule == GuidanceRule("apg", momentum=-0.25)
    assert found.step_reuse == StepReuse("plan", reused=(4, 6))
    assert found.guidance_interval == (0.0, 1.0)
    program, _ = Programs(bundle)(found)
    assert program.evaluations < program.all_evaluations


def test_every_setting_of_a_preset_is_a_field_of_a_request() -> None:
    assert set(PRESET_SETTINGS) < set(sora.RequestFields.__annotations__)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"preset": "best"}, "preset = 'best' is none of 'wan-pocket'; use draft or levels or reuse"),
        ({"preset": 3}, "preset = 3 is none"),
        ({"preset": "draft", "width": 128}, "was measured on clips of 64x64 with 25 frames (t2v) and width = 128"),
        ({"preset": "draft", "image": np.zeros((64, 64, 3), np.uint8)}, "and this is i2v"),
    ],
)
def test_what_a_preset_cannot_serve_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(sora.InvalidRequest, match=re.escape(words)):
        resolved(**fields)


def test_a_bundle_without_presets_says_what_writes_them() -> None:
    bundle = with_presets({})
    with pytest.raises(sora.InvalidRequest, match=r"has no presets; `sora-bench frontier` writes them"):
        resolve(PROMPT, {"preset": "draft"}, bundle.manifest)


def test_a_preset_brings_its_size() -> None:
    bundle = with_presets({"draft": preset(ONE)})
    defaults = bundle.manifest.facts.defaults.model_copy(update={"num_frames": 49})
    facts = bundle.manifest.facts.model_copy(update={"defaults": defaults})
    manifest = bundle.manifest.model_copy(update={"facts": facts})
    assert resolve(PROMPT, {"preset": "draft"}, manifest).geometry.num_frames == 25


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"guidance_rescale": 3}, "guidance_rescale = 3 is out of range; use 0 to 1"),
        ({"num_inference_steps": "ten"}, "num_inference_steps = 'ten' is no whole number"),
        ({"sigmas": 0.5}, "sigmas = 0.5 is no list"),
        ({"seed": 3}, "'seed' is no setting of a preset"),
        ({"solver": "magic"}, "solver 'magic' is unknown"),
        ({"step_reuse": "plan"}, "step_reuse = 'plan' is not calibrated"),
        ({"step_reuse": {"policy": "plan", "speed": 2}}, "step_reuse: "),
        ({"step_reuse": {"policy": "easycache", "threshold": "low"}}, "step_reuse: "),
    ],
)
def test_a_preset_that_no_request_could_have_is_the_bundles_fault(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(sora.BundleError, match=re.escape(why)) as caught:
        served(settings)
    assert str(caught.value).startswith("preset 'odd' of 'wan-pocket' cannot be used (")
    assert str(caught.value).endswith("; write it anew with `sora-bench frontier`")


def test_what_a_request_adds_to_a_preset_is_its_own_fault() -> None:
    with pytest.raises(sora.InvalidRequest, match="solver 'magic' is unknown"):
        served(ONE, solver="magic")


@pytest.mark.parametrize(
    ("record", "where"),
    [
        ({"draft": {"settings": {}}}, "presets.draft.quality"),
        ({"Draft!": preset(ONE)}, "presets.Draft!"),
        ({"draft": preset(ONE).model_dump() | {"bundle": "../other"}}, "presets.draft.bundle"),
        ({"draft": preset(ONE).model_dump() | {"height": 0}}, "presets.draft.height"),
    ],
)
def test_a_damaged_record_is_found_when_the_bundle_is_read(tmp_path: Path, record: dict[str, Any], where: str) -> None:
    folder = written(tmp_path / "bundle", record)
    with pytest.raises(sora.BundleError, match=re.escape(f"is damaged at {where}")):
        sora.Bundle.load(folder)


def test_presets_are_read_as_they_were_written(tmp_path: Path) -> None:
    presets = {"draft": preset(ONE, adherence=0.9), "levels": preset(LEVELS)}
    assert sora.Bundle.load(written(tmp_path / "bundle", presets)).manifest.presets == presets


OTHER = {"draft": preset({**ONE, "num_inference_steps": 3}, bundle="wan-pocket-4step"), "fair": preset(LEVELS)}


def test_a_loaded_runtime_refuses_a_preset_for_another_bundle() -> None:
    with pytest.raises(sora.InvalidRequest) as caught:
        resolve(PROMPT, {"preset": "draft"}, with_presets(OTHER).manifest)
    assert str(caught.value) == (
        "preset 'draft' is for the bundle 'wan-pocket-4step'; load it with Runtime.load(..., preset='draft') or "
        "`sora-bench run --preset draft`"
    )


def test_loading_with_a_preset_opens_its_bundle(tmp_path: Path) -> None:
    folder = written(tmp_path / "bundle", OTHER)
    with sora.Runtime.load(folder, num_threads=2, preset="draft") as runtime:
        assert runtime.bundle.name == "wan-pocket-4step"  # the shipped one
        clip = runtime.generate(PROMPT)
        assert clip.receipt.request.preset is not None and clip.receipt.request.preset.name == "draft"
        assert clip.receipt.evaluations.made == 3 and clip.receipt.model.name == "wan-pocket-4step"
        with pytest.raises(sora.InvalidRequest, match=r"is none of 'wan-pocket-4step'; use .*draft"):
            runtime.generate(PROMPT, preset="fair")
    with sora.Runtime.load(folder, num_threads=2, preset="fair") as runtime:
        assert runtime.bundle.name == "wan-pocket" and runtime.bundle.root == folder
        assert runtime.generate(PROMPT).receipt.evaluations.made == 2


def test_a_bundle_beside_comes_before_a_shipped_one(tmp_path: Path) -> None:
    folder = written(tmp_path / "bundle", {"draft": preset(ONE, bundle="wan-pocket-4step")})
    beside = written(tmp_path / "wan-pocket-4step", {}, "wan-pocket-4step")
    assert sora.Runtime.load(folder, preset="draft").bundle.root == beside


@pytest.mark.parametrize(
    ("bundle", "words"),
    [("gone", "its bundle: there is no bundle 'gone'"), ("other", "'other' is of the family ltx")],
)
def test_a_preset_whose_bundle_cannot_be_had(tmp_path: Path, bundle: str, words: str) -> None:
    folder = written(tmp_path / "bundle", {"draft": preset(ONE, bundle=bundle)})
    beside = written(tmp_path / "other", {}) / "bundle.json"
    beside.write_text(
        beside.read_text()
        .replace('"family": "wan"', '"family": "ltx"')
        .replace('"name": "wan-pocket"', '"name": "other"')
    )
    with pytest.raises(sora.BundleError, match=re.escape(words)):
        sora.Runtime.load(folder, preset="draft")


def test_an_unknown_preset_is_refused_when_loading(tmp_path: Path) -> None:
    with pytest.raises(sora.InvalidRequest, match="preset = 'best', and 'wan-pocket' has no presets"):
        sora.Runtime.load(written(tmp_path / "bundle", {}), preset="best")
