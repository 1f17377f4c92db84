"""What a calibrated machine's profile predicts against what is then measured there: `python -m benchmarks.calibrated`.

wan-pocket makes whole clips; a two-layer transformer of the width of Wan 2.1 1.3B (random weights, which cost what
trained ones cost) runs whole trajectories of the sampler. Both at five sizes, five numbers of steps and in fp32 and
int8. Nothing that is predicted here was run by the calibration. The machine should be quiet: a repeat that other
programs disturbed is left out while undisturbed ones exist. Neighbours on the same host slow it in no counter that a
guest can read, so the pace (`sora_runtime.bench.pace`) is read before and after each repeat: those count that the
machine made at about the calibration's pace. Where none was, all count, and the prediction is of the machine at the
median of the paces read before them.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.int8_forward import BASELINE, OURS, Size, export_graphs, make_inputs, make_model
from sora_export.bundle_from_checkpoint import build_bundle
from sora_export.convert_bundle import convert_bundle
from sora_export.precision import Precision
from sora_runtime import Runtime
from sora_runtime.bench.calibrate import calibrate
from sora_runtime.bench.pace import Pace
from sora_runtime.bench.samples import Samples
from sora_runtime.bundle import find_bundle
from sora_runtime.cost.architectures.common import Conditioning
from sora_runtime.cost.architectures.wan import wan_transformer
from sora_runtime.cost.clips import Shape
from sora_runtime.cost.machine_time import Networks, Run, predict_on_machine
from sora_runtime.cost.models import Model, load_model
from sora_runtime.cost.on_machine import OnMachine
from sora_runtime.cost.predict import Prediction
from sora_runtime.cost.profile import Profile
from sora_runtime.cost.settings import Setting
from sora_runtime.cost.work import Sizes
from sora_runtime.denoise import VARYING, Denoiser, Embeddings
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.machine import available_cores
from sora_runtime.sampling import Euler, FlowSchedule, Guidance, compile_program

POCKET_SIZES = ((64, 64), (64, 96), (96, 96), (96, 128), (128, 160))  # height and width
FRAMES = 25
POCKET_STEPS = (2, 4, 8, 12, 20)
WIDE_LATENTS = ((1, 32, 32), (3, 32, 32), (5, 32, 32), (5, 40, 40), (9, 32, 32))  # frames, rows, columns
WIDE_STEPS = (1, 2, 3, 4, 6)
# A setting is repeated until it has so many quiet repeats of so many seconds together, or so many of any kind.
QUIET, QUIET_SECONDS = 3, 4.0
ANY, ANY_SECONDS = 7, 8.0


@dataclass(frozen=True)
class What:
    """One setting."""

    model: str
    size: str
    steps: int
    precision: str


@dataclass(frozen=True)
class Row(What):
    """What was predicted and measured of a setting: seconds of wall clock."""

    p10: float
    p50: float
    p90: float
    seconds: float
    pace: float  # of the machine before the repeats, relative to the calibration's: above 1 is slower

    @property
    def error(self) -> float:
        """Relative to the measurement."""
        return self.p50 / self.seconds - 1.0


def _enough(seconds: Collection[float], number: int, total: float) -> bool:
    return len(seconds) >= number and sum(seconds) >= total


class Stopwatch:
    """Times settings of a machine with a profile."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._pace = Pace(profile.num_threads)

    def close(self) -> None:
        """Gives the engine of the pace back."""
        self._pace.close()

    def row(self, what: What, run: Callable[[], object], predict: Callable[[Profile], Prediction]) -> Row:
        """The median of repeats at the calibration's pace; if there are none, of all, at the median of their paces."""
        calibrated, samples = self._profile.constants["pace"], Samples()
        before, paces = self._pace.seconds(), []
        while not (
            _enough(samples.clean(calibrated), QUIET, QUIET_SECONDS) or _enough(samples.seconds, ANY, ANY_SECONDS)
        ):
            samples.add(run)
            after = self._pace.seconds()
            samples.settle(max(before, after))
            paces.append(before)
            before = after
        quiet = samples.clean(calibrated)
        pace = calibrated if quiet else statistics.median(paces)
        found = predict(self._profile.at(pace))
        seconds = statistics.median(quiet) if quiet else samples.typical()
        relative = pace / calibrated
        made = Row(*astuple(what), found.p10, found.p50, found.p90, seconds, relative)
        print(
            f"{what.model} {what.size} {what.steps} steps {what.precision}: {found.p50:.4g} s, "
            f"measured {made.seconds:.4g} s, {made.error:+.1%}, pace {relative:.2f}",
            flush=True,
        )
        return made


def pocket_bundles(folder: Path) -> dict[str, Path]:
    """wan-pocket at every size, by precision."""
    shipped = find_bundle("wan-pocket")
    fp32 = build_bundle(shipped, folder / "fp32", POCKET_SIZES, [FRAMES], tasks=["t2v"], check_parity=False)
    int8 = convert_bundle(fp32, folder / "int8", Precision.INT8, "onnxruntime", {}, lambda _: None)
    return {"fp32": fp32, "int8": int8}


