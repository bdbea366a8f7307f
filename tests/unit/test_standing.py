"""What a study says of one trial's arm, as it goes out with the model."""

import pytest

from orchestrator.evidence.findings import findings
from orchestrator.evidence.standing import in_a_line, lineage, standing
from tests.unit.evidence_setup import Planned, experiment, finished_study, half_done_study

BEST = Planned("confirm", "audio", 1).trial


def test_the_best_arm_has_its_baseline_its_spread_and_the_verdict() -> None:
    record, exp = finished_study(), experiment()
    said = standing(record, exp, BEST)
    found = findings(record, exp)
    assert said["seeds"] == [0, 1, 2]
    assert said["verdict"] == found.verdict.text
    assert said["claims"] == found.verdict.claims
    assert said["arms_tried"] == found.tried > 1
    validation, test = said["figures"]
    assert (validation["of"], test["of"]) == ("validation accuracy, %", "test accuracy, %")
    for row in (validation, test):
        assert row["level"].endswith("(3)")
        assert row["baseline"].endswith("(3)")
        assert " to " in row["difference"]
    line = in_a_line(said)
    assert line.startswith(f"validation accuracy, %: {validation['level']}, baseline ")
    assert line.endswith(f"{found.tried} arms tried; {found.verdict.text}")


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        (Planned("baseline", "none"), "This is the plain target"),
        (Planned("control", "random~audio"), "This is a control"),
        (Planned("search", "point", init=0.1), "speaks of another arm"),
    ],
)
def test_no_other_arm_borrows_the_verdict(trial: Planned, says: str) -> None:
    said = standing(finished_study(), experiment(), trial.trial)
    assert says in said["verdict"]
    assert said["claims"] is None
    assert said["figures"]


def test_a_study_that_was_stopped_says_what_it_has() -> None:
    said = standing(half_done_study(), experiment(), Planned("search", "audio").trial)
    (row,) = said["figures"]
    assert row["level"].endswith("(1)")
    assert "nothing is claimed" in said["verdict"]


def test_where_weights_come_from() -> None:
    record, exp = finished_study(), experiment()
    audio, random = lineage(record, exp, ["audio", "random"])
    assert audio["source"] == "pre-trained in the study, masked autoencoding of tones"
    assert random["source"].startswith("random control of audio; pre-trained in the study")
    assert audio["sha256"] == random["sha256"] == record.auxiliaries["audio"].sha256
