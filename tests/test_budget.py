"""Budgets: what is picked before a clip begins, given up while it runs, stopped, and written down.

Seconds are those of a clock that the tests turn, so that a busy machine changes nothing: a row of the sampler program
takes `row`, a decoded frame `frame`. At 3,600 USD an hour a second costs a dollar.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sora_runtime as sora
from cost.machine_profile import made_up
from preset_bundles import preset, with_presets, written
from prompts import PROMPT
from sora_runtime import decode, runtime, spending, text
from sora_runtime.budget import bundle_within, options_of
from sora_runtime.cost.profile import save_profile
from sora_runtime.foresight import Foresight, PastClip
from sora_runtime.machine import available_cores
from sora_runtime.programs import Programs
from sora_runtime.request import resolve

THREADS = available_cores()
ASKED = {"num_inference_steps": 10, "guidance_scale": 1.0, "solver": "euler"}
# Of presets that take a second a step and half a second to decode.
BEST = preset({**ASKED, "num_inference_steps": 6}, seconds=6.5, evaluations=6, adherence=0.9)
DRAFT = preset({**ASKED, "num_inference_steps": 1}, seconds=1.5, evaluations=1, adherence=0.5)
PRESETS = {"draft": DRAFT, "best": BEST}


@dataclass
class Clock:
    """Stands where `time` stands in the modules that keep a budget."""

    row: float = 1.0
    frame: float = 0.02
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def report(self) -> Callable[[str, int, int], None]:
        """An `on_progress` that lets the time of what was just done pass."""
        done_before = 0

        def on_progress(stage: str, done: int, _total: int) -> None:
            nonlocal done_before
            if done == 0:
                done_before = 0
            self.now += {"denoise": self.row, "vae_decode": self.frame}.get(stage, 0.0) * (done - done_before)
            done_before = done

        return on_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (runtime, spending, decode, text):
        monkeypatch.setattr(module, "time", clock)
    return clock


def loaded(presets: dict[str, Any] | None = None) -> sora.Runtime:
    return sora.Runtime(with_presets(PRESETS if presets is None else presets), num_threads=THREADS)


def made(own: sora.Runtime, clock: Clock, **fields: Any) -> sora.Clip:
    return own.generate(PROMPT, on_progress=clock.report(), **{**ASKED, **fields})


def record_of(clip: sora.Clip) -> Any:
    assert clip.receipt.budget is not None
    assert sora.Receipt.model_validate_json(clip.receipt.model_dump_json()) == clip.receipt
    assert all(len(line) <= 80 for line in str(clip.receipt).splitlines())
    return clip.receipt.budget


@pytest.mark.parametrize("limit", [{"deadline_s": 20.0}, {"max_usd": 20.0, "price_per_hour": 3600.0}])
def test_what_fits_is_made_as_asked(clock: Clock, limit: dict[str, float]) -> None:
    clip = made(loaded(), clock, **limit)
    budget = record_of(clip)
    assert clip.receipt.evaluations.made == 10 and clip.receipt.request.preset is None
    assert [(option.preset, option.as_asked, option.evaluations) for option in budget.options] == [
        (None, True, 10.0),
        ("best", False, 6.0),
        ("draft", False, 1.0),
    ]
    # More evaluations than the preset made take as much more time, at most.
    assert budget.options[0].seconds.p50 == pytest.approx(6.5 * 10 / 6)
    assert budget.options[0].origin == "the record of preset 'best'"
    assert (budget.chosen, budget.replaced, budget.given_up) == (0, [], [])
    assert clip.receipt.seconds.total == pytest.approx(10.5) and budget.elapsed_seconds == pytest.approx(10.5)
    assert (budget.options[1].usd is None) == ("max_usd" not in limit)


@pytest.mark.parametrize(
    ("limit", "name", "evaluations"),
    [
        ({"deadline_s": 13.0}, "best", 6),  # as asked takes 10.8 s, and up to 13.6
        ({"deadline_s": 5.0}, "draft", 1),
        ({"max_usd": 10.0, "price_per_hour": 3600.0}, "best", 6),
        ({"max_usd": 10.0, "price_per_hour": 3600.0, "deadline_s": 2.0}, "draft", 1),
        ({"max_usd": 1.0, "price_per_hour": 0.0, "deadline_s": 13.0}, "best", 6),
    ],
)
def test_the_best_preset_that_fits_takes_its_place(
    clock: Clock, limit: dict[str, float], name: str, evaluations: int
) -> None:
    clip = made(loaded(), clock, **limit, negative_prompt="blur")
    budget = record_of(clip)
    assert clip.receipt.evaluations.made == evaluations
    assert clip.receipt.request.preset is not None and clip.receipt.request.preset.name == name
    assert clip.receipt.request.negative_prompt == "blur"  # what is said of the content stays
    assert budget.options[budget.chosen].preset == name
    assert budget.replaced == ["num_inference_steps", "guidance_scale", "solver"]
    assert f"preset {name}" in str(clip.receipt)


def test_quality_decides_before_price(clock: Clock) -> None:
    near = {name: value for name, value in ASKED.items() if name != "solver"}
    presets = {
        "a": preset({**near, "num_inference_steps": 2}, seconds=2, evaluations=2, adherence=0.9, psnr_mean=20),
        "b": preset({**near, "num_inference_steps": 3}, seconds=3, evaluations=3, adherence=0.9, psnr_mean=None),
        "c": preset({**near, "num_inference_steps": 4}, seconds=4, evaluations=4, psnr_mean=None),
        "d": preset({**near, "num_inference_steps": 5}, seconds=3, evaluations=3, adherence=0.9, psnr_mean=25),
        "e": preset({}, seconds=1, adherence=1.0, bundle="wan-pocket-4step"),
        "f": preset({}, seconds=1, adherence=1.0, height=128),
    }
    bundle = with_presets(presets)
    fields = {**ASKED, "deadline_s": 1.0}
    found = options_of(PROMPT, fields, bundle.manifest, Programs(bundle), Foresight(bundle, THREADS))
    assert [option.preset for option in found] == [None, "b", "d", "a", "c"]


def test_a_preset_that_was_asked_for_is_the_first_option(clock: Clock) -> None:
    own = loaded()
    clip = own.generate(PROMPT, on_progress=clock.report(), preset="best", deadline_s=13.0)
    assert [option.preset for option in record_of(clip).options] == ["best", "draft"]
    clip = own.generate(PROMPT, on_progress=clock.report(), preset="best", num_inference_steps=100, deadline_s=13.0)
    budget = record_of(clip)
    assert [(option.preset, option.as_asked) for option in budget.options] == [
        ("best", True),
        ("best", False),
        ("draft", False),
    ]
    assert (budget.chosen, budget.replaced) == (1, ["num_inference_steps"])
    assert clip.receipt.evaluations.made == 6


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (
            {"deadline_s": 1.25},
            "deadline_s = 1.25 is too little for every preset of 'wan-pocket': the cheapest, preset 'draft', takes "
            "about 1.5 s and with 90% probability at most 1.89 s, by the record of preset 'draft'; give as much",
        ),
        (
            {"max_usd": 0.5, "price_per_hour": 3600.0},
            "max_usd = 0.5 is too little for every preset of 'wan-pocket': the cheapest, preset 'draft', takes about "
            "1.5 s (1.5 USD) and with 90% probability at most 1.89 s (1.889 USD), by the record of preset 'draft'; "
            "give as much",
        ),
    ],
)
def test_a_budget_too_small_for_any_preset_runs_nothing(clock: Clock, limit: dict[str, float], sentence: str) -> None:
    own, seen = loaded(), []
    with pytest.raises(sora.InvalidRequest) as caught:
        own.generate(PROMPT, on_progress=lambda *stage: seen.append(stage), **ASKED, **limit)
    assert str(caught.value) == sentence
    assert seen == [] and not own.text_encoders.loaded


def test_without_presets_the_request_itself_is_too_much(clock: Clock) -> None:
    own = loaded({})
    made(own, clock)
    with pytest.raises(sora.InvalidRequest) as caught:
        made(own, clock, deadline_s=4.0)
    assert str(caught.value) == (
        "deadline_s = 4 is too little for these settings: they take about 10.5 s and with 90% probability at most "
        "11.9 s, by one clip with these settings; give as much, or write presets into 'wan-pocket' with "
        "`sora-bench frontier`"
    )


def test_a_clip_that_turns_out_slow_is_begun_anew_with_a_cheaper_preset(clock: Clock) -> None:
    clock.row = 2.0
    own = loaded()
    clip = made(own, clock, deadline_s=10.0, seed=3)
    budget = record_of(clip)
    assert budget.options[budget.chosen].preset == "draft" and len(budget.given_up) == 1
    given_up = budget.given_up[0]
    assert budget.options[given_up.option].preset == "best"
    # The first row may be slow for another reason; after the second, four rows of 2 s are more than the 6 s left.
    assert given_up.why == "after 2 of 6 steps the rest takes about 8 s and 6 s are left"
    assert (given_up.evaluations, given_up.seconds) == (2, pytest.approx(4.0))
    assert clip.receipt.seconds.total == pytest.approx(4.0 + 2.0 + 0.5)  # what was given up is paid for
    assert clip.receipt.engine_seconds > given_up.engine_seconds > 0
    assert "after 4 s given up" in str(clip.receipt)
    # What was given up is not taken for its pace; and it is the preset's own clip, not a mixture.
    request = resolve(PROMPT, {"preset": "draft"}, own.bundle.manifest)
    expected = own._foresight.expect(request, own.program(request))
    assert expected is not None and expected.seconds.p50 == pytest.approx(2.5)
    again = own.generate(PROMPT, seed=3, preset="draft")
    np.testing.assert_array_equal(again.latents, clip.latents)


def test_a_cheaper_preset_may_need_the_negative_prompt(clock: Clock) -> None:
    clock.row = 2.0
    guided = preset({**ASKED, "num_inference_steps": 1, "guidance_scale": 4.0}, seconds=1.5, evaluations=2)
    own = loaded({"best": BEST, "guided": guided})
    clip = made(own, clock, deadline_s=10.0, seed=3)
    budget = record_of(clip)
    assert budget.options[budget.chosen].preset == "guided" and len(budget.given_up) == 1
    assert clip.receipt.evaluations.made == 2
    assert clip.receipt.embedding_cache is not None and clip.receipt.embedding_cache.misses == 2
    assert clip.receipt.hashes is not None and set(clip.receipt.hashes.prompt_embeds) == {"prompt", "negative_prompt"}


def test_what_cannot_be_saved_is_stopped(clock: Clock) -> None:
    clock.row = 5.0
    own = loaded()
    with pytest.raises(sora.BudgetExceeded) as caught:
        made(own, clock, max_usd=10.0, price_per_hour=3600.0)
    assert str(caught.value) == (
        "stopped after 2 of 6 steps: max_usd = 10 leaves 0 s and the rest takes about 20 s (20 USD), with no preset "
        "that fits; 10 s (10 USD) are spent; raise the budget or name a cheaper preset"
    )
    clock.row = 1.0
    assert made(own, clock).receipt.evaluations.made == 10  # the runtime is as it was


def test_a_slow_decoder_stops_a_clip(clock: Clock) -> None:
    clock.frame = 1.0
    with pytest.raises(sora.BudgetExceeded, match=r"^stopped after 5 of 25 decoded frames: deadline_s = 10 leaves 0 s"):
        made(loaded(), clock, deadline_s=10.0)


def test_one_slow_row_stops_nothing(clock: Clock) -> None:
    own = loaded()
    made(own, clock)  # from now on a row is known to take a second
    steady = clock.report()

    def report(stage: str, done: int, total: int) -> None:
        steady(stage, done, total)
        clock.now += 2.0 if (stage, done) == ("denoise", 2) else 0.0

    clip = own.generate(PROMPT, on_progress=report, **ASKED, deadline_s=15.0)
    assert clip.receipt.seconds.total == pytest.approx(12.5) and record_of(clip).given_up == []


def test_a_clip_of_which_nothing_is_known_is_watched(clock: Clock) -> None:
    own = loaded({})
    with pytest.raises(sora.BudgetExceeded, match=r"^stopped after 2 of 10 steps: deadline_s = 6 leaves 4 s"):
        made(own, clock, deadline_s=6.0)
    clip = made(own, clock, deadline_s=12.0)
    (option,) = record_of(clip).options
    assert (option.seconds, option.usd, option.origin) == (None, None, None)
    known = record_of(made(own, clock, deadline_s=12.0)).options[0]
    assert known.origin == "one clip with these settings" and known.seconds.p50 == pytest.approx(10.5)


def test_waiting_counts_for_the_deadline_and_not_for_the_bill(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    own = loaded()
    made(own, clock)
    turn = own._turns.turn

    def late(*how: Any) -> Any:
        clock.now += 8.0
        return turn(*how)

    monkeypatch.setattr(own._turns, "turn", late)
    clip = made(own, clock, max_usd=13.0, price_per_hour=3600.0)
    assert clip.receipt.seconds.queued == pytest.approx(8.0) and clip.receipt.cost.usd_per_clip == pytest.approx(10.5)
    # 10.5 s fit into 13, and no longer after 8; the preset of one step still does.
    clip = made(own, clock, deadline_s=13.0)
    assert record_of(clip).options[record_of(clip).chosen].preset == "draft" and record_of(clip).given_up == []
    with pytest.raises(sora.BudgetExceeded, match=r"^stopped before the first step: deadline_s = 7 leaves 0 s"):
        made(own, clock, deadline_s=7.0, preset="best")


def test_nobody_waits_for_a_clip_that_would_come_too_late(clock: Clock) -> None:
    own = loaded()
    made(own, clock)
    clock.now = 0.0
    refused: list[Exception] = []

    def wait() -> None:
        try:
            made(own, clock, deadline_s=13.0, max_usd=100.0, price_per_hour=3600.0)
        except sora.BudgetExceeded as error:
            refused.append(error)

    with own._turns.turn():
        waiting = threading.Thread(target=wait)
        waiting.start()
        while waiting.is_alive() and clock.now < 20:
            waiting.join(0.3)
            clock.now += 1.0
        waiting.join(10)
        assert not waiting.is_alive()  # while the engines are still another's
    (error,) = refused
    # It gives up when not even the draft's 1.5 s are left, and has nothing to pay for.
    assert str(error).startswith("stopped while waiting for another clip: max_usd = 100 with deadline_s = 13 leaves ")
    assert clock.now < 15


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_usd": 1.0}, "max_usd = 1.0 says nothing without a price; give price_per_hour in USD too"),
        ({"deadline_s": -1.0}, "deadline_s = -1 is out of range; use 0 to 1e+09"),
        ({"deadline_s": "soon"}, "deadline_s = 'soon' is no number; use 0 to 1e+09"),
        ({"max_usd": float("nan"), "price_per_hour": 1.0}, "max_usd = nan is out of range; use 0 to 1e+09"),
    ],
)
def test_a_budget_that_is_none_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(sora.InvalidRequest) as caught:
        resolve(PROMPT, fields, with_presets(PRESETS).manifest)
    assert str(caught.value) == sentence


def test_a_request_without_a_budget_says_so(clock: Clock) -> None:
    receipt = made(loaded(), clock, num_inference_steps=1).receipt
    assert receipt.budget is None and receipt.reasons["budget"] == "the request had none"


def foreseen(foresight: Foresight, **fields: Any) -> Any:
    bundle = with_presets(PRESETS)
    request = resolve(PROMPT, {**ASKED, **fields}, bundle.manifest)
    return foresight.expect(request, Programs(bundle)(request)[0])


def test_the_best_source_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = with_presets(PRESETS)
    foresight, bucket = Foresight(bundle, THREADS), bundle.manifest.components.transformer.buckets[0]
    assert foreseen(foresight).origin == "the record of preset 'best'"
    save_profile(made_up())
    ten, twenty, thirty = (foreseen(foresight, num_inference_steps=steps) for steps in (10, 20, 30))
    assert ten.origin == "sora-bench calibrate, 2026-11-28" and ten.decode == twenty.decode > 0
    # Ten steps more are the same work again, but for what follows from the text alone, which is computed once.
    assert thirty.denoise - twenty.denoise == pytest.approx(twenty.denoise - ten.denoise)
    assert 1.9 * ten.denoise < twenty.denoise < 2 * ten.denoise
    # Guidance in half of the steps is half of the second evaluations; a step takes 1 ms of the profile beside them.
    evaluation = (twenty.denoise - ten.denoise) / 10 - 0.001
    guided = foreseen(foresight, guidance_scale=4.0)
    within = foreseen(foresight, guidance_scale=4.0, guidance_interval=(0.0, 0.75))
    saved = guided.evaluations - within.evaluations
    assert 0 < saved < 10 and within.denoise == pytest.approx(guided.denoise - saved * evaluation, rel=0.002)
    foresight.learn(bucket, PastClip("another program", evaluations=4, denoise=8.0, decode=0.5, total=9.0))
    assert (foreseen(foresight).origin, foreseen(foresight).denoise) == ("the pace of one clip of this size", 20.0)
    assert foreseen(foresight).seconds.p50 == pytest.approx(21.0)
    request = resolve(PROMPT, ASKED, bundle.manifest)
    same = Programs(bundle)(request)[0].sha256
    for total in (20.0, 30.0, 24.0):
        foresight.learn(bucket, PastClip(same, evaluations=10, denoise=19.0, decode=0.5, total=total))
    known = foreseen(foresight)
    assert (known.origin, known.seconds.p50) == ("3 clips with these settings", 24.0)
    assert known.margin == pytest.approx(np.exp(1.2815515655446 * np.std(np.log([20, 30, 24]), ddof=1)))


@pytest.mark.parametrize("change", [{"machine": "another one, 2 cores"}, {"bundle": "other"}, {"num_frames": 49}])
def test_a_record_of_something_else_says_nothing(change: dict[str, Any]) -> None:
    bundle = with_presets({"best": preset({}, seconds=6.5, evaluations=6, **change)})
    request = resolve(PROMPT, ASKED, bundle.manifest)
    assert Foresight(bundle, THREADS).expect(request, Programs(bundle)(request)[0]) is None


def test_a_record_is_of_every_core() -> None:
    assert foreseen(Foresight(with_presets(PRESETS), THREADS)) is not None
    assert foreseen(Foresight(with_presets(PRESETS), THREADS + 1)) is None


def test_profiles_and_records_are_of_the_default_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_profile(made_up())
    bundle = with_presets(PRESETS)
    foresight = Foresight(bundle, THREADS, "openvino")
    assert foreseen(foresight) is None
    bucket = bundle.manifest.components.transformer.buckets[0]
    foresight.learn(bucket, PastClip("another program", evaluations=4, denoise=8.0, decode=0.5, total=9.0))
    assert foreseen(foresight).origin == "the pace of one clip of this size"


def test_calls_of_a_policy_that_decides_in_the_run_are_those_on_record() -> None:
    settings = {"step_reuse": {"policy": "easycache", "threshold": 0.1}, "force_step_reuse": True, **ASKED}
    bundle = with_presets({"reuse": preset(settings, seconds=4.0, evaluations=4.5), "best": BEST})
    foresight = Foresight(bundle, THREADS)
    calls = []
    for more in ({}, {"guidance_scale": 4.0}):
        request = resolve(PROMPT, {"preset": "reuse", **more}, bundle.manifest)
        expected = foresight.expect(request, Programs(bundle)(request)[0])
        assert expected is not None
        calls.append(expected.evaluations)
    assert calls == [4.5, 20.0]  # with other settings than measured: the most


def test_another_bundle_may_keep_the_budget(tmp_path: Path) -> None:
    few = preset({}, seconds=4.0, evaluations=4, adherence=0.8, bundle="wan-pocket-4step")
    bundle = sora.Bundle.load(written(tmp_path / "bundle", {**PRESETS, "few": few}))

    def found(deadline_s: float) -> str | None:
        return bundle_within(bundle, PROMPT, {**ASKED, "deadline_s": deadline_s}, num_threads=THREADS)

    assert found(20.0) is None  # as asked
    assert found(10.0) is None  # 'best' is better
    assert found(7.0) == "few"  # better than 'draft'
    assert found(3.0) is None  # 'draft'
    assert found(0.1) is None  # nothing; generate says so


def test_presets_for_another_bundle_alone_are_known_to_fit(tmp_path: Path) -> None:
    few = preset({}, seconds=2.0, evaluations=4, bundle="wan-pocket-4step")
    bundle = sora.Bundle.load(written(tmp_path / "bundle", {"few": few}))

    def found(deadline_s: float) -> str | None:
        return bundle_within(bundle, PROMPT, {**ASKED, "deadline_s": deadline_s}, num_threads=THREADS)

    assert found(10.1) is None  # 10 evaluations as long as those on record take 5 s, or 10 in another precision
    assert found(9.9) == "few"
    assert found(1.0) is None  # nothing is known to fit: the request runs under the watch
