"""Images from outside: by label, from folders, and in the published forms of two data sets.

Small folders and pickles in exactly those forms stand for the real ones.
"""

import os
import pickle
from functools import partial

import jax
import jaxtyping
import numpy as np
import pytest
from PIL import Image

import innerloop as il
from innerloop.tasks import image_files

PARTS = {"train": ["n03", "n01", "n07"], "val": ["n02", "n04"], "test": ["n05", "n06"]}
NAMES = [name for part in PARTS.values() for name in part]
PER_CLASS = 4


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """No test reads or writes outside its own folder."""
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INNERLOOP_DATA", raising=False)


def colour(name, example):
    """A colour of its own for each image: (3,)."""
    return np.array([40 * NAMES.index(name) + 5, 50 * example + 5, 128], np.uint8)


def picture(name, example, height, width):
    return np.broadcast_to(colour(name, example), (height, width, 3))


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def listed(tmp_path):
    """miniImageNet as three lists and a folder of JPEGs of any size."""
    folder = tmp_path / "mini-imagenet"
    for part, names in PARTS.items():
        rows = ["filename,label"]
        for name in names:
            for example in range(PER_CLASS):
                file = f"{name}{example:08}.jpg"
                rows.append(f"{file},{name}")
                save(folder / "images" / file, picture(name, example, 50 + example, 70))
        (folder / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return folder


def cached(names, protocol):
    """The bytes of a mini-imagenet-cache file."""
    images = np.stack([picture(name, i, 84, 84) for name in names for i in range(PER_CLASS)])
    rows = np.arange(len(images)).reshape(len(names), PER_CLASS).tolist()
    content = {"image_data": images, "class_dict": dict(zip(names, rows, strict=True))}
    return pickle.dumps(content, protocol=protocol)


# an image that is of no class
FEWER = pickle.dumps({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"n02": [1]}})


@pytest.fixture
def pickled(tmp_path):
    folder = tmp_path / "pickles"
    folder.mkdir()
    for protocol, (part, names) in zip((2, 4, 5), PARTS.items(), strict=True):
        (folder / f"mini-imagenet-cache-{part}.pkl").write_bytes(cached(names, protocol))
    return folder


@pytest.fixture
def cifar(tmp_path):
    folder = tmp_path / "cifar-fs"
    for part, names in PARTS.items():
        split = folder / "splits" / "bertinetto" / f"{part}.txt"
        split.parent.mkdir(parents=True, exist_ok=True)
        split.write_text("\n".join(names) + "\n")
        for name in names:
            for example in range(PER_CLASS):
                save(folder / "data" / name / f"{example}.png", picture(name, example, 32, 32))
    return folder


def assert_the_split(splits, side, tolerance):
    for part, names in zip(splits, PARTS.values(), strict=True):
        assert part.rows.dtype == np.uint8
        assert part.rows.shape == (len(names) * PER_CLASS, side, side, 3)
        assert part.sizes.tolist() == [PER_CLASS] * len(names) and part.names == tuple(
            sorted(names)
        )
        expected = [[colour(name, i) for i in range(PER_CLASS)] for name in sorted(names)]
        found = np.asarray(part.rows)[np.asarray(part.order)].astype(int)
        expected = np.array(expected, int).reshape(-1, 1, 1, 3)
        assert np.abs(found - expected).max() <= tolerance
    il.tasks.check_disjoint(splits)


def test_mini_imagenet_from_lists(listed, monkeypatch):
    assert_the_split(il.tasks.mini_imagenet(data=listed), 84, tolerance=3)  # JPEG is not exact
    monkeypatch.setattr(image_files, "_read", None)  # a second start reads no image
    assert_the_split(il.tasks.mini_imagenet(data=listed.parent), 84, tolerance=3)
    monkeypatch.setenv("INNERLOOP_DATA", str(listed))
    assert_the_split(il.tasks.mini_imagenet(), 84, tolerance=3)


def test_a_changed_image_is_read_again(listed):
    train = il.tasks.mini_imagenet(data=listed).train
    row, before = train.members(0)[0], train.rows
    save(listed / "images" / f"n01{0:08}.jpg", np.zeros((10, 10, 3), np.uint8))
    after = il.tasks.mini_imagenet(data=listed).train.rows
    assert not after[row].any()
    assert np.array_equal(np.delete(after, row, 0), np.delete(before, row, 0))


def test_mini_imagenet_from_pickles(pickled):
    assert_the_split(il.tasks.mini_imagenet(data=pickled), 84, tolerance=0)


