"""How long a clip takes on a calibrated machine: the work of each network at the rates that its own sizes reach.

A processor's rates depend on sizes far more than a GPU's, so nothing here is one number for a machine: a product's
rate is looked up by its rows and width, an attention's by its lengths and heads, a convolution's by its channels and
positions, in the tables that a calibration measured on shapes of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sora_runtime.cost.clips import Shape
from sora_runtime.cost.models import Model
from sora_runtime.cost.predict import Z90, Prediction, part_seconds
from sora_runtime.cost.profile import ROW_SPREAD, SOURCE_SPREAD, Profile
from sora_runtime.cost.roofline import Seconds, evaluated_share
from sora_runtime.cost.settings import Setting
from sora_runtime.cost.work import ComponentWork, Size, Sizes, Term

_KERNEL = 27.0  # positions of a 3x3x3 convolution
_LATENT_CHANNELS = 16  # of the latents that a sampler steps; its time is seen in the smallest clips only


@dataclass(frozen=True)
class Networks:
    """What a clip runs, with the few sizes that a sum of work does not tell."""

    transformer: ComponentWork
    width: int  # of the transformer's residual stream
    head_channels: int
    text_tokens: int
    decoder: ComponentWork | None = None
    encoder: ComponentWork | None = None  # of the picture that a clip begins with
    conditioners: tuple[ComponentWork, ...] = ()

    @classmethod
    def of(cls, model: Model, *, image: bool = False, head_channels: int | None = None) -> Networks:
        """A model's networks; heads that nobody states are as wide as published models of that width have them."""
        return cls(
            transformer=model.transformer,
            width=model.width,
            head_channels=head_channels or usual_head_channels(model.width),
            text_tokens=model.text_tokens,
            decoder=model.vae.decoder if model.vae is not None else None,
            encoder=model.vae.encoder if image and model.vae is not None else None,
            conditioners=tuple(encoder.work for encoder in model.encoders if encoder.of == "text" or image),
        )


def usual_head_channels(width: int) -> int:
    """Of a transformer so wide."""
    if width < 512:
        return 32
    return 64 if width < 1536 else 128


@dataclass(frozen=True)
class Run:
    """How often the networks run, and over which sizes."""

    sizes: Sizes
    steps: int
    passes: int = 1  # evaluations in each step
    prompts: int = 1  # texts that are encoded and not in the cache
    encoder_sizes: Sizes | None = None


class _Machine:
    """The times of operator classes on one machine in one precision."""

    def __init__(self, profile: Profile, precision: str) -> None:
        self.profile = profile
        self.precision = "int8" if precision == "int8" else "fp32"

    def product(self, flops: float, rows: float, width: float, *, precision: str | None = None) -> float:
        """Seconds of matrix products."""
        return flops / self.profile.tables[f"product.{precision or self.precision}"].at(rows=rows, width=width)

    def attention(
        self, flops: float, queries: float, keys: float, channels: float, precision: str | None = None
    ) -> float:
        """Seconds of attentions."""
        table = self.profile.tables[f"attention.{precision or self.precision}"]
        return flops / table.at(head_channels=channels, queries=queries, keys=keys)

    def rest(self, elements: float, layers: int) -> float:
        """Seconds of a transformer's other operators."""
        if not elements:
            return 0.0
        return elements / self.profile.tables["rest.transformer"].at(elements=elements / max(layers, 1))

    def in_network(self, alone: Seconds, elements: float) -> Seconds:
        """What operators take in a network's midst, from what they take alone."""
        factor = self.profile.slower_in_network(self.precision, elements)
        return {name: value * factor for name, value in alone.items()}


def transformer_seconds(networks: Networks, sizes: Sizes, profile: Profile, precision: str) -> Seconds:
    """One evaluation of the transformer by operator class."""
    machine, work = _Machine(profile, precision), networks.transformer
    seconds = {"linear": 0.0, "attention": 0.0, "convolution": 0.0, "elementwise": 0.0}
    for term in work.terms:
        flops = term.flops * sizes.product(term.of)
        if term.operator == "linear" and flops:
            if term.of:
                width = term.flops / term.elements
                seconds["linear"] += machine.product(flops, sizes.product(term.of), width)
            else:
                seconds["linear"] += sum(_constant_products(networks, term, machine))
        elif term.operator == "convolution" and flops:
            rows, width = sizes.product(term.of), networks.width
            seconds["convolution"] += machine.product(flops, rows, width, precision="fp32")
        elif term.operator == "attention" and flops:
            queries, keys = _lengths(term.of, sizes, networks.text_tokens)
            seconds["attention"] += machine.attention(flops, queries, keys, networks.head_channels)
    seconds["elementwise"] = machine.rest(work.elements(sizes)["elementwise"], work.layers)
    return machine.in_network(seconds, sizes.tokens * networks.width)


