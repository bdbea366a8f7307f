"""`export STUDY`: fuse a trial, prove the merge, and write the plain model to a folder."""

import argparse
import json
from pathlib import Path

from m2pt.rivals.config import why_no_export
from orchestrator.commands.options import Located, add_study, study_of
from orchestrator.commands.report import write
from orchestrator.errors import RequestError
from orchestrator.storage.checkpoints import TrialCheckpoints
from orchestrator.study.arms import rival_in
from orchestrator.study.settlement import to_export
from orchestrator.study.view import ENDED_WELL
from orchestrator.tracking.record import StudyRecord, TrialRecord, fold
from orchestrator.tracking.segments import JournalReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --trial, --to."""
    add_study(parser)
    parser.add_argument("--trial", help="trial id [the best seed of the best arm]")
    parser.add_argument("--to", metavar="FOLDER", required=True, help="where the model goes")


def run(parsed: argparse.Namespace) -> int:
    """Write the model and say what was proved."""
    found = study_of(parsed)
    found.experiment()
    view = JournalReader(found.store, found.name).view()
    trial = _trial(fold(view.events), found, parsed.trial)
    from orchestrator.promotion.stored import export_stored  # torch, only once it is needed

    export = export_stored(TrialCheckpoints(found.store, found.name, trial.trial, view.accepted))
    write(Path(parsed.to), export.files())
    about = {"trial": trial.trial, "label": trial.label, "to": parsed.to}
    if parsed.json:
        print(json.dumps(about | {"proof": export.about["proof"]}))
        return 0
    probe = export.proof.probe
    print(f"trial {trial.trial} ({trial.label}) is fused and lies in {parsed.to}")
    print(
        f"proved: {export.proof.parameters_exported:,} parameters, as the plain model "
        f"({export.proof.parameters_trained:,} were trained); strict load; logits of "
        f"{probe.samples} samples differ by {probe.relative_difference:.1e} of their size"
    )
    print(f"load it: python {Path(parsed.to) / 'load_model.py'}")
    return 0


def _trial(record: StudyRecord, found: Located, asked: str | None) -> TrialRecord:
    done = {t.trial: t for t in record.trials.values() if t.status in ENDED_WELL}
    if asked is not None:
        if asked not in done:
            known = ", ".join(done) or "none has ended yet"
            raise RequestError(f"--trial {asked}: no such trial has ended; there are: {known}")
        if why := why_no_export(rival_in(found.experiment(), done[asked].values)):
            raise RequestError(f"--trial {asked}: {why}")
        return done[asked]
    chosen = to_export(record, found.experiment())
    if chosen is None:
        raise RequestError(f"no trial of {found.name!r} that can be exported has ended yet")
    return done[chosen]
