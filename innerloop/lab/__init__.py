"""The application on top of the library: experiments, runs, reports, figures, command line.

It needs innerloop[lab]. The rest of the package does not import it.
"""

from importlib.util import find_spec

from innerloop.checks import optional_package

for _package in ("tyro", "rich", "matplotlib", "jinja2", "markupsafe"):
    if find_spec(_package) is None:  # Found and not imported: some take a second.
        optional_package(_package, "innerloop.lab", extra="lab")

from innerloop.lab._own_run import OwnRun, own_run  # noqa: E402
from innerloop.lab.experiments.table import best_meta  # noqa: E402
from innerloop.lab.prediction import Predictions, predict  # noqa: E402
from innerloop.lab.report import write_report  # noqa: E402

__all__ = ["OwnRun", "Predictions", "best_meta", "own_run", "predict", "write_report"]
