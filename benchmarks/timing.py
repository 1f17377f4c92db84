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


def measure(repository: str) -> None:
    """Both targets, each twice, in one clone; what has been measured is recorded as it comes."""
    machine = this_machine()
    seconds: dict[str, float] = {}
    folder = Path(tempfile.mkdtemp())
    try:
        subprocess.run(["git", "clone", "--quiet", repository, folder / "clone"], check=True)
        for target in ("run", "test"):
            for state in ("cold", "warm"):
                seconds[f"{target} {state}"] = seconds_of(target, folder / "clone")
                result = {"cpu": machine.cpu, "cores": machine.cores, "seconds": seconds}
                RESULT.write_text(json.dumps(result, indent=2) + "\n")
    finally:
        shutil.rmtree(folder)


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    s = result["seconds"]
    lines = [f"| on {result['cores']} cores ({result['cpu']}) | cold, empty .venv | warm |", "|---|---|---|"]
    for name in ("run", "test"):
        cells = [f"{s[key]:.0f} s" if (key := f"{name} {state}") in s else "not measured" for state in ("cold", "warm")]
        lines.append(f"| `make {name}` | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measure(sys.argv[1])
