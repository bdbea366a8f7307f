"""Every command and snippet in README and docs is run here, or by the test that is named here."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import errors
from orchestrator.cli import VERBS, _parser
from orchestrator.commands.plan import _sizes, _study
from orchestrator.conduct.rehearse import estimate
from orchestrator.config.io import load_experiment, parse_experiment
from orchestrator.config.reference import EXAMPLE
from orchestrator.evidence.tables import _headings
from orchestrator.evidence.wording import Measure
from orchestrator.storage import layout
from orchestrator.storage.layout import ManifestKey
from orchestrator.study.plan import make_plan
from tests.unit.foreign_commands import TOOLS, check_benchmark, check_foreign

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")

# What is too heavy for this file, and who runs it.
RUN_ELSEWHERE = {
    "make quickstart": "tests/ray/test_quickstart.py",
    "make test": ".ci/run",
    "make fast": "Makefile",
    "search": "tests/ray/kept_gang/test_search.py",
    "pretrain": "tests/ray/kept_gang/test_pretraining_killed.py",
    "status": "tests/ray/kept_gang/test_search.py",
    "stop": "tests/ray/kept_gang/test_search.py",
    "resume": "tests/ray/kept_gang/test_search.py",
    "report": "tests/ray/kept_gang/test_search.py",
    "export": "tests/ray/kept_gang/test_search.py",
    "promote": "tests/contract/test_promote.py",
    "submit": "tests/ray/test_jobs.py",
    "logs": "tests/ray/test_jobs.py",
    "doctor": "tests/ray/test_jobs.py",
    "gc": "tests/unit/test_gc.py",
    "ui": "tests/contract/test_ui.py",
    "data": "tests/unit/test_importing.py",
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
    assert kinds <= {"sh", "python", "yaml", "text"}


def check_keys(text: str) -> None:
    """Paths under a storage prefix are those of the one place that spells them."""
    name = "quickstart" if "quickstart" in text else "<name>"
    known = (
        layout.experiment(name),
        layout.plan(name),
        layout.journal(name),
        layout.leases(name),
        layout.checkpoint(name, ManifestKey("<id>", 1, 1)),
        layout.checkpoint(name, ManifestKey("pretrain-*", 1, 1)),
        layout.logs(name),
        layout.controls(name),
        layout.report(name, "report.html"),
        layout.export(name, "<trial>", "model.safetensors"),
        layout.blob("0" * 64),
        layout.pretrained("00"),
        "mlflow.db",
    )
    for line in text.splitlines():
        path = line.split("  ")[0].removeprefix("m2pt-studies/").rstrip("/")
        assert any(f"{key}/".startswith(f"{path}/") for key in known), line


def check_outcome(text: str) -> None:
    """What a study prints at its end has the columns and the lines of today's program."""
    above = " ".join(text.partition("────")[0].split())
    words = " ".join(_headings(Measure("val/accuracy"), wide=False))
    assert sorted(above.removeprefix("study quickstart").split()) == sorted(words.split())
    row = re.compile(r"(base|best|ctrl|\d+) +\S.*  +\d\d\.\d\d.*  +\d+(/\d+)?|      \S.*")
    table = text.rpartition("────\n")[2].partition("\n\n")[0].splitlines()
    assert all(row.fullmatch(line) for line in table)
    for said in ("verdict  ", "on test", "merge    ", "is fused into the plain model", "time     "):
        assert said in text


def check_plan(text: str) -> None:
    """What `plan` prints first: the lines of today's program, figures that were measured aside."""
    experiment = load_experiment("quickstart")
    known = [*_study(make_plan(experiment)), *_sizes(estimate(experiment, measured=False))]
    said = [(line[:10].strip(), line[10:].rstrip()) for line in text.splitlines()]
    for shown, today in zip(said, known, strict=False):
        memory = any(word in today[1] for word in ("activations", "each worker"))
        figures = re.compile(r"[\d.]+ [kM]B" if memory else "^$")
        assert [figures.sub("", part) for part in shown] == [
            figures.sub("", part).replace("estimated", "measured") for part in today
        ]
    names = [name for name, _ in said[len(known) :]]
    assert names == ["time", "", "", "", "", "foreseen", ""]


def check_drawing(text: str) -> None:
    """A drawing names rooms that exist."""
    rooms = ("config", "study", "conduct", "tracking", "evidence", "ray_backend")
    for room in rooms:
        assert room in text
        assert (ROOT / "orchestrator" / room).is_dir()


def check_overrides(text: str) -> None:
    """Each line of overrides is one that the example takes."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        parse_experiment(EXAMPLE, "example", words[1::2])


TEXTS: dict[tuple[str, str], Callable[[str], None]] = {
    ("README.md", "m2pt-studies/"): check_keys,
    ("README.md", "study quickstart"): check_outcome,
    ("README.md", "study     quickstart"): check_plan,
    ("docs/architecture.md", " experiment.yaml"): check_drawing,
    ("docs/experiments.md", "--set "): check_overrides,
    ("docs/operations.md", "studies/<name>"): check_keys,
}


@pytest.mark.parametrize(("page", "text"), blocks("text"))
def test_texts_say_what_is_so(page: str, text: str) -> None:
    (check,) = (c for (of, start), c in TEXTS.items() if of == page and text.startswith(start))
    check(text)


def test_the_readme_has_every_verb_and_every_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("| verb | does |")[2].partition("\n\n")[0]
    named = re.findall(
        r"`(\w+)[^`]*`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:])
    )
    assert named == list(VERBS)
    codes = {0, errors.Stopped.exit_code} | {
        kind.exit_code for kind in errors.OrchestratorError.__subclasses__()
    }
    told = readme.partition("Exit codes: ")[2].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"\b\d+\b", told)} == codes
    operations = (ROOT / "docs/operations.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", operations, re.MULTILINE)} == codes


def test_operations_names_the_environment_that_is_read() -> None:
    source = (ROOT / "orchestrator/environment.py").read_text()
    pattern = r'environ\.get\("(\w+)"|"(\w+)" not in os\.environ'
    read = {name for pair in re.findall(pattern, source) for name in pair if name}
    assert {"XDG_STATE_HOME", "XDG_CACHE_HOME", "RAY_AUTH_TOKEN"} <= read
    page = (ROOT / "docs/operations.md").read_text()
    assert all(f"`{name}`" in page for name in read)


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs/images/report.png").stat().st_size < 300 * 1024


@pytest.mark.slow
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
    if words[:3] == ["ray", "job", "submit"]:  # tests/ray/test_jobs.py runs one
        words = words[words.index("python") + 2 :]
    if words[0] in TOOLS:
        check_foreign(words)
        return
    if words[:2] == ["python", "-m"]:
        words[1:3] = [f"{words[2].replace('.', '/')}.py"]
    if words[0] == "python" and words[1].startswith(("benchmarks/", "tests/")):
        check_benchmark(words)
        return
    assert words[0] == "orchestrator", f"a command that nobody tests: {command}"
    parsed: argparse.Namespace = _parser(words[1:]).parse_args(words[1:])
    assert parsed.verb in VERBS
    if parsed.verb in ("plan", "search", "submit", "train"):
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

    assert main(["plan", str(ROOT / "search_spaces/quickstart.yaml"), "--no-measure"]) == 0
    shown = capsys.readouterr().out
    for said in ("24", "control", "202,058 parameters", "(estimated)"):
        assert said in shown
    assert "foreseen" not in shown