def test_cifar_fs(cifar):
    assert_the_split(il.tasks.cifar_fs(data=cifar), 32, tolerance=0)


# --- what is missing or broken --------------------------------------------------------------------


def remove(name, folder):
    (folder / name).unlink()


def overwrite(name, content, folder):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            partial(remove, "val.csv"),
            r"val\.csv is missing.*No such file",
        ),
        (partial(remove, "images/n0100000000.jpg"), r"1 of 12 files missing.*n0100000000\.jpg"),
        (partial(overwrite, "images/n0100000000.jpg", b"x"), r"n0100000000\.jpg cannot be read"),
        (
            partial(overwrite, "val.csv", b"file,class\na.jpg,n02\n"),
            "cannot be read.*filename,label",
        ),
        (partial(overwrite, "val.csv", b"\xff\xfe"), r"val\.csv cannot be read"),
        (partial(overwrite, "val.csv", b"filename,label\na.jpg,n01\n"), "train and val share.*n01"),
        (partial(overwrite, "val.csv", b"filename,label\n"), r"val\.csv cannot be read"),
    ],
)
def test_damaged_lists_are_named_with_the_cure(listed, damage, message):
    damage(listed)
    with pytest.raises(il.errors.DataError, match=message):
        il.tasks.mini_imagenet(data=listed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (partial(remove, "mini-imagenet-cache-val.pkl"), r"cache-val\.pkl is missing"),
        (
            partial(overwrite, "mini-imagenet-cache-val.pkl", b"\x80\x04."),
            "cannot be read.*a pickle of",
        ),
        (partial(overwrite, "mini-imagenet-cache-val.pkl", b""), "cannot be read.*a pickle of"),
        (
            partial(overwrite, "mini-imagenet-cache-val.pkl", pickle.dumps([1])),
            "cannot be read.*a dict with image_data",
        ),
        (partial(overwrite, "mini-imagenet-cache-val.pkl", cached(["n01"], 4)), "train and val"),
        (
            partial(overwrite, "mini-imagenet-cache-val.pkl", FEWER),
            "cannot be read.*a dict with image_data",
        ),
    ],
)
def test_damaged_pickles_are_named_with_the_cure(pickled, damage, message):
    damage(pickled)
    with pytest.raises(il.errors.DataError, match=message):
        il.tasks.mini_imagenet(data=pickled)


@pytest.mark.parametrize("load", [il.tasks.mini_imagenet, il.tasks.cifar_fs])
def test_no_folder_is_named_with_what_it_should_hold(load, tmp_path):
    with pytest.raises(il.errors.DataError, match=r"not downloaded.*data=.*INNERLOOP_DATA"):
        load()
    with pytest.raises(il.errors.DataError, match=r"does not exist.*nowhere"):
        load(data=tmp_path / "nowhere")
    with pytest.raises(il.errors.DataError, match=r"are missing"):
        load(data=tmp_path)
    own = tmp_path / load.__name__.replace("_", "-")
    own.mkdir()
    with pytest.raises(il.errors.DataError, match=rf"are missing.* in {own}"):
        load(data=tmp_path)


def test_cifar_fs_without_a_class(cifar):
    for file in (cifar / "data" / "n02").iterdir():
        file.unlink()
    with pytest.raises(il.errors.DataError, match=r"classes without images.*n02.*CLASS/\*\.png"):
        il.tasks.cifar_fs(data=cifar)


# --- your own -------------------------------------------------------------------------------------


