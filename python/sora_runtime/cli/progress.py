"""The bars on stderr: one for each stage of a clip, none where stderr is no terminal."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class StageProgress:
    """Shows the stages of a clip as `Runtime.generate` reports them through ``on_progress``.

    The bars vanish at the end: the receipt tells the same, exactly.
    """

    def __init__(self, *, quiet: bool) -> None:
        shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not shown,
        )
        self._prefix = ""
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.__exit__(exc_type, exc, traceback)

    def next_clip(self, prefix: str) -> None:
        """Clears the bars; ``prefix`` tells which clip the next ones are of."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks = {}
        self._prefix = prefix

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` parts of ``stage`` are done; 0 of 0: no one knows."""
        task = self._tasks.get(stage)
        if task is None:
            task = self._progress.add_task(f"{self._prefix}{stage:<11}", total=None)
            self._tasks[stage] = task
        self._progress.update(task, completed=done, total=total or None)
