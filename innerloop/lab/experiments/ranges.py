"""Settings out of range, refused by the name of their flag before anything is done."""

import math
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from innerloop.diagnostics.planning.amounts import parse_bytes
from innerloop.errors import StructureError

_AT_LEAST_ONE = (
    *(
        "steps",
        "batch",
        "validate_every",
        "validation_tasks",
        "test_tasks",
        "per_call",
        "chunk",
        "save_every",
        "devices",
    ),
    *("tasks", "shots", "train_shots", "queries", "test_queries", "width"),
    *("horizon", "window", "pairs"),
)
_RANGES: dict[str, tuple[type, float, float]] = {
    **dict.fromkeys(_AT_LEAST_ONE, (int, 1, math.inf)),
    **dict.fromkeys(("ways", "train_ways"), (int, 2, math.inf)),
    **dict.fromkeys(("inner_steps", "test_steps"), (int, 0, math.inf)),
    "seed": (int, 0, 2**31 - 1),
    **dict.fromkeys(("averaging",), (float, 0, 1)),
    **dict.fromkeys(
        (
            *("inner_rate", "outer_rate", "weight_decay", "minutes"),
            *("clip_norm", "task_norm", "bound", "sigma", "loss_clip"),
        ),
        (float, 0, sys.float_info.max),
    ),
}
_ALSO = {
    **dict.fromkeys(("chunk", "minutes", "train_ways", "train_shots"), (None,)),
    **dict.fromkeys(("inner_rate", "inner_steps", "test_steps"), (None,)),
    **dict.fromkeys(("clip_norm", "task_norm", "bound", "loss_clip"), (None,)),
    "devices": (None, "all"),
}


def check_ranges(settings: Any, flags: Mapping[str, str] = MappingProxyType({})) -> None:
    """All at once and first of all: a run of hours must not fail on them at its end.

    `settings` is a dataclass, or a mapping from names to values; `flags` are the names that the
    command at hand has for some of them. Raises `StructureError`.
    """
    values = settings if isinstance(settings, dict) else vars(settings)
    for name, (kind, least, most) in _RANGES.items():
        value = values.get(name, least)
        if value in _ALSO.get(name, ()):
            continue
        if type(value) in (int, kind) and least <= value <= most:
            continue
        what = "whole number" if kind is int else "finite number"
        bounds = f"of at least {least}" if most >= 2**31 else f"from {least} to {most}"
        usual = getattr(type(settings), name, None) or least
        name = flags.get(name, name)
        raise StructureError(
            f"{name} is out of range",
            got=f"{name}={value!r}",
            expected=f"a {what} {bounds}",
            write=f"--{name.replace('_', '-')} {usual}",
        )
    if values.get("memory") is not None:
        parse_bytes(values["memory"])
    if values.get("memory") is not None and values.get("chunk") is not None:
        raise StructureError(
            "a chunk is chosen either by hand or by a budget",
            got=f"--chunk {values['chunk']} --memory {values['memory']}",
            expected="one of the two",
            write=f"--memory {values['memory']}",
        )
