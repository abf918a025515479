"""Figures of a run: functions that draw NumPy data into one PNG file.

The functions use neither pyplot nor a display and leave matplotlib's global settings as they are.
Matplotlib is imported when a figure is drawn. Each file is written under a temporary name and then
moved into place, so that a reader never finds half a figure.
"""

from innerloop.lab.plots.comparison import error_against_cost as error_against_cost
from innerloop.lab.plots.curves import adaptation_curve as adaptation_curve
from innerloop.lab.plots.curves import learning_curve as learning_curve
from innerloop.lab.plots.curves import validation_over_time as validation_over_time
from innerloop.lab.plots.episodes import episodes_with_predictions as episodes_with_predictions
from innerloop.lab.plots.predictions import predicted_images as predicted_images
from innerloop.lab.plots.sinusoid_fits import sinusoid_fits as sinusoid_fits
