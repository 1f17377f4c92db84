"""A checkpoint together with what is laid over it: adapters, and the few steps that they were distilled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sora_export.adapter import Adapter, metadata_of
from sora_export.checkpoint import Checkpoint
from sora_export.families import Family
from sora_export.few_step import FewStep, parse_few_step
from sora_export.merge_plan import ComponentPlan, plan_merge

_FEW_STEP_KEY = "few_step"
"""In the metadata of an adapter's file and in sora_defaults.json: what `parse_few_step` reads."""


@dataclass(frozen=True)
class Adapted:
    """What to build a bundle of."""

    checkpoint: Path
    adapters: Sequence[Adapter] = ()
    """To be merged, in this order."""
    few_step: FewStep | None = None
    """None: what the adapters or the checkpoint's sora_defaults.json say, if they do."""
    merged: Mapping[str, str] = field(default_factory=dict)
    """Of a bundle whose adapters are to stay: `Checkpoint.merged`; then without new ones."""

    def source(self) -> Checkpoint:
        """The checkpoint with the merges that it has already."""
        return Checkpoint(self.checkpoint.absolute(), self.merged)

    def plans(self, family: Family) -> list[ComponentPlan]:
        """What the adapters change; raises as `plan_merge` does."""
        if not self.adapters:
            return []
        return plan_merge(self.source(), self.adapters, family.RENAMINGS)

    def levels(self, user: Mapping[str, Any]) -> FewStep | None:
        """The few steps: what was asked for, else what an adapter's file says, else sora_defaults.json.

        Raises:
            InvalidRequest: What is written there means nothing.
        """
        if self.few_step is not None:
            return self.few_step
        said = [metadata_of(adapter.file).get(_FEW_STEP_KEY) for adapter in self.adapters]
        for text in (*said, user.get(_FEW_STEP_KEY)):
            if text is not None:
                return parse_few_step(text)
        return None


def as_adapted(checkpoint: Path | str | Adapted) -> Adapted:
    """A checkpoint as one with nothing over it."""
    return checkpoint if isinstance(checkpoint, Adapted) else Adapted(Path(checkpoint))


def records(plans: Sequence[ComponentPlan]) -> list[dict[str, Any]]:
    """What bundle.json keeps of the adapters."""
    return [adapter.record(modules, plan.component) for plan in plans for adapter, modules in plan.adapters.items()]
