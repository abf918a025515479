"""A run's folder as a page: one HTML file that holds all it shows and fetches nothing."""

from innerloop.lab.report.page import write_report

__all__ = ["write_report"]
