"""Few-shot classification of Omniglot characters: the field's standard job."""

from dataclasses import dataclass
from pathlib import Path

from innerloop.experiments.images import FewShotImages
from innerloop.tasks import Splits, omniglot, omniglot_official


@dataclass(frozen=True)
class Omniglot(FewShotImages):
    """MAML on Omniglot (Finn et al. 2017, section 5.2): 5-way 1-shot, trained with 1 inner step.

    Strided conv-64 network, tested with 3 steps. The data come from the folder in INNERLOOP_DATA,
    or are downloaded.
    """

    steps: int = 20_000
    batch: int = 16
    inner_rate: float = 0.4
    inner_steps: int = 1
    test_steps: int = 3
    chunk: int | None = 1
    official_split: bool = False
    """The background/evaluation split in place of the standard 1200/423 characters."""
    data: Path | None = None
    """Folder with the archives, in place of INNERLOOP_DATA."""

    def splits(self) -> Splits:
        """Characters regardless of alphabet, or the official background and evaluation sets."""
        load = omniglot_official if self.official_split else omniglot
        return load(data=self.data)
