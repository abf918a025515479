"""Every recipe on Omniglot 5-way 1-shot for 3 minutes, and two of them for 30.

    python benchmarks/fewshot.py FOLDER [short] [long] [--only WORD ...] [--cores N]
    python benchmarks/fewshot.py FOLDER --write

trains into FOLDER what is not finished there, on the standard split of INNERLOOP_DATA; the same
command goes on after a stop. `--write` makes results/fewshot.json, results/fewshot.md and
the figures in docs/images of what is finished.
"""

from pathlib import Path
from typing import Any

from fewshot_figure import draw, draw_one
from runs import (
    RESULTS,
    Training,
    conditions,
    finished_runs,
    main,
    markdown_table,
    read_json,
    share,
    write_json,
)

from innerloop.recipes.table import RECIPES

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "fewshot.png"

# How many steps fit into the minutes is not known beforehand, so the rate stays as it is.
COMMON = {"cosine": False, "validation_tasks": 100, "per_call": 25, "save_every": 100}
SHORT = {
    "ways": 5,
    "shots": 1,
    "batch": 8,
    "minutes": 3,
    "averaging": 0.95,
    "validate_every": 100,
}
LONG = {"shots": 1, "minutes": 30, "averaging": 0.998, "validate_every": 500, "steps": 1_000_000}

# Where the authors have another batch, queries or training ways; and where a validation takes long.
_MORE_WAYS = {"train_ways": 20, "batch": 4}
RECIPE_FLAGS: dict[str, dict[str, Any]] = {
    "nearest_neighbour": {"steps": 200},
    "reptile": {"batch": 5, "queries": 1, "outer_rate": 3e-4, "validate_every": 500},
    "maml_plus_plus": {"queries": 1},
    "imaml": {"batch": 4, "validate_every": 200, "non_finite": "skip"},
    "pretrain_finetune": {"validate_every": 1000},
    "cavia": {"inner_steps": 5, "test_steps": 5},
    "protonet": _MORE_WAYS,
    "matching": _MORE_WAYS,
    "r2d2": _MORE_WAYS,
}
LONG_FLAGS: dict[str, dict[str, Any]] = {
    "protonet-5way-1shot": {"recipe": "protonet", "ways": 5, "train_ways": 20, "batch": 4},
    "protonet-20way-1shot": {"recipe": "protonet", "ways": 20, "train_ways": 60, "batch": 1},
    "maml-5way-1shot": {"recipe": "maml", "ways": 5, "batch": 8},
    "maml-20way-1shot": {
        "recipe": "maml",
        "ways": 20,
        "batch": 4,
        "queries": 2,
    },
}

TRAININGS = {
    "short": [
        Training(name, "omniglot", {"recipe": name} | COMMON | SHORT | RECIPE_FLAGS.get(name, {}))
        for name in RECIPES
    ],
    "long": [
        Training(f"{name}-long", "omniglot", COMMON | LONG | flags)
        for name, flags in LONG_FLAGS.items()
    ],
}

PUBLISHED = {
    "maml": {5: 98.7, 20: 95.8},
    "fomaml": {5: 98.3, 20: 89.4},
    "reptile": {5: 97.68, 20: 89.43},
    "imaml": {5: 99.16, 20: 94.46},
    "meta_sgd": {5: 99.53, 20: 95.93},
    "maml_plus_plus": {5: 99.47, 20: 97.65},
    "protonet": {5: 98.8, 20: 96.0},
    "matching": {5: 98.1, 20: 93.8},
}
"""1-shot accuracy in per cent, by ways, in the recipes' papers (iMAML by gradient descent)."""

PUBLISHED_TASKS = {"maml": {5: 60_000 * 32, 20: 60_000 * 16}}
PUBLISHED_TASKS["fomaml"] = PUBLISHED_TASKS["maml"]
PUBLISHED_TASKS["reptile"] = {5: 100_000 * 5, 20: 200_000 * 5}
PUBLISHED_TASKS["maml_plus_plus"] = {5: 50_000 * 8, 20: 50_000 * 8}
PUBLISHED_TASKS["imaml"] = {5: 20_000 * 32}
"""Outer steps times tasks per step, where the papers or their code state both."""


