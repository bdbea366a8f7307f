"""Where a study's weights come from: stated, journalled, shown, warned about."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from m2pt.data.describe import describe
from m2pt.models.build import build_model
from m2pt.weights.files import save_blocks
from orchestrator.commands import plan as plan_command
from orchestrator.conduct import outside
from orchestrator.conduct.ownership import check_owner, snapshot
from orchestrator.conduct.preflight import absent_inputs, check_inputs
from orchestrator.conduct.supply import Supply, imported
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment
from orchestrator.errors import RequestError
from orchestrator.evidence.report import Origin, render
from orchestrator.storage import layout
from orchestrator.storage.checkpoints import Accepted
from orchestrator.storage.foreign import ForeignFolder
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.study.plan import make_plan
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.reconcile import Context, study_change
from orchestrator.tracking.record import fold

TEXT = """\
name: mine
data: {source: digits, limit: 100}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
auxiliaries:
  other: {weights: WEIGHTS}
pathway: {auxiliary: other}
"""
AST = "audioset_10_10_0.4593.safetensors"


def experiment_with(weights: str, *overrides: str) -> Experiment:
    return parse_experiment(TEXT.replace("WEIGHTS", weights), "exp.yaml", overrides)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that bear the name of a public checkpoint."""
    path = tmp_path_factory.mktemp("weights") / AST
    experiment = experiment_with("none")
    save_blocks(build_model(experiment.model, describe(experiment.data), seed=0), path)
    return path


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["auxiliaries.other.weights=hf://name"], r"weights: a file of the Hugging Face Hub is"),
        (["auxiliaries.other.weights=timm://"], r"weights: a model of timm is written timm://"),
        (["auxiliaries.other.weights=s3://bucket"], r"weights: an object is written s3://BUCKET"),
        (["auxiliaries.other.weights=http://a/b"], r"http://\.\.\. is of a kind that is not read"),
        (["auxiliaries.other.layout=hf-vti"], r"layout: 'hf-vti' is none of .*did you mean 'hf-vi"),
        (["auxiliaries.other.layout=timm:audio"], r"layout: 'timm:audio' names a part"),
        (
            ["auxiliaries.other.weights=study://a/b", "auxiliaries.other.layout=timm"],
            r"layout: is of a checkpoint from outside",
        ),
        (
            ["auxiliaries.other={control: random, like: other, provenance: {data: x}}"],
            r"provenance: is of what `weights` names",
        ),
        (["auxiliaries.other.provenance={modality: smell}"], r"auxiliaries.other.provenance.modal"),
    ],
)
def test_what_is_malformed_is_refused_when_it_is_read(overrides: list[str], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        experiment_with("other.safetensors", *overrides)


def supplied(
    store: Store, experiment: Experiment, record: Any = None
) -> tuple[dict[str, str], list[Any]]:
    """(digests, events) of a study that begins, or goes on from its record."""
    events: list[Any] = []
    known = {} if record is None else imported(store, experiment, record)
    supply = Supply(
        store, experiment, lambda work, report: {}, events.append, Accepted(1), known,
        {} if record is None else record.auxiliaries,
    )  # fmt: skip
    return dict(supply.digests().auxiliaries), events


def test_provenance_travels_with_the_weights(file: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    experiment = experiment_with(file.as_uri())
    known = check_inputs(experiment)
    _, events = supplied(store, experiment)
    said = events[0]["provenance"]
    assert known == {"other": said}
    assert said["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (said["modality"], said["supervised"], said["licence"]) == (
        "audio",
        True,
        "BSD-3-Clause",
    )
    (warning,) = said["warnings"]
    assert "the target's own modality (image) had a part in it (DeiT" in warning
    record = fold(events)
    assert record.auxiliaries["other"].provenance == said

    tags = study_change(record, Context("mine", "mine-0"), None).tags
    assert '"modality": "audio"' in tags["weights/other"]
    assert tags["weights_licences"] == "BSD-3-Clause"
    assert tags["weights_warnings"] == f"other: {warning}"


def test_what_the_target_starts_from_is_not_irrelevant_data(file: Path) -> None:
    mine = "{modality: image, licence: CC-BY-NC-4.0}"
    experiment = experiment_with(
        str(file), f"target={{weights: '{file}', provenance: {mine}}}", "pathway.auxiliary=none"
    )
    assert [line[:11] for line in check_inputs(experiment)["target"]["warnings"]] == ["its licence"]


def test_what_the_file_states_counts_and_may_be_changed_later(file: Path, tmp_path: Path) -> None:
    store, mine = Store.open(str(tmp_path / "store")), tmp_path / "mine.safetensors"
    mine.write_bytes(file.read_bytes())
    first = experiment_with(str(mine))
    digests, events = supplied(store, first)
    assert "modality" not in events[0]["provenance"]
    assert [line[:24] for line in events[0]["provenance"]["warnings"]] == [
        "its modality is not know"
    ]
    mine.unlink()
    record = fold(events)
    stated = experiment_with(
        str(mine),
        "auxiliaries.other.provenance={modality: audio, licence: CC-BY-NC-4.0, involves: [image]}",
    )
    again, more = supplied(store, stated, record)
    assert again == digests
    said = more[0]["provenance"]
    assert (said["modality"], len(said["warnings"])) == ("audio", 2)
    assert supplied(store, stated, fold([*events, *more])) == (digests, [])
    store.put(layout.experiment("mine"), snapshot(first))
    check_owner(store, stated)
    with pytest.raises(RequestError, match="belongs to another experiment"):
        check_owner(store, experiment_with(str(mine), "auxiliaries.other.layout=timm"))


def test_weights_of_another_study_keep_their_provenance(file: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    _, events = supplied(store, experiment_with(str(file)))
    with Lease.acquire(store, "mine") as lease, Journal.open(store, "mine", lease) as journal:
        journal.append(events[0])
    taking = experiment_with("study://mine/other", "name=yours", f"storage={tmp_path}")
    _, more = supplied(store, taking)
    said = more[0]["provenance"]
    assert said["uri"] == f"study://mine/other ({file})"
    assert (said["modality"], len(said["warnings"])) == ("audio", 1)
    blob = f"sha256:{events[0]['sha256']}"
    said = supplied(store, experiment_with(blob, f"storage={tmp_path}"))[1][0]["provenance"]
    assert (said["uri"], said["dim"], said["warnings"][0][:24]) == (
        blob,
        16,
        "its modality is not know",
    )
    stated = experiment_with(
        blob, "auxiliaries.other.provenance.modality=audio", f"storage={tmp_path}"
    )
    assert supplied(store, stated)[1][0]["provenance"]["warnings"] == []


def test_an_object_is_fetched_whole_and_checked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def folder(uri: str) -> ForeignFolder:
        asked.append(uri)
        return ForeignFolder(str(file.parent))

    monkeypatch.setattr(outside, "ForeignFolder", folder)
    experiment = experiment_with(f"s3://bucket/deep/{file.name}")
    assert absent_inputs(experiment) == ()
    known = check_inputs(experiment)
    assert asked == ["s3://bucket/deep"]
    assert known["other"]["uri"] == f"s3://bucket/deep/{file.name}"
    with pytest.raises(
        RequestError, match=r"^auxiliaries.other.weights: s3://b/\S+: its sha256 is"
    ):
        check_inputs(experiment_with(f"s3://b/{file.name}", f"auxiliaries.other.sha256={'f' * 64}"))
    with pytest.raises(RequestError, match=r"gone\.pth: no such file or folder"):
        check_inputs(experiment_with("s3://bucket/gone.pth"))


def test_the_hub_is_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match=r"^auxiliaries.other.weights: hf://a/b: it is not in "):
        check_inputs(experiment_with("hf://a/b"))


def test_the_plan_shows_weights_and_warns(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = experiment_with(str(file))
    monkeypatch.setattr(plan_command, "Console", lambda **_: Console(width=160, highlight=False))
    plan_command.show(make_plan(experiment), None, known=check_inputs(experiment))
    shown = capsys.readouterr().out
    assert "supervised on AudioSet" in shown
    assert "2 blocks of width 16" in shown
    assert "note  other: the target's own modality (image) had a part in it" in shown


def test_a_journal_of_before_reads() -> None:
    record = fold([{"kind": "auxiliary_ready", "name": "x", "sha256": "f" * 64}])
    assert record.auxiliaries["x"].provenance is None
    assert "weights_licences" not in study_change(record, Context("s", "s-0"), None).tags


@pytest.mark.slow
def test_the_report_has_a_table_of_weights(file: Path, tmp_path: Path) -> None:
    experiment = experiment_with(str(file))
    _, events = supplied(Store.open(str(tmp_path)), experiment)
    said = events[0]["provenance"]
    files = render(fold(events), experiment, Origin())
    page = files["report.html"].decode()
    assert "<h3>Weights</h3>" in page
    assert "Warning: the target&#39;s own modality (image)" in page
    assert json.loads(files["report.json"])["auxiliaries"]["other"]["provenance"] == said
    before = fold([{name: events[0][name] for name in ("kind", "name", "sha256")}])
    assert "<h3>Weights</h3>" not in render(before, experiment, Origin())["report.html"].decode()
