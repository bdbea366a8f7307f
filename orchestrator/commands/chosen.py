"""What `export` and `promote` share: which trial is meant, its model, what speaks for it."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2pt.rivals.config import why_no_export
from orchestrator.commands.options import Located, add_study, study_of
from orchestrator.config.experiment import Experiment
from orchestrator.errors import RequestError
from orchestrator.evidence.standing import lineage, standing
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.study.arms import rival_in
from orchestrator.study.settlement import to_export
from orchestrator.study.view import ENDED_WELL
from orchestrator.tracking.record import StudyRecord, TrialRecord, fold
from orchestrator.tracking.segments import JournalReader

if TYPE_CHECKING:  # torch, only once it is needed
    from orchestrator.promotion.export import Export


@dataclass(frozen=True)
class Chosen:
    """A trial that has ended, in its study."""

    found: Located
    experiment: Experiment
    record: StudyRecord
    trial: TrialRecord
    accepted: Accepted

    def export(self) -> "Export":
        """Its fused model, through the gate, with evidence. Raises `PromotionError`."""
        from orchestrator.promotion.stored import export_stored

        at = TrialCheckpoints(self.found.store, self.found.name, self.trial.trial, self.accepted)
        made = export_stored(at)
        return made.with_evidence(
            standing(self.record, self.experiment, self.trial.trial),
            lineage(self.record, self.experiment, made.about["auxiliaries"]),
        )


def add_trial(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --trial."""
    add_study(parser)
    parser.add_argument("--trial", help="trial id [the best seed of the best arm]")


def chosen(parsed: argparse.Namespace) -> Chosen:
    """The trial that the arguments mean. Raises `RequestError`."""
    found = study_of(parsed)
    experiment = found.experiment().model_copy(update={"storage": found.store.uri})
    view = JournalReader(found.store, found.name).view()
    record = fold(view.events)
    trial = _trial(record, experiment, parsed.trial)
    return Chosen(found, experiment, record, trial, view.accepted)


def _trial(record: StudyRecord, experiment: Experiment, asked: str | None) -> TrialRecord:
    done = {t.trial: t for t in record.trials.values() if t.status in ENDED_WELL}
    if asked is not None:
        if asked not in done:
            known = ", ".join(done) or "none has ended yet"
            raise RequestError(f"--trial {asked}: no such trial has ended; there are: {known}")
        if why := why_no_export(rival_in(experiment, done[asked].values)):
            raise RequestError(f"--trial {asked}: {why}")
        return done[asked]
    best = to_export(record, experiment)
    if best is None:
        raise RequestError(f"no trial of {experiment.name!r} that can be exported has ended yet")
    return done[best]
