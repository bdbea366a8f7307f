"""What a study did besides its figures: trials, time, failures, exports, limits. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.config.experiment import Experiment
from orchestrator.evidence.findings import Findings
from orchestrator.evidence.wording import count
from orchestrator.tracking.record import StudyRecord


def trial_counts(record: StudyRecord) -> dict[str, dict[str, int]]:
    """How many trials there are by status and by stage."""
    trials = record.trials.values()
    return {
        "by_status": dict(Counter(trial.status for trial in trials)),
        "by_stage": dict(Counter(trial.stage for trial in trials)),
    }


def time_spent(record: StudyRecord) -> dict[str, float | None]:
    """Seconds: wall clock of the study, summed training and evaluation, making of auxiliaries."""
    entries = [entry for trial in record.trials.values() for entry in trial.epochs]
    last = max((entry.time for entry in entries), default=None)
    end = record.ended if record.ended is not None else last
    wall = end - record.started if end is not None and record.started is not None else None
    return {
        "wall": wall,
        "training": sum(_trained(entry.seconds) for entry in entries),
        "auxiliaries": sum(made.seconds for made in record.auxiliaries.values()),
    }


def failures(record: StudyRecord) -> list[dict[str, Any]]:
    """Every trial that failed for good, with its error."""
    return [
        {
            "trial": trial.trial,
            "label": trial.label,
            "stage": trial.stage,
            "seed": trial.seed,
            "attempts": trial.attempts,
            "error": trial.error or "no error was recorded",
        }
        for trial in record.trials.values()
        if trial.status == "failed"
    ]


def losses(record: StudyRecord) -> list[str]:
    """Every loss of a gang that the study went on after, and events made up for."""
    found = [
        f"{gang.gang} was lost at attempt {attempt} ({why}) and opened again"
        if gang.open or gang.attempt > attempt
        else f"{gang.gang} was lost at attempt {attempt} ({why})"
        for gang in record.gangs.values()
        for attempt, why in gang.lost
    ]
    if record.rebuilt:
        found.append(f"{count(record.rebuilt, 'lost event')} rebuilt from checkpoints")
    if record.takeovers > 1:
        found.append(f"resumed {count(record.takeovers - 1, 'time')}")
    return found


def exports(record: StudyRecord) -> list[dict[str, Any]]:
    """Every exported trial with its proof, and whether all that it should show is there."""
    return [
        {
            "trial": trial.trial,
            "label": trial.label,
            "seed": trial.seed,
            "key": trial.exported,
            "holds": _holds(trial.proof or {}),
            "proof": trial.proof or {},
        }
        for trial in record.trials.values()
        if trial.exported is not None
    ]


def limits(record: StudyRecord, experiment: Experiment, found: Findings) -> list[str]:
    """What this evidence cannot show, as far as it can be told from the study itself."""
    said = []
    comparison = found.test or found.validation
    pairs = comparison.to_baseline if comparison else None
    if pairs is not None:
        said.append(
            f"Intervals are Student's t over {count(pairs.n, 'matched seed')}: they take the "
            "differences for normally distributed, which so few cannot show. The exact sign test "
            f"needs no such assumption, and over {count(pairs.n, 'pair')} it cannot fall below "
            f"p = {pairs.smallest_sign_p:.2g}."
        )
    said.append(
        "Seeds vary the draw of weights and the order of batches. They do not vary the split of "
        "the data, the data set or the size of the model: nothing is said about others."
    )
    if found.best is not None and experiment.seed in found.best.row.seeds:
        said.append(
            f"The best arm was picked by its validation figure at seed {experiment.seed}, which "
            "is also one of the seeds compared: that seed flatters it a little, on test too."
        )
    tested = sum(bool(trial.tested) for trial in record.trials.values())
    if tested:
        said.append(
            f"The test split was read once, for {count(tested, 'trial')}. Whoever changes the "
            "experiment after seeing these figures and runs it again reads it a second time."
        )
    recipe = sorted(path for path in experiment.search.space if not path.startswith("pathway"))
    if recipe:
        said.append(
            f"{', '.join(recipe)} was searched together with the pathway, while the baseline ran "
            "with the file's values: part of a gain may be the better recipe. The control shares "
            "the arm's recipe and is the fairer comparison."
        )
    if any(arm.row.partial for arm in found.arms):
        said.append(
            "Arms that were stopped early are set beside the baseline at the same epoch, in the "
            "middle of its schedule; they might have ended otherwise."
        )
    if found.control is not None:
        said.append(
            "The control tells knowledge from added weights of the same norm. It does not tell "
            "one auxiliary's knowledge from another's, nor from longer training."
        )
    return said


def _holds(proof: Mapping[str, Any]) -> bool:
    """Whether a recorded proof shows everything that it should."""
    agreements = [found for found in (proof.get("probe"), proof.get("test")) if found]
    return (
        bool(agreements)
        and bool(proof.get("keys_equal"))
        and proof.get("parameters_exported") == proof.get("parameters_plain")
        and all(
            found["relative_difference"] <= proof.get("tolerance", 0)
            and found["disagreements"] == found["ties"]
            for found in agreements
        )
    )


def _trained(seconds: Mapping[str, float]) -> float:
    """What an epoch took; an upload goes on beside the next one."""
    return sum(value for part, value in seconds.items() if part != "upload")
