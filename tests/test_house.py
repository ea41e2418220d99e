"""The rules that keep the package a house: imports run downwards and the core stays pure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import biotune_optuna

PACKAGE = Path(biotune_optuna.__file__).parent
NAME = "biotune_optuna"

FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        (
            "_version errors jsonable names schema",
            "clock effort files recipe data storage",
            "genome models page",
            "evolution finetune overview",
            "sampler methods export",
            "study",
            "confirmation",
            "report compare estimator",
            "cli",
            "__main__ __init__",
        ),
        start=1,
    )
    for room in rooms.split()
}
"""Floor of every top-level module and folder; a new one must be given its floor here."""

PURE = ("recipe", "genome", "evolution")
HEAVY = {"optuna", "torch", "timm", "torchvision", "sklearn", "pandas", "plotly", "sqlalchemy"}


@dataclass(frozen=True)
class Import:
    """One imported module as written in a file."""

    target: str
    line: int
    where: str  # "module", "function" or "typing"


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


def _room(module: str) -> str:
    return module.partition(".")[0]


def _is_type_checking(node: ast.If) -> bool:
    return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _imports(path: Path) -> list[Import]:
    """Every import of a file, with where it stands."""
    found: list[Import] = []

    def visit(node: ast.AST, where: str) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            assert node.module is not None
            found.extend(
                Import(f"{node.module}.{alias.name}", node.lineno, where) for alias in node.names
            )
        for child in ast.iter_child_nodes(node):
            inner = where
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inner = "function" if where == "module" else where
            elif isinstance(node, ast.If) and _is_type_checking(node) and child in node.body:
                inner = "typing"
            visit(child, inner)

    visit(ast.parse(path.read_text()), "module")
    return found


def _own(target: str) -> str | None:
    """The package's module that an import names, or None for other libraries' modules."""
    if target != NAME and not target.startswith(f"{NAME}."):
        return None
    parts = target.split(".")[1:]
    while parts:
        path = PACKAGE.joinpath(*parts)
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return ".".join(parts)
        parts.pop()
    return "__init__"


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_imports_run_downwards(path: Path) -> None:
    module = _module(path)
    room = _room(module)
    assert room in FLOORS, f"give {room!r} a floor in FLOORS"
    for imported in _imports(path):
        target = _own(imported.target)
        if target is None or _room(target) == room:
            continue
        if target == "__init__":  # from the package itself: only names that live there
            assert imported.target == f"{NAME}.__version__", f"{path}:{imported.line}"
            continue
        assert FLOORS[_room(target)] < FLOORS[room], (
            f"{path}:{imported.line}: {module} (floor {FLOORS[room]}) imports "
            f"{target} (floor {FLOORS[_room(target)]})"
        )


def test_contributing_shows_the_floors() -> None:
    shown: dict[str, int] = {}
    for line in (PACKAGE.parent / "CONTRIBUTING.md").read_text().splitlines():
        if found := re.match(r" floor +(\d+) +(.*?)(?: {3,}|$)", line):
            rooms = found.group(2).replace(".py", "").replace("/", "").split()
            shown |= dict.fromkeys(rooms, int(found.group(1)))
    assert shown == {room: n for room, n in FLOORS.items() if room not in ("_version", "__init__")}


def test_contributing_names_files_that_exist() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    table = text.partition("| To change | Open |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.findall("`([^`]+)`", line.split(" | ")[1]) for line in table.splitlines()]
    assert len(rows) > 20
    for paths in rows:
        assert paths
        for path in paths:
            outside = path.startswith(("docs/", "studies/", "tests/"))
            root = PACKAGE.parent if outside else PACKAGE
            assert (root / path).exists(), f"CONTRIBUTING.md names {path}"


@pytest.mark.parametrize("path", [p for p in _files() if _room(_module(p)) in PURE], ids=_module)
def test_core_is_pure(path: Path) -> None:
    forbidden_places = {"module"}
    if _room(_module(path)) == "evolution":  # not even inside functions or for its type hints
        forbidden_places = {"module", "function", "typing"}
    for imported in _imports(path):
        if imported.where in forbidden_places:
            library = imported.target.partition(".")[0]
            assert library not in HEAVY, f"{path}:{imported.line} imports {library}"


def test_no_import_cycles() -> None:
    graph = {
        _module(path): {
            target
            for imported in _imports(path)
            if imported.where != "typing" and (target := _own(imported.target)) is not None
        }
        for path in _files()
        if _module(path) != "__init__"
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail, module))}"
        if module not in done:
            for target in sorted(graph.get(module, set()) - {module}):
                walk(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        walk(module, ())


@pytest.mark.parametrize(
    "statement",
    [
        "import biotune_optuna",
        "from biotune_optuna import Recipe, Genome, GenomeSpace, BioTuneError",
        "import biotune_optuna.cli",
    ],
)
def test_imports_stay_light(statement: str) -> None:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not loaded & HEAVY


def test_sampler_needs_optuna_only() -> None:
    code = "import sys; from biotune_optuna import BioTuneSampler; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"torch", "timm", "torchvision", "sklearn", "pandas", "plotly"}


def test_nothing_unpickles() -> None:
    """Files that others made are never unpickled."""
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            where = f"{path}:{node.lineno}"
            assert called not in {"pickle.load", "pickle.loads", "joblib.load"}, where
            if called == "torch.load":
                assert given.get("weights_only") == "True", where
            if called in {"np.load", "numpy.load"}:
                assert given.get("allow_pickle", "False") == "False", where
