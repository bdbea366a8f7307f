"""`report STUDY`: figures and report of a study, finished or under way, from the journal alone."""

import argparse
from pathlib import Path

from orchestrator.commands.options import add_study, study_of
from orchestrator.commands.outcome import show
from orchestrator.conduct.study import Conclusion
from orchestrator.conduct.timing import timing
from orchestrator.errors import RequestError
from orchestrator.evidence.report import render
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --to."""
    add_study(parser)
    parser.add_argument("--to", metavar="FOLDER", help="also write report.html and its data there")


def run(parsed: argparse.Namespace) -> int:
    """Print the figures as the study would at its end."""
    found = study_of(parsed)
    experiment = found.experiment().model_copy(update={"storage": found.store.uri})
    events = read_events(found.store, found.name)
    record = fold(events)
    if parsed.to is not None:
        write(Path(parsed.to), render(record, experiment))
    show(Conclusion(experiment, record, events, timing(events), False), as_json=parsed.json)
    return 0


def write(folder: Path, files: "dict[str, bytes]") -> None:
    """Put files into a folder, which is made. Raises `RequestError` where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise RequestError(f"--to {folder}: {error.strerror}; name a folder to write to") from None
