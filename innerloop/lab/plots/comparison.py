"""The error of meta-gradients against their cost: memory on one side, time on the other."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from innerloop.lab.plots.style import BLUE, GREEN, RED, new_figure, nothing, plain_log_ticks

DRAWN_AS_EXACT = 1e-5
"""Relative error up to which a gradient is drawn as exact: rounding in single precision."""

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
    """Draw relative error against memory and against time, all on logarithmic axes.

    Records without a finite error, memory or time are left out. Errors of at most 10⁻⁵ share one
    row below the others.

    Args:
        path: The PNG file to write. Missing folders are made.
        records: Mappings, as `Comparison.records()` gives them: `name`; `fidelity`, a mapping whose
            `kind` is exact, unbiased or biased; `relative_error`, and its standard error
            `relative_error_error` or None; `memory` in bytes; `seconds` of one call.
        title: The title of the figure.

    Returns:
        `path`.

    Raises:
        StructureError: If no record is left to draw.
    """
    shown = [record for record in records if _complete(record)]
    if not shown:
        raise nothing("measured meta-gradients")
    styles = _styles(shown)
    with new_figure(path, (13.0, 5.0)) as (figure, done):
        left, right = figure.subplots(1, 2, sharey=True)
        figure.suptitle(title)
        left.set_ylabel("relative error of the meta-gradient")
        row = _error_axis(left, shown)
        memory = [record["memory"] / 2**20 for record in shown]
        milliseconds = [1e3 * record["seconds"] for record in shown]
        _cost_axis(left, memory, "peak memory, MiB")
        _cost_axis(right, milliseconds, "time per call, ms")
        lowest = left.get_ylim()[0]
        for axes, costs in ((left, memory), (right, milliseconds)):
            # The band around the row of the exact ones, from the lower end of the axis.
            axes.axhspan(lowest, row * math.sqrt(row / lowest), color="#F4F6F8", zorder=0)
            for cost, record, style in zip(costs, shown, styles, strict=True):
                _point(axes, cost, record, row, style)
        _legend(figure, left, shown)
        return done()


def _complete(record: Mapping[str, Any]) -> bool:
    numbers = [record.get(name) for name in ("relative_error", "memory", "seconds")]
    return all(number is not None and math.isfinite(number) for number in numbers)


def _is_exact(record: Mapping[str, Any]) -> bool:
    return record["relative_error"] <= DRAWN_AS_EXACT


def _error_axis(axes, records) -> float:
    """Ticks at decades, and the row of the exact ones below them; returns where that row is."""
    errors = [record["relative_error"] for record in records if not _is_exact(record)] or [1.0]
    lowest = math.floor(math.log10(min(errors)) - 0.2)
    decades = range(lowest, math.ceil(math.log10(max(errors)) + 0.2) + 1)
    step = max(len(decades) - 1, 2) / 4
    row = 10.0 ** (lowest - step)
    axes.set(yscale="log", ylim=(row / 10**step, 10.0 ** decades[-1]))
    at_most = rf"$\leq 10^{{{round(math.log10(DRAWN_AS_EXACT))}}}$"
    labels = [at_most, *(f"$10^{{{decade}}}$" for decade in decades)]
    axes.set_yticks([row, *(10.0**decade for decade in decades)], labels)
    axes.minorticks_off()
    return row


def _cost_axis(axes, costs: list[float], label: str) -> None:
    """A logarithmic axis with room at the sides and plain numbers at its ticks."""
    decades = math.log10(max(costs) / min(costs))
    room = 10 ** (0.15 + 0.12 * decades)
    axes.set(xscale="log", xlim=(min(costs) / room, max(costs) * room), xlabel=label)
    plain_log_ticks(axes.xaxis, 10**decades)


def _point(axes, cost: float, record: Mapping[str, Any], row: float, style: dict) -> None:
    """A record at its error, or in the row of the exact ones."""
    error, spread = record["relative_error"], record["relative_error_error"]
    if spread is not None and not _is_exact(record):
        # The lower end stays above zero, where a logarithmic axis ends.
        reach = [[min(2 * spread, 0.9 * error)], [2 * spread]]
        axes.errorbar(cost, error, yerr=reach, color=style["color"], linewidth=1.2, capsize=3)
    axes.plot(cost, row if _is_exact(record) else error, **style, label=record["name"], zorder=5)


def _styles(records) -> list[dict[str, Any]]:
    """The markers: the colour of each record's kind, and a shape of its own within the kind."""
    kinds = [record["fidelity"]["kind"] for record in records]
    # Not filled, so that a marker below another is still seen.
    common = {"markersize": 8, "markeredgewidth": 1.8, "fillstyle": "none", "linestyle": "none"}
    shapes = [_SHAPES[kinds[:i].count(kind) % len(_SHAPES)] for i, kind in enumerate(kinds)]
    return [
        {"color": _COLOURS[kind], "marker": shape, **common}
        for kind, shape in zip(kinds, shapes, strict=True)
    ]


def _legend(figure, axes, records) -> None:
    """The names of the points in `axes`, under a heading for each kind."""
    from matplotlib.lines import Line2D

    points = list(zip(*axes.get_legend_handles_labels(), strict=True))
    entries = []
    for kind, heading in _LEGEND.items():
        kinds = [record["fidelity"]["kind"] for record in records]
        named = [point for point, of in zip(points, kinds, strict=True) if of == kind]
        entries += [(Line2D([], [], linestyle="none"), heading), *named] if named else []
    legend = figure.legend(*zip(*entries, strict=True), loc="outside right center", fontsize=9)
    for text in legend.get_texts():
        if text.get_text() in _LEGEND.values():
            text.set_fontweight("bold")
