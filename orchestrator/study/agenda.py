"""Which trial comes next. Pure: the answer follows from the experiment and the record alone."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict
from orchestrator.config.paths import get, needs_auxiliary, needs_rival
from orchestrator.errors import RequestError
from orchestrator.study.arms import baseline_values, names_in, rival_in
from orchestrator.study.controls import controls_of
from orchestrator.study.identity import Digests, canonical
from orchestrator.study.rivals import rivals_of
from orchestrator.study.sampler import Observation, Sampler
from orchestrator.study.selection import full_epochs, leaders
from orchestrator.study.trial import DigestsOf, TrialPlan, plan_trial
from orchestrator.study.view import UNFINISHED, RecordView, Stage, TrialView, last_metric, trained
from search_spaces.space import Space, Values

TRIES = 50
"""How often a configuration that there is already, or that breaks a rule, is asked for anew."""

_LISTED_AT_MOST = 5_000

__all__ = ["Agenda", "Capped", "Digests", "Done", "Next", "TrialPlan", "Wait"]


@dataclass(frozen=True)
class Wait:
    """Nothing to start now; what comes next hangs on trials that are still running."""

    why: str


@dataclass(frozen=True)
class Done:
    """Nothing is left to run."""

    why: str


@dataclass(frozen=True)
class Capped:
    """More is left to run, but `budget.trials` trials have been started."""

    why: str


Next: TypeAlias = TrialPlan | Wait | Done | Capped


class Agenda:
    """The order of a study's trials: what was begun, then baselines and search, then confirmation.

    Args:
        experiment: the study's experiment.
        digests: of what the experiment reads; a function of a trial's own configuration where
            data, model or auxiliaries are searched.
    """

    def __init__(self, experiment: Experiment, digests: Digests | DigestsOf) -> None:
        self._experiment = experiment
        self._digests: DigestsOf = _constant(digests) if isinstance(digests, Digests) else digests
        self._space = Space(experiment.search.space)
        self._asked: tuple[str, TrialPlan | None] | None = None

    def next(self, record: RecordView, active: Collection[str] = ()) -> Next:
        """What to do next.

        Args:
            record: the study so far; each plan that is carried out appears in it before the next
                question.
            active: ids of the trials that are being trained now. Other unfinished trials of the
                record were interrupted, and come first, unchanged.

        Raises:
            RequestError: an interrupted trial is not the same any more, because the experiment,
                its data or its weights changed.
        """
        trials = record.trials
        unfinished = [trial for trial in trials.values() if trial.status in UNFINISHED]
        for trial in unfinished:
            if trial.trial not in active:
                return self._rebuilt(trial)
        plan = self._opening(trials)
        if plan is None and any(trial.stage == "search" for trial in unfinished):
            return Wait("search trials are running; the best are confirmed when all have ended")
        if plan is None and not self.single:
            plan = self._confirmation(record)
        if plan is not None:
            cap = self._experiment.budget.trials
            if cap is not None and len(trials) >= cap:
                return Capped(f"budget.trials: {cap} trials have been started")
            return plan
        if unfinished:
            return Wait("the last trials are running")
        return Done(self._summary(trials))

    def plan_of(self, record: RecordView, trial: str) -> TrialPlan:
        """The plan of a trial that the record knows, as it was."""
        return self._rebuilt(record.trials[trial])

    @cached_property
    def sampler(self) -> Sampler:
        """What draws the search trials."""
        search = self._experiment.search
        return Sampler(
            self._space,
            search.sampler,
            self._experiment.seed,
            search.mode,
            skip=self._is_just_the_baseline,
        )

    @property
    def single(self) -> bool:
        """Whether the study is one trial of the file's configuration, and nothing beside it."""
        search = self._experiment.search
        return not search.space and search.trials == 1 and search.seeds == 1

    @property
    def covers_baseline(self) -> bool:
        """Whether the baseline is one of the space's configurations (it is not searched again)."""
        return self._observed_baseline is not None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the baseline and of the confirmed arms."""
        first = self._experiment.seed
        return tuple(range(first, first + self._experiment.search.seeds))

    def _opening(self, trials: Mapping[str, TrialView]) -> TrialPlan | None:
        """Baseline and search trials in turn, so that there is soon something to compare with."""
        if self.single:
            return self._file_as_it_is if self._file_as_it_is.trial not in trials else None
        missing = [plan for plan in self._baselines if plan.trial not in trials]
        had = len(self._baselines) - len(missing)
        cap = self._experiment.budget.trials
        last_places = cap is not None and cap - len(trials) <= len(missing)
        if missing and (had <= _count(trials, "search") or last_places):
            return missing[0]
        return self._searched(trials) or (missing[0] if missing else None)

    def _searched(self, trials: Mapping[str, TrialView]) -> TrialPlan | None:
        """The next search trial; None when there are enough, or the space has no more."""
        slot = _count(trials, "search")
        if slot >= self._experiment.search.trials:
            return None
        history = self._history(trials)
        question = canonical([slot, sorted(trials), [vars(seen) for seen in history]])
        if self._asked is None or self._asked[0] != question:
            self._asked = (question, self._new_configuration(trials, slot, history))
        return self._asked[1]

    def _new_configuration(
        self, trials: Mapping[str, TrialView], slot: int, history: list[Observation]
    ) -> TrialPlan | None:
        seen: set[str] = set()
        for values in self._candidates(slot, history):
            text = canonical(values)
            if text in seen:
                continue
            seen.add(text)
            try:
                plan = self._plan(values, "search", self._experiment.seed)
            except RequestError:
                continue  # values that are fine one by one may exclude each other
            if plan.trial not in trials:
                return plan
        return None

    def _candidates(self, slot: int, history: list[Observation]) -> Iterator[Values]:
        """What the sampler says to numbers that only this slot uses; then, in a space that can be
        listed, whatever there is."""
        wanted, cells = self._experiment.search.trials, len(self.sampler.cells)
        stride = wanted + (1 - wanted) % cells  # one more than a multiple: the next cell each time
        for attempt in range(TRIES if self._space.order else 1):
            yield self.sampler.ask(slot + attempt * stride, history)
        if self._space.order and self._space.finite:
            listed = list(islice(self._space.assignments(), _LISTED_AT_MOST))
            random.Random(f"{self._experiment.seed}:{slot}").shuffle(listed)
            yield from listed

    def _history(self, trials: Mapping[str, TrialView]) -> list[Observation]:
        searched = [trial for trial in trials.values() if trial.stage == "search"]
        seen = [
            self._observation(trial, trial.values, number) for number, trial in enumerate(searched)
        ]
        first = trials.get(self._baselines[0].trial)
        if first is not None and self._observed_baseline is not None:
            seen.insert(0, self._observation(first, self._observed_baseline, -1))
        return seen

    def _observation(self, trial: TrialView, values: Mapping[str, Any], number: int) -> Observation:
        if trial.status not in ("finished", "stopped"):
            return Observation(dict(values), None, number)
        epochs = trained(trial)
        return Observation(
            dict(values),
            last_metric(trial, self._experiment.search.metric),
            number,
            stopped_at=epochs if epochs < full_epochs(self._experiment, trial) else None,
        )

    @cached_property
    def _observed_baseline(self) -> Values | None:
        """The baseline as a configuration of the space, if it is one."""
        data = as_dict(self._experiment)
        set_here = baseline_values(self._experiment)
        values: Values = {}
        for path in self._space.order:
            if self._space.active(path, values):
                values[path] = set_here[path] if path in set_here else get(data, path)
        if any(path not in values and get(data, path) != it for path, it in set_here.items()):
            return None  # what makes it the baseline is no part of the space
        return values if self._space.order and self._space.contains(values) else None

    def _is_just_the_baseline(self, cell: Values) -> bool:
        """Whether every configuration of a grid cell is the baseline, which runs in any case."""
        free = [p for p in self._space.order if p not in cell and self._space.active(p, cell)]
        if names_in(self._experiment, cell) or rival_in(self._experiment, cell) is not None:
            return False
        if not all(needs_auxiliary(path) or needs_rival(path) for path in free):
            return False
        try:
            plan = self._plan(cell, "search", self._experiment.seed)
        except RequestError:
            return False
        return plan.trial == self._baselines[0].trial

    def _confirmation(self, record: RecordView) -> TrialPlan | None:
        """The best arms on all seeds, each followed by its controls and its rivals."""
        for leader in leaders(record, self._experiment):
            stages: list[tuple[Stage, Mapping[str, Any]]] = [("confirm", leader.values)]
            stages += [("control", v) for _, v in controls_of(self._experiment, leader)]
            stages += [("rival", v) for _, v in rivals_of(self._experiment, leader)]
            for stage, values in stages:
                for seed in self.seeds:
                    plan = self._plan(values, stage, seed)
                    if plan.trial not in record.trials:
                        return plan
        return None

    @cached_property
    def _baselines(self) -> tuple[TrialPlan, ...]:
        values = baseline_values(self._experiment)
        return tuple(self._plan(values, "baseline", seed) for seed in self.seeds)

    @cached_property
    def _file_as_it_is(self) -> TrialPlan:
        changed = self._experiment.pathway.names or self._experiment.rival.kind is not None
        stage: Stage = "search" if changed else "baseline"
        return self._plan({}, stage, self._experiment.seed)

    def _rebuilt(self, trial: TrialView) -> TrialPlan:
        stages: dict[str, Stage] = {
            "baseline": "baseline",
            "search": "search",
            "confirm": "confirm",
            "control": "control",
            "rival": "rival",
        }
        plan = self._plan(trial.values, stages[trial.stage], trial.seed)
        if plan.trial != trial.trial:
            raise RequestError(
                f"trial {trial.trial} ({trial.label}, seed {trial.seed}) would now be "
                f"{plan.trial}: the experiment, its data or its weights changed since it was "
                "planned; put them back, or start a study of another name"
            )
        return plan

    def _plan(self, values: Mapping[str, Any], stage: Stage, seed: int) -> TrialPlan:
        return plan_trial(self._experiment, values, self._digests, stage=stage, seed=seed)

    def _summary(self, trials: Mapping[str, TrialView]) -> str:
        searched, wanted = _count(trials, "search"), self._experiment.search.trials
        if self.single or searched >= wanted:
            return "all trials have ended"
        return f"all trials have ended; the space has no more than {searched} configurations"


def _constant(digests: Digests) -> Callable[[Experiment], Digests]:
    return lambda experiment: digests


def _count(trials: Mapping[str, TrialView], stage: Stage) -> int:
    return sum(trial.stage == stage for trial in trials.values())
