"""The one table of recorded answers that the testing server does not have to repeat exactly, and why.

A case that is not in here has to end with the recorded code, message and response. A row waives as
little as it can: a message is held to a pattern instead, a response to nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.golden.cases import Case

__all__ = ["EXCEPTIONS", "Waiver", "explained", "message_accepted"]


@dataclass(frozen=True)
class Waiver:
    """What need not be as recorded, and why."""

    reason: str
    #: Accepted besides the recorded message: a regular expression for the whole of it.
    message: str | None = None
    #: Accepted besides the recorded code.
    codes: frozenset[str] = field(default=frozenset())
    #: The response need not be the recorded one.
    response: bool = False


#: Case id -> waiver.
EXCEPTIONS: dict[str, Waiver] = {
    "A_main/float_rank_255": Waiver(
        "the codec's tensors are numpy arrays, of at most 64 dimensions (32 in numpy 1), where TensorFlow's "
        "have up to 254: such a tensor is refused as one that does not parse",
        codes=frozenset({"INVALID_ARGUMENT"}),
        message=r"tensor parsing error: x",
        response=True,
    ),
    "A_main/pred_examples_bad_bytes": Waiver(
        "the message has the two bytes FF FF, which are not UTF-8: the recording shows them as latin-1, a "
        "Python server can only send, and a Python client only show, replacement characters",
        message=r"Could not parse example input, value: '\ufffd\ufffd'\n\t "
        r"\[\[\{\{node ParseExample/ParseExampleV2\}\}\]\]",
    ),
    "A_main/uninit_vars": Waiver(
        "the variables are read in parallel: whichever is missed first is named (the recording's own second "
        "attempt names another one)",
        message=r"Could not find variable sequential/\w+/\w+\. This could mean that the variable has been "
        r"deleted\. In TF1, it can also mean the variable is uninitialized\. Debug info: "
        r"container=localhost, status error message=Resource localhost/sequential/\w+/\w+/N10tensorflow3VarE "
        r"does not exist\.\n\t "
        r"\[\[\{\{function_node __inference_pred_1899\}\}\{\{node sequential_1/\S+/ReadVariableOp\}\}\]\]",
    ),
    "C_reload/056_reload_metrics": Waiver(
        "the real server lists the metrics in the order of a hash map; they are compared sorted by name",
        response=True,
    ),
    "C_reload/057_reload_metrics2": Waiver(
        "the real server lists the metrics in the order of a hash map; they are compared sorted by name",
        response=True,
    ),
}


def explained(case: Case) -> Waiver | None:
    """The row of `case`, or None: then the recording holds to the letter."""
    return EXCEPTIONS.get(case.id)


def message_accepted(case: Case, message: str) -> bool:
    """Whether the row of `case` accepts `message` in place of the recorded one."""
    waiver = explained(case)
    return (
        waiver is not None
        and waiver.message is not None
        and re.fullmatch(waiver.message, message) is not None
    )
