"""`sora-bench catalogue`: shows the models, GPUs and prices that estimates use, and checks them."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.cost.check_catalogue import Finding

catalogue = typer.Typer(no_args_is_help=True, help="Show and check the models, GPUs and prices of estimates.")


class Table(StrEnum):
    """What can be listed."""

    models = "models"
    gpus = "gpus"
    prices = "prices"
    api = "api"


Folder = Annotated[Path | None, typer.Option(metavar="DIR", help="Another catalogue than the one that ships.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")]


@catalogue.command()
def check(
    max_age_months: Annotated[float, typer.Option(min=0, metavar="N", help="Older prices are warned of.")] = 12.0,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Fail on rows without source or date and on figures that contradict each other; warn of old prices."""
    from datetime import UTC, datetime

    from sora_runtime.cost.check_catalogue import CATALOGUE, check_catalogue

    found = check_catalogue(folder or CATALOGUE, max_age_months, datetime.now(UTC).date())
    errors = sum(finding.severity == "error" for finding in found)
    if json:
        from dataclasses import asdict

        typer.echo(json_format.dumps([asdict(finding) for finding in found], indent=2))
    else:
        from sora_runtime.cli.tables import print_all

        print_all(_findings(found, errors))
    if errors:
        raise typer.Exit(1)


def _findings(found: Sequence[Finding], errors: int) -> Iterator[RenderableType]:
    from sora_runtime.cli.listing import listing
    from sora_runtime.cli.tables import facts

    if found:
        rows = [(finding.severity, finding.where, finding.what) for finding in found]
        yield listing(("", "where", "what"), rows, whole=("", "where"))
    yield facts([("catalogue", f"{errors} errors, {len(found) - errors} warnings")])


@catalogue.command("list")
def list_(
    table: Annotated[Table, typer.Argument(help="Which table.")],
    match: Annotated[str, typer.Option(metavar="TEXT", help="Only rows that hold this.")] = "",
    json: Json = False,
) -> None:
    """List models, gpus, prices (of GPU-hours) or api (prices of hosted models), with date and source."""
    rows = [row for row in _rows(table) if match.lower() in " ".join(map(str, row.values())).lower()]
    if json:
        typer.echo(json_format.dumps(rows, indent=2))
        return
    from sora_runtime.cli.tables import print_all

    print_all(_listing(table, rows))


def _rows(table: Table) -> list[dict[str, Any]]:
    if table is Table.models:
        return _models()
    from sora_runtime.cost.tables import rows

    name = {Table.gpus: "gpus.csv", Table.prices: "gpu_prices.csv", Table.api: "api_prices.csv"}[table]
    return [dict(row) for row in rows(name)]


def _models() -> list[dict[str, Any]]:
    import tomllib

    from sora_runtime.cost.check_catalogue import CATALOGUE

    cards = (tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted((CATALOGUE / "models").glob("*.toml")))
    return [
        {
            "name": card["name"],
            "family": card["family"],
            "tasks": card["tasks"],
            "parameters": card["transformer"].get("parameters_published"),
            **{key: card["defaults"][key] for key in ("width", "height", "frames", "steps")},
            "date": card["date"],
            "source": card["source"],
        }
        for card in cards
    ]


def _cells(table: Table, row: Mapping[str, Any], note: int) -> tuple[str, ...]:
    """One row as it is shown, in the order of `_HEADS`."""
    mark = f"[{note}]"
    if table is Table.models:
        size = f"{row['width']}x{row['height']}x{row['frames']}"
        parameters = f"{row['parameters'] / 1e9:.3g}B" if row["parameters"] else "-"
        return (row["name"], parameters, "/".join(row["tasks"]), size, str(row["steps"]), mark)
    if table is Table.gpus:
        rates = (_short(row[key]) for key in ("bf16_tflops", "fp8_tflops", "int8_tops", "fp4_tflops"))
        link = {"infinity-fabric": "fabric"}.get(row["link"], row["link"])
        name = row["id"] + ("" if row["verified"] == "yes" else "*")
        return (name, *rates, row["memory_gb"], row["bandwidth_gbs"], row["tdp_w"], f"{link} {row['link_gbs']}", mark)
    if table is Table.prices:
        price = f"{float(row['usd_per_gpu_hour']):.3f}"
        return (row["gpu"], row["provider"], row["gpu_count"], row["commitment"], price, row["date"], mark)
    tier = " ".join(filter(None, (row["tier"], {"yes": "audio", "no": "silent"}.get(row["audio"], ""))))
    kind = "withdrawn" if row["withdrawn"] else row["kind"]
    return (row["provider"], row["model"], tier, f"{float(row['usd_per_second']):.4f}", kind, mark)


_HEADS: dict[Table, tuple[str, ...]] = {
    Table.models: ("model", "size", "tasks", "default", "steps", ""),
    Table.gpus: ("GPU", "bf16", "fp8", "int8", "fp4", "GB", "GB/s", "W", "link", ""),
    Table.prices: ("GPU", "provider", "n", "commitment", "USD/h", "date", ""),
    Table.api: ("provider", "model", "tier", "USD/s", "kind", ""),
}
_NUMBERS = {"bf16", "fp8", "int8", "fp4", "GB", "GB/s", "W", "n", "USD/h", "USD/s", "steps"}
_WHOLE = {"model", "GPU", "link", "commitment", "date", "tier", "kind", "default", ""}
_FIGURES = {
    Table.models: "parameters of the transformer; width x height x frames and steps of the reference pipeline",
    Table.gpus: "dense TFLOP/s (int8: TOP/s); link: GB/s in one direction; *: recalled at least in part, not read",
    Table.prices: "USD for one GPU-hour where n are rented together",
    Table.api: "USD for a second of video",
}


def _short(rate: str) -> str:
    """A rate without more digits than a table has room for."""
    return f"{float(rate):.{1 if float(rate) < 1000 else 0}f}".removesuffix(".0") if rate else "-"


def _listing(table: Table, rows: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    from sora_runtime.cli.listing import listing, numbered
    from sora_runtime.cli.tables import facts

    notes = [row["source"] if table is Table.prices else f"{row['source']} ({row['date']})" for row in rows]
    numbers = numbered(notes)
    cells = [_cells(table, row, numbers[note]) for row, note in zip(rows, notes, strict=True)]
    whole = (_WHOLE | {"provider"}) - {"model"} if table is Table.api else _WHOLE
    yield listing(_HEADS[table], cells, whole=whole, numbers=_NUMBERS, gap=2 if table is Table.prices else 1)
    if table is Table.gpus:
        yield facts((row["id"], row["note"]) for row in rows if row["note"])
    yield facts([("figures", _FIGURES[table])])
    yield facts((f"[{number}]", note) for note, number in numbers.items())
