"""Which arrays of a network are adapted, frozen or factored: by path, or by a predicate."""

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
from jaxtyping import PyTree

from innerloop.arguments import Requirement, kind, requirement_of
from innerloop.arguments import function as function_of
from innerloop.checks import describe_briefly
from innerloop.errors import StructureError
from innerloop.problem import subset

Selection = Callable[[PyTree], PyTree]
"""`tree -> subtree or tuple of subtrees`, as in `subset`."""

Choice = str | Callable[[str, Any], bool]
"""A path or pattern, or a predicate `(path, leaf) -> bool`."""


PROPOSED = 3
"""How many names an error proposes."""


@kind
def selection(**field: Any) -> Any:
    """A function that selects a part of a tree."""
    function = _requirement(function_of("tree", gives="subtree or tuple of subtrees"))
    cure = "matching(lambda path, leaf: leaf.ndim > 1)"
    return function._replace(
        what="a function that selects a part of a tree",
        cure=cure,
        instead=((str, "matching('head')"),),
    )


def _requirement(kind: Any) -> Requirement:
    found = requirement_of(kind)
    assert found is not None
    return found


SELECTION = selection()
"""The kind of an argument of type `Selection`."""


@dataclass(frozen=True)
class Where:
    """A choice of arrays, as the `where` of `subset`, `freeze`, `lora` and the recipes.

    `matching` makes one. `a | b` chooses the arrays that either chooses, `a & b` those that both
    choose, and `~a` all others. One of two operands may be any function that selects subtrees.

    If it is called with a tree, it returns a dictionary of the chosen leaves by their paths.

    Args:
        paths: `tree -> paths`, the paths of the chosen leaves.
    """

    paths: Callable[[PyTree], Collection[str]]

    def __call__(self, tree: PyTree) -> dict[str, Any]:
        chosen = self.paths(tree)
        return {path: leaf for path, leaf in named_leaves(tree).items() if path in chosen}

    def __invert__(self) -> "Where":
        return Where(lambda tree: named_leaves(tree).keys() - {*self.paths(tree)})

    def __or__(self, other: Selection) -> "Where":
        return Where(lambda tree: {*self.paths(tree), *chosen_paths(tree, other)})

    def __and__(self, other: Selection) -> "Where":
        return Where(lambda tree: {*self.paths(tree)}.intersection(chosen_paths(tree, other)))

    __ror__ = __or__
    __rand__ = __and__


def matching(*choices: Choice) -> Where:
    """Chooses the arrays whose path matches a pattern, or for which a predicate holds.

    The path of an array consists of the keys, indices and attributes that lead to it, separated by
    dots, as in `"body.blocks.mlp_in.weights"` or `"layers.0.weight"`. A pattern may contain the
    wildcards `*` (any text, including dots), `?` and `[...]`. It matches the whole path of an
    array, or of a subtree that contains the array:

    ```python
    matching("head")  # all arrays of the subtree "head"
    ~matching("*norm*")  # all but the normalisation
    matching("body.blocks") & matching(lambda path, leaf: leaf.ndim >= 2)
    ```

    Args:
        *choices: Patterns, and predicates `(path, leaf) -> bool`. An array is chosen if any of them
            chooses it. A predicate may read the shape and the dtype of the leaf, but no values.

    Returns:
        The choice, a function of a tree.

    Raises:
        StructureError: If a choice is neither text nor a predicate, or if the result is applied to
            a tree in which one of the choices finds nothing. The error names the closest paths.
    """
    predicate = _requirement(function_of("path", "leaf"))
    for choice in choices:
        if not isinstance(choice, str) and not predicate.accepts(choice):
            raise StructureError(
                "arrays are chosen by the pattern of a path or by a predicate",
                got=predicate.shown("choice", choice),
                expected="text, or a function (path, leaf) -> bool",
                write="matching('head'), or matching(lambda path, leaf: leaf.ndim > 1)",
            )

    def paths(tree: PyTree) -> set[str]:
        leaves, found = named_leaves(tree), set[str]()
        for choice in choices:
            chosen = {path for path, leaf in leaves.items() if holds(choice, path, leaf)}
            if not chosen:
                raise _nothing(choice, leaves)
            found |= chosen
        return found

    return Where(paths)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their paths with dots.

    Raises:
        StructureError: If two leaves have the same path.
    """
    leaves = jax.tree.leaves_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise StructureError(
            "two arrays have the same path",
            got=", ".join(map(repr, twice)),
            expected="keys without dots, and no dictionary with both 1 and '1' as keys",
        )
    return dict(zip(paths, (leaf for _, leaf in leaves), strict=True))


def chosen_leaves(tree: PyTree, where: Selection) -> list[bool]:
    """For each leaf of a tree, whether `where` selects it.

    Raises:
        StructureError: If `where` selects nothing, or something that is not in the tree.
    """
    part, merge = subset(tree, where)
    mark = object()
    marked = merge(jax.tree.map(lambda _: mark, part))
    return [leaf is mark for leaf in jax.tree.leaves(marked)]


def chosen_paths(tree: PyTree, where: Selection) -> list[str]:
    """The paths of the leaves that `where` selects."""
    if isinstance(where, Where):
        return list(where.paths(tree))
    pairs = zip(named_leaves(tree), chosen_leaves(tree, where), strict=True)
    return [path for path, chosen in pairs if chosen]


def split(tree: PyTree, chosen: Collection[bool]) -> tuple[PyTree, PyTree]:
    """The leaves that are chosen, and the others: two trees with None in the other places."""
    leaves, treedef = jax.tree.flatten(tree)
    pairs = list(zip(leaves, chosen, strict=True))
    inside = treedef.unflatten([leaf if mark else None for leaf, mark in pairs])
    return inside, treedef.unflatten([None if mark else leaf for leaf, mark in pairs])


def closest(name: str, names: Collection[str], most: int = PROPOSED) -> list[str]:
    """The names that are most like a name; the first ones if none is like it."""
    by_lower = {each.lower(): each for each in sorted(names, reverse=True)}
    near = difflib.get_close_matches(name.lower(), by_lower, most, cutoff=0.4)
    return [by_lower[each] for each in near] or sorted(names)[:most]


def _with_ancestors(path: str) -> list[str]:
    """The path of a leaf, and those of the subtrees that contain it."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def holds(choice: Choice, path: str, leaf: Any = None) -> bool:
    """Whether a pattern or predicate chooses a leaf."""
    if isinstance(choice, str):
        return any(fnmatchcase(each, choice) for each in _with_ancestors(path))
    return bool(choice(path, leaf))


def literal(path: str) -> str:
    """The pattern that matches this path alone; a path may have brackets, as patterns have."""
    return path.replace("[", "[[]")


def _nothing(choice: Choice, leaves: dict[str, Any]) -> StructureError:
    """The error for a choice that finds nothing."""
    known = {each for path in leaves for each in _with_ancestors(path)}
    if not isinstance(choice, str):
        return StructureError(
            "the predicate holds for no array",
            got=describe_briefly(choice),
            expected=f"one that holds for some of {', '.join(sorted(leaves))}",
        )
    near = closest(choice, known)
    return StructureError(
        "no array has a path that matches",
        got=repr(choice),
        expected=f"a path of the tree, or a pattern with *; the closest are {', '.join(near)}"
        if near
        else "a tree with arrays",
        write=", or ".join(f"matching({literal(each)!r})" for each in near) or None,
    )
