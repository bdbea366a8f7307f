"""What to try next: a function of the space, the seed, a number and what has been seen.

The same question has the same answer in every process, so a study that is resumed goes on as if
it had not been interrupted. Optuna (the one door to it) draws; nothing of it is kept between calls.
"""

import hashlib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import Any, Literal

from search_spaces.space import (
    Distribution,
    LogUniform,
    RandInt,
    Space,
    Uniform,
    Value,
    Values,
    same,
)

STARTUP = 8
"""How many observations TPE (tree-structured Parzen estimator) wants before it uses them."""

_DIGITS = 6
"""Significant digits of a drawn real number: enough for any setting, few enough to read."""


@dataclass(frozen=True)
class Observation:
    """A configuration that was asked for, and how it did.

    Attributes:
        values: the searched paths that were active.
        value: the metric; None while it is running, and for one that failed.
        number: orders the observations.
        stopped_at: the epoch after which it was stopped early; None if it trained to its end.
    """

    values: Mapping[str, Value]
    value: float | None
    number: int
    stopped_at: int | None = None


class Sampler:
    """Draws configurations of a space.

    Args:
        space: what may vary.
        kind: `tpe` learns from the observations, `random` does not.
        seed: of all draws.
        mode: whether more or less of the metric is better.
        skip: grid cells to leave out of the turn (all are kept if it leaves out every one).
    """

    def __init__(
        self,
        space: Space,
        kind: Literal["tpe", "random"] = "tpe",
        seed: int = 0,
        mode: Literal["max", "min"] = "max",
        *,
        skip: Callable[[Values], bool] | None = None,
    ) -> None:
        self._space = space
        self._kind = kind
        self._seed = seed
        self._mode = mode
        cells = space.cells()
        self._cells: list[Values] = [c for c in cells if skip is None or not skip(c)] or cells
        random.Random(_mixed(seed, -1)).shuffle(self._cells)

    @property
    def cells(self) -> Sequence[Values]:
        """The grid's cells, in the order in which numbers visit them; without grid, one empty."""
        return tuple(self._cells)

    def ask(self, number: int, history: Sequence[Observation] = ()) -> Values:
        """The configuration with this number, given what has been seen.

        Observations that are no configuration of this space are passed over.
        """
        if not self._space.order:
            return {}
        study = self._study(number)
        learned_from = history if self._kind == "tpe" else ()
        for seen in sorted(learned_from, key=lambda observation: observation.number):
            if self._space.contains(seen.values):
                study.add_trial(self._replayed(seen))
        cell = self._cells[number % len(self._cells)]
        study.enqueue_trial({path: self._encoded(path, value) for path, value in cell.items()})
        trial = study.ask()
        values: Values = {}
        for path in self._space.order:
            if self._space.active(path, values):
                values[path] = self._drawn(path, trial)
        return values

    def _study(self, number: int) -> Any:
        import optuna  # here, so that reading a plan does not pay for it

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = _mixed(self._seed, number)
        sampler: Any = optuna.samplers.RandomSampler(seed=seed)
        if self._kind == "tpe":
            with warnings.catch_warnings():
                # `group` is how a space with conditions is modelled jointly; it is marked
                # experimental.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = optuna.samplers.TPESampler(
                    n_startup_trials=STARTUP,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    seed=seed,
                )
        direction = "maximize" if self._mode == "max" else "minimize"
        return optuna.create_study(sampler=sampler, direction=direction)

    def _replayed(self, seen: Observation) -> Any:
        import optuna

        states = optuna.trial.TrialState
        distributions = {path: _optuna(self._space.paths[path]) for path in seen.values}
        params = {path: self._encoded(path, value) for path, value in seen.values.items()}
        if seen.value is None or not isfinite(seen.value):
            return optuna.trial.create_trial(
                state=states.RUNNING, params=params, distributions=distributions
            )
        if seen.stopped_at is not None:
            return optuna.trial.create_trial(
                state=states.PRUNED,
                params=params,
                distributions=distributions,
                intermediate_values={seen.stopped_at: seen.value},
            )
        return optuna.trial.create_trial(
            value=seen.value, params=params, distributions=distributions
        )

    def _encoded(self, path: str, value: Value) -> Any:
        """Optuna takes scalars only: a listed value goes by its index."""
        distribution = self._space.paths[path]
        if isinstance(distribution, Uniform | LogUniform | RandInt):
            return value
        return next(i for i, listed in enumerate(distribution.values) if same(listed, value))

    def _drawn(self, path: str, trial: Any) -> Value:
        distribution = self._space.paths[path]
        if isinstance(distribution, RandInt):
            return int(trial.suggest_int(path, *distribution.randint))
        if isinstance(distribution, Uniform | LogUniform):
            low, high = distribution.bounds
            log = isinstance(distribution, LogUniform)
            return _rounded(float(trial.suggest_float(path, low, high, log=log)), low, high)
        return distribution.values[int(trial.suggest_categorical(path, _indices(distribution)))]


def _optuna(distribution: Distribution) -> Any:
    from optuna import distributions

    if isinstance(distribution, RandInt):
        return distributions.IntDistribution(*distribution.randint)
    if isinstance(distribution, Uniform | LogUniform):
        log = isinstance(distribution, LogUniform)
        return distributions.FloatDistribution(*distribution.bounds, log=log)
    return distributions.CategoricalDistribution(_indices(distribution))


def _indices(distribution: Any) -> list[int]:
    return list(range(len(distribution.values)))


def _rounded(value: float, low: float, high: float) -> float:
    if value == 0:
        return value
    rounded = round(value, _DIGITS - 1 - floor(log10(abs(value))))
    return min(max(rounded, low), high)


def _mixed(seed: int, number: int) -> int:
    """32 bits that differ for every seed and number."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
