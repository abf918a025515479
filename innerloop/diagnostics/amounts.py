"""Amounts of memory: parsing and formatting."""

import re
from typing import Any

import numpy as np

from innerloop.errors import StructureError

UNITS = {"": 1, "B": 1}
UNITS |= {f"{prefix}B": 1000**i for i, prefix in enumerate("kMGT", 1)}
UNITS |= {f"{prefix}iB": 1024**i for i, prefix in enumerate("KMGT", 1)}
_BY_LOWER_CASE = {unit.lower(): size for unit, size in UNITS.items()}


def parse_bytes(memory: Any) -> int:
    """Bytes from `"2GiB"`, `"1.5 GB"`, `"512MiB"` or a number of bytes.

    Upper and lower case mean the same.

    Raises:
        StructureError: If `memory` is not an amount of memory above zero.
    """
    size = memory if isinstance(memory, int | float | np.integer) else 0
    if isinstance(memory, str):
        parts = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", memory)
        size = float(parts[1]) * _BY_LOWER_CASE.get(parts[2].lower(), 0) if parts else 0
    if not isinstance(memory, bool) and 1 <= size < float("inf"):
        return int(size)
    raise StructureError(
        "memory is not an amount of memory",
        got=f"memory={memory!r}",
        expected=f"a number above zero with one of the units {', '.join(filter(None, UNITS))}; or "
        "a number of bytes",
        write='memory="2GiB"',
    )


def format_bytes(size: int | float) -> str:
    """An amount with three digits in the largest unit that makes it at least one: `1.5 GiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = max((i for i in range(len(units)) if abs(size) >= 1024**i), default=0)
    number = size / 1024**power
    digits = 0 if power == 0 else max(0, 3 - len(str(int(abs(number)))))
    return f"{number:.{digits}f} {units[power]}"
