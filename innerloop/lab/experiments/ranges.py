"""Ranges of settings: declared in the type, and refused by the name of the flag."""

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from innerloop.arguments import at_least, between, positive, requirement_of
from innerloop.diagnostics.amounts import parse_bytes
from innerloop.errors import StructureError

COUNT = at_least(1, at_most=2**31 - 1)

PositiveInt = Annotated[int, COUNT]
Ways = Annotated[int, at_least(2, at_most=2**31 - 1)]
Steps = Annotated[int, at_least(0, at_most=2**31 - 1, such_as=0)]
Seed = Annotated[int, at_least(0, at_most=2**31 - 1, such_as=0)]
Rate = Annotated[float, between(0, math.inf)]
Norm = Annotated[float, positive()]
Share = Annotated[float, between(0, 1)]


def refuse_out_of_range(name: str, value: Any, declared: Any, usual: Any = None) -> None:
    """Raise `StructureError` for a value out of range.

    Args:
        name: The name of the setting.
        value: Its value.
        declared: A kind of `innerloop.arguments`. Anything else allows every value.
        usual: A value to write instead.
    """
    allowed = requirement_of(declared)
    if allowed is not None and not allowed.accepts(value):
        raise StructureError(
            f"{name} is out of range",
            got=f"{name}={value!r}",
            expected=allowed.what,
            write=f"--{name.replace('_', '-')} {usual or allowed.cure}",
        )


def check_settings(experiment: Any) -> None:
    """Check settings that were read from a file; those of the command line have the right types.

    Raises:
        ValueError: If a setting has the wrong type.
        StructureError: If a setting is out of range.
    """
    for name, hint in get_type_hints(type(experiment)).items():
        value = getattr(experiment, name)
        if not _fits(value, hint):
            raise ValueError(f"{name}={value!r:.40}")
    check_ranges(experiment)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type that the annotation of a field demands."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple:
        return type(value) is tuple and all(_fits(each, parts[0]) for each in value)
    if parts:  # The hint is a union, or a variable of the class, which is not checked.
        return origin is ClassVar or any(_fits(value, part) for part in parts)
    if hint is float:
        return type(value) in (int, float)
    return isinstance(value, hint) and (hint is bool or type(value) is not bool)


def check_ranges(experiment: Any, flags: Mapping[str, str] = MappingProxyType({})) -> None:
    """Check all settings at the start, so that a run of hours does not fail on one at its end.

    Args:
        experiment: The experiment.
        flags: The name of the flag, for each field whose flag has a different name.

    Raises:
        StructureError: If a setting is out of range.
    """
    kind = type(experiment)
    for each in reversed(kind.__mro__):  # A new default, `steps: int = 300`, keeps the range.
        for name, hint in inspect.get_annotations(each, eval_str=True).items():
            ways, value = [hint, *get_args(hint)], getattr(experiment, name)
            parts = [part for way in ways for part in get_args(way)]
            others = [None] * (type(None) in ways) + [x for x in parts if isinstance(x, str)]
            for part in () if value in others else parts:
                refuse_out_of_range(flags.get(name, name), value, part, getattr(kind, name, None))
    memory, chunk = getattr(experiment, "memory", None), experiment.chunk
    if memory is not None:
        parse_bytes(memory)
    if memory is not None and chunk is not None:
        raise StructureError(
            "a chunk is chosen either by hand or by a budget",
            got=f"--chunk {chunk} --memory {memory}",
            expected="one of the two",
        )
