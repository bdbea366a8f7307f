"""`stop STUDY`: ask a study's driver to drain; what is checkpointed is kept."""

import argparse
import json
import os
import time

from orchestrator.commands.options import add_study, study_of
from orchestrator.conduct.brake import request_stop
from orchestrator.errors import ClusterError
from orchestrator.storage.lease import read_owner

WAIT_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --no-wait."""
    add_study(parser)
    parser.add_argument("--no-wait", action="store_true", help="do not wait until it has stopped")


def run(parsed: argparse.Namespace) -> int:
    """Leave the request and wait until the study's owner has let go."""
    found = study_of(parsed)
    found.experiment()  # says so when there is no such study
    owner = read_owner(found.store, found.name)
    if owner is None or owner.gone:
        _say(parsed, f"study {found.name!r} is not running: nothing to stop", running=False)
        return 0
    by = f"pid {os.getpid()} with `orchestrator stop`"
    request_stop(found.store, found.name, by, epoch=owner.epoch)
    deadline = time.monotonic() + WAIT_SECONDS
    while not parsed.no_wait:
        now = read_owner(found.store, found.name)
        if now is None or now.gone:
            _say(parsed, f"study {found.name!r} has stopped", running=False)
            return 0
        if time.monotonic() > deadline:
            raise ClusterError(
                f"study {found.name!r} did not stop within {WAIT_SECONDS:.0f} s: its driver "
                f"(pid {owner.pid} on {owner.host}) may be gone; `resume` takes the study over"
            )
        time.sleep(0.3)
    _say(parsed, f"study {found.name!r} was asked to stop", running=True)
    return 0


def _say(parsed: argparse.Namespace, text: str, *, running: bool) -> None:
    print(json.dumps({"message": text, "running": running}) if parsed.json else text)
