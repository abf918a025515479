"""Few-shot classification of Omniglot characters: the field's standard benchmark."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from innerloop.lab.experiments.images import FewShotImages
from innerloop.tasks import Splits, omniglot, omniglot_official


@dataclass(frozen=True)
class Omniglot(FewShotImages):
    """Few-shot classification of Omniglot characters, 5-way 1-shot.

    Strided conv-64 network; MAML's inner rate and steps are those of its paper (Finn et al. 2017,
    section 5.2): 1 step in training and 3 at test of 5-way tasks, 5 steps of 20-way ones. The data
    come from the folder in INNERLOOP_DATA, or are downloaded.
    """

    steps: int = 20_000
    batch: int = 16
    usual_test_steps: ClassVar[int] = 3
    chunk: int | None = 1
    split: Literal["standard", "official", "small1", "small2"] = "standard"
    """1200/423 characters regardless of alphabet; or the background alphabets for training, all of
    them or one of the two small sets, and the evaluation alphabets for the test."""
    data: Path | None = None
    """Folder with the archives, in place of INNERLOOP_DATA."""

    def recipe_settings(self) -> dict[str, Any]:
        """The settings of the paper for this number of ways."""
        of_20_ways = {"rate": 0.1, "steps": 5} if self.recipe in ("maml", "fomaml") else {}
        return super().recipe_settings() | (of_20_ways if self.ways >= 20 else {})

    def splits(self) -> Splits:
        """Characters regardless of alphabet, or official background and evaluation sets."""
        if self.split == "standard":
            return omniglot(data=self.data)
        background = "full" if self.split == "official" else self.split
        return omniglot_official(background=background, data=self.data)
