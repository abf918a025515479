"""Every optimizer of Optax as a row of the table, and every name that is none.

A row says how the optimizer is made, and what a loop by hand passes to `update` by keyword.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import innerloop as il

RATE = 0.05
MODULES = {"optax": optax, "optax.contrib": contrib, "optax.transforms": optax.transforms}


class Row(NamedTuple):
    """How an optimizer is made.

    - `make`: a function without arguments
    - `asks`: what `update` is passed by keyword in a loop by hand
    - `judged`: the parameters that are judged, `(state, params) -> params`
    """

    make: Callable[[], Any]
    asks: tuple[str, ...] = ()
    judged: Callable | None = None


def rated(*parts: Any) -> Any:
    """A direction with a rate."""
    return optax.chain(*parts, optax.scale(-RATE))


def small_weights(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _rate_alone(name: str, **options: Any) -> Row:
    return Row(lambda: _named(name)(RATE, **options))


def _direction(name: str, *arguments: Any, **options: Any) -> Row:
    return Row(lambda: rated(_named(name)(*arguments, **options)))


def _named(name: str) -> Any:
    return getattr(contrib if hasattr(contrib, name) else optax, name)


SGD = lambda: optax.sgd(RATE)
SEARCH = ("value", "grad", "value_fn")

WITH_RATE = [
    *("adabelief", "adadelta", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan"),
    *("amsgrad", "fromage", "lamb", "lars", "lion", "noisy_sgd", "novograd"),
    *("optimistic_adam", "optimistic_adam_v2", "optimistic_gradient_descent", "radam"),
    *("rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi", "acprop", "ademamix"),
    *("adopt", "madgrad", "muon", "simplified_ademamix", "cocob", "dadapt_adamw", "dog"),
    *("dowg", "prodigy", "schedule_free_adamw"),
]
DIRECTIONS = [
    *("centralize", "identity", "normalize_by_update_norm", "scale_by_adadelta"),
    *("scale_by_adam", "scale_by_adamax", "scale_by_adan", "scale_by_amsgrad"),
    *("scale_by_belief", "scale_by_distance_over_gradients", "scale_by_factored_rms"),
    *("scale_by_lbfgs", "scale_by_lion", "scale_by_novograd"),
    *("scale_by_optimistic_gradient", "scale_by_param_block_norm"),
    *("scale_by_param_block_rms", "scale_by_radam", "scale_by_rms", "scale_by_rss"),
    *("scale_by_sign", "scale_by_sm3", "scale_by_stddev", "scale_by_trust_ratio"),
    *("scale_by_yogi", "zero_nans", "apply_every", "add_decayed_weights", "normalize"),
    *("scale_by_acprop", "scale_by_ademamix", "scale_by_adopt", "scale_by_cocob"),
    *("scale_by_muon", "scale_by_simplified_ademamix"),
]

ROWS = {
    **{name: _rate_alone(name) for name in WITH_RATE},
    **{name: _direction(name) for name in DIRECTIONS},
    "adafactor": _rate_alone("adafactor", min_dim_size_to_factor=2),
    "galore": _rate_alone("galore", rank=1),
    "scale_by_galore": _direction("scale_by_galore", rank=1),
    "sophia": Row(lambda: contrib.sophia(RATE), ("obj_fn",)),
    "hutchinson_estimator_diag_hessian": Row(
        lambda: rated(contrib.hutchinson_estimator_diag_hessian()), ("obj_fn",)
    ),
    "scale_by_madgrad": Row(lambda: contrib.scale_by_madgrad(RATE)),
    "scale_by_rprop": Row(lambda: optax.scale_by_rprop(RATE)),
    "scale_by_learning_rate": Row(lambda: optax.scale_by_learning_rate(RATE)),
    "scale_by_schedule": Row(
        lambda: rated(optax.scale_by_schedule(optax.linear_schedule(1.0, 0.1, 12)))
    ),
    "scale": Row(lambda: optax.scale(-RATE)),
    "trace": _direction("trace", 0.9),
    "ema": _direction("ema", 0.9),
    "clip": _direction("clip", 0.25),
    "clip_by_block_rms": _direction("clip_by_block_rms", 0.25),
    "clip_by_global_norm": _direction("clip_by_global_norm", 0.5),
    "adaptive_grad_clip": _direction("adaptive_grad_clip", 0.25),
    "add_noise": _direction("add_noise", 0.01, 0.55, 0),
    "keep_params_nonnegative": Row(lambda: optax.chain(SGD(), optax.keep_params_nonnegative())),
    "stateless": Row(lambda: optax.stateless(lambda g, p: jax.tree.map(lambda x: -RATE * x, g))),
    "stateless_with_tree_map": Row(
        lambda: optax.stateless_with_tree_map(lambda g, p: -RATE * (g + p))
    ),
    "set_to_zero": Row(
        lambda: optax.partition(
            {True: SGD(), False: optax.set_to_zero()},
            lambda params: jax.tree.map(lambda leaf: leaf.ndim > 0, params),
        )
    ),
    "GradientTransformation": Row(lambda: optax.GradientTransformation(*SGD())),
    "GradientTransformationExtraArgs": Row(lambda: optax.GradientTransformationExtraArgs(*SGD())),
    # Those that ask for arguments.
    "lbfgs": Row(optax.lbfgs, SEARCH),
    "scale_by_backtracking_linesearch": Row(
        lambda: optax.chain(SGD(), optax.scale_by_backtracking_linesearch(5)), SEARCH
    ),
    "scale_by_zoom_linesearch": Row(
        lambda: optax.chain(SGD(), optax.scale_by_zoom_linesearch(5)), SEARCH
    ),
    "polyak_sgd": Row(lambda: optax.polyak_sgd(RATE), ("value",)),
    "scale_by_polyak": Row(
        lambda: optax.chain(optax.scale_by_polyak(RATE), optax.scale(-1)), ("value",)
    ),
    "momo": Row(lambda: contrib.momo(RATE), ("value",)),
    "momo_adam": Row(lambda: contrib.momo_adam(RATE), ("value",)),
    "reduce_on_plateau": Row(
        lambda: optax.chain(SGD(), contrib.reduce_on_plateau(0.5, 1)), ("value",)
    ),
    "sam": Row(lambda: contrib.sam(SGD(), optax.chain(contrib.normalize(), optax.sgd(0.1)))),
    "sam, opaque": Row(
        lambda: contrib.sam(
            SGD(), optax.chain(contrib.normalize(), optax.sgd(0.1)), opaque_mode=True
        ),
        ("grad_fn",),
    ),
    "sam in a chain": Row(lambda: optax.chain(optax.clip(0.5), contrib.sam(SGD(), optax.sgd(0.1)))),
    "il.named_arguments(sam) in a chain": Row(
        lambda: optax.chain(
            optax.clip(0.5), il.optimizers.named_arguments(contrib.sam(SGD(), optax.sgd(0.1)))
        )
    ),
    # Those that are judged elsewhere than they take the gradient.
    "schedule_free": Row(
        lambda: contrib.schedule_free(SGD(), RATE), judged=contrib.schedule_free_eval_params
    ),
    "schedule_free_sgd": Row(
        lambda: contrib.schedule_free_sgd(RATE), judged=contrib.schedule_free_eval_params
    ),
    "schedule_free_adamw": Row(
        lambda: contrib.schedule_free_adamw(RATE), judged=contrib.schedule_free_eval_params
    ),
    "lookahead": Row(lambda: optax.lookahead(SGD(), 2, 0.5)),
    "il.lookahead": Row(
        lambda: il.optimizers.lookahead(SGD(), 2, 0.5), judged=il.optimizers.slow_params
    ),
    # Wrappers.
    "MultiSteps": Row(lambda: optax.MultiSteps(SGD(), 2)),
    "MultiSteps.gradient_transformation": Row(
        lambda: optax.MultiSteps(optax.adam(RATE), 2).gradient_transformation()
    ),
    "apply_if_finite": Row(lambda: optax.apply_if_finite(SGD(), 2)),
    "chain": Row(lambda: optax.chain(optax.clip(0.5), optax.adam(RATE))),
    "named_chain": Row(lambda: optax.named_chain(("clip", optax.clip(0.5)), ("sgd", SGD()))),
    "conditionally_mask": Row(lambda: optax.conditionally_mask(SGD(), lambda step: step < 5)),
    "conditionally_transform": Row(
        lambda: optax.conditionally_transform(SGD(), lambda step, *_: step < 5)
    ),
    "flatten": Row(lambda: optax.flatten(optax.adam(RATE))),
    "freeze": Row(lambda: optax.chain(SGD(), optax.freeze(small_weights))),
    "selective_transform": Row(lambda: optax.selective_transform(SGD(), freeze_mask=small_weights)),
    "masked": Row(lambda: optax.chain(SGD(), optax.masked(optax.scale(0.5), small_weights))),
    "multi_transform": Row(
        lambda: optax.multi_transform({True: SGD(), False: optax.adam(RATE)}, small_weights)
    ),
    "inject_hyperparams": Row(lambda: optax.inject_hyperparams(optax.adam)(RATE)),
    "inject_stateful_hyperparams": Row(lambda: optax.inject_stateful_hyperparams(optax.adam)(RATE)),
    "with_extra_args_support": Row(lambda: optax.with_extra_args_support(SGD())),
    "measure_with_ema": Row(
        lambda: optax.chain(SGD(), optax.monitor({"norm": optax.measure_with_ema(_norm, 0.9)}))
    ),
    "monitor": Row(lambda: optax.chain(SGD(), optax.monitor({"norm": _norm}))),
    "snapshot": Row(lambda: optax.chain(SGD(), optax.snapshot("norm", _norm))),
    "mechanize": Row(lambda: contrib.mechanize(SGD())),
    "split_real_and_imaginary": Row(lambda: contrib.split_real_and_imaginary(SGD())),
    "differentially_private_aggregate": Row(
        lambda: rated(contrib.differentially_private_aggregate(1.0, 0.1, 0))
    ),
    "dpsgd": Row(lambda: contrib.dpsgd(RATE, 1.0, 0.1, 0)),
    # Settings that change types.
    "sgd, momentum, float64 rate": Row(lambda: optax.sgd(jnp.asarray(RATE, float), 0.9)),
    "rmsprop, momentum": Row(lambda: optax.rmsprop(RATE, momentum=0.9)),
    "adam, NumPy b1": Row(lambda: optax.adam(RATE, b1=jnp.asarray(0.9, float), eps_root=1e-8)),
}


def _norm(updates: Any, *_: Any, **__: Any) -> Any:
    return optax.tree.norm(updates)


PARTS = {name for name in ROWS if name in DIRECTIONS or name.startswith("scale")} | {
    *("trace", "ema", "clip", "clip_by_block_rms", "clip_by_global_norm", "adaptive_grad_clip"),
    *("stateless", "stateless_with_tree_map", "GradientTransformation"),
    *(
        "GradientTransformationExtraArgs",
        "with_extra_args_support",
        "hutchinson_estimator_diag_hessian",
    ),
}
"""Rows of which other rows are made."""

NO_OPTIMIZER = {
    *("TransformInitFn", "TransformUpdateFn", "apply_updates", "init_empty_state"),
    *("per_example_global_norm_clip", "per_example_layer_norm_clip"),
}
"""Public functions and types that speak of transformations and make none."""


def public_names() -> set[str]:
    """The names in Optax's modules that make a transformation, by their source text."""
    found: dict[Any, str] = {}
    for module in MODULES.values():
        for name, value in sorted(vars(module).items()):
            made = inspect.isfunction(value) or inspect.isclass(value)
            if name.startswith("_") or name.endswith("State") or not made:
                continue
            own = getattr(value, "__module__", "").startswith("optax")
            if own and "GradientTransformation" in inspect.getsource(value):
                found.setdefault(value, name)
    return set(found.values()) - NO_OPTIMIZER
