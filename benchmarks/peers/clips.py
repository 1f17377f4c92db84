"""wan-pocket's clips in turns: every case draws a prompt from the same noise before the next prompt."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Ask, Refused
from benchmarks.peers.models import CLIPS
from benchmarks.peers.options import Options, Place, Say
from benchmarks.peers.process import PAUSE, Process, prepare
from benchmarks.peers.registry import PEERS
from sora_export.check import psnr
from sora_export.pocket.captions import Scene, held_out_prompts
from sora_export.pocket.detect import detect
from sora_export.pocket.score import ATTRIBUTES

GUIDANCE = 3.0
REFERENCE = "diffusers"


@dataclass(frozen=True)
class Setting:
    """One row: a peer and what it is asked for.

    Attributes:
        model: a shipped bundle.
        more: fields of this runtime's requests.
    """

    name: str
    label: str
    peer: str
    steps: int
    guidance: float = GUIDANCE
    model: str = CLIPS
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Case:
    """A row as it fills."""

    setting: Setting
    process: Process | None = None
    refused: str | None = None
    seconds: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    relative_l2: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*ATTRIBUTES, "all"), 0))
    peak_bytes: int | None = None
    prepare_seconds: float | None = None

    def draw(self, prompt: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """A clip's frames and latents; None from a peer that cannot."""
        if self.process is None or self.refused is not None:
            return None
        wanted = self.setting
        time.sleep(PAUSE)
        ask = Ask(prompt, seed, wanted.steps, wanted.guidance, dict(wanted.more))
        try:
            answer = self.process.ask("run", ask=asdict(ask))
        except Refused as error:
            self.refused = str(error)
            return None
        self.seconds.append(round(answer["seconds"], 5))
        self.evaluations.append(answer["evaluations"])
        return np.load(answer["frames"]), np.load(answer["latents"])

    def judge(self, drawn: tuple[Any, Any], reference: tuple[Any, Any] | None, scene: Scene) -> None:
        """Hold a clip against its prompt and the reference's."""
        seen = detect(drawn[0])
        right = {name: getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES}
        for name, value in (right | {"all": all(right.values())}).items():
            self.hits[name] += value
        if reference is not None:
            decibels = psnr(reference[0], drawn[0])
            self.psnr.append(min(decibels, 999.0))  # JSON has no infinity
            truth = reference[1].astype(np.float64)
            self.relative_l2.append(float(np.linalg.norm(drawn[1] - truth) / np.linalg.norm(truth)))

    def record(self) -> dict[str, Any]:
        """The row; times are kept clip by clip, so that a table can pair them."""
        setting = asdict(self.setting)
        row = {**setting, "ours": PEERS[self.setting.peer].ours, "refused": self.refused}
        if self.refused is not None or not self.seconds:
            return row
        quality = {
            "relative_l2": float(np.median(self.relative_l2)) if self.relative_l2 else None,
            "psnr": float(np.median(self.psnr)) if self.psnr else None,
            "psnr_min": min(self.psnr) if self.psnr else None,
            "accuracy": {name: hits / len(self.seconds) for name, hits in self.hits.items()},
        }
        times = {"seconds": self.seconds, "evaluations": float(np.mean(self.evaluations))}
        return row | times | quality | {"peak_bytes": self.peak_bytes, "prepare_seconds": self.prepare_seconds}


def settings_of_peers(options: Options) -> list[Setting]:
    """Every peer at equal work, the reference first."""
    names = [REFERENCE, *(name for name in options.peers if name != REFERENCE and PEERS[name].clips)]
    return [Setting(name, PEERS[name].label, name, options.steps) for name in names]


def measure_settings(settings: Sequence[Setting], options: Options, place: Place, say: Say) -> dict[str, Any]:
    """All settings over all prompts; what is recorded of each prompt is of the settings that drew it."""
    cases = [Case(setting) for setting in settings]
    with ExitStack() as stack:
        _start(cases, place, stack, say)
        for index, (prompt, scene) in enumerate(held_out_prompts(options.prompts)):
            turn = index % len(cases)
            order = cases[turn:] + cases[:turn]
            drawn = {case.setting.name: case.draw(prompt, index) for case in order}
            reference = drawn.get(REFERENCE)
            for case in cases:
                clip = drawn[case.setting.name]
                if clip is not None:
                    case.judge(clip, reference, scene)
            if (index + 1) % 10 == 0:
                say(f"{index + 1} of {options.prompts} prompts")
        for case in cases:
            if case.process is not None and case.refused is None:
                case.peak_bytes = case.process.ask("memory")["peak_bytes"]
    return {
        "prompts": options.prompts, "steps": options.steps, "guidance": GUIDANCE,
        "rows": [case.record() for case in cases],
    }  # fmt: skip


def _start(cases: Iterable[Case], place: Place, stack: ExitStack, say: Say) -> None:
    """A process for each peer and model, which settings may share; each has made a clip when this returns."""
    running: dict[tuple[str, str], Process | str] = {}
    for case in cases:
        wanted = case.setting
        key = (wanted.peer, wanted.model)
        if key not in running:
            say(f"preparing {wanted.label}")
            job = place.job(wanted.peer, wanted.model)
            try:
                case.prepare_seconds = prepare(wanted.peer, job)
                process = stack.enter_context(Process(wanted.peer, job))
                process.load()
                process.ask("run", ask=asdict(Ask("a red circle", 0, 2, GUIDANCE)))
                running[key] = process
            except Refused as error:
                running[key] = str(error)
        found = running[key]
        case.process, case.refused = (None, found) if isinstance(found, str) else (found, None)
