"""Few-shot classification of scikit-learn's embedded handwritten digits: real data, no download."""

from dataclasses import dataclass
from typing import ClassVar

from innerloop.lab.experiments.images import FewShotImages
from innerloop.tasks import RandomAffine, Splits, digits
from innerloop.tasks.augmentation import Augment


@dataclass(frozen=True)
class Digits(FewShotImages):
    """Few-shot classification of 8x8 handwritten digits; rotated digits are further classes."""

    image: ClassVar[tuple[int, int]] = (8, 8)
    augmentation: ClassVar[Augment] = RandomAffine(degrees=10, shift=1)
    # Fourteen classes are soon memorised: validation peaks within some hundred steps.
    steps: int = 300
    validate_every: int = 20
    per_call: int = 20
    save_every: int = 100
    usual_test_steps: ClassVar[int] = 5
    filters: int = 32

    def splits(self) -> Splits:
        """Classes split by digit: 14 for training, 8 for validation, 8 for test."""
        return digits()
