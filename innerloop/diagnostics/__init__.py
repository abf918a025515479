"""Checks before a run: errors in a problem, the cost of each meta-gradient, memory planning."""

from innerloop.diagnostics._check import check as check
from innerloop.diagnostics._compare import compare as compare
from innerloop.diagnostics._plan import Option as Option
from innerloop.diagnostics._plan import Plan as Plan
from innerloop.diagnostics._plan import plan as plan
from innerloop.diagnostics.comparison.result import Comparison as Comparison
from innerloop.diagnostics.comparison.result import ComparisonRow as ComparisonRow
from innerloop.diagnostics.findings import Finding as Finding
from innerloop.diagnostics.findings import Report as Report
from innerloop.diagnostics.findings import Severity as Severity
