"""The cures of storage, devices and diagnostics."""

from sites import Case

SAVED = """
checkpoints = Checkpoints(tmp_path / "run", every=1)
another_folder = tmp_path / "another"
"""

CASES = [
    # storage/
    Case(
        "storage/checkpoint.py: these checkpoints belong",
        "train(estimator, checkpoints=Checkpoints(tmp_path / 'run', every=1))",
        (
            (
                "fit(..., resume=True)",
                "train(estimator, checkpoints=checkpoints, resume=True)",
            ),
            (
                ", or Checkpoints(another_folder)",
                "train(estimator, checkpoints=Checkpoints(another_folder))",
            ),
        ),
        given=SAVED + "train(estimator, checkpoints=checkpoints)",
        full=True,
    ),
    Case(
        "storage/checkpoint.py: the checkpoints were deleted",
        "train(estimator, steps=3, per_call=1, checkpoints=checkpoints, report=deletes)",
        (
            (
                "fit(..., resume=True) (--resume)",
                "train(estimator, steps=3, per_call=1, checkpoints=checkpoints, resume=True)",
            ),
        ),
        # A checkpoint that is still being written would fail first.
        given=SAVED.replace("every=1", "every=100") + "import shutil\n"
        "def deletes(progress):\n    if progress.step == 2:\n"
        "        shutil.rmtree(tmp_path / 'run')",
        full=True,
    ),
    # devices/
    Case(
        "devices/sharding.py: a leaf of meta cannot be spread",
        "train(estimator, devices=Sharding(mesh, lambda leaf, devices: 5))",
        ("Sharding(mesh, largest_axis)",),
        given="mesh = jax.make_mesh((1,), ('devices',))",
        full=True,
    ),
    Case(
        "devices/sharding.py: there are fewer devices",
        "train(estimator, devices=100)",
        ("devices=1",),
        full=True,
    ),
    # diagnostics/
    Case(
        "diagnostics/_compare.py: compare needs",
        "compare(problem, adaptation, meta, episodes, key, [], seconds=0)",
        (
            (
                "compare(..., [Unroll(), FirstOrder()])",
                "compare(problem, adaptation, meta, episodes, key, [Unroll(), FirstOrder()], "
                "seconds=0)",
            ),
        ),
        full=True,
    ),
    Case(
        "diagnostics/_compare.py: a stochastic",
        "compare(problem, adaptation, meta, episodes, key, [EvolutionStrategies(1, 0.1)], "
        "draws=1, seconds=0)",
        ("compare(..., draws=8)",),
        full=True,
    ),
    Case(
        "diagnostics/_plan.py: no meta-gradient of the allowed",
        "plan(problem, learn, meta, episodes, '1MiB', allow=('biased',))",
        ("plan(..., allow=('exact', 'biased'))",),
        given="learn = Minimise(optimistix.BFGS(1e-3, 1e-3))\nproblem = proximal(problem, 1.0)",
        full=True,
    ),
    Case(
        "diagnostics/_plan.py: no meta-gradient that was",
        "plan(problem, adaptation, meta, episodes, 300)",
        (
            (
                "plan(..., memory=#)",
                "import re\n"
                "enough = int(re.search(r'memory=(\\d+)', error.write)[1])\n"
                "plan(problem, adaptation, meta, episodes, memory=enough)",
            ),
        ),
        full=True,
    ),
    Case(
        "diagnostics/amounts.py: memory is not an amount",
        'plan(problem, adaptation, meta, episodes, memory="2 elephants")',
        ('memory="2GiB"',),
        full=True,
    ),
]
