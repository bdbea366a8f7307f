"""Weights of a study: read from files once, and had from the store where the files are not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from m2pt.data.describe import describe
from m2pt.models.build import build_model
from m2pt.weights.files import save_blocks
from orchestrator.commands.pretrain import weights_alone
from orchestrator.conduct.assign import Assigner
from orchestrator.conduct.preflight import check_inputs
from orchestrator.conduct.supply import Supply, imported, sources
from orchestrator.config.io import parse_experiment
from orchestrator.errors import ClusterError, RequestError, StorageError
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.garbage import inventory
from orchestrator.storage.uri import Store
from orchestrator.study.arms import control_values
from orchestrator.study.budget import spent_in
from orchestrator.study.identity import Digests, arm_identity, pretrain_fingerprint
from orchestrator.study.plan import make_plan
from orchestrator.study.trial import plan_trial
from orchestrator.tracking.record import fold

LENDING = """\
name: mine
data: {source: digits, limit: 100}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
target: {weights: target.safetensors}
auxiliaries: {other: {weights: other.safetensors}}
pathway: {auxiliary: other}
"""


def test_a_study_goes_on_without_the_files_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = parse_experiment(LENDING, "exp.yaml", [])
    files = [tmp_path / f"{name}.safetensors" for name in ("target", "other")]
    for seed, file in enumerate(files):
        model = build_model(experiment.model, describe(experiment.data), seed=seed)
        save_blocks(model, file)
    store, events = Store.open(str(tmp_path / "store")), list[Any]()
    assert imported(store, experiment, fold([])) == {}
    digests = Supply(
        store, experiment, lambda work, on_report: {}, events.append, Accepted(1)
    ).digests()
    assert {event["name"] for event in events} == {"target", "other"}
    assert imported(store, experiment, fold(events)) == {}  # the files are here: they are read

    for file in files:
        file.unlink()
    known = imported(store, experiment, fold(events))
    assert known == {"target": digests.target, **digests.auxiliaries}
    check_inputs(experiment, known)
    with pytest.raises(RequestError, match=r"other.safetensors: does not exist"):
        check_inputs(experiment, {"target"})
    again = Supply(store, experiment, lambda work, on_report: {}, events.append, Accepted(1), known)
    assert again.digests() == digests
    assert imported(Store.open(str(tmp_path / "another")), experiment, fold(events)) == {}


MAKING = """\
name: making
data: {source: digits, limit: 100}
model: {width: 16, depth: 1, heads: 2, tokenizer: {patch: 4}}
auxiliaries:
  audio: &audio {pretrain: {data: {source: tones, limit: 8}, epochs: 4, keep_epochs: [1, 3]}}
  ear: *audio
