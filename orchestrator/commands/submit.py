"""`submit FILE`: hand a study to a Ray cluster as a job, follow it, and end as it ends."""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from orchestrator import environment
from orchestrator.commands.options import add_experiment, experiment_of
from orchestrator.conduct.in_job import check_lasting, check_reachable_data
from orchestrator.conduct.places import named_study, tracking_uri
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_text
from orchestrator.errors import Stopped
from orchestrator.ray_backend import jobs
from orchestrator.ray_backend.dashboard import dashboard_address
from orchestrator.ray_backend.package import EXPERIMENT, build
from orchestrator.storage.uri import Store

COMMAND = shlex.join(["python", "-m", "orchestrator", "search", EXPERIMENT])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --storage, --tracking, --address, --submission-id, --no-wait."""
    add_experiment(parser)
    parser.add_argument(
        "--address", metavar="URL",
        help="dashboard of the cluster's head, http://HOST:8265 [RAY_API_SERVER_ADDRESS]",
    )  # fmt: skip
    parser.add_argument("--submission-id", metavar="ID", help="name of the job [m2pt-STUDY-N]")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")


def run(parsed: argparse.Namespace) -> int:
    """Check the file here, hand it in, follow; the exit code is that of the study."""
    experiment = experiment_of(parsed, parsed.file)
    address = dashboard_address(parsed.address)
    check_lasting(experiment)
    check_reachable_data(experiment)
    tracking_uri(experiment)  # says so where it must be named
    head = jobs.Jobs(address)
    job = _hand_in(head, experiment, parsed.submission_id)
    end, code = jobs.End("PENDING"), 0
    try:  # from here on an interrupt leaves the job alone, and says so
        _say(f"job {job} is handed in at {address}. {_how_to(job, experiment)}")
        if not parsed.no_wait:
            end = head.follow(job, _printer(sys.stderr if parsed.json else sys.stdout))
            code = end.exit_code
            _say(f"job {job} has ended: {end.status}{_why(end)}")
    except KeyboardInterrupt:
        end, code = jobs.End("RUNNING"), Stopped.exit_code
        _say(f"\njob {job} goes on without this terminal. {_how_to(job, experiment)}")
    if parsed.json:
        found = {"submission_id": job, "status": end.status, "exit_code": code}
        print(json.dumps(found | {"study": experiment.name, "storage": _storage(experiment)}))
    return code


def _hand_in(head: jobs.Jobs, experiment: Experiment, asked: str | None) -> str:
    """Package and submit; the job's id."""
    name, storage = experiment.name, _storage(experiment)
    job = jobs.next_id(name, storage, head.known(), asked)
    with tempfile.TemporaryDirectory(prefix="m2pt-job-") as folder:
        package = build(as_text(experiment), Path(folder) / "package.zip")
        head.submit(job, COMMAND, package, jobs.about(name, storage))
    return job


def _storage(experiment: Experiment) -> str:
    return Store.open(experiment.storage).uri


def _how_to(job: str, experiment: Experiment) -> str:
    study = named_study(experiment)
    return (
        f"Its output: `orchestrator logs {study} --follow` or `ray job logs --follow {job}`. To "
        f"stop it: `orchestrator stop {study}` or `ray job stop {job}`"
    )


def _why(end: jobs.End) -> str:
    if end.status != "FAILED":
        return ""
    if end.driver_exit_code is not None:
        return f", its driver with exit code {end.driver_exit_code}"
    return f": {environment.redacted(' '.join(end.message.split())[:500])}"


def _printer(to: TextIO) -> Callable[[str], object]:
    return lambda text: print(text, end="", file=to, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
