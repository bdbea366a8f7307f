"""Every command and snippet in README and docs is run here, or by the test that is named here."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import VERBS, _parser
from orchestrator.config.io import load_experiment, parse_experiment

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")

# What is too heavy for this file, and who runs it.
RUN_ELSEWHERE = {
    "make quickstart": "tests/ray/test_quickstart.py",
    "make test": ".ci/run",
    "make fast": "Makefile",
    "search": "tests/ray/test_search.py",
    "status": "tests/ray/test_search.py",
    "stop": "tests/ray/test_search.py",
    "resume": "tests/ray/test_search.py",
    "report": "tests/ray/test_search.py",
    "export": "tests/ray/test_search.py",
    "ui": "tests/contract/test_ui.py",
}


def blocks(language: str) -> list[tuple[str, str]]:
    """All code blocks of a language: (page, text)."""
    return [
        (page.relative_to(ROOT).as_posix(), text)
        for page in PAGES
        for found, text in BLOCK.findall(page.read_text())
        if found == language
    ]


def commands() -> list[str]:
    """Every line of every shell block, without its comment."""
    lines = [line for _, text in blocks("sh") for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= {"sh", "python", "yaml", "text", "json"}


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_runs_as_it_stands(page: str, code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"


@pytest.mark.parametrize(("page", "text"), [b for b in blocks("yaml") if "name:" in b[1]])
def test_whole_experiments_are_valid(page: str, text: str) -> None:
    parse_experiment(text, page)


@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert command in RUN_ELSEWHERE
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[:3] == ["python", "-m", "orchestrator.config.reference"]:
        return  # tests/unit/test_experiment.py compares what it prints with the page
    assert words[0] == "orchestrator", f"a command that nobody tests: {command}"
    parsed: argparse.Namespace = _parser(words[1:]).parse_args(words[1:])
    assert parsed.verb in VERBS
    if parsed.verb in ("plan", "search", "train"):
        load_experiment(ROOT / parsed.file, parsed.overrides)
    if parsed.verb != "plan":
        assert parsed.verb in RUN_ELSEWHERE


def test_what_is_run_elsewhere_is_there() -> None:
    for command, place in RUN_ELSEWHERE.items():
        text = (ROOT / place).read_text()
        assert command.removeprefix("make ").split()[0] in text, f"{place} does not run {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_plan_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    from orchestrator.cli import main

    assert main(["plan", str(ROOT / "search_spaces/quickstart.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "24" in shown
    assert "control" in shown
