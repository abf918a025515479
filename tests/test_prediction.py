"""A folder of images from training to a table of predictions."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import innerloop as il
from innerloop.errors import DataError, RunError, StructureError
from innerloop.lab.calibration import DOUBTFUL, calibrate, calibrated, read_calibration
from innerloop.lab.cli import main
from innerloop.lab.experiments.own_images import CALIBRATION, OwnImages
from innerloop.lab.experiments.table import read_experiment
from innerloop.lab.experiments.train import train
from innerloop.lab.prediction import Predictions, predict
from innerloop.lab.run_folder import RunFolder

MODES = ["L", "RGB", "P", "1", "RGBA"]
SMALL = {"size": 8, "recipe": "protonet", "filters": 8, "network": "strided", "chunk": None}
SHORT = {"steps": 60, "batch": 4, "validate_every": 60, "validation_tasks": 10, "test_tasks": 10}
FEW = {"ways": 2, "shots": 3, "test_queries": 5, "queries": 5, "unreadable": "skip"}


def write(folder, digits, examples):
    """Digits as image files of any mode and size, in a folder for each."""
    images, labels = load_digits(return_X_y=True)
    for digit in digits:
        (folder / f"digit {digit}").mkdir(parents=True)
        for i, pixels in enumerate(images[labels == digit][examples].reshape(-1, 8, 8)):
            image = Image.fromarray(np.uint8(pixels * 15)).convert(MODES[i % len(MODES)])
            image.resize((8 + i % 5, 8 + i % 3)).save(folder / f"digit {digit}" / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of images, and a run that has learned from one of them."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INNERLOOP_CACHE", str(folder / "cache"))
        write(folder / "photographs", range(2, 10), slice(0, 20))
        (folder / "photographs" / "digit 3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        write(folder / "support", (0, 1), slice(0, 5))
        write(folder / "query", (0, 1), slice(5, 25))
        experiment = OwnImages(data=folder / "photographs", **SMALL, **SHORT, **FEW)
        with pytest.warns(UserWarning, match="1 of 161 files cannot be read"):
            train(experiment, folder / "run")
    return folder


pytestmark = [
    pytest.mark.xdist_group("prediction"),
    pytest.mark.filterwarnings("ignore:1 of 161 files"),
]


def test_new_classes_are_predicted_and_written(folder, capsys):
    out, picture = folder / "out.csv", folder / "out.png"
    paths = {"--support": "support", "--query": "query"}
    flags = [part for flag, name in paths.items() for part in (flag, str(folder / name))]
    main(["predict", str(folder / "run"), *flags, "--csv", str(out), "--picture", str(picture)])
    assert "digit 0: " in capsys.readouterr().out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    with Image.open(picture) as drawn:
        assert len(rows) == 40 and drawn.width > 500
    assert all(row["class"] in ("digit 0", "digit 1") for row in rows)
    right = np.mean([row["class"] == row["file"].split("/")[-2] for row in rows])
    assert right > 0.8
    for row in rows:
        each = [float(row["digit 0"]), float(row["digit 1"])]
        assert abs(sum(each) - 1) < 2e-4 and float(row["probability"]) == max(each)


def test_the_same_in_python(folder):
    found = predict(folder / "run", folder / "support", [folder / "query"])
    again = predict(
        folder / "run", folder / "support", sorted(folder.glob("query/*/*.png")), unknown_below=2.0
    )
    np.testing.assert_allclose(again.probabilities, found.probabilities, rtol=1e-6)
    assert again.unknown.all() and again.unknown_below == 2.0
    assert found.classes == ("digit 0", "digit 1") and 0.05 <= found.temperature <= 20
    assert 0 < found.unknown_below < 1 and found.files == again.files


def test_more_classes_than_in_training(folder):
    """Prototypes have no parameters of a class; a linear head has."""
    write(folder / "three", (0, 1, 4), slice(0, 5))
    found = predict(folder / "run", folder / "three", [folder / "query"])
    assert found.probabilities.shape == (40, 3)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    right = [name == file.parent.name for name, file in zip(found.names, found.files, strict=True)]
    assert np.mean(right) > 0.6


def test_calibration_finds_the_temperature_and_the_share_of_doubtful_rows():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20_000, 3)) * 2
    uniform = rng.random((20_000, 1))
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    targets = (shares.cumsum(axis=1) < uniform).sum(axis=1)
    for temperature in (0.2, 1.0, 5.0):
        found = calibrated(temperature * true, targets)
        assert found.temperature == pytest.approx(temperature, rel=0.1)
        scores = temperature * true / found.temperature
        largest = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).max(axis=1)
        assert (largest < found.unknown_below).mean() == pytest.approx(DOUBTFUL, abs=1e-3)


def test_a_run_holds_the_calibration_of_its_validation_tasks(folder):
    run = RunFolder.open(folder / "run")
    experiment = read_experiment(run)
    (held_out,) = experiment.parts().held_out.values()
    found = calibrate(held_out, run.load_meta(experiment.meta_shapes()), experiment.seed)
    np.testing.assert_allclose(run.read_json(CALIBRATION, read_calibration), found, rtol=1e-5)


def test_the_images_that_a_run_has_learned_from_are_not_needed(folder, monkeypatch):
    monkeypatch.setattr(OwnImages, "splits", None)
    assert len(predict(folder / "run", folder / "support", [folder / "query"]).files) == 40


def test_an_unknown_image_is_called_unknown():
    probabilities = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8]])
    found = Predictions([], np.zeros(0), ("a", "b"), probabilities, 0.6, 1.0)
    assert found.names == ["a", "a", "b"] and found.unknown.tolist() == [False, True, False]
    assert str(found) == "a: 1, b: 1, unknown: 1"


def test_what_cannot_be_predicted_is_refused(folder, tmp_path):
    run, support, query = folder / "run", folder / "support", folder / "query"
    other = tmp_path / "other"
    RunFolder.begin(other, {"experiment": "sinusoid", "config": {}}).close()
    (tmp_path / "empty").mkdir()
    unfinished, damaged = tmp_path / "unfinished", tmp_path / "damaged"
    for copy in (unfinished, damaged):
        shutil.copytree(run, copy)
    (unfinished / CALIBRATION).unlink()
    (damaged / CALIBRATION).write_text('{"temperature": "hot", "unknown_below": 0.5}')
    shutil.copytree(support / "digit 0", tmp_path / "single" / "digit 0")
    cases = {
        "has not ended": (RunError, unfinished, support, [query]),
        "calibration.json": (RunError, damaged, support, [query]),
        "only one class": (DataError, run, tmp_path / "single", [query]),
        "run of sinusoid.*innerloop train images": (RunError, other, support, [query]),
        "holds no run|no run": (RunError, tmp_path / "none", support, [query]),
        "no classes": (DataError, run, tmp_path / "none", [query]),
        "no images to predict": (DataError, run, support, [tmp_path / "empty"]),
        "missing": (DataError, run, support, [tmp_path / "none.png"]),
    }
    for message, (error, *given) in cases.items():
        with pytest.raises(error, match=message):
            predict(*given)
    with pytest.raises(StructureError, match=r"no --data.*--data FOLDER"):
        OwnImages().splits()


@pytest.mark.parametrize("split", ["classes", "files"])
def test_splits_of_a_folder_share_no_class_or_no_file(folder, split):
    splits = OwnImages(data=folder / "photographs", split=split, **SMALL, **FEW).splits()
    il.tasks.check_disjoint(splits)
    names = [set(part.names) for part in splits]
    assert len(set.union(*names)) == 8
    assert (names[0] == names[1] == names[2]) == (split == "files")
    assert sum(int(part.sizes.sum()) for part in splits) == 160
