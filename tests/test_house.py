"""The arrows of the house: who may import whom, and how large files are. CONTRIBUTING.md draws the picture."""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("smec_core", "tune_spaces", "pipelines")

CORE = ("data", "clicks", "distributed", "model", "evaluation", "training", "research")
"""Folders of smec_core, the lowest first: each imports those before it, and the modules beside the folders."""
SHARED = ("storage", "runtime", "tracking", "data")
"""Folders of pipelines that all jobs import, the lowest first."""
FACES = {"train": {"tune", "retrain", "experiment"}, "compress": {"retrain"}}
"""Jobs that other jobs use, through their package face only."""
MOST_LINES, FEW_LINES, MOST_SMALL_FILES = 350, 40, 9


def _modules() -> dict[str, Path]:
    files = chain.from_iterable((REPOSITORY / package).rglob("*.py") for package in PACKAGES)
    return {_name(path): path for path in files}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = _modules()


def _imports(name: str) -> Iterator[str]:
    """Modules that a module imports, also within functions and for types only."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


IMPORTS = {name: set(_imports(name)) for name in MODULES}
INSIDE = {name: {found for found in imported if found in MODULES} for name, imported in IMPORTS.items()}


def _place(name: str) -> tuple[str, str]:
    """Package and folder of a module; no folder for those beside the folders."""
    package, *inner = name.split(".")
    has_folder = bool(inner) and (REPOSITORY / package / inner[0]).is_dir()
    return package, inner[0] if has_folder else ""


def _is_allowed(name: str, imported: str) -> bool:
    (package, folder), (other, room) = _place(name), _place(imported)
    if package != other:
        return PACKAGES.index(package) > PACKAGES.index(other)
    if folder == room or not room or package == "tune_spaces":
        return True
    if package == "smec_core":
        return not folder or CORE.index(room) < CORE.index(folder)
    if folder in SHARED:
        return room in SHARED and SHARED.index(room) < SHARED.index(folder)
    if folder == "submit" and room == "cli":
        # it reads a command as the command line does
        return True
    return room in SHARED or (imported == f"pipelines.{room}" and folder in FACES.get(room, ()))


def test_imports_follow_the_arrows() -> None:
    wrong = [f"{name} imports {to}" for name in MODULES for to in sorted(INSIDE[name]) if not _is_allowed(name, to)]
    assert not wrong, "\n".join(wrong)


def test_the_core_knows_neither_ray_nor_mlflow() -> None:
    wrong = [
        f"{name} imports {to}"
        for name in MODULES
        for to in IMPORTS[name]
        if name.startswith("smec_core") and to.partition(".")[0] in ("ray", "mlflow")
    ]
    assert not wrong


@pytest.mark.parametrize("of", ["modules", "folders"])
def test_there_is_no_circle(of: str) -> None:
    def node(name: str) -> str:
        return name if of == "modules" or not _place(name)[1] else ".".join(_place(name))

    arrows: dict[str, set[str]] = {}
    for name in MODULES:
        # what a package's face takes from its own modules is no circle
        if not (MODULES[name].name == "__init__.py" and (of == "modules" or name in PACKAGES)):
            arrows.setdefault(node(name), set()).update({node(to) for to in INSIDE[name]} - {node(name)})
    while leaves := [name for name in arrows if not arrows[name] & arrows.keys()]:
        for leaf in leaves:
            del arrows[leaf]
    circle = {name: sorted(arrows[name] & arrows.keys()) for name in arrows}
    assert not circle, f"these import each other: {circle}"


def test_files_are_neither_long_nor_many_and_small() -> None:
    lines = {path: path.read_text().count("\n") for path in MODULES.values() if path.name != "__init__.py"}
    long = [str(path.relative_to(REPOSITORY)) for path, count in lines.items() if count > MOST_LINES]
    small = [str(path.relative_to(REPOSITORY)) for path, count in lines.items() if count < FEW_LINES]
    assert not long, f"above {MOST_LINES} lines: {long}"
    assert len(small) <= MOST_SMALL_FILES, f"below {FEW_LINES} lines: {small}; merge some"


def test_temporary_folders_have_one_maker() -> None:
    # files without a name go by themselves
    named = re.compile(r"\b(mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile|from tempfile)\b")
    wrong = [name for name, path in MODULES.items() if named.search(path.read_text())]
    assert not wrong, f"smec_core.temporary makes those that a kill does not leave behind; not so: {wrong}"
