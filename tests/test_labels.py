"""Labels: rows without one, labels that are no class, and outputs that are no class of the task.

One rule for the loss and every recipe for classes, in support and query set alike.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import without

import innerloop as il
from innerloop.diagnostics.known_values import first_error
from innerloop.labels import labels
from innerloop.training import outer_loop
from innerloop.training.calibration import calibration_sums

KEY = jax.random.key(0)
WAYS, WIDTH = 3, 4
FEATURES = il.models.mlp_features([2, WIDTH])
LOSS = il.models.cross_entropy
RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(9, 2)), np.arange(9) % WAYS


def recipes(outputs):
    """Every recipe for classes, with so many outputs."""
    network = il.models.linear_head(FEATURES, WIDTH, outputs)
    made = il.recipes.table.RECIPES
    parts = il.recipes.Network(network, FEATURES, WIDTH, outputs, LOSS, lambda: outputs)
    found = {name: make(parts)() for name, make in made.items() if name not in _OTHERS}
    found["maml"] = il.recipes.maml(network, LOSS, rate=0.4, steps=1)
    return found


_OTHERS = {  # their losses are those of MAML, and their steps take longer
    *("fomaml", "reptile", "meta_sgd", "maml_plus_plus", "anil", "boil", "imaml", "cavia"),
    *("pretrain_finetune",),
}
RECIPES = recipes(WAYS)
SLOW = {"svm_head", "logistic_head", "cnp", "matching"}  # protonet and r2d2 are faster
each_recipe = pytest.mark.parametrize("name", without(SLOW, RECIPES))


def examples(targets, rows=slice(None), **more):
    return il.Examples(jnp.asarray(INPUTS[rows]), jnp.asarray(targets), **more)


def loss_and_gradient(recipe, episode, meta=None):
    """In a compiled function that gets the episode as an argument."""
    meta = recipe.init_meta(KEY) if meta is None else meta
    objective = il.meta_objective(recipe.problem, recipe.adaptation, recipe.gradient)
    return jax.jit(jax.value_and_grad(objective, has_aux=True))(meta, episode, KEY)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9), a, b)


def changed(label):
    """The labels with one of them changed, of a class that has others."""
    targets = LABELS.copy()
    targets[4] = label
    return targets


# --- rows without a label -------------------------------------------------------------------------


@each_recipe
def test_rows_without_a_label_are_as_if_they_were_not_there(x64, name):
    """In the support and in the query set, for the loss, the accuracy and the meta-gradient."""
    recipe, kept = RECIPES[name], np.arange(9) != 4
    without = il.Episode(*2 * [examples(changed(il.models.IGNORED))])
    fewer = il.Episode(*2 * [examples(LABELS[kept], kept)])
    (loss, aux), grads = loss_and_gradient(recipe, without)
    (expected, expected_aux), expected_grads = loss_and_gradient(recipe, fewer)
    assert_close((loss, aux.metrics, grads), (expected, expected_aux.metrics, expected_grads))


@pytest.mark.parametrize("shape", [(9,), (3, 3)])
def test_positions_without_a_label_do_not_count(x64, shape):
    logits = jnp.asarray(RNG.normal(size=(9, WAYS)))
    targets = changed(il.models.IGNORED).reshape(shape)
    given = il.Examples(jnp.zeros((shape[0], 1)), jnp.asarray(targets))
    loss, aux = jax.jit(LOSS)(logits.reshape(*shape, WAYS), given)
    kept = np.arange(9) != 4
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(loss, -log_softmax[kept, LABELS[kept]].mean())
    np.testing.assert_allclose(aux["accuracy"], (logits.argmax(1) == LABELS)[kept].mean())


def test_without_any_label_loss_and_gradient_are_zero(x64):
    given = examples(np.full(9, il.models.IGNORED))
    differentiate = jax.jit(jax.value_and_grad(lambda logits: LOSS(logits, given)[0]))
    value, gradient = differentiate(jnp.full((9, WAYS), jnp.nan))
    assert value == 0 and not gradient.any()


# --- labels that are no class ---------------------------------------------------------------------

NO_CLASS = {"above": 3, "far above": 2**31 - 1, "below": -1, "far below": -101}


def with_label(label, part):
    """An episode with one label of its support or query set changed."""
    sound, wrong = examples(LABELS), examples(changed(label))
    return il.Episode(wrong, sound) if part == "support" else il.Episode(sound, wrong)


@pytest.mark.parametrize("part", ["support", "query"])
@each_recipe
def test_a_label_that_is_no_class_never_counts_as_one(x64, name, part):
    """In a compiled function, which cannot raise, the loss is NaN."""
    recipe = RECIPES[name]
    meta, objective = recipe.init_meta(KEY), il.meta_objective(recipe.problem, recipe.adaptation)
    value = jax.jit(lambda episode: objective(meta, episode, KEY))
    for label in NO_CLASS.values():
        loss, aux = value(with_label(label, part))
        assert np.isnan(loss)
        assert part == "support" or np.isnan(aux.metrics["accuracy"])
    assert np.isfinite(value(with_label(1, part))[0])


def test_its_gradient_is_not_finite_either(x64):
    """An inner step reads the gradient alone."""
    slope = jax.jit(jax.grad(lambda logits, given: LOSS(logits, given)[0]))
    logits = jnp.zeros((9, WAYS))
    assert np.isnan(slope(logits, examples(changed(3)))).all()
    assert np.isfinite(slope(logits, examples(LABELS))).all()


@pytest.mark.parametrize("part", ["support", "query"])
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_refused_where_its_value_is_known(as_users_see_it, name, part):
    recipe = RECIPES[name]
    objective = il.meta_objective(recipe.problem, recipe.adaptation)
    for label in NO_CLASS.values():
        episode, reach = with_label(label, part), f"targets reach {label}, the network has 3 outp"
        with pytest.raises(il.errors.StructureError, match=reach) as raised:
            jax.eval_shape(lambda meta, e=episode: objective(meta, e, KEY), recipe.init_meta(KEY))
        assert "numpy.unique(labels, return_inverse=True)[1]" in raised.value.write


def test_a_class_of_another_task_is_no_class(x64):
    """Its output exists, but `classes` says that the row's task does not have it."""
    classes = np.ones((9, WAYS), bool)
    classes[:, 2] = False
    logits = jnp.zeros((9, WAYS))
    fits = examples(LABELS % 2, classes=jnp.asarray(classes))
    np.testing.assert_allclose(LOSS(logits, fits)[0], np.log(2))
    wrong = examples(LABELS, classes=jnp.asarray(classes))
    assert np.isnan(jax.jit(LOSS)(logits, wrong)[0])
    with pytest.raises(il.errors.StructureError, match=r"label 2, whose classes are \[0, 1\]"):
        LOSS(logits, wrong)


