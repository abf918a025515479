"""The table of experiments, and how a run's folder becomes one again."""

import os
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from innerloop.lab.experiments.base import Experiment
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.experiments.learned_optimizer import OptimizerTraining
from innerloop.lab.experiments.omniglot import Omniglot
from innerloop.lab.experiments.photographs import CifarFS, MiniImageNet
from innerloop.lab.experiments.sinusoid import Sinusoid
from innerloop.lab.run_folder import CONFIG, RunFolder

EXPERIMENTS: dict[str, type[Experiment]] = {
    "sinusoid": Sinusoid,
    "digits": Digits,
    "omniglot": Omniglot,
    "mini-imagenet": MiniImageNet,
    "cifar-fs": CifarFS,
    "learned-optimizer": OptimizerTraining,
}


def experiment_name(experiment: Experiment) -> str:
    """By which the command line knows it."""
    return next(name for name, kind in EXPERIMENTS.items() if type(experiment) is kind)


def read_experiment(folder: RunFolder) -> Experiment:
    """The experiment of a run. Raises `RunError` for a config that is none."""
    content = folder.read_config()
    with folder.reading(CONFIG):
        kind = EXPERIMENTS[content["experiment"]]
        config = content["config"]
        paths: dict[str, Any] = {
            name: Path(config[name]) for name in ("run", "data", "pretrained") if config.get(name)
        }
        # What JSON has no tuples for.
        lists: dict[str, Any] = {
            name: tuple(x) for name, x in config.items() if isinstance(x, list)
        }
        return kind(**(config | paths | lists))


def best_meta(run: str | os.PathLike[str]) -> PyTree:
    """The best meta-parameters, by validation, of a run folder that `innerloop train` wrote.

    Of a run that goes on, those so far. No data are read. Raises `RunError` where the folder holds
    no run, or a damaged one.
    """
    folder = RunFolder.open(Path(run))
    return load_best_meta(folder, read_experiment(folder))


def load_best_meta(folder: RunFolder, experiment: Experiment) -> PyTree:
    """The best meta-parameters of a run whose experiment is known."""
    return folder.load_meta(experiment.meta_shapes())