def row(record: dict[str, Any]) -> list[str]:
    """One run as a line of the tables."""
    config, test = record["config"], record["test"]
    recipe, ways = config["recipe"], config["ways"]
    reached = share(test["mean"]["accuracy"][-1], test["interval_95"]["accuracy"][-1])
    calibration = test.get("ece")
    published = PUBLISHED.get(recipe, {}).get(ways)
    gap = None if published is None else 100 * test["mean"]["accuracy"][-1] - published
    return [
        f"`{recipe}`",
        f"{ways}-way {config['shots']}-shot",
        reached,
        str(len(test["mean"]["accuracy"]) - 1),
        "" if calibration is None else f"{100 * calibration[-1]:.1f}",
        "yes" if record["normalisation"] == "transductive" else "no",
        f"{record['minutes_trained']:.1f}",
        f"{record['outer_steps']:,}",
        f"{record['tasks_trained']:,}",
        "not looked up" if published is None else f"{published:g}",
        "" if gap is None else f"{gap:+.1f}",
        "" if gap is None or gap >= 0 else reason(record),
    ]


def reason(record: dict[str, Any]) -> str:
    """Why a run is below its published figure: how much less it was trained."""
    config = record["config"]
    tasks = PUBLISHED_TASKS.get(config["recipe"], {}).get(config["ways"])
    spent = f"{record['minutes_trained']:.0f} minutes"
    if tasks is None:
        return f"{spent}; how many tasks the paper trained is not known here"
    return f"{spent}: {100 * record['tasks_trained'] / tasks:.2g}% of the paper's tasks"


def left_out(records: dict[str, dict[str, Any]]) -> str:
    """Which runs had outer steps without a finite meta-gradient."""
    return "".join(
        f"Of `{name}`, {record['faults']} steps with a non-finite meta-gradient were left out. "
        for name, record in records.items()
        if record["faults"]
    )


HEADINGS = [
    *("recipe", "tasks", "accuracy, %", "inner steps at test", "ECE, %", "transductive"),
    *("minutes trained", "outer steps", "tasks trained", "published, %", "gap", "why"),
]


def page(records: dict[str, dict[str, dict[str, Any]]]) -> str:
    """results/fewshot.md."""
    short, long = records["short"], records["long"]
    every = [*short.values(), *long.values()]
    by_accuracy = lambda record: -record["test"]["mean"]["accuracy"][-1]
    commands = "\n".join(record["command"] for record in every)
    return f"""# Few-shot classification of Omniglot

Standard split, strided conv-64 network unless the command says otherwise, quarter turns as
classes; accuracy is the mean over 600 fixed test tasks (seed 0, 15 queries per class) ± 95%
interval over tasks. Transductive: normalised with the statistics of all query images together.
{conditions(every)}
Raw numbers, with versions and validation curves: [fewshot.json](fewshot.json).

## Every recipe, 3 minutes

{markdown_table(HEADINGS, [row(record) for record in sorted(short.values(), key=by_accuracy)])}

{left_out(short)}
`nearest_neighbour` learns nothing that its accuracy depends on. Tasks of
`pretrain_finetune` are mini-batches of images of all classes. Published figures are those of the
recipes' papers, which train for hours on a GPU; a gap is in per cent points.

![Validation accuracy against minutes of all recipes](../../docs/images/{FIGURE.name})

## 30 minutes

{markdown_table(HEADINGS, [row(record) for record in long.values()])}

## Commands

`python benchmarks/fewshot.py FOLDER`, which runs these:

```sh
{commands}
```
"""


def write(folder: Path) -> None:
    before = read_json("fewshot.json")
    records = {
        kind: finished_runs(group, folder, before.get(kind, {}))
        for kind, group in TRAININGS.items()
    }
    print(write_json("fewshot.json", records))
    (RESULTS / "fewshot.md").write_text(page(records))
    if records["short"]:
        print(draw(FIGURE, records["short"]))
    for name in records["short"]:
        print(draw_one(FIGURE.parent / "few-shot" / f"{name}.png", name, records["short"]))


if __name__ == "__main__":
    main(__doc__, TRAININGS, write)
