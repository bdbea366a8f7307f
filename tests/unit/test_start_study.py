"""A study whose target starts whole: what is stored and said, and what old studies go on with."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from m2pt.data.describe import describe
from m2pt.models.build import build_model
from m2pt.weights.files import blocks_to_bytes
from m2pt.weights.whole import whole_from_bytes, whole_to_bytes, whole_weights
from orchestrator.conduct.preflight import check_inputs
from orchestrator.conduct.supply import Supply, start_of
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment
from orchestrator.errors import RequestError
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.study.identity import pretrain_fingerprint
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.record import AuxiliaryRecord, fold

LINEARS = re.compile(r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.\w+")
TEXT = """\
name: whole
data: {source: digits, limit: 100}
model: {width: 16, depth: 1, heads: 2, tokenizer: {patch: 4}}
target: {weights: target.safetensors}
auxiliaries: {other: {weights: target.safetensors}}
pathway: {auxiliary: other}
"""
PRETRAINED = """\
name: pretrained
data: {source: digits, limit: 100}
model: {width: 16, depth: 1, heads: 2, tokenizer: {patch: 4}}
target: {pretrain: {data: {source: tones, limit: 8}, epochs: 2}}
auxiliaries: {tones: {pretrain: {data: {source: tones, limit: 8}, epochs: 2}}}
pathway: {auxiliary: tones}
"""


def supplied(store: Store, experiment: Experiment, **known: Any) -> tuple[Any, list[Any]]:
    """(digests, events) of a study that pre-trains nothing."""
    events = list[Any]()
    supply = Supply(store, experiment, lambda *_: {}, events.append, Accepted(1), **known)
    return supply.digests(), events


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Its weights are those of a whole model with smaller patches."""
    monkeypatch.chdir(tmp_path)
    found = parse_experiment(TEXT, "exp.yaml", [])
    source = parse_experiment(TEXT, "exp.yaml", ["model.tokenizer.patch=2"])
    state = build_model(source.model, describe(source.data), seed=1).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, "target.safetensors")
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def test_a_target_is_stored_whole_and_an_auxiliary_by_its_blocks(
    experiment: Experiment, store: Store
) -> None:
    check_inputs(experiment)
    digests, events = supplied(store, experiment)
    whole = whole_from_bytes(store.get(layout.blob(digests.target)))
    assert {"pos_embed", "patch_embed.proj.weight", "fc_norm.bias"} < whole.tensors.keys()
    lent = store.get(layout.blob(digests.auxiliaries["other"]))
    assert lent == blocks_to_bytes(whole.blocks)
    (told,) = (event["started"] for event in events if event["name"] == "target")
    assert told["summary"] == (
        "taken: blocks, norms, final norm, tokenizer (2 x 2 -> 4 x 4), positions (4 x 4 -> 2 x 2); "
        "not taken: head"
    )
    assert any(line.startswith("resampled  ") for line in told["lines"])
    assert fold(events).auxiliaries["target"].started == told["summary"]
    assert start_of(experiment).summary() == told["summary"]


def test_the_blocks_alone_are_what_they_have_always_been(
    experiment: Experiment, store: Store
) -> None:
    blocks = parse_experiment(TEXT, "exp.yaml", ["target.parts=blocks"])
    digests, _ = supplied(store, blocks)
    assert digests.target == digests.auxiliaries["other"]
    whole, _ = supplied(store, experiment)
    assert whole.target != digests.target
    # a blob of a whole target lends its blocks, under the digest that they have
    lent = parse_experiment(TEXT, "exp.yaml", [f"auxiliaries.other.weights=sha256:{whole.target}"])
    assert supplied(store, lent)[0].auxiliaries == digests.auxiliaries
    again = parse_experiment(TEXT, "exp.yaml", [f"target.weights=sha256:{whole.target}"])
    assert supplied(store, again)[0].target == whole.target
    less = parse_experiment(
        TEXT, "exp.yaml", [f"target.weights=sha256:{whole.target}", "target.parts=blocks"]
    )
    assert supplied(store, less)[0].target == digests.target


def test_a_study_from_before_goes_on_with_the_blocks_that_it_has(
    experiment: Experiment, store: Store
) -> None:
    blocks = parse_experiment(TEXT, "exp.yaml", ["target.parts=blocks"])
    before, events = supplied(store, blocks)
    earlier = fold(events).auxiliaries
    assert supplied(store, experiment, earlier=earlier)[0] == before
    other, events = supplied(store, experiment)
    assert supplied(store, experiment, earlier=fold(events).auxiliaries)[0] == other


