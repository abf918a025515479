"""Omniglot: its archives, wherever they come from, and the splits made of them.

Small archives in the official layout stand for the real ones.
"""

import hashlib
import io
import zipfile
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from innerloop.errors import DataError, StructureError
from innerloop.tasks import (
    check_disjoint,
    files,
    omniglot,
    omniglot_official,
    omniglot_one_shot,
    omniglot_small1,
    upright,
)
from innerloop.tasks.files import KnownFile

module = import_module("innerloop.tasks._omniglot")  # not the function of that name

BACKGROUND = {"Greek": 8, "Alphabet_of_the_Magi": 4}
EVALUATION = {"Tengwar": 3}
DRAWINGS = 2


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """No test reads or writes outside its own folder."""
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INNERLOOP_DATA", raising=False)


def paper(alphabet, character, drawing):
    """A bool drawing of its own, `(105, 105)`, True is paper."""
    seed = hashlib.md5(f"{alphabet}/{character}/{drawing}".encode()).digest()
    coarse = np.random.RandomState(list(seed)).rand(7, 7) > 0.3
    return np.kron(coarse, np.ones((15, 15), bool)).astype(bool)


def write_zip(path, alphabets):
    """An archive in the official layout, its files in no order, with a file manager's litter."""
    names = [
        (alphabet, character, drawing)
        for alphabet, count in alphabets.items()
        for character in range(1, count + 1)
        for drawing in range(1, DRAWINGS + 1)
    ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/Greek/character01/._0001_01.png", b"litter")
        for alphabet, character, drawing in reversed(names):
            png = io.BytesIO()
            Image.fromarray(paper(alphabet, character, drawing)).save(png, "png")
            name = f"{alphabet}/character{character:02d}/{character:04d}_{drawing:02d}.png"
            archive.writestr(f"{path.stem}/{name}", png.getvalue())


def papers(alphabets):
    return np.array(
        [
            [paper(alphabet, character, drawing) for drawing in range(1, DRAWINGS + 1)]
            for alphabet, count in sorted(alphabets.items())
            for character in range(1, count + 1)
        ]
    )


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archives(monkeypatch, tmp_path):
    """A folder with small archives, which the registry takes for the official ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    for registry, alphabets in [("BACKGROUND", BACKGROUND), ("EVALUATION", EVALUATION)]:
        stem = f"images_{registry.lower()}"
        write_zip(folder / f"{stem}.zip", alphabets)
        np.savez(folder / f"{stem}.npz", images=papers(alphabets))
        files = [folder / f"{stem}.zip", folder / f"{stem}.npz"]
        archive = tuple(KnownFile(file.name, md5(file)) for file in files)
        monkeypatch.setattr(module, registry, archive)
    small = folder / "images_background_small1.zip"
    write_zip(small, BACKGROUND)
    monkeypatch.setattr(module, "SMALL_1", (KnownFile(small.name, md5(small)),))
    return folder


def pixels(splits):
    return [np.asarray(part.rows) for part in splits]


def assert_same(first, second):
    for a, b in zip(pixels(first), pixels(second), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what is read -------------------------------------------------------------------------------


def test_ink_is_bright_and_drawings_are_sorted_by_alphabet_and_number(archives):
    part = omniglot_official(data=archives, size=105, classes=upright).test
    assert part.rows.dtype == np.uint8
    expected = np.where(papers(EVALUATION), 0, 255).reshape(-1, 105, 105, 1)
    np.testing.assert_array_equal(np.asarray(part.rows), expected)


def test_scaled_drawings_are_antialiased_and_keep_their_ink(archives):
    part = omniglot_official(data=archives, classes=upright).test
    images = np.asarray(part.rows)
    assert images.shape == (3 * DRAWINGS, 28, 28, 1)
    assert len(np.unique(images)) > 10
    np.testing.assert_allclose(images.mean() / 255, 1 - papers(EVALUATION).mean(), atol=0.01)


def test_official_zip_and_npz_are_the_same_data(archives):
    from_zip = omniglot_official(data=archives)
    for file in archives.glob("*.zip"):
        file.unlink()
    assert_same(from_zip, omniglot_official(data=archives))


def test_official_split_holds_out_a_tenth_of_the_background_and_tests_on_the_evaluation(archives):
    train, validation, test = omniglot_official(data=archives, size=105)
    assert [len(train), len(validation), len(test)] == [4 * 11, 4 * 1, 4 * 3]
    background = {image.tobytes() for image in np.where(papers(BACKGROUND), 0, 255).astype("u1")}
    read = np.concatenate([train.rows, validation.rows]).reshape(-1, DRAWINGS, 105, 105)
    assert {character.tobytes() for character in read} == background
    check_disjoint(omniglot_official(data=archives, size=105))


def test_turns_can_be_left_out(archives):
    assert len(omniglot_official(data=archives, classes=upright).train) == 11


def test_small_set_names_the_alphabet_of_each_character(archives):
    small = omniglot_small1(data=archives, size=105, classes=upright)
    assert small.names == ("Alphabet_of_the_Magi",) * 4 + ("Greek",) * 8
    expected = np.where(papers(BACKGROUND), 0, 255).reshape(-1, 105, 105, 1)
    np.testing.assert_array_equal(np.asarray(small.classes.rows), expected)


def test_official_split_may_learn_from_a_small_set(archives):
    splits = omniglot_official(background="small1", data=archives, classes=upright)
    assert [len(part) for part in splits] == [11, 1, 3]
    assert_same(splits, omniglot_official(data=archives, classes=upright))  # of the same drawings


def write_one_shot(path, classes=3):
    """Two runs in the official layout: test item i is of the class before it."""
    with zipfile.ZipFile(path, "w") as archive:
        for run in ("run02", "run01"):
            lines = []
            for item in range(1, classes + 1):
                names = [f"{run}/test/item{item:02d}.png"]
                names.append(f"{run}/training/class{(item - 2) % classes + 1:02d}.png")
                lines.append(" ".join(names))
                for name in names:
                    png = io.BytesIO()
                    Image.fromarray(paper(*name.split("/"))).save(png, "png")
                    archive.writestr(name, png.getvalue())
            archive.writestr(f"{run}/class_labels.txt", "\n".join(lines) + "\n")
    return (KnownFile(path.name, md5(path)),)


def test_one_shot_runs_are_episodes_ordered_by_class(monkeypatch, tmp_path):
    archive = write_one_shot(tmp_path / "all_runs.zip")
    monkeypatch.setattr(module, "ONE_SHOT", archive)
    runs = omniglot_one_shot(size=105, data=tmp_path)
    np.testing.assert_array_equal(runs.support.targets, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(runs.query.targets, [[0, 1, 2]] * 2)
    assert runs.query.targets.dtype == np.int32
    ink = lambda *name: 1.0 - paper(*name)[..., None]
    for part, kind, numbers in [
        (runs.support, "training/class", (1, 2, 3)),
        (runs.query, "test/item", (2, 3, 1)),
    ]:
        expected = [
            [ink(run, *f"{kind}{number:02d}.png".split("/")) for number in numbers]
            for run in ("run01", "run02")
        ]
        np.testing.assert_array_equal(part.inputs, expected)


def test_one_shot_runs_are_downloaded_from_their_own_folder(monkeypatch, tmp_path):
    asked = []

    @contextmanager
    def downloaded(file, base_url):
        asked.append((base_url + file.name).removeprefix(module.UPSTREAM))
        yield tmp_path / "all_runs.zip"

    monkeypatch.setattr(files, "downloaded", downloaded)
    monkeypatch.setattr(module, "ONE_SHOT", write_one_shot(tmp_path / "all_runs.zip"))
    assert omniglot_one_shot().query.inputs.shape == (2, 3, 28, 28, 1)
    assert asked == ["one-shot-classification/all_runs.zip"]


def test_standard_split_is_a_fixed_permutation_of_1100_100_and_423_characters(monkeypatch):
    """Images whose pixel is the character's number stand for the data."""
    numbers = {
        "images_background.zip": np.arange(964),
        "images_evaluation.zip": np.arange(964, 1623),
    }

    def numbered(archive, size, data):
        return np.float32(numbers[archive[0].name]).reshape(-1, 1, 1, 1)

    monkeypatch.setattr(module, "drawings", numbered)
    splits = omniglot()
    characters = [np.asarray(part.rows).astype(int).ravel() for part in splits]
    assert [len(part) for part in characters] == [1100, 100, 423]
    assert sorted(np.concatenate(characters).tolist()) == list(range(1623))
    assert [len(part) for part in splits] == [4400, 400, 1692]
    # written down, so that the split stays what it is in every version of numpy and of this library
    assert characters[0][:4].tolist() == FIRST["train"]
    assert characters[1][:4].tolist() == FIRST["validation"]
    assert characters[2][:4].tolist() == FIRST["test"]


FIRST = {
    "train": [1397, 60, 1485, 1165],
    "validation": [173, 377, 738, 1156],
    "test": [1313, 762, 1373, 1496],
}


@pytest.mark.parametrize("size", [0, 106])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(StructureError, match=f"size={size}"):
        omniglot(size=size)


# --- where it comes from ------------------------------------------------------------------------


def test_folder_may_come_from_the_environment(archives, monkeypatch):
    named = omniglot_official(data=archives)
    monkeypatch.setenv("INNERLOOP_DATA", str(archives))
    assert_same(named, omniglot_official())


def test_missing_and_corrupt_archives_are_named(archives):
    (archives / "images_evaluation.npz").unlink()
    (archives / "images_evaluation.zip").write_bytes(b"not what it was")
    with pytest.raises(DataError, match=r"images_evaluation\.zip is corrupt"):
        omniglot_official(data=archives)
    (archives / "images_evaluation.zip").unlink()
    with pytest.raises(DataError, match=r"images_evaluation\.zip or .*\.npz is missing"):
        omniglot_official(data=archives)


def test_official_archives_are_downloaded_where_no_folder_is_named(archives, monkeypatch):
    asked = []

    @contextmanager
    def downloaded(file, base_url):
        asked.append(base_url + file.name)
        yield archives / file.name

    monkeypatch.setattr(files, "downloaded", downloaded)
    assert_same(omniglot_official(), omniglot_official(data=archives))
    assert len(omniglot_small1().names) == 12
    upstream = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
    names = ["images_background.zip", "images_evaluation.zip", "images_background_small1.zip"]
    assert set(asked) == {upstream + name for name in names}


def test_second_start_reads_no_archive(archives, monkeypatch):
    first = omniglot_official(data=archives)
    monkeypatch.setattr(module, "_READERS", {})
    assert_same(first, omniglot_official(data=archives))
    with pytest.raises(KeyError):  # another size is other data
        omniglot_official(data=archives, size=14)
