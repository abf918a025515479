"""Figures of a run: NumPy data in, one PNG file out.

Nothing here touches pyplot, a display or matplotlib's global settings, and matplotlib is imported
only when a figure is drawn. Each file is written under a temporary name and then moved into place,
so a reader never meets half a figure.
"""

from innerloop.plots.adaptation_curve import adaptation_curve
from innerloop.plots.comparison import error_against_cost
from innerloop.plots.episodes import episodes_with_predictions
from innerloop.plots.learning_curve import learning_curve
from innerloop.plots.sinusoid_fits import sinusoid_fits
from innerloop.plots.validation_over_time import validation_over_time

__all__ = [
    "adaptation_curve",
    "episodes_with_predictions",
    "error_against_cost",
    "learning_curve",
    "sinusoid_fits",
    "validation_over_time",
]
