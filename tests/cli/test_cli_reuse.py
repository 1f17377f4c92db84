"""`--step-reuse` and `sora-bench calibrate-reuse`: what reaches the runtime, and what a shell sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fake_runtime import Command, FakeRuntime

from sora_runtime.bundle import find_bundle
from sora_runtime.cli.run_options import ReusePolicy
from sora_runtime.sampling import REUSE_POLICIES, GuidanceRule


def test_the_options_name_every_policy() -> None:
    assert {policy.value for policy in ReusePolicy} == set(REUSE_POLICIES)


def test_step_reuse_reaches_the_runtime(sora_bench: Command, fake: FakeRuntime) -> None:
    result = sora_bench(
        "run", "a red circle", "--step-reuse", "easycache", "--reuse-threshold", 0.05, "--force-step-reuse"
    )
    assert result.exit_code == 0, result.stderr
    request = fake.requests[0]
    assert (request["step_reuse"], request["reuse_threshold"], request["force_step_reuse"]) == ("easycache", 0.05, True)


def test_what_is_not_calibrated_is_a_bad_request(sora_bench: Command, tmp_path: Path) -> None:
    result = sora_bench("run", "a red circle", "--steps", 17, "--step-reuse", "easycache", "--out", tmp_path / "a.mp4")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "step_reuse = 'easycache' is not calibrated in 'wan-pocket' for 17 steps" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_calibrate_then_run(sora_bench: Command, tmp_path: Path) -> None:
    bundle, prompts = tmp_path / "pocket", tmp_path / "prompts.txt"
    shutil.copytree(find_bundle("wan-pocket"), bundle)
    prompts.write_text("# one\na red circle moving left on a navy background\n")
    asked = ("--steps", 6, "--solver", "euler")
    result = sora_bench(
        *("calibrate-reuse", bundle, "--prompts", prompts, *asked, "--policy", "plan", "--policy", "taylorseer"),
        *("--warm-up", 2, "--evaluations-share", 0.7, "--json", "--quiet"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    plan, taylor = json.loads(result.stdout)
    assert plan["key"]["solver"] == "euler" and plan["quality"]["evaluations"] <= 8
    assert taylor["settings"]["order"] == 1
    ran = sora_bench(
        *("run", "a red circle", "--model", bundle, *asked, "--step-reuse", "plan"),
        *("--out", tmp_path / "a.mp4", "--json", "-"),
    )
    assert ran.exit_code == 0, ran.stderr
    receipt = json.loads(ran.stdout)
    assert receipt["evaluations"]["made"] == plan["quality"]["evaluations"]
    assert receipt["evaluations"]["reused_rows"] == plan["settings"]["reused"]
    assert receipt["request"]["step_reuse"]["policy"] == "plan"


def test_the_table_shows_what_is_lost(sora_bench: Command, tmp_path: Path) -> None:
    bundle, prompts = tmp_path / "pocket", tmp_path / "prompts.txt"
    shutil.copytree(find_bundle("wan-pocket"), bundle)
    prompts.write_text("a red circle moving left on a navy background\n")
    result = sora_bench(
        *("calibrate-reuse", bundle, "--prompts", prompts, "--steps", 5, "--guidance-scale", 1),
        *("--policy", "plan", "--warm-up", 1, "--evaluations-share", 0.8, "--order", 1, "--most-in-a-row", 3),
    )
    stored = json.loads((bundle / "bundle.json").read_bytes())["step_reuse"][0]
    assert (stored["settings"]["order"], stored["settings"]["most_in_a_row"], stored["key"]["guided"]) == (1, 3, False)
    assert result.exit_code == 0, result.stderr
    assert "5 steps of unipc" in result.stdout and "without guidance" in " ".join(result.stdout.split())
    assert "PSNR dB" in result.stdout
    assert "clip 1 of 1 without reuse" in result.stderr


def test_a_share_that_is_none_is_a_bad_request(sora_bench: Command, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    result = sora_bench("calibrate-reuse", "wan-pocket", "--prompts", prompts, "--evaluations-share", 2)
    assert result.exit_code == 2
    assert "evaluations_share = 2.0 is outside 0 to 1" in result.stderr


def test_guidance_reaches_the_runtime(sora_bench: Command, fake: FakeRuntime) -> None:
    result = sora_bench(
        *("run", "a red circle", "--guidance-method", "apg", "--apg", 0.1, -0.4, 9, "--guidance-interval", 0.2, 0.8),
        *("--guidance-decay", 0.5, "--zero-init-steps", 2),
    )
    assert result.exit_code == 0, result.stderr
    request = fake.requests[0]
    assert request["guidance_method"] == GuidanceRule("apg", eta=0.1, momentum=-0.4, norm_threshold=9.0)
    assert (request["guidance_interval"], request["guidance_decay"], request["zero_init_steps"]) == ((0.2, 0.8), 0.5, 2)
    sora_bench("run", "a red circle", "--guidance-method", "cfg_zero_star")
    assert fake.requests[1]["guidance_method"] == "cfg_zero_star"
    refused = sora_bench("run", "a red circle", "--apg", 0, 0, 0)
    assert (refused.exit_code, refused.stderr) == (
        2,
        "error: --apg says nothing without --guidance-method apg; add it\n",
    )


def test_the_unconditional_branch_is_reused_beside_a_policy(sora_bench: Command, tmp_path: Path) -> None:
    bundle, prompts = tmp_path / "pocket", tmp_path / "prompts.txt"
    shutil.copytree(find_bundle("wan-pocket"), bundle)
    prompts.write_text("a red circle moving left on a navy background\n")
    result = sora_bench(
        *("calibrate-reuse", bundle, "--prompts", prompts, "--steps", 6, "--policy", "plan", "--warm-up", 2),
        *("--unconditional-every", 2, "--evaluations-share", 0.6, "--json", "--quiet"),
    )
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)
    # Rows 0, 1 and 5 make two calls; of rows 2 to 4 some are reused, and some make one.
    assert found["quality"]["evaluations"] == 7 and len(found["settings"]["reused"]) == 2
