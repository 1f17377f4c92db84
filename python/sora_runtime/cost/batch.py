"""Many estimates at once: a CSV file with the columns of `catalogue/latency.csv`, answered row by row.

A row that cannot be answered says why in its place; the others are answered all the same.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sora_runtime.cost.predict import Prediction, predict
from sora_runtime.cost.rows import Case, case_of
from sora_runtime.cost.settings import PRECISIONS
from sora_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from sora_runtime.cost.rates import Fit

NEEDED = ("model", "gpu")
ADDED = ("predicted_p10", "predicted_p50", "predicted_p90", "refused_because")
# What an answer depends on: rows that agree in these share one.
DECISIVE = (
    "model",
    "task",
    "width",
    "height",
    "frames",
    "steps",
    "cfg",
    "gpu",
    "gpu_count",
    "precision",
    "engine",
    "optimisations",
    "scope",
)
_DESCRIPTIVE = ("id", "params_b", "fps", "seconds", "peak_mem_gb", "source_url", "date", "doubtful")
COLUMNS = (*DECISIVE, *_DESCRIPTIVE)
# Columns of figures that no estimate reads; a slip in one is a slip in the row.
_FIGURES = ("params_b", "fps", "cfg", "seconds", "peak_mem_gb")
_COUNTS = ("width", "height", "frames", "steps", "gpu_count")
_LARGEST = 1e9  # of a count; what is above it is refused before anything is multiplied with it
_REMEDY = "give a CSV file whose first line names columns as latency.csv does"
MOST_GPUS = 4096
_SHOWN = 60  # characters of a cell
_NAME = 500  # characters of a model or GPU: more is no name, and looking for near ones would take long


@dataclass(frozen=True)
class Record:
    """One row as it was read."""

    line: int  # of the file, from 1
    cells: Mapping[str, str]
    fault: str  # why it is no row; "" if it is one


@dataclass(frozen=True)
class Batch:
    """A file of rows."""

    names: tuple[str, ...]
    records: tuple[Record, ...]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Columns that mean nothing here; they are kept as they are."""
        return tuple(name for name in self.names if name not in {*COLUMNS, *ADDED})


@dataclass(frozen=True)
class Answer:
    """One row with its prediction, or why there is none."""

    record: Record
    case: Case | None
    prediction: Prediction | None
    refused: str

    @property
    def added(self) -> dict[str, str]:
        """The columns that a batch adds, as text."""
        if self.prediction is None:
            return dict(zip(ADDED, ("", "", "", self.refused), strict=True))
        values = (self.prediction.p10, self.prediction.p50, self.prediction.p90)
        return dict(zip(ADDED, (*(f"{value:.6g}" for value in values), ""), strict=True))


def read_batch(path: Path) -> Batch:
    """Read a file of rows; a row that is malformed is kept with its fault.

    Raises:
        InvalidRequest: the file is missing, no CSV, or lacks a needed column.
    """
    try:
        # The marks at the start of a file by spreadsheets are no part of the first name.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist; {_REMEDY}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} is not text in UTF-8; {_REMEDY}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InvalidRequest(f"{str(path)!r} cannot be read ({reason}); {_REMEDY}") from None
    if not text.strip():
        raise InvalidRequest(f"{path} is empty; {_REMEDY}")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    names = _names(lines[0], path)
    return Batch(names, tuple(_records(lines, names)))


def _names(line: str, path: Path) -> tuple[str, ...]:
    names = tuple(name.strip() for name in _cells(line))
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise InvalidRequest(f"{path} has no column {' and no column '.join(missing)}; {_REMEDY}")
    twice = [name for name in names if names.count(name) > 1]
    if "" in names:
        raise InvalidRequest(f"{path} has no name for column {names.index('') + 1}; name it or remove the column")
    if twice:
        raise InvalidRequest(f"{path} names the column {twice[0]!r} twice; name it once")
    return names


def _records(lines: Sequence[str], names: Sequence[str]) -> Iterator[Record]:
    """Rows one by one; where quotes are not closed, one line is given up, not all that follow."""
    start = 1  # line 0 names the columns
    while start < len(lines):
        reader = csv.reader((lines[i] + "\n" for i in range(start, len(lines))), strict=True)
        begin, cells, broken = start, [""], False
        while not broken:
            begin = start + reader.line_num
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                broken = True
            # A quote that another row's quote closes makes one odd row of several lines.
            broken = broken or (len(cells) != len(names) and start + reader.line_num - begin > 1)
            if cells and not broken:
                yield _record(begin + 1, cells, names)
        yield _broken(begin + 1, lines[begin], names)
        start = begin + 1


