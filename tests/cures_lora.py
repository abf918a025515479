"""The cures of chosen, frozen and factored parts, of files of weights and of exported programs."""

from sites import Case

NET = (
    "from innerloop.adapters import *\n"
    "model, loss = mlp([2, 3, 3]), cross_entropy\n"
    "params = model.init(key)\n"
    "where = matching('head')\n"
)
NNX = (
    "from innerloop.checks import optional_package\n"
    "nnx = optional_package('flax.nnx', 'a test', extra='ecosystem')\n"
    "module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))\n"
    "model = from_nnx(module)\n"
    "start = lambda weights: il.recipes.pretrained(il.recipes.maml(model, loss), weights)\n"
)
NUMBERS = (
    NET
    + "params = {'body': jnp.ones((2, 3), jnp.int8), 'scale': jnp.ones(()), 'head': jnp.ones(3)}\n"
    "model = model._replace(init=lambda key: params)\n"
)
FILE = (
    NET + "from innerloop.checks import optional_package\n"
    "save = optional_package('safetensors.numpy', 'a test', extra='safetensors').save_file\n"
    "flat = {path: np.array(leaf) for path, leaf in matching('*')(params).items()}\n"
    "path = tmp_path / 'weights'\n"
)
LEARNER = (
    NET + "recipe = il.recipes.maml(model, loss)\n"
    "rows = il.Examples(jnp.ones((3, 2)), jnp.zeros(3, int))\n"
    "export = lambda learner, **options: "
    "export_learner(learner, params, rows, rows, **options)\n"
    "predict = lambda params, meta, batch, key: batch.inputs\n"
    "def by_rows(params, meta, batch, key):\n"
    "    return jnp.stack([batch.inputs[i] for i in range(len(batch.inputs))])\n"
    "Learner = lambda problem, adaptation, predict=None: il.Learner(problem, adaptation, predict)\n"
)

CASES = [
    Case(
        "adapters/_where.py: arrays are chosen by",
        "matching(3)(params)",
        ("matching('head')", ", or matching(lambda path, leaf: leaf.ndim > 1)"),
        given=NET,
    ),
    Case(
        "adapters/_where.py: no array has a path",
        "matching('haed')(params)",
        ("matching('head')", ", or matching('head.bias')"),
        given=NET,
    ),
    Case(
        "adapters/_where.py: no array has a path",
        "matching('a.[x]')({'a': {'[x]': 1.0}})",
        ("matching('a.[[]x]')",),
        given=NET,
    ),
    Case(
        "adapters/_freeze.py: params is a module",
        "freeze(model, params, where)",
        (
            (
                "adapters.from_equinox(module).init(jax.random.key(0))",
                "freeze(model, il.adapters.from_equinox(params).init(jax.random.key(0)), where)",
            ),
        ),
        given=NET + "import equinox as eqx\nparams = eqx.nn.MLP(2, 3, 3, 1, key=key)\n"
        "model, where = il.adapters.from_equinox(params), matching('layers.0')",
    ),
    *(
        Case(
            site,
            wrong.format(params),
            (
                (
                    "adapters.from_nnx(module).init(jax.random.key(0))",
                    wrong.format("from_nnx(module).init(jax.random.key(0))"),
                ),
            ),
            given=NET + NNX,
        )
        for site, wrong in {
            "adapters/_freeze.py: params is a module": "freeze(model, {}, matching('bias'))",
            "recipes/_pretrained.py: the pretrained weights": "start({}).init_meta(key)",
        }.items()
        for params in ("nnx.state(module)", "module")
    ),
    Case(
        "adapters/_freeze.py: an array that is not frozen",
        "freeze(model, params, where)",
        (
            (
                "matching('body') | where, for the frozen part",
                "freeze(model, params, matching('body') | where)",
            ),
        ),
        given=NUMBERS,
    ),
    Case(
        "adapters/_lora.py: the rank is larger",
        "lora(model, params, rank=4, where=matching('*weights'))",
        ("rank=2",),
        given=NET,
    ),
    Case(
        "adapters/_lora.py: only floating-point arrays with",
        "lora(model, params, rank=1, where=matching('head'))",
        ("where=matching('head.weights')",),
        given=NET,
    ),
    Case(
        "adapters/_lora.py: as_matrix gives a shape without",
        "lora(model, params, 1, matching('*weights'), as_matrix=lambda path, shape: (-1,))",
        ("as_matrix=lambda path, shape: (-1, shape[-1])",),
        given=NET,
    ),
    Case(
        "adapters/_lora.py: the tree has None",
        "lora_merge(meta['base'], meta['factors'])",
        ("merged_params(model, meta)",),
        given=NET + "model = lora(model, params, 2, matching('*weights'))\nmeta = model.init(key)",
    ),
    Case(
        "adapters/_lora.py: the factors do not fit",
        "lora_merge(tree, factors)",
        ("lora_merge(..., as_matrix=lambda path, shape: (-1, shape[-1]))",),
        given=NET + "tree = {'w': jnp.ones((3, 3, 4))}\n"
        "factors = lora_factors(tree, 2, matching('w'), key, "
        "as_matrix=lambda path, shape: (-1, shape[-1]))",
    ),
    Case(
        "adapters/safetensors.py: the file has no tensor",
        "load_safetensors(path, params, names=None)",
        ("names=lambda path: f'model.{path}'",),
        given=FILE + "save({'model.' + name: leaf for name, leaf in flat.items()}, path)",
    ),
    Case(
        "adapters/safetensors.py: the file has tensors",
        "load_safetensors(path, params, ignored=[])",
        ("ignored=['step', 'x']",),
        given=FILE + "save(flat | {'step': np.ones(1), 'x': np.ones(1)}, path)",
    ),
    Case(
        "adapters/safetensors.py: a pattern of tensors",
        "load_safetensors(path, params, ignored=['setp', 'step', 'x'])",
        ("ignored=['step', 'x']",),
        given=FILE + "save(flat | {'step': np.ones(1), 'x': np.ones(1)}, path)",
    ),
    Case(
        "adapters/safetensors.py: the file has tensors",
        "load_safetensors(path, params, ignored=[])",
        ("ignored=['a[[]0]']",),
        given=FILE + "save(flat | {'a[0]': np.ones(1)}, path)",
    ),
    Case(
        "adapters/safetensors.py: like is not",
        "load_safetensors(path, like=model)",
        ("like=model.init(jax.random.key(0))",),
        given=FILE + "save(flat, path)",
    ),
    Case(
        "adapters/export.py: only a learner with predictions",
        "export(Learner(recipe.problem, recipe.adaptation))",
        (
            (
                "Learner(..., predict=lambda params, meta, batch, key: ...)",
                "export(Learner(recipe.problem, recipe.adaptation, predict))",
            ),
        ),
        given=LEARNER,
    ),
    Case(
        "adapters/export.py: params is the pair",
        "export_adapted(learner, params, meta, query)",
        ("export_adapted(learner, params[0], meta, query)",),
        given=LEARNER + "learner, meta, query = recipe.learner, params, rows\n"
        "params = il.adapt(learner.problem, learner.adaptation, meta, rows, key)",
    ),
    Case(
        "adapters/export.py: the program cannot be made",
        "export(Learner(recipe.problem, recipe.adaptation, by_rows), any_rows=True)",
        ("any_rows=False",),
        given=LEARNER,
    ),
    Case(
        "recipes/_partly_adapted.py: where selects everything",
        "il.recipes.anil(model, loss, where=matching('*'))",
        (("maml(model, loss)", "il.recipes.maml(model, loss)"),),
        given=NET,
    ),
]
