"""miniImageNet and CIFAR-FS on the command line, from small folders in their published form."""

import jax
import numpy as np
import pytest
from PIL import Image

import innerloop as il
from innerloop.lab.cli import main
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.experiments.omniglot import Omniglot
from innerloop.lab.experiments.photographs import CifarFS, MiniImageNet

PER_CLASS = 4
PARTS = {"train": 3, "val": 2, "test": 2}


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INNERLOOP_DATA", raising=False)


def write_images(folder, side):
    """Images of noise: those of class k of each part in `folder(part, k, example)`."""
    random = np.random.RandomState(0)
    for part, classes in PARTS.items():
        for k in range(classes):
            for example in range(PER_CLASS):
                file = folder(f"{part}{k}", example)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.randint(0, 256, (side, side, 3), np.uint8)).save(file)


@pytest.fixture
def cifar(tmp_path):
    folder = tmp_path / "cifar-fs"
    write_images(lambda name, i: folder / "data" / name / f"{i}.png", 32)
    (folder / "splits" / "bertinetto").mkdir(parents=True)
    for part, classes in PARTS.items():
        names = "".join(f"{part}{k}\n" for k in range(classes))
        (folder / "splits" / "bertinetto" / f"{part}.txt").write_text(names)
    return folder


@pytest.fixture
def mini(tmp_path):
    folder = tmp_path / "mini"
    write_images(lambda name, i: folder / "images" / f"{name}-{i}.jpg", 90)
    for part, classes in PARTS.items():
        rows = [f"{part}{k}-{i}.jpg,{part}{k}\n" for k in range(classes) for i in range(PER_CLASS)]
        (folder / f"{part}.csv").write_text("filename,label\n" + "".join(rows))
    return folder


def test_cifar_fs_is_read_sampled_learned_and_drawn(cifar, tmp_path):
    sizes = {"ways": 2, "queries": 1, "test_queries": 2, "filters": 2}
    experiment = CifarFS(data=cifar, recipe="protonet", augment=True, **sizes)
    parts = experiment.parts()
    meta, train = experiment.init_meta(jax.random.key(0)), parts.estimator
    episode = jax.tree.map(
        lambda leaf: leaf[0], il.tasks.evaluation_episodes(train.tasks, 1, seed=1)
    )
    objective = il.meta_objective(train.problem, train.adaptation, train.gradient)
    loss, _ = jax.jit(objective)(meta, episode, jax.random.key(2))
    assert np.isfinite(loss)
    (figure,) = experiment.write_learned(parts, meta, tmp_path)
    pixels = np.asarray(Image.open(figure).convert("RGB"), int)
    assert np.abs(pixels - pixels.mean(axis=2, keepdims=True)).mean() > 3  # in colour


def test_mini_imagenet_has_the_papers_network_and_settings(mini):
    """The size of MAML's network on 84 × 84 pixels: 800 features, and no bias before a mean."""
    sizes = {"ways": 2, "queries": 2, "test_queries": 3}
    experiment = MiniImageNet(data=mini, **sizes)
    train = experiment.parts().estimator
    meta = jax.eval_shape(experiment.init_meta, jax.random.key(0))
    assert meta["head"]["weights"].shape == (5 * 5 * 32, 2)
    assert [layer["weights"].shape for layer in meta["body"]] == [(3, 3, 3, 32)] + [
        (3, 3, 32, 32)
    ] * 3
    assert train.adaptation.steps == 5
    episode = jax.eval_shape(lambda key: train.tasks.sample(key, 4), jax.random.key(0))
    assert episode.query.inputs.shape == (4, 4, 84, 84, 3)


def test_only_training_tasks_are_augmented(mini):
    parts = MiniImageNet(data=mini, ways=2, queries=2, test_queries=3, augment=True).parts()
    train = parts.estimator.tasks
    assert isinstance(train, il.tasks.Augmented) and train.augment == MiniImageNet.augmentation
    for tasks in (parts.held_out[""].validation, parts.held_out[""].test):
        assert isinstance(tasks, il.tasks.ClassificationTasks)
    train = lambda **settings: Digits(**settings).parts().estimator.tasks
    assert isinstance(train(), il.tasks.ClassificationTasks)
    assert isinstance(train(augment=True, recipe="pretrain_finetune"), il.tasks.Augmented)


def test_the_network_is_a_choice():
    strided = Omniglot(ways=5).build_network()
    pooled = Omniglot(ways=5, network="max_pool").build_network()
    assert strided.width == pooled.width == 64
    images = jax.ShapeDtypeStruct((3, 28, 28, 1), np.float32)
    for network in (strided, pooled, CifarFS().build_network()):
        shape = (3, *CifarFS.image, 3) if network.width == 128 else images.shape
        images = jax.ShapeDtypeStruct(shape, np.float32)
        init = jax.eval_shape(network.features.init, jax.random.key(0))
        out = jax.eval_shape(network.features.apply, init, images, jax.random.key(0), None)
        assert out.shape == (3, network.width)
    with pytest.raises(il.errors.StructureError, match="nothing remains of the image"):
        Digits(network="max_pool").build_network()


@pytest.mark.parametrize("experiment", ["cifar-fs", "mini-imagenet"])
def test_without_data_the_cure_is_one_line(experiment, capsys):
    with pytest.raises(SystemExit) as error:
        main(["train", experiment])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "(--data)" in said
