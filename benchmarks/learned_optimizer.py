"""A learned optimizer against tuned ones, on families that it was and was not trained on.

    python benchmarks/learned_optimizer.py FOLDER [--cores N]
    python benchmarks/learned_optimizer.py FOLDER --write

trains one into FOLDER by the defaults of the command line, in 40 minutes or less; the same goes on
after a stop. `--write` makes results/learned-optimizer.json, .md and .opt, and
docs/images/learned-optimizer.png: the learned one, SGD, momentum, Adam, AdamW and Adam with a
cosine schedule, each with the best of 26 rates for the family, and Adam with the best for each
task; on new tasks of the training families, on held-out families, on wider networks, and in ten
times as many steps. The tuned ones, which take an hour, are kept in FOLDER/tuned.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from runs import RESULTS, Training, conditions, finished_run, main, markdown_table

import innerloop as il
from innerloop.lab.experiments.optimizer_trials import (
    LEARNED,
    PER_TASK,
    baselines,
    learned_trial,
    seconds_per_step,
    trial_record,
    tuned_trials,
)
from innerloop.lab.plots.style import BLUE, GREY, ORANGE, new_figure
from innerloop.lab.run_folder import environment
from innerloop.storage.files import strict_json
from innerloop.tasks.optimization import Family

FIGURE = RESULTS.parents[1] / "docs" / "images" / "learned-optimizer.png"
RUN = Training("learned", "learned-optimizer", {"minutes": 40})
STEPS = 100
ADAM, COSINE = "Adam", "Adam, cosine"


class Trials(NamedTuple):
    """Families that are tried in so many steps, on so many tasks each, drawn by a seed."""

    families: list[Family]
    steps: int = STEPS
    tasks: int = 20
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """Keywords of a trial."""
        return {"steps": self.steps, "tasks": self.tasks, "seed": self.seed}


def groups() -> dict[str, Trials]:
    """What is tried, by heading."""
    digits, trained = (
        il.tasks.optimization.digits_table(),
        il.tasks.optimization.training_families(),
    )
    wider = [
        il.tasks.optimization.mlp_family(digits, (64,), "tanh"),
        il.tasks.optimization.mlp_family(digits, (128,), "relu", scale=(0.5, 2.0)),
    ]
    return {
        # The tasks of seeds 0 and 1 were looked at while what is learned was designed.
        "new tasks of the training families": Trials(trained, tasks=60, seed=2),
        "held-out families": Trials(il.tasks.optimization.held_out_families()),
        "networks four times as wide": Trials(wider),
        "ten times as many steps": Trials(trained[:6], steps=10 * STEPS, tasks=10),
    }


def tuned(folder: Path, family: Family, trials: Trials) -> dict[str, Any]:
    """The tuned optimizers on a family, tried where that has not been kept."""
    name = "-".join([family.name, *map(str, trials.settings().values())])
    kept = folder / "tuned" / f"{name}.json"
    if not kept.exists():
        found = tuned_trials(family, **trials.settings())
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(strict_json({name: trial_record(each) for name, each in found.items()}))
        print(kept, flush=True)
    return json.loads(kept.read_text())


def write(folder: Path) -> None:
    """Try all, write the raw numbers, the page and the figure."""
    run = folder / RUN.name
    training = finished_run(run)
    learned, meta = il.optimizers.load_optimizer(run / "learned.opt")
    found: dict[str, dict[str, Any]] = {}
    for heading, trials in groups().items():
        told = dataclasses.replace(learned, horizon=trials.steps)
        found[heading] = {}
        for family in trials.families:
            own = trial_record(learned_trial(family, told, meta, **trials.settings()))
            found[heading][family.name] = {LEARNED: own, **tuned(folder, family, trials)}
    timed = next(
        family
        for family in il.tasks.optimization.training_families()
        if family.name == "digits-32-relu"
    )
    rate = jnp.asarray(0.01)
    optimizers = {LEARNED: (learned, meta)}
    optimizers |= {name: (each, rate) for name, each in baselines(STEPS).items()}
    content = {
        "training": training,
        "optimizer": repr(learned),
        "groups": found,
        "seconds_per_step": {
            name: seconds_per_step(timed, *each, steps=STEPS) for name, each in optimizers.items()
        },
        "environment": environment(),
    }
    shutil.copy(run / "learned.opt", RESULTS / "learned-optimizer.opt")
    publish(content)


def publish(content: dict[str, Any]) -> None:
    """The raw numbers, to four digits, and what is made of them."""
    path = RESULTS / "learned-optimizer.json"
    path.write_text(strict_json(to_four_digits(content)) + "\n")
    content = json.loads(path.read_text())
    (RESULTS / "learned-optimizer.md").write_text(page(content))
    draw(content["groups"])


def to_four_digits(content: Any) -> Any:
    """JSON with shorter numbers: twenty-three families have 300,000 of them in their curves."""
    if isinstance(content, dict):
        return {name: to_four_digits(each) for name, each in content.items()}
    if isinstance(content, list | tuple):
        return [to_four_digits(each) for each in content]
    return float(f"{content:.4g}") if isinstance(content, float) else content


def row(family: str, found: dict[str, Any]) -> list[str]:
    """One family: medians, and on how many of the tasks the learned one is below Adam."""
    cells = [family]
    for what in ("final", "area"):
        median = {name: float(each[what][1]) for name, each in found.items()}
        cells += [f"{median[name]:.3g}" for name in (LEARNED, ADAM, COSINE, PER_TASK)]
        ratio = median[LEARNED] / median[ADAM]
        cells.append(f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0e}")
        own, theirs = (np.array(found[name]["tasks"][what], float) for name in (LEARNED, ADAM))
        cells.append(f"{np.sum(own < theirs)}/{len(own)}")
    return cells


def page(content: dict[str, Any]) -> str:
    """The results as Markdown."""
    training, seconds = content["training"], content["seconds_per_step"]
    columns = ["learned", "Adam", "cosine", "per task", "ratio", "tasks"]
    headings = ["family", *(f"last: {it}" for it in columns), *(f"area: {it}" for it in columns)]
    tables = "\n\n".join(
        f"## {heading[0].upper()}{heading[1:]}\n\n"
        + markdown_table(headings, [row(*each) for each in families.items()])
        for heading, families in content["groups"].items()
    )
    clock = ", ".join(f"{name} {1e6 * each:.0f}" for name, each in seconds.items())
    return f"""# A learned optimizer against tuned ones

