"""The benchmarks of a step, of tracking and of checkpoints run to their end, on next to no work."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest

from benchmarks import auxiliary_memory, checkpoint, inference, step_overhead, tracking
from benchmarks.step_overhead import Setting, Workload, contestants, differences, run
from m2pt.training.recipe import Numerics
from orchestrator.storage.uri import Store
from tests.contract.mlflow_setup import Server

TINY = Workload(width=16, depth=2, heads=2, image=32, patch=16, batch=2)
ONE = Setting("one process", rounds=2, threads=1, warmup=1)


@pytest.mark.slow  # torch.export takes seconds
def test_a_fused_model_is_the_plain_graph_and_an_attached_one_is_not() -> None:
    models = contestants(TINY)
    assert differences(models["plain"], models["fused"], TINY.images()) == []
    found = differences(models["plain"], models["trainable"], TINY.images())
    assert {"modules", "parameters", "state", "graph"} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [ONE, replace(ONE, workers=2), replace(ONE, numerics=Numerics("bf16"))]
)
def test_every_contestant_takes_its_steps(setting: Setting) -> None:
    figures = run(TINY, setting)
    assert [one.contestant for one in figures] == ["plain", "frozen", "trainable", "fused"]
    assert figures[0].step_ratio == figures[0].passes_ratio == (1.0, 1.0, 1.0)
    assert all(one.step_seconds > 0 for one in figures)
    assert all(list(one.step_ratio) == sorted(one.step_ratio) for one in figures)


def test_settings_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    names = [one.name for one in step_overhead.settings([], 30, 3, 2)]
    assert names == ["one process", "two workers"]
    with pytest.raises(SystemExit, match="compiled, cuda: torch finds no CUDA device"):
        step_overhead.settings(["one", "cuda", "compiled"], 30, 3, 2)


@pytest.mark.slow
def test_tracking_compares_both_ways(
    mlflow_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "server", lambda folder: nullcontext(mlflow_server.uri))
    words = ["--rounds", "1", "--trials", "2", "--epochs", "3", "--calls", "3", "--json"]
    monkeypatch.setattr("sys.argv", ["tracking.py", *words])
    tracking.main()
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ratio"] > 1


@pytest.mark.slow
def test_a_checkpoint_goes_up_and_comes_back_by_all_ways(s3: str) -> None:
    found = {one.way: one for one in checkpoint.transfers(s3, mib=20, rounds=1)}
    assert list(found) == ["up", "memory", "file"]
    assert list(found["up"].mib_per_second) == ["boto3", "ours", "ray"]
    assert all(low > 0 for one in found.values() for low, _, _ in one.ratios.values())
    assert Store.open(s3).list() == []


@pytest.mark.slow
def test_what_an_auxiliary_costs_in_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["auxiliary_memory.py", "--depth", "1", "--rounds", "2", "--threads", "1"]
    monkeypatch.setattr("sys.argv", words)
    for name in ("torch.set_num_threads", "benchmarks.auxiliary_memory.keep_freed_memory"):
        monkeypatch.setattr(name, lambda *_: None)  # of the whole process, which goes on
    auxiliary_memory.main()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {one["auxiliary"]: one["bytes per entry of W'"] for one in said if "auxiliary" in one}
    assert found["frozen, bf16"]["held"] == 2.0
    assert {
        found[kind][part]
        for kind in ("frozen", "frozen, bf16")
        for part in ("gradients", "moments", "checkpoint")
    } == {0.0}
    assert [found["trained"][part] for part in ("held", "gradients", "moments")] == [4, 4, 8]


@pytest.mark.slow
def test_inference_compares_fused_with_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch.set_num_threads", "benchmarks.inference.keep_freed_memory"):
        monkeypatch.setattr(name, lambda *_: None)  # of the whole process, which goes on
    figures = inference.measure(TINY, inference.Setting("one process", rounds=2, threads=1))
    found = {one.contestant: one for one in figures}
    assert list(found) == ["plain", "plain again", "fused", "attached"]
    assert found["plain"].throughput_ratio == (1.0, 1.0, 1.0)
    assert all(one.images_per_second > 0 and one.batch_bytes > 0 for one in figures)
    assert found["fused"].weights_bytes == found["plain"].weights_bytes
    assert found["fused"].memory_ratio == found["plain again"].memory_ratio == 1.0
    assert found["attached"].memory_ratio > 1.1
    inference.show(figures)
    assert "attached" in capsys.readouterr().out


def test_inference_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    one = inference.Setting("one process", 2, 1)
    assert inference.settings([], one) == [one]
    with pytest.raises(SystemExit, match="cuda: torch finds no CUDA device"):
        inference.settings(["cuda"], one)
