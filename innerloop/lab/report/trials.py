"""What evaluations of a learned optimizer found, read from a run's folder."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from innerloop.lab.run_folder import RunFolder


@dataclass(frozen=True)
class Trials:
    """One evaluation: `curves` maps family -> optimizer -> quartiles over tasks `(3, steps + 1)`;
    `families` has the same with all that was recorded, as `trial_record` gives it.
    """

    tasks: int
    steps: int
    seed: int
    families: dict[str, dict[str, dict[str, Any]]]
    curves: dict[str, dict[str, np.ndarray]]


def read_trials(folder: RunFolder) -> list[Trials]:
    """Shorter runs first. Raises `RunError` for a damaged file."""
    names = sorted(path.name for path in folder.path.glob("optimizers-*.json"))
    return sorted((_read(folder, name) for name in names), key=lambda each: each.steps)


def _read(folder: RunFolder, name: str) -> Trials:
    content = folder.read_json(name)
    try:
        settings, families = content["settings"], content["families"]
        tasks, steps, seed = (int(settings[each]) for each in ("tasks", "steps", "seed"))
        curves = {
            family: {label: _quartiles(each, steps) for label, each in found.items()}
            for family, found in families.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise folder.damaged(name, error) from error
    return Trials(tasks, steps, seed, families, curves)


def _quartiles(trial: dict[str, Any], steps: int) -> np.ndarray:
    """Those of the curve; the others are checked alike."""
    for name in ("final", "area"):
        if np.asarray(trial[name], float).shape != (3,):
            raise ValueError(f"{name} is not three quartiles")
    if "rates" in trial:
        np.asarray(trial["rates"], float)[0]
    curve = np.asarray(trial["curve"], float)
    if curve.shape != (3, steps + 1):
        raise ValueError(f"a curve of shape {curve.shape} for {steps} steps")
    return curve
