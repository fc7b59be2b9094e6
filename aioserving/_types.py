"""Type aliases and the marker for "not given", shared by every layer."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy.typing as npt

__all__ = ["DEFAULT", "Array", "DefaultType", "Inputs", "Metadata", "TensorLike", "Timeout"]

#: A numpy array of any dtype and shape.
Array: TypeAlias = npt.NDArray[Any]

#: What can be sent as one tensor: an array, a scalar, nested sequences, or anything numpy converts.
TensorLike: TypeAlias = npt.ArrayLike | str | bytes

#: What `predict` takes: tensors by input name, or the one tensor of a single-input signature.
Inputs: TypeAlias = Mapping[str, TensorLike] | TensorLike

#: gRPC metadata (headers) of a call: key and value pairs; keys in lower case.
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


class DefaultType(enum.Enum):
    """The type of `DEFAULT`; an Enum of one member is what type checkers can narrow."""

    DEFAULT = enum.auto()

    def __repr__(self) -> str:
        return "<DEFAULT>"


#: "Not given": use the client's own setting (where None means "off" or "no limit").
DEFAULT: Final = DefaultType.DEFAULT


#: Seconds that a call may take; None for no limit, `DEFAULT` for the client's own setting.
Timeout: TypeAlias = float | DefaultType | None
