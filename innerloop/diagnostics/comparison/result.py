"""The result of `compare`: one row per meta-gradient, as a table and as data."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from innerloop.diagnostics.text import definitions, table
from innerloop.gradients import Fidelity, MetaGradient

MIB = 2**20


class ComparisonRow(NamedTuple):
    """One meta-gradient, compared with the exact one.

    A number that was not measured is None; one that is undefined is NaN. Cosine and relative error
    of a stochastic estimate are means over draws.

    Attributes:
        name: The name of the meta-gradient.
        gradient: The meta-gradient.
        fidelity: How far the meta-gradient should be from exact, and why; None if it was refused.
        refusal: Why there is no estimate, and what to write instead; None if there is one.
        cosine: Cosine of the angle between estimate and exact gradient, from -1 to 1.
        cosine_error: Its standard error over draws; None for a deterministic estimate.
        relative_error: ‖estimate - exact‖ / ‖exact‖.
        relative_error_error: Its standard error over draws; None for a deterministic estimate.
        memory: Peak bytes of the compiled program: arguments, results and all temporary values.
        compile_seconds: How long tracing and compiling took.
        seconds: The median time of a warm call.
        note: Why a number is undefined; None if none is.
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
    """Meta-gradients side by side. `print` shows the table.

    Attributes:
        rows: The rows, in the order in which the meta-gradients were given.
        reference: The name of the row that the others are compared with.
        tasks: The number of tasks in the batch.
        parameters: The number of meta-parameters.
        draws: The number of keys that stochastic meta-gradients were drawn with.
    """

    rows: tuple[ComparisonRow, ...]
    reference: str
    tasks: int
    parameters: int
    draws: int

    def __getitem__(self, name: str) -> ComparisonRow:
        """The row of that name; raises `KeyError` if there is none."""
        rows = {row.name: row for row in self.rows}
        if name in rows:
            return rows[name]
        raise KeyError(f"{name!r} is none of {', '.join(rows)}")

    def records(self) -> list[dict[str, Any]]:
        """The rows as JSON-able data, in bytes and seconds; None if missing or undefined."""
        return [_record(row) for row in self.rows]

    def as_dict(self) -> dict[str, Any]:
        """The rows and the settings as JSON-able data."""
        return vars(self) | {"rows": self.records()}

    def headline(self) -> str:
        """The settings of the comparison, in one line."""
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        return f"Compared with {self.reference}: {tasks}, {self.parameters:,} meta-parameters"

    def __str__(self) -> str:
        """The table, what each meta-gradient drops, and why some are refused."""
        parts = [self.headline(), table(_HEADINGS, list(map(_cells, self.rows)), right=2)]
        fidelity = self[self.reference].fidelity
        known = fidelity and fidelity.sentence
        dropped = [
            (row.name, row.fidelity.sentence)
            for row in self.rows
            if row.fidelity and not row.refusal and row.fidelity.sentence != known
        ]
        refused = [(row.name, row.refusal) for row in self.rows if row.refusal]
        noted = [(row.name, row.note) for row in self.rows if row.note]
        sections = {"Fidelity": dropped, "Refused": refused, "Undefined": noted}
        parts += [f"{heading}\n{definitions(said)}" for heading, said in sections.items() if said]
        return "\n\n".join(parts)


_ERRORS, _COSTS = ("cosine", "relative\nerror"), ("MiB", "ms per\ncall", "s to\ncompile")
_HEADINGS = ("meta-gradient", "", *_ERRORS, *_COSTS)


def _cells(row: ComparisonRow) -> list[str]:
    kind = "refused" if row.refusal else row.fidelity.kind if row.fidelity else ""
    cosine = _spread(row.cosine, row.cosine_error, "{:.4f}")
    error = _spread(row.relative_error, row.relative_error_error, "{:.3f}")
    compiling = "–" if row.compile_seconds is None else f"{row.compile_seconds:.1f}"
    amounts = _measure(row.memory, 1 / MIB), _measure(row.seconds, 1e3)
    return [row.name, kind, cosine, error, *amounts, compiling]


def _spread(value: float | None, error: float | None, form: str) -> str:
    """A number and its standard error, both rounded to the first digit of the error."""
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


def _measure(value: int | float | None, scale: float) -> str:
    """A number with three digits, without an exponent."""
    if value is None:
        return "–"
    value *= scale
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(max(digits, 0), 3)}f}"


def _record(row: ComparisonRow) -> dict[str, Any]:
    record = row._asdict()
    del record["gradient"]  # its name describes it
    known = row.fidelity
    record["fidelity"] = known and {"kind": known.kind, "sentence": known.sentence}
    undefined = lambda value: isinstance(value, float) and not math.isfinite(value)
    return {name: None if undefined(value) else value for name, value in record.items()}
