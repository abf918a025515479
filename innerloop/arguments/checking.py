"""Where the kinds are checked: fields of modules, arguments of functions and classes."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import equinox as eqx

from innerloop.arguments.kinds import (
    at_least,
    between,
    each,
    either,
    flag,
    floating_dtype,
    function,
    instance,
    interval,
    number,
    one_of,
    or_none,
    path,
    positive,
    random_key,
    with_methods,
)
from innerloop.arguments.requirement import of_python, require

if TYPE_CHECKING:  # the metaclass has no public name
    from equinox._module._module import _ModuleMeta as ModuleMeta
else:
    ModuleMeta = type(eqx.Module)

T = TypeVar("T")


@dataclass_transform(
    field_specifiers=(
        at_least,
        positive,
        number,
        between,
        interval,
        one_of,
        instance,
        with_methods,
        function,
        flag,
        path,
        random_key,
        floating_dtype,
        each,
        either,
        or_none,
        eqx.field,
    )
)
class CheckedMeta(ModuleMeta):
    """Tells type checkers that the kinds are fields."""


class CheckedModule(eqx.Module, metaclass=CheckedMeta):
    """An Equinox module that checks its fields against their declarations.

    The fields are checked before every `__check_init__` of a subclass, which can rely on them.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "__check_init__" in vars(cls):
            cls.__check_init__ = _after_fields(cls.__check_init__)  # pyright: ignore[reportAttributeAccessIssue]

    def __check_init__(self):
        check_fields(self)


def check_fields(made: Any) -> None:
    """Raise `StructureError` where a field of a dataclass is not what it declares."""
    for field in dataclasses.fields(made):
        require(field, field.name, getattr(made, field.name), type(made).__name__)


def _after_fields(check: Callable[[Any], None]) -> Callable[[Any], None]:
    # Equinox runs the checks of a subclass before those of its bases.
    @functools.wraps(check)
    def both(self: Any) -> None:
        check_fields(self)
        check(self)

    return both


def checked(called: str | None = None, /, **kinds: Any) -> Callable[[T], T]:
    """Decorates a function, a named tuple or a dataclass: its arguments are checked by kind.

    Arguments that are left out are not checked.

    Args:
        called: The name that the error shows; by default the name of the function or class.
        **kinds: The kind of each argument by its name, such as `steps=at_least(1)`.
    """

    def decorate(decorated: Any) -> Any:
        made = of_class(decorated) if isinstance(decorated, type) else wrap(decorated)
        made.__kinds__ = kinds  # for the test that every cure works
        return made

    def wrap(inner: Callable[..., Any], name: str | None = None) -> Any:
        signature = inspect.signature(inner)
        unknown = kinds.keys() - signature.parameters.keys()
        if unknown:
            raise TypeError(f"{inner.__qualname__} has no arguments {sorted(unknown)}")
        owner, _, own = inner.__qualname__.rpartition(".")
        call = called or name or (owner.rpartition(".")[2] if own == "__init__" else own)

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return inner(*args, **kwargs)  # the function says itself what is missing
            for argument, kind in kinds.items():
                if argument in bound.arguments:
                    value = bound.arguments[argument] = of_python(bound.arguments[argument])
                    require(kind, argument, value, call)
            return inner(*bound.args, **bound.kwargs)

        return outer

    def of_class(cls: Any) -> Any:
        if hasattr(cls, "_make"):  # a named tuple
            cls.__new__ = wrap(cls.__new__, cls.__name__)
            cls._make = classmethod(lambda cls, values: cls(*values))  # `_replace` goes through it
        else:
            cls.__init__ = wrap(cls.__init__, cls.__name__)
        return cls

    return decorate
