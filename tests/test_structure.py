"""Parts that do not fit raise while tracing, say what to write instead, and lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il

LEARN = il.GradientDescent(optax.sgd(0.1), steps=2)


pytestmark = pytest.mark.usefixtures("as_users_see_it")


def loss(params, meta, batch, key):
    return jnp.mean((batch.inputs @ params - batch.targets) ** 2)


def problem(**changes):
    parts = {"init": lambda meta, support, key: meta["w"], "inner_loss": loss, "outer_loss": loss}
    return il.Problem(**(parts | changes))


def inputs():
    def examples(rows):
        return il.Examples(jnp.ones((2, rows, 3)), jnp.ones((2, rows)))

    return {"w": jnp.arange(3.0)}, il.Episode(examples(4), examples(5)), jax.random.key(0)


def with_problem(**changes):
    return lambda *given: il.meta_value_and_grad(problem(**changes), LEARN)(*given)


def with_learn(make):
    return lambda *given: il.meta_value_and_grad(problem(), make())(*given)


def with_steps(steps):
    return with_learn(lambda: il.GradientDescent(optax.sgd(0.1), steps=steps))


def with_optimizer(optimizer):
    return with_learn(lambda: il.GradientDescent(optimizer, steps=1))


def with_chunk(chunk):
    return lambda *given: il.meta_value_and_grad(problem(), LEARN, chunk=chunk)(*given)


def with_meta(change):
    return lambda meta, *rest: il.meta_value_and_grad(problem(), LEARN)(change(meta), *rest)


def with_episodes(change, chunk=None):
    def call(meta, episodes, key):
        return il.meta_value_and_grad(problem(), LEARN, chunk=chunk)(meta, change(episodes), key)

    return call


def one_task(function):
    """`function(meta, episode, key)` on the first task."""
    return lambda meta, episodes, key: function(
        meta, jax.tree.map(lambda leaf: leaf[0], episodes), key
    )


def with_support(episodes, support):
    return il.Episode(support, episodes.query)


def with_subset(where):
    init = lambda meta, support, key: il.subset(meta, where)[0]
    return with_problem(init=init)


CASES = {
    # What the problem's functions return.
    "init_does_not_match": (
        with_problem(init=lambda m, s, k: {"w": m["w"]}),
        "inner_loss failed ",
    ),
    "init_wrong_shape": (
        with_problem(init=lambda m, s, k: m["w"][:2]),
        "inner_loss failed .*f32\\[2\\]",
    ),
    "outer_does_not_match": (
        with_problem(outer_loss=lambda p, m, b, k: loss(p["head"], m, b, k)),
        "outer_loss failed ",
    ),
    "inner_not_scalar": (
        with_problem(inner_loss=lambda p, m, b, k: (b.inputs @ p - b.targets) ** 2),
        "inner_loss must return one real ",
    ),
    "outer_not_scalar": (
        with_problem(outer_loss=lambda p, m, b, k: (b.inputs @ p, {"aux": 1})),
        "outer_loss must return one real ",
    ),
    "integer_loss": (
        with_problem(outer_loss=lambda p, m, b, k: jnp.int32(1)),
        "outer_loss must return one real .*i32",
    ),
    "loss_of_three": (
        with_problem(inner_loss=lambda p, m, b, k: (loss(p, m, b, k), 1, 2)),
        "inner_loss must return one real .*pair",
    ),
    "integer_params": (
        with_problem(init=lambda m, s, k: jnp.arange(3)),
        "init must return floating",
    ),
    "no_params": (
        with_problem(init=lambda m, s, k: {}),
        "init must return floating",
    ),
    "weights_shape": (
        with_problem(step_weights=lambda steps: jnp.ones(steps)),
        "step_weights must give .*Expected: shape \\(3,\\)",
    ),
    # Signatures are never guessed at.
    "init_signature": (
        with_problem(init=lambda m: m),
        "init must be a function of .meta, sup.*init.m",
    ),
    "inner_signature": (
        with_problem(inner_loss=lambda p, b: p),
        "inner_loss must be a function of ",
    ),
    "outer_signature": (
        with_problem(outer_loss=lambda p, m, b: p),
        "outer_loss must be a function of ",
    ),
    "weights_signature": (
        with_problem(step_weights=lambda: 1),
        "step_weights must be a function of .steps",
    ),
    "not_a_function": (
        with_problem(init=jnp.ones(3)),
        "init must be a function.*f32",
    ),
    # What may be None, and what may not.
    "no_init": (with_problem(init=None), "GradientDescent needs "),
    "no_inner": (
        with_problem(inner_loss=None),
        "GradientDescent needs inner_loss",
    ),
    "no_outer": (
        with_problem(outer_loss=None),
        "outer_loss must be a function.*=None",
    ),
    # Meta.
    "integer_meta": (
        with_meta(lambda m: m | {"n": jnp.arange(2)}),
        "meta\\['n'\\] is not a floating",
    ),
    "python_integer_meta": (
        with_meta(lambda m: m | {"n": 2}),
        "meta\\['n'\\] is not a floating",
    ),
    "text_meta": (
        with_meta(lambda m: m | {"n": "relu"}),
        "meta\\['n'\\] is not a floating.*relu",
    ),
    "function_meta": (with_meta(lambda m: m | {"n": jnp.tanh}), "not a floating.*tanh"),
    "integer_meta_in_adapt": (
        one_task(lambda m, e, k: il.adapt(problem(), LEARN, m | {"n": 2}, e.support, k)),
        "meta\\['n'\\] is not a floating",
    ),
    "integer_meta_in_objective": (
        one_task(lambda m, e, k: il.meta_objective(problem(), LEARN)(m | {"n": 2}, e, k)),
        "meta\\['n'\\] is not a floating",
    ),
    # Episodes.
    "unequal_tasks": (
        with_episodes(lambda e: with_support(e, il.Examples(e.support.inputs, jnp.ones((3, 4))))),
        "one task axis.*\\.support\\.targets.*3",
    ),
    "unequal_weight": (
        with_episodes(lambda e: il.Episode(e.support, e.query, jnp.ones(3))),
        "one task axis.*\\.weight",
    ),
    "scalar_leaf": (
        with_episodes(lambda e: il.Episode(e.support, e.query, jnp.float32(1)), chunk=1),
        "one task axis.*\\.weight.*None",
    ),
    "no_tasks": (
        with_episodes(lambda e: jax.tree.map(lambda leaf: leaf[:0], e)),
        "one task axis.*at least 1",
    ),
    "no_leaves": (with_episodes(lambda e: il.Episode({}, {})), "one task axis"),
    "not_an_episode": (
        with_episodes(lambda e: (e.support, e.query)),
        "comes as an Episode.*Got: .Examples",
    ),
    "not_an_episode_in_objective": (
        one_task(lambda m, e, k: il.meta_objective(problem(), LEARN)(m, (e.support, e.query), k)),
        "comes as an Episode.*Got: .Examples",
    ),
    "empty_support": (
        with_episodes(lambda e: with_support(e, jax.tree.map(lambda leaf: leaf[:, :0], e.support))),
        "support set is empty",
    ),
    "empty_support_in_adapt": (
        one_task(
            lambda m, e, k: il.adapt(
                problem(), LEARN, m, jax.tree.map(lambda leaf: leaf[:0], e.support), k
            )
        ),
        "support set is empty",
    ),
    # subset.
    "subset_nothing": (with_subset(lambda m: ()), "where selects no array"),
    "subset_none": (with_subset(lambda m: None), "where selects no array"),
    "subset_missing": (with_subset(lambda m: m["head"]), "not in the tree.*head"),
    "subset_attribute": (with_subset(lambda m: m.head), "not in the tree"),
    # Counts.
    **{
        f"steps_{steps}": (
            with_steps(steps),
            "steps must be a whole number",
        )
        for steps in (-1, 1.0, 1.5, True, None, "2")
    },
    **{
        f"chunk_{chunk}": (
            with_chunk(chunk),
            "chunk must be a whole number",
        )
        for chunk in (0, -1, 1.5, True)
    },
    # Optimizers.
    "optimizer_float": (
        with_optimizer(0.1),
        "optimizer must be an optax .*=0.1",
    ),
    "optimizer_uncalled": (
        with_optimizer(optax.adam),
        "optimizer must be an optax .*adam",
    ),
    "optimizer_without_its_leaf": (
        with_optimizer(lambda meta: optax.sgd(meta["rate"])),
        "the optimizer failed.*KeyError.*rate.*meta={'w': f32\\[3\\]}",
    ),
    "optimizer_of_another_shape": (
        with_optimizer(lambda meta: optax.sgd(meta["w"][:2])),
        "the optimizer failed.*shape",
    ),
    # Keys.
    "integer_key": (
        lambda m, e, k: il.meta_value_and_grad(problem(), LEARN)(m, e, 0),
        "key must be a random key.*key=0",
    ),
    "float_key": (
        one_task(lambda m, e, k: il.meta_objective(problem(), LEARN)(m, e, m["w"])),
        "key must be a random key.*f32\\[3\\]",
    ),
    "integer_key_in_adapt": (
        one_task(lambda m, e, k: il.adapt(problem(), LEARN, m, e.support, 7)),
        "key must be a random key.*key=7",
    ),
    "name_in_episode": (
        with_episodes(lambda e: il.Episode({"x": e.support.inputs, "name": "first"}, e.query)),
        "one task axis.*'name'.*None",
    ),
    "optimizer_returns_float": (
        with_optimizer(lambda meta: 0.1),
        "returns no optimizer.*0.1",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_is_refused_while_tracing(call, message):
    """One message with cause and cure; the inputs are as they were, and still usable."""
    given, same = inputs(), inputs()
    with pytest.raises(il.errors.StructureError, match=message) as caught:
        jax.eval_shape(call, *given)
    error = caught.value
    assert (error.write or "") in str(error)
    assert error.got in str(error)
    assert error.expected in str(error)
    jax.tree.map(np.testing.assert_array_equal, given[:2], same[:2])
    assert (given[2] == same[2]).all()


@pytest.mark.parametrize("name", ["init_does_not_match", "unequal_tasks", "empty_support"])
def test_is_refused_under_jit(name):
    call, message = CASES[name]
    with pytest.raises(il.errors.StructureError, match=message):
        jax.jit(call)(*inputs())


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("init", [lambda m, s, k: m, lambda m, s, k: jnp.ones(3)])
def test_empty_meta_is_refused(init, chunk):
    _, episodes, key = inputs()
    step = il.meta_value_and_grad(problem(init=init), LEARN, chunk=chunk)
    with pytest.raises(il.errors.InnerloopError, match=r"Write: (init=|meta_objective)"):
        jax.eval_shape(step, {}, episodes, key)


def test_first_order_names_the_same_cure():
    given = inputs()
    step = il.meta_value_and_grad(problem(inner_loss=None), LEARN, il.FirstOrder())
    with pytest.raises(il.errors.StructureError, match=r"needs inner_loss"):
        jax.eval_shape(step, *given)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_what_fits_is_not_refused(chunk):
    (value, _), grads = jax.jit(il.meta_value_and_grad(problem(), LEARN, chunk=chunk))(*inputs())
    assert np.isfinite(value) and np.all(np.isfinite(grads["w"]))


def test_jax_errors_stay_their_own():
    """A concretisation error in a loss is JAX's to explain."""
    bad = problem(inner_loss=lambda p, m, b, k: loss(p, m, b, k) if p[0] > 0 else p[0])
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.eval_shape(il.meta_value_and_grad(bad, LEARN), *inputs())


