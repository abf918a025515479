"""Few-shot classification of Omniglot characters: the field's standard job."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from innerloop.experiments.images import FewShotImages
from innerloop.tasks import Splits, omniglot, omniglot_official


@dataclass(frozen=True)
class Omniglot(FewShotImages):
    """Few-shot classification of Omniglot characters, 5-way 1-shot.

    Strided conv-64 network; the defaults are those of MAML (Finn et al. 2017, section 5.2), trained
    with 1 inner step and tested with 3. The data come from the folder in INNERLOOP_DATA,
    or are downloaded.
    """

    steps: int = 20_000
    batch: int = 16
    usual_test_steps: ClassVar[int] = 3
    chunk: int | None = 1
    official_split: bool = False
    """The background/evaluation split in place of the standard 1200/423 characters."""
    data: Path | None = None
    """Folder with the archives, in place of INNERLOOP_DATA."""

    def splits(self) -> Splits:
        """Characters regardless of alphabet, or the official background and evaluation sets."""
        load = omniglot_official if self.official_split else omniglot
        return load(data=self.data)
