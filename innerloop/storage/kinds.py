"""Kinds of JSON values, by which records are checked when they are read.

A kind is a function that returns the value in the form that the program uses, or raises
`ValueError` with the place and the fault. The kind of a record is composed of those of its parts:

```python
run = fields({"step": count, "losses": numbers}, rest=anything)
run({"step": 2, "losses": [0.5, "NaN"], "note": None})
```
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Kind = Callable[[Any], Any]

MOST = 2**53
"""Every JSON parser reads integers up to this one exactly."""

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How `strict_json` writes numbers that are not finite."""


def anything(value: Any) -> Any:
    """Any value, as it is."""
    return value


def count(value: Any) -> int:
    """A whole number from 0 on."""
    return _of(type(value) is int and 0 <= value <= MOST, value, "a whole number from 0 on")


def number(value: Any) -> float:
    """A number, which need not be finite."""
    known = type(value) in (int, float) or (type(value) is str and value in _NOT_FINITE)
    try:
        return float(_of(known, value, "a number"))
    except OverflowError:
        return _of(False, value, "a number")


def amount(value: Any) -> float:
    """A finite number from 0 on."""
    known = number(value)
    return _of(math.isfinite(known) and known >= 0, known, "a finite number from 0 on")


def text(value: Any) -> str:
    """Text that can be written in UTF-8."""
    _of(type(value) is str, value, "text")
    return _of(not any("\ud800" <= x <= "\udfff" for x in value), value, "text in UTF-8")


def flag(value: Any) -> bool:
    """True or false."""
    return _of(type(value) is bool, value, "true or false")


def numbers(value: Any) -> np.ndarray:
    """A list of numbers, as an array."""
    return np.array(listed(number)(value), float)


def listed(kind: Kind) -> Kind:
    """A list whose entries are of this kind."""

    def read(value: Any) -> list[Any]:
        _of(type(value) is list, value, "a list")
        return [_part(kind, f"[{i}]", each) for i, each in enumerate(value)]

    return read


def by_name(kind: Kind) -> Kind:
    """An object whose values are of this kind."""
    return fields({}, rest=kind)


def or_null(kind: Kind) -> Kind:
    """Null, or a value of this kind."""
    return lambda value: None if value is None else kind(value)


def fields(
    known: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None, *, rest: Kind
) -> Kind:
    """An object with these fields, those that may be missing, and all others of the kind `rest`."""
    kinds = {**known, **(optional or {})}

    def read(value: Any) -> dict[str, Any]:
        _of(type(value) is dict, value, "an object with names")
        missing = [name for name in known if name not in value]
        _of(not missing, value, f"an object with {', '.join(missing)}")
        return {name: _part(kinds.get(name, rest), name, each) for name, each in value.items()}

    return read


def _part(kind: Kind, name: str, value: Any) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _of(known: bool, value: Any, what: str) -> Any:
    if not known:
        shown = repr(value) if type(value) in (int, float, str) else type(value).__name__
        raise ValueError(f"{shown[:40]} is not {what}")
    return value
