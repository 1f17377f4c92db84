"""What a bundle keeps of step reuse that was calibrated for it: for what, which settings, at which loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ReuseKey(_Record):
    """The setting that a calibration holds for, and no other."""

    task: Literal["t2v", "i2v"]
    height: PositiveInt
    width: PositiveInt
    num_frames: PositiveInt
    solver: str
    schedule: str
    num_inference_steps: PositiveInt
    guided: bool  # whether any step makes two evaluations
    guidance_method: str = "cfg"

    def __str__(self) -> str:
        guidance = "with" if self.guided else "without"
        if self.guidance_method != "cfg":
            guidance += f" {self.guidance_method}"
        return (
            f"{self.num_inference_steps} steps of {self.solver} on {self.schedule} at {self.width}x{self.height} with "
            f"{self.num_frames} frames {guidance} guidance ({self.task})"
        )


class ReuseSettings(_Record):
    """The fields of `sora_runtime.sampling.StepReuse`, where each is explained."""

    policy: str
    threshold: float = 0.0
    warm_up: int = 3
    most_in_a_row: int = 0
    order: int = 0
    residual: bool = False
    interval: int = 2
    polynomial: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    ratios: tuple[float, ...] = ()
    reused: tuple[int, ...] = ()
    unconditional_every: int = 1


class ReuseQuality(_Record):
    """What reuse saved and lost over the prompts it was calibrated on, against the same clips without it."""

    prompts: PositiveInt
    evaluations: float  # network calls of a clip, the mean
    all_evaluations: PositiveInt  # without reuse
    psnr_mean: float | None  # dB over the frames; None: every clip came out identical
    psnr_min: float | None
    ssim_mean: float


class ReuseCalibration(_Record):
    """One policy, calibrated for one setting."""

    key: ReuseKey
    settings: ReuseSettings
    quality: ReuseQuality
    created: str = Field(description="ISO 8601, UTC")
