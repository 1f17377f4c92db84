"""Searches settings with a multi-objective optimiser that remembers what it measured, so that it can be interrupted.

The optimiser is Optuna's tree-structured Parzen estimator for several objectives (Ozaki et al., GECCO 2020), its
memory an SQLite file: a transaction is there or not, however the process ended.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sora_runtime.bench.frontier_clips import Contest
from sora_runtime.bench.frontier_record import COSTS, Constraints, Point
from sora_runtime.bench.frontier_space import Space
from sora_runtime.engines.locks import FileLock
from sora_runtime.errors import InvalidRequest, SoraError
from sora_runtime.output import explain_os_errors

STUDY = "frontier"
FILE = "search.sqlite3"
STARTUP = 8  # trials at random before the estimator has anything to go by
CANDIDATES = 24  # that the estimator chooses the most promising of
REPEATS = 12  # of what is known or cannot be served, one after the other, before a setting is drawn at random
MOST_DRAWS = 3000  # of them until there is nothing new to find


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        runs: settings to measure, the reference and those of earlier sessions among them.
        cost: a key of `COSTS`: what is to be small.
        constraints: what steers the search towards what may be chosen.
        seed: of the optimiser.
    """

    runs: int
    cost: str = "usd"
    constraints: Constraints = field(default_factory=Constraints)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise InvalidRequest(f"runs = {self.runs} measures nothing; use 1 or more")
        if self.cost not in COSTS:
            raise InvalidRequest(f"cost = '{self.cost}' is unknown; use {' or '.join(COSTS)}")


