"""Few-shot classification of small photographs: miniImageNet and CIFAR-FS."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from innerloop import tasks
from innerloop.lab.experiments.images import SETTINGS, FewShotImages
from innerloop.tasks.augmentation import Augment

_MAML = {"rate": 0.01, "steps": 5}  # on miniImageNet


def cropped_and_mirrored(padding: int) -> Augment:
    """Crops of images with an edge of this many pixels, and mirror images of half of them."""
    return tasks.Compose((tasks.RandomCrop(padding), tasks.RandomHorizontalFlip()))


@dataclass(frozen=True)
class Photographs(FewShotImages):
    """Few-shot classification of photographs.

    Conv-32 network with max pooling; the defaults are those of MAML on miniImageNet (Finn et al.
    2017, section 5.2), trained with 5 inner steps and tested with 10.
    """

    channels: ClassVar[int] = 3
    settings: ClassVar[dict[str, dict[str, Any]]] = SETTINGS | dict.fromkeys(
        ("maml", "fomaml", "anil"), _MAML
    )
    steps: int = 60_000
    batch: int = 4
    queries: int = 15
    filters: int = 32
    network: Literal["strided", "max_pool"] = "max_pool"
    usual_test_steps: ClassVar[int] = 10
    chunk: int | None = 1
    data: Path | None = None
    """Folder with the files, in place of INNERLOOP_DATA. They are not downloaded."""


@dataclass(frozen=True)
class MiniImageNet(Photographs):
    """Few-shot classification of miniImageNet, 5-way 1-shot: 84x84 photographs of 100 classes.

    Conv-32 network with max pooling; the defaults are those of MAML (Finn et al. 2017, section
    5.2), trained with 5 inner steps and tested with 10. The data come from the folder in
    INNERLOOP_DATA or --data.
    """

    image: ClassVar[tuple[int, int]] = (84, 84)
    augmentation: ClassVar[Augment] = cropped_and_mirrored(8)

    def splits(self) -> tasks.Splits:
        """The split of Ravi and Larochelle."""
        return tasks.mini_imagenet(data=self.data)


@dataclass(frozen=True)
class CifarFS(Photographs):
    """Few-shot classification of CIFAR-FS, 5-way 1-shot: 32x32 photographs of 100 classes.

    Network and defaults are those of miniImageNet. The data come from the folder in INNERLOOP_DATA
    or --data.
    """

    image: ClassVar[tuple[int, int]] = (32, 32)
    augmentation: ClassVar[Augment] = cropped_and_mirrored(4)

    def splits(self) -> tasks.Splits:
        """The split of Bertinetto et al."""
        return tasks.cifar_fs(data=self.data)
