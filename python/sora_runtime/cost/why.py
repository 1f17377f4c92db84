"""Why an estimate's band is as wide as it is, in words: what was never timed, and what installations do differently."""

from __future__ import annotations

from collections.abc import Iterator

from sora_runtime.cost.hardware import Gpu
from sora_runtime.cost.models import Model
from sora_runtime.cost.predict import ASSUMED_SPREAD, PART_SPREAD, Prediction, part_seconds
from sora_runtime.cost.rates import Fit
from sora_runtime.cost.settings import Setting

_TELLING = 0.05  # relative; what moves the time by less is not worth a line
_PARTS = {
    "clip": "what is around the networks",
    "text_encode": "the text encoder",
    "image_encode": "the image encoder",
    "vae_decode": "the VAE's decoding",
    "overhead": "the host's overhead",
    "communication": "communication between GPUs",
    "offload": "streaming weights",
    "elementwise": "elementwise work",
}


def reasons_of(
    model: Model, gpu: Gpu, setting: Setting, prediction: Prediction, fit: Fit, unsaid: tuple[str, ...] = ()
) -> Iterator[str]:
    """One sentence each, the parts that vary first; `unsaid` are the inputs that the prediction took as assumed."""
    parts = part_seconds(prediction.stages, "end_to_end", 1)
    total = sum(parts.values())
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        spread = PART_SPREAD.get(part, 0.0)
        if seconds / total * spread >= _TELLING:
            yield f"{_PARTS[part]}: {seconds / total:.0%} of the time, {spread:.0%} apart between installations"
    attention = prediction.stages["denoise"].get("attention", 0.0) / total
    if "attention" in unsaid and attention * ASSUMED_SPREAD["attention"] >= _TELLING:
        yield f"attention: {attention:.0%} of the time, by a kernel that is assumed; state it with --attention"
    for parameter, what in _parameters(gpu, setting):
        if parameter not in fit.names:
            yield f"no published row times {what}; the rates there are a guess from kernel papers and data sheets"
    if model.vae is None:
        yield f"the VAE of {model.title} is of a class whose work is not known, so its decode is left out"
    if not gpu.verified:
        yield f"the data sheet of {gpu.id} was not read again ({gpu.source})"


def _parameters(gpu: Gpu, setting: Setting) -> Iterator[tuple[str, str]]:
    """The rates that one setting brings in, by the name that the fit would have them under."""
    yield f"gpu.{gpu.id}", gpu.id
    yield f"engine.{setting.engine.name}", f"the engine {setting.engine.name}"
    kernel = f"attention {setting.attention} on {gpu.architecture}"
    yield f"attention.pair.{setting.attention}.{gpu.architecture}", kernel
    if setting.precision not in {"bf16", "fp16"}:
        yield f"precision.{setting.precision}", setting.precision
    if setting.reuse and setting.reuse_share is None:
        yield f"reuse.{setting.reuse}", f"step reuse by {setting.reuse}"
    if setting.attention_method:
        yield f"sparse.{setting.attention_method}", f"{setting.attention_method} attention"
