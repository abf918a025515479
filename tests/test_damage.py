"""Whatever happens to a file, its reader gives the same as before or one of our errors.

Every kind of file that the library reads, in every way in which a file can be damaged: never a
traceback of another library, never a wrong value, and never a reader that waits for ever.
"""

import hashlib
import io
import itertools
import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
import zipfile
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faulty import DAMAGE
from PIL import Image
from quick import without
from test_report import add_trials, make_run

import innerloop as il
from innerloop.errors import DataError, InnerloopError, RunError
from innerloop.lab.report import runs
from innerloop.lab.report.page import render
from innerloop.lab.report.runs import read_runs
from innerloop.lab.run_folder import RunFolder
from innerloop.logging import JsonLines
from innerloop.logging.records import LINE
from innerloop.storage import checkpoint
from innerloop.storage.checkpoint import CheckpointFolder
from innerloop.storage.compiled import SealedPrograms
from innerloop.storage.lock import Lock
from innerloop.tasks._mini_imagenet import _pickled
from innerloop.tasks.files import KnownFile, cached_array, local_file, read_lines
from innerloop.tasks.image_files import classes_of_files

META = {"body": [jnp.arange(300.0), jnp.ones(2, jnp.bfloat16)], "head": jnp.ones((2, 3))}
PIXELS = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """No test reads or writes outside its own folder."""
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))


class TooLate(BaseException):
    """No reader catches it."""


