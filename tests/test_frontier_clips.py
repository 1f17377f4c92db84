"""What a setting is found to be: its clips against the reference's, timed beside them; and what may be asked for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sora_runtime import InvalidRequest, StepReuse
from sora_runtime.bench.frontier import Measured
from sora_runtime.bench.frontier_clips import ClipContest, flicker
from sora_runtime.bench.frontier_record import IDENTICAL_PSNR, Outcome, Point, Setting
from sora_runtime.bench.frontier_space import OWN, SettingsSpace, Variant, variant_of
from sora_runtime.bench.frontier_task import Task, opened
from sora_runtime.bundle import Bundle
from sora_runtime.presets import Preset
from sora_runtime.programs import Programs
from sora_runtime.request import resolve
from sora_runtime.reuse_calibration import ClipAsk

REFERENCE = Setting({"num_inference_steps": 20})
ASKS = [ClipAsk(f"a red circle number {number}") for number in range(6)]
EASY = {"step_reuse": asdict(StepReuse("easycache", threshold=0.1)), "force_step_reuse": True}


class FakeRuntime:
    """Real programs and made-up clips, on a host that another job makes slower and slower.

    Attributes:
        calls: (prompt, steps) of each clip.
        slowness: of the host; every clip adds to it.
    """

    def __init__(self) -> None:
        self.bundle = Bundle.load("wan-pocket")
        self._programs = Programs(self.bundle)
        self.calls: list[tuple[str, int]] = []
        self.slowness = 1.0
        self.encoded: set[str] = set()

    def program(self, request: Any) -> Any:
        return self._programs(request)[0]

    def generate(self, prompt: str, **fields: Any) -> Any:
        program = self.program(resolve(prompt, fields, self.bundle.manifest))
        steps = program.num_inference_steps
        self.calls.append((prompt, steps))
        self.slowness *= 1.1
        misses = int(prompt not in self.encoded)
        self.encoded.add(prompt)
        pixels = np.random.default_rng(fields["seed"]).integers(60, 190, (5, 16, 16, 3))
        # Frames differ from the reference's by as many levels as steps are missing.
        frames = (pixels + (20 - steps)).astype(np.uint8)
        seconds = (0.1 + 0.01 * program.evaluations) * self.slowness + 5.0 * misses
        receipt = SimpleNamespace(
            seconds=SimpleNamespace(total=seconds),
            evaluations=SimpleNamespace(made=program.evaluations),
            embedding_cache=SimpleNamespace(misses=misses),
            video_seconds=2.0,
        )
        return SimpleNamespace(frames=frames, receipt=receipt)


def contest_of(runtime: FakeRuntime, **more: Any) -> ClipContest:
    return ClipContest({None: runtime}, ASKS, REFERENCE, 3.6, **more)  # type: ignore[dict-item]


def test_a_ratio_of_times_does_not_feel_the_host() -> None:
    runtime = FakeRuntime()
    contest = contest_of(runtime, pairs=4)
    truth = (0.1 + 0.01 * 10) / (0.1 + 0.01 * 40)
    outcome = contest.measure(Setting({"num_inference_steps": 5}))
    assert outcome.ratio == pytest.approx(truth, rel=0.11)  # one clip's drift at most
    unpaired = runtime.slowness * (0.1 + 0.01 * 10) / contest.reference_seconds
    assert unpaired > 1.5 * truth  # the same clip, judged by the clock alone
    assert outcome.seconds_per_clip == pytest.approx(outcome.ratio * contest.reference_seconds)
    assert outcome.usd_per_second == pytest.approx(outcome.seconds_per_clip * 3.6 / 3600 / 2.0)
    assert outcome.evaluations == 10


def test_no_time_holds_the_encoding_of_a_prompt() -> None:
    runtime = FakeRuntime()
    contest = contest_of(runtime)
    contest.measure(REFERENCE)
    assert contest.reference_seconds is not None and contest.reference_seconds < 5.0


def test_quality_is_that_of_the_frames() -> None:
    contest = contest_of(FakeRuntime(), judge=lambda number, frames: number % 3 == 0)
    reference = contest.measure(Setting({"num_inference_steps": 20, "guidance_scale": 3.0}))
    assert (reference.ratio, reference.psnr_mean, reference.fidelity) == (1.0, None, IDENTICAL_PSNR)
    assert reference.ssim_mean == 1.0 and reference.flicker == 1.0
    outcome = contest.measure(Setting({"num_inference_steps": 15}))
    assert outcome.psnr_mean == outcome.fidelity == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert outcome.adherence == reference.adherence == outcome.quality == pytest.approx(1 / 3)
    assert outcome.prompts == len(ASKS)
    plain = contest_of(FakeRuntime()).measure(Setting({"num_inference_steps": 15}))
    assert plain.adherence is None and plain.quality == plain.fidelity


def test_the_reference_is_made_once_and_not_again_for_its_own_point() -> None:
    runtime = FakeRuntime()
    contest = contest_of(runtime, pairs=2)
    contest.measure(REFERENCE)
    made = len(runtime.calls)
    contest.measure(REFERENCE)
    assert len(runtime.calls) == made
    contest.measure(Setting({"num_inference_steps": 5}))
    assert [steps for _, steps in runtime.calls[made:]].count(20) == 2  # the pairs


def test_settings_of_one_program_are_one_and_what_cannot_be_served_is_none() -> None:
    contest = contest_of(FakeRuntime())
    same = contest.identity(REFERENCE)
    assert same == contest.identity(Setting({"num_inference_steps": 20, "guidance_scale": 3.0, "solver": "unipc"}))
    # An interval over all levels leaves nothing out.
    assert same == contest.identity(Setting({"num_inference_steps": 20, "guidance_interval": [0.0, 1.0]}))
    assert contest.identity(Setting({"num_inference_steps": 12})) not in {same, None}
    for fields in (
        {"num_inference_steps": 12, "step_reuse": "easycache"},  # not calibrated, not forced
        {"num_inference_steps": 12, "solver": "ddim"},
        {"num_inference_steps": 20, "solver": "heun"},  # more calls than the reference
    ):
        assert contest.identity(Setting(fields)) is None
    assert contest.identity(Setting({"num_inference_steps": 12, **EASY})) is not None


def test_flicker_is_what_comes_and_goes() -> None:
    levels = np.arange(0, 60, 10, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (6, 8, 8, 3))
    assert flicker(frames) == pytest.approx(0.0, abs=1e-9)  # steady change
    blinking = np.broadcast_to((np.arange(6, dtype=np.uint8) % 2 * 10)[:, None, None, None], (6, 8, 8, 3))
    assert flicker(blinking) == pytest.approx(20.0)
    assert flicker(frames[:2]) == 0.0


class Drawn:
    """A trial that answers from a list of values, by the ends of names; the first choice or lowest number if absent."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.asked: list[str] = []

    def _of(self, name: str, otherwise: Any) -> Any:
        self.asked.append(name)
        return self.values.get(name.rpartition(".")[2], otherwise)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        value = int(self._of(name, low))
        assert low <= value <= high
        return value

    def suggest_float(self, name: str, low: float, high: float, *, step: Any = None, log: bool = False) -> float:
        value = float(self._of(name, low))
        assert low <= value <= high
        return value

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        value = self._of(name, choices[0])
        assert value in choices
        return value


