"""`logs STUDY`: what the study's drivers said, from under its storage prefix."""

import argparse
import json
import time
from collections.abc import Iterator

from orchestrator.commands.options import Located, add_study, study_of
from orchestrator.conduct.log import LogReader
from orchestrator.storage.lease import read_owner

FOLLOW_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --follow."""
    add_study(parser)
    parser.add_argument(
        "--follow", action="store_true", help="go on printing while the study has an owner"
    )


def run(parsed: argparse.Namespace) -> int:
    """Print them."""
    found = study_of(parsed)
    found.experiment()  # says so where there is no such study
    pieces = _pieces(found, follow=parsed.follow)
    if parsed.json:
        print(json.dumps({"study": found.name, "log": "".join(pieces).splitlines()}))
        return 0
    for text in pieces:
        print(text, end="", flush=True)
    return 0


def _pieces(found: Located, *, follow: bool) -> Iterator[str]:
    """The log; with `follow` also what is written while the study has an owner."""
    reader = LogReader(found.store, found.name)
    while True:
        last = not (follow and _owned(found))  # asked for before reading: nothing is missed
        yield from reader.new()
        if last:
            return
        time.sleep(FOLLOW_SECONDS)


def _owned(found: Located) -> bool:
    owner = read_owner(found.store, found.name)
    return owner is not None and not owner.gone
