"""Every cure that an error offers is one that works: what it says is done."""

import ast
import re

import cures_adapters
import cures_core
import cures_data
import cures_diagnostics
import cures_gradients
import cures_lab
import cures_lora
import cures_torch
import cures_training
import pytest
from reader import reader
from sites import Site, completed, offered, sites

import innerloop as il

TABLES = (
    *(cures_core, cures_gradients, cures_training, cures_adapters),
    *(cures_data, cures_diagnostics, cures_lab),
    *(cures_lora, cures_torch),
)
CASES = [case for table in TABLES for case in table.CASES]
pytestmark = pytest.mark.usefixtures("as_users_see_it")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.site, marks=[pytest.mark.full] * case.full) for case in CASES],
)
def test_what_an_error_says_to_write_works(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = reader() | {"tmp_path": tmp_path, "monkeypatch": monkeypatch}
    exec(case.given, names)
    with pytest.raises(Exception) as caught:
        exec(case.wrong, names)
    error = caught.value
    names["error"] = error
    text = re.escape(case.text).replace(r"\#", r"\d+")
    if isinstance(error, il.errors.InnerloopError):
        assert re.fullmatch(text, error.write), error.write
    else:  # raised by a compiled program as a text
        assert re.match(text, str(error).partition("Write: ")[2]), str(error)
    (site,) = case.sites()
    assert site.fits(str(error)), (site, str(error))
    for source in case.done():
        exec(source, dict(names))


def test_every_cure_of_the_library_is_executed():
    """A new error with a cure needs a case in a table of cures, or no cure."""
    assert not set(sites()) - {site for case in CASES for site in case.sites()}
    assert len(sites()) > 70


SOURCE = """
def whole(problem, *, write=None):
    raise Error(f"{problem} went wrong", got="1", write=write)

raise Error(f"two of {len(all)}", write="f(1)")
raise Error("none known", write=None)
raise Error(first.problem, write=first.cure)
whole("a sum", write=f"g({x})")
"it failed. Got: 1. Write: h(1)"
"""


def test_the_sites_of_a_source_are_found():
    assert sorted(offered(ast.parse(SOURCE))) == ["a sum", "it failed", "two of …"]
    with pytest.raises(AssertionError, match="by keyword"):
        list(offered(ast.parse("def whole(problem, write): pass")))
    assert Site("a.py", "two of …, three").fits("the two of 5, three")
    assert not Site("a.py", "two of …, three").fits("two of 5, four")


@pytest.mark.parametrize(
    ("cure", "wrong", "whole"),
    [
        ("f(..., steps=1)", "g(f(a, b, steps=0))", "g(f(a, b, steps=1))"),
        ("f(..., [1])", "f(a, b)", "f(a, [1])"),
        ("steps=1", "g(f(steps=0), x=2)", "g(f(steps=1), x=2)"),
        ("f(2, b=...)", "f(1, a=0, b=3)", "f(2, b=3)"),
        ("h(2)", "f(1)", "h(2)"),
        ("f(...).init(key)", "f(a=1).init(x)", "f(a=1).init(key)"),
    ],
)
def test_a_cure_is_completed_from_the_wrong_call(cure, wrong, whole):
    assert completed(cure, wrong) == whole
