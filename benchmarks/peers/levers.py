"""What each way to do less work gives, alone and together: wan-pocket at diffusers' default steps and from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.peers.clips import REFERENCE, Setting
from benchmarks.peers.models import CLIPS
from benchmarks.peers.options import Options, Say
from benchmarks.peers.our_peers import CALIBRATION
from benchmarks.peers.registry import PEERS

FEWER_STEPS = 20
STUDENT, STUDENT_STEPS = "wan-pocket-4step", 4
INTERVAL = {"guidance_interval": [0.6, 1.0]}
"""Sigmas: what a clip shows is decided early; below, half of a step's evaluations is saved."""


def settings_of_levers(options: Options, fastest: str | None, say: Say) -> list[Setting]:
    """The rows; the first are the peers that savings are held against.

    Args:
        options: of the run.
        fastest: the peer that `clips` found fastest; None: every peer, as that is not known.
        say: gets a sentence.
    """
    steps = options.steps
    rivals = [fastest] if fastest else [name for name, peer in PEERS.items() if not peer.ours and peer.clips]
    names = [REFERENCE, *(name for name in rivals if name != REFERENCE and name in options.peers)]
    reuse = {"step_reuse": calibrated_reuse(options, say), "force_step_reuse": True}
    fewer = min(FEWER_STEPS, steps)
    ours = [
        Setting("equal", "equal work, fp32", "ours", steps),
        Setting("int8", "int8", "ours-int8", steps),
        Setting("openvino", "--engine openvino", "ours-openvino", steps),
        Setting("steps", f"{fewer} steps", "ours", fewer),
        Setting("reuse", "step reuse (easycache, order 1, calibrated to half)", "ours", steps, more=reuse),
        Setting("interval", "guidance between sigma 0.6 and 1", "ours", steps, more=INTERVAL),
        Setting("distilled", f"distilled, {STUDENT_STEPS} steps", "ours", STUDENT_STEPS, 1.0, STUDENT),
        Setting("together", f"int8, {fewer} steps, interval", "ours-int8", fewer, more=INTERVAL),
        Setting("distilled-int8", "distilled, int8", "ours-int8", STUDENT_STEPS, 1.0, STUDENT),
        Setting("distilled-openvino", "distilled, --engine openvino", "ours-openvino", STUDENT_STEPS, 1.0, STUDENT),
    ]
    return [Setting(name, PEERS[name].label, name, steps) for name in names] + [
        setting for setting in ours if setting.peer in options.peers
    ]


def calibrated_reuse(options: Options, say: Say) -> Mapping[str, Any]:
    """Settings of step reuse that halve the evaluations, learnt on the calibration prompts and not on those scored."""
    from sora_export.trajectories import read_prompts
    from sora_runtime import Runtime, StepReuse
    from sora_runtime.reuse_calibration import Calibrator, ClipAsk, Goal

    say("calibrating step reuse")
    asks = [ClipAsk(prompt.text) for prompt in read_prompts(CALIBRATION)]
    with Runtime.load(CLIPS, num_threads=options.threads) as runtime:
        calibrator = Calibrator(runtime, asks, {"num_inference_steps": options.steps})
        found = calibrator.search(StepReuse("easycache", order=1), Goal(share=0.5))
    return asdict(StepReuse(**found.settings.model_dump()))