@contextmanager
def at_once(seconds=5):
    """The reader that waits for a pipe or a device is a failure."""

    def late(number, frame):
        raise TooLate("the reader waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


HOSTILE = [
    *(None, True, -1, 0, 10**18, 10**400, 1.5, 1e308, float("inf"), float("nan"), "x", "\ud800"),
    *([], {}, [[1]], [1, 2, 3, 4, 5], {"a": 1}, "NaN"),
]


# --- files that are checked to the last bit -------------------------------------------------------


def meta_file(folder):
    run = RunFolder(folder)
    return run.save_meta(META), lambda path: run.load_meta(META)


def own_meta_file(folder):
    path = il.training.save_meta(folder / "mine", META)
    return path, lambda path: il.training.load_meta(path, META)


def arrays_file(folder):
    run = RunFolder(folder)
    arrays = {"loss": np.linspace(0, 1, 24, dtype="f4").reshape(6, 4)}
    return run.write_arrays("test_tasks.npz", arrays), lambda path: run.read_arrays(path.name)


def optimizer_file(folder):
    learned = il.optimizers.ScalarRate(optax.identity, 0.3)
    meta = learned.init(jax.random.key(0), None)
    path = il.optimizers.save_optimizer(folder / "mine.opt", learned, meta)
    return path, il.optimizers.load_optimizer


def cached_file(folder):
    build = lambda: np.arange(300, dtype=np.uint8).reshape(3, 100)
    cached_array("name", build, (3, 100))
    path = folder / "cache" / "name.npz"
    return path, lambda path: cached_array("name", build, (3, 100))


def compiled_file(folder):
    kept = SealedPrograms(folder)
    kept.put("key", b"program" * 50)

    def again(path):
        if kept.get("key") is None:
            kept.put("key", b"program" * 50)
        return kept.get("key") if path.is_file() else b"program" * 50  # a folder stays

    return folder / "key-sealed", again


EXACT = [meta_file, own_meta_file, arrays_file, optimizer_file, cached_file, compiled_file]


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("make", EXACT)
def test_a_file_is_what_was_written_or_refused(make, damage, tmp_path):
    path, read = make(tmp_path)
    before = read(path)
    DAMAGE[damage](path)
    with at_once():
        try:
            after = read(path)
        except InnerloopError as error:
            assert "\n" not in str(error)
            return
    assert_equal(before, after)


def archive(*members, change=lambda content: content):
    """A zip of these names, contents and compressions."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data, compression in members:
            content.writestr(name, data, compression)
    return change(file.getvalue())


def header(shape, dtype: Any = "<f4"):
    """An array in NumPy's format without its data."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


STORED, WHOLE = zipfile.ZIP_STORED, header((2,)) + bytes(8)
ARCHIVES = {
    "compressed": archive(("a.npy", WHOLE, zipfile.ZIP_DEFLATED)),
    "oddly compressed": archive(("a.npy", WHOLE, zipfile.ZIP_LZMA)),
    "a bomb": archive(("a.npy", header((2**24,)) + bytes(2**26), zipfile.ZIP_BZIP2)),
    "encrypted": archive(
        ("a.npy", WHOLE, STORED),
        change=lambda content: content.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
    ),
    "terabytes": archive(("a.npy", header((2**40,)) + bytes(8), STORED)),
    "more than any machine has": archive(("a.npy", header((2**62, 2**62)) + bytes(8), STORED)),
    "a negative shape": archive(("a.npy", header((-1, -2)) + bytes(8), STORED)),
    "objects": archive(("a.npy", header((1,), "|O") + pickle.dumps([1]), STORED)),
    "parts": archive(("a.npy", header((1,), [("x", "<f4"), ("y", "<f4")]) + bytes(8), STORED)),
    "nothing of many": archive(("a.npy", header((2**40,), "|V0"), STORED)),
    "more than the array": archive(("a.npy", WHOLE + b"x", STORED)),
    "twice": archive(("a.npy", WHOLE, STORED), ("a.npy", WHOLE, STORED)),
    "a header that is no text": archive(("a.npy", b"\x93NUMPY\1\0\4\0(((\n", STORED)),
}


@pytest.mark.parametrize("crafted", ARCHIVES)
def test_crafted_archives_are_refused(crafted, tmp_path):
    (tmp_path / "x.npz").write_bytes(ARCHIVES[crafted])
    with at_once():
        with pytest.raises(RunError, match="cannot be read"):
            RunFolder(tmp_path).read_arrays("x.npz")
        with pytest.raises(DataError, match="cannot be read"):
            il.optimizers.load_optimizer(tmp_path / "x.npz")


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_weights_and_biases_has_is_read_or_refused(damage, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    logger = il.logging.WeightsAndBiases("project", tmp_path)
    path = tmp_path / "wandb" / "innerloop.json"
    path.parent.mkdir()
    path.write_text('{"id": "a", "step": 3}')
    assert logger._remembered() == {"id": "a", "step": 3}
    DAMAGE[damage](path)
    with at_once():
        try:
            logger._remembered()
        except RunError as error:
            assert str(path) in error.got


# --- files that others write ----------------------------------------------------------------------


def pickle_file(folder):
    images = np.broadcast_to(PIXELS, (4, 7, 5, 3)).copy()
    content = {"image_data": images, "class_dict": {"a": [0, 2], "b": [1, 3]}}
    (folder / "x.pkl").write_bytes(pickle.dumps(content, protocol=4))
    return folder / "x.pkl", _pickled


def image_file(folder):
    Image.fromarray(PIXELS).save(folder / "x.png")
    return folder / "x.png", lambda path: classes_of_files({"a": [path]}, 4)


def list_file(folder):
    (folder / "x.txt").write_text("one\ntwo\n")
    return folder / "x.txt", read_lines


def archive_file(folder):
    content = b"drawings" * 40
    known = KnownFile("x.zip", hashlib.md5(content).hexdigest())
    (folder / "x.zip").write_bytes(content)
    return folder / "x.zip", lambda path: local_file((known,), folder)


def log_file(folder):
    make_run(folder / "run")
    path = folder / "run" / "log.jsonl"

    def goes_on(path):
        with JsonLines(path):
            pass
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    return path, goes_on


def lock_file(folder):
    Lock(folder).close()
    return folder / "lock", lambda path: Lock(folder).close()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "make", [pickle_file, image_file, list_file, archive_file, log_file, lock_file]
)
@pytest.mark.filterwarnings("ignore")  # Pillow's own of strange images
def test_a_file_of_others_is_read_or_refused(make, damage, tmp_path):
    path, read = make(tmp_path)
    read(path)
    DAMAGE[damage](path)
    with at_once():
        try:
            read(path)
        except (DataError, RunError) as error:
            assert "\n" not in str(error)


# --- checkpoints ----------------------------------------------------------------------------------

STATE = {"w": np.arange(300_000, dtype=np.float32), "n": np.int32(3)}
RECORD = {"best_step": None, "score": "-inf", "seconds": 1.5}


@contextmanager
def opened(folder):
    checkpoints = CheckpointFolder(il.training.Checkpoints(folder), {"seed": 1})
    try:
        yield checkpoints
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints with one state, of which the later one is damaged."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    with opened(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.tree.map(jnp.asarray, STATE), RECORD)
    return folder


def loaded(run):
    """The state, and its record."""
    with opened(run) as checkpoints:
        found = checkpoints.load(lambda step, record: jax.tree.map(jnp.asarray, STATE))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "damage", without(DAMAGE.keys() - {"half", "pipe", "device", "a bit at 0.5"}, DAMAGE)
)
@pytest.mark.filterwarnings("ignore:the checkpoint at outer step")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_is_what_was_saved_or_passed_over(damage, saved, tmp_path):
    whole = [path.relative_to(saved) for path in (saved / "2").rglob("*") if path.is_file()]
    assert len(whole) > 8
    for file in whole:
        run = shutil.copytree(saved, tmp_path / "run")
        DAMAGE[damage](run / file)
        with at_once(30):
            try:
                state, record = loaded(run)
            except RunError as error:
                named = re.match(r"(\S+), which is a link", error.got)
                assert named is not None
                subprocess.run(["rm", named[1]], check=True)  # as the cure says
                state, record = loaded(run)
        assert_equal(state, STATE)
        assert record["seconds"] == 1.5
        shutil.rmtree(run)


