"""What the package consists of, in numbers: `python benchmarks/size.py PATH [PATH ...]`.

Each PATH is a checkout of the project, of any age, and gets one column of a table in Markdown.
`--names before after` names the columns (commits otherwise), `--import PYTHON` also times `import
innerloop` with that interpreter, `--test SECONDS ...` adds what `make test` took, one number for
each PATH, and `--write` keeps everything in `results/size.json`.

- A *docstring* is any string that stands as a statement of its own, under an attribute too.
- A *code line* is a line with a token that is neither a comment nor part of a docstring. Every
  line of a string counts unless it is blank.
- A *comment line* holds a comment and nothing else. Comments for tools (`# type:`, `# noqa`, ...)
  are not counted.
- *raise and checks* are the code lines of `raise` statements, of the conditions of an `if` or
  `elif` that does nothing but raise, of definitions and calls of functions named `check_...`,
  `require_...` or `refuse_...` (with or without an underscore in front), of the methods
  `__check_init__`, and of the rooms `checks` and `arguments`, which only hold checks.
- A file *branches on single or tuple* if it calls `isinstance(x, T)` where T is or contains
  `tuple` or a class whose name ends in `Mixture`.
- A *room* is a folder or a file directly in the package.
"""

import argparse
import ast
import io
import os
import re
import statistics
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runs import markdown_table, write_json

PACKAGE = "innerloop"
FOR_TOOLS = re.compile(r"#\s*(type:|noqa|pyright:|isort:|fmt:)")
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}
IMPORT = f"import time; import {PACKAGE}; print(time.process_time())"
REPETITIONS = 5
CHECK = re.compile("_?(check|require|refuse)_|__check_init__")
ROOMS_OF_CHECKS = ("checks", "arguments")


class Counts(NamedTuple):
    """Of one file, or the sum over several."""

    code: int = 0
    docstrings: int = 0
    comments: int = 0
    checks: int = 0
    isinstance: int = 0
    single_or_tuple: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def counts(source: str) -> Counts:
    """Of one file's text."""
    tree = ast.parse(source)
    filled = {i for i, line in enumerate(source.splitlines(), 1) if line.strip()}
    strings = lines_of(node for node in ast.walk(tree) if is_docstring(node)) & filled
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    code = {
        line
        for token in tokens
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    code = (code & filled) - strings
    comments = {
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and not FOR_TOOLS.match(token.string)
    }
    tests = [node for node in ast.walk(tree) if called(node) == "isinstance"]
    return Counts(
        code=len(code),
        docstrings=len(strings),
        comments=len(comments - code),
        checks=len(lines_of(checks(tree)) & code),
        isinstance=len(tests),
        single_or_tuple=int(any(is_of_tuple(test) for test in tests)),
    )


def lines_of(nodes: Iterator[ast.AST]) -> set[int]:
    """Every line that one of the nodes covers."""
    return {line for node in nodes for line in range(node.lineno, node.end_lineno + 1)}


def is_docstring(node: ast.AST) -> bool:
    """Whether it is a string as a statement."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def called(node: ast.AST) -> str | None:
    """The name of the function that a call calls, without what is before the last dot."""
    if not isinstance(node, ast.Call):
        return None
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def checks(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements and expressions that refuse something."""
    for node in ast.walk(tree):
        name = node.name if isinstance(node, ast.FunctionDef) else called(node)
        if isinstance(node, ast.Raise) or CHECK.match(name or ""):
            yield node
        elif isinstance(node, ast.If) and all(isinstance(part, ast.Raise) for part in node.body):
            yield node.test


def is_of_tuple(test: ast.AST) -> bool:
    """Whether an `isinstance` asks for a tuple or a mixture."""
    named = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(test.args[1])}
    return any(name == "tuple" or name.endswith("Mixture") for name in named)


def rooms(package: Path) -> dict[str, Counts]:
    """The counts of each room, by name."""
    found: dict[str, Counts] = {}
    for path in sorted(package.rglob("*.py")):
        of_file = counts(path.read_text())
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room in ROOMS_OF_CHECKS:
            of_file = of_file._replace(checks=of_file.code)
        found[room] = found.get(room, Counts()) + of_file
    return found


