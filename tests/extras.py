"""What each extra of pyproject.toml installs, and how a test does without it."""

import ast
import importlib.util
import re
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENTS = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
EXTRAS = (
    "data",
    "checkpoints",
    "lab",
    "ecosystem",
    "torch",
    "tensorboard",
    "wandb",
    "safetensors",
    "export",
)
IMPORTED_AS = {
    "dm-haiku": "haiku",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "torch": "torchax",  # stands for both: packages of the core look for torch among the modules
}
BRINGS = {"flax": {"rich"}}  # packages of other extras that these need themselves
OF_JAX = {"scipy"}  # the core has it too, because JAX needs it


def packages(extra: str) -> set[str]:
    """The modules of an extra, with those of the extras that it builds on."""
    found = {"innerloop.lab"} if extra == "lab" else set()
    for requirement in REQUIREMENTS[extra]:
        name, inner = re.match(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        if name == "innerloop":
            found = found.union(*map(packages, inner.split(",")))
        else:
            found |= {IMPORTED_AS.get(name, name)} | BRINGS.get(name, set())
    return found - OF_JAX


ALL = set().union(*map(packages, EXTRAS))
MISSING = {name for name in ALL - {"innerloop.lab"} if importlib.util.find_spec(name) is None}
"""Those that this environment does not have."""
if MISSING & packages("lab"):
    MISSING.add("innerloop.lab")


@contextmanager
def blocked(names):
    """These modules cannot be imported, as if they were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(names) - MISSING:  # some libraries look into sys.modules for packages
            for loaded in [name, *(each for each in sys.modules if each.startswith(f"{name}."))]:
                patch.setitem(sys.modules, loaded, None)
        yield


def imported(path: Path) -> set[str]:
    """The modules that a file imports at its top."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def needs(path: Path, names: set[str]) -> bool:
    """Whether a file, or one beside it that it imports, imports one of these modules at its top."""
    found = imported(path)
    if any(f"{each}.".startswith(f"{name}.") for each in found for name in names):
        return True
    beside = (path.with_name(f"{each}.py") for each in found)
    return any(needs(each, names) for each in beside if each.exists())
