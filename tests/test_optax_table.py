"""Every optimizer of Optax in the inner loop and in `fit`, and the table of it in the docs.

`make test-all` computes all cells and writes benchmarks/results/optax.json. `make test` computes a
few, and checks that the file is of this version.
"""

import fcntl
import json
import runpy
from importlib.metadata import version
from pathlib import Path

import pytest
import variants
from optax_cells import DTYPES, GRADIENTS, cells_of, computed, table_of
from optax_rows import ROWS, public_names

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "results" / "optax.json"
PACKAGES = ("innerloop", "optax", "jax")


def committed():
    return json.loads(TABLE.read_text())


def kept(name, cells):
    """Write one optimizer's cells: several processes write the same file."""
    with TABLE.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        table = json.loads(file.read() or "{}")
        table["versions"] = {package: version(package) for package in PACKAGES}
        rows = table.get("optimizers", {}) | {name: cells}
        table["optimizers"] = {name: rows[name] for name in ROWS if name in rows}
        table["cells"] = count(table["optimizers"])
        file.seek(0)
        file.truncate()
        file.write(json.dumps(table, indent=1) + "\n")


def is_sound(verdict):
    """Whether a cell works, or fails as it does by hand, or is refused."""
    return verdict.startswith(("works", "not finite", "refused"))


def count(optimizers):
    """How many cells were measured, and how many there are."""
    whole = sum(len(DTYPES) + sum(map(len, cells_of(name).values())) for name in ROWS)
    return {"measured": sum(len(flat(cells)) for cells in optimizers.values()), "of": whole}


def flat(cells):
    found = {("fit", kind): verdict for kind, verdict in cells["fit"].items()}
    for gradient, of_gradient in cells["inner"].items():
        found |= {(gradient, kind): verdict for kind, verdict in of_gradient.items()}
    return found


def pinned(package):
    lines = (ROOT / "constraints" / "python3.11.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)[package]


@pytest.mark.full
@pytest.mark.parametrize("name", ROWS)
def test_every_cell_of_the_whole_table(name):
    cells = table_of(name)
    kept(name, cells)
    assert all(map(is_sound, flat(cells).values())), flat(cells)


QUICK = [
    ("adam", "Unroll()", 12, "float64"),
    ("lars", "Unroll(MixedMode(), Segments(1))", 12, "bfloat16"),
    ("schedule_free_sgd", "ForwardMode()", 3, "float32"),
    ("polyak_sgd", "FirstOrder()", 3, "bfloat16"),
    ("il.lookahead", "Truncated(2)", 12, "float32"),
    ("sam", "Reptile()", 3, "float64"),
    ("momo", "fit", "float64"),
    ("rmsprop, momentum", "fit", "bfloat16"),
]


@pytest.mark.parametrize("cell", QUICK, ids=lambda cell: f"{cell[0]}, {cell[1]}")
def test_a_few_cells(cell):
    assert computed(*cell).startswith("works")


def test_every_optimizer_of_optax_has_a_row():
    if version("optax") != pinned("optax"):
        pytest.skip("another Optax has other optimizers")
    assert public_names() <= set(ROWS)


def test_the_committed_table_is_of_this_version():
    """It is complete, and no cell is wrong."""
    table = committed()
    versions = {"innerloop": version("innerloop")}
    versions |= {package: pinned(package) for package in ("optax", "jax")}
    assert table["versions"] == versions
    assert list(table["optimizers"]) == list(ROWS)
    for name, cells in table["optimizers"].items():
        assert cells["inner"].keys() == cells_of(name).keys(), name
        assert all(map(is_sound, flat(cells).values())), name
    assert table["cells"] == count(table["optimizers"])
    assert table["cells"]["measured"] == table["cells"]["of"]


CURES = {"lookahead": "il.lookahead", "sam in a chain": "il.named_arguments(sam) in a chain"}
"""What a refusal tells to write instead; any other tells to write another optimizer."""


def test_every_refusal_of_the_table_has_a_cure_that_works():
    rows = {name: flat(cells) for name, cells in committed()["optimizers"].items()}
    for name, cells in rows.items():
        for (gradient, kind), verdict in cells.items():
            if verdict.startswith("refused"):
                cure = rows.get(CURES.get(name, "sgd"), {}).values()
                assert all(v.startswith("works") for v in cure), (name, gradient, kind)


def test_the_page_shows_the_committed_table():
    """`python docs/optax_table.py` writes it."""
    script = runpy.run_path(str(ROOT / "docs" / "optax_table.py"))
    text = script["PAGE"].read_text()
    assert script["updated"](text) == text


def test_the_table_has_meta_gradients_of_every_kind():
    kinds = {type(case.gradient) for case in variants.GRADIENTS}
    assert kinds == {type(rule) for rule, _ in GRADIENTS.values()}
