"""The command: measures the parts it is asked for, records them and prints the tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import benchmarks.peers
from benchmarks.peers.models import CLIPS, MODELS, TRANSFORMERS
from benchmarks.peers.options import PARTS, RESULT, Options
from benchmarks.peers.parts import measure_parts, read
from benchmarks.peers.registry import PEERS


def main(arguments: list[str] | None = None) -> None:
    """Measure, record after every part, print."""
    words = _parser().parse_args(arguments)
    chosen = {name: value for name, value in vars(words).items() if name != "out" and value is not None}
    options = Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})
    print(benchmarks.peers.__doc__)

    def keep(record: dict[str, object]) -> None:
        words.out.write_text(json.dumps(record, indent=1) + "\n")

    print(benchmarks.peers.table(measure_parts(options, read(words.out), keep)))


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(
        description=benchmarks.peers.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", dest="parts", nargs="+", choices=PARTS, help="all unless told")
    parser.add_argument("--models", nargs="+", choices=(CLIPS, *TRANSFORMERS), help=f"{' '.join(MODELS)} unless told")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="all unless told")
    parser.add_argument("--prompts", type=int, help=f"clips of clips and levers; {default.prompts} unless told")
    parser.add_argument("--steps", type=int, help=f"of those clips; {default.steps} unless told")
    parser.add_argument("--cold-rounds", type=int, help=f"new processes of each; {default.cold_rounds} unless told")
    parser.add_argument("--cold-steps", type=int, help=f"of their clips; {default.cold_steps} unless told")
    parser.add_argument("--rounds", type=int, help=f"forwards of each; {default.rounds} unless told")
    parser.add_argument("--threads", type=int, help="of every peer; all cores unless told")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file to write; its other parts stay")
    return parser


if __name__ == "__main__":
    main()
