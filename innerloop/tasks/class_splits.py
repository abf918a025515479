"""Published splits, which say by name what classes each part has."""

from itertools import combinations

from innerloop.errors import DataError


def checked_names(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """The classes of each part, as they came. Raises `DataError` where two parts share one."""
    for first, second in combinations(names, 2):
        shared = sorted(set(names[first]) & set(names[second]))
        if shared:
            raise DataError(
                f"{first} and {second} share classes",
                got=f"{len(shared)} classes in both, the first of them {shared[0]}",
                expected="no class in two splits",
                write="the files of the split as they are published",
            )
    return names
