"""Runs that an older version began: read where that is sound, refused where it is not."""

from typing import Any

from innerloop.errors import RunError
from innerloop.lab.run_folder import CONFIG, RunFolder

_ADDED = {
    "augment": False,
    "network": "strided",
    "train_ways": None,
    "train_shots": None,
    "split": "standard",
    "clip_norm": None,
    "weight_decay": 0.0,
}
"""Settings that came later, and what runs before them did."""


def in_todays_form(config: dict[str, Any]) -> dict[str, Any]:
    """A config with today's fields.

    Before recipes, and before small splits, were flags of two; `shots` of sinusoids were those of
    training.
    """
    config = dict(config)
    if "first_order" in config:
        config["recipe"] = "fomaml" if config.pop("first_order") else "maml"
    if "official_split" in config:
        config["split"] = "official" if config.pop("official_split") else "standard"
    if "test_shots" in config:
        config |= {"train_shots": config.get("shots"), "shots": config.pop("test_shots")}
    return config


def compared_today(config: dict[str, Any]) -> dict[str, Any]:
    """A config in today's form, with the settings that came later."""
    return _ADDED | in_todays_form(config)


def refuse_without_recipe(folder: RunFolder) -> None:
    """Raise `RunError` for a run of that time: its flags mean something else to go on with."""
    if not folder.has(CONFIG):
        return
    config = folder.read_config()["config"]
    if "first_order" not in config:
        return
    recipe = in_todays_form(config)["recipe"]
    raise RunError(
        "an older version, which knew no recipes, began this run",
        got=f"first_order in {folder.path / CONFIG}",
        expected="a run with a recipe",
        write=f"--recipe {recipe} --run {folder.path}-2 for a new run; innerloop evaluate "
        f"{folder.path} reads the old one",
    )