`{content["optimizer"]}`, meta-trained on the
{len(il.tasks.optimization.training_families())} training families in
{training["minutes_trained"]:.1f} minutes ({training["outer_steps"]:,} outer steps of
{training["config"]["batch"]} inner runs of {training["config"]["horizon"]} steps).
{conditions([training])} {STEPS} steps, in the last table ten times as many, on new tasks of each
family, as many as the columns of tasks say; medians over tasks of the last loss and of the area
under the curve, the mean of the losses after each step. Adam, and Adam with a cosine schedule, have
the best of 26 rates from 10⁻⁴ to 10 for the family, found on other tasks, one for the last loss and
one for the area. “Per task” is Adam with the best rate for each very task, which no method could
know. Ratio: learned to Adam. Tasks: on how many the learned one is below Adam. SGD, momentum and
AdamW, quartiles and curves are in [learned-optimizer.json](learned-optimizer.json).

{tables}

Microseconds per inner step of one task of digits-32-relu: {clock}.

## Commands

```sh
python benchmarks/learned_optimizer.py FOLDER
python benchmarks/learned_optimizer.py FOLDER --write
```
"""


def draw(groups: dict[str, Any]) -> None:
    """Median and quartiles against steps, a panel for each family."""
    panels = [(name, found) for families in groups.values() for name, found in families.items()]
    lines = {ADAM: (ORANGE, "solid"), COSINE: (ORANGE, "dashed"), PER_TASK: (GREY, "dotted")}
    lines[LEARNED] = (BLUE, "solid")
    rows = -(-len(panels) // 4)
    with new_figure(FIGURE, (13, 2.5 * rows)) as (figure, done):
        axes = figure.subplots(rows, 4, squeeze=False).ravel()
        for panel, (name, found) in zip(axes, panels, strict=False):
            for label, (colour, dashes) in lines.items():
                low, middle, high = np.asarray(found[label]["curve"], float)
                wide = label == LEARNED
                panel.plot(middle, label=label, color=colour, ls=dashes, lw=2.2 if wide else 1.4)
                if label in (LEARNED, ADAM):
                    steps = np.arange(len(low))
                    panel.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_title(f"{name}, {len(middle) - 1:,} steps", fontsize=9)
            panel.set_yscale("log")
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        figure.supxlabel("inner step", fontsize=10)
        figure.supylabel("loss on the query set", fontsize=10)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        done()


if __name__ == "__main__":
    main(__doc__, {"all": [RUN]}, write)