@pytest.mark.parametrize("targets", [[-1, 1], [1, 2], [5, 9]], ids=str)
def test_the_cure_of_a_label_works(as_users_see_it, targets):
    logits = jnp.zeros((2, 2))
    with pytest.raises(il.errors.StructureError, match="a label is not a class"):
        LOSS(logits, examples(np.array(targets), slice(2)))
    renamed = np.unique(targets, return_inverse=True)[1]
    assert np.isfinite(LOSS(logits, examples(renamed, slice(2)))[0])
    assert np.isfinite(LOSS(jnp.zeros((2, 10)), examples(np.abs(targets), slice(2)))[0])
    ignored = np.where(np.array(targets) == targets[0], il.models.IGNORED, 1)
    assert np.isfinite(LOSS(logits, examples(ignored, slice(2)))[0])


def test_a_label_beyond_the_declared_classes_is_refused(as_users_see_it):
    with pytest.raises(il.errors.StructureError, match=r"the task has 2 classes.*Write: ways=3"):
        LOSS(jnp.zeros((9, 5)), examples(LABELS, ways=2))
    assert np.isfinite(LOSS(jnp.zeros((9, 5)), examples(LABELS, ways=3))[0])


OTHER_CLASSES = {
    "another number of rows": np.ones((8, WAYS), bool),
    "one row": np.ones(WAYS, bool),
    "more classes than outputs": np.ones((9, WAYS + 1), bool),
    "numbers": np.ones((9, WAYS)),
}


@pytest.mark.parametrize("head", [LOSS, lambda logits, given: labels(given, WAYS)])
@pytest.mark.parametrize("name", OTHER_CLASSES)
def test_classes_of_another_form_are_refused(as_users_see_it, name, head):
    given = examples(LABELS, classes=jnp.asarray(OTHER_CLASSES[name]))
    for call in (head, jax.jit(head)):
        with pytest.raises(il.errors.StructureError, match="classes of the task do not fit"):
            call(jnp.zeros((9, WAYS)), given)


def test_classes_of_positions_have_the_shape_of_the_targets(as_users_see_it):
    targets, logits = LABELS.reshape(3, 3) % 2, jnp.zeros((3, 3, WAYS))
    given = lambda *shape: il.Examples(INPUTS[:3], targets, None, jnp.ones((*shape, 2), bool))
    with pytest.raises(il.errors.StructureError, match="classes of the task do not fit"):
        LOSS(logits, given(3))
    np.testing.assert_allclose(LOSS(logits, given(3, 3))[0], np.log(2), rtol=1e-6)


