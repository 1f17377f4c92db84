"""An estimate for the machine at hand, `--gpu this-machine`: its profile in place of a GPU's fitted rates."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sora_runtime.cost.machine_time import Networks, predict_on_machine, run_of
from sora_runtime.cost.prices import ChosenPrice
from sora_runtime.cost.profile import Profile, load_profile
from sora_runtime.cost.profile_path import default_path
from sora_runtime.cost.settings import ENGINE_BY_NAME, Setting
from sora_runtime.errors import InvalidRequest
from sora_runtime.machine import DEFAULT_PRICE_SOURCE, default_usd_per_hour

if TYPE_CHECKING:
    from sora_runtime.cost.clips import Shape
    from sora_runtime.cost.models import Model
    from sora_runtime.cost.predict import Prediction

PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class OnMachine:
    """What of an estimate is different on the calibrated machine."""

    profile: Profile
    slower: float | None = None  # now than when it was calibrated, if that was read; the profile says it as it is now

    @classmethod
    def here(cls, pace: float | None = None) -> OnMachine:
        """From the user's profile, at the machine's pace of the moment if one is given.

        Raises:
            InvalidRequest: `sora-bench calibrate` was not run.
        """
        profile = load_profile()
        return cls(profile) if pace is None else cls(profile.at(pace), pace / profile.constants["pace"])

    def setting(self, precision: str, asked: Setting) -> tuple[Setting, tuple[tuple[str, str, str], ...]]:
        """ONNX Runtime's kernels with the reuse that was asked for; half precisions are computed as float32 there.

        Raises:
            InvalidRequest: a precision that no engine runs on a processor.
        """
        runs = {"bf16": "fp32", "fp16": "fp32"}.get(precision, precision)
        if runs not in PRECISIONS:
            raise InvalidRequest(f"precision = {precision!r} does not run on this machine; use fp32 or int8")
        profile = self.profile
        origin = f"sora-bench calibrate, {profile.created[:10]}, on {profile.machine.cpu}"
        assumed = [("rates", f"measured with {profile.num_threads} threads", origin)]
        if self.slower is not None:
            assumed.append(("pace", f"{self.slower:.2f} x the calibration's times", "read on this machine now"))
        if runs != precision:
            assumed.append(("precision", runs, "what ONNX Runtime computes in on a processor"))
        engine = ENGINE_BY_NAME["onnxruntime"]
        setting = Setting(
            engine=engine,
            compiled=True,
            attention="cpu",
            attention_stated=True,
            precision=runs,
            reuse=asked.reuse,
            reuse_share=asked.reuse_share,
        )
        return setting, tuple(assumed)

    @property
    def price(self) -> ChosenPrice:
        """The default price of so many processors; the whole machine counts as one GPU."""
        usd = default_usd_per_hour(self.profile.machine.cores)
        what = f"{self.profile.machine.cores} vCPUs"
        return ChosenPrice(usd, what, usd, usd, (), "2026-06", (DEFAULT_PRICE_SOURCE,))

    def predict(self, model: Model, shape: Shape, setting: Setting) -> Prediction:
        """The distribution of a clip's seconds."""
        networks = Networks.of(model, image=shape.image, head_channels=model.head)
        return predict_on_machine(networks, run_of(model, shape), setting, self.profile)


@dataclass(frozen=True)
class RunsAs:
    """How a clip was run here."""

    precision: str
    num_threads: int
    reused: float  # share of evaluations that step reuse left out


def predicted_here(bundle: Path, shape: Shape, how: RunsAs) -> tuple[Prediction, str] | None:
    """What the user's profile says of a clip, and where it is from; None without a profile of so many threads."""
    with suppress(OSError, InvalidRequest):
        return _predicted(bundle, shape, how, default_path().stat().st_mtime_ns)
    return None


@lru_cache(maxsize=256)
def _predicted(bundle: Path, shape: Shape, how: RunsAs, _changed: int) -> tuple[Prediction, str] | None:
    """As `predicted_here`; kept, since a serving stack asks for the same clip again and again."""
    from sora_runtime.cost.models import load_model

    here = OnMachine(load_profile())
    if here.profile.elsewhere is not None or here.profile.num_threads != how.num_threads:
        return None
    reuse = Setting(reuse="stated", reuse_share=how.reused) if how.reused else Setting()
    setting, _ = here.setting(how.precision, reuse)
    found = here.predict(load_model(str(bundle)), shape, setting)
    return found, f"sora-bench calibrate, {here.profile.created[:10]}"
