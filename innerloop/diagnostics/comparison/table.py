"""What `compare` found: one row per meta-gradient, as a table, as data and as a figure."""

import io
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from innerloop.gradients import Fidelity, MetaGradient

MIB = 2**20


class ComparisonRow(NamedTuple):
    """One meta-gradient, held against the exact one.

    - `name`: how the estimator is written
    - `gradient`: the estimator
    - `fidelity`: how far it should be from exact, and why; None where it was refused
    - `refusal`: why there is no estimate, and what to write instead; None where there is one
    - `cosine`: of the angle between estimate and exact gradient, from -1 to 1
    - `cosine_error`: its standard error over draws; None for a deterministic estimate
    - `relative_error`: ‖estimate - exact‖ / ‖exact‖
    - `relative_error_error`: its standard error over draws; None for a deterministic estimate
    - `memory`: peak bytes of the compiled program: arguments, results and everything between
    - `compile_seconds`: that tracing and compiling took
    - `seconds`: of one call, the median of warm ones
    - `note`: why a number is undefined; None where none is

    What was not measured is None, what is undefined NaN. Cosine and relative error of a stochastic
    estimate are means over draws.
    """

    name: str
    gradient: MetaGradient
    fidelity: Fidelity | None = None
    refusal: str | None = None
    cosine: float | None = None
    cosine_error: float | None = None
    relative_error: float | None = None
    relative_error_error: float | None = None
    memory: int | None = None
    compile_seconds: float | None = None
    seconds: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Meta-gradients side by side. `print` shows it as a table.

    - `rows`: in the order in which the estimators were given
    - `reference`: name of the row that the others are held against
    - `tasks`: tasks in the batch
    - `parameters`: numbers in meta
    - `draws`: keys that stochastic estimators were drawn with
    """

    rows: tuple[ComparisonRow, ...]
    reference: str
    tasks: int
    parameters: int
    draws: int

    def __getitem__(self, name: str) -> ComparisonRow:
        """The row of that name. Raises `KeyError` where there is none."""
        rows = {row.name: row for row in self.rows}
        if name in rows:
            return rows[name]
        raise KeyError(f"{name!r} is none of {', '.join(rows)}")

    def records(self) -> list[dict[str, Any]]:
        """The rows as JSON-able data: bytes and seconds; None for what is missing or undefined."""
        return [_record(row) for row in self.rows]

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON-able data."""
        return {
            "reference": self.reference,
            "tasks": self.tasks,
            "parameters": self.parameters,
            "draws": self.draws,
            "rows": self.records(),
        }

    def plot(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Draw error against memory and error against time into a PNG file; returns its path.

        Refused estimators and undefined errors are left out. Raises `StructureError` where that
        leaves nothing.
        """
        from innerloop.lab.plots import error_against_cost

        return error_against_cost(path, self.records(), title=title or self._headline())

    def _headline(self) -> str:
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        return f"Held against {self.reference}: {tasks}, {self.parameters:,} meta-parameters"

    def __rich__(self) -> Any:
        """The table, what each estimator drops, and why some are refused."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [Text(self._headline(), style="bold"), "", self._table(), ""]
        known = next(row.fidelity for row in self.rows if row.name == self.reference)
        dropped = [
            (row.name, row.fidelity.sentence)
            for row in self.rows
            if row.fidelity and not row.refusal and known and row.fidelity[:2] != known[:2]
        ]
        refused = [(row.name, row.refusal) for row in self.rows if row.refusal]
        noted = [(row.name, row.note) for row in self.rows if row.note]
        sections = {"Fidelity": dropped, "Refused": refused, "Undefined": noted}
        for heading, lines in sections.items():
            if lines:
                parts += [Text(heading, style="bold"), _list(lines), ""]
        return Group(*parts[:-1])

    def __str__(self) -> str:
        from rich.console import Console

        width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 100)
        console = Console(
            file=io.StringIO(), width=width, no_color=True, force_terminal=False, highlight=False
        )
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0))
        table.add_column("\nmeta-gradient", overflow="fold")
        table.add_column("", no_wrap=True)
        headings = ("\ncosine", "relative\nerror", "\nMiB", "ms per\ncall", "s to\ncompile")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True, min_width=6)
        for row in self.rows:
            table.add_row(*_cells(row))
        return table


def _cells(row: ComparisonRow) -> list[str]:
    kind = "refused" if row.refusal else row.fidelity.kind if row.fidelity else ""
    memory = None if row.memory is None else row.memory / MIB
    milliseconds = None if row.seconds is None else 1e3 * row.seconds
    return [
        row.name,
        kind,
        _spread(row.cosine, row.cosine_error, "{:.4f}"),
        _spread(row.relative_error, row.relative_error_error, "{:.3f}"),
        _measure(memory),
        _measure(milliseconds),
        "–" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
    ]


def _spread(value: float | None, error: float | None, form: str) -> str:
    """A number and its standard error, both to the first digit of the latter."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "undefined"
    if error is None or not math.isfinite(error):
        if value == 0:
            return "0"
        return f"{value:.0e}" if abs(value) < 1e-3 else form.format(value)
    digits = -math.floor(math.log10(error)) if error > 0 else 4
    digits = min(max(digits, 0), 4)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _measure(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return "–"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(max(digits, 0), 3)}f}"


def _list(lines: list[tuple[str, Any]]) -> Any:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(ratio=1, overflow="fold")
    grid.add_column(ratio=2)
    for name, text in lines:
        grid.add_row(name, text)
    return grid


def _record(row: ComparisonRow) -> dict[str, Any]:
    record = row._asdict()
    del record["gradient"]  # its name says it
    known = row.fidelity
    record["fidelity"] = known and {"kind": known.kind, "sentence": known.sentence}
    return {name: _finite(value) for name, value in record.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
