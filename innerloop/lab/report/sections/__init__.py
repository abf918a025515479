"""The sections of a report: one table, with a function per entry."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from innerloop.lab.report.blocks import Content
from innerloop.lab.report.runs import Run
from innerloop.lab.report.sections.learning import adaptation, intervals, learning
from innerloop.lab.report.sections.machine import cost, gradient
from innerloop.lab.report.sections.optimizers import optimizers
from innerloop.lab.report.sections.outcome import configuration, differences, environment, results
from innerloop.lab.report.sections.single_tasks import examples, spread


class Section(NamedTuple):
    """A heading, and the function that fills it; one that gives no blocks is left out."""

    title: str
    blocks: Callable[[list[Run]], Iterable[Content]]

    @property
    def anchor(self) -> str:
        """What links to it."""
        return self.title.lower().replace(" ", "-")


SECTIONS = (
    Section("Results", results),
    Section("Differences", differences),
    Section("Against tuned optimizers", optimizers),
    Section("Learning", learning),
    Section("Adaptation", adaptation),
    Section("Intervals", intervals),
    Section("Distribution", spread),
    Section("Examples", examples),
    Section("Meta-gradient", gradient),
    Section("Cost", cost),
    Section("Configuration", configuration),
    Section("Environment", environment),
)
"""In the order of the page; a further section is a further entry."""
