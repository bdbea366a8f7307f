"""Weights of a study: read from files once, and had from the store where the files are not."""

from pathlib import Path
from typing import Any

import pytest

from m2pt.data.describe import describe
from m2pt.models.build import build_model
from m2pt.weights.load import save_blocks
from orchestrator.conduct.preflight import check_inputs
from orchestrator.conduct.supply import Supply, imported
from orchestrator.config.io import parse_experiment
from orchestrator.errors import RequestError
from orchestrator.storage.uri import Store
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
    digests = Supply(store, experiment, lambda work, on_report: {}, events.append).digests()
    assert {event["name"] for event in events} == {"target", "other"}
    assert imported(store, experiment, fold(events)) == {}  # the files are here: they are read

    for file in files:
        file.unlink()
    known = imported(store, experiment, fold(events))
    assert known == {"target": digests.target, **digests.auxiliaries}
    check_inputs(experiment, known)
    with pytest.raises(RequestError, match=r"other.safetensors: does not exist"):
        check_inputs(experiment, {"target"})
    again = Supply(store, experiment, lambda work, on_report: {}, events.append, known)
    assert again.digests() == digests
    assert imported(Store.open(str(tmp_path / "another")), experiment, fold(events)) == {}
