"""Prompt adherence of the shipped model, as `sora_export.pocket.score` recorded it.

python -m sora_export.pocket.score --prompts 240 --out benchmarks/results/adherence.json
python -m sora_export.pocket.score --detectors --prompts 500 --out benchmarks/results/detectors.json
"""

import json
from pathlib import Path
from typing import Any

DETECTORS = Path(__file__).parent / "results" / "detectors.json"


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, with the detectors' own score beside it."""
    detectors = json.loads(DETECTORS.read_text())
    lines = [
        f"| attribute | {result['prompts']} held-out prompts | 95% interval | detectors on "
        f"{detectors['prompts']} rendered clips |",
        "|---|---|---|---|",
    ]
    for name, row in result["accuracy"].items():
        low, high = row["wilson_95"]
        rendered = detectors["accuracy"][name]["accuracy"]
        lines.append(f"| {name} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | {rendered:.1%} |")
    return "\n".join(lines)
