"""What estimators that are made of others share."""

import abc
from collections.abc import Sequence

import equinox as eqx

from innerloop.devices.placement import Placement
from innerloop.estimators.base import Estimator
from innerloop.fidelity import Fidelity, combined
from innerloop.learner import Learner


class Combination(Estimator):
    """An estimator that is made of others, each with a name."""

    @property
    @abc.abstractmethod
    def named(self) -> dict[str, Estimator]:
        """The parts by name."""

    @abc.abstractmethod
    def made_of(self, parts: Sequence[Estimator]) -> "Combination":
        """The same combination of other parts, in the order of `named`."""

    @property
    def learner(self) -> Learner | None:
        """The learner that all parts train, if it is the same."""
        first, *others = (part.learner for part in self.named.values())
        same = first is not None and all(bool(eqx.tree_equal(first, each)) for each in others)
        return first if same else None

    @property
    def tasks_at_once(self) -> int | None:
        limits = [part.tasks_at_once for part in self.named.values()]
        return min((limit for limit in limits if limit is not None), default=None)

    def fidelity(self) -> Fidelity:
        """That of the part which is furthest from exact; the sentence names every part."""
        parts = {name: part.fidelity() for name, part in self.named.items()}
        sentence = " ".join(f"{name}: {part.sentence}" for name, part in parts.items())
        return combined(parts.values())._replace(sentence=sentence)

    def on(self, placement: Placement) -> "Combination":
        return self.made_of([part.on(placement) for part in self.named.values()])

    def close(self) -> None:
        for part in self.named.values():
            part.close()


def joined(name: str, inner: str) -> str:
    """The name of a part of a part."""
    return f"{name}/{inner}" if inner else name
