"""The evaluations of a learned optimizer against tuned ones, read from a run's folder."""

from typing import Any, NamedTuple

import numpy as np

from innerloop.lab.run_folder import RunFolder


class Trials(NamedTuple):
    """One evaluation.

    Attributes:
        tasks: Tasks of each family.
        steps: Inner steps.
        seed: The seed of the tasks.
        families: By family and by optimizer, what `trial_record` gives.
        curves: By family and by optimizer, the quartiles of the loss over tasks, `(3, steps + 1)`.
    """

    tasks: int
    steps: int
    seed: int
    families: dict[str, dict[str, dict[str, Any]]]
    curves: dict[str, dict[str, np.ndarray]]


def read_trials(folder: RunFolder) -> list[Trials]:
    """All evaluations, shorter runs first. Raises `RunError` for a damaged file."""
    names = sorted(path.name for path in folder.path.glob("optimizers-*.json"))
    return sorted((_read(folder, name) for name in names), key=lambda each: each.steps)


def _read(folder: RunFolder, name: str) -> Trials:
    content = folder.read_json(name)
    with folder.reading(name):
        settings, families = content["settings"], content["families"]
        tasks, steps, seed = (int(settings[each]) for each in ("tasks", "steps", "seed"))
        curves = {
            family: {label: _curve(each, steps) for label, each in found.items()}
            for family, found in families.items()
        }
        return Trials(tasks, steps, seed, families, curves)


def _curve(trial: dict[str, Any], steps: int) -> np.ndarray:
    """The quartiles of the curve. The other entries of the trial are checked too."""
    for name, shape in {"final": (3,), "area": (3,), "curve": (3, steps + 1)}.items():
        if np.shape(np.asarray(trial[name], float)) != shape:
            raise ValueError(f"{name} is not of shape {shape}: three quartiles")
    if "rates" in trial:
        np.asarray(trial["rates"], float)[0]
    return np.asarray(trial["curve"], float)
