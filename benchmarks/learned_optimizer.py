"""A learned optimizer against tuned ones, on families that it was and was not trained on.

`innerloop train learned-optimizer --run RUN --minutes 40` trains one, and leaves it in
`RUN/learned.opt`. `python benchmarks/learned_optimizer.py FILE [--horizon 200] [--tasks 20]` writes
`results/learned-optimizer.json` and `docs/images/learned-optimizer.png`: SGD, momentum, Adam and
AdamW, each with the best of 26 rates for the family, Adam with the best for each task, and the
learned one. Then ten times as many steps, on families of both kinds.
"""

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import innerloop as il
from innerloop.experiments.optimizer_trials import (
    BASELINES,
    LEARNED,
    PER_TASK,
    family_record,
    seconds_per_step,
)
from innerloop.plots.style import new_figure
from innerloop.training.files import strict_json
from innerloop.training.run_folder import environment

RESULTS = Path(__file__).parent / "results" / "learned-optimizer.json"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "learned-optimizer.png"
LONGER = ("digits-32-relu", "digits-64x64-gelu")
"""Families that are also run ten times as long; the second is wider and deeper than all trained on.
"""


def evaluate(path: Path, horizon: int, tasks: int, seed: int) -> None:
    """Run all, write the raw numbers, then draw them."""
    learned, meta = il.load_optimizer(path)
    trained, held_out = il.training_families(), il.held_out_families()
    settings = {"steps": horizon, "tasks": tasks, "seed": seed}
    results = {"trained on": {}, "held out": {}, "ten times as long": {}}
    for group, families in (("trained on", trained), ("held out", held_out)):
        for family in families:
            results[group][family.name] = family_record(family, learned, meta, **settings)
            show(family.name, results[group][family.name])
    longer = settings | {"steps": 10 * horizon, "tasks": min(tasks, 10)}
    for family in trained + held_out:
        if family.name in LONGER:
            found = family_record(family, learned, meta, **longer)
            results["ten times as long"][family.name] = found
            show(f"{family.name}, ten times as long", found)
    (timed,) = (family for family in trained if family.name == LONGER[0])
    clock = lambda optimizer, meta: seconds_per_step(timed, optimizer, meta, steps=horizon)
    seconds = {name: clock(of, jnp.asarray(0.01)) for name, of in BASELINES.items()}
    content = {
        "optimizer": repr(learned),
        "settings": settings,
        "seconds_per_step": {LEARNED: clock(learned, meta), **seconds},
        "families": results,
        "environment": environment(),
    }
    RESULTS.write_text(strict_json(content, indent=1) + "\n")
    draw(json.loads(RESULTS.read_text())["families"])


def show(family: str, found: dict) -> None:
    """A line of a table: last loss and area, medians."""
    cells = (f"{name} {it['final'][1]:.4g} / {it['area'][1]:.4g}" for name, it in found.items())
    print(f"{family}: " + ", ".join(cells), flush=True)


def draw(families: dict) -> None:
    """Median and quartiles against steps, a panel for each family."""
    panels = [(name, found) for group in families.values() for name, found in group.items()]
    rows = -(-len(panels) // 4)
    with new_figure(FIGURE, (12, 2.6 * rows)) as (figure, done):
        axes = figure.subplots(rows, 4, squeeze=False).ravel()
        for panel, (name, found) in zip(axes, panels, strict=False):
            panel.set_title(f"{name}, {len(found['learned']['curve'][1]) - 1} steps", fontsize=8)
            for label in ("SGD", "Adam", PER_TASK, LEARNED):
                low, middle, high = np.asarray(found[label]["curve"], float)
                (line,) = panel.plot(middle, label=label, lw=2 if label == LEARNED else 1)
                panel.fill_between(
                    np.arange(len(low)), low, high, alpha=0.15, color=line.get_color()
                )
            panel.set_yscale("log")
        axes[0].legend(fontsize=7)
        done()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--horizon", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    evaluate(given.file, given.horizon, given.tasks, given.seed)


if __name__ == "__main__":
    main()
