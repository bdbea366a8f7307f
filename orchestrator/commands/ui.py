"""`ui STUDY`: MLflow's comparison pages on a study's tracking store."""

import argparse

from orchestrator.commands.options import add_study, study_of
from orchestrator.conduct.places import tracking_uri
from orchestrator.tracking.server import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --port."""
    add_study(parser)
    parser.add_argument("--port", type=int, default=5000, help="port on loopback [5000]")


def run(parsed: argparse.Namespace) -> int:
    """Serve until interrupted; for a server that already runs, say its address."""
    found = study_of(parsed)
    experiment = found.experiment().model_copy(update={"storage": found.store.uri})
    uri = tracking_uri(experiment)
    if uri.startswith(("http://", "https://")):
        print(uri)
        return 0
    print(f"MLflow on {uri}\nopen http://127.0.0.1:{parsed.port} (Ctrl-C ends it)", flush=True)
    return serve(uri, parsed.port)
