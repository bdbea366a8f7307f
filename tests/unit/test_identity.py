"""What names a trial, and what does not."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2pt.data.config import DataConfig
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.pretrain.config import PretrainConfig
from m2pt.training.recipe import Numerics
from orchestrator.config.io import apply, as_dict, from_dict
from orchestrator.study.arms import label
from orchestrator.study.identity import (
    Digests,
    arm_id,
    arm_identity,
    canonical,
    fingerprint,
    pretrain_fingerprint,
)
from orchestrator.study.trial import plan_trial, resolve
from tests.unit.study_setup import DIGESTS, experiment

BASE = experiment()


def test_the_id_is_pinned() -> None:
    """It changes only with FORMAT, or with a field that is added to what a trial is."""
    assert fingerprint(BASE, 0, DIGESTS) == fingerprint(from_dict(as_dict(BASE)), 0, DIGESTS)
    assert len(fingerprint(BASE, 0, DIGESTS)) == 12
    assert set(fingerprint(BASE, 0, DIGESTS)) <= set("0123456789abcdef")
    assert sorted(arm_identity(BASE, DIGESTS)) == [
        "auxiliaries", "compile", "data", "format", "model", "pathway", "precision", "target",
        "training",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"name": "other"},
        {"storage": "s3://b/p"},
        {"tracking": "http://h"},
        {"seed": 5},
        {"resources.workers": 4},
        {"resources.workers": 2, "resources.sharding": "fsdp2"},
        {"resources.concurrent_trials": 1},
        {"resources.gpus_per_worker": 1.0},
        {"search.trials": 3},
        {"search.space": {"training.epochs": {"choice": [1]}}},
        {"checkpoints.every_epochs": 3},
        {"data.source": "tones"},  # the digest says what is there
        {"auxiliaries.unused": {"weights": "x.pt"}},
        {"auxiliaries.shape.pretrain.epochs": 9},
        {"pathway.coverage.linears": ["fc2", "fc1", "proj", "qkv"]},
    ],
)
def test_placement_names_and_what_is_not_used_are_outside(values: dict[str, object]) -> None:
    assert fingerprint(apply(BASE, values), 0, DIGESTS) == fingerprint(BASE, 0, DIGESTS)


@pytest.mark.parametrize(
    "values",
    [
        {"data.validation": 0.3},
        {"data.augment": True},
        {"model.depth": 6},
        {"pathway.auxiliary": None},
        {"pathway.auxiliary": "shape"},
        {"pathway.auxiliary": ["audio", "shape"]},
        {"pathway.auxiliary": "shuffled"},
        {"pathway.scale.init": 1e-9},
        {"pathway.mapping": 1},
        {"training.learning_rate": 1.0000001e-3},
        {"training.accumulate": 2},
        {"training.scale_learning_rate": 0.1},
        {"resources.precision": "bf16"},
        {"resources.compile": True},
    ],
)
def test_what_changes_the_result_changes_the_arm(values: dict[str, object]) -> None:
    assert arm_id(apply(BASE, values), DIGESTS) != arm_id(BASE, DIGESTS)


@pytest.mark.parametrize(
    "digests",
    [
        dataclasses.replace(DIGESTS, data="d2"),
        dataclasses.replace(DIGESTS, target="t"),
        dataclasses.replace(DIGESTS, auxiliaries={"audio": "a2"}),
    ],
)
def test_content_changes_the_arm(digests: Digests) -> None:
    assert arm_id(BASE, digests) != arm_id(BASE, DIGESTS)


def test_only_used_digests_count_and_they_must_be_there() -> None:
    audio = Digests("d1", None, {"audio": "a1"})
    assert fingerprint(BASE, 0, audio) == fingerprint(BASE, 0, DIGESTS)
    with pytest.raises(KeyError, match="audio"):
        fingerprint(BASE, 0, Digests("d1"))
    shuffled = apply(BASE, {"pathway.auxiliary": "shuffled"})
    assert arm_identity(shuffled, audio)["auxiliaries"] == [{"control": "permuted", "like": "a1"}]


def test_names_of_auxiliaries_are_outside() -> None:
    renamed = experiment("auxiliaries.sound={weights: x.pt}", "pathway.auxiliary=sound")
    assert arm_id(renamed, Digests("d1", None, {"sound": "a1"})) == arm_id(BASE, DIGESTS)


def test_without_an_auxiliary_the_pathway_is_outside() -> None:
    baseline = apply(BASE, {"pathway.auxiliary": None})
    for values in (
        {"pathway.scale.init": 1.0},
        {"pathway.coverage.blocks": "first:1"},
        {"training.scale_learning_rate": 0.1},
        {"training.auxiliary_learning_rate_factor": 0.1},
    ):
        assert arm_id(apply(baseline, values), DIGESTS) == arm_id(baseline, DIGESTS)


def test_a_seed_changes_the_trial_but_not_the_arm() -> None:
    plans = [
        plan_trial(BASE, {}, lambda own: DIGESTS, stage="search", seed=seed) for seed in (0, 1)
    ]
    assert plans[0].arm == plans[1].arm
    assert plans[0].trial != plans[1].trial
    assert plans[1].experiment.seed == 1


@settings(max_examples=30)
@given(st.none() | st.booleans() | st.lists(st.integers()) | st.text("aé"))
def test_canonical_text_does_not_see_tuples_or_order(value: object) -> None:
    assert canonical({"b": value, "a": (value,)}) == canonical({"a": [value], "b": value})
    assert canonical(0.1) == "0.1"
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


def test_an_auxiliary_is_named_by_how_it_is_made() -> None:
    source = BASE.auxiliaries["audio"].pretrain
    assert source is not None
    made = pretrain_fingerprint(source, BASE.model, "d")

    def other(config: PretrainConfig = source, model: ModelConfig = BASE.model) -> str:
        return pretrain_fingerprint(config, model, "d")

    assert other(model=dataclasses.replace(BASE.model, tokenizer=Tokenizer(patch=4))) == made
    assert other(model=dataclasses.replace(BASE.model, width=128)) != made
    assert other(dataclasses.replace(source, seed=1)) != made
    assert pretrain_fingerprint(source, BASE.model, "e") != made


def test_what_the_first_release_pretrained_is_found_again() -> None:
    """The figure is of that release; a key that is added counts where it is not the default."""
    config = PretrainConfig(DataConfig("tones"), Tokenizer(patch=8), epochs=2)
    named = "ddf4391012144846ecfa44707e7b46979e23a04a4aa868ad79219af353527fea"
    assert pretrain_fingerprint(config, ModelConfig(), "d") == named
    kept = dataclasses.replace(config, keep_epochs=(1,))
    assert pretrain_fingerprint(kept, ModelConfig(), "d") == named
    for numerics in (Numerics("bf16"), Numerics(compile=True)):
        assert pretrain_fingerprint(config, ModelConfig(), "d", numerics) != named


def test_a_matched_control_is_declared_where_it_is_used() -> None:
    own = resolve(BASE, {"pathway.auxiliary": ["random~audio", "random~shape"]}, 3)
    assert own.used_auxiliaries() == ("audio", "random~audio", "shape", "random~shape")
    assert (own.seed, own.search.space) == (3, {})
    identity = arm_identity(own, DIGESTS)["auxiliaries"]
    assert identity[1] == {"control": "random", "like": "s1"}


@pytest.mark.parametrize(
    ("searched", "values", "text"),
    [
        ({}, {}, "audio"),
        ({}, {"pathway.auxiliary": None}, "none (baseline)"),
        ({"pathway.coverage": [{}], "pathway.scale": [{}]}, {},
         "audio · all linears · λ learned from 0"),
        ({"pathway.scale.init": [0.0]}, {"pathway.auxiliary": None}, "none (baseline)"),
        ({}, {"pathway.auxiliary": "random~audio", "pathway.coverage.blocks": "first:2",
              "pathway.scale": {"init": 0.01, "learned": False}},
         "random~audio · first:2 · λ fixed 0.01"),
        ({}, {"pathway.auxiliary": ["audio", "shape"], "pathway.mapping": "reversed",
              "pathway.trainable": False}, "audio+shape · reversed · frozen"),
        ({}, {"pathway.coverage": {"blocks": [0, 3], "linears": ["fc2", "qkv"]}},
         "audio · blocks 0,3 qkv+fc2"),
        ({}, {"pathway.mapping": "stretched", "pathway.trainable": "rank:4",
              "pathway.keep": "bf16", "pathway.prepare": "frobenius", "pathway.bias": "added"},
         "audio · stretched · changed by rank 4 · held in bf16 · prepared by frobenius · bias "
         "added"),
        ({}, {"pathway.mapping": [3, 2, 1, 0], "pathway.trainable": "from:0.5", "pathway.scale":
              {"init": [0, 0.1], "relative": True, "clamp": 0.5, "merge_every": 2}},
         "audio · blocks from 3,2,1,0 · λ learned from 0…0.1 ‖W‖/‖W'‖ within ±0.5 merged every 2 "
         "epochs · trained from 0.5 on"),
        ({}, {"pathway.coverage.linears": ["qkv"], "pathway.mapping": 2},
         "audio · qkv · blocks shifted by 2"),
        ({}, {"pathway.scale": {"granularity": "block", "split_qkv": True,
                                "envelope": {"kind": "anneal", "until": 0.5}}},
         "audio · λ learned from 0 per block q,k,v apart anneal to 0.5"),
        ({"training.learning_rate": [1e-3]}, {"training.learning_rate": 0.00031234},
         "audio · learning_rate 0.000312"),
        ({"training.learning_rate": [1e-3]},
         {"pathway.auxiliary": None, "training.learning_rate": 0.002},
         "none · learning_rate 0.002"),
        ({"training.epochs": [6], "auxiliaries.audio.pretrain.epochs": [5]}, {},
         "audio · training.epochs 6 · auxiliaries.audio.pretrain.epochs 5"),
        ({"resources.compile": [True]}, {"resources.compile": True}, "audio · compile on"),
        ({}, {"training.epochs": 12}, "audio"),  # the same for all arms
    ],
)  # fmt: skip
def test_labels_name_what_is_searched_or_unusual(
    searched: dict[str, list[object]], values: dict[str, object], text: str
) -> None:
    space = {path: {"choice": choices} for path, choices in searched.items()}
    study = apply(BASE, {"search.space": space})
    assert label(study, resolve(study, values, 0)) == text
