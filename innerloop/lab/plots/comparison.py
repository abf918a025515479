"""The error of meta-gradients against what they cost: memory on one side, time on the other."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from innerloop.lab.plots.checks import nothing
from innerloop.lab.plots.style import BLUE, GREEN, RED, new_figure, plain_log_ticks

DRAWN_AS_EXACT = 1e-5
"""Relative error below which a gradient is drawn as exact: rounding in single precision."""

_COLOURS = {"exact": BLUE, "unbiased": GREEN, "biased": RED}
_SHAPES = "osD^vPX<>*ph"
"""Markers, which tell the meta-gradients of one colour apart where their points coincide."""
_LEGEND = {
    "exact": "exact",
    "unbiased": "unbiased\n(error of one draw, ± 2 standard errors)",
    "biased": "biased",
}


def error_against_cost(
    path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]], *, title: str
) -> Path:
    """Draw relative error against memory and against time, both on logarithmic axes.

    - `path`: the PNG file to write; missing folders are made
    - `records`: mappings, as `Comparison.records()` gives them:
        - `name`
        - `fidelity`: a mapping with `kind`: exact, unbiased or biased
        - `relative_error`, `relative_error_error`: and its standard error, or None
        - `memory`: bytes
        - `seconds`: of one call

    One without a finite error, memory or time is left out. Errors of at most
    10⁻⁵ share one row below the others.

    Returns `path`. Raises `StructureError` where nothing is left to draw.
    """
    shown = [record for record in records if _complete(record)]
    if not shown:
        raise nothing("measured meta-gradients", "error_against_cost(path, comparison.records())")
    with new_figure(path, (13.0, 5.0)) as (figure, done):
        left, right = figure.subplots(1, 2, sharey=True)
        figure.suptitle(title)
        left.set_ylabel("relative error of the meta-gradient")
        _legend(figure, shown)
        memory = [record["memory"] / 2**20 for record in shown]
        milliseconds = [1e3 * record["seconds"] for record in shown]
        row = _error_axis(left, shown)
        heights = _heights(shown, row)
        _cost_axis(left, memory, "peak memory, MiB")
        _cost_axis(right, milliseconds, "time per call, ms")
        for axes, costs in ((left, memory), (right, milliseconds)):
            axes.axhspan(*_below(left, row), color="#F4F6F8", zorder=0)
            _points(axes, shown, list(zip(costs, heights, strict=True)))
        return done()


def _complete(record: Mapping[str, Any]) -> bool:
    numbers = [record.get(name) for name in ("relative_error", "memory", "seconds")]
    return all(number is not None and math.isfinite(number) for number in numbers)


def _kind(record: Mapping[str, Any]) -> str:
    return record["fidelity"]["kind"]


def _is_exact(record: Mapping[str, Any]) -> bool:
    return record["relative_error"] <= DRAWN_AS_EXACT


def _decades(records: Sequence[Mapping[str, Any]]) -> range:
    """Exponents on the error axis: those of the errors that are drawn to scale."""
    errors = [record["relative_error"] for record in records if not _is_exact(record)] or [1.0]
    lowest, highest = (math.log10(error) for error in (min(errors), max(errors)))
    return range(math.floor(lowest - 0.2), math.ceil(highest + 0.2) + 1)


def _heights(records: Sequence[Mapping[str, Any]], row: float) -> list[float]:
    """Where each is drawn: at its error, or in the row of the exact ones."""
    return [row if _is_exact(record) else record["relative_error"] for record in records]


def _error_axis(axes, records) -> float:
    """Decades, and the row of the exact ones set off below them; returns where that row is."""
    decades = _decades(records)
    step = max(len(decades) - 1, 2) / 4
    row = 10.0 ** (decades[0] - step)
    axes.set(yscale="log", ylim=(row / 10**step, 10.0 ** decades[-1]))
    axes.set_yticks([row, *(10.0**decade for decade in decades)])
    at_most = rf"$\leq 10^{{{round(math.log10(DRAWN_AS_EXACT))}}}$"
    axes.set_yticklabels([at_most, *(f"$10^{{{decade}}}$" for decade in decades)])
    axes.minorticks_off()
    return row


def _cost_axis(axes, costs: list[float], label: str) -> None:
    """A logarithmic axis with room at the sides, its ticks plain numbers."""
    decades = math.log10(max(costs) / min(costs))
    room = 10 ** (0.15 + 0.12 * decades)
    axes.set(xscale="log", xlim=(min(costs) / room, max(costs) * room), xlabel=label)
    plain_log_ticks(axes.xaxis, 10**decades)


def _below(axes, row: float) -> tuple[float, float]:
    """The band around the row of the exact ones, from the lower end of the axis."""
    lowest = axes.get_ylim()[0]
    return lowest, row * math.sqrt(row / lowest)


def _points(axes, records, points: list[tuple[float, float]]) -> None:
    for point, record, style in zip(points, records, _styles(records), strict=True):
        spread = record["relative_error_error"]
        if spread is not None and not _is_exact(record):
            # no further down than a logarithmic axis goes
            reach = [[min(2 * spread, 0.9 * point[1])], [2 * spread]]
            axes.errorbar(*point, yerr=reach, color=style["color"], linewidth=1.2, capsize=3)
        axes.plot(*point, **style, zorder=5)


def _styles(records) -> list[dict[str, Any]]:
    """How each is marked: the colour of its kind, and a shape of its own within the kind."""
    kinds = [_kind(record) for record in records]
    return [
        {
            "color": _COLOURS[kind],
            "marker": _SHAPES[kinds[:i].count(kind) % len(_SHAPES)],
            "markersize": 8,
            "markeredgewidth": 1.8,
            "fillstyle": "none",  # one that lies below another is still seen
            "linestyle": "none",
        }
        for i, kind in enumerate(kinds)
    ]


def _legend(figure, records) -> None:
    """The names, under a heading for each kind."""
    from matplotlib.lines import Line2D

    nothing_drawn = Line2D([], [], linestyle="none")
    entries = []
    for kind, heading in _LEGEND.items():
        styled = zip(records, _styles(records), strict=True)
        named = [(Line2D([], [], **style), r["name"]) for r, style in styled if _kind(r) == kind]
        entries += [(nothing_drawn, heading), *named] if named else []
    handles, names = zip(*entries, strict=True)
    legend = figure.legend(handles, names, loc="outside right center", fontsize=9)
    for text in legend.get_texts():
        if text.get_text() in _LEGEND.values():
            text.set_fontweight("bold")
