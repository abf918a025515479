"""Numbers and settings as text."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from innerloop.lab.plots.style import is_fraction


def decimals(halves: ArrayLike, metric: str) -> int:
    """The number of decimals of a column, which the smallest of its intervals determines."""
    if is_fraction(metric):
        return 1
    known = np.ravel(np.asarray(halves, float))
    known = known[np.isfinite(known) & (known > 0)]
    return int(np.clip(1 - np.floor(np.log10(known.min())), 0, 6)) if len(known) else 3


def value(number: float, metric: str, digits: int) -> str:
    """The value of a metric with so many decimals, in per cent if it is a fraction."""
    if not np.isfinite(number):
        return "not finite"
    return f"{number:.{digits}{'%' if is_fraction(metric) else 'f'}}"


def plus_minus(mean: float, half: float, metric: str, digits: int) -> str:
    """`81.3 ± 0.7%`, both with so many decimals."""
    if not (np.isfinite(mean) and np.isfinite(half)):
        return value(mean, metric, digits)
    shown = value(mean, metric, digits).removesuffix("%")
    return f"{shown}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{value(half, metric, digits)}"


def duration(seconds: float) -> str:
    """`3.2 ms`, `12.4 s`, `7 min 05 s`, `2 h 10 min`."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def operations(flops: float) -> str:
    """`822 kFLOP`, `3.1 GFLOP`."""
    power = max((i for i in range(6) if flops >= 1000**i), default=0)
    prefix = ("", *"kMGTP")[power]
    return f"{flops / 1000**power:.3g} {prefix}FLOP"


def setting(content: Any) -> str:
    """The value of a field of a config, as the command line takes it."""
    if content is None:
        return "none"
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, list | tuple):
        return ", ".join(map(setting, content))
    return str(content)


def words(name: str) -> str:
    """The words of a name: `validate every` for `validate_every`."""
    return name.replace("_", " ")
