"""`python -m orchestrator`, and the command `orchestrator`."""

import sys

from orchestrator import startup


def run() -> int:
    """The command line; returns the exit code."""
    return startup.run(_main)


def _main() -> int:
    from orchestrator.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