def _record(line: int, cells: Sequence[str], names: Sequence[str]) -> Record:
    fault = ""
    if len(cells) != len(names):
        fault = f"the row has {len(cells)} fields and the header {len(names)}; quote a field that holds a comma"
    padded = [*cells, *[""] * len(names)]
    return Record(line, dict(zip(names, padded, strict=False)), fault)


def _cells(line: str) -> list[str]:
    """One line's cells, however wrong its quotes are; a cell beyond csv's own limit (131,072) is cut."""
    return next(csv.reader([line[: csv.field_size_limit()]]), [])


def _broken(line: int, text: str, names: Sequence[str]) -> Record:
    cells = _cells(text)
    fault = "the quotes of the row do not close; double a quote within a quoted field"
    if len(text) > csv.field_size_limit():
        fault = f"the row has {len(text):,} characters; shorten it"
    return Record(line, _record(line, cells, names).cells, fault)


def answers(batch: Batch, fit: Fit) -> Iterator[Answer]:
    """Every row in its order."""
    known: dict[tuple[str, ...], Answer] = {}
    for record in batch.records:
        refused = record.fault or _slip(record.cells)
        if refused:
            yield Answer(record, None, None, refused)
            continue
        key = tuple(record.cells.get(name, "") for name in DECISIVE)
        if key not in known:
            known[key] = _answer(record, fit)
        found = known[key]
        yield Answer(record, found.case, found.prediction, found.refused)


def _slip(cells: Mapping[str, str]) -> str:
    """A figure that is none, or a count beyond all sense; `case_of` says what else is wrong with a count."""
    for name in (*_FIGURES, *_COUNTS):
        text = (cells.get(name) or "").strip()
        try:
            value = float(text or 0)
        except ValueError:
            return f"{name} = {_short(text)!r} is not a number; give one or leave it empty"
        if not 0 <= value <= (_LARGEST if name in _COUNTS else sys.float_info.max):  # NaN too
            return (
                f"{name} = {_short(text)} is out of range; give {'1' if name in _COUNTS else '0'} or more, or nothing"
            )
    return ""


def _short(text: str) -> str:
    """What a sentence shows of a cell."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _answer(record: Record, fit: Fit) -> Answer:
    try:
        case = _case(record.cells)
    except InvalidRequest as error:
        return Answer(record, None, None, " ".join(str(error).split()))
    found = predict(case.clip, case.gpu, case.setting, fit, scope=case.scope, assumed=case.assumed)
    return Answer(record, case, found, "")


def _case(cells: Mapping[str, str]) -> Case:
    """As `case_of`, and what a published row never is."""
    for name in NEEDED:
        if len(cells[name]) > _NAME or "\0" in cells[name]:
            raise InvalidRequest(f"{name} = {_short(cells[name])!r} is no name; give a shorter one")
    precision = (cells.get("precision") or "").strip().lower()
    if precision not in {"", "mixed", *PRECISIONS}:  # mixed: the optimisations say of what
        raise InvalidRequest(f"precision = {_short(precision)!r} is not known; use one of {', '.join(PRECISIONS)}")
    try:
        case = case_of(cells)
    except OSError as error:  # no path can be so long
        shown = _short(cells["model"])
        raise InvalidRequest(f"model = {shown!r} is no path ({error.strerror}); give a name or a path") from None
    if case.gpu_count > MOST_GPUS:
        raise InvalidRequest(f"gpu_count = {case.gpu_count} is out of range; use 1 to {MOST_GPUS}")
    if case.setting.parallelism.gpus != case.gpu_count:
        shared = case.setting.parallelism.gpus
        raise InvalidRequest(f"optimisations share a clip over {shared} GPUs and gpu_count = {case.gpu_count}; say one")
    return case


def as_csv(batch: Batch, answered: Sequence[Answer]) -> str:
    """The rows as they were, with `ADDED`; where they are there already, they are replaced."""
    names = [name for name in batch.names if name not in ADDED]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*names, *ADDED], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**answer.record.cells, **answer.added} for answer in answered)
    return file.getvalue()
