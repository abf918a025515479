"""The core needs no extra, and what needs one says which to install."""

import re
import subprocess
import sys
import zipfile

import extras
import jax
import numpy as np
import pytest

import innerloop as il
from innerloop.__main__ import main
from innerloop.storage.checkpoint import CheckpointFolder
from innerloop.tasks._omniglot import read_drawing
from innerloop.tasks.files import KnownFile, cache_folder, downloaded

PROGRAM = """
import sys

EXTRAS = {names}
sys.modules.update(dict.fromkeys(EXTRAS))

import jax
import optax

import innerloop as il

model = il.models.mlp([1, 4, 1])
tasks = il.tasks.SinusoidTasks(2, 2)
recipe = il.recipes.maml(model, il.models.mean_squared_error, rate=0.01, steps=1)
training = {{"optimizer": optax.adam(1e-3), "steps": 2, "key": jax.random.key(0)}}
outcome = il.fit(recipe.estimator(tasks, batch=2), recipe.init_meta, **training)
assert outcome.step == 2
where = (recipe.problem, recipe.adaptation, outcome.meta)
episodes, key = tasks.sample(jax.random.key(1), 2), jax.random.key(2)
(value, aux), grads = il.meta_value_and_grad(*where[:2])(outcome.meta, episodes, key)
print(value)
print(il.check(*where, episodes, key))
print(il.compare(*where, episodes, key, [il.Unroll(), il.Reptile()], seconds=0.01))
print(il.plan(*where, episodes, "64MiB"))
loaded = [name for name, module in sys.modules.items() if module]
assert not any(name.split(".")[:2] == ["innerloop", "lab"] for name in loaded)
"""


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_core_works_without_the_extras():
    done = run(PROGRAM.format(names=sorted(extras.ALL)))
    assert done.returncode == 0, done.stderr
    for printed in ("meta-gradient", "Reptile()", "chosen"):
        assert printed in done.stdout


def test_importing_it_imports_no_extra():
    # JAX imports flatbuffers by itself if it is installed.
    done = run(
        "import sys, jax; by_jax = set(sys.modules); import innerloop; "
        f"print(*(set({[*extras.ALL]}) & sys.modules.keys() - by_jax))"
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def with_a_drawing(folder):
    with zipfile.ZipFile(folder / "drawings.zip", "w") as archive:
        archive.writestr("a.png", b"")
        read_drawing(archive, "a.png", 28)


def with_an_image(folder):
    (folder / "class").mkdir()
    (folder / "class" / "a.png").write_bytes(b"")
    il.tasks.image_folder(folder, size=8)


def downloading(folder):
    with downloaded(KnownFile("file", "0"), "https://nowhere.invalid/"):
        pass


def streaming(folder):
    draw = lambda random: np.zeros(2)
    il.tasks.StreamedTasks(draw).feed(jax.random.key(0), 0, 1, 1)


def saving(folder):
    CheckpointFolder(il.training.Checkpoints(folder / "run"), settings={})


NEEDS = {
    "digits": ("data", "sklearn", lambda folder: il.tasks.digits()),
    "table": ("data", "sklearn", lambda folder: il.tasks.optimization.wine_table()),
    "text": ("data", "sklearn", lambda folder: il.tasks.optimization.descriptions("wine")),
    "images": ("data", "PIL", with_an_image),
    "drawings": ("data", "PIL", with_a_drawing),
    "cache": ("data", "pooch", lambda folder: cache_folder()),
    "download": ("data", "pooch", downloading),
    "stream": ("data", "grain", streaming),
    "checkpoints": ("checkpoints", "orbax", saving),
    "torch": ("torch", "torchax", lambda folder: il.adapters.from_torch(None)),
    "tensorboard": ("tensorboard", "tensorboardX", il.logging.TensorBoard),
    "wandb": ("wandb", "wandb", lambda folder: il.logging.WeightsAndBiases("project", folder)),
}


@pytest.mark.parametrize(("extra", "package", "use"), NEEDS.values(), ids=NEEDS)
def test_what_needs_an_extra_says_which(extra, package, use, tmp_path, monkeypatch):
    if package == "pooch":
        monkeypatch.delenv("INNERLOOP_CACHE", raising=False)
    else:
        monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    message = rf"needs the package {package}\b.*pip install 'innerloop\[{extra}\]'"
    with extras.blocked([package]), pytest.raises(il.errors.RunError, match=message):
        use(tmp_path)


def test_each_package_of_the_extras_is_among_them():
    outside = ("data", "checkpoints", "torch", "tensorboard", "wandb")
    tested = {package for _, package, _ in NEEDS.values()}
    assert tested == set().union(*map(extras.packages, outside))


@pytest.mark.skipif("innerloop.lab" in extras.MISSING, reason="without the lab")
@pytest.mark.parametrize("package", ["tyro", "rich", "matplotlib", "jinja2", "markupsafe"])
def test_the_command_says_that_it_needs_the_lab(package, capsys):
    forgotten = [name for name in sys.modules if re.match(r"innerloop\.lab\b", name)]
    with pytest.MonkeyPatch.context() as patch, extras.blocked([package]):
        for name in forgotten:
            patch.delitem(sys.modules, name)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"innerloop: innerloop.lab needs the package {package}")
    assert "pip install 'innerloop[lab]'" in told
    assert told.count("\n") == 1
