"""What a study holds, moves and takes: against real models, real states and played-out halvings."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2pt import measure
from m2pt.data.load import describe, load
from m2pt.models.tokens import token_count
from m2pt.pathway.reparam import auxiliary_names, scales
from m2pt.training.loop import Training
from orchestrator.config.experiment import Budget, Experiment
from orchestrator.config.io import apply
from orchestrator.study.cost import (
    ModelNumbers,
    activation_estimate,
    arm_cost,
    block_bytes,
    study_cost,
)
from orchestrator.study.forecast import (
    END_SECONDS,
    START_SECONDS,
    TRIAL_SECONDS,
    EpochTime,
    Forecast,
    ForeseenTrial,
    Range,
    Rehearsal,
    exceeded,
    forecast,
    going_on,
    written,
)
from tests.unit.study_setup import experiment

TINY = (
    "data.limit=64",
    "data.source=digits",
    "model={width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}",
    "training={epochs: 2, batch_size: 32}",
)
COVERAGE = "pathway.coverage={blocks: [1], linears: [qkv, fc2]}"


def numbers(config: Experiment) -> ModelNumbers:
    info = describe(config.data)
    size = measure.model_size(config.model, info)
    tokens = token_count(config.model.tokenizer, info)
    return ModelNumbers(size.parameters, size.buffers, tokens, size.head)


@pytest.mark.parametrize(
    "overrides",
    [
        ("pathway.auxiliary=null",),
        (),
        ("pathway.trainable=false", "pathway.scale.learned=false"),
        ("pathway.auxiliary=[audio, shape]", "pathway.scale.granularity=block"),
        (COVERAGE, "pathway.scale.split_qkv=true", "pathway.scale.granularity=global"),
        (COVERAGE, "pathway.scale.split_qkv=true", "pathway.auxiliary=[audio, shape]"),
        ("resources.precision=fp64",),
        ("data.source=tones", "model.tokenizer={patch: 8}"),
        ("data.source=clips", "model.tokenizer={patch: 8, tubelet: 4}"),
        ("training.train=probe", "pathway.trainable=false"),
        ("training.ema_decay=0.9", "pathway.trainable=false"),
        ("data.source=shapes", "model.tokenizer={groups: 8, group_size: 8, norm: batch}"),
    ],
)
def test_an_arm_holds_what_the_loop_makes_of_it(overrides: tuple[str, ...]) -> None:
    config = experiment(*TINY, *overrides)
    found = arm_cost(config, numbers(config))
    dataset = load(config.data)
    blocks = measure.stand_ins(config.model, dataset.info, config.pathway.names)
    training = Training(config.training_config(), dataset, blocks)
    model = training.model
    borrowed = auxiliary_names(model)
    parameters = dict(model.named_parameters())
    assert found.auxiliary == sum(parameters[name].numel() for name in borrowed)
    values = {id(value): value for value in scales(model).values()}
    assert found.scales == sum(value.numel() for value in values.values())
    assert found.target == sum(p.numel() for p in parameters.values()) - (
        found.auxiliary + found.scales
    )
    assert found.trained == sum(p.numel() for p in parameters.values() if p.requires_grad)
    assert found.auxiliary_trained == any(parameters[name].requires_grad for name in borrowed)
    item = 8 if config.resources.precision == "fp64" else 4
    buffers = numbers(config).buffers  # of a batch norm
    averaged = 0 if config.training.ema_decay is None else found.trained
    weights = sum(p.numel() for p in parameters.values())
    assert found.weights_bytes == item * (buffers + weights + averaged)
    next(training.epochs())
    state = sum(t.numel() * t.element_size() for t in training.capture().tensors.values())
    assert found.checkpoint_bytes == pytest.approx(state, rel=0.02)


def test_sharded_workers_hold_their_part() -> None:
    sharded = ("resources.workers=4", "resources.sharding=fsdp2")
    fixed = (*TINY, "pathway.scale.learned=false")
    whole, part = experiment(*fixed), experiment(*fixed, *sharded)
    one, other = arm_cost(whole, numbers(whole)), arm_cost(part, numbers(part))
    assert other.optimizer_bytes == pytest.approx(one.optimizer_bytes / 4, abs=8)
    assert other.gradients_bytes == pytest.approx(one.gradients_bytes / 4, abs=4)
    assert other.weights_bytes == pytest.approx(one.weights_bytes / 4 + 3 * one.scales, abs=4)
    assert other.checkpoint_bytes == one.checkpoint_bytes


def test_activations_are_measured_and_the_estimate_is_near_them() -> None:
    config = experiment(*TINY, "pathway.auxiliary=null", "model.width=32", "training.accumulate=2")
    dataset = load(config.data)
    found = measure.time_training(
        config.training_config(), dataset, {}, workers=1, device="cpu", seconds=99.0
    )  # seconds at most: the data is soon used up
    assert found.activation_bytes == pytest.approx(
        activation_estimate(config, numbers(config)), rel=0.5
    )
    assert 0 < found.step.seconds < 99
    assert found.step.measured_batch == 32
    assert 0 < found.evaluation_seconds < 99
    assert found.checkpoint_bytes > 3 * 4 * numbers(config).parameters


def test_a_step_that_takes_long_is_measured_on_fewer_samples() -> None:
    config = experiment(*TINY, "pathway.auxiliary=null")
    found = measure.time_training(
        config.training_config(), load(config.data), {}, workers=1, device="cpu", seconds=1e-9
    )
    assert found.step.measured_batch == measure.PROBE_SAMPLES
    assert found.step.seconds > 0


@pytest.mark.slow
def test_pretraining_is_timed_by_its_steps() -> None:
    config = experiment(*TINY)
    source = config.auxiliaries["shape"].pretrain
    assert source is not None
    dataset = load(replace(source.data, limit=48))
    step = measure.time_pretraining(
        replace(source, batch_size=16), config.model, dataset, seconds=99.0
    )
    assert 0 < step.seconds < 99
    assert step.measured_batch == 16


@pytest.mark.slow
def test_a_study_moves_what_its_trials_store() -> None:
    config = experiment(
        *TINY, "search.space.pathway.scale.init={uniform: [0.0, 1.0]}", "search.trials=70",
        "search.seeds=2", "training.epochs=4", "search.scheduler={kind: asha, grace_epochs: 2}",
        "checkpoints.every_epochs=3",
    )  # fmt: skip
    found = study_cost(config, numbers(config), data_bytes=11)
    opening, confirmed = found.stages
    assert (len(opening), len(confirmed)) == (2 + 70, 1 + 2)
    assert all(trial.rungs == () for trial in confirmed)
    searched = [trial for trial in opening if trial.rungs]
    assert (len(searched), searched[0].rungs) == (70, (2,))
    plain = opening[0]
    assert plain.written_bytes(stopped=False) == 2 * plain.checkpoint_bytes  # epochs 3 and 4
    assert searched[0].written_bytes(stopped=False) == 3 * searched[0].checkpoint_bytes
    assert found.moved.kept == sum(2 * t.checkpoint_bytes for t in (*opening, *confirmed))
    more = apply(config, {"checkpoints.keep_best": 1})
    states = [min(3, t.stored) * t.checkpoint_bytes for t in (*opening, *confirmed)]
    assert {t.stored for t in (*opening, *confirmed)} == {2, 3}
    assert study_cost(more, numbers(more), data_bytes=11).moved.kept == sum(states)
    assert found.moved.written == written(found.stages)
    assert found.moved.written.least < found.moved.written.most
    assert found.moved.data == 11
    assert found.moved.auxiliaries == block_bytes(config.model)  # `shape` is in no trial
    assert found.moved.export == 4 * found.model.parameters
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_budget_does_not_change_what_a_whole_study_costs() -> None:
    config = experiment(*TINY, "search.space.pathway.scale.init={uniform: [0.0, 1.0]}")
    capped = config.model_copy(update={"budget": Budget(trials=2)})
    size = numbers(config)
    assert study_cost(capped, size, data_bytes=0).stages == study_cost(
        config, size, data_bytes=0
    ).stages  # fmt: skip


@pytest.mark.parametrize(("count", "factor", "rungs"), [(16, 3, 1), (9, 4, 2), (40, 2, 3)])
def test_halving_is_foreseen_as_it_plays_out(count: int, factor: int, rungs: int) -> None:
    """Ray's rule (AsyncHyperBandScheduler), on figures in random order."""
    rng = random.Random(0)
    reached = np.zeros(rungs + 1)
    rounds = 120
    for _ in range(rounds):
        left = [rng.random() for _ in range(count)]
        reached[0] += count
        for rung in range(rungs):
            seen: list[float] = []
            going = []
            for figure in left:
                if not seen or figure >= np.percentile(seen, 100 * (1 - 1 / factor)):
                    going.append(rng.random())
                seen.append(figure)
            left = going
            reached[rung + 1] += len(left)
    assert going_on(count, rungs, factor) == pytest.approx(tuple(reached / rounds / count), rel=0.1)


