"""kill -9 of the mailbox between a driver and its gang, in the middle of a study."""

from pathlib import Path

import pytest

from orchestrator.tracking.record import fold
from tests.faults.beside import Beside, meanwhile, processes
from tests.ray.kept_gang.kept import Kept
from tests.studies import TINY, events, select

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_lost_mailbox_ends_the_study_and_is_held_against_no_trial(
    tmp_path: Path,
    kept: Kept,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)

    def kill(study: Beside) -> None:
        study.until(lambda: len(select(study.events(), "epoch")) > 2)
        for mailbox in processes("ray::Mailbox"):  # its own, and those that studies before it had
            mailbox.kill()

    with meanwhile(tmp_path / "studies", "tiny", kill):
        where = ("--storage", "studies", "--set", "training.epochs=5000")
        ended = kept.study(tmp_path, "search", "tiny.yaml", *where, check=False)
    assert ended["exit_code"] == 5
    assert "mailbox" in ended["error"]
    for said in (ended["stderr"], caplog.text, *capfd.readouterr()):
        assert "Traceback" not in said
    record = fold(events(tmp_path / "studies", "tiny"))
    assert {trial.status for trial in record.trials.values()} <= {"planned", "running"}