search: {space: {pathway.auxiliary: {grid: [audio, audio@1, ear@3]}}}
"""


class Gang:
    """Makes weights at once, and remembers what it was asked for."""

    def __init__(self, store: Store) -> None:
        self.store, self.asked = store, list[Any]()

    def __call__(self, work: Any, on_report: Any) -> dict[str, Any]:
        self.asked += work.items()
        for lease, assignment in work.items():
            for epoch in range(1, max(assignment["keep"]) + 1):
                on_report(lease, {"epoch": epoch, "epochs": 4, "metrics": {"pretrain/loss": 1.0}})
        return {lease: self.outcome(assignment) for lease, assignment in work.items()}

    def outcome(self, assignment: Any) -> Any:
        kept = {
            str(epoch): {"sha256": blobs.put(self.store, f"epoch {epoch}".encode()), "metrics": {}}
            for epoch in assignment["keep"]
        }
        return {"kind": "finished", "kept": kept, "seconds": 2.0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def ignored(event: Any) -> None:
    """For events that a test does not look at."""


def digest(epoch: int) -> str:
    return hashlib.sha256(f"epoch {epoch}".encode()).hexdigest()


def test_one_run_gives_an_auxiliary_at_several_epochs(store: Store) -> None:
    experiment = parse_experiment(MAKING, "exp.yaml", [])
    gang, events = Gang(store), list[Any]()
    accepted = Accepted(3, frozenset({"studies/making/trials/x/checkpoints/000001-00000002/y"}))
    digests = Supply(store, experiment, gang, events.append, accepted).digests()
    ((lease, asked),) = gang.asked
    assert (lease, asked["keep"], asked["fence"]) == ("pretrain:audio", [1, 3, 4], 3)
    assert asked["accepted"] == []
    assert digests.auxiliaries == {"audio": digest(4), "audio@1": digest(1), "ear@3": digest(3)}
    record = fold(events)
    assert list(record.pretraining["audio"]) == [1, 2, 3, 4]
    ready = {name: (one.sha256, one.epoch) for name, one in record.auxiliaries.items()}
    both = [("", 4), ("@3", 3), ("@1", 1)]
    assert ready == {f"{n}{at}": (digest(e), e) for n in ("audio", "ear") for at, e in both}
    told = [(event["seconds"], event["reused"]) for event in events if "seconds" in event]
    assert told == [(2.0, False), (2.0, True)]

    again = Supply(store, experiment, gang, events.append, accepted).digests()
    assert (again, len(gang.asked)) == (digests, 1)
    assert events[-1]["reused"]
    assert {digest(1), digest(3), digest(4)} <= inventory(store).referred


def test_only_what_is_missing_is_made(store: Store) -> None:
    text = MAKING.replace("keep_epochs: [1, 3]", "keep_epochs: [3]").replace("audio@1, ", "")
    first = parse_experiment(text, "exp.yaml", [])
    gang = Gang(store)
    Supply(store, first, gang, ignored, Accepted(1)).digests()
    more = parse_experiment(MAKING, "exp.yaml", [])
    digests = Supply(store, more, gang, ignored, Accepted(1)).digests()
    assert [asked["keep"] for _, asked in gang.asked] == [[3, 4], [1]]
    assert digests.auxiliaries["audio@1"] == digest(1)
    store.delete(layout.blob(digest(4)))
    Supply(store, more, gang, ignored, Accepted(1)).digests()
    assert gang.asked[-1][1]["keep"] == [4]
    assert Supply(store, more, gang, ignored, Accepted(1)).digests() == digests


def test_what_earlier_versions_made_is_found(store: Store) -> None:
    """Their record names the last epoch alone, and they pre-trained in fp32 in any case."""
    text = MAKING.replace(", keep_epochs: [1, 3]", "").replace(", audio@1, ear@3", "")
    plain = parse_experiment(text, "exp.yaml", [])
    config = plain.auxiliaries["audio"].pretrain
    assert config is not None
    key = layout.pretrained(pretrain_fingerprint(config, plain.model, describe(config.data).digest))
    sha256 = blobs.put(store, b"older")
    said = {"format": 1, "sha256": sha256, "seconds": 1.0, "metrics": {"pretrain/loss": 0.5}}
    store.put(key, json.dumps(said).encode())
    gang = Gang(store)
    events = list[Any]()
    found = Supply(store, plain, gang, events.append, Accepted(1)).digests()
    assert (found.auxiliaries, gang.asked) == ({"audio": sha256}, [])
    half = parse_experiment(text, "exp.yaml", ["resources.precision=bf16"])
    known = Supply(
        store, half, gang, ignored, Accepted(1), earlier=fold(events).auxiliaries
    ).digests()
    assert (known.auxiliaries, gang.asked) == ({"audio": sha256}, [])
    fresh = Supply(store, half, gang, ignored, Accepted(1)).digests()
    assert fresh.auxiliaries == {"audio": digest(4)}


def test_a_study_keeps_to_the_weights_that_it_has_used(store: Store) -> None:
    """Also where another study, on other machines, has made them again since."""
    experiment = parse_experiment(MAKING, "exp.yaml", [])
    events = list[Any]()
    digests = Supply(store, experiment, Gang(store), events.append, Accepted(1)).digests()
    (entry,) = store.list(layout.PRETRAINED)
    said = json.loads(store.get(entry.key))
    said["kept"]["1"]["sha256"] = blobs.put(store, b"made again")
    store.put(entry.key, json.dumps(said).encode())
    anew = Supply(store, experiment, Gang(store), ignored, Accepted(1)).digests()
    assert anew.auxiliaries["audio@1"] != digests.auxiliaries["audio@1"]
    earlier = fold(events).auxiliaries
    again = Supply(store, experiment, Gang(store), ignored, Accepted(1), earlier=earlier)
    assert again.digests() == digests


def test_states_of_a_pretraining_go_once_it_is_done(store: Store) -> None:
    experiment = parse_experiment(MAKING, "exp.yaml", [])
    left = list[str]()

    class Leaving(Gang):
        def outcome(self, assignment: Any) -> Any:
            accepted = Accepted(assignment["fence"])
            where = TrialCheckpoints(self.store, "making", assignment["trial"], accepted)
            left.append(where.save(2, {"state.safetensors": b"x"}, {}).key)
            return super().outcome(assignment)

    Supply(store, experiment, Leaving(store), ignored, Accepted(1)).digests()
    assert layout.parse_manifest(left[0]) is not None
    assert store.list(layout.trials("making")) == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [("worker", ClusterError), ("storage", StorageError), ("not_finite", RequestError)],
)
def test_a_pretraining_that_fails_is_named(store: Store, failure: str, error: type) -> None:
    experiment = parse_experiment(MAKING, "exp.yaml", [])
    outcome = {"kind": "failed", "failure": failure, "error": "it broke"}

    def lease(work: Any, on_report: Any) -> Any:
        return dict.fromkeys(work, outcome)

    with pytest.raises(error, match=r"auxiliaries.audio.pretrain: it broke"):
        Supply(store, experiment, lease, ignored, Accepted(1)).digests()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("audio@2", r"'audio@2': its weights after epoch 2 are not kept; add 2 to auxil.*\[1, 3\]"),
        ("audio@03", r"'audio@03' is not declared under auxiliaries; did you mean 'audio@3'"),
        ("adio@3", r"did you mean 'audio@3'"),
        ("file@3", r"'file' after an epoch of its pre-training, but it is not pre-trained here"),
    ],
)
def test_an_epoch_that_is_not_kept_is_refused(name: str, rule: str) -> None:
    text = MAKING.replace("  ear:", "  file: {weights: x.pt}\n  ear:")
    with pytest.raises(RequestError, match=rule):
        parse_experiment(text.replace("audio@1", name), "exp.yaml", [])


def test_epochs_are_arms_with_controls_of_their_own() -> None:
    experiment = parse_experiment(MAKING, "exp.yaml", [])
    names = {"audio": "last", "audio@1": "first", "ear@3": "third"}
    digests = Digests("data", None, names)
    plans = {
        name: plan_trial(
            experiment, {"pathway.auxiliary": name}, lambda own: digests, stage="search", seed=0
        )
        for name in (*names, "random~audio@1")
    }
    assert len({plan.arm for plan in plans.values()}) == 4
    assert [plan.auxiliary for plan in plans.values()] == list(plans)
    assert plans["audio@1"].label == "audio@1"
    control = plans["random~audio@1"].experiment
    identity = arm_identity(control, digests)["auxiliaries"]
    assert identity == [{"control": "random", "like": "first"}]
    values = control_values(experiment, {"pathway.auxiliary": "audio@1"})
    assert values == {"pathway.auxiliary": "random~audio@1"}
    told = Assigner("making", "s", Accepted(1), digests).train(plans["random~audio@1"])
    assert told["inputs"]["auxiliaries"] == {
        "random~audio@1": {"sha256": "first", "controls": ["random"]}
    }
    lines = {line.name: line.source for line in make_plan(experiment).auxiliaries}
    assert lines["audio@1"] == "pre-trained here on tones for 1 of 4 epochs"


def test_pretrain_takes_the_pretrainings_of_a_file_and_nothing_else() -> None:
    text = MAKING.replace(
        "  ear:", "  file: {weights: x.pt}\n  noise: {control: random, like: file}\n  ear:"
    )
    experiment = parse_experiment(text, "exp.yaml", ["target={pretrain: {data: {source: digits}}}"])
    alone = weights_alone(experiment)
    assert (alone.name, alone.pathway.names) == ("making-pretrain", ("audio", "ear"))
    assert (list(sources(alone)), alone.search.space) == (["audio", "ear", "target"], {})
    assert weights_alone(parse_experiment(MAKING, "exp.yaml", [])).resources.concurrent_trials == 2
    for name, source in alone.auxiliaries.items():
        assert source == experiment.auxiliaries[name]
    with pytest.raises(RequestError, match="there is nothing to pre-train"):
        weights_alone(parse_experiment(LENDING, "exp.yaml", []))


def test_what_is_trained_is_counted_epoch_by_epoch() -> None:
    epoch = {
        "kind": "auxiliary_epoch",
        "name": "audio",
        "seconds": {"train": 3600.0, "upload": 9.0},
    }
    ready = {"kind": "auxiliary_ready", "name": "audio", "sha256": "a", "seconds": 7200.0}
    assert spent_in([epoch, epoch, ready]).training_hours == 2.0