def rehearsal(**changes: object) -> Rehearsal:
    known = Rehearsal(
        machine="1 of 2 CPUs",
        accelerator=False,
        gangs=2,
        samples=64,
        of_samples=64,
        plain=EpochTime(step=1.0, steps=9, evaluation=1.0, checkpoint=0.5),
        pathway=EpochTime(step=2.0, steps=9, evaluation=2.0, checkpoint=1.0),
        borrowed=100,
        pretraining={"audio": 30.0, "shape": 10.0},
        took=1.0,
    )
    return replace(known, **changes)  # type: ignore[arg-type]  # of the fields' types


def foreseen(borrowed: int, epochs: int, rungs: tuple[int, ...] = ()) -> ForeseenTrial:
    return ForeseenTrial(borrowed, epochs, rungs, (1.0, 0.5)[: len(rungs) + 1], epochs, 1000)


def test_what_an_epoch_takes_lies_on_the_line_between_the_two_that_were_timed() -> None:
    known = rehearsal()
    assert [known.epoch(borrowed).seconds for borrowed in (0, 50, 100)] == [10.0, 15.0, 20.0]
    assert known.epoch(50).checkpoint == 0.75
    assert rehearsal(pathway=None).epoch(50).seconds == 10.0


def test_a_study_takes_its_stages_one_after_the_other() -> None:
    opening = (foreseen(0, 4), foreseen(100, 4, (2,)), foreseen(100, 4, (2,)))
    found = forecast((opening, (foreseen(0, 2),)), rehearsal(), workers=3, gangs=2)
    # seconds: 40.5; 40 + 1 to 80 + 2 (checkpoints at rung and end); then 20.5
    around = START_SECONDS + END_SECONDS + 30.0
    assert found.one_gang_seconds == pytest.approx(
        (
            around + 10 + 40.5 + 2 * 61.5 + 20.5 + 4 * TRIAL_SECONDS,
            around + 10 + 40.5 + 2 * 82 + 20.5 + 4 * TRIAL_SECONDS,
        )
    )
    assert found.wall_seconds == pytest.approx(
        (
            around + 40.5 + 61.5 + 20.5 + 3 * TRIAL_SECONDS,
            around + 40.5 + 82 + 20.5 + 3 * TRIAL_SECONDS,
        )
    )
    assert found.training_hours == pytest.approx(
        (3 * (40 + 40.5 + 123 + 20.5) / 3600, 3 * (40 + 40.5 + 164 + 20.5) / 3600)
    )
    assert found.trial_seconds == (20.5, 82)


