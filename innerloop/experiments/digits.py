"""Few-shot classification of scikit-learn's embedded handwritten digits: real data, no download."""

from dataclasses import dataclass

from innerloop.experiments.images import FewShotImages
from innerloop.tasks import Splits, digits


@dataclass(frozen=True)
class Digits(FewShotImages):
    """MAML on 8x8 handwritten digits, turned digits as extra classes, split by digit."""

    # Fourteen classes are soon learned by heart: validation peaks within some hundred steps.
    steps: int = 300
    validate_every: int = 20
    per_call: int = 20
    test_steps: int = 5
    inner_rate: float = 0.4
    inner_steps: int = 1
    filters: int = 32

    def splits(self) -> Splits:
        """Classes split by digit: 14 for training, 8 for validation, 8 for test."""
        return digits()
