"""`sora-bench validate`: predictions against what others published, and against what this machine measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from sora_runtime.cost.validate import Compared

WORST = 12


def validate(
    file: Annotated[Path | None, typer.Argument(help="Rows as in latency.csv; default: all.", metavar="FILE")] = None,
    shipped: Annotated[
        bool, typer.Option("--shipped", help="The rates that ship, which have seen these rows.", metavar="")
    ] = False,
    machine: Annotated[
        str | None, typer.Option(help="Make clips of this bundle here and compare.", metavar="BUNDLE")
    ] = None,
    worst: Annotated[int, typer.Option(help="Worst rows to show.", metavar="N", min=0)] = WORST,
    json: Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")] = False,
) -> None:
    """Compare predictions with published times: each source by rates that never saw it (two minutes).

    A FILE of other rows is predicted by the rates that ship. With --machine, clips are made and timed here.
    """
    if machine is not None:
        if file is not None or shipped:
            raise InvalidRequest("--machine measures; leave FILE and --shipped out")
        _against_this_machine(machine, json=json)
        return
    from sora_runtime.cost.validate import complete_cases, held_out, predicted

    rows = None if file is None else _rows(file)
    cases = complete_cases(rows)
    if not cases:
        raise InvalidRequest(f"{file} has no row that states size, frames, steps, GPU and seconds; add such rows")
    if shipped or file is not None:
        from sora_runtime.cost.rates import fitted

        compared = [predicted(case, fitted()) for case in cases]
        how = "by the rates that ship"
    else:
        compared = held_out(cases, _progress())
        how = "each source by rates fitted to the others"
    left_out = 0 if rows is None else len(rows) - len(cases)
    if json:
        _print_json(compared, how, left_out)
        return
    from sora_runtime.cli.tables import print_all
    from sora_runtime.cli.validate_tables import tables

    print_all(tables(compared, how, left_out, worst))


def _rows(file: Path) -> list[dict[str, str]]:
    from sora_runtime.cost.batch import read_batch

    return [dict(record.cells) for record in read_batch(file).records if not record.fault]


def _progress() -> Callable[[str], None]:
    """One line on a terminal, overwritten; nothing elsewhere."""
    import sys

    if not sys.stderr.isatty():
        return lambda _: None
    return lambda source: typer.echo(f"\r\x1b[Kwithout {source}", nl=False, err=True)


def _print_json(compared: Sequence[Compared], how: str, left_out: int) -> None:
    from sora_runtime.cli.estimate import dumps
    from sora_runtime.cost.validate import KINDS, summarise, summary

    groups = {
        name: [asdict(group) for group in summarise(compared, key)]
        for name, key in {
            "kind": lambda each: each.case.kind,
            "model": lambda each: each.case.model.name,
            "gpu": lambda each: each.case.gpu.id,
            "engine": lambda each: each.case.setting.engine.name,
            "scope": lambda each: each.case.scope,
            "source": lambda each: each.case.source,
        }.items()
    }
    rows = [
        {
            "id": each.case.id,
            "kind": each.case.kind,
            "seconds": each.case.seconds,
            "p10": each.prediction.p10,
            "p50": each.prediction.p50,
            "p90": each.prediction.p90,
        }
        for each in compared
    ]
    kinds = sorted(groups["kind"], key=lambda group: KINDS.index(str(group["name"])))
    record = {"predicted": how, "rows_left_out": left_out, "all": asdict(summary("all", compared))}
    typer.echo(dumps(record | {"kinds": kinds, "groups": groups, "rows": rows}))


def _against_this_machine(bundle: str, *, json: bool) -> None:
    from sora_runtime.bench.against import measure

    found = list(measure(bundle))
    if json:
        from sora_runtime.cli.estimate import dumps

        typer.echo(dumps([asdict(each) for each in found]))
        return
    from sora_runtime.cli.tables import print_all
    from sora_runtime.cli.validate_tables import machine_tables

    print_all(machine_tables(found))
