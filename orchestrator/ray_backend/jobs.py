"""Handing a study to a Ray head as a job, and following it to its end."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import environment
from orchestrator.errors import ClusterError, OrchestratorError, RequestError, Stopped
from orchestrator.ray_backend.dashboard import ask, no_answer, refusal

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LOOK_SECONDS = 2.0
LAST_LINES_SECONDS = 10.0
AWAY_SECONDS = 90.0
"""How long a head may be silent before following it is given up."""
_CODES = {kind.exit_code for kind in OrchestratorError.__subclasses__()}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Known:
    """A job that the head knows of."""

    id: str
    status: str
    metadata: Mapping[str, str]

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED


@dataclass(frozen=True)
class End:
    """How a job ended; `driver_exit_code` is None where Ray knows none."""

    status: str
    driver_exit_code: int | None = None
    message: str = ""

    @property
    def exit_code(self) -> int:
        """The code of the design's table: that of the study, where it came to return one.

        A driver that was killed, or never started, is a fault of the cluster.
        """
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return Stopped.exit_code
        if self.driver_exit_code in _CODES | {OrchestratorError.exit_code}:
            return int(self.driver_exit_code or 0)
        return ClusterError.exit_code


def about(study: str, storage: str) -> dict[str, str]:
    """What a job's metadata say of its study; no secret is in there."""
    return {"m2pt_study": study, "m2pt_storage": storage}


def next_id(study: str, storage: str, known: Iterable[Known], asked: str | None) -> str:
    """The submission id of the study's next job: `asked`, or one made of its name and a number.

    Raises `RequestError` when a job of the same study runs, or the id that was asked for is taken.
    """
    jobs, ours = list(known), about(study, storage)
    for job in jobs:
        if not job.over and ours.items() <= job.metadata.items():
            raise RequestError(
                f"study {study!r} under {storage} is already running, as job {job.id}: watch it "
                f"with `ray job logs --follow {job.id}`, or stop it first (`ray job stop {job.id}`)"
            )
    if asked is not None:
        if not _ID.fullmatch(asked):
            raise RequestError(f"--submission-id {asked!r}: letters, digits, _, . and -")
        if any(job.id == asked for job in jobs):
            raise RequestError(f"--submission-id {asked}: the head knows a job of this id already")
        return asked
    found = (re.fullmatch(rf"m2pt-{re.escape(study)}-(\d+)", job.id) for job in jobs)
    return f"m2pt-{study}-{1 + max((int(match[1]) for match in found if match), default=0)}"


class Jobs:
    """The jobs of one head."""

    def __init__(self, address: str) -> None:
        """`address` is that of the dashboard. Raises `ClusterError` when it does not let us in."""
        environment.use_ray_dashboard(address)
        environment.prepare_ray(local=False)
        if ask(address, "/api/version").refused:
            raise refusal(address)
        from ray.job_submission import JobSubmissionClient

        for chatty in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{chatty}").setLevel(logging.WARNING)
        self._address = address
        with self._explained():
            self._client = JobSubmissionClient(address)

    def known(self) -> list[Known]:
        """All jobs that were handed in there. Raises `ClusterError`."""
        with self._explained():
            return [
                Known(job.submission_id, str(job.status.value), job.metadata or {})
                for job in self._client.list_jobs()
                if job.submission_id
            ]

    def submit(self, job: str, command: str, package: Path, metadata: Mapping[str, str]) -> None:
        """Upload the package and start `command` in it. Raises `ClusterError`."""
        with self._explained():
            self._client.submit_job(
                entrypoint=command,
                submission_id=job,
                runtime_env={"working_dir": str(package)},
                metadata=dict(metadata),
            )

    def follow(self, job: str, write: Callable[[str], Any]) -> End:
        """Pass the job's output to `write` until it ends. Raises `ClusterError`."""
        return asyncio.run(_Follower(self._address, self._client, job, write).to_the_end())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise refusal(self._address) from None
        except OSError as error:  # also what `requests` raises
            raise no_answer(self._address, error) from error
        except (RuntimeError, ValueError) as error:
            text = environment.redacted(str(error))
            raise ClusterError(f"the Ray head at {self._address} refuses: {text}") from error


class _Follower:
    """The output of one job, read once, over as many connections as that takes."""

    def __init__(self, address: str, client: Any, job: str, write: Callable[[str], Any]) -> None:
        self._address, self._client, self._job, self._write = address, client, job, write
        self._seen = 0
        self._heard = time.monotonic()

    async def to_the_end(self) -> End:
        """Follow until the head says that the job has ended."""
        tail = asyncio.create_task(self._tail())
        try:
            while True:
                await asyncio.wait({tail}, timeout=LOOK_SECONDS)
                end = await asyncio.to_thread(self._look)
                if end is not None:
                    await asyncio.wait({tail}, timeout=LAST_LINES_SECONDS)
                    return end
                if tail.done():  # a proxy closed it, or the head was away
                    tail.exception()
                    await asyncio.sleep(LOOK_SECONDS)
                    tail = asyncio.create_task(self._tail())
        finally:
            tail.cancel()

    async def _tail(self) -> None:
        """Every connection gives the output from its beginning."""
        known = self._seen
        async for text in self._client.tail_job_logs(self._job):
            new, known = text[known:], max(0, known - len(text))
            self._seen += len(new)
            self._write(new)

    def _look(self) -> End | None:
        try:
            answer = ask(self._address, f"/api/jobs/{self._job}")
        except ClusterError:
            if time.monotonic() - self._heard > AWAY_SECONDS:
                raise
            return None
        if answer.status != 200:
            return None if answer.status >= 500 else self._unknown(answer.status)
        self._heard = time.monotonic()
        info = answer.value
        if info["status"] not in ENDED:
            return None
        return End(info["status"], info.get("driver_exit_code"), info.get("message") or "")

    def _unknown(self, status: int) -> End:
        raise ClusterError(
            f"the Ray head at {self._address} no longer knows job {self._job} (HTTP {status}): it "
            "was started anew; what the study has done lies in its storage"
        )
