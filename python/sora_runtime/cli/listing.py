"""Long tables at 80 columns: a key that never folds, narrow gaps, and sources as numbered notes below."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TypeVar

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Note = TypeVar("Note", bound=Hashable)


def listing(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    whole: Collection[str],
    numbers: Collection[str] = (),
    gap: int = 2,
) -> RenderableType:
    """A table; columns in `whole` or `numbers` (at the right) never fold; `gap` is at least 1."""
    # The box itself puts one space between columns.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style="bold")
    rows = list(rows)
    for index, name in enumerate(names):
        right = name in numbers
        kept = right or name in whole
        width = max(len(row[index]) for row in [names, *rows]) if kept else None
        # Without both, Rich would cut a number's end off where the table is too wide.
        table.add_column(name, justify="right" if right else "left", no_wrap=kept, min_width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return Padding(table, (0, 1))


def numbered(notes: Iterable[Note]) -> dict[Note, int]:
    """Each different note with its number, from 1, in the order in which they come."""
    return {note: number for number, note in enumerate(dict.fromkeys(notes), 1)}
