"""The house: rooms, import rules and size budgets, read from the source itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("m2pt", "orchestrator", "search_spaces", "cluster")
TOP_LEVEL = {"m2pt", "orchestrator", "search_spaces", "cluster", "tests", "benchmarks", "docs"}

# Which of our packages a room may import. A room not listed may import nothing of ours.
MAY_IMPORT = {
    "m2pt": {"m2pt"},
    "search_spaces": {"search_spaces"},
    "cluster": {"cluster"},
    "orchestrator": {"m2pt", "orchestrator", "search_spaces", "cluster"},
}

# One library, one door: the only places that may import it.
DOORS = {
    "ray": ("orchestrator/ray_backend/",),
    "mlflow": ("orchestrator/tracking/",),
    "boto3": ("orchestrator/storage/",),
    "pyarrow": ("orchestrator/storage/", "m2pt/data/"),
    "optuna": ("orchestrator/study/",),
    "pydantic": ("orchestrator/config/", "search_spaces/"),
    "matplotlib": ("orchestrator/evidence/",),
    "scipy": ("orchestrator/evidence/", "orchestrator/importing/"),
    "av": ("orchestrator/importing/",),
    "soundfile": ("orchestrator/importing/",),
    "trimesh": ("orchestrator/importing/",),
    "jinja2": ("orchestrator/evidence/",),
    "timm": ("m2pt/",),
    "huggingface_hub": ("m2pt/weights/",),
    "sklearn": ("m2pt/data/",),
    "peft": ("m2pt/rivals/",),
    "torch": ("m2pt/", "orchestrator/ray_backend/", "orchestrator/promotion/"),
}

# Between rooms of the trunk: what a room must not know, from values to the edges.
MUST_NOT_KNOW = {
    "orchestrator/study": ("ray_backend", "conduct", "commands", "storage", "tracking"),
    "orchestrator/storage": ("ray_backend", "conduct", "commands", "study", "evidence"),
    "orchestrator/tracking": ("ray_backend", "conduct", "commands", "evidence", "promotion"),
    "orchestrator/evidence": ("ray_backend", "conduct", "commands", "storage"),
    "orchestrator/promotion": ("ray_backend", "conduct", "commands", "tracking"),
    "orchestrator/config": ("ray_backend", "conduct", "commands", "storage", "tracking", "study"),
    "orchestrator/ray_backend": ("conduct", "commands", "evidence"),
    "orchestrator/conduct": ("commands",),
    "orchestrator/importing": ("ray_backend", "conduct", "commands", "study", "tracking"),
}

MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 4
FORBIDDEN_NAMES = ("utils", "util", "helper", "helpers", "manager", "handler", "engine", "common")


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the product by its path from the root."""
    found = (p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text()) for p in sorted(found)}


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """All of a module, at any depth."""
    return list(ast.walk(tree))


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports, at any depth, as dotted names."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_top_level_holds_the_agreed_folders_only() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {name.split("/")[0] for name in tracked if "/" in name}
    assert folders - {".ci", ".github"} <= TOP_LEVEL


@pytest.mark.slow
def test_leaves_import_no_trunk() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in sources().items()
        for name in imports(tree)
        if name.split(".")[0] in PACKAGES
        and name.split(".")[0] not in MAY_IMPORT[path.split("/")[0]]
    ]
    assert not wrong


def test_each_library_has_one_door() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in sources().items()
        for name in imports(tree)
        if (doors := DOORS.get(name.split(".")[0])) and not path.startswith(doors)
    ]
    assert not wrong


def test_rooms_of_the_trunk_keep_their_distance() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in sources().items()
        for room, strangers in MUST_NOT_KNOW.items()
        if path.startswith(f"{room}/")
        for name in imports(tree)
        for stranger in strangers
        if name.startswith(f"orchestrator.{stranger}")
    ]
    assert not wrong


def test_the_environment_is_touched_in_one_file() -> None:
    wrong = [
        path
        for path, tree in sources().items()
        if path != "orchestrator/environment.py"
        for node in nodes(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
    ]
    assert not wrong


def test_sub_packages_form_no_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for path, tree in sources().items():
        here = ".".join(path.split("/")[:2]).removesuffix(".py")
        for name in imports(tree):
            there = ".".join(name.split(".")[:2])
            if there.split(".")[0] in PACKAGES and there != here and "." in there:
                edges.setdefault(here, set()).add(there)
    done: set[str] = set()

    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, " -> ".join((*above, room))
        if room not in done:
            for other in sorted(edges.get(room, ())):
                visit(other, (*above, room))
            done.add(room)

    for room in sorted(edges):
        visit(room, ())


def test_files_and_functions_stay_small() -> None:
    wrong = []
    for path, tree in sources().items():
        lines = len((ROOT / path).read_text().splitlines())
        if lines > MAX_LINES:
            wrong.append(f"{path}: {lines} lines")
        for node in nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                own = [name for name in arguments if name not in ("self", "cls")]
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno} {node.name}: {length} lines")
                if len(own) > MAX_POSITIONAL and node.name != "__init__":
                    wrong.append(f"{path}:{node.lineno} {node.name}: {len(own)} parameters")
    assert not wrong


def test_nothing_is_named_for_what_it_is_not() -> None:
    wrong = [
        path for path in sources() if Path(path).stem in FORBIDDEN_NAMES or "global " in path
    ] + [
        f"{path}: global"
        for path, tree in sources().items()
        for node in nodes(tree)
        if isinstance(node, ast.Global)
    ]
    assert not wrong


def loaded_after(statement: str) -> set[str]:
    """The top-level packages in a fresh interpreter after `statement`."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.slow
def test_m2pt_pulls_in_nothing_of_the_trunk() -> None:
    statement = "import m2pt; m2pt.attach_pathway; m2pt.Training; m2pt.build_model; m2pt.load_data"
    assert not loaded_after(statement) & {"ray", "mlflow", "boto3", "pydantic"}


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["plan", "--help"]])
def test_help_pulls_in_no_torch_and_no_ray(arguments: list[str]) -> None:
    statement = f"""
import contextlib, orchestrator.cli
with contextlib.suppress(SystemExit): orchestrator.cli.main({arguments!r})
"""
    code = f"import sys\n{statement}\nprint(' ', *{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split("\n")[-2].split()) & {"torch", "ray", "mlflow"}
