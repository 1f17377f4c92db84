"""What the commands' tables are made of; all fit 80 columns."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Sequence

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 80
_LABEL_WIDTH = 12


def print_all(parts: Iterable[RenderableType]) -> None:
    """Prints tables to stdout, an empty line between them."""
    console = Console(file=sys.stdout)
    console.width = min(console.width, WIDTH)
    with console.capture() as capture:
        for index, part in enumerate(parts):
            if index:
                console.print()
            console.print(part)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())


def facts(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Labels and what they stand for; long text folds within its column."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=_LABEL_WIDTH)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(label, Text(value))  # Text: a prompt's brackets are no markup
    return Padding(grid, (0, 1))


def columns(names: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Collection[str]) -> RenderableType:
    """A table; ``numbers`` names the columns to align at the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        right = name in numbers
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return Padding(table, (0, 1))


def amount(value: float) -> str:
    """A sum of money in plain digits, with three significant ones however small it is."""
    if value <= 0 or value >= 1:
        return f"{value:.2f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


def duration(seconds: float) -> str:
    """A short time in ms, a longer one in s."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def byte_size(size: int) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit, exponent in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << exponent:
            return f"{size / (1 << exponent):.1f} {unit}"
    return f"{size} B"
