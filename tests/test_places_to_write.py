"""What lies in the place of a file that is written: it is replaced or refused, never followed."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import innerloop as il
from innerloop.errors import RunError
from innerloop.lab.plots.style import new_figure
from innerloop.lab.report import write_report
from innerloop.lab.run_folder import RunFolder
from innerloop.logging import JsonLines
from innerloop.storage import files
from innerloop.storage.checkpoint import CheckpointFolder
from innerloop.storage.lock import Lock
from innerloop.tasks.files import cached_array

SECRET = "belongs to somebody else\n"


def draw(path):
    with new_figure(path, (2.0, 2.0)) as (_, done):
        done()


def log(path):
    metrics = {"loss": np.ones(1), "gradient_norm": np.ones(1)}
    system = {"step_seconds": 1.0, "compile_seconds": 1.0, "peak_memory_bytes": 1.0}
    with JsonLines(path) as log:
        log(il.training.Progress(1, metrics, 1.0, None, False, {}, None, system))


def save_optimizer(path):
    learned = il.optimizers.ScalarRate()
    il.optimizers.save_optimizer(path, learned, learned.init(jax.random.key(0), None))


def cache(path):
    cached_array(path.stem, lambda: np.zeros((1, 2), np.uint8), (1, 2))


WRITERS = {
    "lock": lambda path: Lock(path.parent).close(),
    "config.json": lambda path: RunFolder(path.parent).write_json(path.name, {}),
    "best.eqx": lambda path: RunFolder(path.parent).save_meta({"w": jnp.ones(3)}),
    "trained.meta": lambda path: il.training.save_meta(path, {"w": jnp.ones(3)}),
    "test_tasks.npz": lambda path: RunFolder(path.parent).write_arrays(
        path.name, {"a": np.ones(2)}
    ),
    "log.jsonl": log,
    "learned.opt": save_optimizer,
    "learning_curve.png": draw,
    "drawings.npz": cache,
}
OBSTACLES = {
    "a link": lambda path, secret: path.symlink_to(secret),
    "a second name": lambda path, secret: path.hardlink_to(secret),
    "a link to nothing": lambda path, secret: path.symlink_to(path.with_name("nothing")),
    "a pipe": lambda path, secret: os.mkfifo(path),
    "a device": lambda path, secret: path.symlink_to("/dev/zero"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_else_is_written(name, obstacle, tmp_path, monkeypatch):
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path))
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    OBSTACLES[obstacle](tmp_path / name, secret)
    try:
        WRITERS[name](tmp_path / name)
    except RunError as error:
        cure = re.fullmatch(r"rm -r (.*)", error.write or "")
        if cure:  # It does what it says.
            subprocess.run(["rm", "-r", cure[1]], check=True)
            WRITERS[name](tmp_path / name)
    assert secret.read_text() == SECRET
    assert not (tmp_path / "nothing").exists()


def test_a_temporary_name_is_not_foreseen_and_not_followed(tmp_path, monkeypatch):
    seen = []
    write = lambda file: seen.append(file) or file.write(b"x")
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(a.name), replace(a, b)))
    for _ in range(2):
        files.write_whole(tmp_path / "mine", write)
    names = [each for each in seen if isinstance(each, str)]
    assert len(set(names)) == 2 and all(str(os.getpid()) not in name for name in names)
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "known")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / ".known.tmp").symlink_to(tmp_path / "secret")
    with pytest.raises(FileExistsError):
        files.write_whole(tmp_path / "mine", write)
    assert (tmp_path / "secret").read_text() == SECRET


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "theirs").touch()
    files.write_text(tmp_path / "mine", "x")
    modes = [(tmp_path / name).stat().st_mode for name in ("mine", "theirs")]
    assert modes[0] == modes[1]


NO_TEXT = os.fsdecode(b"run-\xff")


@pytest.mark.parametrize(
    "use",
    [
        lambda path: RunFolder.begin(path, {}),
        RunFolder.open,
        lambda path: CheckpointFolder(il.training.Checkpoints(path), {}),
        lambda path: write_report([path]),
    ],
)
def test_a_folder_whose_name_is_no_text_is_refused(use, tmp_path):
    (tmp_path / NO_TEXT).mkdir()
    with pytest.raises(RunError, match=r"not UTF-8.*run-.udcff"):
        use(tmp_path / NO_TEXT)
    assert list((tmp_path / NO_TEXT).iterdir()) == []


PROGRAM = """
import shutil, sys, warnings
from pathlib import Path
import jax, jax.numpy as jnp
from innerloop.storage.compiled import keep_compiled

folder = Path(sys.argv[1])
keep_compiled(folder)
warnings.simplefilter("error")
f, g = jax.jit(lambda x: 2 * x + 1), jax.jit(lambda x, y: x @ y - 3)
x = jnp.arange(9.0).reshape(3, 3)

def results():
    jax.clear_caches()
    return float(f(x).sum()), float(g(x, x).sum())

first = results()
entries = sorted(folder.glob("*-sealed"))
assert len(entries) >= 2 and sorted(folder.iterdir()) == entries
whole = {each: each.read_bytes() for each in entries}
damaged = [
    lambda path: path.write_bytes(whole[path][:-7]),
    lambda path: path.write_bytes(whole[path][:50] + b"!" + whole[path][51:]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(whole[entries[entries.index(path) - 1]]),  # swapped
]
for damage in damaged:
    for path in entries:
        damage(path)
    assert results() == first
    stamp = {path: path.stat().st_mtime_ns for path in entries}
    assert results() == first
    assert stamp == {path: path.stat().st_mtime_ns for path in entries}, "compiled again"
print("repaired")
"""


def test_damaged_programs_are_compiled_once_more_and_kept(tmp_path):
    """In a process of its own, whose cache it is: no warning, and no second compilation."""
    away = ("JAX_COMPIL", "JAX_PERSIST")
    environment = {name: x for name, x in os.environ.items() if not name.startswith(away)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "repaired\n", done.stderr
