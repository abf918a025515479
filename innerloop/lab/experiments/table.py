"""The table of experiments, and how a run's folder becomes one again."""

import os
from pathlib import Path

from jaxtyping import PyTree

from innerloop.errors import RunError
from innerloop.lab.experiments.base import Experiment
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.experiments.learned_optimizer import OptimizerTraining
from innerloop.lab.experiments.omniglot import Omniglot
from innerloop.lab.experiments.own_images import OwnImages
from innerloop.lab.experiments.photographs import CifarFS, MiniImageNet
from innerloop.lab.experiments.ranges import check_settings
from innerloop.lab.experiments.sinusoid import Sinusoid
from innerloop.lab.run_folder import CONFIG, OWN, RunFolder

EXPERIMENTS: dict[str, type[Experiment]] = {
    "sinusoid": Sinusoid,
    "digits": Digits,
    "omniglot": Omniglot,
    "mini-imagenet": MiniImageNet,
    "cifar-fs": CifarFS,
    "images": OwnImages,
    "learned-optimizer": OptimizerTraining,
}


_PATHS = ("run", "data", "pretrained")


def experiment_name(experiment: Experiment) -> str:
    """The name of the experiment on the command line."""
    return next(name for name, kind in EXPERIMENTS.items() if type(experiment) is kind)


def read_experiment(folder: RunFolder) -> Experiment:
    """The experiment of a run. Raises `RunError` if the config is not one of an experiment."""
    content = folder.read_config()
    config = content["config"]
    if content["experiment"] == OWN:
        raise RunError(
            "this run is not one of an experiment of innerloop",
            got=f"{folder.path}, which own_run has made",
            expected="a run of innerloop train; training.load_meta(RUN/best.eqx, like) reads the "
            "best meta-parameters of any run",
        )
    with folder.reading(CONFIG):
        # JSON has neither paths nor tuples.
        paths = {name: Path(config[name]) for name in _PATHS if config.get(name)}
        tuples = {name: tuple(x) for name, x in config.items() if isinstance(x, list)}
        experiment = EXPERIMENTS[content["experiment"]](**(config | paths | tuples))
        check_settings(experiment)
        return experiment


def best_meta(run: str | os.PathLike[str]) -> PyTree:
    """The best meta-parameters, by validation, of a run folder that `innerloop train` wrote.

    No data are read.

    Args:
        run: The folder. For an unfinished run, the best so far are returned.

    Returns:
        The meta-parameters.

    Raises:
        RunError: If the folder holds no run, or a damaged one.
    """
    folder = RunFolder.open(Path(run))
    return folder.load_meta(read_experiment(folder).meta_shapes())
