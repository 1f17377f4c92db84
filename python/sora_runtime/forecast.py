"""What is known of a clip before it runs: a time as a distribution, its work, memory, money and every assumption."""

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Band(_Record):
    """A quantity at its tenth, fiftieth and ninetieth percentile."""

    p10: float
    p50: float
    p90: float


class MemoryRecord(_Record):
    """Bytes on one GPU."""

    weights: float
    activations: float
    peak: float
    capacity: float | None
    fits: bool | None
    offload: str  # "", "model" (one network at a time) or "block" (streamed)


class LimitRecord(_Record):
    """The same clip at the hardware's data-sheet rates."""

    seconds: float
    usd_per_clip: float
    share: float  # of the limit that the estimate reaches


class AssumptionRecord(_Record):
    """One input that was not measured."""

    name: str
    value: str
    origin: str


class Forecast(_Record):
    """The part of a receipt that only an estimate has."""

    seconds: Band  # wall time of the clip
    usd_per_clip: Band  # with every item below
    why_wide: list[str]
    stage_seconds: dict[str, dict[str, float]]  # by stage and operator class, at the median
    flops: dict[str, dict[str, float]]
    bytes: dict[str, dict[str, float]]
    memory: MemoryRecord
    items_usd: dict[str, float]
    energy_wh: float | None
    limit: LimitRecord
    price: str
    price_sources: list[str]
    assumptions: list[AssumptionRecord]


class Predicted(_Record):
    """What had been predicted for a clip that was then measured."""

    seconds: Band
    usd_per_clip: float
    origin: str  # which profile or data the prediction is from
