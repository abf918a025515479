"""The application on top of the library: experiments, runs, reports, figures, command line."""

from innerloop.lab.experiments.table import best_meta
from innerloop.lab.report import write_report

__all__ = ["best_meta", "write_report"]
