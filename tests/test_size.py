"""The counters of `benchmarks/size.py`, on files of a few lines."""

import runpy
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def size(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return runpy.run_path(str(ROOT / "benchmarks" / "size.py"))


def count(size, source):
    return size["counts"](dedent(source))


def test_code_docstrings_and_comments(size):
    found = count(
        size,
        '''
        """Of the module,

        with a blank line."""

        # alone on its line
        x = 1  # beside code
        """Of an attribute."""
        y = """a string

        that is a value"""  # noqa: E501


        def f(  # type: ignore
            a,
        ):
            "Of a function."
            # noqa
            return "#"
        ''',
    )
    assert (found.code, found.docstrings, found.comments) == (7, 4, 1)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x = 1", 0),
        ("raise ValueError(\n    'no'\n)", 3),
        ("if x:\n    raise ValueError", 2),
        ("if x:\n    y = 1\n    raise ValueError", 1),
        ("if x:\n    y = 1\nelif (\n    z\n):\n    raise ValueError", 2),
        ("checks.check_count(\n    'n',\n    n,\n)", 4),
        ("_require_same(a, b)\nrequired(a)\ncheck(a)", 1),
        ("def _check_x(x):\n    '''Text.'''\n    # why\n    if x:\n        raise ValueError", 3),
        ("class A:\n    def __check_init__(self):\n        assert self.x", 2),
    ],
)
def test_raise_and_checks(size, source, lines):
    assert count(size, source).checks == lines


@pytest.mark.parametrize(
    ("source", "calls", "of_tuple"),
    [
        ("isinstance(x, int)", 1, 0),
        ("isinstance(x, tuple) and isinstance(y, tuple)", 2, 1),
        ("isinstance(x, list | tuple)", 1, 1),
        ("isinstance(x, (dict, problem.ProblemMixture))", 1, 1),
        ("def f(x: tuple): ...", 0, 0),
        ("'isinstance(x, tuple)'", 0, 0),
    ],
)
def test_isinstance(size, source, calls, of_tuple):
    found = count(size, source)
    assert (found.isinstance, found.single_or_tuple) == (calls, of_tuple)


def test_rooms_and_exported_names(size, tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "__init__.py").write_text('__all__ = ["a", "b"]\n')
    (tmp_path / "room" / "one.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "arguments").mkdir()
    (tmp_path / "arguments" / "kinds.py").write_text("z = 3\n")
    rooms = size["rooms"](tmp_path)
    assert {name: of.code for name, of in rooms.items()} == {
        "__init__": 1,
        "room": 2,
        "arguments": 1,
    }
    assert (rooms["room"].checks, rooms["arguments"].checks) == (0, 1)
    assert size["exported"]((tmp_path / "__init__.py").read_text()) == ["a", "b"]
    assert size["exported"]("from x import a as a, b as c\nimport d\n") == ["a"]


def test_the_table_has_a_column_for_each_checkout(size, capsys):
    size["main"]([str(ROOT), str(ROOT), "--names", "before", "after", "--test", "9", "7"])
    first, *_, test = [line for line in capsys.readouterr().out.splitlines() if "`" not in line]
    assert first == "|  | before | after |"
    assert test == "| make test, seconds | 9.0 | 7.0 |"


def test_one_value_for_each_checkout(size, capsys):
    with pytest.raises(SystemExit):
        size["main"]([str(ROOT), "--names", "before", "after"])
    assert "--names takes one value for each PATH" in capsys.readouterr().err
