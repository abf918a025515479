"""Arrays are built once, and a cache that is damaged or cannot be written does no harm."""

import functools
import shutil

import numpy as np
import pytest
from faulty import full_disk

from innerloop.tasks import files

ARRAY = np.arange(10_000, dtype=np.uint8).reshape(100, 100)

cached_array = functools.partial(files.cached_array, shape=(None, 100))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Build:
    """Builds the array, and counts how often."""

    def __init__(self, array=ARRAY):
        self.array, self.times = array, 0

    def __call__(self):
        self.times += 1
        return self.array


def test_an_array_is_built_once(cache):
    build = Build()
    for _ in range(3):
        found = cached_array("name", build)
        np.testing.assert_array_equal(found, ARRAY)
        assert found.dtype == np.uint8
    assert build.times == 1
    assert [file.name for file in cache.iterdir()] == ["name.npz"]


def test_arrays_of_different_names_are_apart(cache):
    cached_array("first", Build())
    assert cached_array("second", Build(ARRAY + 1))[0, 0] == 1
    assert cached_array("first", Build(ARRAY + 1))[0, 0] == 0


@pytest.mark.parametrize("damage", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_built_anew(cache, damage):
    cached_array("name", Build())
    (cache / "name.npz").write_bytes(damage)
    build = Build()
    for _ in range(2):
        np.testing.assert_array_equal(cached_array("name", build), ARRAY)
    assert build.times == 1


def test_a_flipped_bit_is_noticed(cache):
    cached_array("name", Build())
    content = bytearray((cache / "name.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (cache / "name.npz").write_bytes(content)
    np.testing.assert_array_equal(cached_array("name", Build()), ARRAY)


def test_an_interrupted_write_leaves_nothing_behind(cache):
    with full_disk():
        np.testing.assert_array_equal(cached_array("name", Build()), ARRAY)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "other", [ARRAY.astype("f4"), ARRAY.astype("i1"), ARRAY[:, :50], ARRAY[0], ARRAY[None]]
)
def test_an_array_of_another_type_or_shape_is_not_believed(cache, other):
    cached_array("name", Build())
    with (cache / "name.npz").open("wb") as file:
        np.savez(file, name=other)
    np.testing.assert_array_equal(cached_array("name", Build()), ARRAY)


def test_the_array_of_another_name_is_not_believed(cache):
    cached_array("first", Build(ARRAY + 1))
    shutil.copy(cache / "first.npz", cache / "second.npz")
    np.testing.assert_array_equal(cached_array("second", Build()), ARRAY)


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "file" / "cache"))
    build = Build()
    for _ in range(2):
        np.testing.assert_array_equal(cached_array("name", build), ARRAY)
    assert build.times == 2


def test_errors_of_building_are_not_swallowed(cache):
    def fail():
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        cached_array("name", fail)
