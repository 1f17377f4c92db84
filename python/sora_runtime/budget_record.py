"""What a receipt says of a clip's preset and budget: limits, predictions, what was chosen and what was given up."""

from pydantic import BaseModel, ConfigDict

from .forecast import Band


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PresetRecord(_Record):
    """The preset that a clip was made with."""

    name: str
    changed: list[str]  # settings that the request had otherwise

    def __str__(self) -> str:
        return f"{self.name}, changed: {', '.join(self.changed)}" if self.changed else self.name


class OptionRecord(_Record):
    """One way to serve the request, as it was seen before anything ran."""

    preset: str | None
    as_asked: bool  # the settings as the request has them
    seconds: Band | None  # of the whole clip; None: nothing was known of it
    usd: float | None  # at the median; None also without a price
    evaluations: float  # network calls
    origin: str | None  # of the prediction


class GivenUpRecord(_Record):
    """Work that was begun with one option and thrown away, since the rest of it would not have fitted.

    Its seconds are in the receipt's totals, its evaluations are not among the clip's.
    """

    option: int  # its place in `options`
    why: str
    evaluations: int
    seconds: float  # of wall time
    engine_seconds: float  # of them inside networks


class BudgetRecord(_Record):
    """How a clip kept within its budget."""

    max_usd: float | None
    deadline_s: float | None
    options: list[OptionRecord]  # in the order of preference: as asked, then presets, the best first
    chosen: int  # the place in `options` of what made the clip
    replaced: list[str]  # settings of the request in whose place the preset's are
    given_up: list[GivenUpRecord]
    elapsed_seconds: float  # from the call to the last frame, waiting and loading included

    @property
    def given_up_seconds(self) -> float:
        """Wall time of the work that was thrown away."""
        return sum(work.seconds for work in self.given_up)

    def __str__(self) -> str:
        limits = [
            *([] if self.max_usd is None else [f"{self.max_usd:.6g} USD"]),
            *([] if self.deadline_s is None else [f"{self.deadline_s:g} s"]),
        ]
        option = self.options[self.chosen]
        chosen = "as asked" if option.as_asked else f"preset {option.preset}"
        expected = "" if option.seconds is None else f", predicted {option.seconds.p50:.3g} s"
        given_up = f", after {self.given_up_seconds:.3g} s given up" if self.given_up else ""
        return f"{' and '.join(limits)}: {chosen}{expected}{given_up}"
