"""Predictions for new images with a run of `innerloop train images`."""

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.errors import DataError, RunError
from innerloop.lab.calibration import read_calibration
from innerloop.lab.experiments.few_shot import learned
from innerloop.lab.experiments.own_images import CALIBRATION, OwnImages
from innerloop.lab.experiments.table import experiment_name, read_experiment
from innerloop.lab.plots.predictions import predicted_images
from innerloop.lab.run_folder import RunFolder
from innerloop.problem import Episode, Examples
from innerloop.storage.files import write_text
from innerloop.tasks import image_folder
from innerloop.tasks.image_classes import as_unit_interval
from innerloop.tasks.image_files import SUFFIXES, read_images


class Predictions(NamedTuple):
    """The predictions of a run for image files.

    Attributes:
        files: The files.
        images: The scaled pixels of the files, uint8 `(files, size, size, 3)`.
        classes: The names of the classes.
        probabilities: The calibrated probability of each class, `(files, classes)`.
        unknown_below: The threshold for unknown: a file whose largest probability is below it
            counts as of no known class.
        temperature: The temperature by which the logits were divided.
    """

    files: list[Path]
    images: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray
    unknown_below: float
    temperature: float

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each file."""
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    @property
    def unknown(self) -> np.ndarray:
        """Whether each file counts as of no known class, bool `(files,)`."""
        return self.probabilities.max(axis=1) < self.unknown_below

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Writes a header and one line for each file.

        A line has the path of the file, the most probable class, its probability, whether the file
        counts as unknown, and the probability of each class. Returns the path.
        """
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["file", "class", "probability", "unknown", *self.classes])
        each = zip(self.files, self.names, self.unknown, self.probabilities, strict=True)
        for file, name, unknown, row in each:
            of_classes = [f"{value:.4f}" for value in row]
            said = "yes" if unknown else "no"
            lines.writerow([file, name, f"{row.max():.4f}", said, *of_classes])
        return write_text(Path(path), text.getvalue())

    def write_picture(self, path: str | os.PathLike[str]) -> Path:
        """Writes a PNG file with some of the images, their classes and probabilities.

        A question mark follows the class of an image that counts as of no known class.
        """
        titles = [
            f"{name}{'?' if unknown else ''} {row.max():.0%}"
            for name, unknown, row in zip(self.names, self.unknown, self.probabilities, strict=True)
        ]
        return predicted_images(path, self.images, titles)

    def __str__(self) -> str:
        known = [
            name for name, unknown in zip(self.names, self.unknown, strict=True) if not unknown
        ]
        counts = [f"{name}: {known.count(name)}" for name in self.classes]
        return f"{', '.join(counts)}, unknown: {int(self.unknown.sum())}"


def predict(
    run: str | os.PathLike[str],
    support: str | os.PathLike[str],
    query: Sequence[str | os.PathLike[str]],
    *,
    unknown_below: float | None = None,
) -> Predictions:
    """Learns classes from a few images of each, and predicts the classes of other images.

    The probabilities are calibrated by temperature scaling: one temperature maximises the
    likelihood of the correct classes in the run's validation tasks (Guo et al. 2017, "On
    calibration of modern neural networks").

    Args:
        run: The folder of a run of `innerloop train images`.
        support: A folder that contains one folder of image files for each class. The classes need
            not be classes of the run.
        query: Image files, and folders that contain image files at any depth.
        unknown_below: A file whose largest probability is below this threshold counts as of no
            known class. By default, 95 % of the images of the validation tasks reach the threshold.

    Returns:
        The predictions.

    Raises:
        RunError: If the folder contains no finished run of `innerloop train images`, or a damaged
            one.
        DataError: If images are missing or cannot be read, or there is only one class.
        StructureError: If there are more classes than the recipe of the run can learn.
    """
    folder = RunFolder.open(Path(run))
    experiment = read_experiment(folder)
    if not isinstance(experiment, OwnImages):
        raise RunError(
            "only a run of own images can predict the classes of image files",
            got=f"{folder.path}, a run of {experiment_name(experiment)}",
            expected="the folder of a run of innerloop train images",
        )
    if not folder.has(CALIBRATION):
        raise RunError(
            "the probabilities of a run are calibrated when it ends, and this run has not ended",
            got=f"{folder.path}, without {CALIBRATION}",
            expected="a run that is finished; the command that began it finishes it with --resume",
        )
    meta = folder.load_meta(experiment.meta_shapes())
    calibration = folder.read_json(CALIBRATION, read_calibration)
    known = image_folder(support, experiment.size, unreadable=experiment.unreadable)
    if len(known) < 2:
        raise DataError(
            "there is only one class to choose from",
            got=f"{known.names[0]!r} in {support}",
            expected="a folder for each of two classes or more",
        )
    files, images = read_images(_files(query), experiment.size, experiment.unreadable)
    trained = experiment.train_ways or experiment.ways
    ways = max(len(known), experiment.ways)
    learner = dataclasses.replace(experiment, ways=ways, train_ways=trained).build_recipe().learner
    labels = np.repeat(np.arange(len(known), dtype=np.int32), np.asarray(known.sizes))
    rows = as_unit_interval(known.rows[known.order])
    task = Episode(
        Examples(rows, jnp.asarray(labels), ways=len(known)),
        Examples(as_unit_interval(jnp.asarray(images)), jnp.zeros(len(files), jnp.int32)),
    )
    steps, key = experiment.steps_at_test(learner), jax.random.key(experiment.seed)
    scores = learned(learner, meta, task, key, steps)[-1, :, : len(known)]
    found = np.asarray(jax.nn.softmax(scores / calibration.temperature))
    below = calibration.unknown_below if unknown_below is None else unknown_below
    return Predictions(files, images, known.names, found, below, calibration.temperature)


def _files(query: Sequence[str | os.PathLike[str]]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, query):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [each for each in inside if each == path or each.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(
            "there are no images to predict",
            got=", ".join(str(path) for path in query) or "no files",
            expected=f"files, or folders of files with the suffixes {' '.join(SUFFIXES)}",
        )
    return files
