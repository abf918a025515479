"""Few-shot classification of scikit-learn's embedded handwritten digits: real data, no download."""

from dataclasses import dataclass

from innerloop.experiments.images import FewShotImages
from innerloop.tasks import Splits, digits


@dataclass(frozen=True)
class Digits(FewShotImages):
    """MAML on 8x8 handwritten digits, turned digits as extra classes, split by digit."""

    steps: int = 3000
    batch: int = 8
    inner_rate: float = 0.4
    inner_steps: int = 1
    filters: int = 32

    def splits(self) -> Splits:
        """14 classes of seven digits, 8 of two... see `innerloop.tasks.digits`."""
        return digits()
