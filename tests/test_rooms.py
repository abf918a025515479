"""Imports between the rooms of the package point one way, as CONTRIBUTING.md says."""

import ast
from pathlib import Path

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
    assert rooms - set(order()) == {"plots"}  # it draws numbers, and knows nothing of the rest
    assert {room for file in PACKAGE.glob("plots/*.py") for room in imported(file)} <= {
        "plots",
        "errors",
    }
