"""`fit` by a recipe, as most tests of training call it."""

import innerloop as il


def fit(recipe, tasks, *, batch, chunk=None, **options):
    """Meta-train what a recipe makes of these tasks."""
    return il.fit(recipe.estimator(tasks, batch, chunk), recipe.init_meta, **options)
