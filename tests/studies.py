"""Small studies for tests: experiment files, and the command line run as a person runs it."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock
from warnings import catch_warnings, simplefilter

import psutil  # type: ignore[import-untyped]  # it ships no types

from orchestrator import cli
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events

PATIENCE_SECONDS = 400  # a study of these takes 40 s, and ten times that on a crowded machine

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


def experiment(text: str, storage: Path | str, *overrides: str) -> Experiment:
    """An experiment from text, on a folder or a bucket."""
    return parse_experiment(text, "test.yaml", [f"storage={storage}", *overrides])


def environment(folder: Path) -> dict[str, str]:
    """An environment whose caches and spools lie in a folder of the test."""
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    return {**os.environ, **own, "COLUMNS": "120", "PYTHONWARNINGS": ""}


def orchestrator(folder: Path, *arguments: str, check: bool = True) -> Any:
    """Run a verb with --json in `folder`; the object that it prints (and `exit_code`)."""
    return finish(start(folder, *arguments, "--json"), check=check)


def said(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a verb in this process, which has imported everything: that takes ten seconds of a core.
    Its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    own = mock.patch.dict(os.environ, environment(folder))
    with own, chdir(folder), redirect_stdout(out), redirect_stderr(err), catch_warnings():
        simplefilter("ignore")  # of libraries about each other
        code = cli.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def verb(folder: Path, *arguments: str, check: bool = True) -> Any:
    """As `orchestrator`, in this process (see `said`)."""
    code, out, err = said(folder, *arguments, "--json")
    if check and code:
        raise AssertionError(f"exit code {code}\n{out}\n{err}")
    return {**json.loads(out.strip().splitlines()[-1]), "exit_code": code, "stderr": err}


def finish(process: subprocess.Popen[str], *, check: bool = True) -> Any:
    """Wait for a verb that was started with --json; as `orchestrator`."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    if check and process.returncode:
        raise AssertionError(f"exit code {process.returncode}\n{out}\n{err}")
    last = json.loads(out.strip().splitlines()[-1])
    return {**last, "exit_code": process.returncode, "stderr": err}


def wait_until(process: subprocess.Popen[str], condition: Callable[[], Any]) -> Any:
    """What `condition` gives once that is true; the driver has to live until then."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"it ended with exit code {process.returncode}\n{out}\n{err}")
        assert time.monotonic() < deadline
        time.sleep(0.2)  # a look at a journal costs up to a hundredth of a second
    return found


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


def kill_all(process: subprocess.Popen[Any]) -> None:
    """kill -9 a driver and every process that descends from it, by id."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    process.communicate()  # by itself: reaped by another, it would seem to have ended with 0
    psutil.wait_procs(family[1:], timeout=30)


def events(storage: Path, study: str) -> list[dict[str, Any]]:
    """The journal as another terminal reads it."""
    return read_events(Store.open(str(storage)), study)


def select(happened: list[dict[str, Any]], *kinds: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of these kinds that have these fields."""
    return [e for e in happened if e["kind"] in kinds and fields.items() <= e.items()]


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


def check_no_epoch_was_trained_again(happened: list[dict[str, Any]]) -> None:
    """It would have left another checkpoint: their keys tell under which owner they were made."""
    kept = [(event["trial"], event["epoch"]) for event in select(happened, "checkpoint")]
    assert len(kept) == len(set(kept))
