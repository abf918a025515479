"""Few-shot classification of Omniglot characters: the field's standard benchmark."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import equinox as eqx

from innerloop.errors import RunError
from innerloop.lab.experiments.few_shot import FewShot
from innerloop.lab.experiments.images import FewShotImages
from innerloop.problem import Episode
from innerloop.tasks import Splits, omniglot, omniglot_official, omniglot_one_shot

ProtocolName = Literal["omniglot-one-shot"]
"""Names of the tests whose tasks the authors of a data set fixed."""


@dataclass(frozen=True)
class Omniglot(FewShotImages):
    """Few-shot classification of Omniglot characters, 5-way 1-shot.

    Strided conv-64 network; MAML's inner rate and steps are those of its paper (Finn et al. 2017,
    section 5.2): 1 step in training and 3 at test of 5-way tasks, 5 steps of 20-way ones. The data
    come from the folder in INNERLOOP_DATA, or are downloaded.
    """

    steps: int = 20_000
    batch: int = 16
    usual_test_steps: ClassVar[int] = 3
    chunk: int | None = 1
    split: Literal["standard", "official", "small1", "small2"] = "standard"
    """1200/423 characters regardless of alphabet; or the background alphabets for training, all of
    them or one of the two small sets, and the evaluation alphabets for the test."""
    data: Path | None = None
    """Folder with the archives, in place of INNERLOOP_DATA."""

    def recipe_settings(self) -> dict[str, Any]:
        """The settings of the paper for this number of ways."""
        of_20_ways = {"rate": 0.1, "steps": 5} if self.recipe in ("maml", "fomaml") else {}
        return super().recipe_settings() | (of_20_ways if self.ways >= 20 else {})

    def splits(self) -> Splits:
        """Characters regardless of alphabet, or official background and evaluation sets."""
        if self.split == "standard":
            return omniglot(data=self.data)
        background = "full" if self.split == "official" else self.split
        return omniglot_official(background=background, data=self.data)


def one_shot_protocol(run: Path, experiment: FewShot) -> tuple[Omniglot, Episode]:
    """The 20 runs of within-alphabet 20-way one-shot classification, `omniglot-one-shot`.

    Args:
        run: The folder of a run, for errors.
        experiment: The experiment of the run.

    Returns:
        The experiment as the protocol asks for it, and the protocol's tasks.

    Raises:
        RunError: If the run is of other data, or its network has another number of outputs.
    """
    if not isinstance(experiment, Omniglot):
        raise RunError(
            "omniglot-one-shot is a test of Omniglot",
            got=f"a run of {type(experiment).__name__.lower()}",
            expected="a run of innerloop train omniglot",
        )
    tested = replace(experiment, ways=20, train_ways=None, shots=1)
    if not eqx.tree_equal(experiment.meta_shapes(), tested.meta_shapes()):
        raise RunError(
            "the protocol has tasks of 20 classes, but the run's network has other outputs",
            got=f"{run}, trained with --recipe {experiment.recipe} --ways {experiment.ways}",
            expected="a run with --ways 20, or of a recipe whose network has no outputs of its "
            "own, such as protonet",
        )
    return tested, omniglot_one_shot(data=experiment.data)
