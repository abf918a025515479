"""Imports between the rooms of the package point one way, as CONTRIBUTING.md says."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import extras
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "innerloop"


def order():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    line = text.split("Imports point one way:")[1].split(".")[0]
    return [room.strip() for room in line.split("←")]


def imported(path):
    """The rooms that a file imports from, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == PACKAGE.name and rest:
                yield rest[0]


@pytest.mark.parametrize("room", order())
def test_a_room_imports_from_those_before_it(room):
    files = sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    allowed = {*order()[: order().index(room)], room}
    later = set(order()) - allowed
    wrong = {str(f.relative_to(ROOT)): found for f in files if (found := later & {*imported(f)})}
    assert not wrong


def test_every_room_has_its_place():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    rooms |= {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert rooms == set(order())


def test_figures_know_nothing_of_the_rest():
    files = (PACKAGE / "lab" / "plots").glob("*.py")
    names = {name for file in files for name in extras.imported(file) if "innerloop" in name}
    known = ("innerloop.lab.plots", "innerloop.errors", "innerloop.storage.files")
    assert all(name.startswith(known) for name in names)


def top_level(path):
    """The packages that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def test_the_core_imports_its_seven_packages():
    """What an extra installs, it imports by `optional_package`; a plan is drawn where rich is."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed = {re.match(r"\w+", each)[0] for each in requirements} | {"innerloop"}
    assert len(allowed) == 8
    files = [f for f in PACKAGE.rglob("*.py") if f.relative_to(PACKAGE).parts[0] != "lab"]
    found = {(f.name, name) for f in files for name in top_level(f)}
    other = {each for each in found if each[1] not in allowed | sys.stdlib_module_names}
    assert other <= {("table.py", "rich")}
