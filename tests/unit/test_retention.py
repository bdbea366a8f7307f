"""What is kept of trials' states: the decisions, and that carrying them out survives a kill."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.conduct.assign import Assigner
from orchestrator.conduct.keeping import let_go, surplus
from orchestrator.conduct.ownership import check_owner, resumed_experiment
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_text
from orchestrator.errors import RequestError
from orchestrator.storage import layout
from orchestrator.storage.checkpoints import (
    Accepted,
    TrialCheckpoints,
    manifest_keys,
    read_manifest,
)
from orchestrator.storage.lease import Lease, LeaseLost
from orchestrator.storage.removal import remove, states
from orchestrator.study.agenda import Agenda
from orchestrator.study.identity import fingerprint
from orchestrator.study.retention import TrialRetention, released, retention_of
from orchestrator.study.selection import leaderboard
from orchestrator.study.settlement import to_export, to_settle
from orchestrator.study.trial import plan_trial
from orchestrator.study.view import Stage
from orchestrator.tracking.record import StudyRecord
from tests.unit.evidence_setup import experiment as digits_experiment
from tests.unit.evidence_setup import finished_study
from tests.unit.memory_store import Killed, MemoryStore
from tests.unit.study_setup import DIGESTS, Epoch, experiment

pytestmark = pytest.mark.slow

NAN = float("nan")


class Stored(NamedTuple):
    """A complete checkpoint."""

    step: int
    epoch: int
    meta: Mapping[str, Any]


def stored(*scores: float | None, epoch: int = 1) -> list[Stored]:
    """Checkpoints of the steps 1, 2, ... where there is a score; None is a step without one."""
    entries = [
        {"epoch": step, "metrics": {} if score is None else {"val/accuracy": score}}
        for step, score in enumerate(scores, 1)
    ]
    return [Stored(step, epoch, {"epochs": entries[:step]}) for step in range(1, len(scores) + 1)]


KEPT: list[tuple[TrialRetention, list[Stored], list[int]]] = [
    (TrialRetention(), [], []),
    (TrialRetention(), stored(0.5), [1]),
    (TrialRetention(), stored(0.9, 0.1, 0.2), [3]),
    (TrialRetention(last=2), stored(0.9, 0.1, 0.2), [3, 2]),
    (TrialRetention(last=9), stored(0.9, 0.1, 0.2), [3, 2, 1]),
    (TrialRetention(best=1), stored(0.9, 0.1, 0.2), [3, 1]),
    (TrialRetention(best=1), stored(0.1, 0.2, 0.9), [3]),
    (TrialRetention(best=2), stored(0.9, 0.3, 0.8, 0.1), [4, 3, 1]),
    (TrialRetention(last=2, best=2), stored(0.9, 0.3, 0.8, 0.1), [4, 3, 1]),
    (TrialRetention(best=1, mode="min"), stored(0.9, 0.1, 0.2), [3, 2]),
    (TrialRetention(best=1), stored(0.7, 0.7, 0.2), [3, 2]),  # of equals the newer one
    (TrialRetention(best=1), stored(NAN, None, 0.2, 0.1), [4, 3]),
    (TrialRetention(best=3), stored(NAN, None, 0.2, 0.1), [4, 3]),
    (TrialRetention(best=1, metric="val/loss"), stored(0.9, 0.1), [2]),
]


@pytest.mark.parametrize(("rule", "there", "kept"), KEPT)
def test_of_a_trial_the_newest_and_the_best_stay(
    rule: TrialRetention, there: list[Stored], kept: list[int]
) -> None:
    assert [one.step for one in rule.kept(there)] == kept
    assert [one.step for one in rule.kept(there[::-1])] == kept


def test_the_same_step_of_a_later_owner_is_the_newer_one() -> None:
    old, new = stored(0.5, 0.6), stored(0.5, 0.6, epoch=2)
    assert TrialRetention().kept([*old, *new]) == [new[1]]
    assert TrialRetention(last=2).kept([*new, *old]) == [new[1], old[1]]


@pytest.mark.parametrize("values", [{"last": 0}, {"best": -1}])
def test_the_newest_cannot_be_let_go(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="last: at least 1"):
        TrialRetention(**values)  # type: ignore[arg-type]  # one of two numbers


@settings(max_examples=50)
@given(
    st.lists(st.one_of(st.none(), st.floats()), max_size=12),
    st.integers(1, 5),
    st.integers(0, 5),
    st.sampled_from(["max", "min"]),
)
def test_what_is_kept_is_kept_again(
    scores: list[float | None], last: int, best: int, mode: Any
) -> None:
    rule, there = TrialRetention(last, best, mode=mode), stored(*scores)
    kept = rule.kept(there)
    assert kept[:1] == there[-1:]
    assert rule.kept(kept) == kept
    assert set(range(len(there), max(0, len(there) - last), -1)) <= {one.step for one in kept}
    assert len(kept) <= last + best


def test_an_assignment_carries_the_rule_of_its_experiment() -> None:
    asked = experiment(
        "checkpoints={keep_last: 2, keep_best: 1}", "search={metric: val/loss, mode: min}"
    )
    rule = TrialRetention(2, 1, "val/loss", "min")
    assert retention_of(asked) == rule
    plan = plan_trial(asked, {}, lambda own: DIGESTS, stage="search", seed=0)
    sent = Assigner("s", "file:///s", Accepted(1), DIGESTS).train(plan)["retention"]
    assert TrialRetention(**sent) == rule


PLACED = ("checkpoints.keep_last=3", "checkpoints.keep_best=2", "checkpoints.keep_trials=5")


def test_what_is_kept_may_change_and_is_no_part_of_a_trial() -> None:
    store, first, other = MemoryStore(), experiment(), experiment(*PLACED)
    store.put(layout.experiment(first.name), as_text(first).encode())
    check_owner(store, other)
    assert resumed_experiment(store, first.name, PLACED) == other
    assert fingerprint(first, 0, DIGESTS) == fingerprint(other, 0, DIGESTS)


@pytest.mark.parametrize(
    "override",
    ["checkpoints.keep_last=0", "checkpoints.keep_best=-1", "checkpoints.keep_trials=-1"],
)
def test_impossible_rules_are_refused(override: str) -> None:
    with pytest.raises(RequestError, match=override.partition("=")[0]):
        experiment(override)


# -- the life of a trial ------------------------------------------------------------------------


@dataclass
class Life:
    """A trial that is trained, killed and taken over, as a gang does it."""

    rule: TrialRetention
    store: MemoryStore = field(default_factory=MemoryStore)
    accepted: Accepted = field(default_factory=lambda: Accepted(1))
    saved: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def checkpoints(self) -> TrialCheckpoints:
        return TrialCheckpoints(self.store, "s", "t", self.accepted)

    def epoch(self, score: float, breaks_at: int | None = None) -> None:
        """Train for an epoch and keep it; perhaps the process ends while it prunes."""
        self.saved += 1
        entry = {"epoch": self.saved, "metrics": {"val/accuracy": score}}
        self.history = [*self.history[: self.saved - 1], entry]
        files = {"state.safetensors": b"%d" % self.saved, "notes.json": b"{}"}
        manifest = self.checkpoints.save(self.saved, files, {"epochs": self.history})
        self.store.deleted, self.store.breaks_at = [], breaks_at
        try:
            self.checkpoints.prune(self.rule, newest=manifest)
        except Killed:
            pass
        finally:
            self.store.breaks_at = None

    def half(self) -> None:
        """The process ends while it uploads the next epoch."""
        at = layout.ManifestKey("t", self.accepted.epoch, self.saved + 1)
        self.store.put(f"{layout.checkpoint('s', at)}/state-0.safetensors", b"half")

    def take_over(self) -> None:
        """Another driver goes on, and accepts what counts."""
        counting = frozenset(filter(self.accepted, manifest_keys(self.store, "s")))
        self.accepted = Accepted(self.accepted.epoch + 1, counting)

    def check(self) -> None:
        """Nothing is lost that counts, and nothing counts that is half deleted."""
        found = self.checkpoints.load_latest(_none_is_damaged)
        assert (found[0].step if found else 0) == self.saved
        for key in filter(self.accepted, manifest_keys(self.store, "s")):
            manifest = read_manifest(self.store, key)
            assert self.checkpoints.load(manifest).keys() == {"state.safetensors", "notes.json"}


def _none_is_damaged(why: str) -> None:
    raise AssertionError(why)


STEPS = st.one_of(
    st.tuples(st.just("epoch"), st.sampled_from([0.1, 0.5, 0.5, 0.9, NAN]), st.none()),
    st.tuples(st.just("epoch"), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 6)),
    st.sampled_from([("half",), ("take_over",)]),
)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 2), st.lists(STEPS, max_size=14))
def test_a_trial_can_always_go_on_from_where_it_was(
    last: int, best: int, steps: list[tuple[Any, ...]]
) -> None:
    life = Life(TrialRetention(last, best))
    for name, *arguments in steps:
        getattr(life, name)(*arguments)
        life.check()
    life.epoch(0.0)
    left = [layout.parse_manifest(key) for key in manifest_keys(life.store, "s")]
    there = {at.step for at in left if at is not None}
    assert len(left) <= last + best
    assert there >= set(range(max(1, life.saved - last + 1), life.saved + 1))
    scores = {e["epoch"]: e["metrics"]["val/accuracy"] for e in life.history}
    highest = max(score for score in scores.values() if isfinite(score))
    assert not best or any(scores[step] == highest for step in there)


@pytest.mark.parametrize("number", range(9))
def test_a_kill_at_any_delete_leaves_no_half_checkpoint(number: int) -> None:
    life = Life(TrialRetention(last=4))
    for score in (0.1, 0.2, 0.3):
        life.epoch(score)
    life.rule = TrialRetention()
    life.epoch(0.4, breaks_at=number)
    assert len(life.store.deleted) == number
    life.check()
    life.epoch(0.5)
    assert len(life.store.list()) == 3


def test_nothing_goes_before_what_replaces_it_is_complete() -> None:
    life = Life(TrialRetention(last=2))
    life.epoch(0.1)
    life.epoch(0.2)
    newest = life.checkpoints.latest()
    assert newest is not None
    life.store.delete(newest.files["notes.json"].key)
    assert life.checkpoints.prune(TrialRetention(), newest=newest) == []


def test_what_was_passed_over_as_damaged_does_not_stand_for_what_is_sound() -> None:
    life = Life(TrialRetention())
    for score in (0.1, 0.2, 0.3):
        life.epoch(score)
    damaged = life.checkpoints.latest()
    assert damaged is not None
    key = damaged.files["state.safetensors"].key
    life.store.put(key, b"!")  # of the right size: only its digest tells
    life.saved, life.history = 0, []  # nothing sound is left: it begins anew
    for score in (0.1, 0.2):
        life.epoch(score)
        found = life.checkpoints.load_latest(lambda why: None)
        assert found is not None
        assert found[0].step == life.saved
    life.epoch(0.3)  # the step whose damaged checkpoint stands
    life.check()


# -- the trials of a study ----------------------------------------------------------------------

STUDY = experiment(
    "training.epochs=3",
    "search.space.pathway.auxiliary={choice: [none, audio, shape, shuffled]}",
    "search.space.pathway.scale.init={uniform: [0.0, 1.0]}",
)


def keeping(most: int | None, of: Experiment = STUDY) -> Experiment:
    """The experiment with this `keep_trials`."""
    return of.model_copy(
        update={"checkpoints": of.checkpoints.model_copy(update={"keep_trials": most})}
    )


@dataclass
class Kept:
    """One trial of a record made by hand."""

    trial: str
    arm: str
    label: str
    stage: str
    seed: int
    values: Mapping[str, Any]
    auxiliary: str
    coverage: str
    status: str
    epochs: Sequence[Epoch]
    exported: str | None = None


@dataclass
class Study:
    """A record made by hand."""

    status: str = "finished"
    trials: dict[str, Kept] = field(default_factory=dict)


ROW = st.tuples(
    st.sampled_from(["baseline", "search", "confirm", "control"]),
    st.sampled_from(["audio", "shape", "shuffled", None]),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(["finished", "finished", "stopped", "failed", "running"]),
    st.lists(st.sampled_from([0.1, 0.4, 0.6, 0.9, NAN]), max_size=3),
    st.booleans(),
)


def study_of(rows: Sequence[tuple[Any, ...]]) -> Study:
    """Trials as the agenda plans them, with outcomes as drawn."""
    record = Study()
    for drawn, auxiliary, seed, init, status, scores, exported in rows:
        stage: Stage = drawn
        values = {"pathway.auxiliary": auxiliary, "pathway.scale.init": init}
        if stage == "baseline":
            values = {"pathway.auxiliary": None}
        if stage == "control":
            values["pathway.auxiliary"] = "random~audio"
        plan = plan_trial(STUDY, values, lambda own: DIGESTS, stage=stage, seed=seed)
        record.trials.setdefault(
            plan.trial,
            Kept(
                plan.trial, plan.arm, plan.label, stage, seed, plan.values, plan.auxiliary,
                plan.coverage, status,
                [Epoch(n, {"val/accuracy": score}) for n, score in enumerate(scores, 1)],
                "there" if exported and status == "finished" else None,
            ),
        )  # fmt: skip
    return record


@settings(max_examples=40)
@given(st.lists(ROW, max_size=12), st.integers(0, 12))
def test_what_a_study_still_needs_never_goes(rows: list[tuple[Any, ...]], most: int) -> None:
    record, asked = study_of(rows), keeping(most)
    gone = set(released(record, asked))
    trials = record.trials
    assert not gone & {name for name, one in trials.items() if one.status == "running"}
    assert not gone & {name for name, one in trials.items() if one.exported}
    assert not gone & {one.plan.trial for one in to_settle(record, STUDY, Agenda(STUDY, DIGESTS))}
    assert to_export(record, asked) not in gone
    figures = [row.trials[seed] for row in leaderboard(record, asked) for seed in row.metrics]
    assert len(gone & set(figures)) <= max(0, len(figures) - most)
    assert set(released(record, keeping(most + 1))) <= gone
    assert released(record, keeping(None)) == ()
    assert released(replace(record, status="stopped"), asked) == ()
    assert released(replace(record, status="running"), asked) == ()


def states_of(record: StudyRecord, asked: Experiment) -> MemoryStore:
    """A store with two checkpoints of each trial, one of them cut short."""
    store = MemoryStore()
    for trial in record.trials:
        one = TrialCheckpoints(store, asked.name, trial, Accepted(1))
        one.save(1, {"state.safetensors": b"state", "notes.json": b"{}"}, {})
        store.delete(one.save(2, {"state.safetensors": b"more"}, {}).key)
    store.deleted.clear()
    return store


def trials_in(store: MemoryStore, study: str) -> set[str]:
    return {
        at.trial for e in store.list(layout.trials(study)) if (at := layout.checkpoint_of(e.key))
    }


def test_a_finished_study_keeps_the_best_and_what_its_verdict_compares() -> None:
    record, asked = finished_study(), keeping(0, digits_experiment())
    store = states_of(record, asked)
    gone = set(released(record, asked))
    assert {record.trials[name].auxiliary for name in gone} >= {"point", "video", "random"}
    assert {record.trials[name].label for name in record.trials.keys() - gone} == {
        "none (baseline)",
        "audio · all linears · λ learned from 0",
        "random~audio · all linears · λ learned from 0",
    }
    with Lease.acquire(store, asked.name) as lease:
        told = let_go(store, asked, record, lease)
        assert told.startswith(f"{len(gone)} trials let go of their states")
        assert trials_in(store, asked.name) == record.trials.keys() - gone
        assert let_go(store, asked, record, lease) == ""
        assert surplus(store, asked, record) == []
    more = keeping(2, digits_experiment())
    assert set(released(record, more)) <= gone


def test_letting_go_survives_a_kill_at_any_delete() -> None:
    record, asked = finished_study(), keeping(0, digits_experiment())
    files = len(surplus(states_of(record, asked), asked, record))
    assert files > 10
    for number in range(files):
        store = states_of(record, asked)
        keys = [entry.key for entry in surplus(store, asked, record)]
        store.breaks_at = number
        with pytest.raises(Killed):
            remove(store, keys)
        store.breaks_at = None
        for key in manifest_keys(store, asked.name):
            assert len(store.list(layout.folder(key))) == 3, "a manifest without its files"
        remove(store, (entry.key for entry in surplus(store, asked, record)))
        assert surplus(store, asked, record) == []


def test_who_lost_the_study_deletes_nothing() -> None:
    record, asked = finished_study(), keeping(0, digits_experiment())
    store = states_of(record, asked)
    with Lease.acquire(store, asked.name) as lease:
        lease.lose("another one has it")
        with pytest.raises(LeaseLost):
            let_go(store, asked, record, lease)
    assert store.deleted == []
    assert states(store, asked.name, ()) == []
