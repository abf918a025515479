"""Pickles of images: those that NumPy writes are read, and no other does anything."""

import pickle
from pathlib import Path

import numpy as np
import pytest

import innerloop as il
from innerloop.tasks._mini_imagenet import _pickled


def test_a_pickle_runs_nothing(tmp_path):
    made = tmp_path / "made by the pickle"

    class Trap:
        def __reduce__(self):
            return Path.touch, (made,)

    path = tmp_path / "trap.pkl"
    path.write_bytes(pickle.dumps({"image_data": Trap(), "class_dict": {}}))
    with pytest.raises(il.errors.DataError, match=r"calls pathlib\..*from a source that you trust"):
        _pickled(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()


CALL = "cnumpy\n{}\n".format
CRAFTED = {
    "an array of addresses": CALL("ndarray") + "((I1\ntcnumpy\ndtype\n(VO\ntRC\x08AAAAAAAAtR.",
    "a type of objects": CALL("dtype") + "(VO8\nI0\nI1\ntR.",
    "a type with offsets": CALL("dtype")
    + "(Vu1\nI0\nI1\ntR(I3\nV|\nN(Va\nt}Va\n(cnumpy\ndtype\n(Vu1\ntRI999\ntsI1\nI1\nI0\ntb.",
    "terabytes": "cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
    "(I1\n(L1000000000000L\ntcnumpy\ndtype\n(Vu1\ntRI00\nC\x01Atb.",
    "bytes of a number": "cnumpy._core.multiarray\nscalar\n"
    "(cnumpy\ndtype\n(Vu1\ntRL1000000000000L\ntR.",
    "the insides of a function": CALL("dtype") + "(N}V__defaults__\nNstb.",
    "an instance": "(ibuiltins\nlist\n.",
    "nested": "(" * 10**5 + "t" * 10**5 + ".",
    "a key of nested pairs": ")" + "2\x86" * 60 + "}2" + "N" + "s.",
    "a place far away in the memory": "Nr\xff\xff\xff\x7f.",
    "a number of ten thousand digits": "I" + "9" * 10_000 + "\n.",
    "a frame of exabytes": "\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "bytes of exabytes": "\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",
}


@pytest.mark.parametrize("crafted", CRAFTED)
def test_crafted_pickles_are_refused(crafted, tmp_path):
    path = tmp_path / "crafted.pkl"
    path.write_bytes(CRAFTED[crafted].encode("latin-1"))
    with pytest.raises(il.errors.DataError, match="from a source that you trust"):
        _pickled(path)


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_every_protocol_are_read(protocol, order, tmp_path):
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3, order=order)
    rows = {"b": np.array([1]), "a": [0]}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"image_data": images, "class_dict": rows}, protocol))
    read, labels = _pickled(path)
    np.testing.assert_array_equal(read, images)
    assert labels.tolist() == ["a", "b"]


@pytest.mark.parametrize("rows", [[0, 0], [0, 2], [-1, 0], [0], [0.0, 1.0], [[0, 1]], "01", 3])
def test_rows_that_are_no_partition_are_refused(rows, tmp_path):
    images = np.zeros((2, 3, 4, 3), np.uint8)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"image_data": images, "class_dict": {"a": rows}}))
    with pytest.raises(il.errors.DataError, match="each image is a row of some class"):
        _pickled(path)
