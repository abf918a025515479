"""Every error raised on purpose: what came, what was expected, what to write instead."""


class InnerloopError(Exception):
    """Base of the library's own errors.

    Each has these parts, so that one line tells the user what to do:

    - `problem`: what is wrong, in one clause
    - `got`: what was received
    - `expected`: what would have been right
    - `write`: the call or command to write instead; None if no single call is right in every case
    """

    def __init__(self, problem: str, *, got: str, expected: str, write: str | None = None):
        self.problem = problem
        self.got = got
        self.expected = expected
        self.write = write
        super().__init__(f"{problem}. Got: {got}. Expected: {expected}{self.cure}")

    @property
    def cure(self) -> str:
        """The last part of the message; empty if there is no `write`."""
        return f". Write: {self.write}" if self.write else ""


class StructureError(InnerloopError, ValueError):
    """Parts that do not fit together: shapes, signatures, types, counts. Raised while tracing."""


class GradientError(InnerloopError, ValueError):
    """A meta-gradient that does not exist. Raised while tracing, never returned as zeros."""


class DetachedError(GradientError):
    """No meta-parameter reaches the outer loss: the whole meta-gradient would be zeros."""


class DataError(InnerloopError, ValueError):
    """Data that is missing, corrupt, or cannot give what was asked of it."""


class RunError(InnerloopError, ValueError):
    """A run that cannot start, go on, or be read: its folder, its files, or a diverged loss."""
