"""Augmentation: what each does to an image, and to tasks as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

import innerloop as il

# Every pixel is of its own value, and none is zero.
IMAGE = np.arange(1, 31, dtype=np.float32).reshape(5, 6, 1) / 30
MANY = jnp.asarray(np.broadcast_to(IMAGE, (400, *IMAGE.shape)))


def augmented(augment, images=MANY, seed=0):
    return np.asarray(jax.jit(augment)(jax.random.key(seed), images))


def shares(found, expected):
    """How often each of the expected images is found; every one found is expected."""
    counts = np.zeros(len(expected), int)
    for image in found:
        same = [np.array_equal(image, other) for other in expected]
        assert any(same)
        counts[same.index(True)] += 1
    return counts / len(found)


def test_a_crop_is_at_every_place_of_the_image_with_its_margin():
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)))
    places = [padded[i : i + 5, j : j + 6] for i in range(3) for j in range(3)]
    assert np.abs(shares(augmented(il.tasks.RandomCrop(1)), places) - 1 / 9).max() < 0.08


def test_half_of_the_images_are_flipped():
    found = shares(augmented(il.tasks.RandomHorizontalFlip()), [IMAGE, IMAGE[:, ::-1]])
    assert np.abs(found - 0.5).max() < 0.1


def test_shifts_and_turns_are_within_their_bounds_and_scipys():
    """A turned and shifted image is SciPy's, at the angle and shift that its pixels tell."""
    steps = np.mgrid[:9, :11].astype(np.float32)  # each pixel holds where it came from
    image = jnp.asarray(np.moveaxis(steps, 0, -1))
    found = augmented(il.tasks.RandomAffine(degrees=30, shift=2), jnp.stack([image] * 200))
    centre = np.array([4.0, 5.0])
    angles, shifts = [], []
    for moved in found:
        origin = moved[4, 5]
        along = moved[5, 5] - origin
        angles.append(np.degrees(np.arctan2(along[1], along[0])))
        matrix = np.array([[along[0], -along[1]], [along[1], along[0]]])
        shifts.append(np.linalg.solve(matrix, centre - origin))
        offset = origin - matrix @ centre
        expected = [ndimage.affine_transform(step, matrix, offset, order=1) for step in steps]
        inside = np.s_[3:6, 4:7]
        np.testing.assert_allclose(moved[inside], np.moveaxis(expected, 0, -1)[inside], atol=1e-3)
    for values, most in [(np.array(angles), 30), (np.array(shifts), 2)]:
        assert np.abs(values).max() < most + 1e-2
        assert np.abs(values).max() > 0.9 * most
        assert np.abs(values.mean()) < 0.2 * most
    unmoved = augmented(il.tasks.RandomAffine(degrees=0, shift=0))
    np.testing.assert_allclose(unmoved, MANY, atol=1e-6)


def tasks(**sizes):
    images = np.random.RandomState(0).randint(1, 256, (4, 6, 5, 5, 3), np.uint8)
    return il.tasks.ClassificationTasks(images, **{"ways": 3, "shots": 2, "queries": 2, **sizes})


def test_augmented_tasks_are_the_tasks_with_other_pixels():
    """Each image by draws of its own, labels and masks as they are, padding blank."""
    augment = il.tasks.Compose((lambda key, images: images + 1, lambda key, images: 2 * images))
    drawn = il.tasks.evaluation_episodes(il.tasks.Augmented(tasks(ways=(2, 3)), augment), 8, seed=0)
    for examples in (drawn.support, drawn.query):
        pixels, mask = np.asarray(examples.inputs), np.asarray(examples.mask)
        assert not mask.all() and not pixels[~mask].any()
        assert (pixels[mask] > 2).all()
        assert examples.classes.shape == (8, 6, 3)
    cropped = il.tasks.evaluation_episodes(
        il.tasks.Augmented(tasks(), il.tasks.RandomCrop(2)), 40, seed=0
    )
    blank_rows = (np.asarray(cropped.support.inputs) == 0).all(axis=(3, 4)).sum(axis=2)
    assert {0, 1, 2} == set(np.unique(blank_rows))
    assert (blank_rows.min(axis=1) < blank_rows.max(axis=1)).any()


def test_tasks_are_the_same_in_whatever_blocks_they_are_drawn():
    flipped = il.tasks.Augmented(tasks(), il.tasks.RandomHorizontalFlip())
    many, few = (il.tasks.evaluation_episodes(flipped, n, seed=3) for n in (5, 2))
    for whole, part in zip(jax.tree.leaves(many), jax.tree.leaves(few), strict=True):
        np.testing.assert_array_equal(whole[:2], part)


def test_fit_takes_augmented_tasks():
    recipe = il.recipes.protonet(il.models.mlp_features([75, 8]), il.models.cross_entropy, 3)
    crop = il.tasks.Augmented(tasks(), il.tasks.RandomCrop(1))
    estimator = recipe.estimator(crop, batch=2)
    options = {"optimizer": optax.sgd(0.1), "steps": 2, "key": jax.random.key(0)}
    last = il.fit(estimator, recipe.init_meta, **options).last
    assert np.isfinite(jax.tree.leaves(last)[0]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: il.tasks.RandomCrop(0), "padding=0"),
        (lambda: il.tasks.RandomAffine(degrees=-1, shift=0), "degrees=-1"),
        (
            lambda: il.tasks.Augmented(il.tasks.SinusoidTasks(1, 1), il.tasks.RandomCrop(1)).sample(
                jax.random.key(0), 1
            ),
            "no images to augment",
        ),
        (
            lambda: il.tasks.Augmented(tasks(), lambda key, images: images[:, 1:]).sample(
                jax.random.key(0), 1
            ),
            r"f32\[6,5,5,3\] became f32\[6,4,5,3\]",
        ),
    ],
)
def test_what_cannot_be_augmented_is_refused(make, message):
    with pytest.raises(il.errors.StructureError, match=message):
        make()
