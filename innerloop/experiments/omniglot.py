"""Few-shot classification of Omniglot characters: the field's standard job."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

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
    split: Literal["standard", "official", "small1", "small2"] = "standard"
    """1200/423 characters regardless of alphabet; or the background alphabets for learning, all of
    them or one of the two small sets, and the evaluation alphabets for the test."""
    data: Path | None = None
    """Folder with the archives, in place of INNERLOOP_DATA."""

    def splits(self) -> Splits:
        """Characters regardless of alphabet, or official background and evaluation sets."""
        if self.split == "standard":
            return omniglot(data=self.data)
        background = "full" if self.split == "official" else self.split
        return omniglot_official(background=background, data=self.data)
