"""Small studies for tests: experiment files, and the command line run as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events

TINY = """
name: tiny
data: {source: digits, limit: 400}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
training: {epochs: 4, batch_size: 50}
resources: {concurrent_trials: 1}
search: {trials: 1, seeds: 1, confirm: 0, scheduler: {kind: none}}
"""

SEARCH = """
name: small
data: {source: digits, limit: 400}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
auxiliaries:
  audio: {pretrain: {data: {source: tones}, tokenizer: {patch: 8}, epochs: 1}}
  random: {control: random, like: audio}
training: {epochs: 4, batch_size: 50}
resources: {concurrent_trials: 2}
search:
  trials: 4
  seeds: 2
  confirm: 1
  scheduler: {kind: asha, grace_epochs: 2, reduction_factor: 2}
  space:
    pathway.auxiliary: {grid: [audio, random]}
    pathway.scale.init: {choice: [0.0, 0.1]}
    pathway.coverage.linears: {choice: [[qkv, proj], [fc1, fc2]]}
"""


def experiment(text: str, storage: Path, *overrides: str) -> Experiment:
    """An experiment from text, on a folder."""
    return parse_experiment(text, "test.yaml", [f"storage={storage}", *overrides])


def environment(folder: Path) -> dict[str, str]:
    """An environment whose caches and spools lie in a folder of the test."""
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    return {**os.environ, **own, "COLUMNS": "120", "PYTHONWARNINGS": ""}


def orchestrator(folder: Path, *arguments: str, check: bool = True) -> Any:
    """Run a verb with --json in `folder`; the object that it prints (and `exit_code`)."""
    done = start(folder, *arguments, "--json")
    out, err = done.communicate(timeout=280)
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{out}\n{err}")
    return {**json.loads(out.strip().splitlines()[-1]), "exit_code": done.returncode, "stderr": err}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a verb in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_all(process: subprocess.Popen[str]) -> None:
    """kill -9 a driver and every process that descends from it, by id."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=30)
    process.communicate()


def events(storage: Path, study: str) -> list[dict[str, Any]]:
    """The journal as another terminal reads it."""
    return read_events(Store.open(str(storage)), study)


def check_each_trial_ended_once(happened: list[dict[str, Any]]) -> dict[str, str]:
    """Every planned trial ended, none twice, and no epoch is there twice; trial -> how."""
    planned = [e["trial"] for e in happened if e["kind"] == "planned"]
    ended = [e["trial"] for e in happened if e["kind"] in ("finished", "stopped", "failed")]
    epochs = [(e["trial"], e["epoch"]) for e in happened if e["kind"] == "epoch"]
    assert len(planned) == len(set(planned))
    assert sorted(planned) == sorted(ended)
    assert len(epochs) == len(set(epochs))
    return {
        e["trial"]: e["kind"] for e in happened if e["kind"] in ("finished", "stopped", "failed")
    }
