"""The official within-alphabet one-shot test of Omniglot, by what was learned from.

    python benchmarks/omniglot_one_shot.py FOLDER [--only WORD ...] [--cores N]
    python benchmarks/omniglot_one_shot.py FOLDER --write

trains `protonet`, `maml` and `r2d2` into FOLDER, on the full background set and on each small one;
the same command goes on after a stop. `--write` evaluates what is finished on the 20 official runs
and makes results/omniglot-one-shot.json and results/omniglot-one-shot.md.
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
    share,
    write_json,
)

PROTOCOL = "omniglot-one-shot"
SPLITS = {
    "official": "all 30 background alphabets",
    "small1": "5 alphabets (small 1)",
    "small2": "5 alphabets (small 2)",
}
COMMON = {
    "ways": 20,
    "shots": 1,
    "minutes": 8,
    "steps": 1_000_000,
    "batch": 4,
    "queries": 2,
    "cosine": False,
    "averaging": 0.99,
    "augment": True,
    "test_tasks": 200,
    "validate_every": 200,
    "validation_tasks": 50,
    "per_call": 25,
    "save_every": 100,
}
RECIPE_FLAGS: list[dict[str, Any]] = [
    {"recipe": "protonet"},
    {"recipe": "maml"},
    {"recipe": "r2d2"},
]
TRAININGS = {
    split: [
        Training(f"{flags['recipe']}-{split}", "omniglot", flags | {"split": split} | COMMON)
        for flags in RECIPE_FLAGS
    ]
    for split in SPLITS
}


def evaluated(run: Path) -> dict[str, Any]:
    """The run by the protocol, which is run where it has not been."""
    record = evaluation(run, f"evaluation-{PROTOCOL}-*.json", "--protocol", PROTOCOL)
    return {name: record[name] for name in ("protocol", "normalisation", "environment", "test")}


def row(record: dict[str, Any]) -> list[str]:
    """One run as a line of the table."""
    config, test = record["config"], record["one_shot"]["test"]
    return [
        f"`{config['recipe']}`",
        SPLITS[config["split"]],
        share(test["mean"]["error"][-1], test["interval_95"]["error"][-1]),
        f"{100 * test['ece'][-1]:.1f}",
        str(len(test["mean"]["error"]) - 1),
        "yes" if record["normalisation"] == "transductive" else "no",
        f"{record['minutes_trained']:.1f}",
        f"{record['outer_steps']:,}",
        f"{record['tasks_trained']:,}",
    ]


def write(folder: Path) -> None:
    trainings = [training for group in TRAININGS.values() for training in group]
    before = read_json("omniglot-one-shot.json")
    records = finished_runs(trainings, folder, before)
    for name, record in records.items():
        if (folder / name / "result.json").exists():
            record["one_shot"] = evaluated(folder / name)
    print(write_json("omniglot-one-shot.json", records))
    headings = ["recipe", "learned from", "error, %", "ECE, %", "inner steps", "transductive"]
    headings += ["minutes trained", "outer steps", "tasks trained"]
    commands = "\n".join(record["command"] for record in records.values())
    page = f"""# One-shot classification within an alphabet

The share of the 400 drawings of the 20 official runs (20-way, one drawing of each character to
learn from) that is classified wrongly ± 95% interval over runs; strided conv-64 network on 28 × 28
pixels. Transductive: normalised with the statistics of all 20 query drawings of a run together, of
which each class has one. Trained on nine tenths of the background characters, with quarter turns as
classes of their own, on images turned by up to 10 degrees and shifted by up to 2 pixels. The
modified Hausdorff distance, which learns from nothing, has an error of 38.8% (Lake et al. 2015).
{conditions(records.values())}
Raw numbers: [omniglot-one-shot.json](omniglot-one-shot.json).

{markdown_table(headings, [row(record) for record in records.values()])}

## Commands

`python benchmarks/omniglot_one_shot.py FOLDER`, which runs these, and for each of them
`innerloop evaluate RUN --protocol omniglot-one-shot`:

```sh
{commands}
```
"""
    (RESULTS / "omniglot-one-shot.md").write_text(page)


if __name__ == "__main__":
    main(__doc__, TRAININGS, write)
