"""`sora-bench doctor`: whether the GPU path works here, as a report to attach to an issue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sora_runtime.bench.doctor import Check, ClipCheck

EXIT_MISSING = 4
# Of wan-pocket, decibels below the worst frame that `benchmarks.precisions` found with the same arithmetic on a CPU,
# and a network's relative error above what `benchmarks.families` found for networks of every kind.
_PRECISIONS = {"bf16": (40.0, 0.05), "fp8": (25.0, 0.2), "int8": (35.0, 0.3)}
_FP8_FROM = (8, 9)


def doctor(
    out: Annotated[Path, typer.Option(help="A folder for report.json and report.html.", metavar="FOLDER")] = Path(
        "gpu-check"
    ),
    clips: Annotated[
        bool, typer.Option("--clips/--no-clips", help="Build engines of wan-pocket here and make clips with them.")
    ] = True,
) -> None:
    """Check driver, libraries, kernels against the CPU bit by bit, graphs, and whole clips; writes one report.

    Exit codes: 0 all passed, 1 something failed, 4 something is missing, a GPU most likely.
    """
    from sora_runtime.bench.doctor import run_checks
    from sora_runtime.output import explain_os_errors, write_text

    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    found = []
    for check in run_checks(_clip_checks(out) if clips else ()):
        found.append(check)
        typer.echo(f"{check.status:8}{check.name}: {check.detail}")
    record = _record(found)
    write_text(out / "report.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "report.html", _page(record))
    typer.echo(f"\n{_verdict(found)}; the report is {out / 'report.json'} and {out / 'report.html'}")
    statuses = {check.status for check in found}
    if statuses != {"passed"}:
        raise typer.Exit(1 if "failed" in statuses else EXIT_MISSING)


def _verdict(found: list[Check]) -> str:
    counts = {status: sum(check.status == status for check in found) for status in ("passed", "failed", "missing")}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _clip_checks(out: Path) -> list[ClipCheck]:
    from sora_runtime.bench.doctor import ClipCheck

    return [ClipCheck(name, _builder(name, out), *limits) for name, limits in _PRECISIONS.items()]


def _builder(precision: str, out: Path) -> Callable[[], Path]:
    def make() -> Path:
        from sora_runtime.bench.doctor import Missing
        from sora_runtime.engines.cuda import current_device

        capability = current_device().capability
        if precision == "fp8" and tuple(map(int, capability.split("."))) < _FP8_FROM:
            raise Missing(f"compute capability {capability} has no products of fp8; a later GPU has")
        try:
            from sora_runtime.cli.doctor_bundles import pocket_for
        except ImportError as error:
            raise Missing(f"engines cannot be built ({error}); pip install 'sora-runtime[export]'") from error
        return pocket_for(precision, capability, out / "bundles")

    return make


def _record(found: list[Check]) -> dict[str, Any]:
    from dataclasses import asdict

    from sora_runtime import __version__
    from sora_runtime.machine import this_machine

    return {
        "sora_runtime": __version__,
        "machine": asdict(this_machine()),
        "checks": [asdict(check) for check in found],
    }


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.4rem .8rem;vertical-align:top;"
    "border-bottom:1px solid #d8dde3}td:last-child{white-space:nowrap}"
    ".passed{color:#0b6e3a}.failed{color:#b3261e;font-weight:600}.missing{color:#8a5a00}"
)


def _page(record: dict[str, Any]) -> str:
    from html import escape

    rows = "".join(
        f"<tr><td class={check['status']}>{check['status']}</td><td>{escape(check['name'])}</td>"
        f"<td>{escape(check['detail'])}</td><td>{check['seconds']:.2f} s</td></tr>"
        for check in record["checks"]
    )
    machine = record["machine"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>sora-bench doctor</title><style>{_STYLE}</style><h1>sora-bench doctor</h1>"
        f"<p>sora-runtime {escape(record['sora_runtime'])} on {escape(machine['cpu'])}, {machine['cores']} cores, "
        f"{escape(machine['os'])}</p><table><tr><th>result<th>check<th>what was found<th>took</tr>{rows}</table>"
        "</html>\n"
    )
