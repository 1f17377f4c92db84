"""`sora-bench frontier` on the shipped model: a small search, its presets, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from fake_runtime import Command

from sora_runtime.bench.frontier_record import Setting
from sora_runtime.bundle import Bundle, find_bundle
from sora_runtime.presets import PRESET_SETTINGS
from sora_runtime.runtime import Runtime

SMALL = ("--clips", 2, "--pairs", 1, "--reference-steps", 6, "--runs", 4)


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A bundle that may be written into, in the folder that the commands run in."""
    folder = tmp_path / "pocket"
    shutil.copytree(find_bundle("wan-pocket"), folder)
    return folder


def test_a_search_writes_presets_that_make_the_clips_they_promise(copy: Path, sora_bench: Command) -> None:
    before = json.loads((copy / "bundle.json").read_bytes())
    done = sora_bench("frontier", "pocket", "--with", "wan-pocket-4step", *SMALL)
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("draft", "standard", "best", "USD a second", "adherence", "presets written into"):
        assert word in done.stdout
    assert "4 of 4 settings" in done.stderr
    after = json.loads((copy / "bundle.json").read_bytes())
    assert {name: value for name, value in after.items() if name != "presets"} == before
    presets = Bundle.load(copy).manifest.presets
    assert set(presets) == {"draft", "standard", "best"}
    for preset in presets.values():
        assert set(preset.settings) <= set(PRESET_SETTINGS)
        assert (preset.task, preset.height, preset.width, preset.num_frames) == ("t2v", 64, 64, 25)
        assert preset.quality.prompts == 2 and preset.quality.adherence in {0.0, 0.5, 1.0}
        assert preset.cost.usd_per_second == pytest.approx(
            preset.cost.seconds_per_clip * preset.cost.price_per_hour / 3600 / (25 / 12)
        )
    best = presets["best"]
    with Runtime.load(copy if best.bundle is None else best.bundle) as runtime:
        clip = runtime.generate("a red circle moving left", **Setting(best.settings).request())
        assert clip.receipt.evaluations.made == pytest.approx(best.cost.evaluations)
    svg = (copy.parent / "pocket-frontier" / "frontier.svg").read_text()
    assert svg.startswith("<?xml") and "</svg>" in svg


def test_a_search_goes_on_and_tells_all_as_json(copy: Path, sora_bench: Command) -> None:
    first = sora_bench("frontier", "pocket", "--no-save", "--json", "-q", *SMALL)
    assert first.exit_code == 0 and first.stderr == ""
    assert digest_of(copy) == digest_of(find_bundle("wan-pocket"))
    told = json.loads(first.stdout)
    assert len(told["points"]) == 4 and told["stored_in"] is None and told["reference"] == told["points"][0]
    assert told["reference"]["settings"]["num_inference_steps"] == 6 and told["reference"]["ratio"] == 1.0
    assert set(told["presets"]) == {"draft", "standard", "best"}
    again = sora_bench("frontier", "pocket", "--json", *SMALL[:-1], 5, "--plot", "p.png")
    assert "going on after 4 settings" in again.stderr and "5 of 5 settings" in again.stderr
    more = json.loads(again.stdout)
    assert more["points"][:4] == told["points"] and more["stored_in"] == str(copy)
    assert (copy.parent / "p.png").read_bytes().startswith(b"\x89PNG")
    # The presets that were written leave the model, and so the search, as it was.
    third = sora_bench("frontier", "pocket", "--json", "-q", *SMALL[:-1], 5)
    assert json.loads(third.stdout)["points"] == more["points"]


def test_what_nothing_keeps_is_refused_and_writes_no_preset(copy: Path, sora_bench: Command) -> None:
    done = sora_bench("frontier", "pocket", *SMALL[:-1], 2, "--max-usd-per-second", "1e-12")
    assert done.exit_code == 2
    assert "USD a second" in done.stdout  # the frontier is shown all the same
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: none of 2 settings keeps 1e-12 USD a second or less: the best has adherence ")
    assert line.endswith("; ask for less, or let more be measured with --runs")
    assert digest_of(copy) == digest_of(find_bundle("wan-pocket"))


def test_a_bundle_that_ships_is_not_written_into(sora_bench: Command) -> None:
    shipped = find_bundle("wan-pocket-4step")
    before = digest_of(shipped)
    done = sora_bench("frontier", "wan-pocket-4step", "--clips", 1, "--pairs", 1, "--runs", 2)
    assert done.exit_code == 0 and "give --save to write them" in done.stdout
    assert digest_of(shipped) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--min-adherence", "2"), "min_adherence = 2 is no share of the prompts; use one above 0 and at most 1"),
        (("--plot", "p.jpg"), "--plot p.jpg ends in none of .svg, .png, .pdf; use one of them"),
        (("--prompts", "none.txt"), "prompts file none.txt cannot be read (No such file or directory)"),
        (("--clips", "100000"), "prompts = 100000 exceeds the"),
        (("--with", "wan-pocket"), "'wan-pocket' is the bundle that is searched; leave it out of --with"),
        (("--size", "96x96"), "size 96x96 with 25 frames has no graph in 'wan-pocket'; use one of"),
    ],
)
def test_bad_requests_are_refused_before_a_clip_is_made(
    words: tuple[str, ...], message: str, sora_bench: Command
) -> None:
    done = sora_bench("frontier", "wan-pocket", "--clips", 1, *words)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")


def test_adherence_needs_a_detector(tmp_path: Path, sora_bench: Command) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    done = sora_bench("frontier", "wan-pocket", "--prompts", "prompts.txt", "--min-adherence", "0.9")
    assert done.exit_code == 2
    assert "no detector knows what clips of 'wan-pocket' show; bound them with --min-psnr" in done.stderr


@pytest.mark.parametrize(("package", "what"), [("optuna", "frontier needs optuna"), ("matplotlib", "frontier draws")])
def test_what_the_extra_brings_is_asked_for_by_name(
    package: str, what: str, sora_bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = sora_bench("frontier", "wan-pocket", "--clips", 1, "--runs", 1)
    assert done.exit_code == 1
    assert what in done.stderr and "not installed; pip install 'sora-runtime[search]'" in done.stderr
