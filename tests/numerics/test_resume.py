"""Stopped and resumed is the same as never stopped, through the bytes of a state."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2pt.pathway.config import Envelope, Pathway, Scale
from m2pt.pathway.reparam import frozen_auxiliary_names
from m2pt.training.loop import Training
from m2pt.training.recipe import TrainingConfig
from m2pt.training.session import FolderSession, MemorySession, drive
from m2pt.training.state import State, from_bytes, to_bytes
from tests.numerics.training_setup import (
    FP64,
    MODEL,
    block_weights,
    config_of,
    digits,
    same_bits,
    training_of,
)

pytestmark = pytest.mark.slow

RICH = {"epochs": 4, "mixup": 0.3, "clip_grad": 1.0, "accumulate": 2, "layer_decay": 0.8}
PATHWAYS = {
    "baseline": None,
    "paper": Pathway(),
    "frozen, cosine": Pathway(
        trainable=False, scale=Scale(init=0.1, envelope=Envelope(kind="cosine"))
    ),
    "held, shared": Pathway(
        scale=Scale(
            init=0.1,
            granularity="global",
            split_qkv=True,
            envelope=Envelope(kind="hold", until=0.6),
        )
    ),
    "fixed": Pathway(scale=Scale(init=0.1, learned=False)),
}


@pytest.mark.parametrize("pathway", PATHWAYS.values(), ids=PATHWAYS.keys())
@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_four_epochs_are_two_and_two(pathway: Pathway | None, drop_path: float) -> None:
    config = config_of(pathway, **RICH)
    config = replace(config, model=replace(MODEL, drop_path=drop_path))
    whole, whole_session = training_of(config), MemorySession()
    assert drive(whole, whole_session) == "finished"

    first = MemorySession(stop_after=2)
    assert drive(training_of(config), first) == "stopped"
    torch.rand(11)
    assert first.state is not None
    second = MemorySession(state=from_bytes(to_bytes(first.state)))
    resumed = training_of(config)
    assert drive(resumed, second) == "finished"

    assert same_bits(whole.model.state_dict(), resumed.model.state_dict())
    assert whole_session.state is not None
    assert second.state is not None
    assert to_bytes(whole_session.state) == to_bytes(second.state)
    together = [*first.reports, *second.reports]
    assert [r.metrics for r in together] == [r.metrics for r in whole_session.reports]
    assert [r.scales for r in together] == [r.scales for r in whole_session.reports]


def _state_of(config: TrainingConfig) -> State:
    session = MemorySession(stop_after=1)
    drive(training_of(config), session)
    assert session.state is not None
    return session.state


def test_a_frozen_auxiliary_is_not_in_the_state_and_all_that_is_trained_is() -> None:
    frozen, trained = (
        _state_of(config_of(Pathway(trainable=trainable))) for trainable in (False, True)
    )
    model = training_of(config_of(Pathway(trainable=False))).model
    names = {f"model/{name}" for name in frozen_auxiliary_names(model)}
    assert len(names) == 8
    assert not names & frozen.tensors.keys()
    assert names <= trained.tensors.keys()
    learned = {f"model/{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert learned <= frozen.tensors.keys()
    assert {name.replace("model/", "optimizer/") + "/exp_avg" for name in learned} <= set(
        frozen.tensors
    )


def test_a_state_is_a_copy() -> None:
    training = training_of(config_of())
    state = training.capture()
    list(training.epochs())
    fresh = training_of(config_of()).model.state_dict()
    assert all(torch.equal(state.tensors[f"model/{name}"], fresh[name]) for name in fresh)


def test_a_state_before_the_first_epoch_restores() -> None:
    training, other = training_of(config_of()), training_of(config_of())
    other.restore(training.capture())
    assert other.epoch == 0
    list(training.epochs())
    list(other.epochs())
    assert same_bits(training.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (config_of(Pathway(), learning_rate=1e-4), "config.recipe.learning_rate is 0.0001 in"),
        (replace(config_of(Pathway()), seed=1), "config.seed is 1 in the state and 0 here"),
        (replace(config_of(Pathway()), numerics=FP64), "config.numerics.precision is 'fp64' in"),
        (config_of(), "config.pathway is None in the state"),
    ],
)
def test_a_state_of_another_training_is_refused_by_name(other: TrainingConfig, names: str) -> None:
    training = training_of(config_of(Pathway()))
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    with pytest.raises(ValueError, match=names):
        training.restore(_state_of(other))
    assert training.epoch == 0
    assert same_bits(before, training.model.state_dict())


def test_tensors_that_do_not_fit_are_refused_by_name_and_nothing_is_touched() -> None:
    state = _state_of(config_of())
    tensors = dict(state.tensors)
    del tensors["optimizer/head.weight/exp_avg"]
    tensors["model/tail.weight"] = torch.zeros(1)
    tensors["model/head.bias"] = torch.zeros(3)
    training = training_of(config_of())
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit") as caught:
        training.restore(State(tensors, state.meta))
    for words in (
        "optimizer/head.weight/exp_avg is missing",
        "model/tail.weight is unknown",
        "model/head.bias has shape (3,) instead of (10,)",
    ):
        assert words in str(caught.value)
    assert same_bits(before, training.model.state_dict())


def test_other_frozen_weights_are_refused() -> None:
    config = config_of(Pathway(trainable=False))
    state = _state_of(config)
    training = Training(config, digits(), {"audio": block_weights(seed=8)})
    with pytest.raises(ValueError, match=r"digests.frozen_auxiliaries"):
        training.restore(state)


def test_a_folder_keeps_every_epoch_and_resumes(tmp_path: Path) -> None:
    config = config_of(Pathway())
    assert drive(training_of(config), FolderSession(tmp_path, stop_after=1)) == "stopped"
    resumed, whole = training_of(config), training_of(config)
    assert drive(resumed, FolderSession(tmp_path)) == "finished"
    list(whole.epochs())
    assert same_bits(resumed.model.state_dict(), whole.model.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-000001.json",
        "epoch-000001.safetensors",
        "epoch-000002.json",
        "epoch-000002.safetensors",
    ]
    again = training_of(config)
    assert drive(again, FolderSession(tmp_path)) == "finished"
    assert same_bits(again.model.state_dict(), whole.model.state_dict())
    newest = tmp_path / "epoch-000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"epoch-000002.safetensors: .*delete it to resume"):
        drive(training_of(config), FolderSession(tmp_path))


@pytest.mark.parametrize("data", [b"", b"not safetensors", b"\x80\x04."])
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no whole safetensors file"):
        from_bytes(data)


def test_states_of_another_format_are_refused() -> None:
    with pytest.raises(ValueError, match="format 2 where this version reads 1"):
        from_bytes(to_bytes(State({"a": torch.ones(1)}, {"format": 2})))
    with pytest.raises(ValueError, match="format None"):
        from_bytes(to_bytes(State({"a": torch.ones(1)}, {})))
