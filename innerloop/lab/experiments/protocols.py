"""Tests that the authors of a data set fixed: the tasks, and their number of classes."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from innerloop.errors import RunError
from innerloop.lab.experiments.few_shot import FewShot
from innerloop.lab.experiments.images import FewShotImages
from innerloop.lab.experiments.omniglot import Omniglot
from innerloop.problem import Episode
from innerloop.tasks import omniglot_one_shot

ProtocolName = Literal["omniglot-one-shot"]


def within_alphabet(experiment: FewShot) -> tuple[FewShotImages, Episode]:
    """The 20 runs of within-alphabet 20-way one-shot classification of Omniglot."""
    if not isinstance(experiment, Omniglot):
        raise RunError(
            "omniglot-one-shot is a test of Omniglot",
            got=f"a run of {type(experiment).__name__.lower()}",
            expected="a run of omniglot",
            write="innerloop train omniglot --run RUN, then innerloop evaluate RUN "
            "--protocol omniglot-one-shot",
        )
    episodes = omniglot_one_shot(data=experiment.data)
    return dataclasses.replace(experiment, ways=20, train_ways=None, shots=1), episodes


PROTOCOLS: dict[ProtocolName, Callable[[FewShot], tuple[FewShotImages, Episode]]] = {
    "omniglot-one-shot": within_alphabet,
}
"""By name: a run's experiment, as the protocol asks for it, and the protocol's tasks."""
