"""What of a clip lies on a GPU: weights in the setting's precision, and the activations of the worst moment."""

from __future__ import annotations

from dataclasses import dataclass

from sora_runtime.cost.hardware import Gpu
from sora_runtime.cost.models import Model
from sora_runtime.cost.roofline import BF16_BYTES, Clip, weight_bytes
from sora_runtime.cost.settings import Setting

USABLE = 0.94  # of a GPU's memory: the rest is the driver's, the context's and fragmentation


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU of a clip."""

    weights: float  # of all networks
    activations: float  # at the worst moment
    resident: float  # weights and activations together
    peak: float  # with the offload that was chosen
    capacity: float
    offload: str  # "", model or block: the mildest that fits

    @property
    def fits(self) -> bool:
        """Whether the clip can be made there at all."""
        return self.peak <= self.capacity * USABLE


def memory_of(model: Model, clip: Clip, gpu: Gpu, setting: Setting) -> Memory:
    """The memory of a clip and the mildest offload with which it fits.

    Tensor parallelism splits the transformer's weights; sequence parallelism its activations. With `model` offload
    one network lies on the GPU at a time; with `block`, two layers of the transformer.
    """
    plan = setting.parallelism
    transformer = clip.transformer.parameters * weight_bytes(setting.precision) / plan.tensor
    encoders = sum(work.parameters for work in clip.conditioners) * BF16_BYTES
    decoder = 0.0 if clip.decoder is None else clip.decoder.parameters * BF16_BYTES
    sequence = plan.ulysses * plan.ring
    running = clip.transformer.peak_elements * BF16_BYTES / sequence
    decoding = 0.0 if clip.decoder is None else clip.decoder.peak_elements * BF16_BYTES
    resident = transformer + encoders + decoder + max(running, decoding)
    active = clip.transformer.read * weight_bytes(setting.precision) / plan.tensor
    one_network = max(active + running, decoder + decoding, encoders)
    blocks = max(2 * active / max(clip.transformer.layers, 1) + running, decoder + decoding, encoders)
    usable = gpu.memory_bytes * USABLE
    offload, peak = setting.offload, {"": resident, "model": one_network, "block": blocks}[setting.offload]
    if not offload and resident > usable:
        offload, peak = ("model", one_network) if one_network <= usable else ("block", blocks)
    return Memory(transformer + encoders + decoder, max(running, decoding), resident, peak, gpu.memory_bytes, offload)
