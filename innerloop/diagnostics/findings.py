"""Findings of a check: severity, place, cause and cure."""

import enum
from typing import NamedTuple

from innerloop.errors import GradientError


class Severity(enum.Enum):
    """How much a finding matters."""

    ERROR = "error"
    """The meta-gradient is wrong, not finite, or does not exist."""
    WARNING = "warning"
    """It may be wrong on other data, or training may not do what was meant."""
    NOTE = "note"
    """It is worth knowing."""


class Finding(NamedTuple):
    """One thing that is wrong.

    - `problem`: what, in one clause
    - `place`: where: a meta leaf's path, a primitive, `file.py:line (function)`
    - `cause`: why it is so
    - `cure`: what to write instead
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
    """Raised by a check that cannot be made of a problem: with the reason."""


class Report(NamedTuple):
    """All findings, the gravest first. It prints as text, and is true when there is a finding.

    - `left_out`: checks that could not be made, each with the reason
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
        """Raise `GradientError` with the first error, where there is one."""
        for first in self.errors:
            raise GradientError(
                first.problem,
                got=f"{first.cause} ({first.place})",
                expected="a problem on which check finds no errors",
                write=first.cure,
            )
