"""The budget of one clip: picks the settings before it begins, and watches while it runs; see `sora_runtime.budget`."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from .budget import Option
from .budget_record import BudgetRecord, GivenUpRecord, OptionRecord
from .errors import BudgetExceeded, InvalidRequest
from .foresight import OWN_MARGIN
from .request import Budget

Report = Callable[[str, int, int], None]
Spent = Callable[[], tuple[int, float]]
"""Network calls of the denoising under way, and the seconds inside them."""

_Made = TypeVar("_Made")
# How many network calls a pace that was known beforehand counts for beside those that are measured.
_PRIOR_CALLS = 8


class Overrun(Exception):
    """What is under way will not fit: where it stands, the seconds it still takes and those that are left."""

    def __init__(self, where: str, rest: float, left: float) -> None:
        super().__init__(where, rest, left)
        self.where, self.rest, self.left = where, rest, left

    def __str__(self) -> str:
        return f"{self.where} the rest takes about {self.rest:.3g} s and {max(self.left, 0.0):.3g} s are left"


@dataclass
class Spending:
    """The budget of one clip while it is made.

    Attributes:
        options: as `options_of` gives them.
        start: when `generate` was called, of `time.perf_counter`.
        model: the bundle's name, for sentences.
        unbilled: seconds so far that are not the clip's: loading, and waiting for others.
        option: the one that is made.
    """

    options: Sequence[Option]
    start: float
    model: str
    unbilled: float = 0.0
    option: Option = field(init=False)
    given_up: list[GivenUpRecord] = field(init=False, default_factory=list)
    _pace: float | None = field(init=False, default=None)  # seconds a network call, of what was given up
    _mark: tuple[float, int] = field(init=False, default=(0.0, 0))  # since when, and how much was done then
    _waits_since: float | None = field(init=False, default=None)
    _tried: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.option = self.options[0]

    @property
    def budget(self) -> Budget | None:
        """The request's."""
        return self.options[0].request.budget

    def choose(self) -> None:
        """Picks the first option that fits.

        Raises:
            InvalidRequest: none does; what the cheapest would take.
        """
        left = self.left()
        for option in self.options:
            if option.fits(left):
                self.option = option
                return
        raise InvalidRequest(self._too_small())

    def left(self) -> float:
        """Seconds that may still pass; infinity without a budget."""
        budget, elapsed = self.budget, time.perf_counter() - self.start
        if budget is None:
            return math.inf
        until = math.inf if budget.deadline_s is None else budget.deadline_s - elapsed
        price = self._usd(1.0)
        if budget.max_usd is None or not price:
            return until
        return min(until, budget.max_usd / price - (elapsed - self.unbilled))

    def while_waiting(self) -> None:
        """Raises `BudgetExceeded` when no option would be there in time any more; for `Turns.turn`."""
        now = time.perf_counter()
        self._waits_since = now if self._waits_since is None else self._waits_since
        self.unbilled = now - self._waits_since
        rest, left = min(self._rest(option) for option in self.options), self.left()
        if rest > left:
            raise self._exceeded(Overrun("while waiting for another clip", rest, left))

    def make(self, latents: Callable[[], _Made], spent: Spent) -> _Made:
        """What `latents` makes of `option`, or of a cheaper one that takes its place if it turns out not to fit.

        Raises:
            BudgetExceeded: nothing fits any more.
        """
        rest, left = self._rest(self.option), self.left()
        if rest > left:
            self._turn_from(Overrun("before the first step", rest, left))
        while True:
            began = time.perf_counter()
            try:
                return latents()
            except Overrun as overrun:
                calls, inside = spent()
                self.given_up.append(
                    GivenUpRecord(
                        option=self._place(),
                        why=str(overrun),
                        evaluations=calls,
                        seconds=time.perf_counter() - began,
                        engine_seconds=inside,
                    )
                )
                self._turn_from(overrun)

    def watched(self, report: Report, spent: Spent) -> Report:
        """`report` with the watch behind it: `Overrun` while denoising, `BudgetExceeded` while decoding."""
        if self.budget is None:
            return report

        def reported(stage: str, done: int, total: int) -> None:
            report(stage, done, total)
            if stage == "denoise":
                self._after_row(done, total, spent()[0])
            elif stage == "vae_decode":
                self._after_frames(done, total)

        return reported

    def record(self) -> BudgetRecord | None:
        """For the receipt of the clip that was just made; None without a budget."""
        if self.budget is None:
            return None
        return BudgetRecord(
            max_usd=self.budget.max_usd,
            deadline_s=self.budget.deadline_s,
            options=[self._option_record(option) for option in self.options],
            chosen=self._place(),
            replaced=list(self.option.replaced),
            given_up=self.given_up,
            elapsed_seconds=time.perf_counter() - self.start,
        )

    def _after_row(self, done: int, rows: int, calls: int) -> None:
        now = time.perf_counter()
        if done <= 1:  # the first row warms the engine up
            self._mark = (now, calls)
        if done == 0:
            return
        # A pace known before counts beside the first calls, so that one slow row stops nothing.
        known, measured, left = self._known_pace(), calls - self._mark[1], self.left()
        weight = 0 if known is None else _PRIOR_CALLS
        pace, rest = None, 0.0  # as far as anything is known
        if measured + weight > 0:
            pace = (now - self._mark[0] + weight * (known or 0.0)) / (measured + weight)
            rest = self.option.left_after(done, calls) * pace + self._decode(self.option, pace)
        if rest > left:
            self._pace = pace
            raise Overrun(f"after {done} of {rows} steps", rest, left)

    def _known_pace(self) -> float | None:
        expected = self.option.expected
        if self._pace is not None or expected is None or expected.denoise is None:
            return self._pace
        return expected.denoise / max(expected.evaluations, 1.0)

    def _after_frames(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if done == 0 or self._mark[1] == 0:  # the first chunk warms the engine up
            self._mark = (now, done)
        known, measured, left = self._known_decode(), done - self._mark[1], self.left()
        # What is known beforehand counts as half the frames, so that one slow chunk stops nothing.
        weight = 0.0 if known is None else total / 2
        each = (now - self._mark[0] + weight * (known or 0.0) / total) / (measured + weight) if measured else 0.0
        rest = (total - done) * each
        if done < total and rest > left:
            raise self._exceeded(Overrun(f"after {done} of {total} decoded frames", rest, left))

    def _known_decode(self) -> float | None:
        """Seconds of the decoder, where a source tells; the same for all options, which have one shape."""
        known = [option.expected.decode for option in self.options if option.expected is not None]
        return next((seconds for seconds in known if seconds is not None), None)

    def _decode(self, option: Option, pace: float) -> float:
        """Seconds of the decoder: where no source tells, what is left of the whole clip at this pace."""
        known, expected = self._known_decode(), option.expected
        if known is not None or expected is None:
            return known or 0.0
        return max(expected.seconds.p50 - option.evaluations * pace, 0.0)

    def _rest(self, option: Option) -> float:
        """Seconds that an option takes at the median, once the prompts are encoded; 0 where nothing is known."""
        if self._pace is not None:
            return option.evaluations * self._pace + self._decode(option, self._pace)
        expected, elapsed = option.expected, time.perf_counter() - self.start - self.unbilled
        if expected is None:
            return 0.0
        # Where the source tells no stages, what has passed so far was for the prompts.
        return max(expected.seconds.p50 - elapsed, 0.0) if expected.after_text is None else expected.after_text

    def _turn_from(self, overrun: Overrun) -> None:
        """Picks the best option that still fits, in the place of the one that does not."""
        self._tried.add(self._place())
        left = self.left()
        for place, option in enumerate(self.options):
            margin = OWN_MARGIN if self._pace or option.expected is None else option.expected.margin
            if place not in self._tried and self._rest(option) * margin <= left:
                self.option = option
                return
        raise self._exceeded(overrun, ", with no preset that fits")

    def _exceeded(self, overrun: Overrun, but: str = "") -> BudgetExceeded:
        elapsed, rest = time.perf_counter() - self.start, overrun.rest
        takes = f" and the rest takes about {rest:.3g} s{self._money(rest)}{but}" if rest > 0 else ""
        return BudgetExceeded(
            f"stopped {overrun.where}: {self._limits()} leaves {max(overrun.left, 0.0):.3g} s{takes}; {elapsed:.3g} s"
            f"{self._money(elapsed - self.unbilled)} are spent; raise the budget or name a cheaper preset"
        )

    def _too_small(self) -> str:
        """Why nothing fits, and what would."""
        known = [(option.expected.seconds, option) for option in self.options if option.expected is not None]
        seconds, cheapest = min(known, key=lambda each: each[0].p90)
        expected, presets = cheapest.expected, [option for option in self.options if not option.as_asked]
        assert expected is not None
        of = f"every preset of '{self.model}'" if presets else "these settings"
        which = f"the cheapest, {cheapest.label}, takes" if presets else "they take"
        remedy = "" if presets else f", or write presets into '{self.model}' with `sora-bench frontier`"
        return (
            f"{self._limits()} is too little for {of}: {which} about {seconds.p50:.3g} s{self._money(seconds.p50)} and "
            f"with 90% probability at most {seconds.p90:.3g} s{self._money(seconds.p90)}, by {expected.origin}; "
            f"give as much{remedy}"
        )

    def _place(self) -> int:
        return next(place for place, option in enumerate(self.options) if option is self.option)

    def _limits(self) -> str:
        assert self.budget is not None
        named = (("max_usd", self.budget.max_usd), ("deadline_s", self.budget.deadline_s))
        return " with ".join(f"{name} = {limit:.6g}" for name, limit in named if limit is not None)

    def _usd(self, seconds: float) -> float | None:
        price = self.options[0].request.price_per_hour
        return None if price is None else seconds * price / 3600

    def _money(self, seconds: float) -> str:
        usd = self._usd(seconds)
        return "" if usd is None else f" ({usd:.4g} USD)"

    def _option_record(self, option: Option) -> OptionRecord:
        expected = option.expected
        return OptionRecord(
            preset=option.preset,
            as_asked=option.as_asked,
            seconds=None if expected is None else expected.seconds,
            usd=None if expected is None else self._usd(expected.seconds.p50),
            evaluations=option.evaluations,
            origin=None if expected is None else expected.origin,
        )
