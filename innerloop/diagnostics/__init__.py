"""Knowing before running: what is wrong, what each meta-gradient costs, what fits."""

from innerloop.diagnostics.check import check
from innerloop.diagnostics.compare import compare
from innerloop.diagnostics.comparison.table import Comparison, ComparisonRow
from innerloop.diagnostics.findings import Finding, Report, Severity
from innerloop.diagnostics.plan import Option, Plan, plan

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Finding",
    "Option",
    "Plan",
    "Report",
    "Severity",
    "check",
    "compare",
    "plan",
]