def test_a_label_beyond_fewer_classes_than_outputs_is_refused(as_users_see_it):
    given = examples(LABELS, classes=jnp.ones((9, 2), bool))
    with pytest.raises(il.errors.StructureError, match=r"label 2, whose classes are \[0, 1\]"):
        LOSS(jnp.zeros((9, 5)), given)


@pytest.mark.parametrize("ways", [0, -1, 2.5, True, "3"], ids=str)
def test_the_number_of_classes_is_a_whole_number(as_users_see_it, ways):
    with pytest.raises(il.errors.StructureError, match="ways"):
        examples(LABELS, ways=ways)


def test_a_label_of_any_integer_type_has_its_own_value():
    """-100 in a type without negative numbers is a large label, and no row without a label."""
    for dtype in (np.uint8, np.uint32):
        wrapped = np.array([il.models.IGNORED] * 9).astype(dtype)
        for targets in (wrapped, np.array([*LABELS[:8], wrapped[0]], dtype)):
            assert np.isnan(jax.jit(LOSS)(jnp.zeros((9, WAYS)), examples(targets))[0])
        fits = jax.jit(LOSS)(jnp.zeros((9, WAYS)), examples(LABELS.astype(dtype)))
        np.testing.assert_allclose(fits[0], np.log(3), rtol=1e-6)


def test_the_calibration_of_real_targets_is_refused():
    with pytest.raises(il.errors.StructureError, match="labels are integers"):
        calibration_sums(jnp.zeros((9, WAYS)), examples(np.zeros(9, np.float32)))


def test_a_padded_row_may_have_any_label(x64):
    mask = jnp.arange(9) != 4
    logits = jnp.asarray(RNG.normal(size=(9, WAYS)))
    sound, other = (examples(targets, mask=mask) for targets in (LABELS, changed(77)))
    assert_close(LOSS(logits, other), LOSS(logits, sound))
    assert_close(jax.jit(LOSS)(logits, other), LOSS(logits, sound))


# --- outputs that are no class --------------------------------------------------------------------


def of_fewer(name, meta, outputs):
    """The meta-parameters of a network with fewer outputs."""
    if name != "maml":  # the other recipes learn no parameters of a class
        return meta
    return meta | {"head": jax.tree.map(lambda leaf: leaf[..., :outputs], meta["head"])}


@pytest.mark.parametrize("name", without(SLOW, [name for name in RECIPES if name != "cnp"]))
def test_a_task_of_fewer_classes_is_that_of_the_smaller_network(x64, name):
    """For a network of five outputs: the same loss, accuracy and meta-gradient, and no prediction
    of an output that is no class. The decoder of `cnp` reads the number of its classes.
    """
    wide, narrow = recipes(5)[name], RECIPES[name]
    episode = il.Episode(*2 * [examples(LABELS, ways=WAYS)])
    meta = wide.init_meta(KEY)
    if name == "maml":  # outputs that are no class, and would be predicted
        meta["head"]["bias"] = meta["head"]["bias"].at[WAYS:].set(3.0)
    (loss, aux), grads = loss_and_gradient(wide, episode, meta)
    small = loss_and_gradient(narrow, episode, of_fewer(name, meta, WAYS))
    assert_close(
        (loss, aux.metrics, of_fewer(name, grads, WAYS)),
        (small[0][0], small[0][1].metrics, small[1]),
    )
    params, _ = il.adapt(wide.problem, wide.adaptation, meta, episode.support, KEY)
    scores = wide.learner.predict(params, meta, episode.query, KEY)
    assert scores.shape == (9, 5)
    assert (scores[:, WAYS:] == -np.inf).all() and np.isfinite(scores[:, :WAYS]).all()


def test_the_calibration_is_that_of_the_classes(x64):
    logits = jnp.asarray(RNG.normal(size=(9, WAYS)))
    wide = jnp.concatenate([logits, jnp.full((9, 2), 9.0)], axis=1)
    expected = calibration_sums(logits, examples(LABELS))
    assert_close(calibration_sums(wide, examples(LABELS, ways=WAYS)), expected)
    assert expected[:, 0].sum() == 9
    assert calibration_sums(logits, examples(changed(-100)))[:, 0].sum() == 8


def test_the_tasks_of_the_library_say_how_many_classes_they_have():
    images = RNG.integers(0, 255, (6, 4, 2, 2)).astype(np.uint8)
    draw = lambda ways: il.tasks.ClassificationTasks(images, ways, 1, 1)
    fixed, varying = (
        jax.eval_shape(lambda key, ways=ways: draw(ways).sample(key, 2).query, KEY)
        for ways in (3, (2, 3))
    )
    assert fixed.ways == varying.ways == 3 and fixed.classes is None
    of_all = il.tasks.LabelledRows(images, 5)
    assert jax.eval_shape(lambda key: of_all.sample(key, 2).query, KEY).ways == 6
    stored = il.tasks.StoredImages(images[..., None], 3, 1, 1)
    assert stored(np.random.default_rng(0)).support.ways == 3
    assert varying.classes.shape == (2, 3, 3)