def test_a_value_that_is_traced_is_told_the_function_that_reads_it():
    """Beside JAX's own error."""
    reads = lambda params, meta, batch, key: float(jnp.sum(params)) * jnp.sum(params)
    problem = il.Problem(lambda meta, support, key: meta, reads, reads)
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    one = il.Episode(jnp.ones(2), jnp.ones(2))
    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        jax.eval_shape(il.meta_objective(problem, learn), jnp.ones(2), one, jax.random.key(0))
    (note,) = (note for note in caught.value.__notes__ if "innerloop" in note)
    assert "inner_loss reads the value of a traced array" in note


def test_subset_merges_back():
    tree = {"head": jnp.ones(2), "body": [jnp.zeros(3)]}
    part, merge = il.subset(tree, lambda tree: (tree["head"], tree["body"][0]))
    assert [leaf.shape for leaf in part] == [(2,), (3,)]
    merged = merge((part[0] + 1, part[1] - 1))
    np.testing.assert_array_equal(merged["head"], [2, 2])
    np.testing.assert_array_equal(merged["body"][0], [-1, -1, -1])
    np.testing.assert_array_equal(tree["head"], [1, 1])


@jax.tree_util.register_pytree_with_keys_class
class Frozen:
    """A dictionary that gives a new object at each access, as Flax's containers do."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, name):
        found = self.content[name]
        return Frozen(dict(found)) if isinstance(found, dict) else found

    def tree_flatten_with_keys(self):
        names = sorted(self.content)
        return [(jax.tree_util.DictKey(name), self.content[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names, leaves):
        return cls(dict(zip(names, leaves, strict=True)))


def test_subset_of_a_container_that_copies():
    tree = Frozen({"head": {"w": jnp.ones(2)}, "body": {"w": jnp.zeros(3)}})
    part, merge = il.subset(tree, lambda tree: tree["head"])
    merged = merge(jax.tree.map(lambda leaf: leaf + 1, part))
    np.testing.assert_array_equal(merged["head"]["w"], [2, 2])
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    assert merged["body"]["w"] is tree["body"]["w"]


def test_subset_puts_back_the_same_structure_alone():
    part, merge = il.subset(
        {"head": (jnp.ones(2), jnp.ones(1)), "body": jnp.ones(3)}, lambda t: t["head"]
    )
    with pytest.raises(il.errors.StructureError, match="same structure"):
        merge(list(part))
    merge(part)


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_python_number_in_aux_is_a_metric_like_any_other(chunk, tasks):
    loss = lambda params, meta, batch, key: (jnp.sum((params - batch) ** 2), {"constant": 2})
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    f = il.meta_value_and_grad(problem, il.GradientDescent(optax.sgd(0.1), 1), chunk=chunk)
    batch = il.Episode(jnp.ones((tasks, 2)), jnp.ones((tasks, 2)))
    (_, aux), _ = f(jnp.zeros(2), batch, jax.random.key(0))
    np.testing.assert_array_equal(aux.metrics["constant"], [2] * tasks)


def test_parts_in_the_wrong_order_are_named():
    loss = lambda params, meta, batch, key: jnp.sum(params**2)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    wrong = {
        "problem must be a Problem": (learn, problem),
        "gradient must": (problem, learn, il.Unroll),
    }
    for message, parts in wrong.items():
        with pytest.raises(il.errors.StructureError, match=message):
            il.meta_objective(*parts)


def test_evaluate_refuses_a_single_episode():
    loss = lambda params, meta, batch, key: jnp.sum((params - batch) ** 2)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    one = il.Episode(jnp.ones(3), jnp.ones(4))
    with pytest.raises(il.errors.StructureError, match="one task axis"):
        il.evaluate(il.Learner(problem, learn), jnp.zeros(()), one, jax.random.key(0))