def test_a_bundle_tells_what_can_be_asked_of_it() -> None:
    variant = variant_of(FakeRuntime(), None, {}, 20)  # type: ignore[arg-type]
    assert variant.solvers[0] == OWN and {"euler", "dpm++2m", "heun", "lcm"} <= set(variant.solvers)
    assert "ddim" not in variant.solvers and "unipc" not in variant.solvers  # refused; and the own one
    assert (variant.default_steps, variant.most_steps, variant.guidance_scale) == (20, 20, 3.0)
    assert variant.sigma(0.0) == 1.0 > variant.sigma(0.5) > variant.sigma(1.0) == 0.0
    few = variant_of(SimpleNamespace(bundle=Bundle.load("wan-pocket-4step"), program=_program), "four", {}, 20)
    assert (few.default_steps, few.most_steps, few.guidance_scale) == (4, 8, None)
    assert "unconditional" not in few.policies


def _program(request: Any) -> Any:
    return Programs(Bundle.load("wan-pocket-4step"))(request)[0]


def test_what_a_choice_rules_out_is_not_asked() -> None:
    space = SettingsSpace([variant_of(FakeRuntime(), None, {}, 20)])  # type: ignore[arg-type]
    few = Drawn(steps=4, guidance="none")
    assert space.suggest(few) == Setting({"num_inference_steps": 4, "guidance_scale": 1.0})
    assert few.asked == ["0.steps", "0.solver", "0.guidance"]
    many = Drawn(
        steps=20, solver="euler", guidance="interval", guidance_scale=2.5, reuse="taylorseer", guidance_end=0.8
    )
    setting = space.suggest(many)
    assert setting.fields["guidance_interval"][0] < setting.fields["guidance_interval"][1] == 1.0
    assert setting.fields["step_reuse"]["policy"] == "taylorseer" and setting.fields["force_step_reuse"] is True
    assert setting.request()["step_reuse"] == StepReuse("taylorseer", interval=2, order=0)
    outcome = Outcome(2, 1.0, 30.0, 30.0, 0.9, 1.0, 20.0, 0.5, 1.0, 1e-6)
    preset = Measured("t2v", (64, 64, 25), "a machine", 0.1).preset(Point(setting, outcome))
    assert Preset.model_validate_json(preset.model_dump_json()) == preset  # what any choice gives can be kept
    alone = space.suggest(Drawn(steps=20, guidance="none", reuse="unconditional"))
    assert "step_reuse" not in alone.fields  # there is no unconditional branch then
    for words in ("20 steps, euler, guidance 2.5 in ", "taylorseer 1 in 2, order 0"):
        assert words in str(setting)


def test_the_first_settings_are_the_bundles_own_and_what_was_calibrated() -> None:
    one = Variant(None, 20, 20, (OWN,), 3.0, (1.0, 0.5, 0.0), ("easycache",), (("plan", 10, True),))
    two = Variant("four", 4, 8, (OWN,), None, (1.0, 0.5, 0.0), ("easycache",))
    space = SettingsSpace([one, two])
    settings = []
    for values in space.first():
        by_end = {name.rpartition(".")[2]: value for name, value in values.items()}
        settings.append(space.suggest(Drawn(**by_end)))
    guided = {"guidance_scale": 3.0}
    assert settings == [
        Setting({"num_inference_steps": 20, **guided}),
        Setting({"num_inference_steps": 4}, "four"),
        Setting({"num_inference_steps": 10, **guided}),
        Setting({"num_inference_steps": 2}, "four"),
        Setting({"num_inference_steps": 10, **guided, "step_reuse": "plan"}),
    ]


def test_bundles_that_no_preset_could_name_are_refused(tmp_path: Path) -> None:
    import shutil

    from sora_runtime.bundle import find_bundle

    other = tmp_path / "elsewhere"
    shutil.copytree(find_bundle("wan-pocket"), other)
    for others, message in (
        (("wan-pocket",), "'wan-pocket' is the bundle that is searched; leave it out of --with"),
        ((str(other),), "lies in another folder than 'wan-pocket', where no preset finds it; put it into"),
    ):
        with pytest.raises(InvalidRequest, match=message), opened(Task("wan-pocket", ASKS, others)):
            pass
