"""Where the library offers a cure, found in its source, and the cases that execute each cure."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "innerloop"
PASSED_ON = {"write", "cure"}
"""Attributes that hold the cure of another site."""


class Site(NamedTuple):
    """A call in the source that offers a cure.

    Attributes:
        file: Its file, below the package.
        text: The problem, with "…" for what is filled in.
    """

    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"

    def fits(self, problem: str) -> bool:
        """Whether the problem of an error may come from here."""
        return re.search(".*".join(map(re.escape, self.text.split("…"))), problem) is not None


class Case(NamedTuple):
    """A call that leads to an error, and what its cure says, done.

    Attributes:
        site: The beginning of `str(site)`.
        wrong: Source of the call that is refused.
        cures: The text of the error's `write`, in parts that give the whole when joined. A part is
            a string, whose code is executed, or a pair of the text and the code that does what it
            says. In a part that is code, `...` stands for the arguments of the wrong call.
        given: Statements that make the names which the calls use.
        full: Whether `make test` leaves the case to `make test-all`.
    """

    site: str
    wrong: str
    cures: tuple
    given: str = ""
    full: bool = False

    @property
    def text(self) -> str:
        """The whole of the error's `write`."""
        return "".join(part if isinstance(part, str) else part[0] for part in self.cures)

    def sites(self) -> set[Site]:
        """The sites of this text, or else those that begin with it."""
        named = {str(site): site for site in sites()}
        if self.site in named:
            return {named[self.site]}
        return {site for name, site in named.items() if name.startswith(self.site)}

    def done(self) -> Iterator[str]:
        """Source for each part of the cure."""
        for part in self.cures:
            if isinstance(part, str):
                yield completed(re.sub(r"^(,|;)? ?or ", "", part).strip(), self.wrong)
            else:
                yield part[1]


@functools.cache
def sites() -> list[Site]:
    """Every place of the package that offers a cure."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        found += [Site(file, text) for text in offered(ast.parse(path.read_text()))]
    return found


def offered(tree: ast.Module) -> Iterator[str]:
    """The problems of the calls with a cure, and the texts that hold one themselves."""
    for node, parameters in within(tree, frozenset()):
        said = re.match(r"(\w.*)\. Got: .*Write: ", str(getattr(node, "value", "")))
        if said:
            yield said[1]
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            given = keyword.value
            is_none = isinstance(given, ast.Constant) and given.value is None
            handed_on = isinstance(given, ast.Name) and given.id in parameters
            handed_on |= isinstance(given, ast.Attribute) and given.attr in PASSED_ON
            if keyword.arg == "write" and not is_none and not handed_on:
                yield template(node.args[0])


def within(node: ast.AST, parameters: frozenset) -> Iterator[tuple[ast.AST, frozenset]]:
    """All nodes, each with the parameters of the functions around it."""
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        for each in arguments.posonlyargs + arguments.args:
            is_text = each.annotation is None or "Callable" not in ast.unparse(each.annotation)
            assert each.arg != "write" or not is_text, f"{node.name} takes no cure by keyword"
        parameters |= {each.arg for each in arguments.args + arguments.kwonlyargs}
    yield node, parameters
    for child in ast.iter_child_nodes(node):
        yield from within(child, parameters)


def template(node: ast.expr) -> str:
    """A string with "…" for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [template(part) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return "".join(parts)
    return "…"


def completed(cure: str, wrong: str) -> str:
    """A cure as source that runs: with the arguments of the wrong call, and in its place.

    `f(..., steps=1)` is the call of `f` in `wrong` with another `steps`; `steps=1` is `wrong` with
    another `steps` in the call that has one. What is not called in `wrong` stands by itself.
    """
    try:
        tree = ast.parse(cure, mode="eval").body
    except SyntaxError:
        (assignment,) = ast.parse(cure).body
        keyword = ast.keyword(assignment.targets[0].id, assignment.value)
        has = lambda call: any(each.arg == keyword.arg for each in call.keywords)
        return ast.unparse(_Put(has, lambda call: _with(call, [keyword])).visit(ast.parse(wrong)))
    whole = ast.parse(wrong)
    calls = {_name(n): n for n in ast.walk(whole) if isinstance(n, ast.Call)}
    filled = _Put(_is_partial, lambda call: _filled(call, calls[_name(call)])).visit(tree)
    if not isinstance(filled, ast.Call) or _name(filled) not in calls:
        return ast.unparse(filled)
    same = lambda call: _name(call) == _name(filled)
    return ast.unparse(_Put(same, lambda call: filled).visit(whole))


class _Put(ast.NodeTransformer):
    """Replaces the calls for which `where` holds."""

    def __init__(self, where, by):
        self.where, self.by = where, by

    def visit_Call(self, node):
        """The call, or what it is replaced by."""
        holds = self.where(node)
        node = self.generic_visit(node)
        return self.by(node) if holds else node


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _is_partial(call: ast.Call) -> bool:
    return any(map(_is_ellipsis, [*call.args, *(each.value for each in call.keywords)]))


def _filled(cure: ast.Call, wrong: ast.Call) -> ast.Call:
    named = [each for each in cure.keywords if not _is_ellipsis(each.value)]
    if cure.args and _is_ellipsis(cure.args[0]):  # all arguments of the wrong call
        given = cure.args[1:]
        kept = wrong.args[: len(wrong.args) - len(given)] if given else wrong.args
        return _with(ast.Call(cure.func, [*kept, *given], wrong.keywords), named)
    wanted = {each.arg for each in cure.keywords} - {each.arg for each in named}
    rest = [each for each in wrong.keywords if each.arg in wanted]
    return ast.Call(cure.func, cure.args, [*rest, *named])


def _with(call: ast.Call, keywords: list[ast.keyword]) -> ast.Call:
    new = {each.arg for each in keywords}
    kept = [each for each in call.keywords if each.arg not in new]
    return ast.Call(call.func, call.args, [*kept, *keywords])
