"""The same checkpoint, prompts, seeds, steps and threads through diffusers, OpenVINO, ONNX Runtime and this runtime.

    python -m benchmarks.peers [--part clips levers cold forward] [--models wan-pocket wan-1.3b-2 ltx-2b-4 wan-1.3b-30]

Every peer is a process of its own, fed through pipes, so that neither memory nor thread pools mix; all get the same
number of threads. They take turns, clip by clip or forward by forward, each round in another order, with a pause
before each turn in which the threads of the one before stop spinning; so whatever else the machine does falls on all
of them, and a ratio is the median over the rounds of two times of one round. A peer that cannot run here says why in
its row.

What is timed. `clips`: prompt to rgb8 frames in memory, text encoder, denoising and decoder included, in a process
that has made one clip before; the pipes are not. `cold`: from before the process is started to its first frame
(diffusers' pipelines give all frames at once), imports and loading of weights included; files are in the page cache,
and what a peer makes ahead of time (exported graphs, compiled kernels in torch's cache on disk, a bundle) is there.
`levers`: as `clips`, for this runtime's ways to do less work. `forward`: one forward pass of a
transformer of random weights on inputs that lie in memory, after one that warms up. What is not timed anywhere:
exporting, converting, quantising, compiling ahead of time, writing files, scoring. Peak memory is the VmHWM of the
process at its end: resident pages, those of mapped weight files included.

What is equal: weights, noise (torch's, from the seed), schedule, guidance, number of evaluations, float32 unless a row
says int8 or bf16. What is not: diffusers encodes the negative prompt for every clip, this runtime once; wan-pocket's
pipeline gives each token a timestep, this project's graph one to all, as text to video needs no more. OpenVINO is told
to compute in float32 unless the row says otherwise (by itself it takes bf16 where the processor has it). torch.compile
gets the transformer, whole, and not the VAE. Rows in bf16 are of transformers alone, where the processor multiplies it.
The 30-layer model's processes are too big to live side by side: this runtime's int8 stays, every other one comes for
alternating rounds with it (A B A B) and goes.

Quality is in the same row: the relative L2 of the latents and the PSNR of the frames against diffusers eager float32
from the same noise, and for wan-pocket what detectors see in the frames.
"""

from typing import Any


def measure() -> dict[str, Any]:
    """Every part, one after the other; see `benchmarks.peers.parts`."""
    from benchmarks.peers.parts import Options, measure_parts

    return measure_parts(Options())


def in_short(result: dict[str, Any]) -> str:
    """What the first page shows of the record; see `benchmarks.peers.first_page`."""
    from benchmarks.peers.first_page import first_page

    return first_page(result)


def table(result: dict[str, Any]) -> str:
    """The record in Markdown; see `benchmarks.peers.tables`."""
    from benchmarks.peers.tables import tables

    return tables(result)
