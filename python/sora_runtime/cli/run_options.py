"""The options of `sora-bench run`, as types that its signature is made of."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sora_runtime.errors import InvalidRequest


class RandomNumbers(StrEnum):
    """Where the starting noise comes from."""

    philox = "philox"
    torch = "torch"


class VerifyBundle(StrEnum):
    """When a bundle's files are hashed."""

    once = "once"
    always = "always"


class EngineName(StrEnum):
    """What runs the networks; see `sora_runtime.engines.registry`."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"
    onnxruntime_cuda = "onnxruntime_cuda"
    onnxruntime_tensorrt = "onnxruntime_tensorrt"


class GuidanceName(StrEnum):
    """How guidance joins the branches; see `sora_runtime.sampling.guidance`."""

    cfg = "cfg"
    cfg_zero_star = "cfg_zero_star"
    apg = "apg"


class ReusePolicy(StrEnum):
    """How steps are reused; see `sora_runtime.sampling.reuse_policies`."""

    easycache = "easycache"
    magcache = "magcache"
    taylorseer = "taylorseer"
    teacache = "teacache"
    plan = "plan"
    unconditional = "unconditional"


def _clip(text: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Clip", **more)


def _guide(text: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel="Guidance and step reuse")


def _budget(text: str, metavar: str, name: str) -> Any:
    return typer.Option(name, help=text, metavar=metavar, rich_help_panel="Budget")


def _file(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Files")


def _machine(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Machine")


Prompt = Annotated[str, typer.Argument(help="What the clip should show.", metavar="PROMPT")]
Model = Annotated[str, typer.Option(help="A shipped bundle or a bundle folder.", metavar="NAME|DIR")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no table.", metavar="")]

Image = Annotated[Path | None, _clip("The picture that the clip begins with.", "FILE")]
NegativePrompt = Annotated[str | None, _clip("What it should not show.", "TEXT")]
Seed = Annotated[int, _clip("One seed, one clip, on every machine.", "N")]
Seeds = Annotated[list[str] | None, _clip("A clip for each, of one prompt encoded once: clip-0.mp4 ...", "N[,N]")]
Preset = Annotated[str | None, _clip("Settings that the bundle has under a name: draft, standard, best.", "NAME")]
Steps = Annotated[int | None, _clip("Inference steps.", "N")]
Sigmas = Annotated[list[str] | None, _clip("A noise level for each step: 1.0,0.75,0.5,0.25.", "X[,X]")]
Timesteps = Annotated[list[str] | None, _clip("Instead, what the network is told: 1000,757,522.", "X[,X]")]
GuidanceScale = Annotated[float | None, _guide("1 is none and halves the work.", "X")]
GuidanceRescale = Annotated[float | None, _guide("0 (off) to 1: against too much contrast.", "X")]
GuidanceMethod = Annotated[
    GuidanceName | None, _guide("How the branches make one output: cfg, cfg_zero_star, apg.", "NAME")
]
GuidanceInterval = Annotated[
    tuple[float, float] | None, _guide("Guidance between these two sigmas alone, the lower first.", "X X")
]
GuidanceDecay = Annotated[float | None, _guide("Share of guidance gone at the last step, 0 to 1.", "X")]
ZeroInitSteps = Annotated[int | None, _guide("Steps at the beginning without a network call.", "N")]
Apg = Annotated[
    tuple[float, float, float] | None, _guide("Eta, momentum and length of apg; default 0 -0.5 0.", "X X X")
]
Solver = Annotated[str | None, _clip("Another one than the model's own.", "NAME")]
_POLICIES = ", ".join(ReusePolicy)
StepReuse = Annotated[
    ReusePolicy | None, _guide(f"Take some steps' outputs from earlier ones, as calibrated: {_POLICIES}.", "NAME")
]
ReuseThreshold = Annotated[float | None, _guide("In place of the calibrated one: lower loses less.", "X")]
ForceStepReuse = Annotated[bool, _guide("Also where it is not calibrated.", "", "--force-step-reuse")]
Rng = Annotated[RandomNumbers, _clip("Whose noise: philox, or torch for PyTorch's on a CPU.", "NAME")]
Size = Annotated[str | None, _clip("In pixels.", "WxH")]
Frames = Annotated[
    list[str] | None,
    _clip("How many frames, or a folder for PNG files; give it twice for both.", "N|DIR"),
]
NumFrames = Annotated[int | None, _clip("The same as --frames N.", "N")]
Fps = Annotated[float | None, _clip("Frames per second.", "X")]
Repeat = Annotated[int, _clip("The same for SEED, SEED+1 ...: N clips.", "N", min=1)]

Out = Annotated[Path, _file("The video.", "FILE.mp4")]
Gif = Annotated[Path | None, _file("Also an animated GIF.", "FILE")]
FramesDir = Annotated[Path | None, _file("Also a PNG file a frame; the same as --frames DIR.", "DIR")]
Json = Annotated[
    Path | None,
    _file("The receipt; a list of several. - is stdout, instead of the table.", "FILE|-"),
]

MaxUsd = Annotated[
    float | None, _budget("What a clip may cost at --price-per-hour; a preset that fits is taken.", "X", "--max-usd")
]
Deadline = Annotated[
    float | None, _budget("Seconds that a clip may take, loading of its engines included; likewise.", "X", "--deadline")
]

PricePerHour = Annotated[float | None, _machine("What an hour of it costs, in USD.", "X")]
Engine = Annotated[EngineName, _machine("What runs the networks.", "NAME")]
Threads = Annotated[int | None, _machine("Default: one for every core.", "N")]
EmbeddingCache = Annotated[Path | None, _machine("Keeps encoded prompts and pictures for later runs.", "DIR")]
Verify = Annotated[VerifyBundle, _machine("When to hash the bundle's files.")]


def guidance_of(method: GuidanceName | None, apg: tuple[float, float, float] | None) -> Any:
    """What a request takes for --guidance-method and --apg: None where neither is given.

    Raises:
        InvalidRequest: --apg without the method it is of.
    """
    if apg is None:
        return None if method is None else method.value
    if method is not GuidanceName.apg:
        raise InvalidRequest("--apg says nothing without --guidance-method apg; add it")
    from sora_runtime.sampling import GuidanceRule

    eta, momentum, length = apg
    return GuidanceRule("apg", eta=eta, momentum=momentum, norm_threshold=length)