def test_a_folder_for_each_class(tmp_path):
    for name, number in [("n01", 3), ("n02", 5)]:
        for example in range(number):
            save(tmp_path / name / f"{example}.png", picture(name, example, 9, 7))
    (tmp_path / "n01" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    with pytest.warns(UserWarning, match=r"1 files in .*n01 are left out.*notes\.txt"):
        classes = il.tasks.image_folder(tmp_path, size=8)
    assert classes.rows.shape == (8, 8, 8, 3)
    assert classes.sizes.tolist() == [3, 5] and classes.names == ("n01", "n02")
    last = classes.rows[classes.members(1)[4]]
    assert np.asarray(last[0, 0]).tolist() == colour("n02", 4).tolist()
    with pytest.raises(il.errors.DataError, match=r"no folders in .*notes"):
        il.tasks.image_folder(tmp_path / "n01" / "notes.txt", size=8)


def test_unreadable_files_are_refused_or_skipped_and_counted(tmp_path, monkeypatch):
    folder = tmp_path / "photographs"
    for name in ("n01", "n02"):
        for example in range(3):
            save(folder / name / f"{example}.png", picture(name, example, 9, 7))
    whole = (folder / "n01" / "1.png").read_bytes()
    (folder / "n01" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "n02" / "x.jpg").write_text("no image")
    with pytest.raises(il.errors.DataError, match="cannot be read"):
        il.tasks.image_folder(folder, size=8)
    skipping = partial(il.tasks.image_folder, folder, size=8, unreadable="skip")
    with pytest.warns(UserWarning, match=r"2 of 7 files cannot be read.*first .*1\.png"):
        classes = skipping()
    assert classes.sizes.tolist() == [2, 3]
    found = np.asarray(classes.rows)[np.asarray(classes.order), 0, 0].tolist()
    expected = [colour("n01", 0), colour("n01", 2), *(colour("n02", i) for i in range(3))]
    assert found == [each.tolist() for each in expected]
    monkeypatch.setattr(image_files, "_pixels", None)  # a second start reads no image
    with pytest.warns(UserWarning, match="2 of 7 files"):
        assert skipping().sizes.tolist() == [2, 3]
    (folder / "n03").mkdir()
    with (
        pytest.raises(il.errors.DataError, match=r"without images.*n03"),
        pytest.warns(UserWarning),
    ):
        skipping()


def test_duplicates_are_listed_with_their_classes():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    images[3], images[5] = images[0], images[0]
    classes = il.tasks.images_by_label(images, ["a", "a", "b", "b", "c", "a"])
    assert il.tasks.duplicates(classes) == [[("a", 0), ("b", 3), ("a", 5)]]
    assert il.tasks.duplicates(classes.only([2])) == []
    rows = {"x": np.array([1.0, 2.0, 1.0]), "y": np.array([0, 1, 0])}
    assert il.tasks.duplicates(il.tasks.by_label(rows, [0, 1, 2])) == [[("0", 0), ("2", 2)]]


def of_one_file(folder):
    """The pixels of a folder with one class and one image, 2 × 2."""
    return np.asarray(il.tasks.image_folder(folder, size=2).rows[0]).astype(int)


# A bright corner, which tells the turns apart.
CORNER = np.array([[250, 10], [20, 30]], np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_a_viewer_turns_it(orientation, tmp_path):
    """The eight orientations of the EXIF standard: the row and the column that are shown first."""
    shown = {
        1: CORNER,
        2: CORNER[:, ::-1],
        3: CORNER[::-1, ::-1],
        4: CORNER[::-1],
        5: CORNER.T,
        6: CORNER[::-1].T,
        7: CORNER[::-1, ::-1].T,
        8: CORNER[:, ::-1].T,
    }
    image, exif = Image.fromarray(CORNER), Image.Exif()
    exif[274] = orientation
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "x.png", exif=exif)
    assert of_one_file(tmp_path)[:, :, 0].tolist() == shown[orientation].tolist()


WIDE = np.array([[0, 256], [32_768, 65_535]], np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(suffix, tmp_path):
    save(tmp_path / "a" / f"x.{suffix}", WIDE)
    expected = np.array([[0, 1], [128, 255]])
    assert of_one_file(tmp_path).tolist() == np.repeat(expected[:, :, None], 3, 2).tolist()


def test_pixels_of_unknown_range_are_refused(tmp_path):
    save(tmp_path / "a" / "x.tif", WIDE.astype(np.float32))
    with pytest.raises(il.errors.DataError, match=r"32 bits.*1, 8 or 16 bits"):
        of_one_file(tmp_path)


def test_folders_of_equal_names_sizes_and_times_are_apart(tmp_path):
    """A copy with other pixels, and one that takes the place of the first."""
    first, second = tmp_path / "one" / "a" / "x.bmp", tmp_path / "two" / "a" / "x.bmp"
    for path, pixels in ((first, CORNER), (second, CORNER[::-1])):
        save(path, pixels)
        os.utime(path, ns=(10**18, 10**18))
    assert of_one_file(tmp_path / "one")[0, 0, 0] == 250
    assert of_one_file(tmp_path / "two")[0, 0, 0] == 20
    os.replace(second, first)
    assert of_one_file(tmp_path / "one")[0, 0, 0] == 20


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/../../b", "..", ""])
def test_names_do_not_lead_out_of_the_folder(name, tmp_path, listed, cifar):
    with pytest.raises(il.errors.DataError, match="leads out of the folder"):
        il.tasks.image_folder(tmp_path, 8, names=[name])
    if name:
        (listed / "val.csv").write_text(f"filename,label\n{name}.jpg,n02\n{name},n02\n")
        (cifar / "splits" / "bertinetto" / "val.txt").write_text(f"{name}\n")
        for load, data in ((il.tasks.mini_imagenet, listed), (il.tasks.cifar_fs, cifar)):
            with pytest.raises(il.errors.DataError, match="leads out of the folder"):
                load(data=data)


@pytest.mark.parametrize("size", [4097, 10**12])
def test_sizes_that_no_image_has_are_refused(size, tmp_path):
    with pytest.raises(il.errors.StructureError, match="from 1 to 4096"):
        il.tasks.image_folder(tmp_path, size)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["cat", "ant", "cat", "bee", "cat", "ant"]),
        np.array(["cat", "ant", "cat", "bee", "cat", "ant"], object),
        np.array([7, -2, 7, 3, 7, -2]),
        np.array([2, 0, 2, 1, 2, 0], np.uint8),
    ],
)
def test_images_by_label(labels):
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((6, 2, 2), np.uint8)
    for make in (il.tasks.images_by_label, il.tasks.by_label):
        classes = make(images, labels)
        assert classes.names == tuple(str(name) for name in sorted(set(labels.tolist())))
        assert [classes.members(i).tolist() for i in range(3)] == [[1, 5], [3], [0, 2, 4]]
    assert classes.sizes.tolist() == [2, 1, 3]
    assert len(classes.with_examples(2)) == 2
    assert classes.with_examples(2).fewest == 2