def test_so_does_one_from_before_scales_were_folded_in_and_biases_joined(
    experiment: Experiment, store: Store
) -> None:
    state = load_file("target.safetensors")
    state["blocks.0.ls1.gamma"] = torch.full((16,), 0.5)
    save_file(state, "target.safetensors")
    old = {name: value for name, value in state.items() if LINEARS.fullmatch(name)}
    for taken in (old, {name: value for name, value in old.items() if "qkv.bias" not in name}):
        sha256 = hashlib.sha256(save(taken)).hexdigest()
        earlier = {name: AuxiliaryRecord(name, sha256, 0, {}) for name in ("target", "other")}
        digests, _ = supplied(store, experiment, earlier=earlier)
        assert (digests.target, digests.auxiliaries) == (sha256, {"other": sha256})
    folded, _ = supplied(store, experiment)
    assert sha256 not in (folded.target, folded.auxiliaries["other"])


def test_what_does_not_fit_is_refused_before_anything_starts(experiment: Experiment) -> None:
    with pytest.raises(RequestError, match=r"^target.weights: .*set model.qkv_bias to true"):
        check_inputs(parse_experiment(TEXT, "exp.yaml", ["model.qkv_bias=false"]))


def test_an_export_says_what_its_tokens_are(experiment: Experiment, store: Store) -> None:
    data = whole_to_bytes(whole_weights(state_of(experiment), "here"))
    about = {
        "format": 1,
        "sha256": hashlib.sha256(data).hexdigest(),
        "model": {"tokenizer": {"patch": 4}},
        "data": {"modality": "image", "shape": [1, 8, 8]},
    }
    for name, content in (("model.safetensors", data), ("model.json", json.dumps(about).encode())):
        store.put(layout.export("giving", "abc", name), content)
    with Lease.acquire(store, "giving") as lease, Journal.open(store, "giving", lease) as journal:
        plan = dict.fromkeys(("arm", "label", "stage", "auxiliary", "coverage"), "x")
        journal.append({"kind": "planned", "trial": "abc", "seed": 0, "values": {}, **plan})
        journal.append({"kind": "exported", "trial": "abc", "key": "k"})
    one = ["target.weights=study://giving/abc", f"storage={store.uri}"]
    digests, _ = supplied(store, parse_experiment(TEXT, "exp.yaml", one))
    found = whole_from_bytes(store.get(layout.blob(digests.target)))
    assert (found.modality, found.grid) == ("image", (2, 2))


def state_of(experiment: Experiment) -> dict[str, Any]:
    return dict(build_model(experiment.model, describe(experiment.data), seed=4).state_dict())


def test_a_pretraining_keeps_what_it_is_asked_to(store: Store) -> None:
    asked, events = list[Any](), list[Any]()

    def lease(work: Any, on_report: Any) -> Any:
        asked.extend((one["source"], one["whole"]) for one in work.values())
        kept = {"2": {"sha256": blobs.put(store, b"weights"), "metrics": {}}}
        return {name: {"kind": "finished", "kept": kept, "seconds": 1} for name in work}

    def told(*overrides: str, **known: Any) -> Any:
        events.clear()
        experiment = parse_experiment(PRETRAINED, "exp.yaml", list(overrides))
        Supply(store, experiment, lease, events.append, Accepted(1), **known).digests()
        (found,) = (event for event in events if event["name"] == "target")
        return found["started"]["summary"]

    blocks = "taken: blocks; not taken: norms"
    assert told("target.parts=blocks").startswith(blocks)
    assert asked == [("tones", False)]  # one for both
    before = fold(events).auxiliaries
    assert told() == (
        "taken: blocks, norms, final norm; not taken: tokenizer, positions (the source's is of "
        "another modality (audio; here image)), head"
    )
    assert asked[1:] == [("target", True)]
    whole = fold(events).auxiliaries
    assert told(earlier=before).startswith(blocks)  # a study from before goes on with the blocks
    assert not told(earlier=whole).startswith(blocks)
    assert len(asked) == 2


def test_who_a_pretraining_is_changes_with_what_is_kept_alone() -> None:
    experiment = parse_experiment(PRETRAINED, "exp.yaml", [])
    config = experiment.auxiliaries["tones"].pretrain
    assert config is not None
    plain = pretrain_fingerprint(config, experiment.model, "data")
    assert plain == pretrain_fingerprint(config, experiment.model, "data", whole=False)
    assert plain != pretrain_fingerprint(config, experiment.model, "data", whole=True)
