"""Task distributions: where episodes come from."""

from innerloop.tasks.base import (
    IndependentTasks,
    TaskDistribution,
    evaluation_episodes,
    evaluation_key,
    sample_each,
)
from innerloop.tasks.counts import PerClass
from innerloop.tasks.digits import digits
from innerloop.tasks.image_classes import ImageClasses, upright, with_quarter_turns
from innerloop.tasks.images import ClassificationTasks
from innerloop.tasks.labelled_images import LabelledImages
from innerloop.tasks.mixture import Kind, TaskMixture, mixture
from innerloop.tasks.omniglot import (
    Alphabets,
    omniglot,
    omniglot_official,
    omniglot_small1,
    omniglot_small2,
)
from innerloop.tasks.sinusoid import SinusoidTasks
from innerloop.tasks.splits import Splits, check_disjoint

__all__ = [
    "Alphabets",
    "ClassificationTasks",
    "ImageClasses",
    "IndependentTasks",
    "Kind",
    "LabelledImages",
    "PerClass",
    "SinusoidTasks",
    "Splits",
    "TaskDistribution",
    "TaskMixture",
    "check_disjoint",
    "digits",
    "evaluation_episodes",
    "evaluation_key",
    "mixture",
    "omniglot",
    "omniglot_official",
    "omniglot_small1",
    "omniglot_small2",
    "sample_each",
    "upright",
    "with_quarter_turns",
]
