"""Figures of a run: NumPy data in, one PNG file out.

Nothing here touches pyplot, a display or matplotlib's global settings, and matplotlib is imported
only when a figure is drawn. Each file is written under a temporary name and then moved into place,
so a reader never meets half a figure.
"""

from innerloop.lab.plots.adaptation_curve import adaptation_curve
from innerloop.lab.plots.comparison import error_against_cost
from innerloop.lab.plots.episodes import episodes_with_predictions
from innerloop.lab.plots.learning_curve import learning_curve
from innerloop.lab.plots.sinusoid_fits import sinusoid_fits
from innerloop.lab.plots.validation_over_time import validation_over_time

__all__ = [
    "adaptation_curve",
    "episodes_with_predictions",
    "error_against_cost",
    "learning_curve",
    "sinusoid_fits",
    "validation_over_time",
]
