"""What in a module's source could run code that a file holds."""

import ast
from collections.abc import Iterable, Iterator, Mapping

NEVER = {
    *(f"pickle.{name}" for name in ("load", "loads", "Unpickler")),
    *(f"yaml.{name}" for name in ("unsafe_load", "full_load", "unsafe_load_all", "full_load_all")),
    *(f"torch.{name}" for name in ("jit.load", "export.load", "package.PackageImporter")),
    *("marshal.load", "marshal.loads", "pandas.read_pickle", "eval", "exec"),
    *("shutil.unpack_archive", "numpy.lib.format.read_array"),
}
"""Not even mentioned: who hands one of these on calls it elsewhere."""
NEVER_IMPORTED = {"cloudpickle", "dill", "joblib", "shelve", "jsonpickle", "ray.cloudpickle"}
ONLY_WITH: Mapping[str, tuple[str, object]] = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader"}
YAML_READERS = {f"yaml.{name}" for name in ("load", "load_all", "compose", "compose_all", "parse")}
LOOKED_AT = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.Call, ast.Name, ast.Attribute)
UNPACKERS = ("extract", "extractall")


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What breaks the rules, most with its line."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, LOOKED_AT)]
    known = _imported(nodes)
    yield from (f"imports {name}" for name in known.values() if _banned(name))
    fine = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    safe = SAFE_LOADERS | _own_loaders(nodes, known)
    for node in nodes:
        name = _dotted(node, known)
        if name in NEVER or (id(node) not in fine and name in ONLY_WITH):
            yield f"{getattr(node, 'lineno', 0)}: {name}"
        if isinstance(node, ast.Call) and (told := _wrong_call(node, known, safe)):
            yield f"{node.lineno}: {told}"


def _wrong_call(call: ast.Call, known: Mapping[str, str], safe: set[str]) -> str:
    name = _dotted(call.func, known)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ONLY_WITH:
        option, wanted = ONLY_WITH[name]
        value = given.get(option)
        if not (isinstance(value, ast.Constant) and value.value is wanted):
            return f"{name} without {option}={wanted}"
    if name in YAML_READERS:
        loader = given.get("Loader")
        names = {_dotted(part, known) for part in ast.walk(loader)} if loader is not None else set()
        if not names & safe or any("Unsafe" in one or "Full" in one for one in names):
            return f"{name} without a safe Loader"
    if isinstance(call.func, ast.Attribute) and call.func.attr in UNPACKERS:
        return f"{call.func.attr}() puts members where their names say"
    return ""


def _imported(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """What a module calls its imports -> their dotted names."""
    known: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                known[f"import {alias.name}"] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return known


def _banned(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in NEVER_IMPORTED)


def _own_loaders(nodes: Iterable[ast.AST], known: Mapping[str, str]) -> set[str]:
    """Classes of this module that are safe loaders with something added."""
    return {
        node.name
        for node in nodes
        if isinstance(node, ast.ClassDef)
        and any(_dotted(base, known) in SAFE_LOADERS for base in node.bases)
    }


def _dotted(node: ast.AST, known: Mapping[str, str]) -> str:
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        above = _dotted(node.value, known)
        return f"{above}.{node.attr}" if above else ""
    return ""