@dataclass
class Search:
    """A search in a work folder; `open` it, `run` it, `close` it.

    Attributes:
        space: where settings come from.
        options: how to search.
        points: what was measured, in order, earlier sessions first.
    """

    space: Space
    options: SearchOptions
    points: list[Point]
    _study: Any
    _lock: FileLock
    _known: set[str]
    _queue: list[tuple[dict[str, Any], bool]]  # values to ask for before any is searched for, and whether from `first`
    _repeats: int  # trials of all sessions that were not measured
    _in_a_row: int  # of them, those since the last point

    @classmethod
    def open(cls, folder: Path, space: Space, options: SearchOptions, task: Mapping[str, Any]) -> Self:
        """Begin a search, or go on with the one that the folder holds.

        Args:
            folder: where it is remembered; made if need be.
            space: where settings come from.
            options: how to search.
            task: what is searched, as JSON: a folder holds one task.

        Raises:
            InvalidRequest: the folder holds the search of another task, or another process works in it.
            OutputError: the folder cannot be written to.
            SoraError: Optuna is not installed, or the memory is damaged.
        """
        optuna = _optuna()
        wanted = json.loads(json.dumps({**task, "cost": options.cost}))  # as it will be read
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock.try_acquire(folder / "lock")
        if lock is None:
            raise InvalidRequest(f"another search is at work in '{folder}'; wait for it or choose another folder")
        try:
            with _damage(folder):
                study = optuna.create_study(
                    storage=f"sqlite:///{(folder / FILE).resolve()}",
                    study_name=STUDY,
                    directions=["minimize", "maximize"],
                    load_if_exists=True,
                )
                known = study.user_attrs.get("task")
                if known is None:
                    study.set_user_attr("task", wanted)
                elif known != wanted:
                    other = next(name for name in {**known, **wanted} if known.get(name) != wanted.get(name))
                    raise InvalidRequest(
                        f"'{folder}' holds a search with another {other}; go on with that, or choose another folder"
                    )
                return cls._read(space, options, study, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _read(cls, space: Space, options: SearchOptions, study: Any, lock: FileLock) -> Self:
        from optuna.trial import TrialState

        search = cls(space, options, [], study, lock, set(), [], 0, 0)
        first = 0
        for trial in study.get_trials(deepcopy=False):
            done = trial.state is TrialState.COMPLETE or "repeat" in trial.user_attrs
            first += done and "first" in trial.user_attrs
            if trial.state is TrialState.COMPLETE:
                search.points.append(Point.read(trial.user_attrs["point"]))
                search._known.add(trial.user_attrs["identity"])
                search._in_a_row = 0
            elif done:
                search._repeats += 1
                search._in_a_row += 1
            elif trial.state is TrialState.RUNNING:  # what an interruption left is asked for again
                study.tell(trial.number, state=TrialState.FAIL)
                if "first" not in trial.user_attrs and trial.params:
                    search._queue.append((trial.params, False))
        search._queue += [(values, True) for values in space.first()[first:]]
        return search

    @property
    def notes(self) -> dict[str, Any]:
        """What was kept beside the points."""
        return dict(self._study.user_attrs.get("notes", {}))

    def note(self, **values: Any) -> None:
        """Keep some JSON for later sessions."""
        self._study.set_user_attr("notes", self.notes | values)

    def run(self, contest: Contest, on_point: Callable[[int], None] = lambda _: None) -> list[Point]:
        """Measure until there are as many points as were asked for, or nothing new is found.

        Args:
            contest: who measures.
            on_point: called with the number of points after each new one.
        """
        while len(self.points) < self.options.runs:
            if not self._queue and self._in_a_row >= REPEATS and not self._draw(contest):
                break
            if self._measure_one(contest):
                on_point(len(self.points))
        return self.points

    def close(self) -> None:
        """Let others work in the folder."""
        self._lock.release()

    def _draw(self, contest: Contest) -> bool:
        """Put a new setting at random into the queue; False if there seems to be none."""
        for number in range(MOST_DRAWS):
            dice = Dice(random.Random(f"{self._seed} {number}"))
            identity = contest.identity(self.space.suggest(dice))
            if identity is not None and identity not in self._known:
                self._queue.append((dice.values, False))
                return True
        return False

    def _measure_one(self, contest: Contest) -> bool:
        """Measure the next setting that is asked for; False if there was no need to."""
        from optuna.trial import TrialState

        self._study.sampler = self._sampler()
        if self._queue:
            values, first = self._queue.pop(0)
            self._study.enqueue_trial(values, user_attrs={"first": True} if first else None)
        trial = self._study.ask()
        setting = self.space.suggest(trial)
        identity = contest.identity(setting)
        if identity is None or identity in self._known:
            self._repeats += 1
            self._in_a_row += 1
            trial.set_user_attr("repeat", True)
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        point = Point(setting, contest.measure(setting))
        trial.set_user_attr("point", point.record())
        trial.set_user_attr("identity", identity)
        for name, excess in self.options.constraints.excesses(point.outcome).items():
            trial.set_constraint(name, excess)
        self._study.tell(trial, [COSTS[self.options.cost](point.outcome), point.outcome.quality])
        self._known.add(identity)
        self._in_a_row = 0
        self.points.append(point)
        return True

    @property
    def _seed(self) -> int:
        """Of the next trial alone: a search that was interrupted goes on as if it had not been."""
        return self.options.seed * 1_000_003 + len(self.points) + self._repeats

    def _sampler(self) -> Any:
        from optuna.samplers import TPESampler

        # Where there are few choices the most promising is soon one that is known. Of fewer candidates comes a less
        # likely one, still from where the good ones are.
        candidates = max(1, CANDIDATES >> self._in_a_row)
        return TPESampler(
            seed=self._seed, n_startup_trials=STARTUP, n_ei_candidates=candidates, multivariate=True, group=True
        )


@dataclass
class Dice:
    """A trial that answers at random and remembers what it said."""

    rng: random.Random
    values: dict[str, Any] = field(default_factory=dict)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number, both ends included; of each doubling as many, with `log`."""
        if log:
            value = round(math.exp(self.rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))
        else:
            value = self.rng.randint(low, high)
        return int(self.values.setdefault(name, min(max(value, low), high)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number, both ends included."""
        if step is not None:
            value = low + step * self.rng.randint(0, round((high - low) / step))
        elif log:
            value = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        else:
            value = self.rng.uniform(low, high)
        return float(self.values.setdefault(name, min(max(value, low), high)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        return self.values.setdefault(name, self.rng.choice(choices))


def _optuna() -> Any:
    """The optimiser's package, told to be quiet."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise SoraError("frontier needs optuna, which is not installed; pip install 'sora-runtime[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Turns what a file that is no search's memory leads to into one sentence."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except (DatabaseError, StorageInternalError, KeyError) as error:
        raise SoraError(f"'{folder / FILE}' is damaged; remove it, and the search begins anew") from error
