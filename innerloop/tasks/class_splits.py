"""Published splits, which list the names of the classes of each part."""

from itertools import combinations

from innerloop.errors import DataError


def checked_names(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns `names` unchanged. Raises `DataError` if two parts share a class."""
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
