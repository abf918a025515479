"""What a value must be: a requirement, the error that is written from it, and its declaration."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import numpy as np

from innerloop.checks import describe_briefly
from innerloop.errors import StructureError

REQUIREMENT = "innerloop.requirement"
"""Key of a field's requirement in its metadata."""


class Requirement(NamedTuple):
    """What a value must be.

    Args:
        accepts: `value -> bool`, whether the value is accepted.
        what: A noun with its article, which completes "NAME must be ...".
        expected: The same as a type or an inequality, for the third part of the error.
        cure: Python source of a value that is accepted.
        shown: `(name, value) -> str`, the argument as the error shows it.
        instead: Pairs of a class that is often passed by mistake and the source that the error then
            shows in place of `cure`.
        cure_for: `value -> source` that the error shows for this value, or None if it has none.
    """

    accepts: Callable[[Any], bool]
    what: str
    expected: str
    cure: str
    shown: Callable[[str, Any], str] = lambda name, value: f"{name}={describe_briefly(value)}"
    instead: tuple[tuple[type, str], ...] = ()
    cure_for: Callable[[Any], str | None] = lambda value: None

    def refusal(self, name: str, value: Any, call: str) -> StructureError:
        """The error for a value that is not accepted, as the argument `name` of `call`."""
        cure = next((cure for each, cure in self.instead if isinstance(value, each)), None)
        cure = cure or self.cure_for(value) or self.cure
        return StructureError(
            f"{name} must be {self.what}",
            got=self.shown(name, value),
            expected=self.expected,
            write=f"{call}(..., {name}={cure})",
        )


def requirement_of(declared: Any) -> Requirement | None:
    """The requirement that a field declares, or None."""
    return declared.metadata.get(REQUIREMENT) if isinstance(declared, dataclasses.Field) else None


def require(declared: Any, name: str, value: Any, call: str) -> None:
    """Raise `StructureError` unless `value` is what a kind declares.

    Args:
        declared: The declaration, such as `at_least(1)`.
        name: The name of the argument.
        value: The value of the argument.
        call: The name of the function or class, for the error.
    """
    requirement = requirement_of(declared)
    if requirement is not None and not requirement.accepts(value):
        raise requirement.refusal(name, value, call)


F = TypeVar("F", bound=Callable[..., Any])
OPTIONS = {"default", "static", "kw_only", "init", "metadata", "converter"}


def kind(requirement: F) -> F:
    """Decorates a function that returns a `Requirement`: it returns a field that carries it.

    The decorated function also accepts the keywords of a field. A static field must be hashable. If
    the default of the field is a plain value, the error shows it as the cure.
    """

    @functools.wraps(requirement)
    def field(*args: Any, **kwargs: Any) -> Any:
        options = {name: kwargs.pop(name) for name in OPTIONS & kwargs.keys()}
        made = requirement(*args, **kwargs)
        accepts, default = made.accepts, options.get("default")
        if options.get("static"):
            made = made._replace(
                accepts=lambda value: isinstance(value, Hashable) and accepts(value)
            )
        if isinstance(default, int | float | tuple) and accepts(default):
            made = made._replace(cure=repr(default))
        metadata = {REQUIREMENT: made, **options.pop("metadata", {})}
        return eqx.field(metadata=metadata, **{"converter": of_python, **options})

    return field  # pyright: ignore[reportReturnType]


def of_python(value: Any) -> Any:
    """NumPy's numbers as Python's: Equinox would take them for arrays, which are traced."""
    if type(value) in (tuple, list):
        return type(value)(map(of_python, value))
    if isinstance(value, np.floating):
        return float(value)
    return value.item() if isinstance(value, np.integer | np.bool_) else value
