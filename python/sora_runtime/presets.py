"""What a bundle keeps of its presets: named settings of a request, each with what it costs and how good it is.

`sora-bench frontier` writes them; `sora_runtime.preset_use` reads them for a request.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt

# What a preset may hold: the fields of a request that decide quality and work. `guidance_method` and `step_reuse` are
# a name, or an object of the fields of `GuidanceRule` and `StepReuse`.
PRESET_SETTINGS = (
    "negative_prompt",
    "num_inference_steps",
    "sigmas",
    "timesteps",
    "guidance_scale",
    "guidance_scale_2",
    "guidance_rescale",
    "guidance_method",
    "guidance_interval",
    "guidance_decay",
    "zero_init_steps",
    "solver",
    "step_reuse",
    "reuse_threshold",
    "force_step_reuse",
)

PresetName = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,63}$")]
# The name of a folder beside the bundle's own, or of a shipped bundle; no path, so that it stays true wherever both go.
OtherBundle = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class PresetQuality(_Record):
    """How good clips of a preset were over the prompts that it was measured on."""

    prompts: PositiveInt
    adherence: float | None = Field(ge=0, le=1)  # share of prompts wholly right; None: no detector knows this model
    psnr_mean: float | None  # dB against the bundle's reference settings; None: identical
    ssim_mean: float | None = None
    flicker: float | None = None  # temporal, relative to the reference


class PresetCost(_Record):
    """What a clip of a preset took: the mean, with a thread for every core and engines already loaded."""

    machine: str  # as `sora_runtime.machine.Machine.name` has it
    price_per_hour: NonNegativeFloat  # USD, for the whole machine
    seconds_per_clip: PositiveFloat
    usd_per_second: NonNegativeFloat  # of generated video
    evaluations: NonNegativeFloat  # network calls of a clip


class Preset(_Record):
    """Settings of a request under one name, and the setting that their quality and cost were measured at."""

    settings: dict[str, JsonValue]  # of `PRESET_SETTINGS`; the values are checked when the preset is used
    bundle: OtherBundle | None = None  # the bundle of the same model that the settings are for; None: this one
    quality: PresetQuality
    cost: PresetCost
    task: Literal["t2v", "i2v"]
    height: PositiveInt
    width: PositiveInt
    num_frames: PositiveInt
    created: str  # ISO 8601, UTC

    @property
    def clip(self) -> str:
        """What kind of clip it was measured on, in words."""
        return f"{self.width}x{self.height} with {self.num_frames} frames ({self.task})"
