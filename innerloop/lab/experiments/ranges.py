"""Ranges of settings: declared in the type, and refused by the name of the flag."""

import inspect
import math
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_args

from innerloop.diagnostics.amounts import parse_bytes
from innerloop.errors import StructureError


class Range(NamedTuple):
    """The numbers from `least` to `most`; whole numbers if `least` is an int."""

    least: float
    most: float = math.inf

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the numbers."""
        kinds = (int,) if isinstance(self.least, int) else (int, float)
        return type(value) in kinds and self.least <= value <= self.most

    def __str__(self) -> str:
        what = "whole number" if isinstance(self.least, int) else "finite number"
        if self.most >= 2**31:
            return f"a {what} of at least {self.least:g}"
        return f"a {what} from {self.least:g} to {self.most}"


COUNT, SEEDS = Range(1), Range(0, 2**31 - 1)

PositiveInt = Annotated[int, COUNT]
Ways = Annotated[int, Range(2)]
Steps = Annotated[int, Range(0)]
Seed = Annotated[int, SEEDS]
Rate = Annotated[float, Range(0.0, sys.float_info.max)]
Share = Annotated[float, Range(0.0, 1)]


def refuse_out_of_range(name: str, value: Any, allowed: Range, usual: Any = None) -> None:
    """Raise `StructureError` for a value out of range; `usual` is a value to write instead."""
    if not allowed.holds(value):
        raise StructureError(
            f"{name} is out of range",
            got=f"{name}={value!r}",
            expected=str(allowed),
            write=f"--{name.replace('_', '-')} {usual or f'{allowed.least:g}'}",
        )


def check_ranges(experiment: Any, flags: Mapping[str, str] = MappingProxyType({})) -> None:
    """Check all settings at the start, so that a run of hours does not fail on one at its end.

    Args:
        experiment: The experiment.
        flags: By field, the name of the flag if it is another.

    Raises:
        StructureError: If a setting is out of range.
    """
    for name, (allowed, others) in _declared(type(experiment)).items():
        value = getattr(experiment, name)
        if value not in others:
            usual = getattr(type(experiment), name, None)
            refuse_out_of_range(flags.get(name, name), value, allowed, usual)
    memory, chunk = getattr(experiment, "memory", None), experiment.chunk
    if memory is not None:
        parse_bytes(memory)
    if memory is not None and chunk is not None:
        raise StructureError(
            "a chunk is chosen either by hand or by a budget",
            got=f"--chunk {chunk} --memory {memory}",
            expected="one of the two",
            write=f"--memory {memory}",
        )


def _declared(kind: type) -> dict[str, tuple[Range, list[Any]]]:
    """By field, the range that the class or a base declares, and the other values allowed."""
    declared = {}
    for each in reversed(kind.__mro__):  # A new default, `steps: int = 300`, keeps the range.
        for name, hint in inspect.get_annotations(each, eval_str=True).items():
            parts = [hint, *get_args(hint)]
            ranges = [x for part in parts for x in get_args(part) if isinstance(x, Range)]
            if ranges:
                others: list[Any] = [None] if type(None) in parts else []
                words = [x for part in parts for x in get_args(part) if isinstance(x, str)]
                declared[name] = (ranges[0], others + words)
    return declared
