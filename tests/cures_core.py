"""The cures of problems, adaptations, heads, models and the meta-objective."""

from cures_gradients import CLOSED_OVER, MINIMISE
from sites import Case

PART = "part = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1))\n"


def other_optimizers(site: str, learned: str, given: str) -> list[Case]:
    """The optimizers that are offered in place of one that fails; `learned` calls one."""
    in_chain = "optax.chain(optax.clip(1.0), il.optimizers.named_arguments(part))"
    looks_ahead = "il.optimizers.lookahead(optax.sgd(0.1), 5, 0.5)"
    return [
        Case(
            site,
            f"{learned}(optax.chain(optax.clip(1.0), part))",
            (
                (
                    "il.optimizers.named_arguments(part) around the part that refuses the argument",
                    f"{learned}({in_chain})",
                ),
            ),
            given=PART + given,
            full=True,
        ),
        Case(
            site,
            f"{learned}(optax.lookahead(optax.sgd(0.1), 5, 0.5))",
            ((looks_ahead, f"{learned}({looks_ahead})"),),
            given=given,
        ),
    ]


CASES = [
    # problem.py
    Case(
        "problem.py: targets are not numbers",
        "Examples(inputs, targets)",
        ("Examples(inputs, numpy.unique(targets, return_inverse=True)[1])",),
        given="targets = numpy.array(['cat', 'dog', 'cat'])",
    ),
    Case(
        "normal_form.py: … needs parameters to start from",
        "trace(meta_value_and_grad(Problem(init=None, inner_loss=loss, outer_loss=loss), "
        "GradientDescent(lambda meta: optax.sgd(0.1), 1)))",
        ("Problem(..., init=lambda meta, support, key: meta)",),
    ),
    Case(
        "normal_form.py: init returns frozen arrays",
        "learned(init=lambda meta, support, key: meta)",
        ("init=lambda meta, support, key: il.problem.learned_part(meta, frozen)",),
        given="import equinox as eqx\n"
        "frozen = {'w': None, 'shift': jnp.ones(2)}\n"
        "def fit_rows(params, meta, batch, key):\n"
        "    whole = eqx.combine(params, meta)\n"
        "    outputs = batch.inputs @ whole['w'] + whole['shift'].sum()\n"
        "    return jnp.mean((outputs - batch.targets)**2)\n"
        "learned = lambda init: trace(meta_value_and_grad(Problem(init, fit_rows, fit_rows, "
        "frozen=frozen), GradientDescent(optax.sgd(0.1), 1)), {'w': jnp.ones(2), 'shift': None}, "
        "episodes, key)",
    ),
    Case(
        "normal_form.py: the inner loss of a problem with a state",
        "trace(meta_value_and_grad(Problem(start, wrong, wrong, state=0.0), adaptation))",
        (
            (
                "return loss, {}, params.state",
                "trace(meta_value_and_grad(Problem(start, right, wrong, state=0.0), adaptation))",
            ),
        ),
        given="start = lambda meta, support, key: meta['w']\n"
        "adaptation = GradientDescent(optax.sgd(0.1), 1)\n"
        "wrong = lambda params, meta, batch, key: jnp.sum(params.params**2)\n"
        "right = lambda params, meta, batch, key: (jnp.sum(params.params), {}, params.state)",
    ),
    Case(
        "models/losses.py: the losses of this model",
        "models.supervised_loss(model, models.mean_squared_error)",
        (
            (
                "models.supervised_problem(model, loss)",
                "models.supervised_problem(model, models.mean_squared_error)",
            ),
        ),
        given="own = mlp([1, 4, 1])\n"
        "model = own._replace(learn=lambda *given: (own.apply(*given), None))",
    ),
    # adaptation/
    Case(
        "adaptation/_run.py: this adaptation has no steps to count",
        "evaluate(Learner(head, Procedure(fn)), meta, episodes, key, steps=3)",
        (("leave steps out", "evaluate(Learner(head, Procedure(fn)), meta, episodes, key)"),),
        given="head, fn = Problem(None, None, loss), lambda meta, support, key: {'w': meta['w']}",
        full=True,
    ),
    Case(
        "adaptation/gradient_descent.py: the function of meta returns no optimizer",
        "trace(meta_value_and_grad(problem, GradientDescent(lambda meta: 0.1, 5)))",
        ("GradientDescent(lambda meta: optax.sgd(meta['rate']), steps=5)",),
    ),
    *other_optimizers(
        "adaptation/gradient_descent.py: the optimizer",
        "learned",
        "learned = lambda optimizer: trace(meta_value_and_grad("
        "problem, GradientDescent(optimizer, 1)))",
    ),
    Case(
        "checks.py: … failed on what it was given",
        "learned(optax.lookahead(optax.sgd(0.1), 5, 0.5))",
        (
            (
                "il.optimizers.lookahead(optax.sgd(0.1), 5, 0.5)",
                "learned(il.optimizers.lookahead(optax.sgd(0.1), 5, 0.5))",
            ),
        ),
        given="learned = lambda optimizer: trace(meta_value_and_grad("
        "problem, GradientDescent(optimizer, 1)))",
    ),
    Case(
        "adaptation/mini_batches.py: a mini-batch is larger",
        "trace(meta_value_and_grad(problem, MiniBatches(adaptation, size=9)))",
        ("MiniBatches(..., size=4)",),
    ),
    Case(
        "adaptation/minimise.py: the path of a solver",
        "jax.grad(through)(0.1, Implicit(), learn)",
        (
            (
                "meta_objective(problem, Minimise(solver), Implicit()), with that value as a part "
                "of meta",
                "of_meta(Implicit(), learn)",
            ),
        ),
        given=CLOSED_OVER + MINIMISE,
        full=True,
    ),
    Case(
        "adaptation/minimise.py: the inner solver did not converge",
        "adapt(problem, Minimise(solver, max_steps=1), meta, episode.support, key)",
        (
            "Minimise(solver, max_steps=1024)",
            (
                ", or Minimise(solver, throw=False) and watch "
                "aux.diagnostics['inner_residual'] of Implicit()",
                "meta_objective(near, Minimise(solver, throw=False), Implicit())(meta, episode, "
                "key)[1].diagnostics['inner_residual']",
            ),
        ),
        given="solver = optimistix.BFGS(1e-6, 1e-6)\nnear = il.gradients.proximal(problem, 1.0)",
        full=True,
    ),
    Case(
        "adaptation/minimise.py: … asks for the option …",
        "trace(lambda *_: adapt(scalar, Minimise(search), meta, episode.support, key))",
        (
            (
                "Minimise(solver, options={'lower': ...})",
                "trace(lambda *_: adapt(scalar, Minimise(search, options={'lower': 0.0, "
                "'upper': 1.0}), meta, episode.support, key))",
            ),
        ),
        given="search = optimistix.GoldenSearch(1e-3, 1e-3)\n"
        "scalar = Problem(lambda *a: jnp.zeros(()), lambda p, m, b, k: (p - m['w'][0]) ** 2, loss)",
    ),
    # batches.py and objective.py
    Case(
        "batches.py: a task comes as an Episode",
        "trace(meta_value_and_grad(problem, adaptation), meta, distribution, key)",
        (
            (
                "tasks.evaluation_episodes(distribution, 100, seed=1)",
                "trace(meta_value_and_grad(problem, adaptation), meta, "
                "tasks.evaluation_episodes(distribution, 100, seed=1), key)",
            ),
        ),
    ),
    Case(
        "batches.py: a task comes as an Episode",
        "trace(meta_value_and_grad(problem, adaptation), meta, episodes, key)",
        (
            (
                "jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *episodes)",
                "trace(meta_value_and_grad(problem, adaptation), meta, "
                "jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *episodes), key)",
            ),
        ),
        given="episodes = [episode, episode]",
    ),
    Case(
        "objective.py: adapt has no derivative",
        "jax.grad(lambda meta: adapt(problem, adaptation, meta, episode.support, key)[0]['w'][0])"
        "(meta)",
        (
            (
                "meta_objective(problem, adaptation, gradient)(meta, episode, key)",
                "jax.grad(lambda meta: meta_objective(problem, adaptation, Unroll())(meta, episode,"
                " key)[0])(meta)",
            ),
        ),
    ),
    Case(
        "objective.py: meta is empty",
        "meta_value_and_grad(problem, adaptation)({}, episodes, key)",
        (
            (
                "meta_objective(problem, adaptation)(meta, episode, key) for the value alone",
                "meta_objective(problem, adaptation)({}, episode, key)",
            ),
        ),
        given="problem = Problem(lambda *a: {'w': jnp.ones(2)}, loss, loss)",
    ),
    Case(
        "objective.py: spread is a function",
        "trace(meta_value_and_grad(problem, adaptation, spread=mesh))",
        ("meta_value_and_grad(..., spread=Sharding(mesh).spread)",),
        given="mesh = jax.make_mesh((1,), ('devices',))",
    ),
    Case(
        "batches.py: the weights of a batch",
        "trace(meta_value_and_grad(problem, adaptation), meta, "
        "Episode(support, query, weight=jnp.ones((2, 1))), key)",
        ("Episode(support, query, weight=jax.numpy.ones(2))",),
        given="support, query = episodes.support, episodes.query",
    ),
    Case(
        "objective.py: … is not a floating-point array",
        "train(estimator, meta=model)",
        (("model.init(key)", "check_meta(model.init(key))"),),
        given="from innerloop.objective import check_meta\nmodel = mlp([1, 4, 1])",
    ),
    # heads/
    Case(
        "heads/convex.py: the solver of a ConvexHead",
        "solve(max_steps=1)",
        (
            ("ConvexHead(..., max_steps=256)", "solve(max_steps=256)"),
            (", a larger strength", "solve(strength=100.0, max_steps=4)"),
            (", or ConvexHead(..., throw=False)", "solve(max_steps=1, throw=False)"),
        ),
        given="features = lambda meta, batch, key: batch.inputs\n"
        "rows = Examples(jax.random.normal(key, (6, 2)), jnp.arange(6) % 3)\n"
        "def solve(strength=1e-3, **options):\n"
        "    ConvexHead(features, strength, logistic, ways=3, **options).solve(meta, rows, key)",
        full=True,
    ),
    Case(
        "heads/base.py: a head learns from Examples",
        "trace(RidgeHead(features, 1.0).solve, meta, support, key)",
        (
            (
                "Episode(Examples(inputs, targets), Examples(inputs, targets))",
                "episode = Episode(Examples(inputs, targets), Examples(inputs, targets))\n"
                "trace(RidgeHead(features, 1.0).solve, meta, episode.support, key)",
            ),
        ),
        given="features = lambda meta, batch, key: batch.inputs\nsupport = (inputs, targets)",
    ),
    Case(
        "heads/base.py: the strength of a regularisation",
        "trace(RidgeHead(features, strength=lambda meta: meta['w']).solve, meta, "
        "episode.support, key)",
        ("RidgeHead(..., strength=lambda meta: jnp.exp(meta['log_strength']))",),
        given="features = lambda meta, batch, key: batch.inputs",
    ),
    Case(
        "heads/closed_form.py: ridge regression needs real targets",
        "trace(RidgeHead(features, 1.0).solve, meta, Examples(inputs, classes), key)",
        (
            (
                "RidgeHead(features, strength, ways=5) for integer classes",
                "trace(RidgeHead(features, 1.0, ways=5).solve, meta, Examples(inputs, classes), "
                "key)",
            ),
        ),
        given="features = lambda meta, batch, key: batch.inputs\nclasses = jnp.array([0, 1, 2])",
    ),
    # labels.py
    Case(
        "labels.py: the task has more classes",
        "cross_entropy(jnp.zeros((3, 2)), Examples(inputs, labels, ways=3))",
        (
            (
                "a network of 3 outputs",
                "cross_entropy(jnp.zeros((3, 3)), Examples(inputs, labels, ways=3))",
            ),
        ),
        given="labels = jnp.array([0, 1, 2])",
    ),
    Case(
        "labels.py: a label is not a class",
        "cross_entropy(jnp.zeros((3, 2)), Examples(inputs, labels))",
        (
            (
                "a network of 4 outputs",
                "cross_entropy(jnp.zeros((3, 4)), Examples(inputs, labels))",
            ),
            (
                ", or labels from 0 on, such as numpy.unique(labels, return_inverse=True)[1]",
                "cross_entropy(jnp.zeros((3, 2)), Examples(inputs, "
                "numpy.unique(labels, return_inverse=True)[1]))",
            ),
            (
                ", or -100 in rows without a label",
                "cross_entropy(jnp.zeros((3, 2)), Examples(inputs, jnp.where(labels == 3, -100, "
                "labels)))",
            ),
        ),
        given="labels = jnp.array([1, 1, 3])",
    ),
    # models/
    Case(
        "models/_conv4.py: nothing remains of the image",
        "conv4(5, pooled=(8, 8), blocks=4)",
        ("conv4(..., blocks=3)", ", or conv4(..., pooled=None)"),
    ),
    Case(
        "models/_transformer.py: the heads do not divide",
        "transformer(vocabulary=5, width=10, depth=1, heads=4, length=4)",
        ("transformer(..., width=12, heads=4)",),
    ),
]
