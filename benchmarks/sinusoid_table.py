"""Six recipes on sinusoids, tested 5-shot and 10-shot after 1, 5 and 10 steps on 10,000 tasks.

    python benchmarks/sinusoid_table.py FOLDER [--only WORD ...] [--cores N]
    python benchmarks/sinusoid_table.py FOLDER --write

trains into FOLDER what is not finished there; the same command goes on after a stop. `--write`
evaluates what is finished 10-shot, and makes results/sinusoid-table.json and
results/sinusoid-table.md.
"""

from pathlib import Path
from typing import Any

from runs import (
    RESULTS,
    Training,
    conditions,
    evaluation,
    finished_runs,
    main,
    markdown_table,
    read_json,
    write_json,
)

RECIPES = ("maml", "meta_sgd", "cavia", "reptile", "imaml", "cnp")
STEPS = (1, 5, 10)
FLAGS = {"steps": 70_000, "minutes": 8, "validate_every": 2000, "per_call": 250}
PUBLISHED = {("maml", 5): (0.67, 0.38, 0.35)}
"""MSE after 1, 5 and 10 steps of a MAML trained 10-shot with one step (Finn et al. 2017)."""

# The inner loop of iMAML, of 16 steps, diverges on single tasks, and its meta-gradient does not
# know. Reptile needs other rows of the same task to learn from, and has 50 in its authors' code.
ALSO = {"imaml": {"non_finite": "skip"}, "reptile": {"train_shots": 50}}

TRAININGS = {
    "all": [
        Training(recipe, "sinusoid", {"recipe": recipe} | FLAGS | ALSO.get(recipe, {}))
        for recipe in RECIPES
    ]
}


def ten_shot(run: Path) -> dict[str, Any]:
    """The run tested 10-shot, which is done where it has not been."""
    record = evaluation(run, "evaluation-seed0-steps*-tasks10000-shots10.json", "--shots", "10")
    return {name: record[name] for name in ("shots", "seed", "environment", "test")}


def rows(record: dict[str, Any]) -> list[list[str]]:
    """One run as two lines of the table, one for each number of shots."""
    tests = {record["config"]["shots"]: record["test"], 10: record["ten_shot"]["test"]}
    return [row(record, shots, test) for shots, test in tests.items()]


def _mean(mean: float | str, interval: float | str) -> str:
    """What is not finite is a word in JSON."""
    return "diverges" if isinstance(mean, str) else f"{mean:.3f} ± {interval:.3f}"


def row(record: dict[str, Any], shots: int, test: dict[str, Any]) -> list[str]:
    """One test of a run."""
    recipe = record["config"]["recipe"]
    means, intervals = (test[name]["loss"] for name in ("mean", "interval_95"))
    cell = lambda step: _mean(means[step], intervals[step])
    in_one_go = len(means) == 1
    cells = [cell(0)] * len(STEPS) if in_one_go else [cell(step) for step in STEPS]
    published = PUBLISHED.get((recipe, shots))
    return [
        f"`{recipe}`" + ", which takes no steps" * in_one_go,
        str(shots),
        *cells,
        "" if published is None else " / ".join(map(str, published)),
        f"{record['minutes_trained']:.1f}",
        f"{record['outer_steps']:,}",
        f"{record['tasks_trained']:,}",
    ]


def write(folder: Path) -> None:
    records = finished_runs(TRAININGS["all"], folder, read_json("sinusoid-table.json"))
    for name, record in records.items():
        if (folder / name / "result.json").exists():
            record["ten_shot"] = ten_shot(folder / name)
    print(write_json("sinusoid-table.json", records))
    after = [f"after {step} step{'s' * (step > 1)}" for step in STEPS]
    trained = ["minutes trained", "outer steps", "tasks trained"]
    headings = ["recipe", "shots", *after, "published", *trained]
    commands = "\n".join(record["command"] for record in records.values())
    page = f"""# Sinusoids

Mean squared error on 10,000 fixed test tasks (seed 0) ± 95% interval over tasks, 100 query points
each, of recipes trained 10-shot, once for both tests: the best meta-parameters were chosen by
5-shot validation. Two hidden layers of 40 units without normalisation, so nothing is transductive.
{conditions(records.values())} Raw numbers:
[sinusoid-table.json](sinusoid-table.json).

{markdown_table(headings, [line for record in records.values() for line in rows(record)])}

## Commands

`python benchmarks/sinusoid_table.py FOLDER`, which runs these, and for each of them
`innerloop evaluate RUN --shots 10`:

```sh
{commands}
```
"""
    (RESULTS / "sinusoid-table.md").write_text(page)


if __name__ == "__main__":
    main(__doc__, TRAININGS, write)
