"""Which cases `make test` leaves to `make test-all`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text().split("\n")[:-1])
"""Tests and cases that are slow and have faster siblings."""


def without(slow: Iterable[Any], cases: Iterable[Any]) -> list:
    """The cases as parameters of a test, where the slow ones have faster siblings."""
    slow = set(slow)
    return [
        pytest.param(each, id=str(each), marks=[pytest.mark.full] * (each in slow))
        for each in cases
    ]


def mark_slow(items: Iterable[pytest.Item], whole: bool) -> None:
    """Mark the slow cases `full`.

    Args:
        items: The collected tests.
        whole: Whether all tests of each collected file are among them.

    Raises:
        UsageError: If a file of a whole collection has no case of a name in the list.
    """
    by_name = {item.nodeid: item for item in items}
    for name in SLOW & by_name.keys():
        by_name[name].add_marker("full")
    files = {name.partition("::")[0] for name in by_name}
    if whole and (gone := [each for each in SLOW - by_name.keys() if each.split("::")[0] in files]):
        raise pytest.UsageError(f"tests/slow.txt names cases that do not exist: {sorted(gone)}")