@pytest.mark.parametrize("name", ["leaves", "packed", "checksums", "record", "settings"])
def test_a_record_of_wrong_kinds_is_passed_over(name, saved, tmp_path, monkeypatch):
    """The checksum is right, as if somebody had written the record so."""
    for hostile in (None, -1, "x", [[1]]):
        run = shutil.copytree(saved, tmp_path / "run")
        path = run / "2" / "about" / "metadata"
        about = json.loads(path.read_text())
        del about["checksum"]
        wrong = about | {name: hostile}
        path.write_text(json.dumps(wrong | {"checksum": checkpoint._checksum(wrong)}))
        with at_once(), pytest.warns(UserWarning, match="outer step 2 cannot be read"):
            state, _ = loaded(run)
        assert_equal(state, STATE)
        shutil.rmtree(run)


# --- a report -------------------------------------------------------------------------------------

SHOWN = ("config.json", "log.jsonl", "result.json", "test_tasks.npz", "episodes.png")
TRIALS = "optimizers-seed7-steps3-tasks5.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("damage") / "run", losses=6, tasks=5)
    add_trials(run, 3)
    return run


@contextmanager
def kept(path):
    """The file is as it was afterwards."""
    content = path.read_bytes()
    try:
        yield content
    finally:
        if path.is_symlink() or not path.is_file():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(content)


def reported(run, shows):
    """Reads the run, and shows it: what passes the reader does not break the page."""
    with at_once(20):
        try:
            read = read_runs([run])
        except RunError as error:
            assert "\n" not in str(error)
            return
        if shows:
            render(read)


@pytest.mark.parametrize("shows", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", [*SHOWN, TRIALS])
@pytest.mark.filterwarnings("ignore")  # NumPy's and matplotlib's, of numbers that overflow
def test_a_report_of_damaged_files(name, shows, run):
    for damage in list(DAMAGE.values())[:: 1 if shows else 3]:
        with kept(run / name):
            damage(run / name)
            reported(run, shows)


def variants(content):
    """The content with each part in turn replaced by each hostile value, or left out."""
    # One entry of a list stands for the others.
    parts = list(content.items()) if isinstance(content, dict) else list(enumerate(content))[:1]
    for place, part in parts:
        for hostile in HOSTILE:
            yield replaced(content, place, hostile)
        if isinstance(content, dict):
            yield {name: each for name, each in content.items() if name != place}
        if isinstance(part, dict | list):
            for variant in variants(part):
                yield replaced(content, place, variant)


def replaced(content, place, part):
    changed = content.copy()
    changed[place] = part
    return changed


KINDS = {
    "config.json": runs._BEGUN,
    "result.json": runs._ENDED,
    "log.jsonl": LINE,
    TRIALS: runs._TRIALS,
}


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_reads_or_refuses_every_value(name, stride, run):
    first, _, _ = (run / name).read_text().partition("\n" if name == "log.jsonl" else "\0")
    content, refused = json.loads(first), 0
    KINDS[name](content)
    for variant in itertools.islice(variants(content), 0, None, stride):
        refused += refuses(KINDS[name], variant)
    assert refused > 10


@pytest.mark.parametrize("name", without(KINDS, KINDS))
@pytest.mark.filterwarnings("ignore")
def test_a_report_of_wrong_values(name, run):
    """Those that pass the kind, of which some are shown."""
    with kept(run / name) as content:
        first, _, rest = content.decode().partition("\n" if name == "log.jsonl" else "\0")
        passed = [each for each in variants(json.loads(first)) if not refuses(KINDS[name], each)]
        for i, variant in enumerate(passed):
            (run / name).write_text(f"{json.dumps(variant)}\n{rest}")
            reported(run, shows=i % 7 == 0)


def refuses(kind, content):
    try:
        kind(content)
    except ValueError:
        return True
    return False
