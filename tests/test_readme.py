"""The code blocks of the README and of every page of the documentation run, as a reader would run
them: those of one page in order, in one namespace, in JAX's default precision."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

# A python block, and the text block right after it, which shows what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def run_blocks(page: Path) -> dict:
    namespace: dict = {"__name__": page.stem}
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for block, shown in BLOCK.findall(page.read_text()):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, str(page), "exec"), namespace)
            if shown:
                assert printed.getvalue() == shown
    return namespace


def with_code(pages: list[Path]) -> list[Path]:
    return [page for page in pages if "```python" in page.read_text()]


@pytest.mark.parametrize(
    "page", with_code([page for page in PAGES if page != README]), ids=lambda page: page.stem
)
def test_page_runs(page):
    """And prints what it says it prints."""
    run_blocks(page)


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
