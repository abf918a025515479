"""Which cases of a table `make test` leaves to `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def without(slow: Iterable[Any], cases: Iterable[Any]) -> list:
    """The cases as parameters of a test, where the slow ones have faster siblings."""
    slow = set(slow)
    return [
        pytest.param(each, id=str(each), marks=[pytest.mark.full] * (each in slow))
        for each in cases
    ]
