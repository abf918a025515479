"""Task distributions, which draw the episodes."""

from innerloop.tasks._by_label import by_label
from innerloop.tasks._cifar_fs import cifar_fs
from innerloop.tasks._digits import digits
from innerloop.tasks._image_folder import image_folder
from innerloop.tasks._influence_balancing import influence_balancing
from innerloop.tasks._mini_imagenet import mini_imagenet
from innerloop.tasks._omniglot import (
    Alphabets,
    omniglot,
    omniglot_official,
    omniglot_small1,
    omniglot_small2,
)
from innerloop.tasks._omniglot_one_shot import omniglot_one_shot
from innerloop.tasks.augmentation import (
    Augmented,
    Compose,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
)
from innerloop.tasks.base import (
    IndependentTasks,
    TaskDistribution,
    evaluation_episodes,
    evaluation_key,
    sample_each,
)
from innerloop.tasks.counts import PerClass
from innerloop.tasks.image_classes import ImageClasses, upright, with_quarter_turns
from innerloop.tasks.images import ClassificationTasks
from innerloop.tasks.labelled_images import LabelledImages
from innerloop.tasks.sinusoid import SinusoidTasks
from innerloop.tasks.splits import Splits, check_disjoint
from innerloop.tasks.streamed import StoredImages, StreamedTasks

from innerloop.tasks import optimization  # isort: skip  (it reads the names above)

__all__ = [
    "Alphabets",
    "Augmented",
    "ClassificationTasks",
    "Compose",
    "ImageClasses",
    "IndependentTasks",
    "LabelledImages",
    "PerClass",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "SinusoidTasks",
    "Splits",
    "StoredImages",
    "StreamedTasks",
    "TaskDistribution",
    "by_label",
    "check_disjoint",
    "cifar_fs",
    "digits",
    "evaluation_episodes",
    "evaluation_key",
    "image_folder",
    "influence_balancing",
    "mini_imagenet",
    "omniglot",
    "omniglot_official",
    "omniglot_one_shot",
    "omniglot_small1",
    "omniglot_small2",
    "optimization",
    "sample_each",
    "upright",
    "with_quarter_turns",
]
