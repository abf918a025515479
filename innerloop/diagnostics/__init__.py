"""Knowing before running: what is wrong, what each meta-gradient costs, what fits."""

from innerloop.diagnostics.check import check
from innerloop.diagnostics.findings import Finding, Report, Severity

__all__ = ["Finding", "Report", "Severity", "check"]
