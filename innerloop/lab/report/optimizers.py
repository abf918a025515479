"""The figure and the summary of a learned optimizer against tuned ones."""

import numpy as np

from innerloop.lab.experiments.optimizer_trials import LEARNED, PER_TASK
from innerloop.lab.plots.style import BLUE, GREEN, GREY, INK, ORANGE, RED, spread_axis, step_axis
from innerloop.lab.report.blocks import Figure
from innerloop.lab.report.drawing import draw
from innerloop.lab.report.trials import Trials

_LINES = {
    "SGD": (GREEN, "solid"),
    "momentum": (GREEN, "dashed"),
    "Adam": (ORANGE, "solid"),
    "AdamW": (RED, "dashed"),
    "Adam, cosine": (ORANGE, "dashed"),
    PER_TASK: (GREY, "dotted"),
    LEARNED: (BLUE, "solid"),
}


def wins(trials: Trials) -> str:
    """The number of families on which the learned optimizer has the lower median than Adam."""
    known = [found for found in trials.families.values() if {LEARNED, "Adam"} <= set(found)]
    parts = []
    for what, name in (("last loss", "final"), ("area", "area")):
        medians = [[float(found[of][name][1]) for of in (LEARNED, "Adam")] for found in known]
        better = sum(learned < adam for learned, adam in medians)
        parts.append(f"{better} of {len(known)} by {what}")
    return f"Families on which the learned one is below tuned Adam: {', '.join(parts)} (medians)."


def curves(family: str, found: dict[str, np.ndarray], title: str) -> Figure:
    """The median loss of each optimizer by inner step."""

    def panel(axes):
        for label, curve in found.items():
            colour, dashes = _LINES.get(label, (INK, "solid"))
            low, middle, high = np.where(np.isfinite(curve), curve, np.nan)
            steps, wide = np.arange(len(middle)), label == LEARNED
            style = {"color": colour, "zorder": 3 if wide else 2}
            width = 2.4 if wide else 1.3
            axes.plot(steps, middle, label=label, linestyle=dashes, linewidth=width, **style)
            if wide or label == "Adam":  # The bands of all would hide each other.
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        spread_axis(axes, np.concatenate([middle for _, middle, _ in found.values()]))
        axes.set(xlabel="inner step", ylabel="loss")
        step_axis(axes)
        axes.legend(loc="best", fontsize=7.5, ncols=2)

    return Figure(family, draw(f"loss on {family} {title}", panel))
