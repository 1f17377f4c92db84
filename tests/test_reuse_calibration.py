"""Step reuse from request to receipt, and what calibration learns and stores in a bundle."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from prompts import PROMPT
from sora_runtime import InvalidRequest, Runtime, StepReuse
from sora_runtime.bundle import find_bundle
from sora_runtime.reuse_calibration import Calibrator, ClipAsk, Goal, psnr, ssim, store
from sora_runtime.reuse_fit import _segment_errors, curve_of, plan_of, polynomial_of
from sora_runtime.reuse_record import ReuseQuality
from sora_runtime.sampling import ROW_DTYPE, Evaluation

STEPS = 8
NORMS = np.dtype([(name, "<f8") for name in ("output", "output_change", "residual", "input", "input_change")])


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle that may be changed; the shipped one must not be."""
    shipped = find_bundle("wan-pocket")
    before = digest_of(shipped)
    folder = tmp_path_factory.mktemp("bundle") / "pocket"
    shutil.copytree(shipped, folder)
    yield folder
    assert digest_of(shipped) == before


@pytest.fixture(scope="module")
def calibrated(copy: Path) -> Path:
    with Runtime.load(copy) as runtime:
        calibrator = Calibrator(runtime, [ClipAsk(PROMPT)], {"num_inference_steps": STEPS})
        for base, goal in (
            (StepReuse("plan", warm_up=2), Goal(share=0.6)),
            (StepReuse("easycache", warm_up=2), Goal(share=0.7)),
            (StepReuse("magcache", warm_up=2, residual=True), Goal(share=0.7)),
        ):
            store(runtime.bundle, calibrator.search(base, goal))
    return copy


