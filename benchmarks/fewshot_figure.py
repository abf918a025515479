"""Validation accuracy of all recipes against wall-clock, in one figure and in one for each."""

from pathlib import Path
from typing import Any

import numpy as np
from line_ends import label_ends

from innerloop.lab.plots.style import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    ORANGE,
    RED,
    new_figure,
    per_cent,
)

COLOURS = (BLUE, ORANGE, GREEN, RED, INK, "#AA3377")
PANELS = {
    "the whole network is adapted": (
        *("maml", "fomaml", "reptile", "meta_sgd", "maml_plus_plus", "imaml"),
    ),
    "a part of it is adapted": ("anil", "boil", "cavia"),
    "parameters are computed in one go": (
        *("protonet", "matching", "r2d2", "logistic_head", "svm_head", "cnp"),
    ),
    "baselines": ("pretrain_finetune", "nearest_neighbour"),
}


def draw(path: Path, records: dict[str, dict[str, Any]]) -> Path:
    """A panel for each kind of recipe; the lines of the others are grey in it."""
    lines = {name: _line(record) for name, record in records.items()}
    lowest = min(accuracies.min() for _, accuracies in lines.values())
    last = max(minutes.max() for minutes, _ in lines.values())
    with new_figure(path, (10.5, 7.6)) as (figure, done):
        figure.suptitle("Omniglot 5-way 1-shot: validation accuracy against wall-clock")
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
        for panel, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
            panel.set(xlim=(0, 1.02 * last), ylim=(lowest - 0.02, 1.005))
            panel.set_title(title, loc="left")
            per_cent(panel.yaxis)
            _draw_panel(panel, lines, [name for name in names if name in lines])
        for panel in axes[1]:
            panel.set_xlabel("minutes, compilation and validation included")
        for panel in axes[:, 0]:
            panel.set_ylabel("validation accuracy")
        return done()


def draw_one(path: Path, name: str, records: dict[str, dict[str, Any]]) -> Path:
    """One recipe among the others: while it trained, and as it learns test tasks."""
    lines = {each: _line(record) for each, record in records.items()}
    test = records[name]["test"]
    accuracy, interval = (np.array(test[key]["accuracy"]) for key in ("mean", "interval_95"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_figure(path, (7.6, 2.4)) as (figure, done):
        trained, learned = figure.subplots(1, 2)
        for other, line in lines.items():
            mine = {"color": BLUE, "zorder": 3, "marker": "o", "markersize": 3.5}
            trained.plot(*line, **(mine if other == name else {"color": GRID, "linewidth": 1.2}))
        trained.set(xlabel="minutes of training", ylabel="validation accuracy", xlim=(0, None))
        steps = np.arange(len(accuracy))
        learned.errorbar(
            *(steps, accuracy, interval), color=BLUE, marker="o", markersize=3.5, capsize=3
        )
        learned.set(xlabel="inner steps", ylabel="test accuracy", ylim=(0, 1.04))
        learned.xaxis.get_major_locator().set_params(integer=True)
        if len(steps) == 1:
            learned.set_xticks([0], ["in one go"])
            learned.set_xlabel("")
        learned.axhline(1 / records[name]["config"]["ways"], color=GREY, linewidth=1, ls=":")
        for panel in (trained, learned):
            per_cent(panel.yaxis)
        return done()


def _line(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    curve = record["validation_curve"]
    minutes = np.array([point["seconds"] for point in curve]) / 60
    return minutes, np.array([point["accuracy"] for point in curve])


def _draw_panel(panel, lines: dict[str, tuple[np.ndarray, np.ndarray]], names: list[str]) -> None:
    for name, line in lines.items():
        if name not in names:
            panel.plot(*line, color=GRID, linewidth=1.2, zorder=1)
    for name, colour in zip(names, COLOURS, strict=False):
        marker = {"marker": "o", "markersize": 3.5}
        panel.plot(*lines[name], color=colour, zorder=3, **marker)
    ends = [(lines[name][0][-1], lines[name][1][-1]) for name in names]
    label_ends(panel, ends, names, COLOURS[: len(names)], room=0.06)
