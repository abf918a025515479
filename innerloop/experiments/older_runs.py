"""Runs that an older version began: read where that is sound, refused where it is not."""

from typing import Any

from innerloop.errors import RunError
from innerloop.training.run_folder import CONFIG, RunFolder

ADDED = {"augment": False, "network": "strided", "train_ways": None}
"""Settings that came later, and what runs before them did."""


def with_recipe(config: dict[str, Any]) -> dict[str, Any]:
    """A config in today's form: before there were recipes, a flag chose between two."""
    config = dict(config)
    if "first_order" in config:
        config["recipe"] = "fomaml" if config.pop("first_order") else "maml"
    return config


def refuse_without_recipe(folder: RunFolder) -> None:
    """Raise `RunError` for a run of that time: its flags mean something else to go on with."""
    if not folder.has(CONFIG):
        return
    config = folder.read_config()["config"]
    if "first_order" not in config:
        return
    recipe = with_recipe(config)["recipe"]
    raise RunError(
        "an older version, which knew no recipes, began this run",
        got=f"first_order in {folder.path / CONFIG}",
        expected="a run with a recipe",
        write=f"--recipe {recipe} --run {folder.path}-2 for a new run; innerloop evaluate "
        f"{folder.path} reads the old one",
    )
