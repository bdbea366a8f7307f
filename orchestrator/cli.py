"""The command line: one table of verbs, each in a file of its own under `commands/`.

Nothing heavy is imported before a verb is known, so that `--help` answers at once.
"""

import argparse
import importlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from orchestrator import environment
from orchestrator.config.names import nearest
from orchestrator.errors import OrchestratorError, RequestError
from orchestrator.startup import import_fast

VERBS = {
    "quickstart": "run the example study on this machine, end to end",
    "plan": "show what a search would do; write nothing",
    "search": "run the study of an experiment file, or go on with it",
    "submit": "hand a study to a Ray cluster as a job, and follow it",
    "train": "train the experiment file's own configuration: a study of one trial",
    "pretrain": "only pre-train the experiment file's auxiliaries; other studies can name them",
    "status": "how far a study is",
    "logs": "what a study's drivers said",
    "stop": "ask a running study to drain; it can be resumed",
    "resume": "go on with a study from what lies under its storage prefix",
    "report": "leaderboard, verdict and report of a study, finished or not",
    "export": "fuse a trial, prove the merge, and write the plain model to a folder",
    "promote": "prove a trial's merge again, and register the model in MLflow under an alias",
    "data": "turn folders of files into data sets, and show what a data set holds",
    "gc": "show, or delete, what no study needs any more under a storage",
    "doctor": "check Ray, storage, MLflow and an experiment file; name the remedy for each fault",
    "ui": "open MLflow's comparison pages on a study's tracking store",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code of the design's table, or 1 for a fault of ours."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    import_fast()
    try:
        parsed = _parser(given).parse_args(given)
        module = importlib.import_module(f"orchestrator.commands.{parsed.verb}")
        code: int = module.run(parsed)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return _complain("interrupted", 130, given)
    except OrchestratorError as error:
        if "--debug" in given:
            _print_traceback()
        return _complain(str(error), error.exit_code, given)
    except Exception as error:
        return _complain(_unexpected(error, given), OrchestratorError.exit_code, given)
    return code


class _Parser(argparse.ArgumentParser):
    """Refuses a wrong command line as everything else is refused: in one message."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what is wrong."""
        unknown = re.match(r"argument VERB: invalid choice: '(.*?)'", message)
        if unknown is not None:
            message = f"no such verb: {unknown[1]!r}{nearest(unknown[1], VERBS)}"
        raise RequestError(f"{message}; `{self.prog} --help` says what there is")


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """All verbs by name, but only the arguments of the one that is asked for."""
    parser = _Parser(
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
        one.add_argument("--debug", action="store_true", help="show where in the code an error is")
        if verb == asked:
            importlib.import_module(f"orchestrator.commands.{verb}").add_arguments(one)
    return parser


def _complain(text: str, exit_code: int, given: Sequence[str]) -> int:
    """Say what is wrong, once, and without a secret; returns the exit code."""
    shown = environment.redacted(text)
    if "--json" in given:
        print(json.dumps({"error": shown, "exit_code": exit_code}))
    print(f"orchestrator: {shown}", file=sys.stderr)
    return exit_code


def _print_traceback() -> None:
    print(environment.redacted(traceback.format_exc()), file=sys.stderr, end="")


def _unexpected(error: Exception, given: Sequence[str]) -> str:
    """What to say of a fault of ours; its traceback is shown with --debug, else kept in a file."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    line = f"unexpected error, this is a bug of the orchestrator: {what[:500]}"
    if "--debug" in given:
        _print_traceback()
        return f"{line}; please report it with the lines above"
    file = environment.state_folder() / "bugs" / f"{int(time.time())}-{os.getpid()}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(environment.redacted(traceback.format_exc()), encoding="utf-8")
    except OSError:
        return f"{line}; --debug shows where it is, please report it with that"
    return f"{line}; please report it with the file {file} (or see --debug)"


if __name__ == "__main__":
    sys.exit(main())
