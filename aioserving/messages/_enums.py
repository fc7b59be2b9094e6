"""Enums of no message in particular; nested ones are attributes of their view."""

from __future__ import annotations

from aioserving.messages._values import ProtoEnum, enum_of

__all__ = ["Code", "ModelType"]


@enum_of("tensorflow.error.Code")
class Code(ProtoEnum):
    """Status codes of TensorFlow: gRPC's, number by number."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    UNAUTHENTICATED = 16
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    DO_NOT_USE_RESERVED_FOR_FUTURE_EXPANSION_USE_DEFAULT_IN_SWITCH_INSTEAD_ = 20


@enum_of("tensorflow.serving.ModelType")
class ModelType(ProtoEnum):
    """The deprecated way to name a platform."""

    MODEL_TYPE_UNSPECIFIED = 0
    TENSORFLOW = 1
    OTHER = 2
