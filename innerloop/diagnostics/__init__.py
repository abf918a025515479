"""Knowing before running: what is wrong, what each meta-gradient costs, what fits."""

from innerloop.diagnostics._check import check
from innerloop.diagnostics._compare import compare
from innerloop.diagnostics._plan import Option, Plan, plan
from innerloop.diagnostics.comparison.result import Comparison, ComparisonRow
from innerloop.diagnostics.findings import Finding, Report, Severity

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
