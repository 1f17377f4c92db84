"""`sora-bench explore`: one page in which every setting of an estimate can be moved, to open in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_runtime.output import check_file, write_text


def explore(
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.", metavar="FILE")] = Path("explore.html"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="Also offer this model card, bundle or checkpoint; may be repeated.", metavar="PATH"
        ),
    ] = None,
) -> None:
    """Write a page that shows what a clip costs as its settings change; it needs no network."""
    from datetime import UTC, datetime

    from sora_runtime.cost.explore import explore_page

    check_file(out)
    page = explore_page(datetime.now(UTC).date().isoformat(), model or [])
    write_text(out, page)
    typer.echo(f"{out} ({len(page.encode()) / 1e3:.0f} kB)")
