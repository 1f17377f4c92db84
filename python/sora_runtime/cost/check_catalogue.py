"""Checks the catalogue's files: origins, ages, and figures that contradict each other."""

from __future__ import annotations

import csv
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from sora_runtime.errors import InvalidRequest

CATALOGUE = Path(__file__).parent / "catalogue"
TABLES = ("gpus.csv", "gpu_prices.csv", "api_prices.csv", "claims.csv", "currencies.csv")
DAYS_PER_MONTH = 365.25 / 12

# What no GPU or offer of the last ten years has been outside of; a slip of a decimal point is.
LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    "gpus.csv": {
        "bf16_tflops": (10, 10_000),
        "memory_gb": (8, 1000),
        "bandwidth_gbs": (100, 30_000),
        "tdp_w": (50, 3000),
        "link_gbs": (5, 4000),
    },
    "gpu_prices.csv": {"usd_per_gpu_hour": (0.05, 50.0), "gpu_count": (1, 128)},
    "api_prices.csv": {"usd_per_second": (0.001, 10.0)},
    "currencies.csv": {"per_usd": (0.1, 100_000)},
}
# Blackwell Ultra gave its integer units away; anywhere else int8 runs at fp8's rate, or at twice it (GeForce, whose
# fp8 is halved by fp32 sums).
WITHOUT_INT8 = {"b300", "gb300"}
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
# Pairs of the same chip: the first runs at a higher power, so it cannot be the slower one.
FASTER = (("h100-sxm", "h100-pcie"), ("h100-sxm", "h100-nvl"), ("h200-sxm", "h200-nvl"), ("gb200", "b200"))

TOO_MANY = "too many"  # the key of fields beyond the last column

