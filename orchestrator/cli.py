"""The command line: one table of verbs, each in a file of its own under `commands/`.

Nothing heavy is imported before a verb is known, so that `--help` answers at once.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from orchestrator.errors import OrchestratorError

VERBS = {
    "quickstart": "run the example study on this machine, end to end",
    "plan": "show what a search would do; write nothing",
    "search": "run the study of an experiment file, or go on with it",
    "train": "train the experiment file's own configuration: a study of one trial",
    "status": "how far a study is",
    "stop": "ask a running study to drain; it can be resumed",
    "resume": "go on with a study from what lies under its storage prefix",
    "report": "leaderboard, verdict and report of a study, finished or not",
    "export": "fuse a trial, prove the merge, and write the plain model to a folder",
    "ui": "open MLflow's comparison pages on a study's tracking store",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code of the design's table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(given)
    parsed = parser.parse_args(given)
    module = importlib.import_module(f"orchestrator.commands.{parsed.verb}")
    try:
        code: int = module.run(parsed)
    except OrchestratorError as error:
        _complain(error, as_json=parsed.json)
        return error.exit_code
    except BrokenPipeError:
        return 0
    return code


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """All verbs by name, but only the arguments of the one that is asked for."""
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="Search, train, compare and merge Multimodal Pathway Transformers.",
        epilog="exit codes: 0 done · 2 wrong request · 3 storage · 4 tracking · 5 cluster · "
        "6 no trial succeeded · 7 budget spent · 130 stopped",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    asked = next((word for word in given if word in VERBS), None)
    for verb, text in VERBS.items():
        one = verbs.add_parser(verb, help=text, description=text.capitalize() + ".")
        one.add_argument("--json", action="store_true", help="one JSON object on stdout")
        if verb == asked:
            importlib.import_module(f"orchestrator.commands.{verb}").add_arguments(one)
    return parser


def _complain(error: OrchestratorError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
    print(f"orchestrator: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
