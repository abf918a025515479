"""Few-shot classification of a folder of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from jaxtyping import PyTree

from innerloop import tasks
from innerloop.errors import StructureError
from innerloop.lab.calibration import calibrate
from innerloop.lab.experiments.base import Parts
from innerloop.lab.experiments.photographs import Photographs, cropped_and_mirrored
from innerloop.lab.experiments.ranges import PositiveInt
from innerloop.storage.files import strict_json, write_text
from innerloop.tasks.augmentation import Augment

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class OwnImages(Photographs):
    """Few-shot classification of your own images, in a folder with one folder for each class.

    The network is that of MAML on miniImageNet, but it normalises each image separately, so a
    prediction does not depend on the other query images. Three fifths of the classes are for
    training, one fifth is for validation, and one fifth is for the test.
    """

    augmentation: ClassVar[Augment] = cropped_and_mirrored(4)
    steps: int = 5000
    shots: PositiveInt = 5
    test_queries: PositiveInt = 5
    queries: int = 5
    transductive: bool = False
    size: PositiveInt = 84
    """Pixels per side of the scaled images."""
    split: Literal["classes", "files"] = "classes"
    """Whether splits differ in their classes or in their files. With classes, the test tasks have
    new classes; with files, they have new images of the training classes."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Whether files that cannot be read raise an error, or are left out with a warning."""

    @property
    def image(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Height and width in pixels."""
        return self.size, self.size

    def splits(self) -> tasks.Splits:
        """Splits the classes of the folder, or the files of each class, into three parts."""
        if self.data is None:
            raise StructureError(
                "the folder of the images is not given",
                got="no --data",
                expected="a folder that contains one folder of image files for each class",
                write="--data FOLDER",
            )
        classes = tasks.image_folder(self.data, self.size, unreadable=self.unreadable)
        split = tasks.split_classes if self.split == "classes" else tasks.split_rows
        return split(classes)

    def write_learned(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Three test episodes, and the calibration for `innerloop predict`."""
        (held_out,) = parts.held_out.values()
        found = calibrate(held_out, meta, self.seed)
        calibration = write_text(folder / CALIBRATION, strict_json(found._asdict(), indent=2))
        return [*super().write_learned(parts, meta, folder), calibration]
