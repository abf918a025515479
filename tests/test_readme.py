"""The code blocks of the README and of every page of the documentation run, as a reader would run
them: those of one page in order, in one namespace, in JAX's default precision.

A block runs without the extras of innerloop, which are blocked, except for those that the page
says it needs: "Needs `innerloop[data]`:" right before the block, or "The code on this page needs
`innerloop[data]`." anywhere on the page."""

import contextlib
import io
import re
import runpy
import tempfile
from pathlib import Path

import extras
import jax
import numpy as np
import pytest
from quick import without

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

# The extras that a python block needs, the block, and the text block right after it, which shows
# what it prints.
BLOCK = re.compile(
    r"(?:^Needs ([^\n]+):\n\n)?^```python\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
OF_PAGE = re.compile(r"^The code on this page needs (.+)\.$", re.MULTILINE)


def named_extras(text: str) -> list[str]:
    names = re.findall(r"`innerloop\[(\w+)\]`", text)
    assert set(names) <= set(extras.EXTRAS), text
    return names


def not_needed(names: list[str]) -> set[str]:
    """The modules of the extras without those of these."""
    return extras.ALL - set().union(*map(extras.packages, names))


def run_blocks(page: Path) -> dict:
    namespace: dict = {"__name__": page.stem}
    text = page.read_text()
    of_page = named_extras(" ".join(OF_PAGE.findall(text)))
    with (
        tempfile.TemporaryDirectory() as folder,  # for the files that blocks write
        contextlib.chdir(folder),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for of_block, block, shown in BLOCK.findall(text):
            needed, printed = of_page + named_extras(of_block), io.StringIO()
            if extras.MISSING - not_needed(needed):
                pytest.skip(f"{page.stem} needs {needed}")
            with contextlib.redirect_stdout(printed), extras.blocked(not_needed(needed)):
                exec(compile(block, str(page), "exec"), namespace)
            if shown:
                assert printed.getvalue() == shown
    return namespace


# The README and the other pages have the like of what is left to `make test-all`.
SLOW = {"index", "choose", "ecosystem", "learned-optimizers", "long-horizons"}
RUN = {page.stem: page for page in PAGES if "```python" in page.read_text() and page != README}


@pytest.mark.parametrize("page", without(SLOW, RUN))
def test_page_runs(page):
    """And prints what it says it prints."""
    run_blocks(RUN[page])


def test_readme_runs():
    """And what it trains has learned something."""
    namespace = run_blocks(README)
    assert np.isfinite(namespace["value"])
    assert namespace["outcome"].best_step in (100, 200)


def test_every_fence_is_known():
    """A block of another spelling would not be run."""
    for page in PAGES:
        text = page.read_text()
        opened = re.findall(r"^ *(```+\S*)$", text, re.MULTILINE)
        assert set(opened) <= {"```python", "```text", "```sh", "```"}, page
        assert len(BLOCK.findall(text)) == opened.count("```python"), page


def test_commands_exist():
    """The make targets and the experiments that the README names are there."""
    text = README.read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", text, re.MULTILINE))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    from innerloop.lab.experiments.table import EXPERIMENTS

    (named,) = re.findall(r"innerloop train ([\w|-]+)`", text)[:1]
    assert set(named.split("|")) == set(EXPERIMENTS)


def test_the_validity_table_is_up_to_date():
    """`python docs/validity.py` writes it."""
    script = runpy.run_path(str(DOCS / "validity.py"))
    text = script["PAGE"].read_text()
    assert script["updated"](text) == text
