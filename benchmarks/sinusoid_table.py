"""Six recipes on sinusoids, tested 5-shot and 10-shot after 1, 5 and 10 steps on 10,000 tasks.

    python benchmarks/sinusoid_table.py FOLDER [--only WORD ...] [--cores N]
    python benchmarks/sinusoid_table.py FOLDER --write

trains into FOLDER what is not finished there; the same command goes on after a stop. `--write`
makes results/sinusoid-table.json and results/sinusoid-table.md of what is finished.
"""

from pathlib import Path
from typing import Any

from runs import (
    RESULTS,
    Training,
    conditions,
    finished_runs,
    main,
    markdown_table,
    read_json,
    write_json,
)

RECIPES = ("maml", "meta_sgd", "cavia", "reptile", "imaml", "cnp")
SHOTS, STEPS = (5, 10), (1, 5, 10)
FLAGS = {"shots": 10, "steps": 70_000, "minutes": 8, "validate_every": 2000, "per_call": 250}
PUBLISHED = {("maml", 5): (0.67, 0.38, 0.35)}
"""MSE after 1, 5 and 10 steps of a MAML trained 10-shot with one step (Finn et al. 2017)."""

TRAININGS = {
    "all": [
        Training(
            f"{recipe}-{shots}shot",
            "sinusoid",
            {"recipe": recipe, "test_shots": shots} | FLAGS,
        )
        for recipe in RECIPES
        for shots in SHOTS
    ]
}


def row(record: dict[str, Any]) -> list[str]:
    """One run as a line of the table."""
    config, test = record["config"], record["test"]
    means, intervals = (test[name]["loss"] for name in ("mean", "interval_95"))
    cell = lambda step: f"{means[step]:.3f} ± {intervals[step]:.3f}"
    in_one_go = len(means) == 1
    cells = [cell(0)] * len(STEPS) if in_one_go else [cell(step) for step in STEPS]
    published = PUBLISHED.get((config["recipe"], config["test_shots"]))
    return [
        f"`{config['recipe']}`" + ", which takes no steps" * in_one_go,
        str(config["test_shots"]),
        *cells,
        "" if published is None else " / ".join(map(str, published)),
        f"{record['minutes_trained']:.1f}",
        f"{record['outer_steps']:,}",
        f"{record['tasks_trained']:,}",
    ]


def write(folder: Path) -> None:
    records = finished_runs(TRAININGS["all"], folder, read_json("sinusoid-table.json"))
    print(write_json("sinusoid-table.json", records))
    after = [f"after {step} step{'s' * (step > 1)}" for step in STEPS]
    trained = ["minutes trained", "outer steps", "tasks trained"]
    headings = ["recipe", "shots", *after, "published", *trained]
    commands = "\n".join(record["command"] for record in records.values())
    page = f"""# Sinusoids

Mean squared error on 10,000 fixed test tasks (seed 0) ± 95% interval over tasks, 100 query points
each, of recipes trained 10-shot; two hidden layers of 40 units without normalisation, so nothing
is transductive. {conditions(records.values())} Raw numbers:
[sinusoid-table.json](sinusoid-table.json).

{markdown_table(headings, [row(record) for record in records.values()])}

## Commands

`python benchmarks/sinusoid_table.py FOLDER`, which runs these:

```sh
{commands}
```
"""
    (RESULTS / "sinusoid-table.md").write_text(page)


if __name__ == "__main__":
    main(__doc__, TRAININGS, write)
