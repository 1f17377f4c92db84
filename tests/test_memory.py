"""Decoding streams: its peak memory does not grow with the number of frames."""

import subprocess
import sys

# In a process of its own, so that the peak is the decoder's. Chunks are dropped as they come.
CODE = """
import sys
import numpy as np
from sora_runtime import Runtime
from sora_runtime.decode import ChunkDecoder
from sora_runtime.machine import peak_host_memory_bytes
from sora_runtime.stages import open_engine

runtime = Runtime.load("wan-pocket", num_threads=2)
bucket = runtime.bundle.manifest.components.vae_decoder.buckets[0]
decoder = ChunkDecoder(*(open_engine(runtime.bundle, graph, num_threads=2) for graph in (bucket.first, bucket.next)))
facts = runtime.bundle.manifest.facts
frames = (int(sys.argv[1]) - 1) // facts.temporal_stride + 1
size = (bucket.height // facts.spatial_stride, bucket.width // facts.spatial_stride)
latents = np.random.default_rng(0).standard_normal((1, facts.latent_channels, frames, *size), np.float32)
kept, decoded = [], 0
for chunk in decoder.chunks(latents):
    decoded += chunk.shape[1]
    if sys.argv[2] == "keep":
        kept.append(np.repeat(chunk, 40, axis=0))  # many times what a decoder that does not stream would hold
print(decoded, peak_host_memory_bytes())
"""


def peak_of(num_frames: int, keep: str = "drop") -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(num_frames), keep], capture_output=True, text=True, check=True
    )
    decoded, peak = done.stdout.split()
    assert int(decoded) == num_frames
    return int(peak)


def test_97_frames_take_at_most_1_15_times_the_memory_of_25() -> None:
    short, long = peak_of(25), peak_of(97)
    print(f"25 frames {short / 2**20:.0f} MiB, 97 frames {long / 2**20:.0f} MiB, ratio {long / short:.3f}")
    assert long <= 1.15 * short
    assert peak_of(97, "keep") > 1.15 * short  # the measure does see memory that grows
