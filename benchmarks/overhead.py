"""Where the time of the default clip goes: engines, everything else, import, decoding memory.

"Outside the engines" is all of a clip's time that no network call took: tokenizer, sampler, binding, Python,
conversion to rgb8. The mp4 is not part of it; the receipt lists it by itself.
"""

import re
import statistics
import subprocess
import sys
from typing import Any

from sora_runtime import Runtime

PROMPT = "a red circle moving left on a navy background"
REPETITIONS = 7


def import_milliseconds() -> float:
    """Cumulative time of `import sora_runtime` as -X importtime prints it, median of five."""
    times = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import sora_runtime"],
            capture_output=True,
            text=True,
            check=True,
        )
        match = re.search(r"\|\s*(\d+)\s*\|\s*sora_runtime$", done.stderr, re.MULTILINE)
        assert match is not None, done.stderr
        times.append(int(match[1]) / 1e3)
    return statistics.median(times)


def measure() -> dict[str, Any]:
    """Medians over several default clips after one that warms up."""
    runtime = Runtime.load("wan-pocket")
    runtime.generate(PROMPT, seed=0)
    receipts = [runtime.generate(PROMPT, seed=seed).receipt for seed in range(REPETITIONS)]
    outside = [1 - receipt.engine_seconds / receipt.seconds.total for receipt in receipts]
    first = receipts[0]
    return {
        "clip": f"{first.request.width}x{first.request.height}, {first.request.num_frames} frames, "
        f"{first.request.num_inference_steps} steps, guidance {first.request.guidance_scale:g}",
        "cpu": first.machine.cpu,
        "num_threads": first.engine.num_threads,
        "total_seconds": statistics.median(r.seconds.total for r in receipts),
        "denoise_seconds": statistics.median(r.seconds.denoise for r in receipts),
        "vae_decode_seconds": statistics.median(r.seconds.vae_decode for r in receipts),
        "engine_seconds": statistics.median(r.engine_seconds for r in receipts),
        "share_outside_engines": statistics.median(outside),
        "usd_per_clip": statistics.median(r.cost.usd_per_clip for r in receipts),
        "usd_per_hour": first.cost.usd_per_hour,
        "peak_host_memory_mib": max(r.peak_host_memory_bytes for r in receipts) / 2**20,
        "import_milliseconds": import_milliseconds(),
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    rows = [
        ("clip", result["clip"]),
        ("machine", f"{result['cpu']}, {result['num_threads']} threads"),
        ("whole clip, warm", f"{result['total_seconds']:.2f} s"),
        ("of it denoising", f"{result['denoise_seconds']:.2f} s"),
        ("of it decoding", f"{result['vae_decode_seconds']:.2f} s"),
        ("outside the engines", f"{result['share_outside_engines']:.2%} of the clip"),
        ("peak memory of the process", f"{result['peak_host_memory_mib']:.0f} MiB"),
        ("cost at the default price", f"{result['usd_per_clip']:.6f} USD at {result['usd_per_hour']:.4f} USD an hour"),
        ("`import sora_runtime`", f"{result['import_milliseconds']:.0f} ms"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    print(table(measure()))
