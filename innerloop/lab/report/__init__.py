"""The report: one HTML file that shows the folders of runs and fetches nothing."""

from innerloop.lab.report.page import write_report

__all__ = ["write_report"]
