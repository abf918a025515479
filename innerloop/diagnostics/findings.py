"""Findings of a check: severity, place, cause and cure."""

import enum
from typing import NamedTuple

from innerloop.errors import GradientError


class Severity(enum.Enum):
    """How much a finding matters."""

    ERROR = "error"
    """The meta-gradient is wrong, not finite, or does not exist."""
    WARNING = "warning"
    """The meta-gradient may be wrong on other data, or training may not do what was intended."""
    NOTE = "note"
    """It is for information only."""


class Finding(NamedTuple):
    """One problem that a check found.

    Attributes:
        severity: How much it matters.
        problem: The problem, in one clause.
        place: Its place: a meta leaf's path, a primitive, `file.py:line (function)`.
        cause: Why it occurs.
        cure: What to write instead.
    """

    severity: Severity
    problem: str
    place: str
    cause: str
    cure: str

    def __str__(self) -> str:
        return (
            f"{self.severity.value}: {self.problem}\n  place: {self.place}\n"
            f"  cause: {self.cause}\n  cure:  {self.cure}"
        )


class NotChecked(Exception):
    """Raised, with the reason, by a check that cannot be made for a problem."""


class Report(NamedTuple):
    """All findings, the most severe first. It prints as text, and is true if there is a finding.

    Attributes:
        findings: The findings.
        left_out: The checks that could not be made, each with the reason.
    """

    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.findings)

    def __str__(self) -> str:
        lines = list(map(str, self.findings)) or ["No findings."]
        return "\n".join([*lines, *(f"not checked: {check}" for check in self.left_out)])

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity `ERROR`."""
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    def raise_errors(self) -> None:
        """Raise `GradientError` with the first error, if there is one."""
        for first in self.errors:
            raise GradientError(
                first.problem,
                got=f"{first.cause} ({first.place})",
                expected="a problem on which check finds no errors",
                write=first.cure,
            )
