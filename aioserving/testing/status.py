"""Statuses of the testing server: the seventeen canonical codes, and the error that carries one.

What the models, the manager and the inference functions raise, and what `server` turns into a gRPC
status. No gRPC in here: code that only runs models needs none.
"""

from __future__ import annotations

import enum

__all__ = ["MESSAGE_LIMIT", "StatusCode", "StatusError", "truncate"]

#: Bytes of a status message that the real server puts on the wire; the rest is cut.
MESSAGE_LIMIT = 1024


class StatusCode(enum.IntEnum):
    """The canonical codes, with the numbers that absl, TensorFlow and gRPC share."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatusError(Exception):
    """A call, a load or a reload ends with this code and message (the whole text, not yet cut).

    Attributes:
        code: one of `StatusCode`, never OK.
        message: the text, as the real server words it.
    """

    code: StatusCode
    message: str

    def __init__(self, code: int, message: str = "") -> None:
        self.code = StatusCode(code)
        self.message = message
        if self.code is StatusCode.OK:
            raise ValueError("OK is not an error")
        super().__init__(self.code, message)

    def __str__(self) -> str:
        """The text that absl prints, ``NOT_FOUND: Could not find ...``, which server texts quote."""
        return f"{self.code.name}: {self.message}"

    def __repr__(self) -> str:
        return f"StatusError({self.code.name}, {self.message!r})"


def truncate(message: str) -> str:
    """`message` as it goes on the wire: cut after 1024 bytes, and then marked ``...TRUNCATED``.

    The cut may fall inside a character. What is left of it becomes U+FFFD, which is also what a
    Python client makes of the half character that the real server sends.
    """
    data = message.encode("utf-8", "replace")
    if len(data) <= MESSAGE_LIMIT:
        return message
    return data[:MESSAGE_LIMIT].decode("utf-8", "replace") + "...TRUNCATED"