def text_seconds(networks: Networks, sizes: Sizes, profile: Profile, precision: str) -> float:
    """What of an evaluation follows from the text alone; the engine computes it once for a clip and branch.

    Where text and video attend to each other as one sequence that is next to nothing: only keys and values for them and
    the projections before are counted, and no text that goes through the blocks itself.
    """
    machine, work = _Machine(profile, precision), networks.transformer
    seconds = 0.0
    for term in work.terms:
        if term.operator == "linear" and term.flops and not term.of:
            of_text, _ = _constant_weights(networks, term) or (0.0, 0.0)
            if of_text < 4.0 * work.layers * networks.width**2:
                seconds += _constant_products(networks, term, machine)[0]
    return machine.in_network({"linear": seconds}, sizes.tokens * networks.width)["linear"]


def _lengths(of: tuple[Size, ...], sizes: Sizes, text_tokens: int) -> tuple[float, float]:
    """Queries and keys of an attention whose scores grow with these sizes."""
    if not of:
        return text_tokens, text_tokens
    if len(of) == 1:
        return sizes.product(of), text_tokens
    length = math.sqrt(sizes.product(of))
    return length, length


def _constant_weights(networks: Networks, term: Term) -> tuple[float, float] | None:
    """Weights of products whose rows are no video tokens: of the text, and of the timestep with a single row.

    They are what `tokens` do not explain, so both follow from FLOPs and weights; None: they are not these two kinds.
    """
    work, text = networks.transformer, networks.text_tokens
    weights = _unexplained_weights(work)
    of_text = (term.flops / 2.0 - weights) / max(text - 1.0, 1.0)
    of_time = weights - of_text
    return None if of_text <= 0.0 or of_time < 0.0 else (of_text, of_time)


def _unexplained_weights(work: ComponentWork) -> float:
    others = sum(other.flops / 2.0 for other in work.terms if other.operator in {"linear", "convolution"} and other.of)
    return max(work.read - others, 1.0)


def _constant_products(networks: Networks, term: Term, machine: _Machine) -> tuple[float, float]:
    """Seconds of products of the text, and of all others that have no video tokens.

    Of the text's, keys and values in the blocks are quantised and projections before them are not.
    """
    work, text = networks.transformer, networks.text_tokens
    found = _constant_weights(networks, term)
    if found is None:
        rows = term.flops / 2.0 / _unexplained_weights(work)
        return 0.0, machine.product(term.flops, rows, networks.width)
    of_text, of_time = found
    in_blocks = min(2.0 * work.layers * networks.width**2, of_text)
    return (
        machine.product(2.0 * text * in_blocks, text, networks.width)
        + machine.product(2.0 * text * (of_text - in_blocks), text, networks.width, precision="fp32"),
        machine.product(2.0 * of_time, 1.0, networks.width, precision="fp32"),
    )


def autoencoder_seconds(work: ComponentWork, sizes: Sizes, profile: Profile) -> Seconds:
    """A clip through a decoder or encoder: the first latent frame, then the others one at a time."""
    first = Sizes(sizes.tokens, sizes.latent_area, 1)
    second = Sizes(sizes.tokens, sizes.latent_area, 2)
    start, both = _chunk(work, (first,), profile), _chunk(work, (first, second), profile)
    return {name: start[name] + both[name] * (sizes.latent_frames - 1) for name in start}


