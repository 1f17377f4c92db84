"""Times `make run` and `make test` cold and warm: in a fresh clone, then again in the same.

    python -m benchmarks.timing REPOSITORY

Cold makes the virtual environment and installs everything; how long that takes depends on the network.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sora_runtime.machine import this_machine

RESULT = Path(__file__).parent / "results" / "timing.json"


def seconds_of(target: str, folder: Path) -> float:
    """Wall time of a make target that must succeed."""
    start = time.perf_counter()
    # Its output goes to stderr: whoever waits can watch, and sees why it failed.
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    subprocess.run(["make", target], cwd=folder, env=clean, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def measure(repository: str) -> dict[str, Any]:
    """Both targets, each twice, in one clone."""
    folder = Path(tempfile.mkdtemp())
    try:
        subprocess.run(["git", "clone", "--quiet", repository, folder / "clone"], check=True)
        seconds = {
            f"{target} {state}": seconds_of(target, folder / "clone")
            for target in ("run", "test")
            for state in ("cold", "warm")
        }
    finally:
        shutil.rmtree(folder)
    machine = this_machine()
    return {"cpu": machine.cpu, "cores": machine.cores, "seconds": seconds}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    s = result["seconds"]
    lines = [f"| on {result['cores']} cores ({result['cpu']}) | cold, empty .venv | warm |", "|---|---|---|"]
    lines += [f"| `make {name}` | {s[f'{name} cold']:.0f} s | {s[f'{name} warm']:.0f} s |" for name in ("run", "test")]
    return "\n".join(lines)


if __name__ == "__main__":
    RESULT.write_text(json.dumps(measure(sys.argv[1]), indent=2) + "\n")