def test_what_is_not_calibrated_is_refused_in_one_sentence(runtime: Runtime) -> None:
    with pytest.raises(InvalidRequest) as refused:
        runtime.generate(PROMPT, num_inference_steps=17, step_reuse="easycache")
    assert str(refused.value) == (
        "step_reuse = 'easycache' is not calibrated in 'wan-pocket' for 17 steps of unipc on flow, shift 3 at 64x64 "
        "with 25 frames with guidance (t2v); run `sora-bench calibrate-reuse` for it, or force it"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step_reuse": "deepcache"}, "step_reuse = 'deepcache' is unknown; use plan, easycache, magcache"),
        ({"step_reuse": 3}, "step_reuse is a int; pass the name of a policy or a StepReuse"),
        ({"reuse_threshold": 0.1}, "say nothing without step_reuse"),
        ({"force_step_reuse": True}, "say nothing without step_reuse"),
        ({"step_reuse": "easycache", "reuse_threshold": -1.0}, "reuse_threshold = -1 is out of range"),
        ({"step_reuse": "easycache", "force_step_reuse": True}, "has no calibrated threshold; give reuse_threshold"),
        ({"step_reuse": "magcache", "force_step_reuse": True, "reuse_threshold": 0.1}, "magcache has 0 ratios for 20"),
    ],
)
def test_what_means_nothing_is_refused(runtime: Runtime, fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        runtime.generate(PROMPT, **fields)


def test_a_forced_clip_says_what_it_did(runtime: Runtime) -> None:
    plain = runtime.generate(PROMPT, seed=7, num_inference_steps=STEPS)
    forced = {"step_reuse": "easycache", "reuse_threshold": 0.3, "force_step_reuse": True}
    clip = runtime.generate(PROMPT, seed=7, num_inference_steps=STEPS, **forced)
    made = clip.receipt.evaluations
    assert 0 < made.made < 2 * STEPS
    assert made.made + made.skipped == 2 * STEPS
    assert made.skipped == 2 * len(made.reused_rows)
    assert set(made.reused_rows) <= set(range(3, STEPS - 1))
    assert clip.receipt.tokens.tokens_processed == clip.receipt.tokens.latent_tokens * made.made
    request = clip.receipt.request
    assert request.step_reuse is not None
    assert (request.step_reuse.policy, request.step_reuse.threshold, request.step_reuse_calibrated) == (
        "easycache",
        0.3,
        False,
    )
    assert clip.receipt.hashes is not None and plain.receipt.hashes is not None
    assert clip.receipt.hashes.sampler_program != plain.receipt.hashes.sampler_program
    assert plain.receipt.request.step_reuse is None and plain.norms is None
    assert clip.norms is not None and len(clip.norms) == STEPS
    again = runtime.generate(PROMPT, seed=7, num_inference_steps=STEPS, **forced)
    assert np.array_equal(again.latents, clip.latents)
    assert psnr(plain.frames, clip.frames) > 20


def test_a_policy_that_only_measures_changes_no_bit(runtime: Runtime) -> None:
    plain = runtime.generate(PROMPT, seed=7, num_inference_steps=4)
    measured = runtime.generate(
        PROMPT, seed=7, num_inference_steps=4, step_reuse=StepReuse("easycache"), force_step_reuse=True
    )
    assert np.array_equal(plain.latents, measured.latents)
    assert measured.receipt.evaluations.skipped == 0


def test_calibration_is_stored_and_used(calibrated: Path) -> None:
    stored = json.loads((calibrated / "bundle.json").read_bytes())["step_reuse"]
    assert [entry["settings"]["policy"] for entry in stored] == ["plan", "easycache", "magcache"]
    for entry in stored:
        quality = entry["quality"]
        assert quality["all_evaluations"] == 2 * STEPS
        assert quality["evaluations"] <= 0.7 * 2 * STEPS
        assert quality["psnr_min"] <= quality["psnr_mean"]
        assert 0.5 < quality["ssim_mean"] <= 1
    with Runtime.load(calibrated) as runtime:
        full = runtime.generate(PROMPT, seed=0, num_inference_steps=STEPS)
        for entry in stored:
            clip = runtime.generate(PROMPT, seed=0, num_inference_steps=STEPS, step_reuse=entry["settings"]["policy"])
            # What was measured is what a request gets.
            assert clip.receipt.evaluations.made == entry["quality"]["evaluations"]
            assert psnr(full.frames, clip.frames) == pytest.approx(entry["quality"]["psnr_mean"], abs=1e-3)
            assert clip.receipt.request.step_reuse_calibrated is True


def test_a_calibration_holds_for_its_setting_alone(calibrated: Path) -> None:
    with Runtime.load(calibrated) as runtime:
        for other in ({"num_inference_steps": 9}, {"solver": "euler"}, {"guidance_scale": 1.0}):
            with pytest.raises(InvalidRequest, match="is not calibrated"):
                runtime.generate(PROMPT, step_reuse="easycache", **{"num_inference_steps": STEPS, **other})


def test_a_threshold_may_be_lowered_and_not_raised(calibrated: Path) -> None:
    asked = {"num_inference_steps": STEPS, "step_reuse": "easycache"}
    with Runtime.load(calibrated) as runtime:
        clip = runtime.generate(PROMPT, **asked, reuse_threshold=1e-6)
        assert clip.receipt.evaluations.skipped == 0
        assert clip.receipt.request.step_reuse_calibrated is True
        with pytest.raises(InvalidRequest, match="is calibrated up to the threshold"):
            runtime.generate(PROMPT, **asked, reuse_threshold=1e3)
        clip = runtime.generate(PROMPT, **asked, reuse_threshold=1e3, force_step_reuse=True)
        assert clip.receipt.request.step_reuse_calibrated is False


def test_a_later_calibration_takes_the_place_of_the_earlier(calibrated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(calibrated, folder)
    with Runtime.load(folder) as runtime:
        old = runtime.bundle.manifest.step_reuse
        renewed = old[1].model_copy(update={"created": "2030-01-01T00:00:00+00:00"})
        store(runtime.bundle, renewed)
    with Runtime.load(folder) as runtime:
        assert len(runtime.bundle.manifest.step_reuse) == len(old)
        assert renewed in runtime.bundle.manifest.step_reuse
    assert sorted(path.name for path in folder.glob(".*")) == []


def test_a_goal_of_quality_takes_the_boldest_settings_that_keep_it(copy: Path) -> None:
    with Runtime.load(copy) as runtime:
        calibrator = Calibrator(runtime, [ClipAsk(PROMPT)], {"num_inference_steps": STEPS})
        base = StepReuse("plan", warm_up=2)
        line = calibrator.line(base)
        target = (calibrator.measure(line[0]).psnr_mean or 0.0) - 0.01
        found = calibrator.search(base, Goal(psnr=target))
        count = len(found.settings.reused)
        assert found.quality.psnr_mean is not None and found.quality.psnr_mean >= target
        bolder = [reuse for reuse in line if len(reuse.reused) == count + 1]
        assert not bolder or (calibrator.measure(bolder[0]).psnr_mean or 99) < target
        with pytest.raises(InvalidRequest, match="no settings of plan reach 20% of the evaluations"):
            calibrator.search(base, Goal(share=0.2))
        with pytest.raises(InvalidRequest, match="no settings of plan reach 200 dB"):
            calibrator.search(base, Goal(psnr=200.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Goal(share=0.0), "evaluations_share = 0"),
        (lambda: Goal(share=1.5), "evaluations_share = 1.5"),
        (lambda: Goal(psnr=-3.0), "target_psnr = -3"),
        (lambda: Goal(psnr=float("nan")), "target_psnr = nan"),
    ],
)
def test_goals_that_mean_nothing_are_refused(make: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make()  # type: ignore[operator]


def test_no_prompt_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InvalidRequest, match="no prompt"):
        Calibrator(runtime, [], {})


def test_identical_clips_meet_every_goal_of_quality() -> None:
    quality = ReuseQuality(prompts=1, evaluations=10, all_evaluations=10, psnr_mean=None, psnr_min=None, ssim_mean=1.0)
    assert Goal(psnr=60.0).met(quality) and not Goal(share=0.5).met(quality)


def rows_of(count: int) -> np.ndarray:
    rows = np.zeros(count, ROW_DTYPE)
    rows["evaluate"] = Evaluation.EVALUATE
    rows["guidance_scale"] = rows["input_scale"] = rows["latents"] = 1.0
    rows["timestep"] = 1000 * np.linspace(1, 0.05, count) ** 1.5
    return rows


def norms_of(count: int, seed: int = 0) -> np.ndarray:
    norms, random = np.zeros(count, NORMS), np.random.default_rng(seed)
    for name in NORMS.names or ():
        norms[name] = random.uniform(0.5, 1.5, count)
    return norms


@pytest.mark.parametrize("reused", [1, 3, 5, 7])
def test_the_plan_is_the_best_of_all(reused: int) -> None:
    rows, norms = rows_of(11), norms_of(11)
    rows["engine"][6:] = 1  # row 6 must be evaluated, and none passes over it
    errors = _segment_errors(rows, norms["output_change"])

    def cost(plan: tuple[int, ...]) -> float:
        kept = [i for i in range(11) if i not in plan]
        return float(sum(errors[i, j] for i, j in itertools.pairwise(kept)))

    allowed = [i for i in range(2, 10) if i != 6]
    best = min(itertools.combinations(allowed, reused), key=cost)
    found = plan_of(rows, [norms], 2, reused)
    assert found is not None and set(found) <= set(allowed)
    assert cost(found) == pytest.approx(cost(best), rel=1e-12)


def test_a_plan_of_too_many_rows_is_none() -> None:
    assert plan_of(rows_of(6), [norms_of(6)], 2, 4) is None


def test_errors_of_a_segment_are_drift_times_step() -> None:
    rows, change = rows_of(5), np.array([0.0, 1.0, 10.0, 100.0, 1000.0])
    times = [*rows["timestep"], 0.0]
    step = [times[i] - times[i + 1] for i in range(5)]
    errors = _segment_errors(rows, change)
    assert errors[0, 1] == 0.0
    assert errors[0, 3] == pytest.approx(1.0 * step[1] + 11.0 * step[2])
    assert errors[1, 4] == pytest.approx(10.0 * step[2] + 110.0 * step[3])


def test_curve_and_polynomial_are_what_was_measured() -> None:
    norms = norms_of(40)
    norms["output"] = norms["residual"] = 0.9 ** np.arange(40)
    assert curve_of([norms, norms], residual=True) == pytest.approx((1.0, *[0.9] * 39))
    change = norms["input_change"][:-1] / norms["input"][:-1]
    norms["output_change"][1:] = (0.1 + 2 * change - change**3) * norms["output"][:-1]
    assert polynomial_of([norms], 3) == pytest.approx((0.1, 2.0, 0.0, -1.0, 0.0), abs=1e-6)


def test_ssim_is_that_of_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    b = np.clip(a + random.integers(-40, 40, a.shape), 0, 255).astype(np.uint8)
    weights = np.array([0.299, 0.587, 0.114])
    expected = [
        skimage.structural_similarity(x, y, win_size=7, data_range=255, use_sample_covariance=False, full=True)[1]
        for x, y in zip(a @ weights, b @ weights, strict=True)
    ]
    # Whole windows only: scikit-image pads the map at its border and averages what is 3 away from it.
    assert ssim(a, b) == pytest.approx(float(np.mean([each[3:-3, 3:-3] for each in expected])), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1.0)
