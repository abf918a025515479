"""The checks of annotated shapes and types while the tests run."""

import ast

import beartype
from jaxtyping import _import_hook

checked = beartype.beartype(conf=beartype.BeartypeConf(strategy=beartype.BeartypeStrategy.On))
"""Looks at every item of a container; beartype's default looks at one random item."""


def skip_inner_functions() -> None:
    """Leave functions within functions unchecked.

    They are defined anew in each call of the outer function, and so decorated anew, which took a
    fifth of the suite's time. With another version of jaxtyping, nothing happens.
    """
    transformer = getattr(_import_hook, "JaxtypingTransformer", None)
    decorate = getattr(transformer, "visit_FunctionDef", None)
    if decorate is None:
        return

    def visit_function(self, node):
        inner = any(isinstance(each, ast.FunctionDef) for each in getattr(self, "_parents", ()))
        return node if inner else decorate(self, node)

    setattr(transformer, "visit_FunctionDef", visit_function)  # noqa: B010
