"""`sora-bench claims`: what was said of Sora's cost, recomputed, with today's figure beside it."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.cost.claims import Check, Claim
    from sora_runtime.cost.claims_today import Today

    Answer = tuple[Claim, Check, Today]


def claims(
    json: Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")] = False,
) -> None:
    """Recompute what was said of Sora's cost when it appeared, and show today's figure for the same thing."""
    from sora_runtime.cost import claims as recompute
    from sora_runtime.cost.claims_today import today

    answers = [(claim, recompute.check(claim), today(claim)) for claim in recompute.claims().values()]
    if json:
        typer.echo(json_format.dumps([_record(*answer) for answer in answers], indent=2))
        return
    from sora_runtime.cli.tables import print_all

    print_all(_tables(answers))


def _record(claim: Claim, check: Check, today: Today) -> dict[str, object]:
    from dataclasses import asdict

    stated = {"stated": list(claim.stated), "unit": claim.unit, "inputs": dict(claim.inputs)}
    about = {"id": claim.id, "date": claim.date, "subject": claim.subject, "claim": claim.claim}
    origin = {"source": claim.source, "note": claim.note}
    return {**about, **stated, **origin, **asdict(check), "today": asdict(today)}


def _tables(answers: list[Answer]) -> Iterator[RenderableType]:
    from sora_runtime.cli.listing import listing, numbered
    from sora_runtime.cli.tables import facts

    rows = [(claim.id, claim.stated_text, check.computed, check.verdict) for claim, check, _ in answers]
    yield listing(("claim", "stated", "computed", "verdict"), rows, whole=("claim", "verdict"))
    origins = numbered(origin for _, _, today in answers for origin in today.origins)
    for claim, check, today in answers:
        marks = "".join(f" [{origins[origin]}]" for origin in today.origins)
        yield facts(
            [
                (claim.id, f"{claim.subject}, {claim.date}: {claim.claim}"),
                ("  stated", f"{claim.stated_text} ({'; '.join(filter(None, (claim.source, claim.note)))})"),
                ("  computed", check.computed),
                ("  verdict", f"{check.verdict}: {check.why}"),
                ("  today", today.text + marks),
            ]
        )
    yield facts(
        (f"[{number}]", f"{origin.what} ({origin.date}; {origin.source})") for origin, number in origins.items()
    )
