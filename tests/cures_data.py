"""The cures of task distributions, recipes, optimizers and loggers."""

from sites import Case

CHARACTERS = "images = np.zeros((3, 6, 4, 4), np.uint8)\n"
CHANGED = "from innerloop.tasks import *\n" + CHARACTERS
READ = "rates = il.optimizers.ParameterRates()\nparams = {'w': jnp.ones(2)}\n"

DRAWN = (
    (
        "jax.random with the key that it is given",
        "one = lambda key: Episode(jax.random.normal(key), jax.random.normal(key))\n"
        "tasks.evaluation_episodes(tasks.IndependentTasks(one), 2, seed=0)",
    ),
    (
        ", or, for data and generators of the host, tasks.StreamedTasks(draw), which calls "
        "draw(numpy_generator) ahead of the steps",
        "draw = lambda rng: Episode(rng.normal(size=2), rng.normal(size=2))\n"
        "tasks.StreamedTasks(draw).sample(key, 2)",
    ),
)

CASES = [
    Case(
        "tasks/base.py: the tasks are drawn on the host",
        "tasks.evaluation_episodes(tasks.IndependentTasks(one), 2, seed=0)",
        DRAWN,
        given="host = np.random.default_rng(0)\n"
        "one = lambda key: Episode(jax.random.normal(key) * host.normal(), jnp.zeros(()))",
    ),
    Case(
        "tasks/base.py: … reads the value of its key",
        "tasks.evaluation_episodes(tasks.IndependentTasks(one), 2, seed=0)",
        DRAWN,
        given="one = lambda key: Episode(jnp.ones(int(jax.random.randint(key, (), 1, 9))), ())",
    ),
    Case(
        "tasks/augmentation.py: there are no images",
        "trace(lambda key: Augmented(tasks, augment).sample(key, 2), key)",
        ("Augmented(ClassificationTasks(images, 5, 1, 15), augment)",),
        given=CHANGED + "images = np.zeros((5, 16, 4, 4), np.uint8)\n"
        "tasks, augment = SinusoidTasks(5, 5), lambda key, images: images",
    ),
    Case(
        "tasks/image_classes.py: only square",
        "with_quarter_turns(images)",
        ("upright(images)",),
        given=CHANGED + "images = np.zeros((3, 6, 4, 5), np.uint8)",
    ),
    Case(
        "tasks/image_classes.py: not the number",
        "upright(images, counts=[7, 6, 6])",
        ("upright(images, counts=[len(examples) for examples in by_class])",),
        given=CHANGED + "by_class = [images[0], images[1, :4], images[2, :5]]",
    ),
    Case(
        "tasks/classification.py: there are not enough classes",
        "ClassificationTasks(images, ways=4, shots=1, queries=1)",
        ("ClassificationTasks(..., ways=3)",),
        given=CHANGED,
    ),
    Case(
        "tasks/classification.py: the tasks are drawn from one split",
        "ClassificationTasks(splits, ways=2, shots=1, queries=1)",
        (
            ("splits.train", "ClassificationTasks(splits.train, ways=2, shots=1, queries=1)"),
            (
                ", or splits.validation or splits.test for evaluation",
                "ClassificationTasks(splits.test, ways=2, shots=1, queries=1)",
            ),
        ),
        given=CHANGED + "splits = Splits(*[upright(images)] * 3)",
    ),
    Case(
        "tasks/classification.py: there are not enough examples",
        "ClassificationTasks(images, ways=3, shots=7, queries=2)",
        ("ClassificationTasks(..., shots=5, queries=1)",),
        given=CHANGED,
    ),
    Case(
        "tasks/classification.py: there are not enough examples",
        "ClassificationTasks(classes, ways=2, shots=2, queries=3)",
        (
            "ClassificationTasks(..., shots=1, queries=1)",
            (
                ", or classes.with_examples(5) in place of classes",
                "ClassificationTasks(classes.with_examples(5), ways=2, shots=2, queries=3)",
            ),
        ),
        given=CHANGED + "classes = upright(images, counts=[6, 6, 2])",
    ),
    Case(
        "tasks/splits.py: the shares of the splits",
        "split_classes(classes, shares=(0.5, 0.5, 0.5))",
        ("shares=(0.6, 0.2, 0.2)",),
        given=CHANGED + "classes = by_label(np.zeros((10, 2)), np.arange(10))",
    ),
    Case(
        "tasks/data_sets.py: a data set is a pair",
        "DataSetTasks([(inputs, targets)], 1, 1)",
        (("Examples(inputs, targets)", "DataSetTasks([Examples(inputs, targets)], 1, 1)"),),
        given=CHANGED + "inputs, targets = np.ones((3, 2)), np.ones(3)",
    ),
    Case(
        "tasks/data_sets.py: a data set has no row left",
        "DataSetTasks([Examples(np.ones((3, 2)), np.ones(3))], support=3, queries=1)",
        ("DataSetTasks(..., support=2)",),
        given=CHANGED,
    ),
    Case(
        "tasks/iterated.py: an epoch of the iterator",
        "IteratedTasks(lambda epoch: again).sample(key, 5)",
        (
            (
                "lambda epoch: iter(tasks), with a list or a loader of tasks",
                "IteratedTasks(lambda epoch: iter(many)).sample(key, 5)",
            ),
        ),
        given=CHANGED + "many = [Episode(np.ones(2), np.ones(2))] * 3\nagain = iter(many)",
    ),
    Case(
        "tasks/streamed.py: streamed tasks",
        "trace(lambda key: tasks.sample(key, n), key)",
        (("tasks.sample(key, n) outside jax.jit", "tasks.sample(key, n)"),),
        given="one = lambda rng: Episode(rng.normal(size=2), rng.normal(size=2))\n"
        "tasks, n = tasks.StreamedTasks(one), 2",
    ),
    Case(
        "tasks/streamed.py: the tasks of a stream",
        "tasks.StreamedTasks(draw).sample(key, 9)",
        (
            (
                "Examples(inputs, targets, mask)",
                "def filled(rng):\n"
                "    one, mask = draw(rng).query, jnp.arange(4)\n"
                "    rows = Examples(np.resize(one, 4), np.resize(one, 4), mask < len(one))\n"
                "    return Episode(rows, rows)\n"
                "tasks.StreamedTasks(filled).sample(key, 9)",
            ),
        ),
        given="draw = lambda rng: Episode(rng.normal(), rng.normal(size=rng.integers(1, 4)))",
    ),
    Case(
        "tasks/streamed.py: draw takes a random key",
        "tasks.StreamedTasks(draw).sample(key, 2)",
        (("tasks.IndependentTasks(draw)", "tasks.IndependentTasks(draw).sample(key, 2)"),),
        given="draw = lambda key: Episode(jax.random.normal(key), jax.random.normal(key))",
    ),
    Case(
        "tasks/streamed.py: draw gives another task",
        "tasks.StreamedTasks(draw).sample(key, 2)",
        (
            (
                "the generator that draw is given, in place of numpy.random or of a loader",
                "draw = lambda rng: Episode(rng.normal(size=2), rng.normal(size=2))\n"
                "tasks.StreamedTasks(draw).sample(key, 2)",
            ),
        ),
        given="draw = lambda rng: Episode(np.random.normal(size=2), np.random.normal(size=2))",
    ),
    Case(
        "tasks/optimization/family.py: a spectrum",
        "quadratic_family([-1.0])",
        ("quadratic_family(np.logspace(-2, 0, 20))",),
        given="from innerloop.tasks.optimization import *",
    ),
    # recipes/
    Case(
        "recipes/_partly_adapted.py: cavia needs",
        "cavia(plain, loss)",
        ("cavia(film(features, width=64, head=mlp([64, 64, 5]), context=100), loss)",),
        given="from innerloop.recipes import cavia\nfeatures = mlp_features([3, 64])\n"
        "plain, loss = mlp([3, 4, 5]), cross_entropy",
    ),
    # optimizers/
    Case(
        "optimizers/base.py: the learned rates",
        "update(rates(rates.init(key, {'w': jnp.ones(3)})))",
        (
            (
                "ParameterRates(...).init(key, params)",
                "update(rates(rates.init(key, params)))",
            ),
            (
                ", or ScalarRate(...).init(key, params)",
                "rate = il.optimizers.ScalarRate()\nupdate(rate(rate.init(key, params)))",
            ),
        ),
        given=READ + "update = lambda optimizer: "
        "optimizer.update(params, optimizer.init(params), params)",
        full=True,
    ),
    Case(
        "optimizers/optimizer_file.py: the setting",
        "save('learned', lambda: optax.scale_by_adam(b1=0.9))",
        (
            (
                "direction=functools.partial(optax.scale_by_adam, b1=0.9)",
                "save('learned', functools.partial(optax.scale_by_adam, b1=0.9))",
            ),
        ),
        given=READ + "import functools\n"
        "def save(name, direction):\n"
        "    learned = il.optimizers.ScalarRate(direction)\n"
        "    meta = learned.init(key, params)\n"
        "    il.optimizers.save_optimizer(tmp_path / name, learned, meta)",
    ),
    Case(
        "optimizers/optimizer_file.py: the optimizer",
        "save(tmp_path / 'none' / 'learned')",
        (("save_optimizer(ANOTHER/FILE, learned, meta)", "save(tmp_path / 'learned')"),),
        given=READ + "def save(path):\n"
        "    il.optimizers.save_optimizer(path, rates, rates.init(key, params))",
    ),
    Case(
        "optimizers/per_array.py: a learned optimizer reads",
        "optimizer.update(gradient, state)",
        ("optimizer.update(gradient, state, params)",),
        given=READ + "learned = il.optimizers.SmallMLP()\ngradient = params\n"
        "optimizer = learned(learned.init(key, params))\nstate = optimizer.init(params)",
        full=True,
    ),
    Case(
        "optimizers/per_array.py: the gradient is not",
        "optimizer.update({'w': jnp.ones(3)}, state, params)",
        ("optimizer.update(jax.grad(loss)(params), state, params)",),
        given=READ + "learned = il.optimizers.SmallMLP()\n"
        "loss = lambda params: jnp.sum(params['w'] ** 2)\n"
        "optimizer = learned(learned.init(key, params))\nstate = optimizer.init(params)",
        full=True,
    ),
]
