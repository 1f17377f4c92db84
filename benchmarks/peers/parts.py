"""Runs the parts of the table, each into a record of its own, so that a long run can be cut."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.clips import measure_settings, settings_of_peers
from benchmarks.peers.cold import measure_cold
from benchmarks.peers.forward import measure_forward
from benchmarks.peers.levers import settings_of_levers
from benchmarks.peers.models import CLIPS, TRANSFORMERS
from benchmarks.peers.options import Options, Place, workplace
from benchmarks.peers.tables import fastest_peer
from sora_runtime.machine import this_machine

LIBRARIES = ("sora-runtime", "torch", "diffusers", "transformers", "onnxruntime", "openvino")

Keep = Callable[[dict[str, Any]], None]


def measure_parts(
    options: Options, record: dict[str, Any] | None = None, keep: Keep = lambda _: None
) -> dict[str, Any]:
    """Measure what the options name.

    Args:
        options: of the run.
        record: what earlier runs found; its other parts stay.
        keep: gets the record whenever a part is done.
    """
    record = dict(record or {})
    with workplace(options.threads) as place:
        for part, work in _parts(options, record, place):
            found = work()
            origin = {"machine": _machine(), "threads": options.threads, "versions": _versions()}
            stamped = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **origin, **found}
            if part in TRANSFORMERS:
                record["forward"] = {**record.get("forward", {}), part: stamped}
            else:
                record[part] = stamped
            keep(record)
    return record


def _parts(options: Options, record: dict[str, Any], place: Place) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and work of each, in the order in which they are done."""

    def levers() -> dict[str, Any]:
        fastest = fastest_peer(record["clips"]["rows"]) if "clips" in record else None
        return measure_settings(settings_of_levers(options, fastest, say), options, place, say)

    clips: dict[str, Callable[[], dict[str, Any]]] = {
        "clips": lambda: measure_settings(settings_of_peers(options), options, place, say),
        "levers": levers,
        "cold": lambda: measure_cold(options, place, say),
    }
    found = [(name, work) for name, work in clips.items() if name in options.parts and CLIPS in options.models]
    if "forward" in options.parts:
        models = [model for model in options.models if model in TRANSFORMERS]
        found += [(model, partial(measure_forward, model, options, place, say)) for model in models]
    return found


def say(sentence: str) -> None:
    """To whoever waits."""
    print(sentence, file=sys.stderr, flush=True)


def read(path: Path) -> dict[str, Any]:
    """What earlier runs recorded."""
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return record


def _machine() -> dict[str, Any]:
    machine = this_machine()
    return {"cpu": machine.cpu, "cores": machine.cores, "memory_bytes": machine.memory_bytes}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
