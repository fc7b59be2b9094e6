"""How the versions of a model are: the answer to GetModelStatus."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from aioserving import _proto
from aioserving.errors import DecodeError

__all__ = ["ModelStatus", "State", "VersionStatus"]


class State(enum.IntEnum):
    """The life of a version, in this order; an error jumps to ``END`` (``ModelVersionStatus.State``)."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of a model on one server."""

    version: int
    state: State
    #: Why loading it failed, as ``"CODE_NAME: text"``; None if it did not fail.
    error: str | None = None

    @property
    def available(self) -> bool:
        """Whether it can serve."""
        return self.state == State.AVAILABLE

    @property
    def ended(self) -> bool:
        """Whether it is gone: unloaded, or never loaded because of `error`."""
        return self.state == State.END

    def __str__(self) -> str:
        return f"version {self.version} {self.state.name}" + (f" ({self.error})" if self.error else "")


@dataclass(frozen=True, slots=True)
class ModelStatus(Sequence[VersionStatus]):
    """Every version that a server has seen of a model since it started, highest first."""

    #: Name of the model.
    model: str
    versions: tuple[VersionStatus, ...]
    #: The GetModelStatusResponse as it came.
    serialized: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def from_response(cls, model: str, data: bytes) -> ModelStatus:
        """Read a serialized GetModelStatusResponse about `model`.

        Raises:
            DecodeError: the bytes are none.
        """
        from google.protobuf.message import DecodeError as ProtobufDecodeError

        try:
            response: Any = _proto.message_class("tensorflow.serving.GetModelStatusResponse").FromString(data)
        except ProtobufDecodeError as error:
            raise DecodeError(f"not a GetModelStatusResponse: {error}") from error
        versions = (
            VersionStatus(item.version, _state(item.state), _error(item.status))
            for item in response.model_version_status
        )
        return cls(model, tuple(sorted(versions, key=lambda item: item.version, reverse=True)), data)

    @property
    def available(self) -> tuple[VersionStatus, ...]:
        """The versions that can serve."""
        return tuple(item for item in self.versions if item.available)

    @property
    def failed(self) -> tuple[VersionStatus, ...]:
        """The versions whose loading failed."""
        return tuple(item for item in self.versions if item.error is not None)

    @property
    def proto(self) -> Any:
        """The GetModelStatusResponse message."""
        return _proto.message_class("tensorflow.serving.GetModelStatusResponse").FromString(self.serialized)

    @overload
    def __getitem__(self, index: int) -> VersionStatus: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[VersionStatus, ...]: ...
    def __getitem__(self, index: int | slice) -> VersionStatus | tuple[VersionStatus, ...]:
        return self.versions[index]

    def __len__(self) -> int:
        return len(self.versions)

    def __str__(self) -> str:
        return f"{self.model}: " + (", ".join(map(str, self.versions)) or "no versions")


def _state(number: int) -> State:
    try:
        return State(number)
    except ValueError:  # a newer server's; proto3 enums are open
        return State.UNKNOWN


def _error(status: Any) -> str | None:
    if not status.error_code:
        return None
    value = status.DESCRIPTOR.fields_by_name["error_code"].enum_type.values_by_number.get(status.error_code)
    name = value.name if value is not None else str(status.error_code)
    return f"{name}: {status.error_message}" if status.error_message else str(name)