IMAGES = np.zeros((4, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: il.tasks.images_by_label(IMAGES, np.array([0.0, 1.0, 0.0, 1.0])),
            il.errors.StructureError,
            r"whole numbers or text.*float64",
        ),
        (
            lambda: il.tasks.images_by_label(IMAGES, np.arange(3)),
            il.errors.StructureError,
            r"shape \(3,\)",
        ),
        (
            lambda: il.tasks.images_by_label(IMAGES, np.eye(4, dtype=int)),
            il.errors.StructureError,
            r"\(4, 4\)",
        ),
        (
            lambda: il.tasks.images_by_label(IMAGES[:0], np.arange(0)),
            il.errors.DataError,
            "no images",
        ),
        (
            lambda: il.tasks.upright(np.where(np.arange(8).reshape(2, 1, 2, 2) == 5, np.nan, 0.0)),
            il.errors.DataError,
            r"not finite.*1 of 2 rows.*rows\[1\]",
        ),
        (
            lambda: il.tasks.upright(IMAGES[None], [5]),
            il.errors.StructureError,
            "from 5 to 5.*from 1 to 4",
        ),
        (lambda: il.tasks.upright(IMAGES[None], [0]), il.errors.StructureError, "from 0 to 0"),
        (
            lambda: il.tasks.ClassificationTasks(
                il.tasks.images_by_label(IMAGES, np.zeros(4, int)), 2, 1, 1
            ),
            il.errors.DataError,
            r"ways=2 of 1 classes.*at least two classes",
        ),
        (
            lambda: il.tasks.ClassificationTasks(
                il.tasks.images_by_label(IMAGES, np.array([0, 0, 0, 1])), 2, 1, 1
            ),
            il.errors.DataError,
            r"shots=1 \+ queries=1 of 1 examples.*at most 1",
        ),
        (lambda: il.tasks.upright(IMAGES[None]).with_examples(9), il.errors.DataError, "at most 4"),
    ],
)
def test_bad_images_are_refused_with_the_cure(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.fixture
def without_type_checks():
    """As outside the tests, where no type checker sees an argument before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("labels", [np.array(["cat", "ant"]), np.array(["cat", 3], object)])
def test_labels_in_words_are_refused(labels, without_type_checks):
    with pytest.raises(il.errors.StructureError, match=r"targets are not numbers.*numpy\.unique"):
        il.Examples(np.zeros((2, 3)), labels)
    il.Examples({"x": np.zeros((2, 3)), "key": jax.random.key(0)}, np.zeros(2))
    with pytest.raises(il.errors.StructureError, match="inputs are not numbers"):
        il.Examples({"x": [labels]}, np.zeros(2))


def test_labels_that_are_real_numbers_are_refused():
    examples = il.Examples(jax.numpy.zeros((2, 3)), jax.numpy.zeros(2))
    for recipe in (
        il.recipes.maml(il.models.mlp([3, 2]), il.models.cross_entropy),
        il.recipes.protonet(il.models.mlp_features([3, 2]), il.models.cross_entropy, 2),
    ):
        meta = recipe.init_meta(jax.random.key(0))
        with pytest.raises(il.errors.StructureError, match="needs integer classes"):
            il.adapt(*recipe[:2], meta, examples, jax.random.key(0))
