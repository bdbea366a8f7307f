"""`ui STUDY`: MLflow's comparison pages on a study's tracking store."""

import argparse
import json

from orchestrator.commands.options import add_study, study_of
from orchestrator.conduct.places import tracking_uri
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import fold
from orchestrator.tracking.server import serve, study_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --port."""
    add_study(parser)
    parser.add_argument("--port", type=int, default=5000, help="port on loopback [5000]")


def run(parsed: argparse.Namespace) -> int:
    """Serve until interrupted; for a server that already runs, say the page's address."""
    found = study_of(parsed)
    experiment = found.experiment().model_copy(update={"storage": found.store.uri})
    uri = tracking_uri(experiment)
    runs_already = uri.startswith(("http://", "https://"))
    server = uri if runs_already else f"http://127.0.0.1:{parsed.port}"
    page = study_page(uri, server, found.name, fold(read_events(found.store, found.name)))
    if parsed.json:
        print(json.dumps({"tracking": uri, "page": page}), flush=True)
    elif runs_already:
        print(page)
    else:
        print(f"MLflow on {uri}; Ctrl-C ends it. The trials side by side:\n{page}", flush=True)
    return 0 if runs_already else serve(uri, parsed.port)