def test_a_cap_that_will_be_reached_is_told() -> None:
    hours = Range(1.0, 2.0)
    seen = Forecast(2, Range(3600, 7200), Range(3600, 7200), hours, Range(1, 1))
    assert exceeded(Budget(), seen) == []
    assert exceeded(Budget(wall_clock_hours=3, training_hours=3), seen) == []
    may, will = exceeded(Budget(wall_clock_hours=1.5, training_hours=0.5), seen)
    assert may.startswith("budget.wall_clock_hours: 1.5 hours of wall clock may be spent")
    assert "will be spent before the study is done: 1 to 2 are foreseen" in will


PLAN = """
name: tiny
data: {source: digits, limit: 64}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
auxiliaries: {audio: {pretrain: {data: {source: tones}, tokenizer: {patch: 8}}}}
pathway: {auxiliary: audio}
training: {epochs: 2, batch_size: 32}
search: {trials: 2, seeds: 1, space: {pathway.scale.init: {choice: [0.0, 0.1]}}}
budget: {trials: 2, wall_clock_hours: 1.0e-3}
"""


@pytest.mark.slow  # a process of its own imports torch
def test_plan_writes_nothing_and_starts_no_ray(tmp_path: Path) -> None:
    """Not even a cache: neither where it runs nor under the homes that programs write to."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    (work / "tiny.yaml").write_text(PLAN)
    code = (
        "import sys; from orchestrator.cli import main; code = main(['plan', 'tiny.yaml', "
        "'--json']); print(code, *sys.modules, file=sys.stderr)"
    )
    names = ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR")
    root = Path(__file__).parent.parent.parent
    own = dict.fromkeys(names, str(home)) | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=work, env=own, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "home", "tiny.yaml"]
    code_and_modules = done.stderr.split("\n")[-2].split()
    assert code_and_modules[0] == "0"
    assert not {"ray", "mlflow"} & set(code_and_modules)
    printed = json.loads(done.stdout)
    cost = printed["cost"]
    assert cost["activations"] == "measured"
    assert cost["measured"]["plain"]["step"] > 0
    assert cost["measured"]["pretraining"].keys() == {"audio"}
    assert 0 < cost["forecast"]["wall_seconds"]["least"] <= cost["forecast"]["wall_seconds"]["most"]
    assert len(cost["arms"]) == 3
    assert any("budget.trials: 2 of at most" in warning for warning in printed["warnings"])
    assert any("wall_clock_hours: 0.001 hours" in note for note in cost["notes"])