Row = Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (`error`) or old (`warning`) in one row."""

    severity: Literal["error", "warning"]
    where: str  # file and line, or the model's file
    what: str


def check_catalogue(folder: Path, max_age_months: float, today: date) -> list[Finding]:
    """Everything that is wrong or old in a catalogue, errors first.

    Raises:
        InvalidRequest: the folder lacks one of the tables.
    """
    findings: list[Finding] = []
    for name in TABLES:
        table = _read(folder / name)
        for line, row in table:
            where = f"{name}:{line}"
            findings += [Finding("error", where, what) for what in _row_errors(name, row, today)]
            if "prices" in name:
                findings += [Finding("warning", where, what) for what in _age(row, max_age_months, today)]
        findings += [Finding("error", f"{name}:{line}", what) for line, what in _between_rows(name, table)]
    known = {row["id"] for _, row in _read(folder / "gpus.csv")}
    for line, row in _read(folder / "gpu_prices.csv"):
        if row["gpu"] not in known:
            findings.append(Finding("error", f"gpu_prices.csv:{line}", f"gpu {row['gpu']!r} is not in gpus.csv"))
    for path in sorted((folder / "models").glob("*.toml")):
        findings += [Finding("error", f"models/{path.name}", what) for what in _model_errors(path, today)]
    return sorted(findings, key=lambda finding: finding.severity)


def _read(path: Path) -> list[tuple[int, Row]]:
    """Rows with their line numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader: Any = csv.DictReader(file, restkey=TOO_MANY, restval="")
            table: list[tuple[int, Row]] = [
                (reader.line_num, {key: str(value) for key, value in row.items()}) for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest(f"{path} cannot be read ({reason}); give the folder of a catalogue") from None
    with (CATALOGUE / path.name).open(encoding="utf-8", newline="") as file:
        missing = set(next(csv.reader(file))) - set(reader.fieldnames or ())
    if missing:
        raise InvalidRequest(f"{path} lacks the columns {', '.join(sorted(missing))}; add them to its first line")
    return table


def _row_errors(name: str, row: Row, today: date) -> Iterator[str]:
    if TOO_MANY in row:
        yield "more fields than columns; quote the one that holds a comma"
    yield from _origin_errors(row.get("source", ""), row.get("date", ""), today)
    for column, (low, high) in LIMITS.get(name, {}).items():
        try:
            value = float(row.get(column, ""))
        except ValueError:
            yield f"{column} = {row.get(column, '')!r} is not a number"
            continue
        if not (math.isfinite(value) and low <= value <= high):
            yield f"{column} = {value:g} is outside {low:g} to {high:g}"
    if name == "gpus.csv":
        yield from _rate_errors(row)


def _origin_errors(source: str, dated: str, today: date) -> Iterator[str]:
    if not source.strip():
        yield "no source"
    if not dated.strip():
        yield "no date"
    elif _first_day(dated) is None:
        yield f"date {dated!r} is not YYYY, YYYY-MM or YYYY-MM-DD"
    elif dated > today.isoformat():
        yield f"date {dated} is in the future"


def _first_day(text: str) -> date | None:
    """The first day that a date may mean."""
    if not _DATE.fullmatch(text):
        return None
    try:
        return date.fromisoformat((text + "-01-01")[:10])
    except ValueError:
        return None


def _age(row: Row, max_age_months: float, today: date) -> Iterator[str]:
    first = _first_day(row.get("date", ""))
    months = (today - first).days / DAYS_PER_MONTH if first else 0.0
    if months > max_age_months and not row.get("withdrawn") and row.get("commitment") != "superseded":
        yield f"price of {row['date']}, {months:.0f} months old ({row['provider']})"


def _rate_errors(row: Row) -> Iterator[str]:
    """Dense rates of one GPU against each other."""
    rates = {name: _number(row.get(name, "")) for name in ("bf16_tflops", "fp8_tflops", "int8_tops", "fp4_tflops")}
    bf16, fp8, int8, fp4 = rates.values()
    if fp8 is not None and bf16 is not None and fp8 < bf16:
        yield f"fp8 {fp8:g} is slower than bf16 {bf16:g}"
    if fp4 is not None and fp8 is not None and fp4 < fp8:
        yield f"fp4 {fp4:g} is slower than fp8 {fp8:g}"
    base = fp8 or (2 * bf16 if bf16 else None)
    whole = row.get("id") not in WITHOUT_INT8
    if whole and int8 is not None and base is not None and all(abs(int8 / base / n - 1) > 0.1 for n in (1, 2)):
        yield f"int8 {int8:g} is neither once nor twice {'fp8' if fp8 else 'twice bf16'} ({base:g})"
    bandwidth, power = _number(row.get("bandwidth_gbs", "")), _number(row.get("tdp_w", ""))
    if bf16 and bandwidth and not 30 <= bf16 * 1000 / bandwidth <= 1000:
        yield f"bf16 over bandwidth is {bf16 * 1000 / bandwidth:.0f} FLOPs a byte; 30 to 1000 are usual"
    if bf16 and power and not 0.15 <= bf16 / power <= 6:
        yield f"bf16 over power is {bf16 / power:.2g} TFLOP/s a watt; 0.15 to 6 are usual"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _between_rows(name: str, table: list[tuple[int, Row]]) -> Iterator[tuple[int, str]]:
    if name == "gpus.csv":
        yield from _name_clashes(table)
        yield from _slower(table)
        return
    seen: dict[tuple[str, ...], int] = {}
    for line, row in table:
        if name == "claims.csv":
            key: tuple[str, ...] = (row["id"],)
        elif name == "currencies.csv":
            key = (row["currency"], row["date"])
        else:
            key = tuple(row.values())
        if key in seen:
            yield line, f"repeats line {seen[key]}"
        seen.setdefault(key, line)


def _name_clashes(table: list[tuple[int, Row]]) -> Iterator[tuple[int, str]]:
    names: dict[str, str] = {}
    for line, row in table:
        for name in dict.fromkeys(_plain(part) for part in (row["id"], *row.get("aliases", "").split("|"))):
            if name in names:
                yield line, f"{row['id']} has the name {name!r}, which {names[name]} has too"
            names[name] = row["id"]


def _slower(table: list[tuple[int, Row]]) -> Iterator[tuple[int, str]]:
    rows = {row["id"]: (line, row) for line, row in table}
    for fast, slow in FASTER:
        if fast not in rows or slow not in rows:
            continue
        for column in ("bf16_tflops", "tdp_w"):
            high, low = _number(rows[fast][1].get(column, "")), _number(rows[slow][1].get(column, ""))
            if high is not None and low is not None and high < low:
                yield rows[fast][0], f"{column} {high:g} of {fast} is below {low:g} of {slow}"


def _model_errors(path: Path, today: date) -> Iterator[str]:
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        yield f"cannot be read: {error}"
        return
    yield from _origin_errors(str(card.get("source", "")), str(card.get("date", "")), today)
