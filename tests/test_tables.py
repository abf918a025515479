"""Every public variant has its line in the table of its kind, so that no law passes it by."""

import inspect

import pytest
from halving import ESTIMATORS
from heads import OnClasses
from variants import ADAPTATIONS, GRADIENTS, INNER, LOOPS

import innerloop as il

NAMESPACES = (il, il.gradients, il.heads, il.optimizers, il.estimators)


def classes(values):
    return {type(value) for value in values}


def adaptations():
    """Those of the table; a head that is wrapped for the laws' tasks counts as itself."""
    found = [variant.adaptation for variant in ADAPTATIONS]
    return classes(each.head if isinstance(each, OnClasses) else each for each in found)


TABLES = {
    il.extend.MetaGradient: lambda: classes(each.gradient for each in GRADIENTS),
    il.extend.InnerRule: lambda: classes(slot.value for slot in INNER.values()),
    il.extend.Loop: lambda: classes(slot.value for slot in LOOPS.values()),
    il.extend.Adaptation: adaptations,
    il.extend.Estimator: lambda: classes(ESTIMATORS.values()),
    il.optimizers.LearnedOptimizer: lambda: set(il.optimizers.OPTIMIZERS),
}


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_every_public_variant_is_in_the_table_of_its_kind(kind):
    exported = {
        value for module in NAMESPACES for value in vars(module).values() if inspect.isclass(value)
    }
    public = {each for each in exported if issubclass(each, kind) and not inspect.isabstract(each)}
    assert public
    assert public <= TABLES[kind]()
