"""The order of layers that CONTRIBUTING.md states: no import points upward, no files import each other in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "ray_job").rglob("*.py"))
SECTION = (ROOT / "CONTRIBUTING.md").read_text().split("## Layers\n")[1].split("\n## ")[0]
# A line of the list names the rooms and top-level modules of one layer; the lowest stands first.
LAYERS = [re.findall(r"`(\w+)`", line) for line in re.findall(r"^\d+\. (.*)$", SECTION, re.MULTILINE)]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that a tree imports, wherever in it, for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in names if name in MODULES]
            yield from found
            if node.module in MODULES and len(found) < len(names):
                yield node.module


GRAPH = {name: set(imports_of(ast.parse(file.read_text()))) for name, file in MODULES.items()}


def layer(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_layer() -> None:
    rooms = {layer(name) for name in MODULES if "." in name} - {"__main__"}
    assert rooms == set(HEIGHT)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("ray_job", "ray_job.__main__")])
def test_no_import_points_upward(module: str) -> None:
    height = HEIGHT[layer(module)]
    upward = [name for name in GRAPH[module] if name != "ray_job" and HEIGHT[layer(name)] > height]
    across = [name for name in GRAPH[module] if HEIGHT.get(layer(name)) == height and layer(name) != layer(module)]
    assert upward == []
    assert across == [], "modules of one layer do not import each other unless they are one room"


def test_no_files_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(GRAPH[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_the_top_of_the_package_holds_the_path_and_its_nouns_alone() -> None:
    loose = {file.stem for file in (ROOT / "ray_job").glob("*.py")} - {"__init__", "__main__"}
    assert loose == {"cli", "job", "plan", "rows", "errors"}


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "__init__.py"], ids=module_of)
def test_init_files_hold_exports_only(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), f"{file} says what the room is for"
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.If)
    if file.parent.name == "ray_job":  # the public names are loaded when they are asked for
        assert {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} == {"__dir__", "__getattr__"}
        allowed = (*allowed, ast.FunctionDef, ast.Assign, ast.AnnAssign)
    exports = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    assert all(isinstance(node, allowed) for node in tree.body if node not in exports)


def test_the_engine_names_no_model() -> None:
    """Neither in code nor in prose: a folder of `models`, or what its files' classes are called."""
    models = [
        path.name for path in (ROOT / "ray_job" / "models").iterdir() if path.is_dir() and not path.name.startswith("_")
    ]
    assert "phi3_vision" in models
    words = {"phi3", "phi-3", *models}
    for file in (ROOT / "ray_job" / "engine").glob("*.py"):
        text = file.read_text(encoding="utf-8").lower()
        assert [word for word in words if word in text] == [], file.name
