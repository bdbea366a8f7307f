"""What MLflow should show of a study that has ended."""

from orchestrator.tracking.record import StudyRecord
from tests.contract.mlflow_setup import Target, assert_complete


def check_mlflow(uri: str, study: str, record: StudyRecord) -> None:
    """One run for the study and one under it for each trial, all ended, as the record says."""
    target = Target(uri, study)
    assert_complete(target, record)
    parent = target.runs[""]
    assert target.runs.keys() == {"", *record.trials}
    assert all(trial.over for trial in record.trials.values())
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["verdict"] == record.verdict
    files = [file.path for file in target.client.list_artifacts(parent.info.run_id)]
    assert files == ["experiment.yaml", "plan.json", "report"]
