"""`sora-bench run --preset`, `--max-usd` and `--deadline` with the shipped model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runtime import Command, names

from preset_bundles import preset, written

ONE = {"num_inference_steps": 1, "guidance_scale": 1.0}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The shipped model with a preset of its own and one for the shipped student, both recorded on this machine."""
    presets = {
        "draft": preset(ONE, seconds=100.0, adherence=0.5),
        "standard": preset({}, seconds=200.0, evaluations=4, adherence=0.8, bundle="wan-pocket-4step"),
        "broken": preset({"guidance_scale": "much"}, num_frames=49),
    }
    return written(tmp_path / "bundle", presets)


def receipt(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text()))


def test_a_preset_and_what_is_changed_of_it(sora_bench: Command, bundle: Path, tmp_path: Path) -> None:
    result = sora_bench("run", "a red circle", "--model", bundle, "--preset", "draft", "--json", "a.json")
    assert result.exit_code == 0, result.stderr
    assert "draft" in result.stdout
    assert receipt(tmp_path / "a.json")["request"]["preset"] == {"name": "draft", "changed": []}  # type: ignore[index]
    words = ("--preset", "draft", "--solver", "euler", "--guidance-rescale", 0, "--json", "b.json")
    result = sora_bench("run", "a red circle", "--model", bundle, *words)
    assert "draft, changed: solver" in result.stdout
    changed = {"name": "draft", "changed": ["solver"]}
    assert receipt(tmp_path / "b.json")["request"]["preset"] == changed  # type: ignore[index]


def test_a_preset_for_another_bundle_is_made_with_that(sora_bench: Command, bundle: Path, tmp_path: Path) -> None:
    result = sora_bench("run", "a red circle", "--model", bundle, "--preset", "standard", "--json", "a.json")
    assert result.exit_code == 0, result.stderr
    assert receipt(tmp_path / "a.json")["model"]["name"] == "wan-pocket-4step"  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--preset", "best"), "error: preset = 'best' is none of 'wan-pocket'; use draft or standard or broken\n"),
        (("--max-usd", "1"), "error: max_usd = 1.0 says nothing without a price; give price_per_hour in USD too\n"),
        (
            ("--deadline", "30"),
            "error: deadline_s = 30 is too little for every preset of 'wan-pocket': the cheapest, preset 'draft', "
            "takes about 100 s and with 90% probability at most 126 s, by the record of preset 'draft'; give as much\n",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line_and_no_file(
    sora_bench: Command, bundle: Path, tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    result = sora_bench("run", "a red circle", "--model", bundle, *words)
    assert (result.exit_code, result.stderr, result.stdout) == (2, line, "")
    assert names(tmp_path) == ["bundle"]


def test_a_budget_may_choose_another_bundle(sora_bench: Command, bundle: Path, tmp_path: Path) -> None:
    # As asked it takes 40 evaluations, each as long as the draft: only presets fit, of which the student's is better.
    result = sora_bench("run", "a red circle", "--model", bundle, "--deadline", 300, "--json", "a.json")
    assert result.exit_code == 0, result.stderr
    made = receipt(tmp_path / "a.json")
    assert made["model"]["name"] == "wan-pocket-4step"  # type: ignore[index]
    assert made["request"]["preset"]["name"] == "standard"  # type: ignore[index]
    assert "300 s: as asked, predicted 200 s" in result.stdout


def test_a_clip_out_of_budget_leaves_nothing(sora_bench: Command, tmp_path: Path) -> None:
    bundle = written(tmp_path / "bundle", {})  # nothing is known of what it takes
    result = sora_bench("run", "a red circle", "--model", bundle, "--deadline", 0.02, "--json", "a.json")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: stopped before the first step: deadline_s = 0.02 leaves 0 s")
    assert result.stderr.count("\n") == 1 and names(tmp_path) == ["bundle"]