def pocket(watch: Stopwatch, profile: Profile, bundles: dict[str, Path]) -> Iterator[Row]:
    """Whole clips of wan-pocket with guidance; their prompt is in the cache."""
    for precision, bundle in bundles.items():
        model, (setting, _) = load_model(str(bundle)), OnMachine(profile).setting(precision, Setting())
        for height, width in POCKET_SIZES:
            with Runtime.load(bundle) as runtime:
                clip = partial(runtime.generate, "a red circle", height=height, width=width, num_frames=FRAMES)
                clip(num_inference_steps=1)
                for steps in POCKET_STEPS:
                    shape = Shape(width, height, FRAMES, steps, guided=True, prompts=0)
                    yield watch.row(
                        What("wan-pocket", f"{width}x{height}x{FRAMES}", steps, precision),
                        partial(clip, num_inference_steps=steps),
                        partial(_of_clip, model, shape, setting),
                    )


def _of_clip(model: Model, shape: Shape, setting: Setting, profile: Profile) -> Prediction:
    return OnMachine(profile).predict(model, shape, setting)


def wide_graphs(folder: Path) -> tuple[dict[str, Any], dict[tuple[int, int, int], dict[str, Path]]]:
    """The two-layer transformer's configuration, and its graphs by latent shape and engine."""
    model, graphs = make_model(Size()), {}
    for latents in WIDE_LATENTS:
        place = folder / "x".join(map(str, latents))
        place.mkdir(parents=True)
        size = Size(latent_shape=latents)
        graphs[latents] = export_graphs(model, size, make_inputs(size), place)
    return {key: value for key, value in dict(model.config).items() if not key.startswith("_")}, graphs


def wide(
    watch: Stopwatch, profile: Profile, config: dict[str, Any], graphs: dict[tuple[int, int, int], dict[str, Path]]
) -> Iterator[Row]:
    """Trajectories of the two-layer transformer, without guidance and without a VAE."""
    text = Size().text_tokens
    width = Size().heads * Size().head_channels
    networks = Networks(wan_transformer(config, Conditioning(text)), width, Size().head_channels, text)
    for latents, files in graphs.items():
        size = Size(latent_shape=latents)
        sizes = Sizes(size.tokens, latents[1] * latents[2], latents[0])
        for graph, precision in ((BASELINE, "fp32"), (OURS, "int8")):
            setting, _ = OnMachine(profile).setting(precision, Setting())
            with closing(Trajectory(files[graph], size)) as trajectory:
                trajectory.run(WIDE_STEPS[0])
                for steps in WIDE_STEPS:
                    yield watch.row(
                        What("wan 1.3B, 2 layers", "x".join(map(str, latents)), steps, precision),
                        partial(trajectory.run, steps),
                        partial(predict_on_machine, networks, Run(sizes, steps), setting, scope="denoise_only"),
                    )


class Trajectory:
    """The sampler around one graph."""

    def __init__(self, graph: Path, size: Size) -> None:
        threads = available_cores()
        engine = OnnxRuntimeEngine(graph, num_threads=threads, varying=VARYING)
        self._denoiser = Denoiser([engine], num_threads=threads)
        self._texts = Embeddings({"encoder_hidden_states": make_inputs(size)["encoder_hidden_states"]})
        self._noise = np.random.default_rng(0).standard_normal((1, 16, *size.latent_shape), np.float32)

    def run(self, steps: int) -> None:
        """All of it."""
        program = compile_program(Euler(), FlowSchedule(), steps, Guidance(scale=1.0))
        self._denoiser.run(program, self._texts, self._noise, noise=None, on_step=None, cancel=None)

    def close(self) -> None:
        """Gives the engine back."""
        self._denoiser.close()


def measure() -> dict[str, Any]:
    """Calibrate, then predict and measure every setting."""
    with tempfile.TemporaryDirectory() as name:
        bundles = pocket_bundles(Path(name))
        config, graphs = wide_graphs(Path(name) / "wide")
        print("calibrating", flush=True)
        profile = calibrate()
        print(f"calibrated in {profile.seconds:.0f} s; other programs took {profile.others or 0:.1%}", flush=True)
        with closing(Stopwatch(profile)) as watch:
            rows = [*pocket(watch, profile, bundles), *wide(watch, profile, config, graphs)]
    return {
        "machine": asdict(profile.machine),
        "num_threads": profile.num_threads,
        "calibration_seconds": profile.seconds,
        "others": profile.others,
        "rows": [asdict(each) | {"error": each.error} for each in rows],
    }


def table(result: dict[str, Any]) -> str:
    """Errors by model and precision in Markdown."""
    lines = ["| | settings | median error | worst error | in the p10-p90 band |", "|---|---|---|---|---|"]
    rows = result["rows"]
    for model in dict.fromkeys(each["model"] for each in rows):
        for precision in ("fp32", "int8"):
            own = [each for each in rows if (each["model"], each["precision"]) == (model, precision)]
            errors = [abs(each["error"]) for each in own]
            inside = sum(each["p10"] <= each["seconds"] <= each["p90"] for each in own)
            lines.append(
                f"| {model}, {precision} | {len(own)} | {statistics.median(errors):.1%} | {max(errors):.1%} "
                f"| {inside} of {len(own)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    measured = measure()
    print(table(measured))
    print(json.dumps({"calibration_seconds": measured["calibration_seconds"]}))
