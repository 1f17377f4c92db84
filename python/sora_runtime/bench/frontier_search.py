"""Searches settings with a multi-objective optimiser that remembers what it measured, so that it can be interrupted.

The optimiser is Optuna's tree-structured Parzen estimator for several objectives (Ozaki et al., GECCO 2020), its
memory an SQLite file: a transaction is there or not, however the process ended.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
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
REPEATS = 6  # of what is known or cannot be served, one after the other, before a trial is drawn at random
MOST_REPEATS = 400  # until there is nothing new to find


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

        search = cls(space, options, [], study, lock, set(), [], 0)
        first = 0
        for trial in study.get_trials(deepcopy=False):
            done = trial.state is TrialState.COMPLETE or "repeat" in trial.user_attrs
            first += done and "first" in trial.user_attrs
            if trial.state is TrialState.COMPLETE:
                search.points.append(Point.read(trial.user_attrs["point"]))
                search._known.add(trial.user_attrs["identity"])
            elif done:
                search._repeats += 1
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
        in_a_row = 0
        while len(self.points) < self.options.runs and in_a_row < MOST_REPEATS:
            in_a_row = 0 if self._measure_one(contest, at_random=in_a_row >= REPEATS) else in_a_row + 1
            if not in_a_row:
                on_point(len(self.points))
        return self.points

    def close(self) -> None:
        """Let others work in the folder."""
        self._lock.release()

    def _measure_one(self, contest: Contest, *, at_random: bool) -> bool:
        """Measure the next setting that is asked for; False if there was no need to."""
        from optuna.trial import TrialState

        self._study.sampler = self._sampler(at_random=at_random)
        if self._queue:
            values, first = self._queue.pop(0)
            self._study.enqueue_trial(values, user_attrs={"first": True} if first else None)
        trial = self._study.ask()
        setting = self.space.suggest(trial)
        identity = contest.identity(setting)
        if identity is None or identity in self._known:
            self._repeats += 1
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
        self.points.append(point)
        return True

    def _sampler(self, *, at_random: bool) -> Any:
        """A sampler of the trial's own seed: a search that was interrupted goes on as if it had not been."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = self.options.seed * 1_000_003 + len(self.points) + self._repeats
        if at_random:
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)


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