def exported(source: str) -> list[str]:
    """The names in `__all__`, or those that are imported `as` themselves."""
    body = ast.parse(source).body
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    imported = [each for node in body if isinstance(node, ast.ImportFrom) for each in node.names]
    return [each.name for each in imported if each.asname == each.name]


def measure(checkout: Path) -> dict[str, Any]:
    """All that can be counted without running anything."""
    package = checkout / PACKAGE
    of_room = rooms(package)
    total = sum(of_room.values(), Counts())
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    return {
        "commit": subprocess.check_output(
            ["git", "rev-parse", "--short=7", "HEAD"], cwd=checkout, text=True
        ).strip(),
        "code lines": total.code,
        "docstring lines": total.docstrings,
        "comment lines": total.comments,
        "code lines per comment line": round(total.code / max(total.comments, 1)),
        "names at the top level": len(exported((package / "__init__.py").read_text())),
        "mandatory dependencies": len(project["dependencies"]),
        "raise and checks, % of code lines": round(100 * total.checks / total.code, 1),
        "isinstance per 1000 code lines": round(1000 * total.isinstance / total.code, 1),
        "files that branch on single or tuple": total.single_or_tuple,
        "code lines by room": {name: of.code for name, of in of_room.items()},
    }


def import_seconds(checkouts: list[Path], python: str) -> list[list[float]]:
    """Processor seconds of `import innerloop` in fresh processes, the checkouts taking turns.

    The first turn, which writes the compiled files of Python, is left out.
    """

    def once(checkout: Path) -> float:
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        command = [python, "-c", IMPORT]
        return float(subprocess.check_output(command, cwd=checkout, env=environment))

    turns = [[once(checkout) for checkout in checkouts] for _ in range(REPETITIONS + 1)]
    return [list(column) for column in zip(*turns[1:], strict=True)]


def table(columns: dict[str, dict[str, Any]]) -> str:
    """One column per checkout; the lines of the rooms below the rest."""
    measured = list(columns.values())
    keys = [key for key in measured[0] if key != "code lines by room"]
    rows = [[key, *(column[key] for column in measured)] for key in keys]
    by_room = [column["code lines by room"] for column in measured]
    names = dict.fromkeys(name for column in by_room for name in column)
    rows += [[f"code lines of `{name}`", *(of.get(name, "") for of in by_room)] for name in names]
    return markdown_table(["", *columns], rows)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--names", nargs="+", help="of the columns")
    parser.add_argument("--import", dest="python", help="time the import with this interpreter")
    parser.add_argument("--test", nargs="+", type=float, help="what `make test` took, in seconds")
    parser.add_argument("--write", action="store_true", help="write results/size.json")
    given = parser.parse_args(words)
    for name in ("names", "test"):
        values = getattr(given, name)
        if values is not None and len(values) != len(given.checkouts):
            parser.error(f"--{name} takes one value for each PATH")
    return given


def main(words: list[str] | None = None) -> None:
    given = arguments(words)
    measured = [measure(checkout) for checkout in given.checkouts]
    if given.python:
        times = import_seconds(given.checkouts, given.python)
        medians = [statistics.median(column) for column in times]
        for of, seconds, column in zip(measured, medians, times, strict=True):
            # Of each turn, because what else the machine does changes from turn to turn.
            ratios = [first / own for first, own in zip(times[0], column, strict=True)]
            of["import, processor seconds"] = round(seconds, 2)
            of["import, times as fast as the first"] = round(statistics.median(ratios), 2)
    if given.test:
        for of, seconds in zip(measured, given.test, strict=True):
            of["make test, seconds"] = seconds
    names = given.names or [of["commit"] for of in measured]
    columns = dict(zip(names, measured, strict=True))
    print(table(columns))
    if given.write:
        write_json("size.json", columns)


if __name__ == "__main__":
    main()
