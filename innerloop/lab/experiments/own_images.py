"""Few-shot classification of a folder of images."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from innerloop import tasks
from innerloop.errors import StructureError
from innerloop.lab.experiments.photographs import Photographs, cropped_and_mirrored
from innerloop.lab.experiments.ranges import PositiveInt
from innerloop.tasks.augmentation import Augment


@dataclass(frozen=True)
class OwnImages(Photographs):
    """Few-shot classification of your own images: a folder that holds a folder for each class.

    The network of MAML on miniImageNet, with each image normalised by itself, so that a prediction
    does not depend on the other images. Three fifths of the classes are for training, a fifth each
    for validation and test.
    """

    augmentation: ClassVar[Augment] = cropped_and_mirrored(4)
    steps: int = 5000
    shots: PositiveInt = 5
    test_queries: PositiveInt = 5
    queries: int = 5
    transductive: bool = False
    size: PositiveInt = 84
    """Pixels per side, to which every image is scaled."""
    split: Literal["classes", "files"] = "classes"
    """What the splits do not share: classes, for tasks of new classes; or files, for tasks of these
    classes with new images."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """What happens to files that cannot be read: an error, or a warning that counts them."""

    @property
    def image(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Height and width in pixels."""
        return self.size, self.size

    def splits(self) -> tasks.Splits:
        """Three parts of the folder's classes, or of each class's files."""
        if self.data is None:
            raise StructureError(
                "it is not known which images to learn",
                got="no --data",
                expected="a folder that holds a folder of image files for each class",
                write="--data FOLDER",
            )
        classes = tasks.image_folder(self.data, self.size, unreadable=self.unreadable)
        split = tasks.split_classes if self.split == "classes" else tasks.split_rows
        return split(classes)
