"""Runs every benchmark, keeps the results as JSON and writes their tables into the README.

python -m benchmarks.run_all [NAME ...]      measure (all, or the named ones) and write
python -m benchmarks.run_all --write-only    write the README from the recorded results
"""

import importlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Modules with measure() -> dict and table(dict) -> Markdown, some with in_short(dict) for the first page; those of
# `RECORDED` have commands of their own.
MEASURED = (
    *("overhead", "overlap", "fused_step", "export_14b", "families", "precisions", "int8_forward", "validate"),
    *("calibrated", "peers"),
)
RECORDED = ("adherence", "frontier", "reuse_curves", "timing")


def write_readme(readme: str) -> str:
    """The README with each `<!-- NAME -->` block replaced by the table of its recorded result."""
    for name in (*MEASURED, *RECORDED):
        recorded = RESULTS / f"{name}.json"
        if not recorded.exists():  # not measured yet: its block stays as it is
            continue
        result = json.loads(recorded.read_text())
        module = importlib.import_module(f"benchmarks.{name}")
        readme = _write_block(readme, name, module.table(result))
        if hasattr(module, "in_short"):
            readme = _write_block(readme, f"{name} in short", module.in_short(result))
    return readme


def _write_block(readme: str, name: str, text: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(readme):
        raise SystemExit(f"README.md has no block '<!-- {name} -->'; add one")
    return pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", readme)


def main(names: list[str]) -> None:
    """Measure, record, write."""
    for name in [] if names == ["--write-only"] else names or MEASURED:
        if name not in MEASURED:
            raise SystemExit(f"'{name}' is no benchmark; use {', '.join(MEASURED)}")
        module = importlib.import_module(f"benchmarks.{name}")
        result = module.measure()
        print(module.table(result))
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(write_readme(readme.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
