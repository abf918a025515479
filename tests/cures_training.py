"""The cures of estimators and training."""

from cures_core import other_optimizers
from sites import Case

STEPS = """
learn = GradientDescent(optax.sgd(0.1), 1)
parts = {"problem": problem, "adaptation": learn, "tasks": distribution, "batch": 2}
"""
SAVED = """
checkpoints = Checkpoints(tmp_path / "run", every=1)
another_folder = tmp_path / "another"
"""
OF_AUX = """
judged = lambda *given: (loss(*given), {"loss": loss(*given), "accuracy": loss(*given)})
def of(*taken):
    kept = lambda *given: (loss(*given), {name: loss(*given) for name in taken})
    return WholeTasks(Problem(init, loss, kept), adaptation, Unroll(), distribution, batch=2)
"""
NAN = """
diverging = WholeTasks(
    Problem(init, loss, lambda *given: loss(*given) / 0), adaptation, Unroll(), distribution, 2
)
"""
LEARNED = """
mixed = WeightedSum((estimator, 1.0), (WholeTasks(
    Problem(init, loss, lambda *given: loss(*given)), adaptation, Unroll(), distribution, 2), 1.0))
"""

CASES = [
    # estimators/
    Case(
        "estimators/base.py: … is for estimators of whole tasks",
        "windows.within('1MiB', meta, 0)",
        (
            (
                "WholeTasks(problem, adaptation, Unroll(), tasks, batch=8)",
                "WholeTasks(problem, adaptation, Unroll(), tasks, batch=8).within('1MiB', meta, 0)",
            ),
        ),
        given=STEPS + "windows = TruncatedUnroll(**parts, window=2, horizon=4)",
        full=True,
    ),
    Case(
        "estimators/horizons.py: successive windows",
        "TruncatedUnroll(**parts, window=2, horizon=4, overlap=2)",
        ("TruncatedUnroll(..., window=3, overlap=2)",),
        given=STEPS,
    ),
    Case(
        "estimators/horizons.py: a horizon is made",
        "PersistentES(**parts, window=4, horizon=9, pairs=2, sigma=0.1)",
        ("PersistentES(..., window=4, horizon=8)",),
        given=STEPS,
    ),
    Case(
        "estimators/metrics.py: the outer loss's aux has an entry",
        "trace(lambda *_: of('loss').step(meta, (), None, key, jnp.int32(0)))",
        (
            (
                "return loss, {'my_loss': ...} in outer_loss",
                "trace(lambda *_: of('my_loss').step(meta, (), None, key, jnp.int32(0)))",
            ),
        ),
        given=OF_AUX,
    ),
    Case(
        "estimators/metrics.py: training and evaluation report",
        "trace(lambda *_: of_rows.step(meta, (), None, key, jnp.int32(0)))",
        (
            (
                "return loss, {'accuracy': accuracy} in outer_loss",
                "trace(lambda *_: of('accuracy').step(meta, (), None, key, jnp.int32(0)))",
            ),
        ),
        given=OF_AUX + "of_rows = WholeTasks(Problem(init, loss, lambda *given: (loss(*given), "
        "jnp.zeros(3))), adaptation, Unroll(), distribution, batch=2)",
    ),
    Case(
        "estimators/online_windows.py: the state holds inner runs",
        "state = estimator.init(longer, key)\n"
        "trace(lambda *_: estimator.step(meta, state, None, key, jnp.int32(0)))",
        (
            (
                "state = estimator.init(meta, key)",
                "state = estimator.init(meta, key)\n"
                "trace(lambda *_: estimator.step(meta, state, None, key, jnp.int32(0)))",
            ),
        ),
        given=STEPS + "estimator = TruncatedUnroll(**parts, window=2, horizon=4)\n"
        "longer = meta | {'w': jnp.ones(3)}",
        full=True,
    ),
    Case(
        "estimators/online_windows.py: … runs a window of steps",
        "TruncatedUnroll(problem, Minimise(optimistix.BFGS(1e-3, 1e-3)), distribution, window=2, "
        "horizon=4, batch=2)",
        (
            (
                "GradientDescent(optimizer, steps=1)",
                "TruncatedUnroll(problem, GradientDescent(optimizer, steps=1), distribution, "
                "window=2, horizon=4, batch=2)",
            ),
        ),
        given="optimizer = optax.sgd(0.1)",
    ),
    Case(
        "estimators/truncated_unroll.py: a window of which",
        "TruncatedUnroll(**parts, window=2, horizon=4, unroll=Truncated(1))",
        ("TruncatedUnroll(..., unroll=Unroll())",),
        given=STEPS,
    ),
    Case(
        "estimators/weighted_sum.py: two parts",
        "WeightedSum((estimator, 3.0), **{'0': (another, 1.0)})",
        ("WeightedSum(sines=(estimator, 3.0), lines=(another, 1.0))",),
    ),
    Case(
        "estimators/weighted_sum.py: a weighted sum is made",
        "WeightedSum((3.0, estimator), (1.0, another))",
        ("WeightedSum((estimator, 3.0), (another, 1.0))",),
    ),
    Case(
        "estimators/whole_tasks.py: a chunk is chosen",
        "train(of(1), memory='2GiB')",
        (
            ("fit(..., memory='2GiB') without chunk=1", "train(of(None), memory='2GiB')"),
            (", or fit(...) without memory=", "train(of(1))"),
        ),
        given="of = lambda n: WholeTasks(problem, adaptation, Unroll(), distribution, 2, chunk=n)",
        full=True,
    ),
    Case(
        "estimators/whole_tasks.py: the budget is smaller",
        "train(estimator, memory='10B')",
        (("fit(..., memory='1MiB') (--memory 1MiB)", "train(estimator, memory='1MiB')"),),
        full=True,
    ),
    Case(
        "tasks/base.py: the task distribution returns",
        "train(WholeTasks(problem, adaptation, Unroll(), Three(), batch=2))",
        (
            (
                "tasks.IndependentTasks(sample_one)",
                "train(WholeTasks(problem, adaptation, Unroll(), "
                "tasks.IndependentTasks(sample_one), batch=2))",
            ),
        ),
        given="class Three:\n    def sample(self, key, n):\n"
        "        return distribution.sample(key, 3)",
        full=True,
    ),
    # training/
    Case(
        "storage/meta_file.py: the meta-parameters",
        "save_meta(tmp_path / 'none' / 'file', meta)",
        (
            (
                "save_meta(ANOTHER/FILE, meta)",
                "save_meta(tmp_path / 'file', meta)\nload_meta(tmp_path / 'file', meta)",
            ),
        ),
    ),
    Case(
        "training/_evaluate.py: calibration is measured",
        "evaluate(Learner(problem, adaptation), meta, episodes, key, calibration=True)",
        (
            (
                "evaluate(Learner(problem, adaptation, predict), ..., calibration=True)",
                "evaluate(Learner(problem, adaptation, predict), meta, episodes, key, "
                "calibration=True)",
            ),
        ),
        given="loss = lambda p, m, b, k: cross_entropy(b.inputs * p['w'][None], b)\n"
        "predict = lambda p, m, b, k: b.inputs * p['w'][None]\n"
        "problem = Problem(init, loss, loss)\n"
        "rows = Examples(jnp.ones((2, 3, 2)), jnp.zeros((2, 3), int))\n"
        "episodes = Episode(rows, rows)",
        full=True,
    ),
    *other_optimizers(
        "training/outer_loop.py: the outer optimizer",
        "fitted",
        "fitted = lambda optimizer: train(estimator, optimizer=optimizer)",
    ),
    Case(
        "training/outer_loop.py: an outer step",
        "train(of(lambda key: np.random.uniform()))",
        (
            (
                "jax.random with the key that the function is given",
                "train(of(jax.random.uniform))",
            ),
        ),
        given="def of(draw):\n"
        "    noisy = lambda params, meta, batch, key: loss(params, meta, batch, key) * draw(key)\n"
        "    return WholeTasks(Problem(init, noisy, loss), adaptation, Unroll(), distribution, 2)",
        full=True,
    ),
    Case(
        "training/non_finite.py: the loss, the meta-gradient or",
        "train(diverging)",
        (
            (
                "fit(..., non_finite=Skip(in_a_row=100))",
                "train(diverging, non_finite=Skip(in_a_row=100))",
            ),
            (
                " (--non-finite skip)",
                "from innerloop.lab.experiments.train import _NON_FINITE\n"
                "assert isinstance(_NON_FINITE['skip'], Skip)",
            ),
            (
                ", or tasks_of_step(estimator, key, 0), which gives the tasks of that step",
                "tasks_of_step(diverging, key, 0)",
            ),
        ),
        given=NAN,
        full=True,
    ),
    Case(
        "training/saving.py: there is nothing to resume",
        "train(estimator, resume=True)",
        (
            (
                "fit(..., checkpoints=training.Checkpoints(folder), resume=True)",
                "train(estimator, checkpoints=training.Checkpoints(folder), resume=True)",
            ),
        ),
        full=True,
    ),
    Case(
        "training/saving.py: the run has already taken",
        "train(estimator, steps=1, checkpoints=checkpoints, resume=True)",
        (
            (
                "fit(..., steps=2, resume=True) (--steps 2)",
                "train(estimator, steps=2, checkpoints=checkpoints, resume=True)",
            ),
        ),
        given=SAVED + "train(estimator, steps=2, checkpoints=checkpoints)",
        full=True,
    ),
    Case(
        "training/validation.py: several validations",
        "train(estimator, validation={'sines': 1})",
        (
            (
                "fit(..., validation={'sines': Validation(episodes, every=100)})",
                "train(estimator, validation={'sines': Validation(episodes, every=100)})",
            ),
        ),
        full=True,
    ),
    Case(
        "training/validation.py: this estimator trains",
        "train(mixed, validation=Validation(episodes, every=100))",
        ("Validation(..., learner=Learner(problem, adaptation))",),
        given=LEARNED,
        full=True,
    ),
    Case(
        "training/validation.py: validations that decide",
        "train(estimator, validation={'a': Validation(episodes, every=100), "
        "'b': Validation(episodes, every=50)})",
        (
            (
                "Validation(..., every=100)",
                "train(estimator, validation={'a': Validation(episodes, every=100), "
                "'b': Validation(episodes, every=100)})",
            ),
        ),
        full=True,
    ),
    Case(
        "training/validation.py: the validation does not have",
        "train(estimator, validation=Validation(episodes, every=100, metric='accuracy'))",
        ("Validation(..., metric='loss')",),
        full=True,
    ),
    Case(
        "training/validation.py: a validation does not say",
        "train(of('accuracy'), validation=Validation(episodes, every=100, metric='accuracy'))",
        ("Validation(..., metric='accuracy', maximise=True)",),
        given=OF_AUX,
        full=True,
    ),
]
