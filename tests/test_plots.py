"""Figures: a readable PNG of each, written in one move, without pyplot."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from innerloop.errors import StructureError
from innerloop.lab import plots
from innerloop.lab.experiments.curves import draw_curves, read_evaluation, series
from innerloop.lab.plots.curves import _running_mean
from innerloop.lab.plots.episodes import EpisodePanel


def _curve(path, n=60, m=3, **changes):
    arguments = {
        "steps": np.arange(n),
        "losses": np.geomspace(1.0, 0.01, n),
        "validation_steps": np.arange(m) * 20,
        "validation": np.linspace(0.2, 0.9, m),
        "metric": "accuracy",
        "title": "a title",
    }
    return plots.learning_curve(path, **(arguments | changes))


def _adaptation(path, **changes):
    arguments = {
        "mean": np.linspace(0.2, 0.9, 6),
        "interval": np.full(6, 0.02),
        "metric": "accuracy",
        "trained_steps": 5,
        "title": "a title",
    }
    return plots.adaptation_curve(path, **(arguments | changes))


def _sinusoid(steps=(0, 1, 5, 10)):
    x = np.linspace(-5, 5, 20)
    fits = {step: np.sin(x) * step for step in steps}
    return {"x": x, "truth": np.sin(x), "support_x": x[:3], "support_y": x[:3], "fits": fits}


def _episode(ways=2, shots=1, queries=2, channels=()):
    labels, asked = np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), queries)
    pixels = np.random.default_rng(0).uniform(size=(len(labels) + len(asked), 4, 4, *channels))
    return {
        "support_images": pixels[: len(labels)],
        "support_labels": labels,
        "query_images": pixels[len(labels) :],
        "query_labels": asked,
        "predictions": np.zeros_like(asked),
        "probability": np.full(len(asked), 0.7),
    }


FIGURES = {
    "learning": _curve,
    "adaptation": _adaptation,
    "sinusoids": lambda path: plots.sinusoid_fits(path, [_sinusoid()]),
    "episodes": lambda path: plots.episodes_with_predictions(path, [_episode()]),
}
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def _size(path):
    with Image.open(path) as image:
        image.verify()
        assert image.format == "PNG"
        return image.size


@every_figure
def test_writes_one_png_in_a_new_folder_and_leaves_the_settings(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    target = tmp_path / "figures" / "a.png"
    assert draw(target) == target
    assert draw(str(target)) == target
    assert min(_size(target)) > 300
    assert [p.name for p in target.parent.iterdir()] == ["a.png"]
    assert dict(matplotlib.rcParams) == before


@every_figure
def test_a_failed_write_leaves_the_old_file_and_nothing_else(draw, tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def half(self, file, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="disk full"):
        draw(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_importing_it_does_not_import_matplotlib():
    code = "import sys, innerloop.lab.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": np.full(60, np.nan)},
        {"losses": np.where(np.arange(60) % 7, 1.0, np.inf)},
        {"losses": np.linspace(-1.0, 1.0, 60)},
        {"losses": np.zeros(60)},
        {"validation": np.full(3, np.nan)},
        {"metric": "mean squared error", "validation": np.array([3.0, np.nan, 1.0])},
        {"metric": "return"},
        {"validation_steps": [20], "validation": [0.5]},
        {"steps": [0], "losses": [1.0]},
    ],
)
def test_learning_curves_of_unruly_runs(changes, tmp_path):
    _size(_curve(tmp_path / "a.png", **changes))


@pytest.mark.parametrize(
    ("lines", "steps", "validated"), [(0, None, None), (1, [7, 8], []), (2, [5, 6, 7, 8], [6])]
)
def test_the_curves_of_a_run_whose_log_was_lost(lines, steps, validated, tmp_path, monkeypatch):
    """Wholly, or but for what came after: it is drawn at its own steps."""
    given, curve = {}, plots.learning_curve

    def watched(path, **arrays):
        given.update(arrays)
        return curve(path, **arrays)

    monkeypatch.setattr(plots, "learning_curve", watched)
    accuracy, interval = {"accuracy": [0.2, 0.5]}, {"accuracy": [0.1, 0.1]}
    validation = {"mean": accuracy, "interval_95": interval, "tasks": 5}
    written = [
        {"step": 6, "seconds": 2.0, "losses": [1.0, "NaN"], "validation": validation},
        {"step": 8, "seconds": 3.0, "losses": [0.5, 0.4]},
    ]
    log, test = series(written[2 - lines :], "accuracy"), read_evaluation(validation)
    draw_curves(tmp_path, "digits", log, "accuracy", test, 1)
    assert len(list(tmp_path.glob("*.png"))) == (3 if lines else 1)
    if lines:
        assert given["steps"].tolist() == steps
        assert given["validation_steps"].tolist() == validated
        assert len(given["losses"]) == len(steps)


def test_no_second_panel_without_validation(tmp_path):
    two, one = _curve(tmp_path / "two.png"), _curve(tmp_path / "one.png", m=0)
    assert _size(two)[0] == 2 * _size(one)[0]


def test_the_running_mean_looks_back_and_leaves_out_what_is_not_finite():
    values = np.array([np.nan, 2.0, 4.0, np.nan, np.nan, np.nan, 1e30, 1.0, 1.0])
    expected = [np.nan, 2.0, 3.0, 4.0, np.nan, np.nan, 1e30, 5e29, 1.0]
    np.testing.assert_allclose(_running_mean(values, 2), expected)


@pytest.mark.parametrize("trained", [0, 1, 9])
def test_trained_steps_may_lie_anywhere(trained, tmp_path):
    _size(_adaptation(tmp_path / "a.png", trained_steps=trained))


def test_at_most_four_sinusoids(tmp_path):
    sizes = [
        _size(plots.sinusoid_fits(tmp_path / f"{n}.png", [_sinusoid()] * n)) for n in (2, 3, 4, 9)
    ]
    assert sizes[3] == sizes[2]
    assert len(set(sizes)) == 3


@pytest.mark.parametrize(
    "episode",
    [
        _episode(queries=1),
        _episode(ways=5, shots=5, queries=15),
        _episode(ways=20, shots=5, queries=1),
        _episode(ways=40),
        _episode(ways=2, shots=20),
        _episode(channels=(1,)),
        _episode(channels=(3,)),
        _episode() | {"query_images": np.zeros((4, 4, 4), bool)},
    ],
)
def test_episodes_of_every_size(episode, tmp_path):
    width, height = _size(plots.episodes_with_predictions(tmp_path / "a.png", [episode] * 2))
    assert width <= 1500
    assert height <= 2000


def test_of_many_images_equally_many_of_each_class_are_drawn():
    block = EpisodePanel(1, _episode(ways=5, shots=10, queries=15))
    np.testing.assert_array_equal(np.bincount(block.support_labels[block.support_shown]), [6] * 5)
    np.testing.assert_array_equal(np.bincount(block.labels[block.queries_shown]), [3] * 5)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: _curve(path, losses=np.ones(3)),
        lambda path: _curve(path, steps=[], losses=[]),
        lambda path: _curve(path, validation=[0.5]),
        lambda path: _adaptation(path, interval=np.ones((6, 2))),
        lambda path: plots.sinusoid_fits(path, []),
        lambda path: plots.sinusoid_fits(path, [_sinusoid(steps=(0, 1))]),
        lambda path: plots.episodes_with_predictions(path, []),
        lambda path: plots.episodes_with_predictions(path, [_episode(queries=0)]),
    ],
)
def test_data_that_cannot_be_drawn_is_named(draw, tmp_path):
    with pytest.raises(StructureError):
        draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_validation_over_time_is_drawn(tmp_path):
    """A PNG in its place, and unequal lengths are refused."""
    path = plots.validation_over_time(
        tmp_path / "time.png", minutes=[1, 2], validation=[0.5, 0.9], metric="accuracy", title="t"
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StructureError):
        plots.validation_over_time(
            path, minutes=[1], validation=[0.5, 0.9], metric="accuracy", title="t"
        )
