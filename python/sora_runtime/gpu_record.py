"""What a GPU's management library says of a clip: a part of the receipt."""

from pydantic import BaseModel, ConfigDict


class GpuUse(BaseModel):
    """Energy over the clip, of the whole board; all else as the clip ended. Null: this GPU does not say."""

    model_config = ConfigDict(extra="forbid")

    energy_joules: float | None
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    slowed_by: list[str] | None  # what held its clocks back, by NVML's names; empty: nothing did

    def __str__(self) -> str:
        clock = "" if self.sm_clock_mhz is None else f", {self.sm_clock_mhz:,} MHz at the end"
        slowed = f", slowed by {', '.join(self.slowed_by)}" if self.slowed_by else ""
        return f"{'unknown' if self.energy_joules is None else f'{self.energy_joules:,.0f} J'}{clock}{slowed}"