def test_outputs_beyond_the_classes_of_a_row_are_no_classes():
    classes = np.array([[True, True, False], [True, True, True]])
    given = il.Examples(jnp.zeros((2, 1)), jnp.zeros(2, int), None, jnp.asarray(classes), 3)
    wide = il.models.class_scores(jnp.zeros((2, 5)), given)
    present = np.pad(classes, [(0, 0), (0, 2)])
    np.testing.assert_array_equal(wide, np.where(present, 0, -np.inf))


@pytest.mark.parametrize("head", [LOSS, lambda logits, given: labels(given, logits.shape[-1])])
def test_a_network_with_too_few_outputs_is_refused_while_tracing(head):
    given = examples(LABELS, ways=4)
    with pytest.raises(il.errors.StructureError, match=r"ways=4, 3 outputs.* of 4 outputs"):
        jax.eval_shape(head, jnp.zeros((9, 3)), given)


# --- before and while training --------------------------------------------------------------------


def tasks(label, part="support"):
    """Tasks with noise in their inputs; in half of them one label is changed."""

    def sample_one(key):
        episode = with_label(label, part)
        odd = jax.random.bernoulli(key)
        targets = lambda half: jnp.where(odd, half.targets, jnp.asarray(LABELS, half.targets.dtype))
        half = lambda given: il.Examples(jax.random.normal(key, given.inputs.shape), targets(given))
        return il.Episode(half(episode.support), half(episode.query))

    return il.tasks.IndependentTasks(sample_one)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("maml", "support"),
        ("r2d2", "query"),
        pytest.param("maml", "query", marks=pytest.mark.full),
        pytest.param("protonet", "support", marks=pytest.mark.full),
        pytest.param("r2d2", "support", marks=pytest.mark.full),
    ],
)
def test_the_first_step_of_fit_says_so(name, part):
    recipe = RECIPES[name]
    options = {"optimizer": optax.adam(1e-3), "steps": 2, "key": KEY}
    with pytest.raises(il.errors.RunError, match="targets reach 3, the network has 3 outputs"):
        il.fit(recipe.estimator(tasks(3, part), 8), recipe.init_meta, **options)


def test_an_error_of_the_device_is_not_explained_by_labels(monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(outer_loop, "outer_steps", exhausted)
    recipe, options = RECIPES["maml"], {"optimizer": optax.adam(1e-3), "steps": 2, "key": KEY}
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        il.fit(recipe.estimator(tasks(3), 8), recipe.init_meta, **options)


def test_tasks_with_the_same_labels_are_traced_once():
    traced, model = [], il.models.linear_head(FEATURES, WIDTH, WAYS)

    def loss(logits, given):
        traced.append(given)
        return LOSS(logits, given)

    maml = il.recipes.maml(model, loss, rate=0.4, steps=3)
    inputs, targets = jax.random.normal(KEY, (8, 9, 2)), jnp.tile(LABELS, (8, 1))
    given, wrong = (il.Examples(inputs, t) for t in (targets, targets.at[6, 4].set(3)))
    keys, meta = jax.random.split(KEY, 8), maml.init_meta(KEY)
    assert first_error(maml.learner, meta, il.Episode(given, given), keys) is None
    assert len(traced) == 3  # the inner loss by itself and in one step, and the outer loss
    found = first_error(maml.learner, meta, il.Episode(given, wrong), keys)
    assert found is not None and "targets reach 3" in found.got


@pytest.mark.parametrize("part", without({"query"}, ["support", "query"]))
def test_check_says_so(part):
    recipe = RECIPES["maml"]
    episodes = tasks(3, part).sample(KEY, 8)
    assert not (episodes.support.targets[0] == 3).any()
    meta = recipe.init_meta(KEY)
    with pytest.raises(il.errors.StructureError, match="targets reach 3, the network has 3"):
        il.check(recipe.problem, recipe.adaptation, meta, episodes, KEY)


@pytest.mark.parametrize("part", without({"support"}, ["support", "query"]))
def test_evaluation_and_validation_say_so(part):
    recipe = RECIPES["maml"]
    episodes, meta = tasks(3, part).sample(KEY, 8), recipe.init_meta(KEY)
    reach = "targets reach 3, the network has 3 outputs"
    with pytest.raises(il.errors.StructureError, match=reach):
        il.evaluate(recipe.learner, meta, episodes, KEY)
    options = {"optimizer": optax.adam(1e-3), "steps": 1, "key": KEY}
    validation = il.Validation(episodes, every=1)
    with pytest.raises(il.errors.StructureError, match=reach):
        il.fit(recipe.estimator(tasks(1), 2), meta, validation=validation, **options)
