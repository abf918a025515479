"""Task distributions, which draw the episodes."""

from innerloop.tasks._cifar_fs import cifar_fs as cifar_fs
from innerloop.tasks._digits import digits as digits
from innerloop.tasks._influence_balancing import influence_balancing as influence_balancing
from innerloop.tasks._mini_imagenet import mini_imagenet as mini_imagenet
from innerloop.tasks._omniglot import Alphabets as Alphabets
from innerloop.tasks._omniglot import omniglot as omniglot
from innerloop.tasks._omniglot import omniglot_official as omniglot_official
from innerloop.tasks._omniglot import omniglot_one_shot as omniglot_one_shot
from innerloop.tasks._omniglot import omniglot_small1 as omniglot_small1
from innerloop.tasks._omniglot import omniglot_small2 as omniglot_small2
from innerloop.tasks.augmentation import Augmented as Augmented
from innerloop.tasks.augmentation import Compose as Compose
from innerloop.tasks.augmentation import RandomAffine as RandomAffine
from innerloop.tasks.augmentation import RandomCrop as RandomCrop
from innerloop.tasks.augmentation import RandomHorizontalFlip as RandomHorizontalFlip
from innerloop.tasks.base import IndependentTasks as IndependentTasks
from innerloop.tasks.base import TaskDistribution as TaskDistribution
from innerloop.tasks.base import evaluation_episodes as evaluation_episodes
from innerloop.tasks.base import evaluation_key as evaluation_key
from innerloop.tasks.base import sample_each as sample_each
from innerloop.tasks.image_classes import ImageClasses as ImageClasses
from innerloop.tasks.image_classes import by_label as by_label
from innerloop.tasks.image_classes import upright as upright
from innerloop.tasks.image_classes import with_quarter_turns as with_quarter_turns
from innerloop.tasks.image_files import image_folder as image_folder
from innerloop.tasks.images import ClassificationTasks as ClassificationTasks
from innerloop.tasks.images import LabelledImages as LabelledImages
from innerloop.tasks.images import PerClass as PerClass
from innerloop.tasks.sinusoid import SinusoidTasks as SinusoidTasks
from innerloop.tasks.splits import Splits as Splits
from innerloop.tasks.splits import check_disjoint as check_disjoint
from innerloop.tasks.streamed import StoredImages as StoredImages
from innerloop.tasks.streamed import StreamedTasks as StreamedTasks

from innerloop.tasks import optimization as optimization  # isort: skip  (it reads the names above)
