"""Faults of the machine: a full disk, and every kind of damage that a file can have."""

import os
import resource
from contextlib import contextmanager


@contextmanager
def full_disk():
    """No file grows: the system refuses every write, as where there is no space left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def rewritten(change):
    """Damage that replaces the content of a file."""

    def damage(path):
        path.write_bytes(change(path.read_bytes()))

    return damage


def in_its_place(make):
    """Damage that puts something else in the place of a file."""

    def damage(path):
        path.unlink()
        make(path)

    return damage


def flipped(at):
    """One bit, at a share of the length."""

    def change(content):
        i = min(int(at * len(content)), len(content) - 1)
        return content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]

    return change


def sparse(path):
    """Four terabytes that no disk holds."""
    with path.open("wb") as file:
        file.truncate(2**42)


DAMAGE = {
    "empty": rewritten(lambda content: b""),
    "half": rewritten(lambda content: content[: len(content) // 2]),
    "one byte short": rewritten(lambda content: content[:-1]),
    "one byte more": rewritten(lambda content: content + b"x"),
    "twice": rewritten(lambda content: content + content),
    "zeros": rewritten(lambda content: bytes(len(content))),
    "noise": rewritten(lambda content: bytes((17 * i * i + 3) % 251 for i in range(500))),
    "nested": rewritten(lambda content: b"[" * 200_000),
    "sparse": in_its_place(sparse),
    "pipe": in_its_place(os.mkfifo),
    "folder": in_its_place(os.mkdir),
    "device": in_its_place(lambda path: path.symlink_to("/dev/zero")),
    "link to itself": in_its_place(lambda path: path.symlink_to(path)),
    "link to nothing": in_its_place(lambda path: path.symlink_to(path.with_name("nothing"))),
    **{f"a bit at {at}": rewritten(flipped(at)) for at in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.99, 1)},
}
"""Every kind of damage to a file, by name: a function of its path."""
