"""Weights by reference: what another study made or exported, and blobs; what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from m2pt.data.describe import describe
from m2pt.models.build import build_model
from m2pt.weights.files import blocks_to_bytes
from m2pt.weights.whole import whole_from_bytes, whole_to_bytes, whole_weights
from orchestrator.conduct.in_job import check_reachable_data
from orchestrator.conduct.preflight import check_inputs
from orchestrator.conduct.supply import Supply, imported
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment
from orchestrator.errors import RequestError
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.record import fold

TEXT = """\
name: taking
data: {source: digits, limit: 100}
model: {width: 16, depth: 1, heads: 2, tokenizer: {patch: 4}}
auxiliaries: {other: {weights: WEIGHTS}}
pathway: {auxiliary: other}
"""
TRIAL = "0123456789ab"
KNOWN = {"uri": "a", "sha256": "0", "layout": "timm", "dim": 16, "depth": 1, "hidden": 64}


def weights(seed: int, **model: int) -> dict[str, Any]:
    """The state of a whole model that fits the experiment, unless `model` says otherwise."""
    own = parse_experiment(
        TEXT, "exp.yaml", [f"model.{key}={value}" for key, value in model.items()]
    )
    return build_model(own.model, describe(own.data), seed=seed).state_dict()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, str]]:
    """A store where study `giving` made an auxiliary at two epochs, and exported a trial."""
    store = Store.open(str(tmp_path_factory.mktemp("made")))
    sha = {
        name: blobs.put(store, blocks_to_bytes(weights(seed)))
        for seed, name in enumerate(("audio", "audio@2"))
    }
    sha["small"] = blobs.put(store, blocks_to_bytes(weights(3, depth=2)))
    model = save({key: value.contiguous() for key, value in weights(5).items()})
    sha["model"] = hashlib.sha256(model).hexdigest()
    store.put(layout.export("giving", TRIAL, "model.safetensors"), model)
    about = json.dumps({"format": 1, "sha256": sha["model"]}).encode()
    store.put(layout.export("giving", TRIAL, "model.json"), about)
    with Lease.acquire(store, "giving") as lease, Journal.open(store, "giving", lease) as journal:
        for name, epoch in (("audio", 4), ("audio@2", 2)):
            ready = {"kind": "auxiliary_ready", "name": name, "sha256": sha[name], "epoch": epoch}
            origin = {"modality": "audio", "licence": "CC-BY-NC-4.0"}
            journal.append(ready | {"provenance": KNOWN | origin})
        journal.append({"kind": "auxiliary_ready", "name": "small", "sha256": sha["small"]})
        journal.append({"kind": "auxiliary_epoch", "name": "late", "epoch": 1, "metrics": {}})
        for trial in (TRIAL, "ba9876543210"):
            plan = dict.fromkeys(("arm", "label", "stage", "coverage"), "x")
            plan["auxiliary"] = "audio"
            journal.append({"kind": "planned", "trial": trial, "seed": 0, "values": {}, **plan})
        journal.append({"kind": "exported", "trial": TRIAL, "key": "k"})
    return store, sha


def taking(store: Store, reference: str, *overrides: str) -> Experiment:
    return parse_experiment(
        TEXT.replace("WEIGHTS", reference), "exp.yaml", [f"storage={store.uri}", *overrides]
    )


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("study://giving/audio", "audio"),
        ("study://giving/audio@2", "audio@2"),
        ("study://giving/audio@4", "audio"),
        ("sha256:", "audio@2"),
    ],
)
def test_what_a_study_made_is_taken(made: Any, reference: str, name: str) -> None:
    store, sha = made
    reference += sha[name] if reference == "sha256:" else ""
    experiment = taking(store, reference, f"auxiliaries.other.sha256={sha[name]}")
    before = store.list()
    check_inputs(experiment)
    assert store.list() == before
    check_reachable_data(experiment)
    events = list[Any]()
    supply = Supply(store, experiment, lambda work, report: {}, events.append, Accepted(1))
    assert supply.digests().auxiliaries == {"other": sha[name]}
    assert imported(store, experiment, fold(events)) == {"other": sha[name]}  # and it stays that


def test_an_exported_trial_is_weights_to_go_on_from(made: Any) -> None:
    store, _ = made
    reference = f"study://giving/{TRIAL}"
    experiment = taking(store, reference, f"target={{weights: '{reference}'}}")
    said = check_inputs(experiment)["target"]
    assert (said["uri"], said["dim"], said["involves"]) == (reference, 16, ["audio"])
    assert said["warnings"] == [
        "its licence (CC-BY-NC-4.0) forbids commercial use, also of a model that it is fused into"
    ]
    lent = hashlib.sha256(blocks_to_bytes(weights(5))).hexdigest()
    whole = whole_weights(weights(5), "here")
    taken = hashlib.sha256(whole_to_bytes(whole)).hexdigest()
    supply = Supply(store, experiment, lambda work, report: {}, lambda event: None, Accepted(1))
    digests = supply.digests()
    assert (digests.target, digests.auxiliaries) == (taken, {"other": lent})
    assert store.exists(layout.blob(lent))
    assert whole_from_bytes(store.get(layout.blob(taken))).tensors.keys() == whole.tensors.keys()


@pytest.mark.parametrize(
    ("reference", "rule"),
    [
        ("study://givin/audio", r"no study 'givin' lies under file://.*; did you mean 'giving'\?"),
        ("study://giving/adio", r"has made no 'adio'; did you mean 'audio'\?"),
        ("study://giving/audio@3", r"has made no 'audio@3'; did you mean 'audio@2'\?"),
        ("study://giving/late", r"has not yet made 'late'"),
        ("study://giving/ba9876543210", rf"was not exported; there is '{TRIAL}'"),
        ("study://giving/small", r"mapping: the auxiliary has 2 blocks and the target 1"),
        (f"sha256:{'0' * 64}", r"holds no blobs/sha256/00/0"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(made: Any, reference: str, rule: str) -> None:
    with pytest.raises(RequestError, match=rf"^auxiliaries.other.weights: .*{rule}"):
        check_inputs(taking(made[0], reference))


def test_another_digest_is_refused(made: Any) -> None:
    wrong = taking(made[0], "study://giving/audio", f"auxiliaries.other.sha256={'a' * 64}")
    with pytest.raises(RequestError, match=r"it stands for weights of sha256 .*, not aaa"):
        check_inputs(wrong)


@pytest.mark.parametrize(
    "reference",
    ["study://giving", "study://Giving/a", "study://g/a@0", "study://g/a/b", "sha256:1"],
)
def test_what_is_no_reference_is_refused_at_once(tmp_path: Path, reference: str) -> None:
    with pytest.raises(RequestError, match=r"auxiliaries.other.*is written (study://|sha256:)"):
        taking(Store.open(str(tmp_path)), reference)