def _chunk(work: ComponentWork, ends: tuple[Sizes, ...], profile: Profile) -> Seconds:
    """The work of one latent frame: all of it for the first, what the second adds for a later one."""
    machine = _Machine(profile, "fp32")
    flops, elements = dict(work.flops(ends[-1])), dict(work.elements(ends[-1]))
    if len(ends) == 2:
        for total, before in ((flops, work.flops(ends[0])), (elements, work.elements(ends[0]))):
            for name in total:
                total[name] -= before[name]
    area = float(ends[0].latent_area)
    channels = max(flops["convolution"] / elements["convolution"] / _KERNEL, 1.0)
    positions = max(elements["convolution"] / (2.0 * channels) / max(2 * work.layers, 1), 1.0)
    at = {"channels": channels, "positions": positions}
    linear, attention = flops["linear"], flops["attention"]
    return {
        "convolution": flops["convolution"] / profile.tables["convolution.fp32"].at(**at),
        "elementwise": elements["elementwise"] / profile.tables["rest.convolution"].at(**at),
        "linear": machine.product(linear, area, linear / elements["linear"]) if linear else 0.0,
        "attention": machine.attention(attention, area, area, 128.0) if attention else 0.0,
    }


def conditioner_seconds(work: ComponentWork, sizes: Sizes, profile: Profile, precision: str) -> Seconds:
    """One text through a text encoder, or one picture through an image encoder."""
    machine = _Machine(profile, precision)
    flops, elements = work.flops(sizes), work.elements(sizes)
    rows = max(flops["linear"] / 2.0 / max(work.read, 1.0), 1.0)
    width = flops["linear"] / max(elements["linear"], 1.0)
    seconds = {
        "linear": machine.product(flops["linear"], rows, width),
        "attention": machine.attention(flops["attention"], rows, rows, 64.0, "fp32") if flops["attention"] else 0.0,
        "elementwise": machine.rest(elements["elementwise"], work.layers),
    }
    return machine.in_network(seconds, rows * width)


def machine_seconds(networks: Networks, run: Run, setting: Setting, profile: Profile) -> dict[str, Seconds]:
    """Wall seconds of every stage of a clip on a calibrated machine, as `roofline.clip_seconds` gives them for a GPU.

    Precisions but int8 are taken as float32, which is what this machine's engine runs them in.
    """
    stages: dict[str, Seconds] = {"text_encode": {}, "image_encode": {}, "vae_decode": {}}
    sizes, constants = run.sizes, profile.constants
    for work in networks.conditioners:
        _add(stages["text_encode"], conditioner_seconds(work, sizes, profile, setting.precision), run.prompts)
    if networks.encoder is not None:
        _add(stages["image_encode"], autoencoder_seconds(networks.encoder, run.encoder_sizes or sizes, profile), 1)
    if networks.decoder is not None:
        _add(stages["vae_decode"], autoencoder_seconds(networks.decoder, sizes, profile), 1)
    evaluations = run.steps * run.passes * evaluated_share(setting, profile.fit.rates())
    one = transformer_seconds(networks, sizes, profile, setting.precision)
    denoise = {name: value * evaluations for name, value in one.items()}
    again = max(evaluations - run.passes, 0.0)  # evaluations that find what follows from the text computed
    denoise["linear"] -= text_seconds(networks, sizes, profile, setting.precision) * again
    latents = sizes.latent_area * sizes.latent_frames * _LATENT_CHANNELS
    denoise["overhead"] = run.steps * (constants["step"] + constants["step.element"] * latents)
    return stages | {"denoise": denoise, "clip": {"overhead": constants["clip"]}}


def _add(total: Seconds, part: Seconds, times: float) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value * times


def predict_on_machine(
    networks: Networks, run: Run, setting: Setting, profile: Profile, *, scope: str = "end_to_end"
) -> Prediction:
    """The distribution of the seconds that a scope takes on a calibrated machine."""
    stages = machine_seconds(networks, run, setting, profile)
    seconds = sum(part_seconds(stages, scope, run.steps).values())
    factor = math.exp(Z90 * math.hypot(ROW_SPREAD, SOURCE_SPREAD))
    reasons = () if profile.elsewhere is None else (profile.elsewhere,)
    return Prediction(seconds / factor, seconds, seconds * factor, stages, reasons)


def run_of(model: Model, shape: Shape) -> Run:
    """What a clip of a model runs."""
    geometry = model.geometry(shape.width, shape.height, shape.frames)
    sizes = model.sizes(geometry)
    first = Sizes(sizes.tokens, sizes.latent_area, 1)
    whole = model.family == "wan" and model.strides.spatial_stride == 8
    return Run(
        sizes=sizes,
        steps=shape.steps,
        passes=2 if shape.guided else 1,
        prompts=shape.prompts or (2 if shape.guided else 1),
        encoder_sizes=sizes if whole else first,
    )
