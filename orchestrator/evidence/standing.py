"""What a study can say of one trial's arm, in words and figures that may stand alone. Pure.

A model that leaves the house takes this with it: its level, the baseline at the same seeds, the
difference and its spread, among how many arms it was chosen, and the verdict.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.config.experiment import Experiment
from orchestrator.evidence.findings import Arm, Findings, difference_on_test, findings
from orchestrator.evidence.statistics import spread
from orchestrator.evidence.tables import baseline_text, difference_text, level_text, rows
from orchestrator.evidence.wording import Measure, count
from orchestrator.tracking.record import AuxiliaryRecord, StudyRecord

_OF_BASELINE = "the plain target: what every arm of the study is compared with"
_OF_CONTROL = "a control: its auxiliary carries no knowledge"


def standing(record: StudyRecord, experiment: Experiment, trial: str) -> dict[str, Any]:
    """The evidence for the arm of `trial`, as JSON has it.

    Keys: arm, kind, seeds, figures (a list of split, level, baseline, difference, each in words),
    arms_tried, verdict (a sentence) and claims (of the study's best arm; None for another one).
    """
    found = findings(record, experiment)
    of = record.trials[trial].arm
    arms = [arm for arm in (found.baseline, *found.arms) if arm is not None]
    arm = next((one for one in arms if one.row.arm == of), None)
    best = arm is not None and arm.role == "arm"
    return {
        "arm": record.trials[trial].label,
        "kind": "plain" if arm is None else arm.row.kind,
        "seeds": [] if arm is None else list(arm.row.seeds),
        "figures": [] if arm is None else _figures(found, arm),
        "arms_tried": found.tried,
        "verdict": found.verdict.text if best else _other(arm),
        "claims": found.verdict.claims if best else None,
    }


def in_a_line(said: Mapping[str, Any]) -> str:
    """A standing in one line: figures, then the verdict."""
    told = [
        f"{row['of']}: {row['level']}"
        + (f", baseline {row['baseline']}" if row["baseline"] else "")
        + (f", difference {row['difference']}" if row["difference"] else "")
        for row in said["figures"]
    ]
    tried = (
        f"{count(said['arms_tried'], 'arm')} tried" if said["arms_tried"] else "no pathway tried"
    )
    return "; ".join([*told, tried, said["verdict"]])


def lineage(
    record: StudyRecord, experiment: Experiment, names: Iterable[str]
) -> list[dict[str, Any]]:
    """Where borrowed weights, and the target's, come from: name, source, sha256, and the rest of
    what is known of them (`provenance`); as JSON has it."""
    found = []
    for name in names:
        source = experiment.source_of(name)
        root, source_text = name, ""
        while source.control is not None and source.like is not None:
            source_text += f"{source.control} control of {source.like}; "
            root, source = source.like, experiment.source_of(source.like)
        made = record.auxiliaries.get(root)
        found.append({"name": name, "source": source_text + _source(source), **_known(made)})
    if experiment.target is not None:
        made = record.auxiliaries.get("target")
        found.append({"name": "target", "source": _source(experiment.target), **_known(made)})
    return found


def _source(source: Any) -> str:
    if source.pretrain is not None:
        return f"pre-trained in the study, masked autoencoding of {source.pretrain.data.source}"
    return str(source.weights)


def _known(made: AuxiliaryRecord | None) -> dict[str, Any]:
    if made is None:
        return {}
    said = getattr(made, "provenance", None)
    return {"sha256": made.sha256, **(said if isinstance(said, Mapping) else {})}


def _figures(found: Findings, arm: Arm) -> list[dict[str, str]]:
    row = next(one for one in rows(found) if one["arm"] == arm.row.arm)
    measure = found.measure
    told = [
        {
            "of": measure.title,
            "level": level_text(row, measure),
            "baseline": baseline_text(row, measure),
            "difference": difference_text(row, measure),
        }
    ]
    return [*told, _on_test(found, arm, measure.on_test())] if arm.tested else told


def _on_test(found: Findings, arm: Arm, measure: Measure) -> dict[str, str]:
    matched: list[float] = []
    if found.baseline is not None and arm.role != "baseline":
        matched = [value for seed, value in found.baseline.tested.items() if seed in arm.tested]
    pairs = difference_on_test(found, arm)
    row = {
        "difference": pairs and pairs.mean,
        "difference_low": pairs and pairs.low,
        "difference_high": pairs and pairs.high,
    }
    return {
        "of": measure.title,
        "level": _level(measure, arm.tested.values()),
        "baseline": _level(measure, matched) if matched else "",
        "difference": difference_text(row, measure),
    }


def _level(measure: Measure, values: Iterable[float]) -> str:
    one = spread(values)
    return measure.level_with_spread(one.mean, one.std, one.n)


def _other(arm: Arm | None) -> str:
    if arm is None:
        return "The study has no figure for this arm."
    if arm.role == "baseline":
        return f"This is {_OF_BASELINE}."
    if arm.borrows_nothing:
        return f"This is {_OF_CONTROL}."
    return "The study's verdict speaks of another arm: nothing is claimed of this one."
